"""What may run in another process than the page's: on ZeroGPU each of these calls is sent to a worker that holds a GPU.

Requests go in and plain data comes out: Rows whose Run holds no latents, traces of arrays, pictures, sentences. No tensor crosses.
Warm-up, every timed run, FLOPs and LPIPS happen inside one call. Without ZeroGPU they are ordinary functions.
"""

import dataclasses
import math

from .. import models
from ..methods import steps_of
from ..request import BadRequest

START = 15.0  # seconds to fetch weights onto the device and to warm up
RATE = 20e12  # FLOP/s that a lent GPU is expected to reach at least; only what is asked for depends on it
FASTEST = 200e12  # and that none is expected to exceed: what would be too long even then is refused
ROW = 3.0  # seconds for metrics and pictures of one row
SHORTEST, LONGEST = 20, 120  # seconds that are asked for


def needed(request, rate):
    """Seconds of a comparison at `rate` FLOP/s, from what it will execute: warm-up once, then its repeats."""
    from .. import cost

    pipe, flops = models.load(request.model), 0
    for stack in request.methods:
        flops += cost.total(cost.flops(pipe, request, stack, steps_of(fixed(stack), request.steps)))
    return START + len(request.methods) * ROW + (request.repeats + 1) * flops / rate


def duration(request, *others):
    """Whole seconds to ask for."""
    return max(SHORTEST, min(LONGEST, math.ceil(needed(request, RATE))))


def check(request):
    """BadRequest when the GPU would be taken back in the middle."""
    if (seconds := needed(request, FASTEST)) > LONGEST:
        raise BadRequest("methods", f"This would take {seconds:.0f} s or more of a GPU that is lent for {LONGEST} s: ask for fewer "
                         "rows, steps or repeats.")


def fixed(stack):
    """The stack without what only a finished run decides: a row that matches another's time takes at most all steps."""
    return tuple(knobs for knobs in stack if not getattr(knobs, "match", ""))


def rows(request):
    """Yields what the times were measured on, then every Row of the comparison as plain data."""
    from ..compare import compare, environment

    yield environment(models.load(request.model))
    for row in compare(request):
        yield dataclasses.replace(row, run=row.run and dataclasses.replace(row.run, latents=None, image=None))


def look(request, row, megabytes):
    """One traced run of a finished row -> (Trace, the picture as the network estimated it at every step: (steps, h, w, 4)
    uint8)."""
    from ..compare import traced
    from .inside import estimates

    trace = traced(request, row, megabytes=megabytes)
    return trace, estimates(models.load(request.model), trace.channels, row.steps)


LENT = {}  # name -> the function as ZeroGPU runs it; empty where this process has its device to itself


def rent():
    """To be called once, before the page is served and after `import spaces`, which comes before torch."""
    import spaces

    LENT.update((function.__name__, spaces.GPU(duration=duration)(function)) for function in (rows, look))
