// All numbers, sorted by any column.
(() => {
  const { h, format, known, speed } = fastviz;
  const metric = (name) => (row) => row.metrics && row.metrics[name].value;
  const why = (name) => (row) => row.metrics && row.metrics[name].why;

  // key, heading, explanation, value to sort by, how it reads, why it is missing
  const COLUMNS = [
    ["row", "Row", "", (row, name) => name, (value) => value],
    ["seconds", "Time", "Median of the timed runs", (row) => row.seconds, format.seconds],
    ["spread", "Spread", "Fastest to slowest run", (row) => row.spread && row.spread[1] - row.spread[0],
      (value, row) => (row.repeats > 1 ? `${row.spread[0].toFixed(2)}–${row.spread[1].toFixed(2)} s` : "one run")],
    ["speedup", "Speed", "The full model's time divided by this row's", (row) => row.speedup, (value) => format.times(value), (row) => speed(row)],
    ["lpips", "LPIPS", "Perceptual difference from the full model: 0 is the same picture", metric("lpips"), format.lpips, why("lpips")],
    ["psnr", "PSNR", "Signal to noise against the full model: more is closer", metric("psnr"), format.decibel, why("psnr")],
    ["ssim", "SSIM", "Structural similarity to the full model: 1 is the same picture", metric("ssim"), (value) => value.toFixed(3), why("ssim")],
    ["match", "Prompt", "How much of what the prompt names is there", metric("match"), (value) => (value <= 1 ? format.percent(value) : value.toFixed(1)), why("match")],
    ["steps", "Steps", "Sampling steps", (row) => row.steps, String],
    ["flops", "Work", "Floating-point operations of one picture", (row) => row.flops, format.flops],
    ["share", "Of full", "Share of the full model's operations", (row) => row.flops_share, format.percent],
    ["text", "Text", "Time in the text encoder", (row) => row.parts && row.parts.text, format.seconds],
    ["denoising", "Steps' time", "Time in all sampling steps", (row) => row.parts && row.parts.denoising, format.seconds],
    ["decoder", "Decoder", "Time to turn the result into a picture", (row) => row.parts && row.parts.decoder, format.seconds],
    ["memory", "Memory", "Largest amount needed beyond the model itself", (row) => row.peak_bytes, format.bytes],
    ["kept", "Kept", "Of that, what the method carries from step to step, such as attention maps", (row) => row.kept_bytes && Object.values(row.kept_bytes).reduce((a, b) => a + b, 0), format.bytes],
  ];

  function build() {
    const part = { by: null, down: false, body: h("tbody", {}) };
    part.heads = COLUMNS.map(([key, title, says], i) =>
      h("th", { scope: "col", "aria-sort": "none", title: says },
        h("button", { type: "button", onclick: () => { part.down = part.by === i ? !part.down : false; part.by = i; draw(part); } }, title)));
    const table = h("table", {}, h("thead", {}, h("tr", {}, part.heads)), part.body);
    part.section = h("section", { class: "numbers", hidden: true }, h("h2", {}, "All numbers"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of all numbers" }, table));
    return part;
  }

  function update(part, rows, names) {
    Object.assign(part, { rows, names });
    part.section.hidden = !rows.some((row) => known(row.seconds));
    draw(part);
  }

  function draw(part) {
    const value = (row) => COLUMNS[part.by][3](row, part.names[row.index]);
    const rows = [...part.rows];
    if (part.by !== null) {
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!known(x) || !known(y)) return known(y) - known(x); // what is missing stays last
        return (x < y ? -1 : x > y ? 1 : 0) * (part.down ? -1 : 1);
      });
    }
    part.heads.forEach((head, i) => head.setAttribute("aria-sort", part.by !== i ? "none" : part.down ? "descending" : "ascending"));
    part.body.replaceChildren(...rows.map((row) => h("tr", { "data-row": row.index }, COLUMNS.map((column, i) => cell(column, row, part.names, i)))));
  }

  function cell([, , , value, reads, missing], row, names, i) {
    const found = value(row, names[row.index]);
    if (i === 0) return h("th", { scope: "row", title: row.stack }, found);
    return known(found) ? h("td", {}, reads(found, row)) : h("td", { class: "none", title: (missing && missing(row)) || row.error || "" }, "–");
  }

  fastviz.table = { build, update };
})();
