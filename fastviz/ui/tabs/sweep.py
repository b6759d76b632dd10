"""The tab Sweep: what shall vary, and the grid, the curves and the front that come of it."""

import gradio as gr

from ...request import BadRequest
from ..job import able
from ..parts import OFF, ON, view
from ..sweep import Controls, Sweeping


class Tab:
    def __init__(self, page):
        self.page = page
        with gr.Tab("Sweep", id="sweeps"):
            self.vary = Controls(page.profile)
            self.begin = gr.Button("Sweep", elem_id="begin")
            self.swept = view("sweep", None)
            self.tables = gr.Files(label="Tables to download", interactive=False, elem_id="tables")
        self.shown, self.begun = [self.swept, self.begin, self.tables], {}

    def wire(self, options):
        return [self.begin.click(self.sweep, [*self.vary.all, *self.page.ask.controls.values()], preprocess=False, **options)]

    def sweep(self, request: gr.Request, *values):
        """Runs what the sweep's controls ask for, with the page's own prompt and settings, as far as it is not kept."""
        own, others = values[:len(self.vary.all)], values[len(self.vary.all):]
        try:
            plan = self.vary.plan(own, dict(zip(self.page.ask.controls, others, strict=True)))
            able()
        except BadRequest as refusal:
            yield self.page.turned_away(request, refusal)
            return
        shelf = self.page.shelf
        yield from self.page.follow(request, lambda visit: Sweeping(plan, shelf.history, shelf.owner(request.session_hash)), self.swept,
                                    {self.begin: OFF, self.tables: None})

    def left(self, work):
        """What a sweep leaves."""
        paths, fault = work.files()
        status = work.status()
        status["sentence"] = f"{status['sentence']} {fault}".strip()
        return {self.page.status: status, self.swept: work.board(), self.begin: ON, self.tables: paths}
