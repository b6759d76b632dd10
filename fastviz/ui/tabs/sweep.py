"""The tab Sweep: what shall vary, and the grid, the curves and the front that come of it."""

import gradio as gr

from ...request import BadRequest
from ..job import able
from ..parts import OFF, ON, view
from ..sweep import SEARCH, Controls, Finding, Sweeping

ASKS = ("Which way is fast enough, or close enough to the full model? About forty ways are tried on four prompts, and the best of them "
        "verified on four others: some minutes. Prompts of your own, 4 to 8, go into the field above.")


class Tab:
    def __init__(self, page):
        self.page = page
        with gr.Tab("Sweep", id="sweeps"):
            self.vary = Controls(page.profile)
            self.begin = gr.Button("Sweep", elem_id="begin")
            self.seek = self.asks_for_the_fastest() if page.profile.sweep_cells >= SEARCH else None
            self.swept = view("sweep", None)
            self.tables = gr.Files(label="Tables to download", interactive=False, elem_id="tables")
        self.buttons = [self.begin, *([self.seek] if self.seek else [])]
        self.shown, self.begun = [self.swept, self.tables, *self.buttons], {}

    def asks_for_the_fastest(self):
        with gr.Accordion("Find me the fastest", open=False, elem_id="fastest"):
            gr.HTML(f"<p class='note'>{ASKS}</p>", apply_default_css=False)
            with gr.Row(elem_classes="vary"):
                self.bound = [gr.Dropdown([("LPIPS at most", "lpips"), ("Seconds at most", "seconds")], value="lpips", label="Bound", elem_id="ask-bound"),
                              gr.Number(0.1, label="Its value", elem_id="ask-most")]
            return gr.Button("Find", elem_id="seek")

    def wire(self, options):
        asked = options | dict(inputs=[*self.vary.all, *self.page.ask.controls.values()], preprocess=False)
        return [self.begin.click(self.sweep, **asked)] + (
            [self.seek.click(self.find, **asked | dict(inputs=[*self.bound, *asked["inputs"]]))] if self.seek else [])

    def sweep(self, request: gr.Request, *values):
        """Runs what the sweep's controls ask for, with the page's own prompt and settings, as far as it is not kept."""
        yield from self.started(request, values, lambda own, told: (Sweeping, self.vary.plan(own, told)))

    def find(self, request: gr.Request, name, most, *values):
        """Looks for the fastest way under a bound, with the page's own settings and the prompts of this tab."""
        yield from self.started(request, values, lambda own, told: (Finding, *self.vary.search(name, most, own, told)))

    def started(self, request, values, read):
        """read(values of this tab, the page's own by name) -> (kind of work, what it is made from)."""
        own, others = values[:len(self.vary.all)], values[len(self.vary.all):]
        try:
            kind, *wanted = read(own, dict(zip(self.page.ask.controls, others, strict=True)))
            able()
        except BadRequest as refusal:
            yield self.page.turned_away(request, refusal)
            return
        shelf = self.page.shelf
        yield from self.page.follow(request, lambda visit: kind(*wanted, shelf.history, shelf.owner(request.session_hash)), self.swept,
                                    {**dict.fromkeys(self.buttons, OFF), self.tables: None})

    def left(self, work):
        """What a sweep leaves."""
        paths, fault = work.files()
        status = work.status()
        status["sentence"] = f"{status['sentence']} {fault}".strip()
        return {self.page.status: status, self.swept: work.board(), self.tables: paths, **dict.fromkeys(self.buttons, ON)}
