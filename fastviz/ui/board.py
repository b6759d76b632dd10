"""What the page shows, as plain values: Rows and progress, ready for JSON. Never as HTML."""

import base64
import io
import math

from ..methods import method_of
from ..request import stack_text
from ..store import picture_name, save_png


def png(image, recipe=None):
    """A picture as a data URI, with its recipe inside. No file on disk, nobody else's eyes. None stays None."""
    if image is None:
        return None
    file = io.BytesIO()
    save_png(image, file, recipe) if recipe else image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def waiting(index, stack):
    """A row before its first run: its place on the page is reserved."""
    return {"index": index, "stack": stack_text(stack), "title": " + ".join(method_of(knobs).TITLE for knobs in stack),
            "state": "waiting", "picture": None}


def measured(value):
    """A metric, a float or the reason why there is none -> {"value", "why"}."""
    if isinstance(value, str) or value is None:
        return {"value": None, "why": value or "not measured"}
    return {"value": value, "why": ""} if math.isfinite(value) else {"value": None, "why": "the pictures are identical"}


def shown(row, recipe, before):
    """A Row as plain values. before: what was shown of it; its pictures are kept: repeats give the same."""
    told = {name: getattr(row, name) for name in ("index", "stack", "title", "steps", "repeats", "error")}
    told |= {"state": "failed" if row.error else "done" if row.done else "timed", "picture": before["picture"]}
    if row.image is None:
        return told
    if before["picture"] is None:
        told |= {"picture": png(row.image, recipe), "file": picture_name(row),
                 "difference": png(row.difference_map), "lpips_map": png(row.lpips_map)}
    else:
        told |= {name: before[name] for name in ("file", "difference", "lpips_map")}
    if row.seconds is None:
        return told
    numbers = ("seconds", "spread", "parts", "per_step", "speedup", "flops", "flops_share", "peak_bytes", "kept_bytes", "applied",
               "acted", "found", "lpips_name")
    return told | {name: getattr(row, name) for name in numbers} | {
        "metrics": {name: measured(value) for name, value in row.metrics.items()}}


def span(seconds):
    """A duration in words, no finer than it is known."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {round(seconds)} s"
    return f"about {round(seconds / 60)} min"


def where(progress):
    """One line on what runs now."""
    runs = f", run {progress.repeat + 1} of {progress.repeats}" if progress.repeats > 1 else ""
    step = f"step {progress.step} of {progress.steps}" if progress.step else "getting ready"
    return f"{progress.title}{runs}: {step}"
