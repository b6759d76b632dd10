"""A found schedule on prompts that its search never saw, through the same code that the page runs, beside HURRY, an even
schedule, and simply fewer steps of DDIM and DPM-Solver++ 2M for as much work or as much time."""

from statistics import mean, median

import numpy as np

from .. import cost, metrics
from ..methods import attention_reuse, few_step, full
from ..methods.attention_reuse import hurry
from ..run import generate, warm
from . import schedules
from .sampler import EQUAL

TIMED = 16  # prompts whose times decide how many steps take as long
DRAWS = 10_000  # of the bootstrap


def stacks(gamma, maps, keep):
    """{row: its Knobs} of what has as many steps as the full model."""
    k, steps = gamma.count(0), len(gamma)
    rows = {"HURRY": hurry(steps, k), "even": schedules.even(steps, k), "found": gamma}
    return {"full": full.Knobs()} | {
        name: attention_reuse.Knobs(maps=maps, keep=keep, schedule=schedules.text(row)) for name, row in rows.items()}


def work(pipe, request, knobs, steps):
    """(FLOP of one picture, of one step, of all but the steps)."""
    counts = cost.flops(pipe, request, (knobs,), steps)
    return cost.total(counts), counts["steps"][0], counts["text"] + counts["decoder"]


def equal_steps(pipe, requests, knobs, equal):
    """How many steps of the full model are as much as the found schedule's run: equal "flops", or "seconds", from the
    medians of interleaved runs. One fewer than all at most: in as many steps the solver is the full model itself."""
    request, steps, match = requests[0], requests[0].steps, few_step.Knobs(match=attention_reuse.KEY)
    if equal == "flops":
        _, per_step, fixed = work(pipe, request, full.Knobs(), steps)
        return few_step.plan(match, steps - 1, work(pipe, request, knobs, steps)[0], per_step, fixed)
    warm(pipe, request, (knobs,))
    pairs = [[generate(pipe, request, (one,), steps) for one in (full.Knobs(), knobs)] for request in requests[:TIMED]]
    fixed = median(run.text + run.decode for run, _ in pairs)
    per_step = (median(run.seconds for run, _ in pairs) - fixed) / steps  # with what a scheduler takes
    return few_step.plan(match, steps - 1, median(run.seconds for _, run in pairs), per_step, fixed)


def one(pipe, request, rows, few, on_step=lambda i, n: None):
    """One prompt: {row: {"psnr", "lpips", "seconds"}}. `few`: the number of steps that the two solvers take."""
    rows = {name: (knobs, request.steps) for name, knobs in rows.items()}
    rows |= {f"{solver} {few}": (few_step.Knobs(solver=solver, steps=few), few) for solver in ("ddim", "dpm")}
    runs = {name: generate(pipe, request, (knobs,), steps, on_step=on_step) for name, (knobs, steps) in rows.items()}
    reference, told = runs["full"].image, {}
    for name, run in runs.items():
        score = metrics.score(reference, run.image, request.prompt, request.model)
        told[name] = {"psnr": min(EQUAL, score["psnr"]), "lpips": score["lpips"], "lpips_name": score["lpips_name"],
                      "seconds": run.seconds}
    return told


def interval(gains):
    """95 % bootstrap interval of the mean of paired gains: [low, high]."""
    draws = np.random.default_rng(0).choice(np.asarray(gains), (DRAWS, len(gains)))
    return [float(x) for x in np.quantile(draws.mean(1), (0.025, 0.975))]


def summary(rows):
    """From `one` of every prompt: {row: {"psnr", "lpips", "seconds"}}, means but for the seconds, which are medians, and
    {other row: {"gain", "interval"}}: the found schedule's PSNR less the other's, dB, over the pairs."""
    told, gains = {}, {}
    for name in rows[0]:
        psnr, lpips = ([row[name][figure] for row in rows] for figure in ("psnr", "lpips"))
        told[name] = {"psnr": mean(psnr), "lpips": lpips[0] if isinstance(lpips[0], str) else mean(lpips),
                      "seconds": median(row[name]["seconds"] for row in rows)}
        if name not in ("full", "found"):
            pairs = [row["found"]["psnr"] - row[name]["psnr"] for row in rows]
            gains[name] = {"gain": mean(pairs), "interval": interval(pairs)}
    return told, gains
