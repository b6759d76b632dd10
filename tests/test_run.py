"""One run: the same picture as diffusers alone, an honest clock, and a pipeline left as it was after any exit."""

import threading
import time
import weakref
from contextlib import contextmanager
from operator import attrgetter

import pytest
import torch

from fastviz import run
from fastviz.methods import attention_reuse, few_step, full
from fastviz.patch import Refused, replaced
from fastviz.request import Request, parse_stack
from fastviz.trace import Trace

FULL = (full.Knobs(),)
SMALL = dict(size=128, steps=3, repeats=1)


def bare(pipe, request, steps):
    """What diffusers gives without anything of ours but the starting noise."""
    with replaced(pipe, scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config)):
        return pipe(request.prompt, height=request.size, width=request.size, num_inference_steps=steps,
                    guidance_scale=request.guidance, latents=run.noise(pipe, request)).images[0]


@contextmanager
def calls(module):
    """Counts the calls of a module: yields a list that grows."""
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def failing(module, error, at=1):
    """Lets the module's call number `at` raise `error`."""
    count = []

    def hook(*_):
        count.append(1)
        if len(count) == at:
            raise error
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def everything(pipe):
    """What must not change: all attributes of the pipeline and of all its modules, by identity, and the weights' versions."""
    modules = [module for part in (pipe.unet, pipe.vae, pipe.text_encoder) for module in part.modules()]
    return ({name: id(value) for name, value in pipe.__dict__.items()},
            [{name: id(value) for name, value in module.__dict__.items()} for module in modules],
            [parameter._version for module in modules for parameter in module._parameters.values() if parameter is not None],
            pipe.scheduler.num_inference_steps)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("size", [128, 256])
def test_the_full_model_is_diffusers_bit_for_bit(tiny_pipe, guidance, size):
    request = Request("a cat on the beach", seed=7, guidance=guidance, size=size)
    expected = bare(tiny_pipe, request, 2)
    with calls(tiny_pipe.unet) as steps, calls(tiny_pipe.text_encoder) as texts, calls(tiny_pipe.vae.decoder) as decoders:
        found = run.generate(tiny_pipe, request, FULL, 2)
    assert found.image.tobytes() == expected.tobytes() and found.image.size == (size, size)
    assert (len(steps), len(texts), len(decoders)) == (2, 2 if guidance > 1 else 1, 1)  # no work beyond diffusers' own


def test_the_latents_are_those_that_were_decoded(tiny_pipe):
    found = run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3)
    with torch.no_grad():
        picture = tiny_pipe.vae.decode(found.latents / tiny_pipe.vae.config.scaling_factor, return_dict=False)[0]
    assert tiny_pipe.image_processor.postprocess(picture)[0].tobytes() == found.image.tobytes()
    assert found.latents.shape == (1, 4, 16, 16) and found.latents.dtype == torch.float32


def test_the_seed_decides_and_nothing_else_is_drawn(tiny_pipe):
    before = torch.get_rng_state()
    first, again, other = (run.generate(tiny_pipe, Request("a cat", seed=seed, **SMALL), FULL, 3) for seed in (7, 7, 8))
    assert torch.equal(first.latents, again.latents) and first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert torch.equal(before, torch.get_rng_state())


def test_the_noise_is_the_cpu_generators(tiny_pipe):
    expected = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2**32 - 1))
    assert torch.equal(run.noise(tiny_pipe, Request("a cat", seed=2**32 - 1, **SMALL)), expected)


def test_every_step_is_told_and_timed(tiny_pipe):
    told = []
    found = run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3, on_step=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(found.steps) == 3 and min(found.text, found.decode, *found.steps) > 0
    assert found.seconds == found.text + sum(found.steps) + found.decode


@pytest.mark.parametrize("stack", ("full", "few_step(solver=dpm,steps=61)", "few_step(solver=unipc,steps=61)"))
def test_a_run_has_the_steps_asked_for_where_rounding_gives_one_more(tiny_pipe, stack):
    """1000 timesteps in 61 steps: diffusers alone adds one at timestep -1."""
    request, seen = Request("a cat", size=128, steps=61), []
    handle = tiny_pipe.unet.register_forward_pre_hook(lambda module, args, told: seen.append(int(args[1])), with_kwargs=True)
    try:
        done = run.generate(tiny_pipe, request, parse_stack(stack), 61)
    finally:
        handle.remove()
    assert len(done.steps) == len(seen) == 61 and min(seen) >= 0 and sorted(set(seen), reverse=True) == seen


def test_a_slow_listener_is_not_in_the_time(tiny_pipe):
    start = time.perf_counter()
    found = run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3, on_step=lambda i, n: time.sleep(0.3))
    assert found.seconds <= time.perf_counter() - start - 3 * 0.3


@pytest.mark.parametrize("after", [1, 2])
def test_stop_ends_within_the_step(tiny_pipe, after):
    told, before = [], everything(tiny_pipe)
    with calls(tiny_pipe.unet) as steps, calls(tiny_pipe.vae.decoder) as decoders, pytest.raises(run.Stopped):
        run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3, on_step=lambda i, n: told.append(i), stop=lambda: len(told) == after)
    assert (len(steps), len(decoders)) == (after, 0)
    assert everything(tiny_pipe) == before and not run.LOCK.locked()


EXITS = [(part, error, at) for part, ats in (("unet", (1, 2, 3)), ("text_encoder", (1,)), ("vae.decoder", (1,)))
         for at in ats for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt(), ValueError("a fault"))]


