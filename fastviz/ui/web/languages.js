// The page in another language: a table of its fixed texts, put in wherever one of them stands. What a visitor types is left alone,
// and so are the choices of a menu, because the one that was chosen stands in a field that takes no translation.
(() => {
  const { h } = fastviz;
  const KEY = "fastviz-language", NAMES = ["placeholder", "aria-label", "title", "alt"], ALONE = "textarea, script, style, [role=listbox], .learn, .said, .notice, [lang]:not(html)";
  const english = new WeakMap(); // text node or element -> what it says in English, and what was put in its place
  let told = null, table = new Map(), patterns = [];

  fastviz.language = () => {
    const codes = Object.keys(told?.names || { en: "" }), wished = [localStorage.getItem(KEY), told?.first, ...navigator.languages.map((each) => each.slice(0, 2))];
    return wished.find((code) => codes.includes(code)) || "en";
  };

  /** The text in this language, or as it is. Texts with {slots} fit whatever stands there. */
  function translated(text) {
    const plain = text.trim();
    if (!plain || !table.size) return text;
    let found = table.get(plain);
    for (const [pattern, into] of found === undefined ? patterns : []) {
      const match = pattern.exec(plain);
      if (match) { found = into.replace(/\{(\w+)\}/g, (_, name) => translated(match.groups[name])); break; }
    }
    return found === undefined ? text : text.replace(plain, () => found);
  }

  /** One text of a node or attribute: known in English from when it was first seen, or written anew since. */
  function turn(owner, name, now, put) {
    const known = english.get(owner) || {}, before = known[name];
    const source = before && before.shown === now ? before.source : now, shown = translated(source);
    if (shown === source && !before) return;
    english.set(owner, { ...known, [name]: { source, shown } });
    if (shown !== now) put(shown);
  }

  function visit(node) {
    if (node.nodeType === Node.TEXT_NODE) {
      if (!node.parentElement?.closest(ALONE)) turn(node, "text", node.data, (text) => { node.data = text; });
    } else if (node.nodeType === Node.ELEMENT_NODE && !node.closest("script, style, [role=listbox], .learn, [lang]:not(html)")) {
      for (const name of NAMES) if (node.hasAttribute(name)) turn(node, name, node.getAttribute(name), (text) => node.setAttribute(name, text));
      if (!node.matches(ALONE)) node.childNodes.forEach(visit);
    }
  }

  const watching = new MutationObserver((changes) => {
    for (const change of changes) change.type === "childList" ? change.addedNodes.forEach(visit) : visit(change.target);
  });

  function speak() {
    const language = fastviz.language(), page = told.page[language] || {};
    document.documentElement.lang = language;
    table = new Map(Object.entries(page));
    patterns = Object.entries(page).filter(([text]) => text.includes("{")).map(([text, into]) =>
      [new RegExp(`^${text.split(/\{(\w+)\}/).map((part, i) => (i % 2 ? `(?<${part}>.+?)` : part.replace(/[.*+?^$()|[\]\\]/g, "\\$&"))).join("")}$`, "s"), into]);
    visit(document.body);
    watching.observe(document.body, { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: NAMES });
  }

  /** The menu of languages, and the way to the lessons. value: {first: code or "", names: {code: name}, page: {code: {English text: its own}}}. */
  fastviz.languages = (element, value) => {
    if (told || !value) return;
    told = value;
    const menu = h("select", { "aria-label": "Language", id: "language", onchange: () => {
      localStorage.setItem(KEY, menu.value);
      speak();
      document.dispatchEvent(new Event("fastviz-language"));
    } }, Object.entries(value.names).map(([code, name]) => h("option", { value: code, lang: code }, name)));
    menu.value = fastviz.language();
    element.querySelector(".languages").append(h("a", { href: "#learn", onclick: (event) => { event.preventDefault(); fastviz.lessons(); } }, "Lessons"), menu);
    speak();
  };
})();
