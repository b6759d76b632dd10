"""The tab Why?: where the time of the last comparison's rows goes, and what their methods can touch of it."""

import gradio as gr

from ..parts import OFF, ON, view
from ..why import Why


class Tab:
    def __init__(self, page):
        self.page = page
        with gr.Tab("Why?", id="reasons"):
            self.why = view("why", None)
            self.find = gr.Button("Find out why", elem_id="find", interactive=False)
        self.shown, self.begun = [self.why, self.find], {self.why: None, self.find: OFF}

    def wire(self, options):
        return [self.find.click(self.find_out, None, **options)]

    def find_out(self, request: gr.Request):
        """Runs the rows of the last comparison once more with a profiler and shows where their time goes."""
        yield from self.page.again(request, lambda visit, job: Why(job), self.why, {self.find: OFF})

    def left(self, why):
        """What a search for reasons leaves."""
        return {self.page.status: why.status(), self.why: why.board(), self.find: ON}
