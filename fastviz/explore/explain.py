"""Why is it not faster? Where each row's time goes, what of the full model's time its methods can touch at all, and how
that share grows with the picture.

A row runs once more with a profiler (torch.profiler) at a few of its steps. The profiler makes everything slower, small
operations most: so only the shares are taken from it, and put on the row's own measured times.
"""

import os
from dataclasses import dataclass, field

from torch.profiler import ProfilerActivity, profile

from .. import cost, models
from ..compare import sentence
from ..methods import method_of
from ..patch import Refused
from ..run import Lost, Stopped, generate
from .classes import CLASSES, spent

PROFILED = 6  # steps of a row
SIZES = (256, 384, 512, 768, 1024)  # px at which the touched share of the FLOPs is counted
DECODER = "decoder"  # what `touched` calls it, and its class


@dataclass
class Breakdown:
    """Where one row's time went. error: a sentence, and then nothing after it is filled in; seconds: {class: s}, which
    add up to the row's measured time; own: {word: s}, what of it is the method's own work; profiled: the steps whose shares
    were measured.

    For all but the full model: saved, seconds of the full model's work that the row did without; touched, the share of the
    full model's time that the row's methods can save anything of; bound: how many times as fast it were if all that took no
    time (Amdahl), math.inf where that is everything; growth: {px: the same share, of FLOPs}.
    """
    index: int
    stack: str
    title: str
    steps: int
    error: str | None = None
    seconds: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)
    saved: float | None = None
    profiled: tuple = ()
    speedup: float | None = None
    touched: float | None = None
    bound: float | None = None
    growth: dict = field(default_factory=dict)


# Which steps

