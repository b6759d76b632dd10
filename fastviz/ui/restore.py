"""Settings that come back: from a link, or from the recipe in a picture that was saved here."""

import dataclasses
import json

import gradio as gr

from .. import sketch, store
from ..models import MODELS
from ..request import BadRequest
from .parts import IDLE, refused


class Restore:
    """Handlers that give the progress line and then the controls. profile: what this installation allows."""

    def __init__(self, profile, ask):
        self.profile, self.ask = profile, ask

    def from_recipe(self, text):
        """The controls as a picture's recipe tells. Only its text came here, never the picture."""
        return self.restored(lambda: parse(text), store.read_recipe, "Settings restored from the picture.")

    def from_link(self, request: gr.Request):
        """The controls as the page's address tells. Without a prompt in it nothing is said: by the time that this answer
        arrives, something else may have begun."""
        told = {name: value for name, value in dict(request.query_params).items() if not name.startswith("__")}
        if "prompt" in told:
            return self.restored(lambda: told, store.from_query, "Settings restored from the link.")
        return [gr.skip()] * (1 + len(self.ask.controls))

    def restored(self, find, read, sentence):
        """find(): what a recipe or a link tells; read(told): its Request."""
        try:
            told = find()
            request, why = followable(read(told))
            values = self.ask.settings(self.profile.check(request))
        except BadRequest as refusal:
            return refused(refusal, "These settings cannot be restored. "), *[gr.skip()] * len(self.ask.controls)
        return {**IDLE, "state": "restored", "sentence": " ".join(filter(None, (sentence, store.lacking(told), why, "Press Run.")))}, *values


def followable(request):
    """(the request, ""), or without its drawing where the model cannot follow one, and the sentence that says so."""
    if request.sketch and sketch.missing(MODELS[request.model].folder):
        return dataclasses.replace(request, sketch=None), "Its drawing is left out: this model cannot follow a sketch here."
    return request, ""


def parse(text):
    """A recipe's JSON text -> dict. BadRequest when it is something else."""
    try:
        told = json.loads(text) if isinstance(text, str) and len(text) <= 40_000 else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise BadRequest("recipe", "This picture holds no recipe that can be read.")
    return told
