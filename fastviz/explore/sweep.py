"""Runs a Plan, picture by picture, and never the same one twice: what is finished is kept under a hash of all that it
depends on, so that a sweep goes on where it stopped, and only on the device and versions that it was begun with."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from .. import cost, fitted, metrics, models, verified
from ..compare import environment, lane_of, prepare, sentence
from ..methods import attention_reuse, olss, sdxs
from ..request import BadRequest, stack_text
from ..run import Lost, Stopped, generate
from ..store import recipe
from .history import SWEEP
from .plan import again
from .statistics import front, intervals

BESIDE = ("olss", "reuse", "sdxs")  # folders of what was fitted to a model, beside its own; sweeps follow no sketch
TIMED = ("device", "dtype", "attention kernel", "threads", "torch", "diffusers")  # what a time depends on
FIGURES = ("seconds", "speedup", "lpips", "psnr", "ssim", "match", "gflop")
MEASURED = ("steps taken", "seconds", "text", "denoising", "decoder", "gflop", "peak_bytes", "lpips", "lpips_name", "psnr", "ssim", "match", "error")
MEDIANS = ("seconds", "speedup")  # of several runs; the other figures are means
EQUAL = 100.0  # dB that stand for pictures without any difference


@dataclass
class Sweep:
    """A Plan on one device. cells: {(variant, unit): plain values or None} by their indices; keys: the same of hashes."""
    plan: object
    environment: dict
    keys: dict
    cells: dict = field(default_factory=dict)

    @property
    def id(self):
        return hashlib.sha256(json.dumps(sorted(self.keys.values())).encode()).hexdigest()[:32]


def key_of(request, files, told):
    """The hash of all that a picture and its time depend on. files: see `described`."""
    read = sorted({beside(knobs) for stack in request.methods for knobs in stack} - {None})
    parts = [recipe(request), files.get("model"), told, *(files.get(name) for name in read)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def beside(knobs):
    """Which of BESIDE a row with these knobs reads, or None."""
    if isinstance(knobs, attention_reuse.Knobs):
        return "reuse" if knobs.schedule == attention_reuse.SEARCHED else None
    return {olss.Knobs: "olss", sdxs.Knobs: "sdxs"}.get(type(knobs))


def described(pipe):
    """(what a time on this machine depends on, {"model" or one of BESIDE: hash of its files}): as `prepared` takes them. No
    hashes for a pipeline that was not loaded from a folder."""
    folder = fitted.folder(pipe)
    files = {"model": fitted.weights(folder)} | {name: digest(fitted.student(folder) if name == sdxs.KEY else fitted.beside(folder, name)) for name in BESIDE} if folder else {}
    return {name: value for name, value in environment(pipe).items() if name in TIMED}, files


def digest(folder):
    """The sha256 of the names and sha256 of all files in a folder, which need not be there."""
    told = [(path, path.stat()) for path in (Path(folder, name) for name in verified.contents(folder))]
    lines = [f"{path.relative_to(folder).as_posix()} {fitted.sha256(path, stat.st_size, stat.st_mtime_ns)}\n" for path, stat in told]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def prepared(plan, told, files):
    """The Sweep of a plan on the machine that `described` told of, nothing of it run."""
    keys = {(v, u): key_of(variant.request(plan, *unit), files, told)
            for u, unit in enumerate(plan.units) for v, variant in enumerate(plan.variants)}
    return Sweep(plan, told, keys)


def begun(plan, history, owner, told, files):
    """The same, with the cells that were kept and are no errors; from now on it is in the history."""
    sweep = prepared(plan, told, files)
    for place, key in sweep.keys.items():
        found = history.cell(key)
        sweep.cells[place] = None if found and found["error"] else found  # by now memory may be free, or a missing file made
    first = plan.variants[0].request(plan, *plan.units[0])
    entry = {"recipe": recipe(first), "environment": told, "plan": plan.plain(), "keys": list(sweep.keys.values())}
    history.enter(f"{owner_mark(owner)}{sweep.id}"[:40], owner, SWEEP, first, json.dumps(plan.plain()), told, entry, 0)
    return sweep


def run(plan, history, owner, on_progress=lambda done, cells, step, steps: None, stop=None):
    """Yields the Sweep at once and after each finished cell, the same object; cells that were kept come first, at no cost.

    on_progress(finished cells, all cells, step, steps): before and after every step. A cell that cannot be run has an
    "error", and is tried again by the next run of its sweep. The sweep is in the history from its start on, so that its cells
    are safe there.
    Raises run.Stopped, run.Lost, verified.BadModel.
    """
    pipe = models.load(plan.model)
    sweep = begun(plan, history, owner, *described(pipe))
    yield sweep
    for (v, u), key in sweep.keys.items():
        if sweep.cells[v, u] is None:
            done = sum(cell is not None for cell in sweep.cells.values())
            sweep.cells[v, u] = cell(pipe, sweep, v, u, history, lambda i, n, done=done: on_progress(done, len(sweep.keys), i, n), stop)
            yield sweep


def kept(history, told):
    """The Sweep that an entry of the history tells of, as far as it is finished; nothing is run or loaded."""
    plan = again(told["plan"])
    places = [(v, u) for u in range(len(plan.units)) for v in range(len(plan.variants))]
    keys = dict(zip(places, told["keys"], strict=True))
    return Sweep(plan, told["environment"], keys, {place: history.cell(key) for place, key in keys.items()})


def owner_mark(owner):
    """Two visitors' equal sweeps are two entries."""
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def cell(pipe, sweep, v, u, history, on_step, stop):
    """Runs one cell and keeps it -> its plain values."""
    try:
        wanted = asked(sweep, v, u, history)
    except BadRequest as error:
        return {"error": str(error)}
    return finish(sweep, v, u, history, *attempt(pipe, *wanted, on_step, stop))


