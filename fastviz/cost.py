"""FLOPs of a stack of methods, counted from the operations that it executes on the meta device: no data, no time.

Counted are matrix products, attention and convolutions, two per multiply-add, with torch's own formulas; element-wise
operations and normalisations are not, as everywhere in the field.
"""

import functools
import threading
from contextlib import ExitStack

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import sketch
from .bare import configuration, on_meta
from .methods import attached, full, method_of
from .patch import replaced
from .run import context_of, encoded, guided, network_inputs

KEPT = 256  # counts that are remembered
counted, lock = {}, threading.Lock()


class Flops(TorchDispatchMode):
    """Adds up FLOPs as torch's FlopCounterMode does, but faster: on the meta device the result of an operation without
    side effects depends on shapes alone, so it is worked out once and remembered."""

    def __init__(self):
        super().__init__()
        self.total, self.memo = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = signature(func, args, kwargs)
        if key in self.memo:
            flops, outs, single = self.memo[key]
            out = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in outs]
            out = out[0] if single else tuple(out)
        else:
            out = func(*args, **kwargs)
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            outs = [out] if isinstance(out, torch.Tensor) else out
            tensors = isinstance(outs, (list, tuple)) and all(isinstance(one, torch.Tensor) for one in outs)
            if key and tensors and all(one.is_meta for one in outs):
                self.memo[key] = flops, [describe(one) for one in outs], outs is not out
        self.total += flops
        return out


@functools.cache
def pure(func):
    """Whether an operation neither changes an argument nor shares memory with one."""
    return not func._schema.is_mutable and all(result.alias_info is None for result in func._schema.returns)


def signature(func, args, kwargs):
    """What the result of `func` depends on, or None where that is more than shapes."""
    if not pure(func):
        return None
    try:
        key = func, describe(args), describe(tuple(kwargs.items()))
        hash(key)
        return key
    except TypeError:
        return None


def describe(value):
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise TypeError("this tensor has values, and they may count")
        return tuple(value.shape), value.stride(), value.dtype
    return tuple(map(describe, value)) if isinstance(value, (list, tuple)) else (type(value), value)


def kinds(stack, steps):
    """One label per step; steps with equal labels do equal work. From the methods' `kinds(knobs, steps)`; the steps of a
    method that has none all count as different."""
    apart = [getattr(method_of(knobs), "kinds", lambda knobs, steps: range(steps))(knobs, steps) for knobs in stack]
    return list(zip(*apart, strict=True))


def with_past(labels, frozen):
    """Each label with what else its work depends on where stored attention is used again (`frozen`, see Context): such a
    step goes on with the choices of the last free one, and the next free one catches up on what the stored ones missed."""
    found, stored, missed, free = [], {step for step, _ in frozen}, frozenset(), None
    for step, label in enumerate(labels):
        if step in stored:
            missed |= {label}
        else:
            missed, free = frozenset(), (label, missed)
        found.append((label, free))
    return found


def flops(pipe, request, stack, steps, device=None):
    """FLOP of one picture: {"text": F, "steps": (F per step, ...), "decoder": F}. Counted once per model, size, guidance,
    stack, number of steps and with or without a sketch; a step that repeats an earlier kind of step is not executed again.
    A scheduler calls the network once a step, so that the full model's step counts for all of them. device: type of the one that
    it will run on, where that is not the pipeline's own: some methods work otherwise on a GPU."""
    device = device or pipe.device.type
    changes = tuple(knobs for knobs in stack if method_of(knobs).ROLE != "scheduler" and method_of(knobs) is not full)
    if not changes and steps > 1:
        once = flops(pipe, request, stack, 1, device)
        return once | {"steps": once["steps"] * steps}
    key = configuration(pipe), device, request.size, guided(pipe, request), request.sketch is not None, changes, steps
    with lock:
        if key not in counted:
            if len(counted) >= KEPT:
                counted.pop(next(iter(counted)))
            counted[key] = count(pipe, request, changes or (full.Knobs(),), steps, device)
        return counted[key]


@torch.no_grad()
def count(pipe, request, stack, steps, device=None):
    side, mode = request.size // pipe.vae_scale_factor, Flops()
    context = context_of(pipe, request, steps, (side, side))
    context.device = device or context.device
    with on_meta(pipe) as bare, mode, attached(bare, stack, context) as ready, sketch.attach(ready, request, pipe):
        text, decoder, latents, inputs = ends(ready, request, context, mode)
        labels = with_past(kinds(stack, steps), context.frozen)
        per_step = count_steps(ready.unet, latents, inputs, context, labels, mode)
    return {"text": text, "steps": per_step, "decoder": decoder}


def ends(pipe, request, context, mode):
    """FLOP of text encoder and decoder, and what the U-Net is given on the context's grid: latents, and the rest by name."""
    pair = guided(pipe, context)
    made = encoded(pipe, request.prompt, pair, torch.device("meta"))
    text = mode.total
    latents = torch.empty(1, pipe.unet.config.in_channels, *context.grid, device="meta")
    pipe.vae.decode(latents)
    decoder = mode.total - text
    return text, decoder, torch.cat([latents] * (1 + pair)), network_inputs(made, request.size)


@torch.no_grad()
def inside(pipe, request, size, names):
    """FLOP of the full model at `size` px: {"text", "step", "decoder", "inside"}, the last within one step's modules
    `names` of the U-Net; "" is all of it. Names below another one count once."""
    side, mode, within = size // pipe.vae_scale_factor, Flops(), [0]
    context = context_of(pipe, request, 1, (side, side))

    def counting(forward):
        def counted(*args, **kwargs):
            before = mode.total
            out = forward(*args, **kwargs)
            within[0] += mode.total - before
            return out
        return counted

    outermost = [name for name in names if not any(name != other and (not other or f"{name}.".startswith(f"{other}.")) for other in names)]
    with lock, on_meta(pipe) as bare, mode, sketch.attach(bare, request, pipe), ExitStack() as exits:
        text, decoder, latents, inputs = ends(bare, request, context, mode)
        for module in map(bare.unet.get_submodule, outermost):
            exits.enter_context(replaced(module, forward=counting(module.forward)))
        step = count_steps(bare.unet, latents, inputs, context, ["full"], mode)[0]
    return {"text": text, "step": step, "decoder": decoder, "inside": within[0]}


def count_steps(unet, latents, inputs, context, labels, mode):
    """FLOP of every step: executed for the first step of each label."""
    timestep, found = torch.empty((), dtype=torch.long, device="meta"), {}
    for step, label in enumerate(labels):
        if label not in found:
            before = mode.total
            context.start(step)
            unet(latents, timestep, **inputs)
            found[label] = mode.total - before
    return tuple(found[label] for label in labels)


def total(counts):
    """FLOP of the whole picture from what `flops` gave."""
    return counts["text"] + sum(counts["steps"]) + counts["decoder"]
