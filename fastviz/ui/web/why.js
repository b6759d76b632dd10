// The tab "Why?": where each row's time goes, as one bar of coloured parts, and what of the full model it can touch at all.
(() => {
  const { h, format, known, names } = fastviz;
  const HINT = "Why is a row not faster? Run a comparison, then find out: every row runs once more with a profiler at a few of its steps. The profiler slows things down, so only the shares are taken from it and put on the times measured before.";
  const percent = (share) => (100 * share).toFixed(share < 0.0995 ? 1 : 0) + " %";
  const whole = (row) => Object.values(row.seconds).reduce((sum, part) => sum + part, 0);

  fastviz.why = (element, value) => {
    const place = element.querySelector(".why");
    if (!value || !value.rows.length) {
      place.replaceChildren(h("p", { class: "note" }, HINT));
      return;
    }
    const titles = names(value.rows), good = value.rows.filter((row) => !row.error);
    const kinds = Object.keys(value.classes).filter((kind) => good.some((row) => row.seconds[kind] > 0));
    const most = Math.max(...good.map(whole));
    place.replaceChildren(
      h("ul", { class: "legend" }, kinds.map((kind) => h("li", {}, h("i", { class: `kind-${kind}` }), value.classes[kind]))),
      ...value.rows.map((row, i) => reason(row, titles[i], kinds, value.classes, most)),
      numbers(good, value.rows, titles, kinds, value.classes));
  };

  function reason(row, title, kinds, classes, most) {
    if (row.error) return h("section", { class: "reason" }, h("h3", {}, title), h("p", { class: "refusal" }, row.error));
    const sum = whole(row), words = kinds.map((kind) => `${classes[kind]} ${percent(row.seconds[kind] / sum)}`).join(", ");
    const bar = h("div", { class: "parts", role: "img", "aria-label": `${title}: ${words}`, style: `width:${(100 * sum) / most}%` },
      kinds.filter((kind) => row.seconds[kind] > 0).map((kind) => h("i", { class: `kind-${kind}`, style: `flex-grow:${row.seconds[kind] / sum}`,
        title: `${classes[kind]}: ${format.seconds(row.seconds[kind])}, ${percent(row.seconds[kind] / sum)}` })));
    return h("section", { class: "reason" }, h("h3", {}, title, h("span", {}, format.seconds(sum))), bar, balance(row, most), h("p", { class: "sentence" }, row.verdict));
  }

  /** What the method's own work takes beside what it saves, on the scale of the bars of time. */
  function balance(row, most) {
    const pairs = [["spent", "Own work", row.seconds.own], ["saved", "Saves elsewhere", row.saved]];
    if (!row.seconds.own || !known(row.saved)) return "";
    return h("dl", { class: "balance" }, pairs.map(([kind, name, seconds]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, h("i", { class: kind, style: `width:${(100 * Math.max(0, seconds)) / most}%` }), format.seconds(Math.max(0, seconds))))));
  }

  function numbers(good, rows, titles, kinds, classes) {
    const title = (row) => titles[rows.indexOf(row)];
    const line = (name, cell, says) => h("tr", {}, h("th", { scope: "row", title: says }, name), good.map((row) => h("td", {}, cell(row))));
    const sizes = Object.keys((good.find((row) => Object.keys(row.growth).length) || { growth: {} }).growth);
    const words = [...new Set(good.flatMap((row) => Object.keys(row.own)))];
    const or = (value, reads) => (known(value) ? reads(value) : "–");
    return h("section", { class: "numbers" }, h("h2", {}, "Shares of each row's time, and what it can touch"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of shares" }, h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "unseen" }, "What")), good.map((row) => h("th", { scope: "col", class: "plain" }, title(row))))),
        h("tbody", {},
          kinds.map((kind) => line(classes[kind], (row) => percent(row.seconds[kind] / whole(row)))),
          words.map((word) => line(`Own work: ${word}`, (row) => or(row.own[word], format.seconds))),
          line("Saved elsewhere", (row) => or(row.saved, format.seconds), "What the full model's other work takes longer"),
          line("Touches, of full's time", (row) => or(row.touched, percent), "The share of the full model's time in which the row's methods can save anything"),
          line("At best", (row) => (known(row.bound) ? format.times(row.bound) : known(row.touched) ? "no end" : "–"), "Amdahl's bound: if all that took no time"),
          line("Measured", (row) => or(row.speedup, format.times)),
          sizes.map((size) => line(`Touches, FLOPs at ${size} px`, (row) => or(row.growth[size], percent), "The same share, of counted operations: how it grows with the picture")))))
      , h("p", { class: "note" }, "Between operations the program itself is at work, and none of the network's operations. The method's own work is what the full model does without. Times at other sizes are not measured here; operations are counted. Attention grows with the square of the tokens, so what works on attention can touch more of a larger picture."));
  }
})();
