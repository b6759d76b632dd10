// The tab "Sweep": a grid of pictures whose axes can be changed, curves with their intervals, and what nothing else beats.
(() => {
  const { h, svg, format, known } = fastviz;
  const FIGURES = { seconds: ["Time", format.seconds], speedup: ["Times as fast", format.times], lpips: ["LPIPS", format.lpips], psnr: ["PSNR", format.decibel],
    ssim: ["SSIM", (x) => x.toFixed(3)], match: ["Prompt", (x) => x.toFixed(2)], gflop: ["GFLOP", (x) => x.toFixed(0)] };
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#882255"];
  let now = null, view = null, place = null;
  const label = (name) => ({ row: "Row", prompt: "Prompt", seed: "Seed" })[name] || name.replace(".", ": ").replace("_", " ");
  const values = (name) => now.variables[name];
  const varied = () => Object.keys(now.variables).filter((name) => values(name).length > 1);

  /** The variant at a place: one that says nothing of a setting, as the full model of a ratio, is the same at all its values. */
  const variant = (at) => now.variants.find((each) => Object.entries(each.at).every(([name, value]) => at[name] === value));
  const cell = (at) => { const found = variant(at); return found && found.cells[now.units.findIndex((unit) => unit.prompt === at.prompt && unit.seed === at.seed)]; };

  fastviz.sweep = (element, value) => {
    place = element.querySelector(".sweep");
    if (!value) {
      now = view = null;
      place.replaceChildren();
      return;
    }
    const begun = !now || now.sweep !== value.sweep;
    now = value;
    if (begun) begin();
    draw();
  };

  function begin() {
    const own = varied().filter((name) => !["row", "prompt", "seed"].includes(name)), rest = ["seed", "prompt", "row"].filter((name) => varied().includes(name)).sort((a, b) => (values(b).length > 6) - (values(a).length > 6)); // many go down
    const [down, across] = [...own, ...rest, "row", "seed"].filter((name, i, all) => all.indexOf(name) === i);
    const x = own[0] || "row";
    view = { down, across, x, y: "lpips", by: own[1] || (x === "row" ? "" : "row"), fixed: {} };
    for (const name of Object.keys(now.variables)) view.fixed[name] = values(name)[name === "row" ? values(name).length - 1 : 0];
  }

  function select(name, options, value, change) {
    const made = h("select", { onchange: () => { change(made.value); draw(name); }, "data-select": name, "aria-label": name }, options.map(([key, text]) => h("option", { value: key }, text)));
    made.value = value;
    return h("label", {}, `${name} `, made);
  }

  function draw(focus) {
    const names = Object.keys(now.variables).map((name) => [name, label(name)]);
    const others = varied().filter((name) => name !== view.down && name !== view.across);
    place.replaceChildren(...(now.said ? [h("p", { class: "answer" }, now.said)] : []),
      h("section", {}, h("h2", {}, "Pictures"), h("div", { class: "choose" },
        select("Down", names, view.down, (to) => { if (to === view.across) view.across = view.down; view.down = to; }),
        select("Across", names, view.across, (to) => { if (to === view.down) view.down = view.across; view.across = to; }),
        others.map((name) => select(label(name), values(name).map((each) => [each, each]), view.fixed[name], (to) => (view.fixed[name] = to)))), grid()),
      h("section", {}, h("h2", {}, "Curves"), h("div", { class: "choose" },
        select("Along", names.filter(([name]) => name !== "prompt" && name !== "seed"), view.x, (to) => (view.x = to)),
        select("Shown", Object.entries(FIGURES).map(([key, [text]]) => [key, text]), view.y, (to) => (view.y = to)),
        select("One line for each", [["", "nothing"], ...names.filter(([name]) => name !== "prompt" && name !== "seed" && name !== view.x)], view.by, (to) => (view.by = to))), curves(),
        h("p", { class: "note" }, `Medians of times, means of the rest, over ${now.units.length} pairs of prompt and seed; bands are 95 % bootstrap intervals that take the same pairs for every point.`)),
      h("section", {}, h("h2", {}, "What nothing else beats"), front(), h("p", { class: "note" }, `Filled points: nothing in this sweep is both faster and closer to the full model. Timed on ${Object.entries(now.device).map(([name, value]) => `${name} ${value}`).join(", ")}.`)));
    if (focus) { const again = [...place.querySelectorAll("select")].find((each) => each.dataset.select === focus); if (again) again.focus(); }
  }

  function grid() {
    const head = h("tr", {}, h("th", { scope: "col" }, `${label(view.down)} / ${label(view.across)}`), values(view.across).map((value) => h("th", { scope: "col" }, value)));
    return h("div", { class: "scroll grid", tabindex: 0, role: "region", "aria-label": "Grid of pictures" }, h("table", {}, h("thead", {}, head), h("tbody", {},
      values(view.down).map((down) => h("tr", {}, h("th", { scope: "row" }, down), values(view.across).map((across) => {
        const told = cell({ ...view.fixed, [view.down]: down, [view.across]: across });
        if (!told || (!told.thumb && !told.error)) return h("td", {}, h("span", { class: "blank" }, told ? "" : "–"));
        if (told.error) return h("td", { class: "wrong" }, told.error);
        return h("td", {}, h("img", { src: told.thumb, alt: `${label(view.down)} ${down}, ${label(view.across)} ${across}` }),
          h("small", {}, `${format.seconds(told.seconds)}${known(told.lpips) ? `, LPIPS ${format.lpips(told.lpips)}` : ""}`));
      })))))); 
  }

  // Plots

  const WIDE = 640, HIGH = 320, LEFT = 56, RIGHT = 16, TOP = 14, BOTTOM = 40;

  function ticks(low, high, count = 5) {
    const rough = (high - low || Math.abs(high) || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((size) => size >= rough);
    const from = Math.floor(low / step + 1e-9), to = Math.ceil(high / step - 1e-9);
    return Array.from({ length: Math.max(2, to - from + 1) }, (_, i) => Number(((from + i) * step).toPrecision(12)));
  }

  const text = (x, y, words, anchor, kind) => svg("text", { x, y, "text-anchor": anchor, class: kind }, words);

  function plot(words, xs, ys, x, y, xlabel, ylabel, marks, names = xs) {
    return h("div", { class: "plot", tabindex: 0 }, svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": words },
      ys.flatMap((value) => [svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value), class: "grid" }), text(LEFT - 8, y(value) + 4, String(value), "end", "tick")]),
      xs.map((value, i) => text(x(value), HIGH - BOTTOM + 18, String(names[i]), "middle", "tick")),
      text(WIDE - RIGHT, HIGH - 4, xlabel, "end", "axis"), text(LEFT + 4, TOP + 8, ylabel, "start", "axis"), marks));
  }

  const scale = (all, from, to) => (value) => from + ((to - from) * (value - all[0])) / (all.at(-1) - all[0] || 1);

  function curves() {
    const along = values(view.x), [title, reads] = FIGURES[view.y];
    const numeric = along.every((value) => value.trim() !== "" && Number.isFinite(Number(value)));
    const spot = (value) => (numeric ? Number(value) : along.indexOf(value));
    const lines = (view.by ? values(view.by) : [""]).map((by, i) => ({ by, colour: COLOURS[i % COLOURS.length], points: along.flatMap((value) => {
      const found = variant({ ...view.fixed, ...(view.by ? { [view.by]: by } : {}), [view.x]: value }), figure = found && found.figures[view.y];
      return figure ? [{ x: spot(value), value, figure }] : [];
    }) })).filter((line) => line.points.length);
    const all = lines.flatMap((line) => line.points.flatMap((point) => point.figure.filter(known)));
    if (!all.length) return h("p", { class: "note" }, "Nothing to draw yet.");
    const ys = ticks(Math.min(...all), Math.max(...all)), xs = along.map(spot).sort((a, b) => a - b);
    const x = scale(xs, LEFT + 14, WIDE - RIGHT - 14), y = scale(ys, HIGH - BOTTOM, TOP + 18);
    const marks = lines.flatMap(({ colour, points, by }) => {
      const sorted = [...points].sort((a, b) => a.x - b.x), band = sorted.filter((point) => known(point.figure[1]));
      const edge = (list, i) => list.map((point) => `${x(point.x)},${y(point.figure[i])}`);
      return [band.length > 1 && svg("polygon", { points: [...edge(band, 1), ...edge([...band].reverse(), 2)].join(" "), fill: colour, opacity: 0.18 }),
        svg("polyline", { points: edge(sorted, 0).join(" "), fill: "none", stroke: colour, "stroke-width": 2 }),
        ...sorted.map((point) => svg("circle", { cx: x(point.x), cy: y(point.figure[0]), r: 4.5, fill: colour },
          svg("title", {}, `${by} ${point.value}: ${reads(point.figure[0])}${known(point.figure[1]) ? `, ${reads(point.figure[1])} to ${reads(point.figure[2])}` : ""}`)))].filter(Boolean);
    });
    const words = lines.map((line) => `${line.by}: ${line.points.map((point) => `${point.value} ${reads(point.figure[0])}`).join(", ")}`).join("; ");
    return h("div", {}, plot(words, xs, ys, x, y, label(view.x), title, marks, [...along].sort((a, b) => spot(a) - spot(b))),
      lines.length > 1 ? h("ul", { class: "legend" }, lines.map((line) => h("li", {}, h("i", { style: `background:${line.colour}` }), line.by))) : null);
  }

  function front() {
    const points = now.variants.filter((each) => each.figures.seconds && each.figures.lpips).map((each) => ({ ...each, s: each.figures.seconds[0], d: each.figures.lpips[0] }));
    if (points.length < 2) return h("p", { class: "note" }, "Nothing to draw yet.");
    const xs = ticks(0, Math.max(...points.map((point) => point.s)), 6), ys = ticks(0, Math.max(0.01, ...points.map((point) => point.d)));
    const x = scale(xs, LEFT, WIDE - RIGHT - 8), y = scale(ys, HIGH - BOTTOM, TOP + 18), best = points.filter((point) => point.front).sort((a, b) => a.s - b.s);
    const says = (point) => `${Object.entries(point.at).map(([name, value]) => (name === "row" ? value : `${label(name)} ${value}`)).join(", ")}: ${format.seconds(point.s)}, LPIPS ${format.lpips(point.d)}`;
    const marks = [svg("polyline", { points: best.map((point) => `${x(point.s)},${y(point.d)}`).join(" "), class: "curve" }),
      ...points.map((point) => svg("circle", { cx: x(point.s), cy: y(point.d), r: 6, class: point.front ? "best" : "beaten" }, svg("title", {}, says(point))))];
    return h("div", {}, plot(best.map(says).join("; "), xs, ys, x, y, "Time in seconds", "LPIPS", marks), h("ul", { class: "best-list" }, best.map((point) => h("li", {}, says(point)))));
  }
})();
