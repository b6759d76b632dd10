// The tab "History": every run that was kept, to search, open again, delete, or lay side by side.
(() => {
  const { h, say, format, known } = fastviz;
  let wish = () => {}, parts = null, now = { runs: [] }, count = 0, timer = null;
  const chosen = new Set();
  const KEPT = "Every comparison and sweep is kept here as soon as it is done. The oldest ones make room for new ones.";
  const YOURS = "They lie on the server, and this browser alone sees them.";

  /** This browser's own name, made up at the first visit. Without storage each visit is somebody new. */
  fastviz.visitor = () => {
    const fresh = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    try {
      const old = localStorage.getItem("fastviz-visitor");
      if (!/^[0-9a-f]{32}$/.test(old || "")) localStorage.setItem("fastviz-visitor", fresh);
      return localStorage.getItem("fastviz-visitor");
    } catch {
      return fresh;
    }
  };

  fastviz.token = () => {}; // its value is fastviz.visitor's

  fastviz.wish = (element, value, trigger, props) => {
    wish = (wanted) => { props.value = { ...wanted, text: parts ? parts.search.value : "", n: (count += 1) }; trigger("submit"); };
  };

  function build(place) {
    parts = { seek: h("div", { class: "seek" }), search: h("input", { type: "search", placeholder: "a word of the prompt, a method, a device", "aria-label": "Search the history",
      oninput: () => { clearTimeout(timer); timer = setTimeout(() => wish({ do: "search" }), 300); } }),
      both: h("button", { type: "button", onclick: () => wish({ do: "pair", ids: [...chosen] }) }, "Compare two"),
      sentence: h("p", { class: "note", role: "status" }), pair: h("section", { class: "numbers", hidden: true }), list: h("ul", { class: "runs" }) };
    parts.seek.append(parts.search, parts.both);
    place.replaceChildren(parts.seek, parts.sentence, parts.pair, parts.list);
  }

  fastviz.history = (element, value) => {
    const place = element.querySelector(".history");
    if (!parts || !place.contains(parts.list)) build(place);
    if (!value) return;
    now = value;
    for (const id of chosen) if (!value.runs.some((run) => run.id === id)) chosen.delete(id);
    parts.seek.hidden = !value.runs.length && !parts.search.value;
    say(parts.sentence, value.sentence || (parts.search.value && !value.runs.length ? "Nothing was found." : value.shared ? KEPT : `${KEPT} ${YOURS}`));
    parts.list.replaceChildren(...value.runs.map(entry));
    pair(value.pair);
    choose();
  };

  function choose() {
    parts.both.disabled = chosen.size !== 2;
    parts.list.querySelectorAll("input").forEach((box) => (box.disabled = chosen.size === 2 && !box.checked));
  }

  const when = (run) => new Date(1000 * run.made).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });

  function entry(run) {
    const rows = run.rows || [], full = rows[0] || {}, name = `“${run.prompt}”${run.kind === "comparison" ? `, seed ${run.recipe.seed}` : run.prompts > 1 ? ` and ${run.prompts - 1} more` : ""}`;
    const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, onchange: () => { box.checked ? chosen.add(run.id) : chosen.delete(run.id); choose(); } });
    box.checked = chosen.has(run.id);
    box.hidden = run.kind !== "comparison";
    const sure = h("button", { type: "button", onclick: () => (sure.textContent === "Delete" ? (say(sure, "Really?"), setTimeout(() => say(sure, "Delete"), 4000)) : wish({ do: "delete", id: run.id })) }, "Delete");
    return h("li", { class: "run", "data-id": run.id }, box,
      h("div", { class: "thumbs" }, rows.filter((row) => row.thumb).slice(0, 4).map((row) => h("img", { src: row.thumb, alt: row.title }))),
      h("div", { class: "told" }, h("b", {}, name),
        h("p", {}, `${when(run)} · ${rows.length ? rows.map((row) => row.stack).join(", ") : `sweep of ${run.keys} pictures: ${run.varied}`}${known(full.seconds) ? ` · full model ${format.seconds(full.seconds)}` : ""} · ${run.device}`)),
      h("div", { class: "acts" }, h("button", { type: "button", onclick: () => wish({ do: "open", id: run.id }) }, "Open"), sure));
  }

  /** Two runs side by side, row by row. Times of two devices stand apart: no ratio is made of them. */
  function pair(two) {
    parts.pair.hidden = !two;
    if (!two) return;
    const same = JSON.stringify(two[0].environment) === JSON.stringify(two[1].environment);
    const stacks = [...new Set(two.flatMap((run) => run.rows.map((row) => row.stack)))];
    const at = (run, stack) => run.rows.find((row) => row.stack === stack);
    const cell = (row) => h("td", {}, row && row.thumb && h("img", { src: row.thumb, alt: row.title }), h("br", {}),
      !row ? "–" : row.error ? "failed" : [known(row.seconds) ? format.seconds(row.seconds) : "", known(row.lpips) ? `, LPIPS ${format.lpips(row.lpips)}` : ""].join(""));
    const ratio = (a, b) => h("td", {}, a && b && known(a.seconds) && known(b.seconds) ? format.times(a.seconds / b.seconds) : "–");
    parts.pair.replaceChildren(h("h2", {}, "Two runs"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Two runs side by side" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "plain" }, "Row"), two.map((run) => h("th", { scope: "col", class: "plain" }, `“${run.prompt}”, seed ${run.recipe.seed}, ${when(run)}`)), same ? h("th", { scope: "col", class: "plain" }, "First over second") : null)),
      h("tbody", {}, stacks.map((stack) => { const [a, b] = two.map((run) => at(run, stack)); return h("tr", {}, h("th", { scope: "row" }, stack), cell(a), cell(b), same ? ratio(a, b) : null); })))),
      h("p", { class: "note" }, same ? "Both were timed on the same device with the same versions." : `Timed on different devices or versions, so their times are not set against each other: ${two.map((run) => run.device).join("; ")}.`));
    parts.pair.scrollIntoView({ block: "nearest" });
  }
})();
