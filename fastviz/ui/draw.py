"""Pictures as controls: a sheet to draw on, a picture to start from, and a quick picture that follows the pen."""

import gradio as gr

from .. import given, sketch
from ..methods import few_step, full, sdxs
from ..models import MODELS, load
from ..request import BadRequest
from . import worker
from .board import png
from .job import LOST
from .parts import PRIVATE, view

QUICK = 6  # steps, where nothing draws in one


def asked(told):
    """The pictures among the controls' values, as Request takes them. BadRequest for what is no picture."""
    start = told.get("start") or {}  # a place that was emptied holds "" or nothing
    if not isinstance(start, dict) or start.keys() - {"picture", "strength"}:
        raise BadRequest("start", f"{given.START}.")
    found = {"sketch": picture(told.get("sketch"), "sketch"), "start": picture(start.get("picture"), "start picture")}
    return found | {"strength": start.get("strength")} if found["start"] else found


def picture(text, name):
    """The bytes of a data URI; None where there is none."""
    if not text:
        return None
    try:
        return given.from_text(text, name)
    except ValueError as told:
        raise BadRequest(name.split()[0], str(told)) from None


def values(request):
    """What the controls hold for a request: data URIs."""
    drawing, start = (data and f"data:image/png;base64,{given.text(data)}" for data in (request.sketch, request.start))
    return {"sketch": drawing, "start": start and {"picture": start, "strength": request.strength}}


def quick(model):
    """How a quick picture by `model`, of the table, is made: (stack, steps, what is said of it)."""
    if not sdxs.missing(model.folder):
        return (sdxs.Knobs(),), 1, "One step of the student"
    if model.most_steps == 1:
        return (full.Knobs(),), 1, "One step of the model"
    steps = min(QUICK, model.most_steps)
    return (few_step.Knobs(solver="dpm", steps=steps),), steps, f"{steps} quick steps"


class Draw:
    """The controls, within the page's column of controls. Without a network that reads sketches there is no sheet; where
    visitors share a pipeline nothing follows the pen: a run would come before its turn."""

    def __init__(self, page):
        self.page, self.sheet = page, None
        self.follows = not worker.LENT and not page.turns
        if sketch.ready():
            with gr.Column(elem_id="ask-sketch"):
                self.sheet = page.ask.add("sketch", view("sheet", None))
                self.glance = view("glance", None if self.follows else {"never": True})
        with gr.Column(elem_id="ask-start"):
            page.ask.add("start", view("start", None))

    def wire(self, controls):
        if self.sheet and self.follows:
            self.sheet.submit(self.follow, controls, self.glance, preprocess=False, concurrency_limit=1,
                              trigger_mode="always_last", **PRIVATE)

    def follow(self, *values):
        """A quick picture of what is drawn now; nothing while something is being timed."""
        try:
            wanted = self.page.ask.request(values)
        except BadRequest as refusal:
            return {"says": str(refusal)}
        if wanted.sketch is None:
            return {"says": ""}
        from .. import run  # torch and diffusers: the page must not wait for them

        if run.LOCK.locked() or LOST.is_set():
            return gr.skip()
        try:
            stack, steps, says = quick(MODELS[wanted.model])
            found = run.generate(load(wanted.model), wanted, stack, steps)
        except Exception as error:
            from ..compare import sentence

            return {"says": sentence(error, "The quick picture", wanted)}
        return {"picture": png(found.image), "quick": steps == 1, "says": f"{says}, {found.seconds:.1f} s"}
