// Charts of the lessons: bars, lines, and points with the front that nothing else beats. They are told their words.
(() => {
  const { h, svg } = fastviz;
  const LEFT = 46, RIGHT = 14, TOP = 34, BOTTOM = 40, HEIGHT = 300;

  /** Rows of one bar each. bars: [{name, parts: [{share, kind, says}], value}], shares of the widest bar. */
  fastviz.bars = (bars, kinds) => h("div", { class: "chart" },
    kinds.length > 1 ? h("ul", { class: "legend" }, kinds.map(([kind, name]) => h("li", {}, h("i", { class: kind }), name))) : null,
    h("ul", { class: "bars" }, bars.map((bar) => h("li", {}, h("span", { class: "name" }, bar.name),
      h("span", { class: "track", "aria-hidden": true }, bar.parts.map((part) => h("i", { class: part.kind, style: `width:${100 * part.share}%`, title: part.says }))),
      h("span", { class: "value" }, bar.value)))));

  /** Round numbers from 0 up to at least `most`, about `count` of them. */
  function ticks(most, count) {
    const rough = most / count || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((size) => size >= rough * (1 - 1e-9));
    return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, i) => i * step);
  }

  /** A plot that is drawn anew when its width changes. draw(width) -> {most: [x, y], labels: [x, y], says, marks(x, y)}. */
  function plot(told) {
    const drawing = svg("svg", { role: "img", height: HEIGHT, "aria-label": told.says }), figure = h("div", { class: "graph" }, drawing);
    const draw = () => {
      const width = Math.floor(figure.clientWidth);
      if (!width) return;
      const xs = ticks(told.most[0], width < 420 ? 4 : 6), ys = ticks(told.most[1] * 1.08, 4);
      const x = (value) => LEFT + ((width - LEFT - RIGHT) * value) / xs.at(-1), y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / ys.at(-1);
      const text = (at, down, words, anchor, kind) => svg("text", { x: at, y: down, "text-anchor": anchor, class: kind }, words);
      drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      drawing.setAttribute("width", width);
      drawing.replaceChildren(
        ...ys.map((value) => svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" })),
        ...xs.map((value) => text(x(value), y(0) + 16, told.reads[0](value), "middle", "tick")),
        ...ys.map((value) => text(LEFT - 7, y(value) + 4, told.reads[1](value), "end", "tick")),
        text(width - RIGHT, HEIGHT - 6, told.labels[0], "end", "axis"), text(8, 16, told.labels[1], "start", "axis"),
        ...told.marks(x, y, width));
    };
    new ResizeObserver(draw).observe(figure);
    return figure;
  }

  /** lines: [{name, points: [[x, y]]}]. The names stand in a legend. */
  fastviz.lines = (lines, labels, reads) => h("div", { class: "chart" },
    h("ul", { class: "legend" }, lines.map((line, i) => h("li", {}, h("i", { class: `line-${i}` }), line.name))),
    plot({
      labels, reads, says: lines.map((line) => `${line.name}: ${line.points.map(([a, b]) => `${reads[0](a)}: ${reads[1](b)}`).join(", ")}`).join("; "),
      most: [0, 1].map((axis) => Math.max(...lines.flatMap((line) => line.points.map((point) => point[axis])))),
      marks: (x, y) => lines.flatMap((line, i) => [
        svg("polyline", { class: `curve line-${i}`, points: line.points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }),
        ...line.points.map(([a, b]) => svg("circle", { class: `line-${i}`, cx: x(a), cy: y(b), r: 3.5 }, svg("title", {}, `${line.name}, ${reads[0](a)}: ${reads[1](b)}`)))]),
    }));

  const beaten = (point, points) => points.some((other) => other !== point && other.x <= point.x && other.y <= point.y && (other.x < point.x || other.y < point.y));

  /** points: [{name, x, y}], numbered as in the legend below. The line joins those that no other beats in both. */
  fastviz.front = (points, labels, reads, words) => {
    const best = points.filter((point) => !beaten(point, points)).sort((a, b) => a.x - b.x);
    const number = (point) => String(points.indexOf(point) + 1);
    return h("div", { class: "chart" }, plot({
      labels, reads, most: [1.04 * Math.max(...points.map((point) => point.x)), Math.max(0.02, ...points.map((point) => point.y))],
      says: points.map((point) => `${point.name}: ${reads[0](point.x)}, ${reads[1](point.y)}${best.includes(point) ? `, ${words.front}` : ""}`).join("; "),
      marks: (x, y) => [
        svg("polyline", { class: "curve front", points: best.map((point) => `${x(point.x)},${y(point.y)}`).join(" ") }),
        ...spread(points.map((point) => ({ point, x: x(point.x), y: y(point.y) }))).flatMap((at) => [
          svg("circle", { class: best.includes(at.point) ? "best" : "", cx: at.x, cy: at.y, r: 6 }, svg("title", {}, `${at.point.name}: ${reads[0](at.point.x)}, ${reads[1](at.point.y)}`)),
          svg("text", { class: "label", x: at.x + at.dx, y: at.y - 10, "text-anchor": "middle" }, number(at.point))])],
    }), h("ol", { class: "names" }, points.map((point) => h("li", { class: best.includes(point) ? "best" : null }, point.name))));
  };

  /** Numbers of points that lie on top of each other move aside. */
  function spread(places) {
    places.forEach((place, i) => { place.dx = 14 * places.slice(0, i).filter((other) => Math.abs(other.x + other.dx - place.x) < 12 && Math.abs(other.y - place.y) < 14).length; });
    return places;
  }
})();
