"""What happened inside the rows of a comparison: traced runs, made when they are asked for, and overlays drawn from them."""

import base64
import io
import math
import os
import re
import tempfile
from functools import lru_cache
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from .. import models, verified
from ..request import BadRequest
from ..store import picture_name
from ..trace import counterparts
from ..trace import load as load_trace
from . import figures, worker
from .board import png
from .job import Work

COLUMNS = 10  # of a sheet of frames
TOGETHER = 8  # estimates decoded at once
SKIPPED = "skipped"


def block_label(name, size):
    """`down_blocks.0.attentions.1.transformer_blocks.0` -> `Down 1, 32 x 32, transformer 2, layer 1`."""
    stage, numbers = name.partition("_block")[0].capitalize(), [int(number) + 1 for number in re.findall(r"[.](\d+)", name)]
    *where, transformer, layer = numbers
    place = " ".join([stage, *map(str, where)])
    return f"{place}, {size[0]} x {size[1]}, transformer {transformer}, layer {layer}"


def webp(image):
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def cut(sheet, steps):
    """The pictures on a sheet as `webp` gave it: list of PIL."""
    whole = Image.open(io.BytesIO(base64.b64decode(sheet.partition(",")[2])))
    across = min(COLUMNS, steps)
    wide, high = whole.width // across, whole.height // -(-steps // across)
    corners = ((step % across * wide, step // across * high) for step in range(steps))
    return [whole.crop((x, y, x + wide, y + high)) for x, y in corners]


def words_of(model, prompt):
    """[(position among the prompt's tokens, text)] of what the model read, punctuation left out."""
    tokens = models.tokenizer(models.MODELS[model].folder)
    told = tokens.backend_tokenizer.encode(prompt)
    pieces = [prompt[start:end] for start, end in told.offsets[1:-1]][:tokens.model_max_length - 2]
    return [(i, piece) for i, piece in enumerate(pieces) if any(letter.isalnum() for letter in piece)]


def estimates(pipe, channels, steps, stop=lambda: False):
    """The picture as the network estimated it at every step, by the small decoder where there is one: (steps, h, w, 4) uint8."""
    import torch

    from ..methods import sdxs
    from ..run import Stopped, pictures

    pipe = sdxs.previewing(pipe)
    latents, found = torch.stack([torch.from_numpy(channels["estimate"][step, ""]) for step in range(steps)]), []
    for some in latents.split(TOGETHER):
        if stop():
            raise Stopped
        found += [np.asarray(picture.convert("RGBA")) for picture in pictures(pipe, some)]
    return np.stack(found)


class Inside(Work):
    """Traced runs of a finished comparison's rows. views: what the page shows of each, in order; traces: {row index: .npz
    file}; grids: {block of the model's network: (h, w)}; theirs: {row index: {block of the model's: the row's own, or None
    where its network has none}}."""

    def __init__(self, job, megabytes=128):
        super().__init__("look inside")
        self.megabytes = megabytes
        self.job, self.asked = job, [row for _, row in sorted(job.rows.items()) if row.image is not None]
        self.views, self.traces, self.blocks, self.words, self.place, self.folder = [], {}, [], [], (0, 0, 1), None
        self.grids, self.theirs = {}, {}

    def compute(self):
        from ..patch import transformer_blocks

        self.folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        request, pipe = self.job.request, models.load(self.job.request.model)
        side = request.size // pipe.vae_scale_factor
        self.words = words_of(request.model, request.prompt)  # before the blocks: with these the page begins
        self.grids = {name: size for name, _, size in transformer_blocks(pipe.unet, (side, side))}
        self.blocks = [(name, block_label(name, size)) for name, size in self.grids.items()]
        for i, row in enumerate(self.asked):
            self.views.append(self.traced(pipe, i, row))
            self.fresh = True

    def traced(self, pipe, i, row):
        """One row's traced run, what it recorded on disk -> what the page shows of it."""
        from ..compare import sentence, traced
        from ..run import Lost, Stopped

        told = {"index": row.index, "title": row.title, "stack": row.stack, "steps": row.steps, "flops": list(row.flops_per_step),
                "error": None}
        path = self.folder / picture_name(row).replace(".png", ".npz")
        try:
            if worker.LENT:
                if self.stop.is_set():
                    raise Stopped
                self.watch(i, row.title, 0, row.steps)
                with worker.lasting(self.stop) as lasting:
                    trace, frames = worker.received(worker.LENT["look"](self.job.request, row, self.megabytes, lasting))
            else:
                trace = traced(self.job.request, row, stop=self.stop.is_set, megabytes=self.megabytes,
                               on_step=lambda step, steps: self.watch(i, row.title, step, steps))
                frames = estimates(pipe, trace.channels, row.steps, self.stop.is_set)
            trace.save(path)
            self.theirs[row.index] = counterparts(self.grids, trace.about["grids"])
            found = self.shown(row, trace, frames) | {"figures": figures.of_row(
                pipe, self.job.request, self.job.request.methods[row.index], trace.channels["estimate"].get((row.steps - 1, "")))}
        except (Stopped, Lost, verified.BadModel, gr.Error):  # the next row would meet the same
            raise
        except Exception as error:
            return told | {"error": sentence(error, row.title, self.job.request)}
        self.traces[row.index] = path  # last: what is here can be shown
        return told | found

    def watch(self, i, title, step, steps):
        self.place, self.sentence = (i, step, steps), f"Recording {title}: step {step} of {steps}"
        self.changed.set()

    def shown(self, row, trace, frames):
        from .. import views

        channels, lost = trace.channels, sum(trace.dropped.values())
        strips = views.strips(channels, list(self.theirs[row.index].values()), row.steps)
        work = views.work(row.flops_per_step, max(self.asked[0].flops_per_step))
        sheet = views.sheet(frames, COLUMNS)
        return {"picture": png(row.image), "timesteps": trace.about["timesteps"], "estimates": webp(sheet), "kinds": views.kinds(channels),
                "looks": views.looks(channels), "work": png(work),
                "strips": {key: {"label": label, "picture": png(strip), "says": says} for key, (label, strip, says) in strips.items()},
                "note": f"There was no room for {lost} records: some steps are missing." if lost else ""}

    def status(self):
        """The progress line."""
        told = {"state": self.state, "sentence": self.sentence, "share": None, "left": "", "row": None, "step": None}
        i, step, steps = self.place
        return told | ({"share": (i + step / steps) / len(self.asked)} if self.state == "running" and self.asked else {})

    def board(self):
        """Everything that does not depend on what is looked at."""
        return {"look": str(id(self)), "state": self.state, "rows": self.views, "columns": COLUMNS,
                "steps": max((row.steps for row in self.asked), default=1),
                "blocks": [{"name": name, "label": label} for name, label in self.blocks],
                "words": [{"token": token, "text": text} for token, text in self.words]}

    def overlay(self, wanted):
        """The overlays that the page asks for, as plain values: {"key", "rows": {index: {kind: {"sheet", "legend", "sentence",
        "captions"}}}}. wanted: {"key", "block", "show": "skipped", a word's token or a point [y, x], "base": see `below`, "kinds":
        {index: one of the row's kinds or, for a word or a point, of its looks}}. Of kinds there is the chosen one, or none where
        a row skipped nothing; of looks there are all, to be seen side by side; "removed" alone where a row's network has no such
        block. BadRequest for anything else."""
        rows = {str(row.index): {kind: told_frames(frames) for kind, frames in found.items()} for row, _, found, _ in self.drawn(wanted)}
        return {"key": wanted["key"], "rows": rows}

    def animations(self, wanted):
        """The same overlays as animated pictures in the temp folder, over what the page draws them on: their paths, which tell
        what is shown."""
        from .. import views

        found, blocks = [], [name for name, _ in self.blocks]
        for row, view, frames, kind in self.drawn(wanted):
            if kind in frames:
                show = wanted["show"]
                what = "point" if isinstance(show, list) else show if show == SKIPPED else dict(self.words)[show]
                name = f"{self.traces[row.index].stem}-{what}-{kind}-block-{blocks.index(wanted['block']) + 1}.webp"
                found.append(self.folder / re.sub(r"[^\w.-]", "_", name))
                views.animation(below(row, view, wanted), frames[kind].images, found[-1])
        return found

    def files(self):
        """Paths of the records that are still there: the temp folder is cleared when it is old or full."""
        return [str(path) for path in self.traces.values() if path.exists()]

    def drawn(self, wanted):
        """(row, its view, {kind: Frames}, the chosen kind) of every row that was recorded. BadRequest when the page asks for
        what there is not, or no longer."""
        from .. import views

        block, show, chosen = checked(wanted, [name for name, _ in self.blocks], [token for token, _ in self.words])
        here = [(row, view) for row, view in zip(self.asked, self.views) if row.index in self.traces]
        try:
            most = self.most(block, show) if isinstance(show, int) else None
            for row, view in here:
                if self.theirs[row.index][block] is None:
                    yield row, view, {"removed": views.removed(row.steps)}, None
                    continue
                kind, known = chosen.get(str(row.index)), view["kinds"] if show == SKIPPED else view["looks"] or {"now": ""}
                kind = kind if isinstance(kind, str) and kind in known else next(iter(known), None)
                drawn = known if show != SKIPPED else [kind] if known else []
                pictures = below(row, view, wanted) if show == SKIPPED and known else []
                yield row, view, {each: self.frames(row, block, show, each, most, pictures) for each in drawn}, kind
        except FileNotFoundError:
            raise BadRequest("inside", "The records were cleared to make room: look inside again.") from None

    def most(self, block, token):
        """Where the scale of a word's attention ends that all rows share, so that they can be compared by eye."""
        from .. import views

        own = ((path, self.theirs[index][block]) for index, path in self.traces.items())
        return max((views.highest(recorded(path, name), name, token) for path, name in own if name is not None), default=0.0)

    def frames(self, row, block, show, kind, most, pictures):
        """Frames of one row. kind: a kind or, for a word or a point, a look; most: see `most`; pictures: see `below`."""
        from .. import views

        block = self.theirs[row.index][block]
        channels = recorded(self.traces[row.index], block)
        if show == SKIPPED:
            return views.frames(channels, kind, block, row.steps, pictures)
        if isinstance(show, int):
            return views.words(channels, block, row.steps, show, kind, most)
        return views.point(channels, block, row.steps, show, kind)


@lru_cache(maxsize=16)
def recorded(path, block):
    """Channels of a traced run's file that belong to a block: another word or point of it asks for the same."""
    return load_trace(path, block).channels


def below(row, view, wanted):
    """What overlays lie on and take their colours from: the finished picture or, where "base" of what the page asks for says
    so, "estimates" of the row's steps. List of PIL, one for all steps or one for each."""
    return cut(view["estimates"], row.steps) if wanted.get("base") == "estimates" else [row.image]


def told_frames(frames):
    from .. import views

    return {"sheet": png(views.sheet(frames.images, COLUMNS)), "legend": frames.legend, "sentence": frames.sentence,
            "captions": frames.captions}


def checked(wanted, blocks, tokens):
    """(block, what to show, {index: kind}) of an overlay that the page asks for. BadRequest when it is none."""
    wrong = BadRequest("inside", "This view does not exist: choose a block, a word or a point of a picture.")
    if not isinstance(wanted, dict) or "key" not in wanted or wanted.get("block") not in blocks or not isinstance(wanted.get("kinds", {}), dict):
        raise wrong
    show = wanted.get("show")
    if show == SKIPPED or isinstance(show, int) and not isinstance(show, bool) and show in tokens:
        return wanted["block"], show, wanted.get("kinds", {})
    if isinstance(show, list) and len(show) == 2 and all(isinstance(x, (int, float)) and math.isfinite(x) and 0 <= x <= 1 for x in show):
        return wanted["block"], tuple(show), wanted.get("kinds", {})
    raise wrong
