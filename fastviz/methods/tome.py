"""Being written."""

from contextlib import contextmanager
from dataclasses import dataclass

KEY = "tome"
TITLE = "tome"
SAYS = ""
PAPER = None
ROLE = "patch"


@dataclass(frozen=True)
class Knobs:
    """Being written."""


NEUTRAL = Knobs()


@contextmanager
def attach(pipe, knobs, context):
    yield pipe
