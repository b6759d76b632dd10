"""The methods, in display order, and how they are attached to a pipeline.

A method is a module with
    KEY, TITLE, SAYS            its name in commands, on the page, and one sentence for people
    PAPER                       (authors and title, address) or None
    ROLE                        "patch" (edits the pipeline), "scheduler" or "weights": the last two never stack
    Knobs, NEUTRAL              its settings; the ones that make it equal the full model bit for bit
    attach(pipe, knobs, context)  context manager that yields the pipeline to run
    kinds(knobs, steps)         optional: one label per sampling step; steps of equal labels do equal work, and cost.py
                                executes only the first of each. Without it, all are executed.
"""

from contextlib import ExitStack, contextmanager

from . import atedm, attention_reuse, few_step, full, tome

METHODS = (full, few_step, attention_reuse, tome, atedm)
BY_KEY = {method.KEY: method for method in METHODS}


def method_of(knobs):
    """The method module that an instance of its Knobs belongs to."""
    return next(method for method in METHODS if type(knobs) is method.Knobs)


@contextmanager
def attached(pipe, stack, context):
    """Attaches every method of `stack` (a tuple of Knobs), first to last, and yields the pipeline to run."""
    with ExitStack() as exits:
        for knobs in stack:
            pipe = exits.enter_context(method_of(knobs).attach(pipe, knobs, context))
        yield pipe
