// Two pictures, one over the other, and a line that wipes between them; below, where they differ from the full model.
(() => {
  const { h, say } = fastviz;

  function build() {
    const part = { rows: [], chosen: [0, null] };
    part.selects = ["Left", "Right"].map((name, side) =>
      h("select", { "aria-label": `${name} picture`, onchange: (event) => { part.chosen[side] = Number(event.target.value); show(part); } }));
    part.left = h("img", { alt: "", draggable: "false" });
    part.right = h("img", { alt: "", draggable: "false" });
    part.range = h("input", { type: "range", min: 0, max: 100, value: 50, step: 1, "aria-label": "How much of the left picture shows",
      oninput: () => part.frame.style.setProperty("--cut", part.range.value + "%") });
    part.frame = h("div", { class: "wipe", style: "--cut:50%" }, part.right, part.left, h("span", { class: "line", "aria-hidden": true }), part.range);
    part.maps = [["difference", "Difference", "Bright where its colours differ from the full model's."],
      ["lpips_map", "Perceptual difference", "Bright where LPIPS sees a difference from the full model."]].map(([key, title, says]) => {
      const map = { key, title, picture: h("img", { alt: "" }), caption: h("span", {}) };
      map.figure = h("figure", { class: "map" }, h("div", { class: "frame" }, map.picture, h("p", { class: "veil" })),
        h("figcaption", {}, h("b", {}, title), " ", map.caption, h("br", {}), h("small", {}, says)));
      return map;
    });
    part.section = h("section", { class: "slider", hidden: true }, h("h2", {}, "Look closely"),
      h("div", { class: "pair" }, h("label", {}, "Left ", part.selects[0]), h("label", {}, "Right ", part.selects[1])),
      h("div", { class: "closely" }, part.frame, ...part.maps.map((map) => map.figure)));
    return part;
  }

  function update(part, rows, names) {
    part.rows = rows.filter((row) => row.picture);
    part.section.hidden = part.rows.length < 2;
    if (part.section.hidden) return;
    if (part.chosen[1] === null) part.chosen[1] = part.rows[1].index;
    const options = part.rows.map((row) => [row.index, names[row.index]]), key = JSON.stringify(options);
    part.names = names;
    for (const [side, select] of part.selects.entries()) {
      if (select.dataset.key !== key) {
        select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
        select.dataset.key = key;
      }
      select.value = part.chosen[side];
    }
    show(part);
  }

  function put(picture, source, alt) {
    if (picture.getAttribute("src") !== source) picture.src = source;
    picture.alt = alt;
  }

  function show(part) {
    const [left, right] = part.chosen.map((index) => part.rows.find((row) => row.index === index));
    if (!left || !right) return;
    put(part.left, left.picture, `Left: ${part.names[left.index]}`);
    put(part.right, right.picture, `Right: ${part.names[right.index]}`);
    const against = right.index === 0 ? left : right;
    for (const map of part.maps) {
      const source = against[map.key], none = against.index === 0 || !source;
      map.picture.hidden = none;
      if (!none) put(map.picture, source, `${map.title}: ${part.names[against.index]} and the full model`);
      say(map.figure.querySelector(".veil"), none ? (against.index === 0 ? "The full model does not differ from itself" : "Not measured") : "");
      say(map.caption, part.names[against.index]);
    }
  }

  fastviz.slider = { build, update };
})();
