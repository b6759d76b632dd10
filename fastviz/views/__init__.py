"""Rows -> pictures and text: pure functions, one file per kind. They know what a Row shows, and no method."""

from .reuse import one_reuse, schedules
from .scatter import scatter
from .summary import summary
from .table import table
from .theme import png
