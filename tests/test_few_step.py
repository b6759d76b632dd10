"""Solvers with fewer steps: how many, which, and that each carries nothing over."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from fastviz.methods import few_step
from fastviz.trace import Context

SOLVERS = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


def test_plan_without_a_row_to_match():
    assert few_step.plan(few_step.Knobs(steps=15), 50) == 15
    assert few_step.plan(few_step.Knobs(steps=0), 50) == 50


@given(st.integers(1, 100), st.floats(0.01, 60), st.floats(0.01, 2), st.floats(0, 3))
def test_plan_comes_closest_to_the_time_to_match(steps, seconds, per_step, fixed):
    planned = few_step.plan(few_step.Knobs(match="tome"), steps, seconds, per_step, fixed)
    gaps = {n: abs(fixed + n * per_step - seconds) for n in range(1, steps + 1)}
    assert gaps[planned] <= min(gaps.values()) + 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_takes_over_betas_and_spacing(tiny_pipe, solver):
    own = tiny_pipe.scheduler
    with few_step.attach(tiny_pipe, few_step.Knobs(solver=solver), context := Context(6)) as pipe:
        scheduler = pipe.scheduler
        assert type(scheduler) is SOLVERS[solver] and scheduler is not own
        scheduler.set_timesteps(6)
    assert tiny_pipe.scheduler is own
    assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod)
    assert len(scheduler.timesteps) == 6 and int(scheduler.timesteps[0]) == 999  # trailing: begins at pure noise
    assert context.acted["few_step"] == {("scheduler", step) for step in range(6)}


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_solvers_meet_at_the_exact_solution(tiny_pipe, solver):
    """Data that are one Gaussian: the network that knows it is linear, and the probability flow has a closed form."""
    mean, spread = 0.3, 0.5
    with few_step.attach(tiny_pipe, few_step.Knobs(solver=solver), Context(100)) as pipe:
        scheduler = pipe.scheduler
    scheduler.set_timesteps(100)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = start.clone()
    for t in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[t].double()
        noise = (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * spread ** 2 + 1 - alpha)
        x = scheduler.step(noise, t, x).prev_sample
    first = scheduler.alphas_cumprod[999].double()
    exact = mean + spread * (start - first.sqrt() * mean) / (first * spread ** 2 + 1 - first).sqrt()
    assert (x - exact).abs().mean() < 0.03


def test_a_solver_carries_nothing_over_to_the_next_run(tiny_pipe):
    def outs():
        with few_step.attach(tiny_pipe, few_step.Knobs(), Context(3)) as pipe:
            pipe.scheduler.set_timesteps(3)
            x = torch.ones(1, 4, 8, 8)
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(0.1 * x, t, x).prev_sample
        return x
    assert torch.equal(outs(), outs())


def test_neutral_knobs_act_on_nothing(tiny_pipe):
    with few_step.attach(tiny_pipe, few_step.NEUTRAL, context := Context(3)) as pipe:
        assert dict(pipe.scheduler.config) == dict(tiny_pipe.scheduler.config)
    assert not context.acted
