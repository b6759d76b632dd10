// The formulas of the lessons as MathML, which browsers draw without a library. Symbols are the same in all languages.
(() => {
  const SPACE = "http://www.w3.org/1998/Math/MathML";
  const node = (tag, ...children) => {
    const made = document.createElementNS(SPACE, tag);
    made.append(...children.map(token));
    return made;
  };

  /** A number, an operator or a name; what is a formula already stays one. */
  function token(told) {
    if (typeof told !== "string") return told;
    const made = document.createElementNS(SPACE, /^[\d.]+$/.test(told) ? "mn" : /^[\p{L}∅]+$/u.test(told) ? "mi" : "mo");
    made.textContent = told;
    if (told === ",") made.setAttribute("rspace", "1em");
    return made;
  }

  const row = (...parts) => node("mrow", ...parts);
  const sub = (name, index) => node("msub", name, typeof index === "string" ? row(...index.split(" ")) : index);
  const sup = (name, power) => node("msup", name, typeof power === "string" ? row(...power.split(" ")) : power);
  const both = (name, below, above) => node("msubsup", name, below, above);
  const over = (a, b) => node("mfrac", a, b);
  const root = (inside) => node("msqrt", inside);
  const hat = (name) => node("mover", name, "^");
  const bar = (name) => node("mover", name, "¯");
  const sum = (below, above) => (above ? node("munderover", "∑", below, above) : node("munder", "∑", below));
  const say = (told) => told.split(" ");
  const clean = (t) => sub(bar("α"), t);
  const noise = (t) => root(row("1", "−", clean(t)));

  const FORMULAS = {
    time: () => [...say("T ( n ) ="), sub("T", "E"), "+", "n", sub("T", "U"), "+", sub("T", "D")],
    guidance: () => ["ε", "=", sub("ε", "∅"), "+", "w", "(", sub("ε", "c"), "−", sub("ε", "∅"), ")"],
    amdahl: () => ["S", "=", over("1", row("(", "1", "−", "p", ")", "+", over("p", "s"))), "≤", over("1", row("1", "−", "p"))],
    estimate: () => [hat("x"), "=", over(row(sub("x", "t"), "−", noise("t"), "ε"), root(clean("t")))],
    ddim: () => [sub("x", "s"), "=", root(clean("s")), hat("x"), "+", noise("s"), "ε"],
    dpm: () => ["D", "=", row("(", "1", "+", over("1", row("2", "r")), ")"), sub(hat("x"), "i"), "−", over("1", row("2", "r")), sub(hat("x"), "i − 1")],
    olss: () => [sub("x", "i + 1"), "=", sub("w", "i"), sub("x", "T"), "+", sum(row("j", "≤", "i")), sub("w", "i j"), sub("ε", "j")],
    map: () => ["A", "=", "softmax", row("(", over(row("Q", sup("K", "⊤")), root("d")), ")"), ",", "O", "=", "A", "V"],
    reused: () => [sub("O", "i"), "=", sub("A", "j"), sub("V", "i"), ",", "j", "<", "i"],
    error: () => ["‖", sub("e", "n"), "‖", "≲", sum(row("i")), "‖", sub("d", "i"), "‖", sup("e", row("λ", "(", sub("t", "n"), "−", sub("t", "i + 1"), ")"))],
    cost: () => ["4", "N", sup("C", "2"), "+", "2", sup("N", "2"), "C"],
    match: () => [row("(", "N", "−", over("N", "4"), ")"), over("N", "4"), "C"],
    rank: () => ["s", "←", over(row(sup("A", "⊤"), "s"), row("‖", sup("A", "⊤"), "s", both("‖", "1", "")))],
    similar: () => [sup("j", "*"), "=", node("munder", "argmax", row("j", "∈", "K")), over(row(sub("A", "i j"), "+", sub("A", "j i")), "2")],
    mean: () => [hat("x"), "(", sub("x", "T"), ")", "=", "E", "[", sub("x", "0"), "|", sub("x", "T"), ",", "c", "]"],
    product: () => [sub("S", "a b"), "≈", sub("S", "a"), "·", sub("S", "b")],
  };

  fastviz.formulas = (name) => {
    const made = node("math", row(...FORMULAS[name]()));
    made.setAttribute("displaystyle", "true");
    return made;
  };
})();
