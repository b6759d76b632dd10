"""Finds the fastest way that stays close enough to the full model, or the closest within a time: proposed on a few prompts
and seeds, then verified on others, because the best of many on the same pictures looks better than it is."""

import dataclasses
from dataclasses import dataclass, field

from ..methods import atedm, attention_reuse, few_step, tome
from ..models import MODELS
from ..request import BadRequest, stack_text
from . import sweep as sweeping
from .plan import Plan

PROMPTS = ("a big lemon in the ocean", "an owl at night", "a cat and a pizza on the beach", "a fox in the snow", "a panda under the sea",
           "a cactus and a donut in a meadow", "a dog", "a mushroom in the forest")  # of the embedded model's language
FINALISTS = 4  # proposals that are verified
SHARES = (0.1, 0.16, 0.24, 0.36, 0.5, 0.7)  # of the steps, for fewer steps
SEED = 1000  # of the first noise that verifies; those that propose begin at 0


@dataclass
class Answer:
    """proposed, verified: rows of sweep.figures, best first, of the finalists alone where verified; best: the first
    verified one that keeps the bound, or None; said: one sentence."""
    proposed: list
    verified: list = field(default_factory=list)
    best: dict | None = None
    said: str = ""


def candidates(steps, methods=None):
    """The stacks that are tried, each once: methods over their main knob, alone and with fewer steps. methods: keys that
    may take part, all by default."""
    fewer = [(few_step.Knobs(solver=solver, steps=max(1, round(share * steps))),) for share in SHARES for solver in ("dpm", "unipc", "ddim")]
    patches = [(tome.Knobs(ratio=ratio),) for ratio in (0.25, 0.5)]
    patches += [(attention_reuse.Knobs(share=share, keep=keep),) for share in (0.25, 0.5) for keep in ("map", "output")]
    patches += [(atedm.Knobs(ratio=ratio),) for ratio in (0.4, 0.63)]
    both = [patch + row for patch in patches if patch[0] in (tome.Knobs(ratio=0.25), attention_reuse.Knobs(share=0.25, keep="output"))
            for row in fewer if row[0].solver == "dpm"]
    allowed = [row for row in fewer + patches + both
               if methods is None or {part.partition("(")[0] for part in stack_text(row).split("+")} <= set(methods)]
    return tuple(dict.fromkeys(allowed))


def halves(prompts):
    """(to propose on, to verify on)."""
    if len(prompts) < 4:
        raise BadRequest("prompt", "Give 4 prompts or more: half of them are kept back to verify what was found.")
    return tuple(prompts[:len(prompts) // 2]), tuple(prompts[len(prompts) // 2:])


def ranked(rows, lpips=None, seconds=None):
    """The rows that keep the bound on average, the fastest first, or the closest first where the bound is on time."""
    limit, wish, most = ("lpips", "seconds", lpips) if lpips is not None else ("seconds", "lpips", seconds)
    kept = [row for row in rows if row["figures"][limit] and row["figures"][wish] and row["figures"][limit][0] <= most]
    return sorted(kept, key=lambda row: row["figures"][wish][0])


def keeps(row, lpips=None, seconds=None):
    """Whether a verified row keeps the bound with its whole interval."""
    name, most = ("lpips", lpips) if lpips is not None else ("seconds", seconds)
    value, _, high = row["figures"][name]
    return (value if high is None else high) <= most


def rows_of(told):
    """sweep.figures without the full model, as values that json writes."""
    return [row | {"stack": stack_text(row["stack"])} for row in sweeping.figures(told) if row["at"]["row"] != "full"]


def search(history, owner, *, lpips=None, seconds=None, prompts=PROMPTS, seeds=2, methods=None, model="stickers", steps=50, guidance=None,
           size=None, on_progress=lambda what, *place: None, on_sweep=lambda sweep: None, stop=None):
    """-> (Answer, the Sweep that proposed, the Sweep that verified or None). Exactly one of lpips and seconds is the bound.
    seeds: noises per prompt, others for verifying; methods: keys that may take part, by default all that do something on the
    model, and never others. Everything is kept as a sweep's cells, so a search goes on where it stopped. on_progress(what,
    *sweep.run's place); on_sweep(sweep) whenever sweep.run yields. Raises what sweep.run does."""
    if (lpips is None) == (seconds is None):
        raise BadRequest("bound", "Give one bound: the largest LPIPS, or the most seconds.")
    mine, others = halves(prompts)
    able = [method.KEY for method in (few_step, attention_reuse, tome, atedm) if method.KEY in MODELS[model].methods]
    wanted = dict(lpips=lpips, seconds=seconds)
    stacks = candidates(steps, able if methods is None else set(methods) & set(able))
    first = Plan(mine, tuple(range(seeds)), stacks, (), model, steps, guidance, size)
    if not first.rows:
        raise BadRequest("methods", f"None of these methods is searched on {MODELS[model].title}: choose from {', '.join(able)}.")
    proposing = last(sweeping.run(first, history, owner, lambda *place: on_progress("proposing", *place), stop), on_sweep)
    answer = Answer(ranked(rows_of(proposing), **wanted))
    if not answer.proposed:
        answer.said = "Nothing keeps this bound: allow more, or try other methods."
        return answer, proposing, None
    names = [row["stack"] for row in answer.proposed[:FINALISTS]]
    finalists = tuple(row for row in first.rows if stack_text(row) in names)
    second = dataclasses.replace(first, prompts=others, seeds=tuple(range(SEED, SEED + seeds)), rows=finalists)
    verifying = last(sweeping.run(second, history, owner, lambda *place: on_progress("verifying", *place), stop), on_sweep)
    answer.verified = sorted(rows_of(verifying), key=lambda row: names.index(row["stack"]))
    good = [row for row in answer.verified if row["figures"]["seconds"] and row["figures"]["lpips"] and keeps(row, **wanted)]
    wish = "seconds" if lpips is not None else "lpips"
    answer.best = min(good, key=lambda row: row["figures"][wish][0], default=None)
    answer.said = sentence(answer, verifying)
    return answer, proposing, verifying


def last(sweeps, on_sweep):
    for sweep in sweeps:
        on_sweep(sweep)
    return sweep


def sentence(answer, verifying):
    units = len(verifying.plan.units)
    if answer.best is None:
        return f"None of the {len(answer.verified)} best proposals kept the bound with certainty on {units} other pictures: allow a little more."
    told = answer.best["figures"]
    return (f"{answer.best['stack']}: {told['seconds'][0]:.2f} s, {told['speedup'][0]:.2f} times as fast as the full model, LPIPS "
            f"{told['lpips'][0]:.3f}, verified on {units} pictures that the search did not see.")
