"""What the page and its tabs are made of: places that a script fills, buttons on and off, and lines of progress."""

import logging
import os
import tempfile
from pathlib import Path

import gradio as gr

from . import health
from .board import span
from .report import html

log = logging.getLogger(__name__)
PRIVATE = dict(api_visibility="private", show_progress="hidden")
ON, OFF = gr.Button(interactive=True), gr.Button(interactive=False)
IDLE = {"state": "idle", "sentence": "", "share": None, "left": "", "row": None}
DRAW = "const draw = () => fastviz.%s(element, props.value, trigger, props); watch('value', draw); draw();"


def view(name, value=None, **options):
    """A place that one of the scripts in web/ fills, from plain values."""
    return gr.HTML(value, html_template=f"<div class='{name}'></div>", js_on_load=DRAW % name, apply_default_css=False,
                   elem_id=name, **options)


def waiting(ahead, each=None):
    """Whose turn it is not yet. each: seconds that a turn took lately, where that is known."""
    what = "comparison is" if ahead == 1 else "comparisons are"
    left = f"{span(ahead * each)} left" if each else ""
    return {**IDLE, "state": "waiting", "sentence": f"Waiting: {ahead} {what} first.", "left": left}


def refused(refusal, before=""):
    """What the page is told about a refusal, which is counted and logged."""
    health.REFUSALS.labels(refusal.field).inc()
    log.info("Refused: %s.", refusal.field, extra={"event": "refused", "field": refusal.field})
    return {**IDLE, "state": "refused", "field": refusal.field, "sentence": f"{before}{refusal}"}


def report_of(job, look=None):
    """A comparison's report in the temp folder, as the state of its button."""
    try:
        path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), f"fastviz-seed-{job.request.seed}.html")
        path.write_text(html(job, look))
        return gr.DownloadButton(value=str(path), interactive=True)
    except Exception:  # a full disk must not take the pictures with it
        log.exception("The report could not be written.")
        return gr.DownloadButton(value=None, interactive=False)
