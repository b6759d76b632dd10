// The tab Learn: one lesson at a time. A prediction comes before the result; what is run here takes the place of what was shipped.
(() => {
  const { h, say, known } = fastviz;
  const STAGES = 5; // text, question, result, explanation, closing picture
  const state = { chosen: {}, shown: {}, stage: 0 }; // by lesson: what was predicted, whether the result is open
  const lives = {}; // lesson -> what was measured here
  let place = null, now = null, parts = null, wish = null, practise = null, status = {};

  const kept = (name, value) => (value === undefined ? localStorage.getItem(`fastviz-${name}`) : localStorage.setItem(`fastviz-${name}`, value));
  const teaching = () => kept("teacher") === "on";
  const busy = () => status.state === "running" || status.state === "waiting";
  const result = () => lives[now.lesson] || now.result;

  // Texts

  const number = (value, options) => value.toLocaleString(now.language, options);
  const fixed = (value, places) => number(value, { minimumFractionDigits: places, maximumFractionDigits: places });
  const READS = {
    seconds: (s) => (s < 0.1 ? `${fixed(1000 * s, s < 0.01 ? 1 : 0)} ms` : `${fixed(s, s < 10 ? 2 : 1)} s`),
    share: (x) => number(x, { style: "percent", maximumFractionDigits: 0 }),
    times: (x) => `${fixed(x, 2)}×`, count: (n) => number(n), lpips: (d) => fixed(d, 3), decibel: (d) => `${fixed(d, 1)} dB`,
    flops: (f) => `${number(f / 1e9, { maximumSignificantDigits: 3 })} GFLOP`,
  };

  /** A text with its figures: {few.seconds} from what was measured, {step} from `values`. */
  const fill = (text, values = {}) => text.replace(/\{([\w.]+)\}/g, (_, name) => {
    if (name in values) return values[name];
    const told = result()?.figures[name];
    return told ? READS[told[0]](told[1]) : "–";
  });

  /** A paragraph; *a word* is emphasised. `=name` is a formula. */
  const paragraph = (text) => text.startsWith("=") ? h("div", { class: "formula", tabindex: 0 }, fastviz.formulas(text.slice(1)))
    : h("p", {}, fill(text).split("*").map((part, i) => (i % 2 ? h("em", {}, part) : part)));

  // What the page asks of the server

  fastviz.study = (element, value, trigger, props) => { wish = (wanted) => { props.value = wanted; trigger("submit"); }; };
  fastviz.practise = (element, value, trigger, props) => { practise = (wanted) => { props.value = wanted; trigger("submit"); }; };

  const open = (lesson) => wish && wish({ lesson, language: fastviz.language() });
  const asked = () => /^#learn\/(\w+)/.exec(location.hash)?.[1];

  /** Opens the tab, for whoever comes by a link to a lesson or by the link at the top of the page. */
  fastviz.lessons = (tries = 100) => {
    const tab = document.getElementById("learn-tab-button");
    if (tab) tab.click();
    else if (tries) setTimeout(() => fastviz.lessons(tries - 1), 100);
  };

  fastviz.learn = (element, value) => {
    place = element.querySelector(".learn");
    if (!value) {
      place.append(h("p", { class: "note" }, "…"));
      new IntersectionObserver(([entry], watching) => {
        if (entry.isIntersecting && wish) { watching.disconnect(); open(asked() || kept("lesson") || "slow"); }
      }).observe(place);
      return;
    }
    if (now?.lesson !== value.lesson) state.stage = 0;
    const turned = now && now.lesson !== value.lesson;
    now = value;
    kept("lesson", now.lesson);
    if (turned || asked()) history.replaceState(null, "", `#learn/${now.lesson}`);
    build();
    if (turned) parts.title.focus();
  };

  fastviz.live = (element, value) => {
    if (!value) return;
    lives[value.lesson] = value;
    if (now?.lesson === value.lesson) measured();
  };

  // The lesson

  function build() {
    const at = now.list.findIndex((each) => each.key === now.lesson), ui = now.ui, words = now.words;
    place.lang = now.language;
    parts = { title: h("h2", { tabindex: -1 }, `${at + 1}. ${words.title}`), options: options(), verdict: h("p", { class: "verdict", role: "status" }),
      reveal: h("button", { class: "primary reveal", onclick: reveal }, ui.reveal), result: h("div", { class: "result" }) };
    parts.sections = [
      h("section", {}, parts.title, words.intro.map(paragraph)),
      h("section", { class: "question" }, h("h3", {}, ui.predict), h("p", { id: "lesson-question" }, fill(words.question)), parts.options, parts.reveal, parts.verdict),
      h("section", {}, h("h3", {}, ui.result), parts.result),
      h("section", {}, h("h3", {}, ui.why), explanation()),
      h("section", {}, h("h3", {}, words.closing.title), h("p", {}, fill(words.closing.says, now.result?.closing)), closing(), h("p", { class: "remember" }, h("b", {}, ui.remember), " ", words.remember)),
    ];
    parts.last = [papers(), steps(at)];
    place.replaceChildren(bar(), lessons(), h("article", {}, parts.sections, parts.last));
    measured();
    unfold();
  }

  const explanation = () => [...now.words.why, ...(now.words.student ? now.words[result()?.rows.some((row) => row.name === "student") ? "student" : "alone"] : [])].map(paragraph);

  /** The teacher's switch. */
  function bar() {
    const button = h("button", { class: "teacher", "aria-pressed": String(teaching()), title: now.ui.teacher_says, onclick: () => {
      kept("teacher", teaching() ? "off" : "on");
      button.setAttribute("aria-pressed", String(teaching()));
      state.stage = 0;
      unfold();
    } }, now.ui.teacher);
    return h("div", { class: "learn-bar" }, h("p", { class: "keys" }, now.ui.keys), button);
  }

  const lessons = () => h("nav", { "aria-label": now.ui.lessons }, h("ol", {}, now.list.map((each, i) => h("li", {},
    h("button", { "aria-current": each.key === now.lesson ? "step" : null, title: each.title, onclick: () => open(each.key) }, h("b", {}, String(i + 1)), h("span", {}, each.title))))));

  function options() {
    return h("div", { class: "options", role: "group", "aria-labelledby": "lesson-question" }, now.options.map((option, i) =>
      h("button", { "data-option": option, onclick: () => choose(option) }, h("b", { "aria-hidden": true }, String(i + 1)), h("span", {}, now.words.options[option]))));
  }

  const papers = () => h("section", { class: "papers" }, h("h3", {}, now.ui.papers), h("ul", {}, now.papers.map(({ title, number: id }) =>
    h("li", {}, `${title}, `, h("a", { href: `https://arxiv.org/abs/${id}`, target: "_blank", rel: "noopener noreferrer" }, `arXiv ${id}`)))));

  /** To the lessons before and after. */
  function steps(at) {
    const go = (i, name, kind) => now.list[i] ? h("button", { class: kind, onclick: () => open(now.list[i].key) }, h("small", {}, name), now.list[i].title) : h("span", {});
    return h("div", { class: "turn" }, go(at - 1, now.ui.previous, "previous"), go(at + 1, now.ui.next, "next"));
  }

  // Prediction

  function choose(option) {
    state.chosen[now.lesson] = option;
    if (teaching()) unfold();
    else reveal();
  }

  function reveal() {
    state.shown[now.lesson] = true;
    state.stage = Math.max(state.stage, 2);
    unfold();
  }

  const revealed = () => !!state.shown[now.lesson];

  /** Shows what may be seen by now: the result after the prediction, and in teacher's mode one part after the other. */
  function unfold() {
    place.classList.toggle("teaching", teaching());
    parts.sections.forEach((section, i) => { section.hidden = (i > 1 && !revealed()) || (teaching() && i > state.stage); });
    for (const part of parts.last) part.hidden = teaching() && state.stage < STAGES - 1;
    parts.reveal.hidden = !teaching() || revealed();
    verdict();
  }

  function verdict() {
    const chosen = state.chosen[now.lesson], answer = result()?.answer, open = revealed() && known(answer);
    for (const button of parts.options.children) {
      const option = button.dataset.option;
      button.setAttribute("aria-pressed", String(option === chosen));
      button.classList.toggle("true", open && option === answer);
      button.classList.toggle("false", open && option === chosen && option !== answer);
    }
    const told = !open ? "" : !chosen ? now.ui.answer : chosen === answer ? now.ui.right : now.ui.wrong;
    say(parts.verdict, told.replace("{answer}", now.words.options[answer] || ""));
  }

  // Result

  function measured() {
    const found = result(), ui = now.ui;
    const run = h("button", { class: "primary run-here", disabled: busy(), onclick: begin }, ui.run);
    const stop = h("button", { class: "stop-here", hidden: !busy(), onclick: () => document.getElementById("stop").click() }, ui.stop);
    parts.progress = h("p", { class: "progress", role: "status" });
    parts.run = run;
    parts.stop = stop;
    parts.result.replaceChildren(...[
      found?.stale ? h("p", { class: "stale", role: "note" }, ui.stale) : null,
      found ? h("div", { class: "cards", style: `--across:${found.rows.length > 5 ? 3 : found.rows.length}` }, found.rows.map(card)) : h("p", { class: "note" }, ui.none),
      found && chart(found), ...(found ? now.words.measured.map(paragraph) : []),
      h("p", { class: "note source" }, found ? source(found) : ""), h("div", { class: "here" }, run, stop, parts.progress)].filter(Boolean));
    parts.sections[3].replaceChildren(h("h3", {}, ui.why), ...explanation());
    progress();
    verdict();
  }

  const name = (row) => now.words.rows[row.name] || now.ui.full;

  function card(row) {
    const seconds = known(row.seconds), reference = row.name === "full";
    const speed = !seconds ? "" : reference ? now.ui.reference : known(row.speedup) ? `${READS.times(row.speedup)}` : now.ui.unchanged;
    const veil = row.error || (row.picture ? "" : busy() ? now.ui.waiting : "–");
    return h("figure", { class: "card", "data-row": row.name },
      h("div", { class: "frame" }, row.picture ? h("img", { src: row.picture, alt: `${name(row)}: ${now.asked.prompt}`, width: 256, height: 256 }) : null, h("p", { class: "veil" }, veil)),
      h("figcaption", {}, h("b", {}, name(row)), h("span", {}, seconds ? `${READS.seconds(row.seconds)} · ${speed}` : "–"),
        h("span", {}, reference ? now.ui.steps.replace("{steps}", row.steps ?? "–") : known(row.lpips) ? `LPIPS ${READS.lpips(row.lpips)}` : "–")));
  }

  function chart(found) {
    const rows = found.rows.filter((row) => known(row.seconds)), most = Math.max(...rows.map((row) => row.seconds)), ui = now.ui;
    if (now.chart === "parts" && rows.length) {
      const kinds = [["text", ui.encoder], ["denoising", ui.denoising], ["decoder", ui.decoder]];
      return fastviz.bars(rows.map((row) => ({ name: name(row), value: READS.seconds(row.seconds),
        parts: kinds.map(([kind, title]) => ({ kind, share: row.parts[kind] / most, says: `${title}: ${READS.seconds(row.parts[kind])}` })) })), kinds);
    }
    if (now.chart === "work" && rows.length) {
      const top = Math.max(1, ...rows.map((row) => row.seconds / rows[0].seconds)), of = (kind, share, says) => ({ name: says, value: READS.share(share), parts: [{ kind, share: share / top, says }] });
      return fastviz.bars(rows.flatMap((row) => [of("work", row.flops_share, `${name(row)}: ${ui.work}`), of("time", row.seconds / rows[0].seconds, `${name(row)}: ${ui.time}`)]), [["work", ui.work], ["time", ui.time]]);
    }
    return now.chart === "front" ? points(rows, "seconds") : null;
  }

  /** The rows as points: what they take to the right, their distance from the full model upwards. */
  function points(rows, measure) {
    const told = rows.filter((row) => row.name === "full" || known(row.lpips)).map((row) => ({ name: name(row), x: measure === "seconds" ? row.seconds : row.flops / 1e9, y: row.name === "full" ? 0 : row.lpips }));
    if (told.length < 2) return null;
    const plain = (value) => number(value, { maximumSignificantDigits: 3 });
    return fastviz.front(told, [measure === "seconds" ? now.ui.seconds : now.ui.operations, now.ui.distance], [plain, plain], { front: now.ui.front });
  }

  function source(found) {
    const told = found.environment, device = told.device || "–";
    const text = now.ui[found.live ? "measured_here" : "measured_before"];
    const values = { device, threads: told.threads ?? "–", torch: told.torch ?? "–", day: found.measured, repeats: found.repeats, prompt: now.asked.prompt, seed: now.asked.seed,
      lpips: found.rows.find((row) => row.lpips_name)?.lpips_name || "LPIPS" };
    return [text, now.ui.about].map((each) => fill(each, values)).join(" ");
  }

  function closing() {
    const told = now.result?.closing, words = now.words.closing;
    if (!told) return h("p", { class: "note" }, now.ui.none);
    const plain = (value) => number(value, { maximumSignificantDigits: 3 });
    if (told.kind === "pictures") {
      return h("div", { class: `film film-${now.lesson}` }, told.items.map((item) => {
        const caption = fill(words.items[item.label], item.values);
        return h("figure", {}, h("img", { src: item.picture, alt: caption, width: 256, height: 256 }), h("figcaption", {}, caption));
      }));
    }
    if (told.kind === "lines") return fastviz.lines(Object.entries(told.series).map(([key, points]) => ({ name: words.series[key], points })), [words.x, words.y], [plain, plain]);
    return h("div", { class: "twice" }, ["flops", "seconds"].map((measure) => points(now.result.rows, measure)));
  }

  // A run of one's own

  function begin() {
    if (!busy()) practise({ lesson: now.lesson, language: now.language });
  }

  document.addEventListener("fastviz-status", ({ detail }) => {
    const before = status.state;
    status = detail;
    if (!now || !parts) return;
    if (before !== status.state) measured();
    else progress();
  });

  function progress() {
    const words = { waiting: now.ui.waiting, running: status.sentence, refused: status.sentence, failed: status.sentence, stopped: now.ui.stopped };
    say(parts.progress, [words[status.state] || "", status.left || ""].filter(Boolean).join(", "));
    parts.progress.style.setProperty("--share", busy() ? status.share || 0 : 0);
  }

  // Keys of the teacher's mode: the next part, the part before, and the numbers of the options.

  const at_home = () => place?.isConnected && place.offsetParent && now && teaching();
  const typing = (target) => target.closest("input, textarea, select, [role=tab], [role=listbox], [contenteditable]");

  function forward() {
    if (state.stage === 1 && !revealed()) return reveal();
    if (state.stage < STAGES - 1) state.stage += 1;
    else return turn(1);
    if (state.stage >= 2) state.shown[now.lesson] = true;
    return unfold();
  }

  function back() {
    if (state.stage === 0) return turn(-1);
    state.stage -= 1;
    return unfold();
  }

  function turn(by) {
    const next = now.list[now.list.findIndex((each) => each.key === now.lesson) + by];
    if (next) open(next.key);
  }

  document.addEventListener("keydown", (event) => {
    if (!at_home() || typing(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
    const number = Number(event.key);
    if (["ArrowRight", "PageDown"].includes(event.key)) forward();
    else if (["ArrowLeft", "PageUp"].includes(event.key)) back();
    else if (state.stage >= 1 && now.options[number - 1]) choose(now.options[number - 1]);
    else return;
    event.preventDefault();
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    parts.sections[state.stage]?.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: state.stage ? "center" : "start" });
  });

  document.addEventListener("fastviz-language", () => now && open(now.lesson));
  addEventListener("hashchange", () => { if (asked() && asked() !== now?.lesson) open(asked()); });
  if (location.hash.startsWith("#learn")) fastviz.lessons();
})();
