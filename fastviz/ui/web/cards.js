// One card per row. Its place is there from the start, so nothing moves when pictures arrive.
(() => {
  const { h, say, format, known, slower, speed } = fastviz;
  const WORDS = { waiting: "Waiting", timed: "", done: "", failed: "Failed", stopped: "Stopped before it was finished" };

  function build(row) {
    const part = {
      picture: h("img", { alt: "", hidden: true, draggable: "false" }),
      veil: h("p", { class: "veil" }),
      bar: h("i", {}),
      title: h("h3", {}),
      stack: h("p", { class: "stack" }),
      time: h("span", { class: "time" }),
      speed: h("span", { class: "speed" }),
      facts: h("dl", { class: "facts" }),
      save: h("a", { class: "save", hidden: true, title: "Save this picture with its recipe" }, "Save"),
    };
    part.begin = h("button", { type: "button", class: "begin", hidden: true, title: "Let every row start from this picture",
      onclick: () => fastviz.start_from(part.picture.src) }, "Start from this");
    part.frame = h("div", { class: "frame" }, part.picture, part.veil, part.begin, h("div", { class: "bar" }, part.bar));
    part.card = h("article", { class: "card", "data-row": row.index }, part.frame,
      h("header", {}, part.title, part.save), part.stack, h("p", { class: "line" }, part.time, part.speed), part.facts);
    return part;
  }

  /** What a card says of a row, as [name, value, explanation]. Fixed in number, so that cards keep their height. */
  function facts(row) {
    if (!known(row.seconds)) return [["Difference", "–"], ["Work", "–"], ["Skipped", "–"], ["Active in", "–"], ["Asked for", "–"]];
    const lpips = row.metrics.lpips, share = row.flops_share;
    const active = Object.values(row.acted).map(([blocks, steps]) => (blocks === 1 ? "" : `${blocks} places, `) + `${steps} steps`);
    const seen = Object.entries(row.found).map(([name, found]) => `${name} ${found ? "✓" : "✗"}`);
    return [
      ["Difference", row.index === 0 ? "none" : known(lpips.value) ? `${format.lpips(lpips.value)} LPIPS` : lpips.why,
        row.lpips_name + ". 0 is the same picture. It measures closeness to the full model, not beauty."],
      ["Work", format.flops(row.flops), "Floating-point operations of one picture, counted while it was made."],
      ["Skipped", row.index === 0 ? "nothing" : `${format.percent(Math.max(0, 1 - share))} of the work`,
        "Compared with the full model's operations."],
      ["Active in", row.index === 0 ? "–" : active.join("; ") || "nothing: not applied", "Where and on how many steps it changed something."],
      ["Asked for", seen.join("  ") || "–", "What a small recognition network finds of the things that the prompt names."],
    ];
  }

  function update(part, row, name, progress, ended) {
    const running = progress && progress.row === row.index && !ended;
    const state = running ? "running" : ended && row.state === "waiting" ? "stopped" : row.state;
    part.card.dataset.state = state;
    say(part.title, row.title);
    say(part.stack, row.stack + (row.steps ? ` · ${row.steps} steps` : ""));
    const glimpse = running && !row.picture && progress.glimpse;
    part.picture.classList.toggle("aim", !row.picture);
    if (glimpse) Object.assign(part.picture, { src: glimpse, alt: `What ${name} aims at now`, hidden: false });
    else if (!row.picture && (ended || row.error)) part.picture.hidden = true; // an aim that was never reached
    if (row.picture && part.picture.getAttribute("src") !== row.picture) {
      part.picture.src = row.picture;
      part.picture.alt = `Picture by ${name}`;
      part.picture.hidden = false;
      part.begin.hidden = !fastviz.start_from;
      Object.assign(part.save, { href: row.picture, download: row.file, hidden: false });
    }
    say(part.veil, row.error || (running && !row.picture ? (part.picture.hidden ? "Running" : "") : row.picture ? "" : WORDS[state] || ""));
    say(part.time, known(row.seconds) ? format.seconds(row.seconds) : row.error ? "" : "–");
    say(part.speed, known(row.seconds) ? speed(row) : "");
    part.speed.classList.toggle("slow", slower(row));
    describe(part.facts, row.error ? [] : facts(row));
  }

  function describe(list, entries) {
    const key = JSON.stringify(entries);
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    list.replaceChildren(...entries.map(([name, value, why]) => h("div", { title: why }, h("dt", {}, name), h("dd", {}, value))));
  }

  fastviz.cards = { build, update };
})();