def chosen(labels, most=PROFILED):
    """Steps to profile, in order: of each label as many as fit, spread over its steps, not the first step where another
    can stand for it; with more labels than `most`, steps spread over all."""
    steps = {}
    for step, label in enumerate(labels):
        steps.setdefault(label, []).append(step)
    groups = list(steps.values()) if len(steps) <= most else [list(range(len(labels)))]
    each = max(1, most // len(groups))
    return sorted(step for group in groups for step in spread(group, each))


def spread(steps, count):
    """`count` of the steps, at most all, at the middles of as many equal stretches; the first step only if it is alone."""
    steps = [step for step in steps if step] or steps
    count = min(count, len(steps))
    return [steps[(2 * i + 1) * len(steps) // (2 * count)] for i in range(count)]


def stand_in(step, label, labels, profiled):
    """The profiled step whose shares are taken for `step`: the nearest, of its own label if there is one."""
    return min(profiled, key=lambda other: (labels[other] != label, abs(other - step), other))


# One row

def activities(device):
    kinds = {"cpu": [], "cuda": [ProfilerActivity.CUDA], "xpu": [ProfilerActivity.XPU]}
    if device.type not in kinds:
        raise Refused(f"The profiler cannot tell where time goes on {device.type}: run this on a CPU, CUDA or XPU.")
    return [ProfilerActivity.CPU, *kinds[device.type]]


def profiles(pipe, request, stack, steps, wanted, on_step, stop):
    """{step: {(class, part): s}} of one more run, profiled at the steps `wanted`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read by the first profile: it tells every start and stop, and that there is no GPU
    watching, found, kinds = [], {}, activities(pipe.device)

    def turn(step):
        while watching:
            before, recorder = watching.pop()
            recorder.stop()
            found[before] = spent(recorder.events(), len(kinds) > 1)
        if step in wanted:
            watching.append((step, profile(activities=kinds)))
            watching[0][1].start()

    def moved(i, n):
        turn(i)
        on_step(i, n)

    try:
        turn(0)
        generate(pipe, request, stack, steps, on_step=moved, stop=stop, profiled=True)
    finally:
        turn(None)
    return found


def shares(spans):
    whole = sum(spans.values()) or 1.0
    return {place: seconds / whole for place, seconds in spans.items()}


def seconds_of(row, labels, found):
    """{(class, part): s} of a whole picture: each step's measured time by the shares of its stand-in, the measured times
    of text encoder and decoder, all together the row's measured time."""
    told, total = {step: shares(spans) for step, spans in found.items()}, {}
    for step, took in enumerate(row.per_step):
        for place, share in told[stand_in(step, labels[step], labels, found)].items():
            total[place] = total.get(place, 0.0) + took * share
    fit = row.parts["denoising"] / sum(total.values())
    total = {place: seconds * fit for place, seconds in total.items()}
    total |= {("text", ""): row.parts["text"], ("decoder", ""): row.parts["decoder"]}
    whole = sum(total.values())  # medians of parts need not add up to the median of their sums
    return {place: seconds * row.seconds / whole for place, seconds in total.items()}


def by_class(seconds):
    return {kind: sum(took for (other, _), took in seconds.items() if other == kind) for kind in CLASSES}


# What it can touch

def reach(row):
    """Share of the steps at which the row's methods did something."""
    return max((steps / row.steps for _, steps in row.acted.values()), default=0.0)


def inside(part, names):
    return any(f"{part}.".startswith(f"{name}.") for name in names)


def names_touched(pipe, stack, size):
    """Names of what a stack can save work in at `size` px, as its methods' `touched` tell; without that, whole steps."""
    grid = (size // pipe.vae_scale_factor,) * 2
    return sorted({name for knobs in stack for name in getattr(method_of(knobs), "touched", lambda *told: [""])(pipe.unet, grid, knobs)})


def touched_time(pipe, request, stack, row, full):
    """The share of the full model's time that a stack can touch. full: `seconds_of` its row."""
    names, steps = names_touched(pipe, stack, request.size), reach(row)

    def spared(kind, part):
        if kind in ("text", DECODER):
            return float(kind in names)
        return 1.0 if "" in names else steps * inside(part, names)

    return sum(took * spared(*place) for place, took in full.items()) / sum(full.values())


def touched_flops(pipe, request, stack, row, size):
    """The same share of the full model's FLOPs at `size` px."""
    names = names_touched(pipe, stack, size)
    counts = cost.inside(pipe, request, size, [name for name in names if name != DECODER])
    part = counts["inside"] * request.steps * (1.0 if "" in names else reach(row)) + counts["decoder"] * (DECODER in names)
    return part / (counts["text"] + counts["step"] * request.steps + counts["decoder"])


def bound(touched):
    return 1 / (1 - touched) if touched < 1 else float("inf")


# All rows

def explain(request, rows, *, on_step=lambda row, step, steps: None, stop=None):
    """Yields a Breakdown for each finished Row of compare(request), the full model's first. Rows that failed are left
    out. on_step(row, step, steps): where the profiled run is. A row that cannot be profiled says so in `error`.
    Raises run.Stopped, run.Lost."""
    pipe, full = models.load(request.model), None
    for row in (row for row in rows if not row.error and row.seconds is not None):
        told = Breakdown(row.index, row.stack, row.title, row.steps, speedup=row.speedup)
        try:
            seconds = fill(told, pipe, request, row, full, lambda i, n, row=row: on_step(row, i, n), stop)
        except (Stopped, Lost):
            raise
        except Exception as error:
            told.error = sentence(error, row.title, request)
            seconds = None
        yield told
        if row.index == 0:
            if seconds is None:
                return
            full = seconds


def fill(told, pipe, request, row, full, on_step, stop):
    """Fills in a row's Breakdown and returns its seconds by (class, part)."""
    stack = request.methods[row.index]
    labels = cost.kinds(stack, row.steps)
    found = profiles(pipe, request, stack, row.steps, chosen(labels), on_step, stop)
    seconds = seconds_of(row, labels, found)
    told.seconds, told.profiled = by_class(seconds), tuple(sorted(found))
    told.own = {word: took for (kind, word), took in seconds.items() if kind == "own"}
    if full:
        told.saved = sum(full.values()) - sum(seconds.values()) + told.seconds["own"]
        told.touched = touched_time(pipe, request, stack, row, full)
        told.bound = bound(told.touched)
        told.growth = {size: touched_flops(pipe, request, stack, row, size) for size in SIZES}
    return seconds


def plain(told):
    """A Breakdown as values that json writes; a bound without end is None."""
    return vars(told) | {"bound": None if told.bound == float("inf") else told.bound, "verdict": verdict(told),
                        "growth": {str(size): share for size, share in told.growth.items()}}


def table(told):
    """Breakdowns as text: one line per class of work with a column per row, then what each row can touch."""
    shown = [each for each in told if not each.error]
    kinds = [kind for kind in CLASSES if any(each.seconds[kind] for each in shown)]
    lines = [["share of its time", *(each.stack for each in shown)]]
    lines += [[CLASSES[kind], *(f"{each.seconds[kind] / sum(each.seconds.values()):.1%}" for each in shown)] for kind in kinds]
    words = list(dict.fromkeys(word for each in shown for word in each.own))
    lines += [[f"s of own work, {word}", *(f"{each.own[word]:.3f}" if word in each.own else "-" for each in shown)] for word in words]
    lines += [["s saved elsewhere", *("-" if each.saved is None else f"{each.saved:.3f}" for each in shown)]]
    lines += [["seconds", *(f"{sum(each.seconds.values()):.3f}" for each in shown)],
              ["times as fast", *("-" if each.speedup is None else f"{each.speedup:.2f}" for each in shown)],
              ["touches, of full's time", *("-" if each.touched is None else f"{each.touched:.1%}" for each in shown)],
              ["times as fast at best", *("-" if each.bound is None else f"{each.bound:.2f}" for each in shown)]]
    lines += [[f"touches, FLOPs, {size} px", *(f"{each.growth[size]:.1%}" if each.growth else "-" for each in shown)] for size in SIZES]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
                     for line in lines)


def verdict(told):
    """One sentence: what a row can touch, what it could gain at best, what it gained, and what that cost."""
    if told.error:
        return told.error
    whole = sum(told.seconds.values())
    if told.touched is None:
        kind = max(told.seconds, key=told.seconds.get)
        return f"Its largest part: {CLASSES[kind].lower()}, {told.seconds[kind] / whole:.0%} of the time."
    best = f"{told.bound:.2f} times as fast at best" if told.bound < 1000 else "nothing would be left at best"
    got = "it was not applied" if not told.speedup else f"it is {told.speedup:.2f} times as fast" + (", slower" if told.speedup < 0.995 else "")
    if told.bound and told.speedup and told.speedup > told.bound:
        got += ", more than that, so these times vary: time more runs"
    own = f" {balance(told)}" if told.own else ""
    return f"It touches {told.touched:.0%} of the full model's time: {best}. Here {got}.{own}"


def balance(told):
    """One sentence: what a method's own work costs, and what it saves."""
    spent, saves = told.seconds["own"], f"saves {told.saved:.2f} s" if told.saved > 0 else "saves nothing"
    if len(told.own) == 1:
        return f"Its own work, {next(iter(told.own))}, takes {spent:.2f} s and {saves} elsewhere."
    words = " and ".join(f"{took:.2f} s for {word}" for word, took in told.own.items())
    return f"Its own work takes {spent:.2f} s, {words}, and {saves} elsewhere."
