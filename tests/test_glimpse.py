"""What a run aims at: exact where it can be, close elsewhere, and no part of what is timed or drawn."""

import pytest
import torch

from fastviz import glimpse, run
from fastviz.compare import compare
from fastviz.methods import few_step, full, sdxs
from fastviz.request import Request
from fastviz.trace import Trace

STEPS = 6
REQUEST = Request("a cat", seed=3, steps=STEPS, size=128, guidance=3.0, methods="full")


def aims(pipe, stack, steps=STEPS):
    found = {}
    run.generate(pipe, REQUEST, stack, steps, glimpse=lambda ready, before, after, i: found.update({i: glimpse.aim(ready.scheduler, before, after, i)}))
    return found


def test_ddim_aims_at_the_networks_estimate(tiny_pipe):
    trace = Trace()
    run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS, trace=trace)
    found = aims(tiny_pipe, (full.Knobs(),))
    assert sorted(found) == list(range(1, STEPS))
    for i in range(1, STEPS - 1):
        estimate = torch.from_numpy(trace.channels["estimate"][i, ""]).float()
        assert torch.allclose(found[i][0], estimate, atol=0.02 * float(estimate.abs().max())), i


@pytest.mark.parametrize("solver", ("dpm", "unipc"))
def test_the_last_aim_is_the_picture(tiny_pipe, solver):
    stack = (few_step.Knobs(solver=solver, steps=STEPS),)
    assert torch.equal(aims(tiny_pipe, stack)[STEPS - 1].cpu(), run.generate(tiny_pipe, REQUEST, stack, STEPS).latents)


def test_latents_that_grow_with_noise_are_not_scaled_twice():
    from diffusers import EulerDiscreteScheduler
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    torch.manual_seed(0)
    clean, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    before, after = (clean + scheduler.sigmas[i] * noise for i in (1, 2))
    assert torch.allclose(glimpse.aim(scheduler, before, after, 1), clean, atol=1e-3)


def test_a_run_that_is_looked_at_is_the_same_run(tiny_pipe, monkeypatch):
    monkeypatch.setattr(glimpse, "EVERY", 0.0)
    seen = []
    looked = run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS, glimpse=glimpse.Glimpses(seen.append))
    alone = run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS)
    assert torch.equal(looked.latents, alone.latents) and looked.image.tobytes() == alone.image.tobytes()
    assert len(seen) == STEPS - 1 and {picture.size for picture in seen} == {(64, 64)}


def test_a_look_is_outside_the_clock(tiny_pipe, monkeypatch):
    """The clock's own time stands still but for what a look takes: then no step may have taken any."""
    now = [0.0]
    monkeypatch.setattr(run.time, "perf_counter", lambda: now[0])

    def slow(*told):
        now[0] += 10
    done = run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS, glimpse=slow)
    assert now[0] == 10 * (STEPS - 1) and sum(done.steps) == 0


def test_looks_are_rare_and_never_on_a_gpu(tiny_pipe, monkeypatch):
    seen, clock = [], [100.0]
    monkeypatch.setattr(glimpse.time, "time", lambda: clock[0])
    looks = glimpse.Glimpses(seen.append)
    tiny_pipe.scheduler.set_timesteps(4)
    x = torch.zeros(1, 4, 16, 16)
    for seconds in (0.1, 1.0, 2.0, 0.1, 1.6):
        clock[0] += seconds
        looks(tiny_pipe, x, x, 1)
    assert len(seen) == 2

    class Elsewhere:
        device = torch.device("cuda")
    clock[0] += 10
    looks(Elsewhere, x, x, 1)
    assert len(seen) == 2


def test_a_comparison_shows_only_first_runs(tiny_pipe, monkeypatch):
    from fastviz import models
    monkeypatch.setattr(glimpse, "EVERY", 0.0)
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    seen = []
    request = Request("a cat", seed=3, steps=3, size=128, methods="full,few_step(steps=2)", repeats=2)
    list(compare(request, on_glimpse=lambda row, picture: seen.append(row)))
    assert seen == [0, 0, 1]


def test_one_step_has_nothing_to_show(tiny_pipe, tiny_home):
    assert aims(tiny_pipe, (sdxs.Knobs(),), 1) == {}


def test_a_look_may_have_the_small_decoder(tiny_pipe, tiny_home, monkeypatch):
    """As often as before, of what the run aims at, and the run stays as it is."""
    monkeypatch.setattr(glimpse, "EVERY", 0.0)
    decoding, found, seen, own = sdxs.previewing(tiny_pipe), [], [], []
    for shown, looks in ((seen, glimpse.Glimpses(seen.append, decoding)), (own, glimpse.Glimpses(own.append))):
        run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS, glimpse=looks)
    run.generate(tiny_pipe, REQUEST, (full.Knobs(),), STEPS, glimpse=lambda pipe, *told: found.append(glimpse.aim(pipe.scheduler, *told)))
    expected = [run.pictures(decoding, torch.nn.functional.avg_pool2d(aim, 2))[0] for aim in found]
    assert [each.tobytes() for each in seen] == [each.tobytes() for each in expected]
    assert len(own) == len(seen) == STEPS - 1 and all(a.tobytes() != b.tobytes() for a, b in zip(own, seen))