@pytest.mark.parametrize("part, error, at", EXITS, ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_every_exit_leaves_the_pipeline_as_it_was(tiny_pipe, part, error, at):
    request, stack = Request("a cat", **SMALL), parse_stack("tome+attention_reuse+few_step")
    before, expected = everything(tiny_pipe), run.generate(tiny_pipe, request, FULL, 3).image.tobytes()
    memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    with pytest.raises(run.Failed if memory else type(error)) as told, failing(
            attrgetter(part)(tiny_pipe), error, at):
        run.generate(tiny_pipe, request, stack, 3)
    if memory:
        assert str(told.value).startswith("Out of memory at 128 px") and str(told.value).endswith(".")
    assert everything(tiny_pipe) == before and not run.LOCK.locked()
    assert run.generate(tiny_pipe, request, FULL, 3).image.tobytes() == expected


def test_out_of_memory_lets_go_of_the_tensors(tiny_pipe):
    alive = []

    def hook(*_):
        held = torch.zeros(8)
        alive.append(weakref.ref(held))
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    handle = tiny_pipe.unet.register_forward_pre_hook(hook)
    try:
        with pytest.raises(run.Failed) as told:
            run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3)
    finally:
        handle.remove()
    assert alive[0]() is None and told.value.__context__ is None


def test_a_lost_device_is_told_in_a_sentence(monkeypatch):
    error = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing", 900)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))  # one that still computes
    refused = run.failure(error, Request("a cat"))
    assert type(refused) is run.Failed and "stream is capturing" in str(refused) and str(refused).endswith("try other settings.")

    def gone(*told, **named):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    monkeypatch.setattr(torch, "ones", gone)
    lost = run.failure(error, Request("a cat"))
    assert isinstance(lost, run.Lost) and "start the program again" in str(lost)
    assert run.failure(RuntimeError("shapes do not match"), Request("a cat")) is None


def test_one_run_at_a_time_and_a_waiting_one_can_be_stopped(tiny_pipe):
    waiting, result = threading.Event(), []

    def second():
        try:
            run.generate(tiny_pipe, Request("a cat", **SMALL), FULL, 3, stop=lambda: waiting.set() or True)
        except run.Stopped:
            result.append("stopped")
    with run.LOCK, calls(tiny_pipe.unet) as steps:
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        thread.join(10)
    assert result == ["stopped"] and not steps


def test_runs_from_many_threads_do_not_mix(tiny_pipe):
    stacks = [parse_stack(text) for text in ("full", "tome", "attention_reuse", "few_step(solver=unipc)")] * 2
    request = Request("a cat", **SMALL)
    expected = [run.generate(tiny_pipe, request, stack, 3).image.tobytes() for stack in stacks]
    found = [None] * len(stacks)

    def work(i):
        found[i] = run.generate(tiny_pipe, request, stacks[i], 3).image.tobytes()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(stacks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected


def test_peak_memory_sees_what_a_run_takes(tiny_pipe):
    if run.resident_at_start() is None:
        pytest.skip("this system does not tell the peak of a process")
    request, held = Request("a cat", **SMALL), 96 * 2**20

    def allocate(*_):
        torch.ones(held, dtype=torch.uint8)
    plain = run.generate(tiny_pipe, request, FULL, 3).peak_bytes
    handle = tiny_pipe.unet.register_forward_pre_hook(allocate)
    try:
        more = run.generate(tiny_pipe, request, FULL, 3).peak_bytes
    finally:
        handle.remove()
    assert held * 0.9 <= more <= plain + held * 1.3


def test_acted_counts_blocks_and_steps(tiny_pipe):
    request = Request("a cat", **SMALL)
    assert run.generate(tiny_pipe, request, FULL, 3).acted == {}
    assert run.generate(tiny_pipe, request, (few_step.Knobs(steps=2),), 2).acted == {"few_step": (1, 2)}
    acted = run.generate(tiny_pipe, request, parse_stack("attention_reuse(share=0.7,maps=self)"), 3).acted
    blocks = sum(hasattr(module, "attn1") for module in tiny_pipe.unet.modules())
    assert acted == {"attention_reuse": (blocks, 2)}


@pytest.mark.parametrize("text", ["full", "tome+attention_reuse", "few_step(solver=unipc)"])
def test_tracing_does_not_change_the_picture(tiny_pipe, text):
    request, stack = Request("a cat", **SMALL), parse_stack(text)
    plain, traced = run.generate(tiny_pipe, request, stack, 3), run.generate(tiny_pipe, request, stack, 3, trace=Trace())
    assert plain.image.tobytes() == traced.image.tobytes() and plain.trace is None
    assert traced.trace.channels or "tome" not in text


def test_warming_up_is_two_steps(tiny_pipe):
    with calls(tiny_pipe.unet) as steps:
        found = run.warm(tiny_pipe, Request("a cat", size=128, steps=50), FULL)
    assert len(steps) == len(found.steps) == 2


def test_warming_up_begins_a_schedule_that_is_too_long_for_two_steps(tiny_pipe):
    stack = (attention_reuse.Knobs(schedule="11100"),)
    with calls(tiny_pipe.unet) as steps, calls(tiny_pipe.vae.decoder) as decoders:
        assert run.warm(tiny_pipe, Request("a cat", size=128, steps=5), stack) is None
    assert len(steps) == 2 and not decoders
    with pytest.raises(Refused):
        run.warm(tiny_pipe, Request("a cat", size=128, steps=6), stack)
    with pytest.raises(run.Stopped):
        run.warm(tiny_pipe, Request("a cat", size=128, steps=5), stack, stop=lambda: True)
