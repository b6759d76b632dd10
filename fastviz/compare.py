"""One request -> Rows, the full model first: warm-up, interleaved timed repeats, FLOPs, metrics, errors as sentences."""

import logging
import platform
import sys
import types
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image

from . import cost, metrics, models
from .glimpse import Glimpses
from .methods import few_step, method_of, sdxs, steps_of
from .patch import Refused
from .request import BadRequest, stack_keys, stack_text
from .run import Failed, Lost, Run, Stopped, failure, generate, guided, warm
from .trace import Trace

log = logging.getLogger(__name__)
KEPT = 256  # rows that are remembered as warm
warmed = {}  # (model, size, guided, stack, whether there is a sketch) -> seconds per step in its warm-up


@dataclass
class Row:
    """One line of a comparison, as it stands after `repeats` runs; done: no later Row of this index follows.

    error: a sentence, and then nothing measured after it is filled in; seconds: median, spread (min, max), parts
    {"text", "denoising", "decoder"} and per_step medians, all in s; speedup: full model's median over this one's, None
    when there is none to speak of; flops: of one picture, flops_share: of the full model's; peak_bytes: of memory, the
    largest of the runs, None where unknown; kept_bytes and acted {method key: bytes; (blocks, steps)}: see run.Run;
    applied: whether every method of the stack changed something; metrics {"lpips", "psnr" (dB), "ssim", "match"}: a
    float or the reason why there is none; run: the last Run.
    """
    index: int
    stack: str
    title: str
    steps: int
    image: Image.Image | None = None
    error: str | None = None
    done: bool = False
    repeats: int = 0
    seconds: float | None = None
    spread: tuple = ()
    parts: dict = field(default_factory=dict)
    per_step: tuple = ()
    speedup: float | None = None
    flops: int | None = None
    flops_per_step: tuple = ()
    flops_share: float | None = None
    peak_bytes: int | None = None
    kept_bytes: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    lpips_name: str = ""
    found: dict = field(default_factory=dict)
    lpips_map: Image.Image | None = None
    difference_map: Image.Image | None = None
    acted: dict = field(default_factory=dict)
    applied: bool = False
    run: Run | None = None


class Progress(NamedTuple):
    """Where a comparison is. row, repeat, step count from 0, except that step is the number of steps done; seconds_left
    is None until the first step was timed."""
    row: int
    rows: int
    title: str
    repeat: int
    repeats: int
    step: int
    steps: int
    seconds_left: float | None


@dataclass
class Lane:
    """A row under way. steps: None until the row that it matches was timed; pace: seconds per step as last seen;
    counts: see cost.flops; score: see metrics.score."""
    index: int
    stack: tuple
    steps: int | None
    pace: float | None = None
    runs: list = field(default_factory=list)
    counts: dict | None = None
    score: dict | None = None
    error: str | None = None

    @property
    def title(self):
        return " + ".join(method_of(knobs).TITLE for knobs in self.stack)

    @property
    def seconds(self):
        return median(run.seconds for run in self.runs)


def solver_of(stack):
    """The few_step.Knobs of a stack, or None."""
    return next((knobs for knobs in stack if method_of(knobs) is few_step), None)


def lane_of(index, stack, request):
    knobs = solver_of(stack)
    return Lane(index, stack, None if knobs and knobs.match else steps_of(stack, request.steps))


def settle(lane, lanes):
    """The number of steps of a row that matches another's time, from the medians so far."""
    full, match = lanes[0], solver_of(lane.stack).match
    other = next(other for other in lanes if stack_keys(other.stack) == match and other.steps)
    if other.error:
        raise Refused(f"There is no time to match: {other.error}")
    per_step = median(median(run.steps) for run in full.runs)
    fixed = median(run.text + run.decode for run in full.runs)
    lane.steps = few_step.plan(solver_of(lane.stack), full.steps, other.seconds, per_step, fixed)


