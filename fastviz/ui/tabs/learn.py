"""The tab Learn: seven lessons, each with a prediction, what was measured beforehand, and a run of its own."""

import gradio as gr

from ...request import BadRequest
from .. import learn
from ..job import able
from ..parts import PRIVATE, view


class Tab:
    """study: what the page asks to see; practise: what it asks to run; live: what came of that so far."""

    def __init__(self, page):
        self.page = page
        with gr.Tab("Learn", id="learn", elem_id="learn-tab"):
            self.learn, self.study, self.practise, self.live = (view(name) for name in ("learn", "study", "practise", "live"))
        self.shown, self.begun = [self.live], {}

    def wire(self, options):
        self.study.submit(self.open, self.study, self.learn, preprocess=False, queue=False, trigger_mode="always_last", **PRIVATE)
        self.practise.submit(fn=None, js="() => fastviz.begin()", outputs=[self.page.status, self.page.stop], **PRIVATE)
        return [self.practise.submit(self.run, self.practise, preprocess=False, **options)]

    def open(self, wish):
        """A lesson in a language."""
        try:
            return learn.board(*learn.asked(wish))
        except BadRequest:
            return gr.skip()

    def run(self, request: gr.Request, wish):
        """Runs a lesson's request as any comparison is run: the tab Pictures shows it too, and Stop ends it."""
        page = self.page
        try:
            lesson, _ = learn.asked(wish)
            wanted = page.profile.check(lesson.request())
            able()
        except BadRequest as refusal:
            yield page.turned_away(request, refusal)
            return
        for told in page.follow(request, lambda visit: visit.take(page.job(wanted)), page.board, page.cleared()):
            yield told | ({self.live: learn.here(lesson, page.visits.of(request).job)} if page.board in told else {})
