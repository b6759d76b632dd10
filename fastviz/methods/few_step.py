"""Fewer sampling steps with a better solver: the simplest way to be fast, and the row every other method must beat.

Changed: the scheduler and the number of steps. DDIM: Song et al., arXiv 2010.02502. DPM-Solver++ 2M: Lu et al.,
arXiv 2211.01095, algorithm 2. UniPC: Zhao et al., arXiv 2302.04867.
"""

from contextlib import contextmanager
from dataclasses import dataclass

from ..knobs import choice, number, text
from ..patch import replaced

KEY = "few_step"
TITLE = "Fewer steps"
SAYS = "Takes larger steps with a solver that was made for them."
PAPER = ("Lu et al., DPM-Solver++", "https://arxiv.org/abs/2211.01095")
ROLE = "scheduler"


@dataclass(frozen=True)
class Knobs:
    """steps = 0 keeps the request's own number of steps; match names a row whose time decides instead."""
    solver: str = choice("dpm", {"ddim": "DDIM", "dpm": "DPM-Solver++ 2M", "unipc": "UniPC"},
                         "The rule for one step. DDIM is the full model's own and looks at one step alone; the other "
                         "two look back at the step before, and so can take larger ones.")
    steps: int = number(15, 0, 100, "Fewer is faster and further from the full model. 0 keeps the full number.")
    match: str = text("", "Name of a row, such as tome: takes the number of steps that comes closest to its time.")


NEUTRAL = Knobs(solver="ddim", steps=0)


def plan(knobs, steps, seconds=None, per_step=None, fixed=0.0):
    """The number of steps that a row with these knobs takes.

    steps: the request's. For a row with `match`, all in s: seconds: time of the row that it names; per_step: the full
    model's time of one step; fixed: its time outside the steps. Never more than `steps`, never fewer than 1.
    """
    if knobs.match:
        return max(1, min(steps, round((seconds - fixed) / per_step)))
    return knobs.steps or steps


def scheduler(solver, config):
    """A fresh scheduler of the chosen kind with the betas and the spacing of `config`; it has no past."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if solver == "ddim":
        return DDIMScheduler.from_config(config)
    if solver == "dpm":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    return UniPCMultistepScheduler.from_config(config)


def kinds(knobs, steps):
    """One label per step: all steps do the same work."""
    return (knobs.solver,) * steps


@contextmanager
def attach(pipe, knobs, context):
    """Modifications:
     - pipe.scheduler
    The number of steps is the run's own: see `plan`. With neutral knobs the fresh scheduler is the full model's."""
    if knobs != NEUTRAL:
        context.acted[KEY] |= {("scheduler", step) for step in range(context.steps)}
    with replaced(pipe, scheduler=scheduler(knobs.solver, pipe.scheduler.config)):
        yield pipe
