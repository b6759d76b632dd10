// A sheet to draw on, the quick picture that follows the pen, and the picture that a run starts from.
(() => {
  const { h, say } = fastviz;
  const SIDE = 256, PEN = 4, PATIENCE = 500; // px, px, ms between two quick pictures while the pen is down

  /** The sheet: value is a PNG as a data URI, or null when it is empty. */
  fastviz.sheet = (element, value, trigger, props) => {
    const place = element.querySelector(".sheet");
    const part = place.made ||= build(place, trigger, props);
    if (value !== part.sent) restore(part, value);
  };

  function build(place, trigger, props) {
    const part = { strokes: [], base: null, sent: null, shown: 0, trigger, props };
    part.canvas = h("canvas", { width: SIDE, height: SIDE, tabindex: "0", role: "img",
      "aria-label": "Sheet to draw on. Arrow keys move the pen, the space bar puts it down and lifts it." });
    part.undo = h("button", { type: "button", onclick: () => { part.strokes.length ? part.strokes.pop() : (part.base = null); send(part); } }, "Undo");
    part.clear = h("button", { type: "button", onclick: () => { part.strokes = []; part.base = null; send(part); } }, "Clear");
    part.live = h("input", { type: "checkbox", checked: true, id: "sheet-live" });
    part.cross = h("i", { hidden: true });
    part.details = h("details", {}, h("summary", {}, "Sketch"),
      h("p", {}, "Draw outlines of what the prompt names. Every row follows them."),
      h("div", { class: "paper" }, part.canvas, part.cross),
      h("div", { class: "tools" }, part.undo, part.clear, h("label", { for: "sheet-live" }, part.live, "Follow the pen")));
    place.append(part.details);
    pointer(part);
    keys(part);
    paint(part);
    return part;
  }

  /** Mouse, pen and finger. */
  function pointer(part) {
    let line = null;
    const at = (event) => {
      const box = part.canvas.getBoundingClientRect();
      return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
    };
    part.canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      part.canvas.setPointerCapture(event.pointerId);
      part.canvas.focus({ preventScroll: true });
      part.strokes.push(line = [at(event)]);
      paint(part);
    });
    part.canvas.addEventListener("pointermove", (event) => {
      if (!line) return;
      for (const each of event.getCoalescedEvents?.() || [event]) line.push(at(each));
      paint(part);
      if (Date.now() - part.shown > PATIENCE && part.quick) send(part);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      part.canvas.addEventListener(end, () => { if (line) { line = null; send(part); } });
    }
  }

  /** Drawing without a pointer. */
  function keys(part) {
    const moves = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] };
    let pen = [SIDE / 2, SIDE / 2], line = null;
    const show = () => Object.assign(part.cross.style, { left: 100 * pen[0] / SIDE + "%", top: 100 * pen[1] / SIDE + "%" });
    const lift = () => { if (line) { line = null; send(part); } part.cross.classList.remove("down"); };
    part.canvas.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (move) pen = pen.map((each, i) => Math.min(SIDE - 2, Math.max(2, each + move[i])));
      else if (event.key === " " && line) lift();
      else if (event.key === " ") { part.strokes.push(line = [pen]); part.cross.classList.add("down"); }
      else return;
      event.preventDefault();
      part.cross.hidden = false;
      if (move && line) line.push(pen);
      show();
      paint(part);
    });
    part.canvas.addEventListener("blur", () => { lift(); part.cross.hidden = true; });
  }

  function paint(part) {
    const pen = part.canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, SIDE, SIDE);
    if (part.base) pen.drawImage(part.base, 0, 0, SIDE, SIDE);
    Object.assign(pen, { strokeStyle: "#000", lineWidth: PEN, lineCap: "round", lineJoin: "round" });
    for (const line of part.strokes) {
      pen.beginPath();
      pen.moveTo(...line[0]);
      for (const point of line.length > 1 ? line.slice(1) : line) pen.lineTo(...point);
      pen.stroke();
    }
    part.undo.disabled = part.clear.disabled = !part.base && !part.strokes.length;
    part.details.classList.toggle("drawn", !part.undo.disabled);
  }

  /** Lets the controls know what is drawn, and asks for a quick picture where that is wanted. */
  function send(part) {
    paint(part);
    part.sent = part.base || part.strokes.length ? part.canvas.toDataURL("image/png") : null;
    part.props.value = part.sent;
    part.shown = Date.now();
    if (part.live.checked) part.trigger("submit");
  }

  /** A drawing that came with a recipe, or none. */
  function restore(part, value) {
    Object.assign(part, { sent: value, strokes: [], base: null });
    paint(part);
    if (!value) return;
    const image = new Image();
    image.onload = () => { if (part.sent === value) { part.base = image; part.details.open = true; paint(part); } };
    image.src = value;
  }

  /** The quick picture: {picture, says}; never: nothing follows the pen here. quick: it is made in one step. */
  fastviz.glance = (element, value) => {
    const place = element.querySelector(".glance");
    if (!place.firstChild) place.append(h("img", { alt: "The quick picture", hidden: true }), h("p", { role: "status" }));
    const sheet = document.querySelector("#ask-sketch .sheet")?.made;
    if (value?.never && sheet) { sheet.live.checked = false; sheet.live.parentElement.hidden = true; }
    if (sheet) sheet.quick = value?.quick;
    const [image, words] = place.children;
    image.hidden = !value?.picture;
    if (value?.picture) image.src = value.picture;
    say(words, value?.says || "");
  };

  /** The picture that every row starts from: {picture, strength}, or null. */
  fastviz.start = (element, value, trigger, props) => {
    const place = element.querySelector(".start");
    const set = (told) => { props.value = told; show(place.made, told); };
    place.made ||= begun(place, () => props.value, set);
    fastviz.start_from = (picture) => {
      set({ picture, strength: props.value?.strength || 0.6 });
      document.getElementById("ask-start").scrollIntoView({ block: "nearest" });
    };
    show(place.made, value);
  };

  function show(part, value) {
    part.place.hidden = !value?.picture;
    if (part.place.hidden) return part.image.removeAttribute("src");
    if (part.image.getAttribute("src") !== value.picture) part.image.src = value.picture;
    part.range.value = value.strength;
    say(part.output, Number(value.strength).toFixed(2));
  }

  function begun(place, now, set) {
    const part = { place, image: h("img", { alt: "The picture that every row starts from" }), output: h("output", { for: "strength" }) };
    part.range = h("input", { type: "range", id: "strength", min: 0.1, max: 1, step: 0.05,
      oninput: () => say(part.output, Number(part.range.value).toFixed(2)),
      onchange: () => set({ ...now(), strength: Number(part.range.value) }) });
    place.append(part.image, h("div", {}, h("b", {}, "Every row starts from this picture"),
      h("label", { for: "strength" }, "How much may change ", part.output), part.range,
      h("button", { type: "button", onclick: () => set(null) }, "Remove")));
    return part;
  }
})();