def asked(sweep, v, u, history):
    """(request, stack, picture to measure it against) of a cell. BadRequest where there is no such picture."""
    variant = sweep.plan.variants[v]
    return variant.request(sweep.plan, *sweep.plan.units[u]), variant.stack, reference_of(sweep, v, u, history)


def finish(sweep, v, u, history, told, image):
    """Keeps what `attempt` answered -> its plain values."""
    history.finish(sweep.keys[v, u], told, image)
    return told


def attempt(pipe, request, stack, reference, on_step=lambda i, n: None, stop=None):
    """(plain values, picture or None) of one cell, its error among the values."""
    try:
        return measured(pipe, request, stack, reference, on_step, stop)
    except (Stopped, Lost):
        raise
    except Exception as error:
        return {"error": sentence(error, "This picture", request)}, None


def full_of(sweep, v):
    """The full model's variant with the settings of the variant v; itself where this is one."""
    return next(i for i, other in enumerate(sweep.plan.variants) if other.general == sweep.plan.variants[v].general)  # it comes first


def reference_of(sweep, v, u, history):
    """The full model's picture for the same settings, or None when this is it."""
    f = full_of(sweep, v)
    if f == v:
        return None
    if "seconds" not in (sweep.cells[f, u] or {}):
        raise BadRequest("sweep-rows", "The full model, which this picture is measured against, could not be run.")
    with Image.open(history.picture_of(sweep.keys[f, u])) as image:
        return image.convert("RGB")


def measured(pipe, request, stack, reference, on_step, stop):
    """(plain values, picture) of one run. `reference`: what it is measured against, None for itself."""
    lane = lane_of(1, stack, request)
    prepare(pipe, request, lane, [], stop)
    on_step(0, lane.steps)
    run = generate(pipe, request, stack, lane.steps, on_step=on_step, stop=stop)
    counts = cost.flops(pipe, request, stack, lane.steps)
    score = metrics.score(reference or run.image, run.image, request.prompt, request.model)
    told = {name: score[name] for name in ("lpips", "psnr", "ssim", "match")}
    told["psnr"] = min(EQUAL, told["psnr"])
    figures = {name: value for name, value in told.items() if isinstance(value, float)}
    return {"error": None, "steps": lane.steps, "seconds": run.seconds, "text": run.text, "denoising": sum(run.steps), "decoder": run.decode,
            "gflop": cost.total(counts) / 1e9, "peak_bytes": run.peak_bytes, "lpips_name": score["lpips_name"], **figures,
            "reasons": {name: value for name, value in told.items() if name not in figures}}, run.image


