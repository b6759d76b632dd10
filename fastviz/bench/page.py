"""How long the page needs: a fresh server as its own process, timed from outside until it answers and draws."""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager

from ..models import ROOT

PATIENCE = 120  # seconds until a server that does not answer is given up


def times(request):
    """Starts app.py -> seconds: "served": until the page answers; from a request, in quick mode, to its first picture:
    "first_picture": asked for in the moment when the page is served, everything still to be imported and loaded;
    "next_picture": asked for after that. RuntimeError with the server's last words when it fails."""
    from gradio_client import Client

    with serving("app.py") as (address, served):
        client = Client(address, verbose=False)
        return {"served": served, "first_picture": picture(client, request), "next_picture": picture(client, request)}


@contextmanager
def serving(*arguments):
    """(address, seconds until it answered) of a page that Python serves with these arguments until the block is over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as words:
        begun = time.perf_counter()
        server = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=words,
                                  env={**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"})
        try:
            wait_for(address, server, words)
            yield address, time.perf_counter() - begun
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address, server, words):
    """Returns as soon as the page is served."""
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                answer.read()
                return
        except (OSError, http.client.HTTPException):
            if server.poll() is not None:
                words.seek(0)
                raise RuntimeError(f"The server ended: {words.read()[-2000:]}") from None
            time.sleep(0.02)
    raise RuntimeError(f"{address} did not answer within {PATIENCE} s")


def picture(client, request):
    """Seconds from asking for the full model's picture alone until the stream holds it."""
    begun = time.perf_counter()
    for told in client.submit(request.prompt, seed=request.seed, steps=request.steps, size=request.size,
                              model=request.model, methods="full", repeats=1, api_name="/compare"):
        if told.get("rows") and told["rows"][0]["picture"]:
            return time.perf_counter() - begun
        if told["state"] in ("refused", "failed"):
            break
    raise RuntimeError(f"no picture came: {told['state']}, {told['sentence']}")
