"""What every open tab of a browser did, for as long as it is open, and not for too many."""

from dataclasses import dataclass

from .inside import Inside
from .job import Job, Work

REMEMBERED = 64  # whoever never leaves is forgotten


@dataclass
class Visit:
    """job: the last comparison; look: the look inside it, where there was one; work: what was begun last."""
    job: Job | None = None
    look: Inside | None = None
    work: Work | None = None

    def take(self, job):
        """Begins with another comparison."""
        self.job, self.look, self.work = job, None, job
        return job

    @property
    def busy(self):
        return self.work is not None and self.work.state == "running"


class Visits:
    """Visits by the session of their tab."""

    def __init__(self):
        self.known = {}

    def of(self, request):
        """What this tab did: a Visit without anything where it did nothing yet."""
        return self.known.get(request.session_hash) or Visit()

    def now(self, request):
        """The same, which is then the youngest that is remembered; of the others, the oldest that are over are forgotten."""
        visit = self.known[request.session_hash] = self.known.pop(request.session_hash, None) or Visit()
        over = [session for session, other in list(self.known.items()) if other is not visit and not other.busy]
        for session in over[:max(0, len(self.known) - REMEMBERED)]:
            self.known.pop(session, None)
        return visit

    def leave(self, request):
        """Ends what a closed tab left running, and forgets it."""
        visit = self.known.pop(request.session_hash, None)
        if visit and visit.work:
            visit.work.end()
