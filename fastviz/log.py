"""What programs write down: one JSON object per line on standard error. Nobody's prompt is in it unless asked for."""

import json
import logging
import sys
import time
import traceback

PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}  # what every record has


class Lines(logging.Formatter):
    """A record as one line: time (UTC), level, logger, message, whatever `extra` added, and the traceback."""

    converter = time.gmtime
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def format(self, record):
        told = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        told |= {name: value for name, value in vars(record).items() if name not in PLAIN}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def tell_kind(limit=None, file=None, chain=True):
    """In the place of traceback.print_exc, with which libraries tell of errors: as a line, and without the error's words,
    because Gradio puts what a visitor sent into them."""
    kind, _, at = sys.exc_info()
    logging.getLogger(__name__).error("%s", kind.__name__, extra={"frames": "".join(traceback.format_tb(at, limit))})


def begin(level=logging.INFO):
    """Sends all logging and Python's warnings to standard error, as lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    traceback.print_exc = tell_kind
    logging.getLogger("httpx").setLevel(logging.WARNING)
