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
    """Starts app.py -> {"served": seconds until the page answers, "first_picture": seconds from the request, in quick
    mode, to its first picture, models still to be loaded}. RuntimeError with the server's last words when it fails."""
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
            begun = time.perf_counter()
            first_picture(client.submit(request.prompt, seed=request.seed, steps=request.steps, size=request.size,
                                        model=request.model, repeats=1, api_name="/compare"))
            return {"served": served, "first_picture": time.perf_counter() - begun}
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


def first_picture(job):
    """Returns as soon as the stream of a comparison holds the full model's picture."""
    for told in job:
        if told.get("rows") and told["rows"][0]["picture"]:
            return
        if told["state"] in ("refused", "failed"):
            break
    raise RuntimeError(f"no picture came: {told['state']}, {told['sentence']}")
