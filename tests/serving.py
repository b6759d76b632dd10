"""Starts the real page as a process and speaks to it as a browser's wire does. Every request is in the ledger."""

import base64
import hashlib
import io
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
from unittest import mock

import httpx
from ledger import LEDGER, outcome
from PIL import Image

from fastviz import profile, sketch
from fastviz.ui.page import Page

ROOT = Path(__file__).parents[1]
PATIENCE = 180  # seconds for anything that a busy machine may take long for


HTTP = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))


def tiny_page():
    """The page as a server of the tiny model has it: without a sheet, which needs a network that reads drawings."""
    with mock.patch.object(sketch, "ready", lambda: False):
        return Page(profile.load())


def pixels(image):
    """A digest of a PIL picture's pixels."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def picture(row):
    """The same of the picture in a row as the page shows it; None without one."""
    uri = row.get("picture")
    return uri and pixels(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@dataclass
class Server:
    """address: http://127.0.0.1:port; folder: its /tmp; process: the server's; log: what it wrote;
    numbers: api name -> index, shows: api name -> elem_id of each of its outputs, once asked for."""
    address: str
    folder: Path
    process: subprocess.Popen
    log: Path
    numbers: dict = field(default_factory=dict)
    shows: dict = field(default_factory=dict)

    def number(self, name):
        """The index by which the wire calls the handler `name`."""
        if not self.numbers:
            told = HTTP.get(f"{self.address}/config").json()
            places = {each["id"]: each["props"].get("elem_id") for each in told["components"]}
            self.numbers.update((each["api_name"], each["id"]) for each in told["dependencies"])
            self.shows.update((each["api_name"], [places.get(id) for id in each["outputs"]]) for each in told["dependencies"])
        return self.numbers[name]

    def join(self, name, data, session=None, raw=None):
        """Puts a call into the queue -> (answer, session). raw: the JSON text of `data`, where Python cannot say it."""
        session = session or uuid.uuid4().hex[:12]
        frame = {"fn_index": self.number(name), "session_hash": session, "data": "DATA"}
        body = json.dumps(frame).replace('"DATA"', raw if raw is not None else json.dumps(data))
        answer = HTTP.post(f"{self.address}/gradio_api/queue/join", content=body,
                            headers={"content-type": "application/json"})
        return answer, session

    def messages(self, session):
        """What the server says to a session, until its stream ends: a client that left as soon as it has heard the end of
        its call would leave an entry in Gradio's tables."""
        with HTTP.stream("GET", f"{self.address}/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    @property
    def temp(self):
        """Its temp folder."""
        return self.folder / f"fastviz-{os.getuid()}-{self.address.rpartition(':')[2]}"

    def health(self):
        """(HTTP status, what /health says)."""
        answer = HTTP.get(f"{self.address}/health")
        return answer.status_code, answer.json()

    def metric(self, sample):
        """The value of one sample of /metrics, such as fastviz_working; 0 for one that was not counted yet."""
        lines = HTTP.get(f"{self.address}/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == sample), 0.0)

    def idle(self):
        """Whether nothing computes and nobody waits."""
        return not self.metric("fastviz_working") and not self.metric("fastviz_queue")

    def call(self, name, data, raw=None, session=None):
        """One call from start to end -> (HTTP status, first thing that the handler said or None, last message or None)."""
        with LEDGER.request() as end:
            answer, session = self.join(name, data, session, raw)
            if answer.status_code != 200:
                end.append("refused" if 400 <= answer.status_code < 500 or answer.status_code == 503 else "lost")
                return answer.status_code, None, None
            first = last = None
            try:
                for last in self.messages(session):
                    if first is None and last["msg"] == "process_generating":
                        first = last["output"]["data"][0]
            except httpx.TransportError:
                end.append("failed")  # the connection broke: the page tells it to the visitor
                return 200, first, None
            end.append(outcome(last))
            LEDGER.folder(self.temp)
            return 200, first, last

    def compare(self, data):
        """What the page shows at the end of a comparison."""
        status, _, last = self.call("compare", data)
        assert status == 200 and last["success"], (status, last)
        return last["output"]["data"][0]

    def page(self, name, data, session):
        """{elem_id: value} of the page's places at the end of a call."""
        last = self.call(name, data, session=session)[2]
        return dict(zip(self.shows[name], last["output"]["data"], strict=True))

    def vanish(self, name, data, after="process_generating"):
        """A visitor who leaves as soon as the server has said `after`."""
        with LEDGER.request() as end:
            answer, session = self.join(name, data)
            if answer.status_code == 200:
                heard = self.messages(session)
                end.append("cancelled" if any(message["msg"] == after for message in heard) else "lost")
                heard.close()
            else:
                end.append("refused")
            return answer.status_code


@contextmanager
def serve(folder, command=("app.py",), before=(), **environment):
    """A running server; its words go to `folder`/log. command: what Python runs; before: what runs Python."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    port = int(environment.pop("GRADIO_SERVER_PORT", port))
    log = Path(folder, "log")
    with open(log, "w") as words:
        # one thread computes, so that on two cores the browser beside it still answers
        process = subprocess.Popen([*before, sys.executable, *command], cwd=ROOT, stdout=words, stderr=subprocess.STDOUT, env={
            **os.environ, "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1",
            "FASTVIZ_HISTORY": str(Path(folder, "history")),
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
