"""Why the rows of a comparison are not faster: each runs once more with a profiler, when that is asked for."""

from .. import models
from .job import Work


class Why(Work):
    """Breakdowns of a finished comparison's rows. views: what the page shows of each, in order."""

    def __init__(self, job):
        super().__init__("search for reasons")
        self.job, self.asked = job, [row for _, row in sorted(job.rows.items()) if row.seconds is not None]
        self.views, self.place = [], (0, 0, 1)

    def compute(self):
        from ..explore import explain

        models.load(self.job.request.model)
        for told in explain.explain(self.job.request, self.asked, on_step=self.watch, stop=self.stop.is_set):
            self.views.append(explain.plain(told))
            self.fresh = True

    def watch(self, row, step, steps):
        self.place, self.sentence = (self.asked.index(row), step, steps), f"Profiling {row.title}: step {step} of {steps}"
        self.changed.set()

    def status(self):
        """The progress line."""
        told = {"state": self.state, "sentence": self.sentence, "share": None, "left": "", "row": None, "step": None}
        i, step, steps = self.place
        return told | ({"share": (i + step / steps) / len(self.asked)} if self.state == "running" and self.asked else {})

    def board(self):
        from ..explore.classes import CLASSES

        return {"state": self.state, "rows": self.views, "classes": CLASSES}
