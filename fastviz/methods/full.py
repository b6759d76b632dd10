"""The full model: nothing is changed. Every other row is measured against it."""

from contextlib import contextmanager
from dataclasses import dataclass

KEY = "full"
TITLE = "Full model"
SAYS = "Every step, every token, every attention map: the reference."
PAPER = None
ROLE = "patch"


@dataclass(frozen=True)
class Knobs:
    """The full model has nothing to set."""


NEUTRAL = Knobs()


def kinds(knobs, steps):
    """One label per step: all steps do the same work."""
    return ("full",) * steps


def touched(unet, grid, knobs):
    """Names of the modules that it can save work in."""
    return []


@contextmanager
def attach(pipe, knobs, context):
    yield pipe
