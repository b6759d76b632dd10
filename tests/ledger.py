"""What really happened to every request of a session of tests: one line of JSON at its end."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

ENDS = {"finished": "completed", "refused": "refused", "failed": "failed", "stopped": "cancelled"}


def quantile(values, share):
    """The smallest value that `share` of all values do not exceed, in s; None of none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def outcome(last):
    """How a call ended, from the last thing that the server said: lost when it never told an end."""
    if last is None or last["msg"] != "process_completed":
        return "lost"
    if not last["success"]:
        return "failed"  # with the sentence that Gradio shows
    told = (last["output"].get("data") or [None])[0]
    if not isinstance(told, dict):
        return "cancelled"  # an end without an answer is what a cancelled call hears
    rows = told.get("rows") or []
    return "failed" if rows and not any(row.get("picture") for row in rows) else ENDS[told["state"]]


@dataclass
class Ledger:
    """Counts from many threads. A request ends as completed, refused, failed with a sentence, cancelled by its visitor, or
    lost; seconds: of the completed ones."""
    submitted: int = 0
    ends: dict = field(default_factory=lambda: dict.fromkeys(("completed", "refused", "failed", "cancelled", "lost"), 0))
    seconds: list = field(default_factory=list)
    under_way: int = 0
    peak_concurrency: int = 0
    temp_mb: float = 0.0
    faults: list = field(default_factory=list)
    inputs_tried: int = 0
    unexpected: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def request(self):
        """One request from start to end. The block puts how it ended into the list that it gets."""
        end, begun = [], time.monotonic()
        with self.lock:
            self.submitted += 1
            self.under_way += 1
            self.peak_concurrency = max(self.peak_concurrency, self.under_way)
        try:
            yield end
        finally:
            with self.lock:
                self.under_way -= 1
                told = end[-1] if end else "lost"
                self.ends[told] += 1
                if told == "completed":
                    self.seconds.append(time.monotonic() - begun)

    @contextmanager
    def fault(self, name):
        """A fault that is survived when the block ends well."""
        yield
        self.faults.append(name)

    def folder(self, path):
        """Looks how much a server's temp folder holds now, in MB."""
        held = 0
        for file in path.rglob("*"):
            try:
                held += file.stat().st_size if file.is_file() else 0
            except FileNotFoundError:
                continue
        self.temp_mb = max(self.temp_mb, held / 2**20)
        return held / 2**20

    def plain(self):
        """All that `add` needs to know of a ledger of another process."""
        return [self.submitted, self.ends, self.seconds, self.peak_concurrency, self.temp_mb, self.faults, self.inputs_tried, self.unexpected]

    def add(self, plain):
        submitted, ends, seconds, peak, temp, faults, tried, unexpected = plain
        self.submitted, self.inputs_tried, self.unexpected = self.submitted + submitted, self.inputs_tried + tried, self.unexpected + unexpected
        self.ends = {name: count + ends[name] for name, count in self.ends.items()}
        self.seconds, self.faults = self.seconds + seconds, self.faults + faults
        self.peak_concurrency, self.temp_mb = max(self.peak_concurrency, peak), max(self.temp_mb, temp)

    def line(self):
        return json.dumps({"submitted": self.submitted, **self.ends, "p50": quantile(self.seconds, 0.5), "p95": quantile(self.seconds, 0.95),
                           "peak_concurrency": self.peak_concurrency, "temp_mb": round(self.temp_mb, 2), "faults_survived": len(self.faults),
                           "inputs_tried": self.inputs_tried, "unexpected": self.unexpected + self.ends["lost"]})


LEDGER = Ledger()
