"""Work under way: a thread, and what the page shows of it at any moment. A comparison is one kind of work."""

import contextvars
import copy
import logging
import os
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import gradio as gr

from ..models import load
from ..request import BadRequest
from ..store import archive, figure, files, query, recipe
from ..verified import BadModel
from . import health, worker
from .board import png, shown, span, waiting, where

log = logging.getLogger(__name__)
TICK = 0.6  # seconds between two looks at the progress: more often would take time from what is being timed
ENDED = {"finished": "Done.", "stopped": "Stopped. What was finished stays."}
LOST = threading.Event()  # set when the device stopped answering: this process can compute nothing any more
GONE = "The device stopped answering. The server ends now, and this page comes back when it is started again."


def able():
    """BadRequest where no new work can be done."""
    if LOST.is_set():
        raise BadRequest("model", GONE)


class Work:
    """Something under way in a thread of its own, so that it can be watched and stopped while it computes.

    state: "running", then "finished", "stopped" or "failed"; told: whether the page shows the end; between: called by long
    work where others may have their turns.
    """

    def __init__(self, name):
        self.state, self.sentence, self.told, self.fresh = "running", "Loading the model", False, True
        self.stop, self.changed, self.between = threading.Event(), threading.Event(), lambda: None
        visitor = contextvars.copy_context()  # a lent GPU is asked for in the visitor's name
        self.thread = threading.Thread(target=visitor.run, args=(self.work,), name=name, daemon=True)

    def work(self):
        from ..run import Failed, Lost, Stopped, disk_full  # torch and diffusers: the page must not wait for them

        state, sentence = "finished", ""
        health.working.add(self)
        try:
            self.compute()
        except Stopped:
            state = "stopped"
        except Lost:
            state, sentence = "failed", GONE
            health.note("device", GONE)
            LOST.set()
        except (BadRequest, Failed) as refusal:
            state, sentence = "failed", str(refusal)
        except BadModel as error:
            state, sentence = "failed", str(error)
            health.note("model", sentence)
        except gr.Error as refusal:  # ZeroGPU's: no GPU, no quota, or a worker that was ended; str() of its words leaves HTML out
            state, sentence = "failed", f"{refusal.title}: {refusal.message!s}".strip()
            log.warning("%s", sentence)
        except Exception as error:
            log.exception("Work for the page failed: %s.", self.thread.name)
            why = "the disk is full" if disk_full(error) else "the server's log says why"
            state, sentence = "failed", f"The {self.thread.name} could not be finished: {why}."
        health.working.discard(self)
        health.RUNS.labels(self.thread.name, state).inc()
        log.info("A %s ended: %s.", self.thread.name, state, extra={"event": "work", "work": self.thread.name, "outcome": state, **self.facts()})
        self.state, self.sentence = state, sentence or ENDED[state]
        self.changed.set()

    def facts(self):
        """What the log tells of it."""
        return {}

    def changes(self):
        """Starts the work and yields whenever there is something new to show, at most once a tick, until it has ended:
        whether there is more than a new progress line."""
        if self.state != "running":  # shown from memory
            return
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
    """A request's comparison. rows: the last Row per index; views: what the page shows of each; log_prompt: whether the
    log may tell the prompt; files: as store.files gives them, once packed."""

    def __init__(self, request, log_prompt=False):
        super().__init__("comparison")
        self.log_prompt = log_prompt
        self.request, self.recipe, self.query = request, recipe(request), query(request)
        self.views = [waiting(i, stack) for i, stack in enumerate(request.methods)]
        self.rows, self.progress, self.environment, self.files = {}, None, {}, {}
        self.seen = None  # (row, picture) that a run aimed at last
        self.measured = time.strftime("%Y-%m-%d %H:%M %Z")

    def compute(self):
        from ..compare import compare, environment

        if worker.LENT:
            return self.compute_elsewhere()
        self.environment = environment(load(self.request.model))
        health.note("model", "")
        for row in compare(self.request, on_progress=self.watch, stop=self.stop.is_set, on_glimpse=self.glimpse):
            self.take(row)

    def compute_elsewhere(self):
        """The same in a worker that holds a GPU: it tells of rows, not of steps."""
        from ..run import Stopped

        worker.check(self.request)
        self.sentence = "Waiting for a GPU, then running"
        with worker.lasting(self.stop) as lasting, closing(worker.LENT["rows"](self.request, lasting)) as found:
            self.environment = worker.received(next(found))
            health.note("model", "")
            for row in map(worker.received, found):
                self.take(row)
                if self.stop.is_set():
                    raise Stopped

    def again(self):
        """This comparison as another visitor sees it who asked the same: never as if it were timed anew."""
        other = copy.copy(self)
        other.environment = {**self.environment, "measured": f"{self.measured} for an earlier visitor, not anew"}
        other.sentence = f"Shown from memory: measured at {self.measured} for an earlier visitor, not timed anew."
        return other

    def watch(self, progress):
        self.progress, self.sentence = progress, where(progress)
        self.changed.set()

    def glimpse(self, row, picture):
        self.seen = row, png(picture)

    def facts(self):
        """The settings and the failures; the prompt where the operator wants it."""
        told = {name: value for name, value in self.recipe.items() if name != "sketch" and (name != "prompt" or self.log_prompt)}
        return told | {"failed_rows": [row.stack for row in self.rows.values() if row.error]}

    def take(self, row):
        """Counts a row that was computed just now, and shows it."""
        if row.error:
            health.ROWS.labels("failed").inc()
        else:
            health.took(row.run.text, sum(row.run.steps), row.run.decode)
            health.note("LPIPS", reason if isinstance(reason := row.metrics["lpips"], str) else "")
        self.place(row)

    def place(self, row):
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
            told |= {"glimpse": self.seen[1]} if self.seen and self.seen[0] == now.row and now.row not in self.rows else {}
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
        from ..run import disk_full

        rows = [row for _, row in sorted(self.rows.items()) if row.image is not None]
        if not rows:
            return None, ""
        try:
            folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
            path = Path(folder, f"fastviz-seed-{self.request.seed}.zip")
            self.files = files(self.request, rows, self.environment)
            path.write_bytes(archive(self.files | figure(self.request, rows, self.environment)))
            health.note("archive", "")
            return str(path), ""
        except Exception as error:  # the pictures on the page must outlive whatever goes wrong with their copy
            log.exception("The archive could not be written.")
            told = f"There is no archive to download: {'the disk is full' if disk_full(error) else 'the server log says why'}."
            health.note("archive", told)
            return None, told


class Opened(Job):
    """A comparison that is done, with its pictures and numbers: nothing is run, and nothing counted."""

    def __init__(self, request, rows, environment):
        super().__init__(request)
        for row in rows:
            self.place(row)
        self.environment, self.told = environment, True
        self.state = "finished" if len(rows) == len(request.methods) else "stopped"