def prepare(pipe, request, lane, lanes, stop):
    """Settles the steps of `lane` and warms it up. The full model is warmed up in every request, because a device that
    was idle is slow at first and the reference would suffer; other rows once per process, without their scheduler, and
    those that change only the scheduler never: their network is the full model's."""
    if lane.steps is None:
        settle(lane, lanes)
    stack = tuple(knobs for knobs in lane.stack if method_of(knobs).ROLE != "scheduler")
    if not stack:
        return
    key = request.model, request.size, guided(pipe, request), stack, request.sketch is not None
    if lane.index == 0 or key not in warmed:
        run = warm(pipe, request, stack, steps=lane.steps, stop=stop)
        if len(warmed) >= KEPT:
            warmed.pop(next(iter(warmed)))
        warmed[key] = run and run.steps[-1]
    lane.pace = warmed[key]


def time_once(pipe, request, lane, lanes, on_progress, stop, on_glimpse):
    """One more run of `lane`. After the first: its FLOPs and metrics."""
    def on_step(i, steps):
        on_progress(progress(lane, lanes, request.repeats, i))

    on_step(0, lane.steps)
    if not lane.runs:
        prepare(pipe, request, lane, lanes, stop)
    seen = on_glimpse and not lane.runs and pipe.device.type == "cpu"  # see Glimpses: elsewhere no decoder need be loaded
    look = None if not seen else Glimpses(lambda picture: on_glimpse(lane.index, picture), sdxs.previewing(pipe))
    run = generate(pipe, request, lane.stack, lane.steps, on_step=on_step, stop=stop, glimpse=look)
    lane.runs.append(run)
    lane.pace = run.seconds / len(run.steps)
    if lane.score is None:
        lane.counts = cost.flops(pipe, request, lane.stack, lane.steps)
        lane.score = metrics.score(lanes[0].runs[0].image, run.image, request.prompt, request.model)


def progress(lane, lanes, repeats, step):
    """seconds_left counts a row of unknown pace at the full model's, and one of unknown steps at all of them."""
    pace = lanes[0].pace
    left = [((each.pace or pace) if pace else None, (each.steps or lanes[0].steps) * (repeats - len(each.runs)))
            for each in lanes if not each.error]
    seconds = sum(pace * steps for pace, steps in left) - (lane.pace or pace) * step if pace else None
    steps = lane.steps or lanes[0].steps
    return Progress(lane.index, len(lanes), lane.title, len(lane.runs), repeats, step, steps, seconds)


def sentence(error, title, request):
    """What people read about an error. One that is neither ours nor the machine's goes to the log with its traceback."""
    if isinstance(error, (Failed, Refused, BadRequest)):
        return str(error)
    if failed := failure(error, request):
        return str(failed)
    log.error("%s", title, exc_info=error)
    return f"{title} could not be run ({type(error).__name__}): the program's log says more."


def row_of(lane, full, repeats):
    """The Row of `lane` as it stands."""
    row = Row(lane.index, stack_text(lane.stack), lane.title, lane.steps or full.steps, error=lane.error,
              done=lane.error is not None or len(lane.runs) == repeats, repeats=len(lane.runs))
    if lane.error or not lane.runs:
        return row
    run, runs, score = lane.runs[-1], lane.runs, dict(lane.score)
    row.run, row.image, row.acted, row.kept_bytes = run, runs[0].image, run.acted, run.kept_bytes
    row.applied = lane is full or all(method_of(knobs).KEY in run.acted for knobs in lane.stack)
    row.seconds, row.spread = lane.seconds, (min(r.seconds for r in runs), max(r.seconds for r in runs))
    row.parts = {"text": median(r.text for r in runs), "denoising": median(sum(r.steps) for r in runs),
                 "decoder": median(r.decode for r in runs)}
    row.per_step = tuple(median(times) for times in zip(*(r.steps for r in runs)))
    row.speedup = full.seconds / row.seconds if row.applied else None
    row.flops, row.flops_per_step = cost.total(lane.counts), lane.counts["steps"]
    row.flops_share = row.flops / cost.total(full.counts)
    row.peak_bytes = max((r.peak_bytes for r in runs if r.peak_bytes is not None), default=None)
    row.metrics = {name: score[name] for name in ("lpips", "psnr", "ssim", "match")}
    row.lpips_name, row.found = score["lpips_name"], score["found"]
    if lane is not full:  # a picture beside itself has nothing to show
        row.lpips_map, row.difference_map = score["lpips_map"], score["difference_map"]
    return row


