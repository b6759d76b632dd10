// Time against difference: the nearer to the lower left corner, the better. The line joins the rows that only take fewer steps.
(() => {
  const { h, svg, format, known, names } = fastviz;
  const HEIGHT = 340, LEFT = 52, RIGHT = 18, TOP = 16, BOTTOM = 44;

  function build() {
    const part = { rows: [], names: [], plot: svg("svg", { role: "img", height: HEIGHT }), words: h("p", { class: "note" }) };
    part.section = h("section", { class: "scatter", hidden: true }, h("h2", {}, "Time against difference"), part.plot, part.words);
    new ResizeObserver(() => draw(part)).observe(part.section);
    return part;
  }

  function update(part, rows, titles) {
    const shown = rows.filter((row) => known(row.seconds) && (row.index === 0 || known(row.metrics.lpips.value)));
    part.section.hidden = shown.length < 2;
    const key = JSON.stringify(shown.map((row) => [row.index, row.seconds]));
    if (part.key === key) return;
    Object.assign(part, { rows: shown, names: titles, key });
    draw(part);
  }

  /** Round numbers from 0 up to at least `most`, about `count` of them. */
  function ticks(most, count) {
    const rough = most / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((size) => size >= rough);
    return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, i) => i * step);
  }

  const difference = (row) => (row.index === 0 ? 0 : row.metrics.lpips.value);
  const fewer = (row) => /^few_step(\(|$)/.test(row.stack) && !row.stack.includes("+");

  function draw(part) {
    const width = Math.floor(part.section.clientWidth);
    if (!width || part.rows.length < 2) return;
    const xs = ticks(Math.max(...part.rows.map((row) => row.seconds)) * 1.05, width < 480 ? 4 : 7);
    const ys = ticks(Math.max(0.02, ...part.rows.map(difference)) * 1.1, 5);
    const x = (value) => LEFT + ((width - LEFT - RIGHT) * value) / xs.at(-1);
    const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / ys.at(-1);
    const places = (list) => Math.max(0, -Math.floor(Math.log10(list[1]) + 1e-9));
    const text = (at, down, words, anchor, kind) => svg("text", { x: at, y: down, "text-anchor": anchor, class: kind }, words);
    const axes = [
      ...xs.map((value) => svg("line", { x1: x(value), x2: x(value), y1: TOP, y2: y(0), class: "grid" })),
      ...ys.map((value) => svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" })),
      ...xs.map((value) => text(x(value), y(0) + 16, value.toFixed(places(xs)), "middle", "tick")),
      ...ys.map((value) => text(LEFT - 8, y(value) + 4, value.toFixed(places(ys)), "end", "tick")),
      text(width - RIGHT, HEIGHT - 6, "Time in seconds", "end", "axis"),
      text(LEFT + 6, TOP + 10, "Difference (LPIPS)", "start", "axis"),
    ];
    const points = part.rows.map((row) => ({ row, x: x(row.seconds), y: y(difference(row)), name: part.names[row.index] }));
    part.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    part.plot.setAttribute("width", width);
    part.plot.setAttribute("aria-label", points.map((p) => `${p.name}: ${format.seconds(p.row.seconds)}, ${format.lpips(difference(p.row))}`).join("; "));
    part.plot.replaceChildren(...axes, ...curves(points), ...points.map(dot), ...labels(points, width));
    const name = (part.rows.find((row) => row.lpips_name) || {}).lpips_name || "LPIPS";
    part.words.textContent = `Nearer to the lower left corner is better: fast, and close to the full model. ${name}; it measures closeness, not beauty. `
      + (part.rows.filter(fewer).length > 1 ? "The line is what simply taking fewer steps gives: a method below it earns its keep." : "");
  }

  /** One line per solver through its rows; the full model ends the line of its own solver, DDIM. */
  function curves(points) {
    const groups = {};
    for (const point of points.filter((p) => fewer(p.row))) {
      const solver = (/solver=(\w+)/.exec(point.row.stack) || [, "dpm"])[1];
      (groups[solver] = groups[solver] || []).push(point);
    }
    const full = points.find((p) => p.row.index === 0);
    return Object.entries(groups).map(([solver, group]) => {
      const line = [...group, ...(solver === "ddim" && full ? [full] : [])].sort((a, b) => a.x - b.x);
      return svg("polyline", { class: "curve", points: line.map((p) => `${p.x},${p.y}`).join(" ") });
    });
  }

  function dot(point) {
    const kind = point.row.index === 0 ? "full" : fewer(point.row) ? "fewer" : "method";
    const words = `${point.name}: ${format.seconds(point.row.seconds)}, LPIPS ${format.lpips(difference(point.row))}`;
    return svg("circle", { cx: point.x, cy: point.y, r: 6, class: kind }, svg("title", {}, words));
  }

  /** A name beside each point, on the first side where it covers nothing. */
  function labels(points, width) {
    const taken = points.map((p) => [p.x - 7, p.y - 7, p.x + 7, p.y + 7]);
    return points.map((p) => {
      const long = 6.6 * p.name.length;
      const sides = [[11, 4, "start"], [-11, 4, "end"], [0, -12, "middle"], [0, 20, "middle"], [11, -10, "start"], [-11, -10, "end"], [11, 18, "start"], [-11, 18, "end"]];
      const boxes = sides.map(([dx, dy, anchor]) => {
        const start = p.x + dx - (anchor === "end" ? long : anchor === "middle" ? long / 2 : 0);
        return { dx, dy, anchor, box: [start, p.y + dy - 10, start + long, p.y + dy + 3] };
      });
      const free = boxes.find(({ box: [a, b, c, d] }) => a >= LEFT && c <= width && d < HEIGHT - BOTTOM + 4
        && taken.every(([e, f, g, i]) => c < e || a > g || d < f || b > i)) || boxes[p.x > width / 2 ? 1 : 0];
      taken.push(free.box);
      return svg("text", { x: p.x + free.dx, y: p.y + free.dy, "text-anchor": free.anchor, class: "label" }, p.name);
    });
  }

  fastviz.scatter = { build, update };
})();
