"""Runs of the network side by side, and how far they are."""

import time

from ..search.network import Network
from ..search.session import Bar


class Work:
    """What is being done, and how long the rest takes at the pace so far, on stderr. total: calls of the network, each as
    often as it has prompts."""

    def __init__(self, total):
        self.bar, self.total, self.done, self.title, self.begun = Bar(), total, 0, "", time.monotonic()

    def say(self, title):
        self.title = title
        self.tick(0)

    def tick(self, prompts):
        self.done += prompts
        share = min(1, self.done / self.total)
        left = f", about {self.seconds * (1 / share - 1) / 60:.0f} min left" if share else ""
        self.bar.show(share, self.title + left)

    def close(self):
        self.bar.close()

    @property
    def seconds(self):
        return time.monotonic() - self.begun


def networks(pipe, asked, batch, work):
    """Yields Networks for Requests, `batch` at a time."""
    for i in range(0, len(asked), batch):
        yield Network(pipe, asked[i:i + batch], work.tick)
