"""Keeps the page up: `python -m fastviz.supervise` runs app.py and starts it again whenever it crashes."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from . import log as lines

APP = Path(__file__).parents[1] / "app.py"
PIPE = "FASTVIZ_SUPERVISED"  # set for a server whose standard input ends when its supervisor does
USELESS = (1, 2)  # exit codes of a server that could not begin: a port that is taken, a profile that is none
STEADY = 60  # seconds after which a server is no longer a failed start
LONGEST = 30  # seconds between two starts
log = logging.getLogger(__name__)


def follow():
    """Ends this process at once when its supervisor is gone, however that ended. Nothing without a supervisor."""
    def wait():
        while os.read(0, 4096):  # not by sys.stdin, whose lock a waiting thread would hold when the program ends
            pass
        os._exit(0)

    if os.environ.pop(PIPE, None):
        threading.Thread(target=wait, name="follow", daemon=True).start()


def pause(failures):
    """Seconds to wait after so many failed starts in a row: 1, 2, 4, ... LONGEST."""
    return min(LONGEST, 2 ** (failures - 1))


def end(process):
    """Ends a server at once."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def keep(command):
    """Runs `command` again and again until it ends well, or cannot even begin -> its exit code."""
    failures, starts = 0, 0
    while True:
        begun, starts = time.time(), starts + 1
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, PIPE: "1"}, process_group=0)
        try:
            code = process.wait()
        finally:
            end(process)
        if code == 0 or starts == 1 and code in USELESS:
            return code
        failures = 1 if time.time() - begun > STEADY else failures + 1
        log.error("The server ended with %s. It starts again in %s s.", code, pause(failures),
                  extra={"event": "restart", "code": code, "starts": starts, "pause": pause(failures)})
        time.sleep(pause(failures))


def main():
    lines.begin()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return keep([sys.executable, str(APP), *sys.argv[1:]])
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
