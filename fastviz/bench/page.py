"""How long the page needs: a fresh server as its own process, timed from outside until it answers and draws."""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from ..models import ROOT

PATIENCE = 120  # seconds until a server that does not answer is given up


def times(request):
    """Starts app.py -> seconds: "served": until the page answers; from a request, in quick mode, to its first picture:
    "first_picture": asked for in the moment when the page is served, everything still to be imported and loaded;
    "next_picture": asked for after that. RuntimeError with the server's last words when it fails."""
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as words:
        begun = time.perf_counter()
        server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=words,
                                  env={**os.environ, "GRADIO_SERVER_PORT": str(port)})
        try:
            wait_for(address, server, words)
            served = time.perf_counter() - begun
            client = Client(address, verbose=False)
            return {"served": served, "first_picture": picture(client, request), "next_picture": picture(client, request)}
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
                raise RuntimeError(f"app.py ended: {words.read()[-2000:]}") from None
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
