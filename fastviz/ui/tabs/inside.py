"""The tab Inside: the rows of the last comparison, step by step, and overlays of what each step skipped."""

import gradio as gr

from ...request import BadRequest
from ..inside import Inside
from ..parts import OFF, ON, PRIVATE, report_of, view


class Tab:
    def __init__(self, page):
        self.page = page
        with gr.Tab("Inside", id="inside"):
            self.inside = view("inside", None)
            self.look = gr.Button("Look inside", elem_id="look", interactive=False)
            self.wanted, self.overlay = view("wanted", None), view("overlay", None)
            with gr.Row(elem_id="records"):
                self.animate = gr.Button("Make an animation", elem_id="animate", size="sm")
                self.records = gr.Files(label="Records and animations to download", interactive=False, elem_id="files")
        self.shown, self.begun = [self.inside, self.look, self.records], {self.inside: None, self.look: OFF}

    def wire(self, options):
        self.wanted.submit(self.overlays, self.wanted, self.overlay, preprocess=False, concurrency_limit=1,
                           trigger_mode="always_last", **PRIVATE)
        self.animate.click(self.animation, self.wanted, self.records, preprocess=False, **PRIVATE, **self.page.pipeline)
        return [self.look.click(self.look_inside, None, **options)]

    def look_inside(self, request: gr.Request):
        """Runs the rows of the last comparison once more, recording, and shows what was recorded as it comes."""
        def begin(visit, job):
            visit.look = Inside(job, self.page.profile.records_megabytes)
            return visit.look

        yield from self.page.again(request, begin, self.inside, {self.look: OFF, self.records: None})

    def left(self, look):
        """What a look inside leaves."""
        return {self.page.status: look.status(), self.inside: look.board(), self.look: ON, self.records: look.files(),
                self.page.report: report_of(look.job, look) if look.traces else gr.skip()}

    def overlays(self, wanted, request: gr.Request):
        """What is laid over the pictures for the block, word or point that was chosen."""
        look = self.page.visits.of(request).look
        try:
            return look.overlay(wanted) if look and look.state != "running" else gr.skip()
        except BadRequest as refusal:
            return {"key": wanted.get("key") if isinstance(wanted, dict) else None, "sentence": str(refusal), "rows": {}}

    def animation(self, wanted, request: gr.Request):
        """The overlays that are shown, over all steps, as an animated picture beside the records."""
        look = self.page.visits.of(request).look
        if look is None or look.state == "running":
            return gr.skip()
        try:
            return [*look.files(), *map(str, look.animations(wanted))]
        except BadRequest as refusal:
            gr.Warning(str(refusal))
            return gr.skip()