# What came out

def figures(sweep):
    """[{"at", "stack", "figures": {name: (value, low, high) or None}, "pictures": finished cells, "front"}] per variant:
    medians of times, means of the rest, 95 % intervals from a bootstrap paired over prompts and seeds. speedup: the full
    model's time of the same prompt and seed over this one's. front: nothing else is as fast and as close."""
    plan, units = sweep.plan, len(sweep.plan.units)
    cells = [[sweep.cells.get((v, u)) or {} for u in range(units)] for v in range(len(plan.variants))]
    full = [full_of(sweep, v) for v in range(len(plan.variants))]
    for v, row in enumerate(cells):
        cells[v] = [told | {"speedup": cells[full[v]][u]["seconds"] / told["seconds"]}
                    if "seconds" in told and "seconds" in cells[full[v]][u] else told for u, told in enumerate(row)]
    found = {name: intervals([[told.get(name, np.nan) for told in row] for row in cells], np.nanmedian if name in MEDIANS else np.nanmean)
             for name in FIGURES}
    best = front([(one and one[0], other and other[0]) for one, other in zip(found["seconds"], found["lpips"])])
    return [{"at": dict(variant.at), "stack": variant.stack, "figures": {name: found[name][v] for name in FIGURES},
             "pictures": sum("seconds" in told for told in cells[v]), "front": v in best} for v, variant in enumerate(plan.variants)]


def variables(plan):
    """{variable: its values as text, in order}, with "row", "prompt" and "seed"; those of one value too."""
    found = {}
    for variant in plan.variants:
        for name, value in variant.at:
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()} | {"prompt": list(plan.prompts), "seed": list(map(str, plan.seeds))}


def table(sweep):
    """One aligned line per variant, then what the figures are and where they were timed."""
    names = [name for name in variables(sweep.plan) if name not in ("prompt", "seed")]
    lines = [[*names, "pictures", "seconds", "times as fast", "LPIPS", "PSNR", "match", "GFLOP", ""]]
    for row in figures(sweep):
        told = [spelled(row["figures"][name], digits) for name, digits in (("seconds", 3), ("speedup", 2), ("lpips", 3), ("psnr", 1), ("match", 2))]
        work = row["figures"]["gflop"]
        lines.append([*(row["at"].get(name, "-") for name in names), str(row["pictures"]), *told, f"{work[0]:.1f}" if work else "-",
                      "front" if row["front"] else ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    errors = dict.fromkeys(told["error"] for told in sweep.cells.values() if told and told["error"])
    text += [f"Medians of times, means of the rest, with 95 % intervals over {len(sweep.plan.units)} pairs of prompt and seed.",
             "Timed on " + ", ".join(f"{name} {value}" for name, value in sweep.environment.items()) + ".", *errors]
    return "\n".join(text)


def spelled(figure, digits):
    if figure is None:
        return "-"
    value, low, high = figure
    return f"{value:.{digits}f}" + ("" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})")


def tables(sweep):
    """{file name: bytes} of one table, a line per picture: where it is, what was measured, on what. Times in s, peak_bytes of
    memory, None where nothing was measured; what varied is text in both files, and so is the seed. steps taken: those that
    ran, which need not be as many as a sweep over steps asked for."""
    names = [name for name in variables(sweep.plan) if name not in ("prompt", "seed")]
    names += ["prompt", "seed", *MEASURED, *dict.fromkeys([*TIMED, *sweep.environment])]
    lines = []
    for (v, u), told in sweep.cells.items():
        prompt, seed = sweep.plan.units[u]
        values = (told or {}) | {"steps taken": (told or {}).get("steps")}
        known = values | dict(sweep.plan.variants[v].at) | {"prompt": prompt, "seed": str(seed)} | sweep.environment
        lines.append({name: known.get(name) for name in names})
    text, file = io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    parquet.write_table(pyarrow.Table.from_pylist(lines), file)
    return {"cells.csv": text.getvalue().encode(), "cells.parquet": file.getvalue()}


def plain(sweep):
    """The variants' figures as values that json writes."""
    return {"plan": sweep.plan.plain(), "environment": sweep.environment,
            "variants": [row | {"stack": stack_text(row["stack"])} for row in figures(sweep)]}
