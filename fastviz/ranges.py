"""Names the parts of a run for a profiler, in a profiled run; in all others nothing is changed and nothing costs time."""

import functools
from contextlib import ExitStack, contextmanager

from .patch import replaced, transformer_blocks

OWN, PART, UNET, SCHEDULER = "fastviz.own.", "fastviz.part.", "fastviz.unet", "fastviz.scheduler"
PARTS = ("attn1", "attn2", "ff")  # of a transformer block


def ranged(name, function):
    """`function` within a range that a profiler records under `name`."""
    from torch.profiler import record_function

    @functools.wraps(function)
    def named(*args, **kwargs):
        with record_function(name):
            return function(*args, **kwargs)
    return named


def own(kind, context, **names):
    """The class `kind` of a method; in a profiled run a subclass of which some functions are ranges, {function: what it does,
    in a word}: the method's own work, which the full model does without. None of them may call what the full model does."""
    if not context.ranges:
        return kind
    return type(kind.__name__, (kind,), {name: ranged(OWN + work, getattr(kind, name)) for name, work in names.items()})


@contextmanager
def attach(pipe, context):
    """Modifications, in a profiled run; none otherwise:
     - forward of the U-Net, of its transformer blocks and of their PARTS, and step of the scheduler: within a range
    To be attached after all methods."""
    with ExitStack() as exits:
        if context.ranges:
            exits.enter_context(replaced(pipe.unet, forward=ranged(UNET, pipe.unet.forward)))
            exits.enter_context(replaced(pipe.scheduler, step=ranged(SCHEDULER, pipe.scheduler.step)))
            for name, block, _ in transformer_blocks(pipe.unet, context.grid):
                parts = {f"{name}.{part}": getattr(block, part) for part in PARTS}
                for path, module in {name: block, **parts}.items():
                    if module is not None:
                        exits.enter_context(replaced(module, forward=ranged(PART + path, module.forward)))
        yield pipe
