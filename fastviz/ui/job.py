"""Work under way: a thread, and what the page shows of it at any moment. A comparison is one kind of work."""

import errno
import logging
import os
import tempfile
import threading
from pathlib import Path

from ..models import BadModel, load
from ..store import files, query, recipe, zipped
from .board import shown, span, waiting, where

log = logging.getLogger(__name__)
TICK = 0.6  # seconds between two looks at the progress: more often would take time from what is being timed
ENDED = {"finished": "Done.", "stopped": "Stopped. What was finished stays."}
LOST = threading.Event()  # set when the device stopped answering: this process can compute nothing any more
GONE = "The device stopped answering. The server ends now: it has to be started again."


class Work:
    """Something under way in a thread of its own, so that it can be watched and stopped while it computes.

    state: "running", then "finished", "stopped" or "failed"; told: whether the page shows the end.
    """

    def __init__(self, name):
        self.state, self.sentence, self.told, self.fresh = "running", "Loading the model", False, True
        self.stop, self.changed = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, name=name, daemon=True)

    def work(self):
        from ..run import Lost, Stopped  # torch and diffusers: the page must not wait for them

        state, sentence = "finished", ""
        try:
            self.compute()
        except Stopped:
            state = "stopped"
        except Lost:
            state, sentence = "failed", GONE
            LOST.set()
        except BadModel as error:
            state, sentence = "failed", str(error)
        except Exception:
            log.exception("Work for the page failed: %s.", self.thread.name)
            state, sentence = "failed", f"The {self.thread.name} could not be finished: the server's log says why."
        self.state, self.sentence = state, sentence or ENDED[state]
        self.changed.set()

    def changes(self):
        """Starts the work and yields whenever there is something new to show, at most once a tick, until it has ended:
        whether there is more than a new progress line."""
        self.thread.start()
        while self.thread.is_alive():
            fresh, self.fresh = self.fresh, False
            yield fresh
            self.changed.wait(5)
            self.changed.clear()
            self.thread.join(TICK)

    def end(self):
        """Stops the work within one step and waits for it, so that the next one finds the pipeline clean."""
        self.stop.set()
        if self.thread.ident:
            self.thread.join()


class Job(Work):
    """A request's comparison. rows: the last Row per index; views: what the page shows of each; files: as store.files
    gives them, once packed."""

    def __init__(self, request):
        super().__init__("comparison")
        self.request, self.recipe, self.query = request, recipe(request), query(request)
        self.views = [waiting(i, stack) for i, stack in enumerate(request.methods)]
        self.rows, self.progress, self.environment, self.files = {}, None, {}, {}

    def compute(self):
        from ..compare import compare, environment

        self.environment = environment(load(self.request.model))
        for row in compare(self.request, on_progress=self.watch, stop=self.stop.is_set):
            self.take(row)

    def watch(self, progress):
        self.progress, self.sentence = progress, where(progress)
        self.changed.set()

    def take(self, row):
        self.rows[row.index] = row
        self.views[row.index] = shown(row, self.recipe, self.views[row.index])
        self.fresh = True
        self.changed.set()

    def status(self):
        """The progress line."""
        told = {"state": self.state, "sentence": self.sentence, "share": None, "left": "", "row": None, "step": None}
        if self.state == "running" and (now := self.progress):
            done = sum(row.repeats if not row.error else now.repeats for row in self.rows.values())
            step = now.step / now.steps
            told |= {"row": now.row, "step": step, "share": min(1.0, (done + step) / (now.rows * now.repeats)),
                     "left": "" if now.seconds_left is None else f"{span(now.seconds_left)} left"}
        elif self.state == "finished" and (bad := sum(row.error is not None for row in self.rows.values())):
            told["sentence"] = f"Done, but {bad} of {len(self.views)} rows failed: their cards say why."
        return told

    def board(self):
        """The rows and what they were made from."""
        asked = self.request
        return {"run": str(id(self)), "state": self.state, "rows": self.views, "environment": self.environment,
                "query": self.query, "prompt": asked.prompt, "seed": asked.seed}

    def pack(self):
        """One zip of what is finished, in the temp folder -> (its path or None, what went wrong or "")."""
        rows = [row for _, row in sorted(self.rows.items()) if row.image is not None]
        if not rows:
            return None, ""
        try:
            folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
            path = Path(folder, f"fastviz-seed-{self.request.seed}.zip")
            self.files = files(self.request, rows, self.environment)
            path.write_bytes(zipped(self.files))
            return str(path), ""
        except Exception as error:  # the pictures on the page must outlive whatever goes wrong with their copy
            log.exception("The archive could not be written.")
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            return None, f"There is no archive to download: {'the disk is full' if full else 'the server log says why'}."


class Opened(Job):
    """A comparison that is done, with its pictures and numbers: nothing is run."""

    def __init__(self, request, rows, environment):
        super().__init__(request)
        for row in rows:
            self.take(row)
        self.environment, self.told = environment, True
        self.state = "finished" if len(rows) == len(request.methods) else "stopped"
