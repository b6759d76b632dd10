"""The methods, in display order, and how they are attached to a pipeline.

A method is a module with
    KEY, TITLE, SAYS            its name in commands, on the page, and one sentence for people
    PAPER                       (authors and title, address) or None
    ROLE                        "patch" (edits the pipeline), "scheduler" or "weights": the last two never stack
    Knobs, NEUTRAL              its settings; the ones that make it equal the full model bit for bit
    attach(pipe, knobs, context)  context manager that yields the pipeline to run
    plan(knobs, steps)          optional, of a scheduler or weights: how many sampling steps it takes when the request asks for `steps`
    kinds(knobs, steps)         optional: one label per sampling step; steps of equal labels do equal work, and cost.py
                                executes only the first of each. Without it, all are executed.
    ready()                     optional: whether anything that the method needs is there; else the page does not offer it
    touched(unet, grid, knobs)  optional: names of the U-Net's modules in which it can save work, "" for all of it, and
                                "decoder"; without it, whole steps. Of a patch: needed
"""

from contextlib import ExitStack, contextmanager

from . import atedm, attention_reuse, few_step, full, olss, sdxs, tome

METHODS = (full, few_step, attention_reuse, tome, atedm, olss, sdxs)
BY_KEY = {method.KEY: method for method in METHODS}


def method_of(knobs):
    """The method module that an instance of its Knobs belongs to."""
    return next(method for method in METHODS if type(knobs) is method.Knobs)


def steps_of(stack, steps):
    """How many sampling steps a stack takes when the request asks for `steps`: its scheduler decides, if it has one."""
    plans = (method.plan(knobs, steps) for knobs in stack if hasattr(method := method_of(knobs), "plan"))
    return next(plans, steps)


def weights_first(stack):
    """(Knobs that bring weights of their own, the others): what edits a network has to find the one that will run."""
    weights = tuple(knobs for knobs in stack if method_of(knobs).ROLE == "weights")
    return weights, tuple(knobs for knobs in stack if knobs not in weights)


@contextmanager
def attached(pipe, stack, context):
    """Attaches every method of `stack` (a tuple of Knobs), first to last after other weights, and yields the pipeline to
    run."""
    with ExitStack() as exits:
        for knobs in (knobs for group in weights_first(stack) for knobs in group):
            pipe = exits.enter_context(method_of(knobs).attach(pipe, knobs, context))
        yield pipe
