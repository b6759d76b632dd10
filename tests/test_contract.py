"""What every method promises, whatever it does: parametrised over METHODS and, for each scheduler, a stack of all that
stack with it."""

import gc
import itertools
import random
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from torch.nn.modules.module import register_module_forward_pre_hook

from fastviz.cost import flops, total
from fastviz.methods import METHODS, attached, full, steps_of
from fastviz.request import Request, stack_keys
from fastviz.run import Failed, Stopped, context_of, encoded, generate, network_inputs
from fastviz.trace import CHANNELS, SCHEMA, Trace, load

STEPS = 4
REQUEST = Request("a cat on the beach", seed=11, steps=STEPS, size=128, guidance=3.0)
FULL = (full.Knobs(),)
STACKS = [(method.Knobs(),) for method in METHODS]
PATCHES = tuple(method.Knobs() for method in METHODS if method.ROLE == "patch" and method is not full)
EVERY = STACKS + [(method.Knobs(), *PATCHES) for method in METHODS if method.ROLE == "scheduler"]
every_stack = pytest.mark.parametrize("stack", EVERY, ids=stack_keys)


pytestmark = pytest.mark.usefixtures("tiny_home")  # coefficients and weights for the methods that need some


def latents(pipe, stack, **told):
    return generate(pipe, REQUEST, stack, STEPS, **told).latents


@pytest.fixture(scope="module")
def alone(tiny_pipe):
    """Latents of each stack in a process in which nothing else went wrong."""
    return {stack: latents(tiny_pipe, stack) for stack in EVERY}


def fingerprint(pipe):
    """All that attaching could leave behind: classes, entries of every module, hooks, weights, parts of the pipe."""
    parts = {f"pipe.{name}": value for name, value in vars(pipe).items() if not name.startswith("_")}
    for root in ("unet", "vae", "text_encoder"):
        for name, module in getattr(pipe, root).named_modules():
            parts[f"{root}.{name} class"] = type(module)
            for entry, value in vars(module).items():
                parts[f"{root}.{name} {entry}"] = value
                if isinstance(value, dict):
                    parts.update({f"{root}.{name} {entry} {key}": one for key, one in value.items()})
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    return parts, weights


def assert_unchanged(pipe, before):
    parts, weights = before
    now, weights_now = fingerprint(pipe)
    assert sorted(now.keys() ^ parts.keys()) == []  # not `==` of the whole: pytest would spend minutes on explaining the difference
    assert [name for name in parts if now[name] is not parts[name] and not same_value(now[name], parts[name])] == []
    assert all(torch.equal(weights[name], weights_now[name]) for name in weights)


def same_value(a, b):
    return type(a) is type(b) and isinstance(a, (int, float, str, bool, tuple)) and a == b


@contextmanager
def raising(pipe, error, step=2):
    """Makes the network that runs raise `error` in the middle of its `step`-th call, when every method is at work."""
    calls = []

    def hook(module, args):
        if isinstance(module, UNet2DConditionModel):
            calls.append(module)
        if len(calls) == step and isinstance(module, CrossAttnUpBlock2D):
            raise error

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def step_by_step(pipe, stack, context):
    """A loop of the network and the pipeline's scheduler that yields the latents after every step."""
    x = torch.randn(1, 4, *context.grid, generator=torch.Generator().manual_seed(9))
    told = network_inputs(encoded(pipe, REQUEST.prompt, True, pipe.device), REQUEST.size)
    with attached(pipe, stack, context) as ready:
        scheduler = type(ready.scheduler).from_config(ready.scheduler.config)
        scheduler.set_timesteps(context.steps)
        for step, t in enumerate(scheduler.timesteps):
            context.start(step)
            with torch.no_grad():
                pair = ready.unet(sample=x.repeat(2, 1, 1, 1), timestep=t, **told).sample
            without, given = pair.chunk(2)
            x = scheduler.step(without + 3 * (given - without), t, x).prev_sample
            yield x


def context(pipe):
    return context_of(pipe, REQUEST, STEPS, (16, 16))


def leave_normally(pipe, stack):
    latents(pipe, stack)


def leave_by_an_error_of_the_step_callback(pipe, stack):
    def on_step(i, n):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        latents(pipe, stack, on_step=on_step)


def leave_out_of_memory(pipe, stack):
    with raising(pipe, torch.OutOfMemoryError("simulated")), pytest.raises(Failed, match="Out of memory"):
        latents(pipe, stack)


