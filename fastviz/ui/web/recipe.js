// A picture made here carries its recipe in a text chunk. It is read in this browser: the picture itself is sent nowhere.
(() => {
  const { h } = fastviz;
  const MOST = 64 * 2 ** 20;

  async function inflate(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** The text chunk `wanted` of a PNG (PNG specification, 11.3.4: tEXt, zTXt and iTXt), or null. */
  async function text(buffer, wanted) {
    const bytes = new Uint8Array(buffer), view = new DataView(buffer), latin = new TextDecoder("latin1"), utf8 = new TextDecoder();
    if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return null;
    for (let at = 8; at + 12 <= bytes.length;) {
      const length = view.getUint32(at), kind = latin.decode(bytes.subarray(at + 4, at + 8));
      const data = bytes.subarray(at + 8, at + 8 + length), end = data.indexOf(0);
      at += 12 + length;
      if (!["tEXt", "zTXt", "iTXt"].includes(kind) || end < 0 || latin.decode(data.subarray(0, end)) !== wanted) continue;
      if (kind === "tEXt") return latin.decode(data.subarray(end + 1));
      if (kind === "zTXt") return latin.decode(await inflate(data.subarray(end + 2)));
      const language = data.indexOf(0, end + 3), body = data.indexOf(0, language + 1) + 1, packed = data[end + 1];
      return utf8.decode(packed ? await inflate(data.subarray(body)) : data.subarray(body));
    }
    return null;
  }

  async function read(file) {
    if (file.size > MOST) return null;
    try {
      return await text(await file.arrayBuffer(), "fastviz");
    } catch {
      return null; // a damaged file holds no recipe
    }
  }

  /** The place that takes a picture: a button, and the whole page while one is dragged over it. */
  fastviz.drop = (element, value, trigger, props) => {
    if (element.dataset.ready) return;
    element.dataset.ready = true;
    const take = async (file) => {
      const found = file && await read(file);
      if (file && !found) return fastviz.tell({ state: "refused", field: "recipe", sentence: "This file holds no recipe: choose a PNG that was saved here." });
      if (!file) return;
      props.value = found;
      trigger("submit");
    };
    const input = h("input", { type: "file", accept: "image/png", id: "recipe", class: "unseen",
      onchange: () => { take(input.files[0]); input.value = ""; } });
    element.querySelector(".drop").append(input, h("label", { for: "recipe" }, "Open a saved picture"));
    const page = document.body, files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    page.addEventListener("dragover", (event) => { if (files(event)) { event.preventDefault(); page.classList.add("dropping"); } });
    page.addEventListener("dragleave", (event) => { if (!event.relatedTarget) page.classList.remove("dropping"); });
    page.addEventListener("drop", (event) => {
      page.classList.remove("dropping");
      if (files(event)) { event.preventDefault(); take(event.dataTransfer.files[0]); }
    });
  };

  fastviz.png_text = text;
})();
