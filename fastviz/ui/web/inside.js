// The tab "Inside": one slider for the step and one choice of block move all rows at once. Overlays come as one sheet
// per row with a frame for every step, so a new position is drawn here, without the server.
(() => {
  const { h, say } = fastviz;
  const SIZE = 256, PLAY = 120; // pixels of a canvas; milliseconds between two steps of an animation
  const BLOCKS = "Blocks are the parts of the network with attention, in the order in which they run; 32 x 32 are the squares (tokens) that they work on.";
  const HINT = `Click a word to see where the model looks for it. Click a point of a picture to see where that point looks, and what became of it. ${BLOCKS}`;
  let now = null, parts = null, ask = () => {};
  const view = { step: 0, block: null, show: "skipped", kinds: {}, looks: {}, strip: "computed", base: "picture", over: true };
  const sheets = new Map(); // key of an overlay -> {row index: {kind: {image, legend, sentence, captions}}}
  let asked = null, timer = null;

  const image = (source) => new Promise((done) => { const made = new Image(); made.onload = () => done(made); made.onerror = () => done(null); made.src = source; });
  const chosen = () => (view.show === "skipped" ? view.kinds : view.looks); // row -> kind of overlay, or look at its attention
  const key = () => JSON.stringify([now && now.look, view.block, view.show, view.show === "skipped" && [view.kinds, view.base]]); // looks all come at once
  const stop = () => { clearInterval(timer); timer = null; if (parts) say(parts.play, "Play"); };

  const nearest = (times, time) => times.reduce((best, each, i) => (Math.abs(each - time) < Math.abs(times[best] - time) ? i : best), 0);
  /** The step among `to` that is nearest in noise to the step of a row `from`; by its place in the run where one has no timesteps. */
  const meets = (step, from, to) => (from.timesteps && to.timesteps ? nearest(to.timesteps, from.timesteps[step])
    : Math.min(to.steps - 1, Math.floor(((step + 0.5) / from.steps) * to.steps)));
  /** The row that the scrubber goes along: one that takes all of its steps, if it was recorded. */
  const scale = () => now.rows.find((row) => !row.error && row.steps === now.steps) || { steps: now.steps };
  /** The row's own step at the scrubber's position: rows with fewer steps move on less often. */
  const step_of = (row) => meets(view.step, scale(), row);

  fastviz.wanted = (element, value, trigger, props) => {
    ask = (wanted, here) => { props.value = wanted; if (!here) trigger("submit"); };
  };

  /** Sees to it that the overlay that is looked at is here, or on its way. */
  function want() {
    if (!view.block || now.state === "running") return;
    const wanted = key(), here = sheets.has(wanted);
    if (!here && asked === wanted) return;
    if (!here) asked = wanted;
    ask({ key: wanted, block: view.block, show: view.show, base: view.base, kinds: chosen() }, here); // known to the server for an animation
  }

  fastviz.overlay = async (element, value) => {
    if (!value || sheets.has(value.key)) return;
    asked = null;
    if (parts) say(parts.hint, value.sentence || HINT);
    if (value.sentence) return;
    const found = {};
    for (const [index, kinds] of Object.entries(value.rows)) {
      found[index] = {};
      for (const [kind, told] of Object.entries(kinds)) found[index][kind] = { ...told, image: await image(told.sheet) };
    }
    if (sheets.size > 40) sheets.delete(sheets.keys().next().value);
    sheets.set(value.key, found);
    draw();
    want(); // what was chosen meanwhile
  };

  fastviz.inside = (element, value) => {
    const place = element.querySelector(".inside");
    document.body.classList.toggle("has-look", !!value && value.state !== "running" && value.rows.some((row) => !row.error));
    if (!value || !value.blocks.length) { // nothing was recorded yet
      stop();
      now = parts = null;
      place.replaceChildren(h("p", { class: "note" }, "What did each row skip? Run a comparison, then look inside: every row runs once more, at the same seed, while what happens in its attention is recorded. The pictures stay the same; the times above are not touched."));
      return;
    }
    if (!parts || parts.look !== value.look) begin(place, value);
    now = value;
    for (const row of value.rows) if (!parts.cards.has(row.index)) add(row);
    const titles = fastviz.names(value.rows);
    value.rows.forEach((row, i) => say(parts.cards.get(row.index).title, titles[i]));
    parts.controls.hidden = value.state === "running" || !value.rows.some((row) => !row.error);
    draw();
    want();
  };

  function begin(place, value) {
    stop();
    sheets.clear();
    asked = null;
    now = value;
    Object.assign(view, { step: value.steps - 1, block: null, show: "skipped", kinds: {}, looks: {}, strip: "computed", base: "picture", over: true });
    const choose = (change) => { change(); draw(); want(); };
    parts = { look: value.look, cards: new Map() };
    parts.step = h("input", { type: "range", min: 0, max: value.steps - 1, value: view.step, step: 1, id: "inside-step", "aria-label": "Step",
      oninput: () => { view.step = Number(parts.step.value); draw(); } });
    parts.told = h("output", { for: "inside-step" });
    parts.play = h("button", { type: "button", onclick: play }, "Play");
    parts.block = h("input", { type: "range", min: 0, max: value.blocks.length - 1, value: 0, step: 1, id: "inside-block", "aria-label": "Block",
      oninput: () => choose(() => (view.block = now.blocks[Number(parts.block.value)].name)) });
    parts.where = h("output", { for: "inside-block" });
    view.block = value.blocks.length ? value.blocks[0].name : null;
    parts.chips = [["skipped", "What was skipped"], ...value.words.map((word) => [word.token, word.text])].map(([show, text]) =>
      h("button", { type: "button", class: "chip", "aria-pressed": show === view.show, "data-show": JSON.stringify(show), onclick: () => choose(() => (view.show = show)) }, text));
    parts.under = h("select", { "aria-label": "Picture below", onchange: () => choose(() => (view.base = parts.under.value)) },
      h("option", { value: "picture" }, "the finished picture"), h("option", { value: "estimates" }, "the picture as expected at this step"));
    parts.over = h("input", { type: "checkbox", checked: true, onchange: () => { view.over = parts.over.checked; draw(); } });
    parts.strip = h("select", { "aria-label": "What the strips show", onchange: () => { view.strip = parts.strip.value; draw(); } });
    parts.strips = h("label", { hidden: true }, "Strips ", parts.strip);
    parts.hint = h("p", { class: "note", role: "status" }, value.words.length ? HINT : BLOCKS);
    parts.controls = h("div", { class: "looking" },
      h("div", { class: "scrub" }, parts.play, parts.step, parts.told, h("label", { for: "inside-block" }, "Block"), parts.block, parts.where),
      h("div", { class: "choose" }, h("label", {}, "Drawn over ", parts.under), parts.strips, h("label", {}, parts.over, " Overlay")),
      h("div", { class: "chips", role: "group", "aria-label": "What to show" }, parts.chips[0], value.words.length ? [h("span", {}, "Attention to:"), ...parts.chips.slice(1)] : []), parts.hint);
    parts.grid = h("div", { class: "lenses" });
    parts.legend = h("p", { class: "note" }, "The strip below each picture: steps from left to right, blocks from top to bottom. Click it to go there. The band under it: all work of each step; orange is what was saved of the full model's.");
    parts.figures = h("div", { class: "schemes" });
    place.replaceChildren(parts.controls, parts.grid, parts.legend, parts.figures);
  }

  function play() {
    if (timer) return stop();
    if (view.step === now.steps - 1) view.step = -1;
    say(parts.play, "Pause");
    timer = setInterval(() => {
      if (view.step >= now.steps - 1) return stop();
      view.step += 1;
      parts.step.value = view.step;
      draw();
    }, PLAY);
  }

  async function add(row) {
    const card = { row, canvas: h("canvas", { width: SIZE, height: SIZE, role: "img", tabindex: "0" }), caption: h("p", { class: "caption" }), legend: h("ul", { class: "legend" }),
      sentence: h("p", { class: "sentence" }), kind: h("select", { "aria-label": "Kind of overlay" }), cursor: h("i", {}), strip: h("img", { alt: "" }), says: h("p", { class: "caption" }), work: h("img", { class: "work", alt: "" }), title: h("h3", {}, row.title) };
    card.looks = row.error ? [] : Object.entries(row.looks).map(([look, text]) => {
      const canvas = h("canvas", { width: SIZE, height: SIZE, "aria-hidden": "true" });
      return { look, canvas, button: h("button", { type: "button", onclick: () => pick("looks", row, look) }, canvas, text) };
    });
    card.beside = h("div", { class: "beside", role: "group", "aria-label": "Attention that was used again", hidden: true }, card.looks.map((each) => each.button));
    card.save = h("button", { type: "button", class: "save", onclick: () => save(card) }, "Save this picture");
    card.place = h("div", { class: "strip", title: "Steps from left to right, blocks from top to bottom: click to go there" }, card.strip, card.cursor);
    card.element = h("article", { class: "lens" }, card.title, row.error ? h("p", { class: "refusal" }, row.error) : [card.canvas, card.beside, card.caption, card.place, card.work, card.says, card.kind, card.sentence, card.legend, card.save]);
    if (!row.error && row.figures.length) parts.figures.append(figures(row));
    parts.cards.set(row.index, card);
    parts.grid.append(card.element);
    if (row.error) return;
    card.kind.addEventListener("change", () => pick("kinds", row, card.kind.value));
    card.canvas.addEventListener("click", (event) => point(event.offsetY / card.canvas.clientHeight, event.offsetX / card.canvas.clientWidth));
    card.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [y, x] = Array.isArray(view.show) ? view.show : [0.5, 0.5];
      point(Math.min(0.98, Math.max(0.02, y + move[0] / 16)), Math.min(0.98, Math.max(0.02, x + move[1] / 16)));
    });
    card.place.addEventListener("click", (event) => {
      const box = card.place.getBoundingClientRect();
      const at = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
      view.step = meets(at((event.clientX - box.left) / box.width, row.steps), row, scale());
      view.block = now.blocks[at((event.clientY - box.top) / box.height, now.blocks.length)].name;
      parts.step.value = view.step;
      parts.block.value = now.blocks.findIndex((each) => each.name === view.block);
      draw();
      want();
    });
    card.work.src = row.work;
    card.work.alt = `How much work each step of ${row.title} was, beside the full model's`;
    offer(parts.strip, { ...labels(row), ...Object.fromEntries([...parts.strip.options].map((each) => [each.value, each.text])) }, view.strip);
    parts.strips.hidden = parts.strip.hidden;
    card.picture = await image(row.picture);
    card.estimates = await image(row.estimates);
    draw();
  }

  /** What a row is made of, for both colour schemes. */
  function figures(row) {
    const shown = row.figures.map((each) => h("figure", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${each.title}: ${row.title}` },
      h("img", { class: "by-day", src: each.light, alt: each.title }), h("img", { class: "by-night", src: each.dark, alt: each.title })));
    return h("details", {}, h("summary", {}, `What ${row.title} is made of`), shown);
  }

  /** Chooses one of a row's kinds or looks. */
  function pick(all, row, value) {
    view[all] = { ...view[all], [row.index]: value };
    draw();
    want();
  }

  function point(y, x) {
    view.show = [Math.min(1, Math.max(0, y)), Math.min(1, Math.max(0, x))];
    draw();
    want();
  }

  /** Frame `step` of a sheet onto a canvas. */
  function frame(context, sheet, step, steps) {
    const across = Math.min(now.columns, steps), down = Math.ceil(steps / now.columns);
    const wide = sheet.width / across, high = sheet.height / down;
    context.drawImage(sheet, (step % now.columns) * wide, Math.floor(step / now.columns) * high, wide, high, 0, 0, SIZE, SIZE);
  }

  function draw() {
    if (!now || !parts) return;
    const found = sheets.get(key()), block = now.blocks.findIndex((each) => each.name === view.block);
    say(parts.told, `Step ${view.step + 1} of ${now.steps}`);
    say(parts.where, block < 0 ? "" : now.blocks[block].label);
    parts.block.setAttribute("aria-valuetext", parts.where.textContent);
    parts.chips.forEach((chip) => chip.setAttribute("aria-pressed", chip.dataset.show === JSON.stringify(view.show)));
    parts.grid.classList.toggle("waiting", !found); // for their overlays
    for (const card of parts.cards.values()) if (!card.row.error) lens(card, found, block);
  }

  function lens(card, found, block) {
    const { row } = card, step = step_of(row), all = found && found[row.index], kind = chosen()[row.index];
    const told = all && (all[kind] || Object.values(all)[0]);
    paint(card, card.canvas, told, step);
    if (Array.isArray(view.show) && !found) mark(card.canvas.getContext("2d"), view.show[1] * SIZE, view.show[0] * SIZE);
    card.beside.hidden = view.show === "skipped" || !Object.keys(row.looks).length;
    for (const { look, button, canvas } of card.looks) {
      button.setAttribute("aria-pressed", look === (kind || card.looks[0].look));
      if (!card.beside.hidden) paint(card, canvas, all && all[look], step);
    }
    const caption = told ? told.captions[step] : found ? "Nothing was skipped within this step." : "";
    say(card.caption, (row.steps === now.steps && step === view.step ? "" : `Step ${step + 1} of ${row.steps}. `) + (caption || ""));
    say(card.sentence, [told ? told.sentence : "", row.note].join(" ").trim());
    legend(card.legend, told ? told.legend : []);
    card.canvas.setAttribute("aria-label", `${row.title}, step ${step + 1}. ${card.caption.textContent}`);
    const strip = row.strips[view.strip] || row.strips.computed;
    if (card.strip.getAttribute("src") !== strip.picture) Object.assign(card.strip, { src: strip.picture, alt: `${strip.label} in ${row.title}, per block and step` });
    say(card.says, `Strip: ${strip.says}. ${taken(row, step)}`);
    card.cursor.style.left = (100 * (step + 0.5)) / row.steps + "%";
    card.cursor.style.top = (100 * (block + 0.5)) / now.blocks.length + "%";
    offer(card.kind, view.show === "skipped" ? row.kinds : {}, kind);
  }

  /** The picture below and, where it is here, the overlay of `told` at a step. */
  function paint(card, canvas, told, step) {
    const context = canvas.getContext("2d"), { row } = card, below = card[view.base] || card.picture;
    context.clearRect(0, 0, SIZE, SIZE);
    context.imageSmoothingEnabled = true;
    if (below === card.estimates && below) frame(context, below, step, row.steps);
    else if (below) context.drawImage(below, 0, 0, SIZE, SIZE);
    context.imageSmoothingEnabled = false;
    if (view.over && told && told.image) frame(context, told.image, step, row.steps);
  }

  /** What a step took beside one of the full model, and all of them together. */
  function taken({ index, flops }, step) {
    const full = now.rows[0].flops, sum = (each) => each.reduce((total, one) => total + one, 0), giga = (count) => (count / 1e9).toPrecision(3);
    const less = (some, all) => `${Math.abs(Math.round(100 * (1 - some / all)))} % ${some > all ? "more" : "less"}`;
    if (index === now.rows[0].index) return `Band: this step took ${giga(flops[step])} GFLOP.`;
    return `Band: this step took ${giga(flops[step])} of the full model's ${giga(Math.max(...full))} GFLOP, ${less(flops[step], Math.max(...full))}; all steps together ${less(sum(flops), sum(full))}.`;
  }

  const labels = (row) => Object.fromEntries(Object.entries(row.strips).map(([key, told]) => [key, told.label]));

  /** What can be chosen, in a list that hides where there is no choice. */
  function offer(select, offered, value) {
    const told = JSON.stringify(offered), entries = Object.entries(offered);
    if (select.dataset.told !== told) {
      select.dataset.told = told;
      select.replaceChildren(...entries.map(([key, text]) => h("option", { value: key }, text)));
    }
    select.hidden = entries.length < 2;
    select.value = value || (entries.length ? entries[0][0] : "");
  }

  /** Downloads what a canvas shows as a PNG. */
  function save(card) {
    card.canvas.toBlob((blob) => {
      const link = h("a", { href: URL.createObjectURL(blob), download: `${card.title.textContent}, step ${step_of(card.row) + 1}.png` });
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  function mark(context, x, y) {
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width });
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function legend(list, entries) {
    const told = JSON.stringify(entries);
    if (list.dataset.told === told) return;
    list.dataset.told = told;
    list.replaceChildren(...entries.map(([colour, text]) => h("li", {}, h("i", { style: `background:${colour}` }), text)));
  }
})();
