"""Rows -> pictures and text: pure functions, one file per kind. They know what a Row shows, and no method."""

from .scatter import scatter
from .summary import summary
from .table import table
from .theme import png