def leave_by_keyboard_interrupt(pipe, stack):
    with raising(pipe, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        latents(pipe, stack)


def leave_by_closing_a_generator(pipe, stack):
    steps = step_by_step(pipe, stack, context(pipe))
    next(steps), next(steps), next(steps)
    steps.close()


def leave_by_losing_a_generator(pipe, stack):
    steps = step_by_step(pipe, stack, context(pipe))
    next(steps), next(steps), next(steps)
    del steps
    gc.collect()


def leave_by_stop(pipe, stack):
    done = []
    with pytest.raises(Stopped):
        latents(pipe, stack, on_step=lambda i, n: done.append(i), stop=lambda: len(done) == 3)


EXITS = [value for name, value in list(globals().items()) if name.startswith("leave_")]


@every_stack
@pytest.mark.parametrize("leave", EXITS, ids=lambda leave: leave.__name__)
def test_detach_is_exact(tiny_pipe, alone, stack, leave):
    before = fingerprint(tiny_pipe)
    leave(tiny_pipe, stack)
    assert_unchanged(tiny_pipe, before)
    assert torch.equal(latents(tiny_pipe, FULL), alone[FULL])


def test_the_fingerprint_sees_what_is_left_behind(tiny_pipe):
    before = fingerprint(tiny_pipe)
    attn = next(part for part in tiny_pipe.unet.modules() if hasattr(part, "to_q"))
    attn.forward = attn.forward
    with pytest.raises(AssertionError):
        assert_unchanged(tiny_pipe, before)
    del attn.forward
    assert_unchanged(tiny_pipe, before)


@every_stack
def test_global_random_states_are_untouched(tiny_pipe, stack):
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    latents(tiny_pipe, stack)
    left = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    assert left == (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())


@every_stack
def test_the_same_request_twice_is_equal(tiny_pipe, alone, stack):
    torch.manual_seed(random.randrange(1000))
    assert torch.equal(latents(tiny_pipe, stack), alone[stack])


@every_stack
def test_a_request_is_equal_after_any_other_method_ran(tiny_pipe, alone, stack):
    for other in EVERY:
        latents(tiny_pipe, other)
        assert torch.equal(latents(tiny_pipe, stack), alone[stack]), f"differs after {stack_keys(other)}"


def test_methods_differ(alone):
    """The equalities above would mean little if all methods gave one picture."""
    found = list(alone.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.KEY)
def test_neutral_knobs_are_the_full_model(tiny_pipe, method):
    run = generate(tiny_pipe, REQUEST, (method.NEUTRAL,), STEPS)
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(REQUEST.seed))
    plain = tiny_pipe(REQUEST.prompt, height=128, width=128, num_inference_steps=STEPS, guidance_scale=3.0,
                      latents=start, output_type="latent").images
    assert torch.equal(run.latents, plain) and run.acted == {}


@pytest.mark.parametrize("method", [method for method in METHODS if method is not full], ids=lambda method: method.KEY)
def test_default_knobs_do_less_work_and_say_where(tiny_pipe, method):
    knobs, request = method.Knobs(), Request(REQUEST.prompt, steps=20, size=128, guidance=3.0)
    steps = steps_of((knobs,), request.steps)
    assert total(flops(tiny_pipe, request, (knobs,), steps)) < total(flops(tiny_pipe, request, FULL, request.steps))
    blocks, acted_steps = generate(tiny_pipe, REQUEST, (knobs,), STEPS).acted[method.KEY]
    assert blocks > 0 and 0 < acted_steps <= STEPS


@every_stack
def test_traced_equals_timed_and_stays_within_its_budget(tiny_pipe, alone, stack):
    whole, small = Trace(), Trace(budget=5000)
    assert torch.equal(latents(tiny_pipe, stack, trace=whole), alone[stack])
    assert torch.equal(latents(tiny_pipe, stack, trace=small), alone[stack])
    for trace in (whole, small):
        held = sum(array.nbytes for cells in trace.channels.values() for array in cells.values())
        assert trace.nbytes == held <= trace.budget
    assert not whole.dropped and bool(small.dropped) == (whole.nbytes > small.budget)
    whole.channels.pop("attention.self")  # recorded where there is room, from the start
    assert "attention.self" not in small.channels
    kept = sum(map(len, small.channels.values())) + sum(small.dropped.values())
    assert kept == sum(map(len, whole.channels.values()))


def last(steps):
    *_, found = steps
    return found


@every_stack
def test_what_is_recorded_is_documented(tiny_pipe, stack, tmp_path):
    trace = Trace()
    generate(tiny_pipe, REQUEST, stack, steps_of(stack, REQUEST.steps), trace=trace)
    trace.save(tmp_path / "run.npz")
    found = load(tmp_path / "run.npz")
    assert found.about["schema"] == SCHEMA and found.about["tokens"] and [told.pop("key") for told in found.about["methods"]] == stack_keys(stack).split("+")
    ends = {"block": r"transformer_blocks\.\d+", "transformer": r"attentions\.\d+", "scheduler": "scheduler", "attn1": r"attn1", "attn2": "attn2", "": ""}
    for channel, cells in found.channels.items():
        layer, shape, dtype, _ = CHANNELS[channel]
        for (step, name), array in cells.items():
            assert (str(array.dtype), array.ndim) == (dtype, len(shape.split())), channel
            assert any(re.search(f"(^|[.]){ends[part]}$", name) for part in layer.split(", ")) and 0 <= step < found.about["steps"]
            if shape == "h w":
                block = next(each for each in found.about["grids"] if f"{each}.".startswith(f"{name.removesuffix('.attn1').removesuffix('.attn2')}."))
                assert list(array.shape) == found.about["grids"][block]


@pytest.mark.parametrize("outer, inner", list(itertools.permutations(METHODS, 2)), ids=lambda method: method.KEY)
def test_leaving_an_inner_method_keeps_the_outer_one_working(tiny_pipe, outer, inner):
    stack = (outer.Knobs(),)
    expected = last(step_by_step(tiny_pipe, stack, context(tiny_pipe)))
    shared, others = context(tiny_pipe), {outer.ROLE, inner.ROLE} <= {"scheduler", "weights"}
    steps = step_by_step(tiny_pipe, stack, shared)
    next(steps)
    with attached(tiny_pipe, (inner.Knobs(),), context(tiny_pipe) if others else shared):  # two that never stack share no run
        pass
    assert torch.equal(last(steps), expected)
