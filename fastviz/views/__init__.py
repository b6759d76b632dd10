"""Rows -> pictures and text, records of a traced run -> overlays: pure functions, one file per kind. They know what a
Row shows and what a channel holds, and no method."""

from .frames import Frames, animation, frames, kinds, point, sheet, words
from .reuse import one_reuse, schedules
from .scatter import scatter
from .summary import summary
from .table import table
from .theme import png
