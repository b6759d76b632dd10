"""What may run in another process than the page's: on ZeroGPU each of these calls is sent to a worker that holds a GPU.

Requests go in and plain data comes out: Rows whose Run holds no latents, traces of arrays, pictures, sentences. No tensor crosses,
and no exception does: ZeroGPU would tell of its class alone. Errors are given back like results, and `received` raises them.
Warm-up, every timed run, FLOPs and LPIPS happen inside one call. Without ZeroGPU they are ordinary functions.
"""

import dataclasses
import math
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import gradio as gr

from .. import models, verified
from ..methods import steps_of
from ..patch import Refused
from ..request import BadRequest

START = 15.0  # seconds to fetch the weights of all models onto the device, and for what only a first run pays
# Lent are 60 of the 132 multiprocessors of an H200: 450e12 FLOP/s in half precision at best. U-Nets that are not compiled are
# expected to reach a third of that; half of it is counted on. Only what is asked for depends on it.
RATE = 70e12  # FLOP/s
LAUNCH = 0.03  # seconds that are added for each step, however small the network: its many kernels are launched one by one
FASTEST = 200e12  # FLOP/s that none is expected to exceed: what would be too long even then is refused
ROW = 3.0  # seconds for metrics and pictures of one row
TRACED = 3  # times as long as a timed run takes one that records
SHORTEST, LONGEST = 20, 120  # seconds that are asked for
TICK = 1.0  # seconds after which what watches a worker looks whether it is done


def counted(request, stack, steps):
    """What one picture costs on the device that is lent. This process does not have it: the pipeline tells of another."""
    from .. import cost

    return cost.flops(models.load(request.model), request, stack, steps, models.device().type)


def took(counts, rate, launch):
    """Seconds of one run."""
    from .. import cost

    return cost.total(counts) / rate + launch * len(counts["steps"])


def needed(request, rate, launch=0.0):
    """Seconds of a comparison at `rate` FLOP/s, from what it will execute: each row's warm-up, and its repeats."""
    from ..run import WARM_UP_STEPS

    seconds = START + len(request.methods) * ROW
    for stack in request.methods:
        try:
            counts = counted(request, stack, steps_of(fixed(stack), request.steps))
        except Refused:  # costs nothing, and its card will say why
            continue
        few = counts | {"steps": counts["steps"][:WARM_UP_STEPS]}
        seconds += took(few, rate, launch) + request.repeats * took(counts, rate, launch)
    return seconds


def whole(seconds):
    """Whole seconds to ask for."""
    return max(SHORTEST, min(LONGEST, math.ceil(seconds)))


def duration(request, *others):
    """Seconds to ask for, of a comparison."""
    return whole(needed(request, RATE, LAUNCH))


def looking(request, row, *others):
    """The same of a look inside: one row once, and a picture of each of its steps."""
    counts = counted(request, request.methods[row.index], row.steps)
    return whole(START + ROW + TRACED * took(counts, RATE, LAUNCH) + row.steps * counts["decoder"] / RATE)


def check(request):
    """BadRequest when the GPU would be taken back in the middle."""
    if (seconds := needed(request, FASTEST)) > LONGEST:
        raise BadRequest("methods", f"This would take {seconds:.0f} s or more of a GPU that is lent for {LONGEST} s: ask for fewer "
                         "rows, steps or repeats.")


def fixed(stack):
    """The stack without what only a finished run decides: a row that matches another's time takes at most all steps."""
    return tuple(knobs for knobs in stack if not getattr(knobs, "match", ""))


@contextmanager
def lasting(stop):
    """The path of a file that is there until `stop`, an Event, is set: a worker cannot see the Event."""
    handle, name = tempfile.mkstemp(prefix="under-way-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    os.close(handle)
    path = Path(name)

    def watch():
        while path.exists():
            if stop.wait(TICK):
                path.unlink(missing_ok=True)

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)


def over(lasting):
    """`stop` as runs ask for it, on the worker's side. lasting: the path, or None for what nobody stops."""
    return lambda: lasting is not None and not os.path.exists(lasting)


def rows(request, lasting=None):
    """Yields what the times were measured on, then every Row of the comparison as plain data; an error ends it, and so does that
    the file `lasting` is gone."""
    from ..compare import compare, environment

    try:
        yield environment(models.load(request.model))
        for row in compare(request, stop=over(lasting)):
            yield dataclasses.replace(row, run=row.run and dataclasses.replace(row.run, latents=None, image=None))
    except Exception as error:
        yield given_back(error, "The comparison", request)


def look(request, row, megabytes, lasting=None):
    """One traced run of a finished row -> (Trace, the picture as the network estimated it at every step: (steps, h, w, 4)
    uint8), or the error that ended it. lasting: as of `rows`."""
    from ..compare import traced
    from .inside import estimates

    try:
        trace = traced(request, row, stop=over(lasting), megabytes=megabytes)
        return trace, estimates(models.load(request.model), trace.channels, row.steps, over(lasting))
    except Exception as error:
        return given_back(error, row.title, request)


def given_back(error, title, request):
    """An error as it crosses: ours as it is, any other as the sentence that people read. Of a lost device ZeroGPU has to know:
    the process that had it must not be lent again, while the page's own lost nothing and goes on."""
    from ..compare import sentence
    from ..run import Failed, Lost, Stopped

    if isinstance(error, Lost):
        raise gr.Error("the GPU stopped answering. Another one is lent to who asks again.", title="ZeroGPU") from error
    ours = isinstance(error, (BadRequest, verified.BadModel, Refused, Failed, Stopped))
    return error if ours else Failed(sentence(error, title, request))


def received(given):
    """What a worker gave, on this side: an error is raised."""
    if isinstance(given, Exception):
        raise given
    return given


LENT = {}  # name -> the function as ZeroGPU runs it; empty where this process has its device to itself


def rent():
    """To be called once, before the page is served and after `import spaces`, which comes before torch."""
    import spaces

    LENT.update(rows=spaces.GPU(duration=duration)(rows), look=spaces.GPU(duration=looking)(look))
