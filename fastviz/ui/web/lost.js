// What becomes of a run whose server ends, or whose page is loaded anew: its visitor is told, and its settings come back.
(() => {
  const KEY = "fastviz-lost", SILENCE = 10_000; // ms without a word, after which the server is asked whether it is there
  const busy = (value) => value.state === "running" || value.state === "waiting";
  let now = {}, heard = Date.now(), gone = false, before = null;

  const kept = JSON.parse(sessionStorage.getItem(KEY));
  sessionStorage.removeItem(KEY);
  if (kept?.query && !kept.again) {
    sessionStorage.setItem(KEY, JSON.stringify({ ...kept, again: true }));
    location.replace(`${location.pathname}?${kept.query}`); // the settings, by way of their link
  }

  /** The settings of what is under way, as a link has them; of a visitor who still waits, the prompt. */
  function query() {
    const prompt = document.querySelector("#ask-prompt textarea")?.value || "";
    return now.state === "running" && fastviz.shown_query() || new URLSearchParams({ prompt }).toString();
  }

  function keep() {
    sessionStorage.setItem(KEY, JSON.stringify({ app: String(window.gradio_config?.app_id), query: query() }));
  }

  addEventListener("pagehide", () => busy(now) && !gone && keep());

  /** Every word of the server passes here. Returns what is to be said before it. */
  fastviz.heard = (value) => {
    [now, heard] = [value, Date.now()];
    if (before === null) before = !kept ? "" : String(window.gradio_config?.app_id) === kept.app
      ? "The page was loaded anew, and what was under way is lost. " : "The server was started again, and what was under way is lost. ";
    if (busy(value)) [before, gone] = ["", false];
    return before;
  };

  setInterval(async () => {
    if (gone || !busy(now) || Date.now() - heard < SILENCE) return;
    try {
      const { app_id } = await (await fetch("gradio_api/app_id", { cache: "no-store" })).json();
      if (String(app_id) !== String(window.gradio_config?.app_id)) location.reload();
      heard = Date.now();
    } catch {
      keep();
      gone = true;
      fastviz.tell({ state: "failed", sentence: "The server cannot be reached: what was under way is lost. This page comes back with it.", share: null, left: "", row: null });
    }
  }, 2000);
})();
