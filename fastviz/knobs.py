"""How a method declares its settings: a frozen dataclass whose fields carry range, choices and one sentence each.

The page, the command line and the sweep build their controls from these declarations, and request.py checks them.
"""

from dataclasses import field


def number(default, low, high, says, *, step=None, tinker=False):
    """A number from `low` to `high`; an int default makes an int knob. tinker: folded away on the page."""
    step = step or (1 if isinstance(default, int) else 0.05)
    return field(default=default, metadata=dict(kind="number", low=low, high=high, step=step, says=says, tinker=tinker))


def choice(default, options, says, *, tinker=False):
    """One of `options`, a dict from value to the label that people read."""
    return field(default=default, metadata=dict(kind="choice", options=options, says=says, tinker=tinker))


def switch(default, says, *, tinker=False):
    return field(default=default, metadata=dict(kind="switch", says=says, tinker=tinker))


def text(default, says, *, tinker=False):
    """Free text of at most 300 characters that the method itself parses (a schedule, the name of a row)."""
    return field(default=default, metadata=dict(kind="text", says=says, tinker=tinker))
