// The page's own states: idle, waiting, running, finished, stopped, failed, refused, restored.
(() => {
  const { h, say, names } = fastviz;
  const FOLDED = ["more", "size"]; // the controls that may be out of sight, and are then not in the page
  let now = {}, parts = null, shown = null, leaving = false;

  /** The line that tells how far things are. */
  fastviz.status = (element, value) => {
    now = value || {};
    const before = fastviz.heard(now);
    const place = element.querySelector(".status");
    if (!place.firstChild) {
      place.setAttribute("role", "status");
      place.append(h("p", {}, h("b", {}), h("span", {})), h("div", { class: "bar" }, h("i", {})));
    }
    place.dataset.state = now.state || "idle";
    document.body.dataset.state = now.state || "idle";
    document.dispatchEvent(new CustomEvent("fastviz-status", { detail: now }));
    const busy = now.state === "running" || now.state === "waiting";
    const idle = "Type a prompt and press Run, or click an example.";
    say(place.querySelector("b"), before + (now.sentence || (now.state === "waiting" ? "Waiting for a turn" : idle)));
    say(place.querySelector("span"), now.left || "");
    place.querySelector("i").style.width = 100 * (busy ? now.share || 0 : now.state === "finished" ? 1 : 0) + "%";
    refuse(now);
    if (shown) fastviz.draw();
  };

  /** Puts the sentence of a refusal beside the control that it belongs to, and the cursor into it. */
  function refuse(value) {
    document.querySelectorAll(".refusal").forEach((old) => old.remove());
    document.querySelectorAll("[aria-invalid]").forEach((old) => { old.removeAttribute("aria-invalid"); old.removeAttribute("aria-describedby"); });
    if (value.state !== "refused") return;
    const fold = FOLDED.includes(value.field) && document.querySelector("#ask-rows button:not(.open)");
    if (fold && !value.opened) {
      fold.click();
      setTimeout(() => refuse({ ...value, opened: true }), 150);
      return;
    }
    const place = document.getElementById(`ask-${value.field}`);
    if (!place) return;
    place.append(h("p", { class: "refusal", id: "refusal", role: "alert" }, value.sentence));
    const control = place.querySelector("textarea, input");
    if (!control) return;
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", "refusal");
    control.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  }

  fastviz.tell = (value) => fastviz.status(document.getElementById("status"), value);
  const update = (values) => ({ ...values, __type__: "update" });

  /** A press on Run, before the server has answered. */
  fastviz.begin = () => {
    leaving = false;
    if (innerWidth < 900 && document.getElementById("run").offsetParent) document.getElementById("answer").scrollIntoView({ behavior: "smooth" });
    return [{ state: "waiting", sentence: "", share: null, left: "", row: null }, update({ interactive: true })];
  };

  fastviz.stop = () => {
    if (now.state !== "waiting") return;
    leaving = true;
    document.getElementById("away").click();
  };

  /** The server took no more work, or was not there. Who left the queue comes here too, and was not refused. */
  fastviz.refused = () => leaving ? [now, update({}), update({})] : [
    { state: "failed", sentence: "The server could not take this run: too many people are waiting, or it was closed. Try again in a minute.", share: null, left: "", row: null },
    update({ interactive: true }), update({ interactive: false })];

  fastviz.copy_link = async () => {
    const address = location.origin + location.pathname + (shown ? "?" + shown.query : "");
    const button = document.getElementById("link"), label = button.textContent;
    try {
      await navigator.clipboard.writeText(address);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = label), 1500);
    } catch {
      prompt("Copy this link:", address); // only a secure page may write to the clipboard
    }
  };

  fastviz.notice = (element, notes) => {
    const place = element.querySelector(".notice");
    place.setAttribute("role", "status");
    place.replaceChildren(...(notes || []).map((note) => h("p", {}, note)));
  };

  // The board: everything that came of a run.

  fastviz.shown_query = () => shown?.query;

  fastviz.board = (element, value) => {
    const place = element.querySelector(".board");
    if (!value) {
      if (!place.firstChild) place.append(empty());
      return;
    }
    if (!parts || shown.run !== value.run) {
      parts = { cards: value.rows.map(fastviz.cards.build), slider: fastviz.slider.build(), table: fastviz.table.build(), scatter: fastviz.scatter.build(),
        said: h("p", { class: "said" }), machine: h("p", { class: "note machine" }) };
      place.replaceChildren(parts.said, h("div", { class: "cards" }, parts.cards.map((part) => part.card)),
        parts.slider.section, parts.scatter.section, parts.table.section, parts.machine);
    }
    shown = value;
    fastviz.draw();
  };

  fastviz.draw = () => {
    const titles = names(shown.rows), ended = shown.state !== "running";
    document.body.classList.toggle("has-rows", true);
    say(parts.said, `“${shown.prompt}”, seed ${shown.seed}`);
    shown.rows.forEach((row, i) => {
      fastviz.cards.update(parts.cards[i], row, titles[i], now, ended);
      const bar = parts.cards[i].bar, running = now.row === i && !ended;
      bar.style.width = running ? 100 * (now.step || 0) + "%" : "0";
    });
    if (fastviz.drawn === shown) return;
    fastviz.drawn = shown;
    for (const name of ["slider", "table", "scatter"]) fastviz[name].update(parts[name], shown.rows, titles);
    say(parts.machine, Object.keys(shown.environment).length ? "Timed on " + Object.entries(shown.environment).map(([key, value]) => `${key} ${value}`).join(", ") + "." : "");
  };

  /** Before the first run: where things will be. */
  function empty() {
    const card = (title) => h("div", { class: "card ghost" }, h("div", { class: "frame" }), h("h3", {}, title));
    return h("div", { class: "empty" }, h("div", { class: "cards" }, card("The full model"), card("A faster way"), card("Another one")),
      h("p", {}, "Pictures appear here side by side, each with its time, how far it is from the full model's picture, and what it skipped."));
  }
})();
