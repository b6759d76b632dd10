"""One stack of methods on one request -> Run: the lock, the noise, the only clock, peak memory, stop, out of memory."""

import copy
import ctypes
import errno
import gc
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from . import begin, lens, ranges, sketch
from .methods import attached, weights_first
from .patch import Refused, replaced
from .trace import Context, Trace

LOCK = threading.Lock()  # a pipeline serves one run at a time
WARM_UP_STEPS = 2  # the second one reaches what only happens with a past: multistep solvers, reuse


class Stopped(Exception):
    """The run ended because `stop()` returned True."""


class Failed(RuntimeError):
    """The run could not be finished; the text is one sentence for people."""


class Lost(Failed):
    """The device stopped answering: nothing in this process can use it again."""


@dataclass
class Run:
    """What one run gave. latents: (1, 4, h, w) float on the CPU; text, steps (one per sampling step), decode: seconds;
    acted: method key -> (blocks, steps) in which it changed something; peak_bytes: memory above what was in use before,
    None where the system does not tell; kept_bytes: method key -> what it carried from step to step."""
    latents: torch.Tensor
    image: Image.Image
    text: float
    steps: list
    decode: float
    acted: dict
    peak_bytes: int | None
    kept_bytes: dict
    trace: Trace | None

    @property
    def seconds(self):
        return self.text + sum(self.steps) + self.decode


def noise(pipe, request):
    """The latents (1, 4, h, w) that every row of a request starts from: drawn on the CPU, so equal on every device."""
    side = request.size // pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(pipe.unet.dtype)


def guided(pipe, told):
    """Whether the pipeline runs the U-Net on a pair, without and with the prompt. told: a Request, or a run's Context once
    its methods are attached."""
    return told.guidance > 1 and pipe.unet.config.time_cond_proj_dim is None


def context_of(pipe, request, steps, grid, trace=None, profiled=False):
    """The Context of a run of `steps` sampling steps on latents of grid (h, w)."""
    return Context(steps, request.seed, grid, pipe.device.type, request.guidance, trace=trace, ranges=profiled)


@torch.no_grad()
def pictures(pipe, latents):
    """Latents (B, 4, h, w) -> PIL pictures, as the pipeline makes them."""
    scaled = latents.to(pipe.device, pipe.vae.dtype) / pipe.vae.config.scaling_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(scaled, return_dict=False)[0], output_type="pil")


TEXT = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"


@torch.no_grad()
def encoded(pipe, prompts, pair, device):
    """What the text encoders make of a prompt, or of a list, by the names that the pipeline's call takes: two entries, with
    SDXL four. pair: whether the empty prompt is wanted too, see `guided`."""
    made = pipe.encode_prompt(prompts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=pair)
    return dict(zip(TEXT, made))


def network_inputs(made, size):
    """What the U-Net is told beside latents and timestep, from what `encoded` made: the prompt, after the empty one where
    there is guidance. SDXL's also the pooled prompt, and six numbers: picture's size, corner of the crop, size wanted."""
    def both(name):
        return torch.cat([part for part in (made.get(f"negative_{name}"), made[name]) if part is not None])

    told = {"encoder_hidden_states": both("prompt_embeds")}
    if "pooled_prompt_embeds" in made:
        pooled = both("pooled_prompt_embeds")
        ids = torch.tensor([[size, size, 0, 0, size, size]], device=pooled.device, dtype=pooled.dtype)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.repeat(len(pooled), 1)}
    return told


class Clock:
    """Marks points in time and waits for the device only at the end. On a GPU the marks are events in its stream."""

    def __init__(self, device):
        self.device, self.marks = device, []
        self.synchronise()

    def synchronise(self):
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def mark(self):
        if self.device.type == "cpu":
            self.marks.append(time.perf_counter())
        else:
            event = torch.Event(self.device, enable_timing=True)
            event.record()
            self.marks.append(event)

    def spans(self):
        """Seconds from each even mark to the odd one after it."""
        self.synchronise()
        if self.device.type == "cpu":
            return [end - start for start, end in zip(self.marks[::2], self.marks[1::2])]
        return [start.elapsed_time(end) / 1000 for start, end in zip(self.marks[::2], self.marks[1::2])]


class Peak:
    """The most memory in use since this was made, above what was in use then: of the allocator on a GPU, of the process
    (resident set) on Linux. `bytes` gives None elsewhere."""

    def __init__(self, device):
        self.accelerated = device.type in ("cuda", "xpu")
        if self.accelerated:
            torch.accelerator.reset_peak_memory_stats()
        self.start = torch.accelerator.memory_allocated() if self.accelerated else resident_at_start()

    def bytes(self):
        if self.accelerated:
            return torch.accelerator.max_memory_allocated() - self.start
        return self.start and max(0, high_water() - self.start)


def resident_at_start():
    """Gives free heap back to the system, or an earlier run's would hide this one's needs, sets the process's high-water
    mark to its resident set and returns it in bytes. None where /proc does not offer that."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return high_water()
    except (OSError, AttributeError, StopIteration):
        return None


def high_water():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@contextmanager
def turn(stop):
    """The pipeline's lock, given up waiting for when `stop()` says so."""
    while not LOCK.acquire(timeout=0.2):
        if stop and stop():
            raise Stopped
    try:
        yield
    finally:
        LOCK.release()


