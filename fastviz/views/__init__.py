"""Rows and plain numbers -> pictures and text: pure functions, one file per kind. They know no method."""

from .reuse import one_reuse, schedules
from .scatter import scatter
from .schedule import distance, timesteps, triangle
from .summary import summary
from .table import table
from .theme import png
