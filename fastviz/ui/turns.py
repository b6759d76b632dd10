"""Whose turn it is, where many visitors share one pipeline: one after the other by visitor, not by request."""

import threading
import time
from collections import deque
from contextlib import contextmanager
from statistics import mean

from ..request import BadRequest

LATELY = 8  # turns whose time tells how long the next ones will take


class Turns:
    """Visitors wait in a ring; each has a line of their own. most: how many one visitor may have waiting or running."""

    def __init__(self, most):
        self.most, self.lines, self.ring = most, {}, deque()
        self.lock, self.running, self.begun, self.took = threading.Lock(), None, 0.0, deque(maxlen=LATELY)

    def enter(self, visitor):
        """A ticket, at the end of the visitor's own line. BadRequest when that is full."""
        ticket = object()
        with self.lock:
            line = self.lines.setdefault(visitor, [])
            if len(line) >= self.most:
                what = "a comparison" if self.most == 1 else f"{self.most} comparisons"
                raise BadRequest("queue", f"You have {what} waiting or running already: wait for it, or press Stop there.")
            line.append(ticket)
            if visitor not in self.ring:
                self.ring.append(visitor)
        return ticket

    def place(self, visitor, ticket):
        """How many turns come before this ticket's, the running one included; 0: it is this one's turn now, and the
        pipeline is its own until `leave`."""
        with self.lock:
            before = self.lines[visitor].index(ticket)
            at = list(self.ring).index(visitor)
            others = sum(min(len(self.lines[other]), before + (i < at)) for i, other in enumerate(self.ring) if i != at)
            if before + others == 0 and self.running is None:
                self.running, self.begun = ticket, time.time()
            return 0 if self.running is ticket else max(1, before + others)

    @property
    def each(self):
        """Seconds that a turn took lately, on average: some are over at once. None before the first one."""
        return mean(self.took) if self.took else None

    def leave(self, visitor, ticket):
        """Gives up the place or the turn. The visitor goes to the end of the ring after a turn."""
        with self.lock:
            line = self.lines[visitor]
            line.remove(ticket)
            if self.running is ticket:
                self.running = None
                self.took.append(time.time() - self.begun)
                self.ring.remove(visitor)
                if line:
                    self.ring.append(visitor)
            elif not line:
                self.ring.remove(visitor)
            if not line:
                del self.lines[visitor]

    def pass_on(self, visitor):
        """Lets the others go first, once round, in the middle of long work. -> the ticket that had the turn, for `place`."""
        with self.lock:
            ticket, self.running = self.running, None
            self.ring.remove(visitor)
            self.ring.append(visitor)
        return ticket

    @contextmanager
    def held(self, visitor):
        """A ticket for the length of a with block."""
        ticket = self.enter(visitor)
        try:
            yield ticket
        finally:
            self.leave(visitor, ticket)
