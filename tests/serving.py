"""Starts the real page as a process and speaks to it as a browser's wire does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
PATIENCE = 180  # seconds for anything that a busy machine may take long for


@dataclass
class Server:
    """address: http://127.0.0.1:port; folder: its /tmp; process: the server's; log: what it wrote;
    numbers: api name -> index, once asked for."""
    address: str
    folder: Path
    process: subprocess.Popen
    log: Path
    numbers: dict = field(default_factory=dict)

    def number(self, name):
        """The index by which the wire calls the handler `name`."""
        if not self.numbers:
            told = httpx.get(f"{self.address}/config", timeout=PATIENCE).json()
            self.numbers.update((each["api_name"], each["id"]) for each in told["dependencies"])
        return self.numbers[name]

    def join(self, name, data, session=None, raw=None):
        """Puts a call into the queue -> (answer, session). raw: the JSON text of `data`, where Python cannot say it."""
        session = session or uuid.uuid4().hex[:12]
        frame = {"fn_index": self.number(name), "session_hash": session, "data": "DATA"}
        body = json.dumps(frame).replace('"DATA"', raw if raw is not None else json.dumps(data))
        answer = httpx.post(f"{self.address}/gradio_api/queue/join", content=body, timeout=PATIENCE,
                            headers={"content-type": "application/json"})
        return answer, session

    def messages(self, session):
        """What the server says to a session, until its call is complete or its stream ends."""
        with httpx.stream("GET", f"{self.address}/gradio_api/queue/data", params={"session_hash": session}, timeout=PATIENCE) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] in ("process_completed", "close_stream"):
                        return

    def call(self, name, data, raw=None):
        """One call from start to end -> (HTTP status, first thing that the handler said or None, last message or None)."""
        answer, session = self.join(name, data, raw=raw)
        if answer.status_code != 200:
            return answer.status_code, None, None
        told = list(self.messages(session))
        first = next((m["output"]["data"][0] for m in told if m["msg"] == "process_generating"), None)
        return 200, first, told[-1]


@contextmanager
def serve(folder, command=("app.py",), **environment):
    """A running server; its words go to `folder`/log. command: what Python runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    port = int(environment.pop("GRADIO_SERVER_PORT", port))
    log = Path(folder, "log")
    with open(log, "w") as words:
        # one thread computes, so that on two cores the browser beside it still answers
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=words, stderr=subprocess.STDOUT, env={
            **os.environ, "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder), "FASTVIZ_HISTORY": str(Path(folder, "history")), "OMP_NUM_THREADS": "1",
            **environment})
    running = Server(f"http://127.0.0.1:{port}", Path(folder), process, log)
    try:
        wait(lambda: "is ready" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()[-2000:]
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def wait(ready, seconds=PATIENCE):
    """Returns as soon as ready() holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
