"""The methods, in display order, and how they are attached to a pipeline.

A method is a module with
    KEY, TITLE, SAYS            its name in commands, on the page, and one sentence for people
    PAPER                       (authors and title, address) or None
    ROLE                        "patch" (edits the pipeline), "scheduler" or "weights": the last two never stack
    Knobs, NEUTRAL              its settings; the ones that make it equal the full model bit for bit
    attach(pipe, knobs, context)  context manager that yields the pipeline to run
    plan(knobs, steps)          optional, of a scheduler: how many sampling steps it takes when the request asks for `steps`
    kinds(knobs, steps)         optional: one label per sampling step; steps of equal labels do equal work, and cost.py
                                executes only the first of each. Without it, all are executed.
    touched(unet, grid, knobs)  of a patch: names of the U-Net's modules in which it can save work
"""

from contextlib import ExitStack, contextmanager

from . import atedm, attention_reuse, few_step, full, olss, tome

METHODS = (full, few_step, attention_reuse, tome, atedm, olss)
BY_KEY = {method.KEY: method for method in METHODS}


def method_of(knobs):
    """The method module that an instance of its Knobs belongs to."""
    return next(method for method in METHODS if type(knobs) is method.Knobs)


def steps_of(stack, steps):
    """How many sampling steps a stack takes when the request asks for `steps`: its scheduler decides, if it has one."""
    plans = (method.plan(knobs, steps) for knobs in stack if hasattr(method := method_of(knobs), "plan"))
    return next(plans, steps)


@contextmanager
def attached(pipe, stack, context):
    """Attaches every method of `stack` (a tuple of Knobs), first to last, and yields the pipeline to run."""
    with ExitStack() as exits:
        for knobs in stack:
            pipe = exits.enter_context(method_of(knobs).attach(pipe, knobs, context))
        yield pipe
