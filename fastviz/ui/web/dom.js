// fastviz: what the page's parts share. Everything that came from outside is written as text, never as HTML.
window.fastviz = {};

(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, properties, children) {
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
  const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

  /** Changes a text only when it differs, so that nothing flickers and nothing is read out twice. */
  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  const digits = (value, n) => value.toLocaleString("en", { maximumSignificantDigits: n, useGrouping: false });
  const known = (value) => value !== null && value !== undefined;

  const format = {
    seconds: (s) => (s < 10 ? s.toFixed(2) : s.toFixed(1)) + " s",
    times: (x) => (x < 10 ? x.toFixed(2) : x.toFixed(1)) + "×",
    flops(f) {
      const [power, unit] = f >= 1e15 ? [1e15, "PFLOP"] : f >= 1e12 ? [1e12, "TFLOP"] : f >= 1e9 ? [1e9, "GFLOP"] : [1e6, "MFLOP"];
      return digits(f / power, 3) + " " + unit;
    },
    bytes: (b) => (b >= 1e9 ? digits(b / 1e9, 3) + " GB" : digits(b / 1e6, 3) + " MB"),
    percent: (share) => Math.round(100 * share) + " %",
    lpips: (d) => d.toFixed(3),
    decibel: (d) => d.toFixed(1) + " dB",
  };

  /** Whether a row was slower than the full model; what reads 1.00 was not. */
  const slower = (row) => known(row.speedup) && row.speedup < 0.995;

  /** How a row's speed reads next to the full model's. */
  function speed(row) {
    if (row.index === 0) return "the reference";
    if (row.applied === false) return "not applied";
    if (!known(row.speedup)) return "";
    return format.times(row.speedup) + (slower(row) ? ", slower" : " as fast");
  }

  /** Titles told apart: rows of one title get their settings behind it. */
  function names(rows) {
    const count = {};
    rows.forEach((row) => (count[row.title] = (count[row.title] || 0) + 1));
    return rows.map((row) => {
      if (count[row.title] === 1) return row.title;
      const steps = /^few_step/.test(row.stack) && !row.stack.includes("+") && row.steps;
      return steps ? `${row.title}, ${row.steps}` : `${row.title} ${row.stack.replace(/[a-z_]+\(|\)/g, " ").trim()}`.trim();
    });
  }

  Object.assign(window.fastviz, { h, svg, say, format, known, slower, speed, names });
})();
