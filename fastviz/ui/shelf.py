"""The history on the page: whose runs a tab sees, what it wishes, and a kept comparison opened again."""

import hashlib
import logging
import re

from ..explore.history import SWEEP, History, home
from ..explore.plan import again
from ..request import BadRequest
from . import health
from .job import Opened
from .sweep import Sweeping

log = logging.getLogger(__name__)
TOKEN = re.compile(r"[0-9a-f]{32}")  # what a visitor's browser made up and keeps
THUMBS = 4  # pictures of a run in the list
REMEMBERED = 1000  # tabs whose visitor is known; whoever never leaves is forgotten
PROGRAM = "program"  # under whom all programs' runs are kept
UNREAD = "The history cannot be read: the server's log says why."


def owner_of(token):
    """The owner under which a visitor's runs are kept, or None for what is no token. The history never holds the token."""
    known = isinstance(token, str) and TOKEN.fullmatch(token)
    return hashlib.sha256(token.encode()).hexdigest() if known else None


def shelf_of(profile):
    """(the Shelf of this installation, ""), or (None, why there is none): "" where the profile wants none. A disk that takes
    no history must not keep the page from being served."""
    if not profile.history_megabytes:
        return None, ""
    try:
        return Shelf(History(home(), profile.history_megabytes), profile.history_shared), ""
    except OSError as error:
        log.error("Runs are not kept: %s. Make room, or let FASTVIZ_HISTORY name a folder that can be written, and start again.", error)
        told = "Runs are not kept, because this server cannot write its history: its log says why. Everything else works."
        health.note("history", told)
        return None, told


class Shelf:
    """What one installation's page shows of the History. shared: everybody sees everybody's."""

    def __init__(self, history, shared):
        self.history, self.shared, self.owners = history, shared, {}

    def arrive(self, session, token):
        """From now on `session` is the visitor with this token."""
        if owner := owner_of(token):
            self.owners[session] = owner
            while len(self.owners) > REMEMBERED:
                self.owners.pop(next(iter(self.owners)), None)
        return self.listed(session)

    def owner(self, session):
        """Under whom a session's sweeps are kept: one without a token is a visitor of its own."""
        return self.owners.get(session, session)

    def sees(self, session):
        """Whose runs a session sees; nobody has the owner ""."""
        return None if self.shared else self.owners.get(session, "")

    def listed(self, session, text="", **more):
        """The list of runs as plain values."""
        text = text if isinstance(text, str) else ""
        try:
            runs = self.history.search(self.sees(session), text[:300])
        except OSError:
            log.exception("The history could not be read.")
            runs, more = [], more | {"sentence": UNREAD}
        for run in runs:
            for row in run.get("rows", [])[THUMBS:]:
                row.pop("thumb", None)
            if run["kind"] == SWEEP:
                plan = run.pop("plan")
                vary = [f"{name} {', '.join(map(str, values))}" for name, values in plan["vary"]]
                run |= {"keys": len(run["keys"]), "varied": "; ".join(vary), "prompts": len(plan["prompts"])}
        return {"runs": runs, "text": text[:300], "shared": self.shared, "sentence": "", "pair": None} | more

    def keep(self, session, job):
        """Keeps a session's comparison, for a visitor who has made himself known -> whether it is kept. session: None for
        a program, which nobody can tell from another: what it runs is kept where everybody sees everything."""
        owner = PROGRAM if session is None and self.shared else self.owners.get(session)
        if owner:
            rows = [row for _, row in sorted(job.rows.items())]
            self.history.keep(owner, job.request, rows, job.environment, job.files or None)
        return bool(owner)

    def opened(self, session, wish):
        """The comparison that is wished for, an Opened, or the sweep, a Sweeping. BadRequest when there is none."""
        told = self.history.plain(self.history.entry(self.sees(session), wish.get("id")))
        if told["kind"] != SWEEP:
            return Opened(*self.history.open(self.sees(session), told["id"]))
        from ..explore import sweep as sweeping

        work = Sweeping(again(told["plan"]), self.history, "")
        work.sweep, work.state, work.told = sweeping.kept(self.history, told), "finished", True
        work.collect()
        return work

    def granted(self, session, wish):
        """The list after a wish: {"do": "search", "text"}, {"do": "delete", "id"} or {"do": "pair", "ids": [two]}."""
        if wish.get("do") == "delete":
            self.history.delete(self.sees(session), wish.get("id"))
        ids = wish.get("ids") if wish.get("do") == "pair" else None
        if ids is not None and (not isinstance(ids, list) or len(ids) != 2):
            raise BadRequest("history", "Choose two runs to compare.")
        pair = ids and [self.history.rows_of(self.sees(session), id) for id in ids]
        return self.listed(session, wish.get("text", ""), pair=pair)
