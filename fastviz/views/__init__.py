"""What there is to see -> pictures and text: pure functions, one file per kind. They know Rows and records, no method."""

from .activity import activity, strip, strips, work
from .breakdown import breakdown
from .frames import animation, frames, highest, kinds, looks, point, removed, sheet, words
from .reuse import one_reuse, reused, schedules
from .rows import equal_steps, followed, one_step
from .saved import saved
from .scatter import scatter
from .schedule import distance, scheme, timesteps, triangle
from .student import decoders, networks
from .summary import summary
from .table import table
from .theme import png