def compare(request, *, on_progress=None, stop=None, on_glimpse=None):
    """Runs a Request and yields a Row after each run, the full model's first, then A B C, A B C. A later Row replaces the
    earlier one of the same index. Rows that match another's time begin when all others are done.

    on_progress(Progress): before and after every step; stop(): asked after every step, True raises Stopped here;
    on_glimpse(row, picture): now and then in a row's first run, what it aims at, see glimpse.py.
    A row that fails says so in `error`, and the others go on; without the full model there is nothing to compare with,
    and every row says so. Raises verified.BadModel when the model cannot be loaded, run.Lost when the device is lost.
    """
    pipe = models.load(request.model)
    lanes = [lane_of(i, stack, request) for i, stack in enumerate(request.methods)]
    matching = [lane for lane in lanes if lane.steps is None]
    for group in ([lane for lane in lanes if lane.steps], matching):
        for _ in range(request.repeats):
            for lane in [lane for lane in group if not lane.error]:
                attempt(pipe, request, lane, lanes, on_progress or (lambda progress: None), stop, on_glimpse)
                yield row_of(lane, lanes[0], request.repeats)
                if lanes[0].error:
                    yield from without_reference(lanes, request.repeats)
                    return


def attempt(pipe, request, lane, lanes, on_progress, stop, on_glimpse):
    """time_once, with any error that other rows survive turned into the lane's sentence."""
    try:
        time_once(pipe, request, lane, lanes, on_progress, stop, on_glimpse)
    except (Stopped, Lost):
        raise
    except Exception as error:
        lane.error = sentence(error, lane.title, request)


def without_reference(lanes, repeats):
    for lane in lanes[1:]:
        lane.error = lane.error or f"The full model, which this row is measured against, failed: {lanes[0].error}"
        yield row_of(lane, lanes[0], repeats)


def traced(request, row, *, on_step=None, stop=None, megabytes=128):
    """Runs a finished row once more and records what happens inside it -> Trace of at most `megabytes`; see lens.py and
    each method's Recorded classes for its channels. The picture is the row's. on_step, stop and errors as of
    run.generate."""
    trace = Trace(megabytes * 2**20)
    generate(models.load(request.model), request, request.methods[row.index], row.steps, on_step=on_step, stop=stop, trace=trace)
    return trace


def final(rows):
    """The last Row of each index, in order."""
    return [row for _, row in sorted({row.index: row for row in rows}.items())]


def environment(pipe=None):
    """What the times were measured on, for people: device, dtype, attention kernel, threads and versions."""
    import diffusers

    device, dtype = (pipe.device, pipe.unet.dtype) if pipe else (where := models.device(), models.precision(where))
    return told_of(pipe) | {"device": device_name(device), "dtype": str(dtype).removeprefix("torch."),
            "attention kernel": kernel(pipe, device, dtype), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "diffusers": diffusers.__version__,
            "python": platform.python_version(), "system": platform.platform()}


def told_of(pipe):
    """What must be said of a distilled model beside its figures: {"model": sentence} or {}."""
    note = next((model.note for model in models.MODELS.values() if models.is_loaded(model.key, pipe)), "")
    return {"model": note} if note else {}


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.processor()})"
    return f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"  # the same name is sold with half of the speed


def cpu_name():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kernel(pipe, device, dtype):
    """The kernel that scaled_dot_product_attention chooses for the U-Net's first attention, or for 8 heads of 64; "unknown" where
    torch does not tell, as on MPS."""
    attention = next((part for part in pipe.unet.modules() if hasattr(part, "to_q")), None) if pipe else None
    heads, width = (attention.heads, attention.to_q.out_features // attention.heads) if attention else (8, 64)
    probe = torch.empty(2, heads, 1024, width, device=device, dtype=dtype)
    try:
        chosen = torch._fused_sdp_choice(probe, probe, probe)
    except NotImplementedError:
        return "unknown"
    return torch.nn.attention.SDPBackend(chosen).name.lower().replace("_", " ")


class _Callable(types.ModuleType):
    """This module under its function's name: `from fastviz import compare` gives the same thing, and it can be called,
    whether or not the module was imported before."""

    def __call__(self, request, *, on_progress=None, stop=None, on_glimpse=None):
        return compare(request, on_progress=on_progress, stop=stop, on_glimpse=on_glimpse)


sys.modules[__name__].__class__ = _Callable