def generate(pipe, request, stack, steps, *, on_step=None, stop=None, trace=None, profiled=False, glimpse=None):
    """Runs `stack`, a tuple of Knobs, for `steps` sampling steps -> Run. The picture of the full model is, bit for bit,
    that of `pipe(prompt, height, width, num_inference_steps=steps, guidance_scale=..., latents=noise(pipe, request))`.

    on_step(i, steps): called after step i = 1, 2, ..., outside the clock; stop(): asked after every step, True raises
    Stopped; trace: a Trace to fill, and profiled: whether parts are named for a profiler; both cost time. The pipeline is left as it was after any exit.
    glimpse(pipe, before, after, step): called after a step with the latents around it, outside the clock.
    Raises Failed when memory runs out, Lost when the device stopped answering.
    """
    with turn(stop):
        try:
            return sample(pipe, request, stack, steps, on_step, stop, trace, profiled, glimpse)
        except (MemoryError, RuntimeError) as error:
            failed = failure(error, request)
            if not failed:
                raise
    if not isinstance(failed, Lost):
        free()  # out here: inside the except block the error's traceback keeps the tensors of the run alive
    raise failed


def failure(error, request):
    """The Failed for an error that is the machine's, not the program's, or None."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return Failed(f"Out of memory at {request.size} px: choose a smaller size, or close what else uses this device.")
    if isinstance(error, torch.AcceleratorError):
        if not alive():
            return Lost("The device stopped answering: start the program again.")
        return Failed(f"The device refused ({(text.splitlines() or [''])[0][:200]}): try other settings.")
    return Failed("The disk is full: make room and try again.") if disk_full(error) else None


def alive():
    """Whether the accelerator still computes: not every error of it is its end, a capture that failed is not."""
    try:
        torch.ones(1, device=torch.accelerator.current_accelerator()).add_(1).item()
    except RuntimeError:
        return False
    return True


def disk_full(error):
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def free():
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def sample(pipe, request, stack, steps, on_step, stop, trace, profiled, glimpse):
    start = noise(pipe, request)
    context = context_of(pipe, request, steps, tuple(start.shape[2:]), trace, profiled)
    clean = None if request.start is None else begin.encoded(pipe, request.start, request.size)  # once, like the noise
    if trace is not None:
        trace.about = lens.about(pipe, request, stack, context)
    owner, pipe = pipe, copy.copy(pipe)  # a call leaves its arguments on the pipeline object: let it leave them on a copy
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    weights, rest = weights_first(stack)
    with replaced(pipe, scheduler=scheduler, _progress_bar_config={"disable": True}), \
            attached(pipe, weights, context) as pipe, sketch.attach(pipe, request, owner), lens.attach(pipe, request, context), \
            attached(pipe, rest, context) as ready, ranges.attach(ready, context), \
            begin.attach(ready, request, steps, start, clean) as start:
        memory, clock = Peak(ready.device), Clock(ready.device)
        latents, image = timed(ready, request, start, clock, context, on_step, stop, glimpse)
        text, *times, decode = clock.spans()
        peak = memory.bytes()
    acted = {key: (len({layer for layer, _ in cells}), len({step for _, step in cells}))
             for key, cells in context.acted.items() if cells}
    return Run(latents.float().cpu(), image, text, times, decode, acted, peak, dict(context.kept_bytes), trace)


def timed(pipe, request, latents, clock, context, on_step, stop, glimpse):
    """The part under the clock: marks around the text encoder, every step and the decoder. -> (last latents, picture)"""
    def step_done(_, i, timestep, tensors):
        nonlocal latents
        clock.mark()
        before, latents = latents, tensors["latents"]
        if glimpse and i:  # what came in is not scaled yet
            glimpse(pipe, before, latents, i)
        if on_step:
            on_step(i + 1, context.steps)
        if stop and stop():
            raise Stopped
        clock.mark()
        if i + 1 < context.steps:
            context.start(i + 1)
        return {}

    clock.mark()
    text = encoded(pipe, request.prompt, guided(pipe, context), pipe.device)
    clock.mark()
    clock.mark()
    context.start(0)
    last = pipe(
        **text, latents=latents, height=request.size, width=request.size, num_inference_steps=context.steps,
        guidance_scale=context.guidance, callback_on_step_end=step_done, output_type="latent",
        generator=torch.Generator().manual_seed(~request.seed & 2**63 - 1)).images  # for schedulers that draw noise as they go
    image, = pictures(pipe, last)
    clock.mark()
    return latents, image


def warm(pipe, request, stack, *, steps=None, stop=None):
    """Pays for what only a first run costs: kernels chosen, memory grown. A run of two steps -> its Run; None when a
    method refuses so few, as one with a schedule of its own does: then the first two of `steps`, the request's if None."""
    steps = steps or request.steps
    few, done = min(WARM_UP_STEPS, steps), []
    try:
        return generate(pipe, request, stack, few, stop=stop)
    except Refused:
        with suppress(Stopped):
            generate(pipe, request, stack, steps, on_step=lambda i, n: done.append(i),
                     stop=lambda: len(done) == few or bool(stop and stop()))
    if stop and stop():
        raise Stopped
    return None
