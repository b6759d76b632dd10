// A report: what the page shows of a finished comparison, from values that lie in the file itself.
(() => {
  const { say } = fastviz;
  const told = JSON.parse(document.getElementById("told").textContent), { board, request, inside } = told;
  const dark = matchMedia("(prefers-color-scheme: dark)"), paint = () => document.documentElement.classList.toggle("dark", dark.matches);
  dark.addEventListener("change", paint);
  paint();
  say(document.getElementById("asked"), `${request.model}, ${request.steps} steps, guidance ${request.guidance}, ${request.size} px, each row timed ${request.repeats === 1 ? "once" : `${request.repeats} times`}.`);
  fastviz.board(document.getElementById("board"), board);
  if (!inside) return;
  const place = document.getElementById("inside"), props = {};
  place.hidden = false;
  const answer = () => {
    const { key, block, show } = props.value;
    fastviz.overlay(place, show === "skipped" ? { key, rows: inside.overlays[block] } : { key, sentence: "Words and points can be looked at on the page; this file holds what was skipped." });
  };
  fastviz.wanted(place, null, () => setTimeout(answer), props);
  fastviz.inside(place, inside.board);
})();
