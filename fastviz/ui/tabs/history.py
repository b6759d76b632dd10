"""The tab History: a visitor's kept runs, to search, open, delete and lay side by side."""

import logging

import gradio as gr

from ...request import BadRequest
from .. import health
from ..job import Job
from ..parts import IDLE, ON, PRIVATE, view
from ..shelf import UNREAD
from ..sweep import Sweeping

log = logging.getLogger(__name__)


class Tab:
    """page.shelf: None where nothing can be kept; the tab then says so."""

    def __init__(self, page):
        self.page, self.shelf = page, page.shelf
        with gr.Tab("History", id="history"):
            self.history = view("history", None) if self.shelf else gr.HTML(f"<p class='note'>{page.fault}</p>", apply_default_css=False)
        self.shown, self.begun = [self.history] if self.shelf else [], {}

    def wire(self, options):
        if self.shelf:
            page, everything = self.page, [*options["outputs"], self.page.strip, *self.page.ask.controls.values()]
            page.blocks.load(self.arrive, page.token, self.history, js="() => fastviz.visitor()", preprocess=False, queue=False, **PRIVATE)
            page.wish.submit(self.recall, page.wish, everything, preprocess=False, queue=False, trigger_mode="always_last", **PRIVATE)
        return []

    def kept(self, work, session, status):
        """The list after a piece of work, a comparison added to it. Whatever goes wrong must not take the work with it."""
        if not self.shelf or not isinstance(work, (Job, Sweeping)):
            return {}
        try:
            if isinstance(work, Job) and work.files and not self.shelf.keep(session, work):
                return {}
            health.note("history", "")
            return {self.history: self.shelf.listed(session)}
        except Exception:
            failed()
            return {self.page.status: status | {"sentence": f"{status['sentence']} It is not in the history: the server's log says why."}}

    def keep(self, job):
        """Keeps what a program asked for. The figures are its answer: it hears of no fault of the disk."""
        try:
            if self.shelf and any(row.image for row in job.rows.values()):
                self.shelf.keep(None, job)
        except Exception:
            failed()

    def arrive(self, token, request: gr.Request):
        """A visitor makes himself known, and sees his runs."""
        return self.shelf.arrive(request.session_hash, token)

    def recall(self, wish, request: gr.Request):
        """What a visitor wishes of the history: search, open, delete, lay two side by side."""
        wish, session = wish if isinstance(wish, dict) else {}, request.session_hash
        try:
            return self.opened(request, wish) if wish.get("do") == "open" else {self.history: self.shelf.granted(session, wish)}
        except BadRequest as refusal:
            return {self.history: self.shelf.listed(session, wish.get("text", ""), sentence=str(refusal))}
        except OSError:
            log.exception("The history could not be read.")
            return {self.history: self.shelf.listed(session, sentence=UNREAD)}

    def opened(self, request, wish):
        """A kept comparison or sweep on the page again: pictures, numbers and controls."""
        page = self.page
        if page.visits.of(request).busy:
            raise BadRequest("history", "Something is running: wait for its end, or stop it first.")
        work = self.shelf.opened(request.session_hash, wish)
        status = {page.status: {**IDLE, "state": "restored", "sentence": "Opened from the history."}}
        if isinstance(work, Sweeping):
            if page.sweeps is None:
                raise BadRequest("history", "This page offers no sweeps.")
            return page.sweeps.left(work) | status | {page.strip: gr.Tabs(selected="sweeps")}
        page.visits.now(request).take(work)
        controls = dict(zip(page.ask.controls.values(), page.ask.settings(work.request), strict=True))
        return controls | page.cleared() | page.pictures.shows(work) | status | {
            page.run: ON, page.strip: gr.Tabs(selected="pictures"), page.download: gr.DownloadButton(value=None, interactive=False)}


def failed():
    """Within an except block: tells the operator that a run could not be kept."""
    log.exception("A run could not be kept.")
    health.note("history", "Runs cannot be kept: the server's log says why.")
