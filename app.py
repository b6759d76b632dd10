"""Serves the page: python app.py, --help tells with what. GRADIO_SERVER_PORT is the port; FASTVIZ_FETCH names models to be
fetched first; FASTVIZ_PASSWORD is what visitors must type.

A server whose device is lost ends with 70, and has to be started again: `python -m fastviz.supervise` does it.
"""

import argparse
import dataclasses
import gc
import hmac
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time

gc.disable()  # until everything is imported: imports make much and throw away little, and take 12 % less time without
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything that runs here lies in the project or was fetched before
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # its warnings quote prompts, and none of both is a line of JSON
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from fastviz import supervise  # noqa: E402

supervise.follow()

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401  before torch, which it prepares for a device that comes and goes
from fastviz.ui import temp  # noqa: E402

PORT = int(os.environ.get("GRADIO_SERVER_PORT", 7860))
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER := temp.fresh(f"fastviz-{os.getuid()}-{PORT}"))  # Gradio reads it when imported

from starlette.middleware import Middleware  # noqa: E402

from fastviz import checkpoints, log, profile  # noqa: E402
from fastviz.ui import health, look, worker  # noqa: E402
from fastviz.ui.gate import Gate  # noqa: E402
from fastviz.ui.job import LOST  # noqa: E402
from fastviz.ui.page import Page  # noqa: E402

FAREWELL = 3  # seconds in which visitors hear that the device is lost
READY = threading.Event()


def warm(models):
    """Loads torch, diffusers and the first model while the page is already being looked at."""
    from fastviz import models as table, reading
    from fastviz.verified import BadModel

    try:
        import fastviz.compare  # noqa: F401

        reading.unknown_words(models[0], "")
        table.load(models[0])
        if worker.LENT:
            beside(models[0])
    except BadModel as error:
        logging.error("%s", error)
        health.note("model", str(error))
    finally:
        READY.set()
        gc.freeze()  # what is imported stays: never look through it again, least of all while something is being timed
        gc.enable()


def beside(key):
    """Loads what else a worker may need for a model, so that it costs no visitor lent seconds: networks for sketches and for one
    step, the decoder of previews, its tokenizer, LPIPS and what reads pictures. In the thread that imported `spaces`: no other can put a tensor on a
    device that is not lent."""
    from PIL import Image

    from fastviz import metrics, models, sketch
    from fastviz.methods import sdxs
    from fastviz.patch import Refused

    pipe, folder, blank = models.load(key), models.MODELS[key].folder, Image.new("RGB", (64, 64))
    models.tokenizer(folder)
    for part, network in (("sketch", sketch), ("student", sdxs)):
        try:
            if not network.missing(folder):
                network.load(pipe)
        except Refused as refusal:
            logging.error("%s", refusal)
            health.note(part, str(refusal))
    sdxs.previewing(pipe)
    found = metrics.score(blank, blank, "a", key)
    health.note("LPIPS", reason if isinstance(reason := found["lpips"], str) else "")


def arguments():
    parser = argparse.ArgumentParser(description="Serves the page of fastviz.")
    parser.add_argument("--profile", default=profile.default(), help="a profile of spaces_config.yaml")
    parser.add_argument("--host", help="address to listen on, the profile's by default; all but this machine's need FASTVIZ_PASSWORD")
    parser.add_argument("--mcp", action="store_true", help="answer language models too, at /gradio_api/mcp/: needs gradio[mcp]")
    parser.add_argument("--model-folder", metavar="PATH", action="append", default=[],
                        help="a diffusers folder of your own, offered as one more model; may be given several times")
    args = parser.parse_args()
    if args.mcp and importlib.util.find_spec("mcp") is None:
        sys.exit("--mcp needs a package that is not installed: pip install 'gradio[mcp]'.")
    if args.mcp and os.environ.get("FASTVIZ_PASSWORD"):  # Gradio tells what its tools are without it, and calls none with it
        sys.exit("--mcp knows no password: unset FASTVIZ_PASSWORD and listen on this machine only, or leave --mcp out.")
    return args


def chosen_profile(args):
    """The profile that the arguments name, with what they add to it. Ends the program with a sentence where they are wrong."""
    try:
        chosen = profile.load(args.profile)
        if args.host:
            chosen = profile.moved(chosen, args.host)
        profile.may_listen(chosen.address)
        if os.environ.get("FASTVIZ_PASSWORD"):  # more than one person is expected
            chosen = dataclasses.replace(chosen, history_shared=False)
        own = tuple(map(checkpoints.add_folder, args.model_folder))
        chosen = dataclasses.replace(chosen, models=(*chosen.models, *own))
    except ValueError as error:
        sys.exit(str(error))
    return chosen


def bring(chosen):
    """Fetches what FASTVIZ_FETCH names: models that the profile offers, and lpips. Of others the log says what to do."""
    for key in filter(None, map(str.strip, os.environ.get("FASTVIZ_FETCH", "").split(","))):
        if key == "lpips" or key in chosen.models:
            subprocess.run([sys.executable, "-m", "fastviz", "fetch", key], env={**os.environ, "HF_HUB_OFFLINE": "0"})
        else:
            logging.error("FASTVIZ_FETCH names %s, which this profile does not offer, so it is not fetched: add it to the profile's "
                          "models in spaces_config.yaml, or choose another profile.", key)


def door():
    """What launch() asks of visitors: any name and the password, where there is one."""
    password = os.environ.get("FASTVIZ_PASSWORD", "")
    return {"auth": lambda name, typed: bool(name.strip()) and hmac.compare_digest(typed.encode(), password.encode()),
            "auth_message": "Type any name, and the password that you were given."} if password else {}


def main():
    args = arguments()
    log.begin()
    chosen = chosen_profile(args)
    bring(chosen)
    if chosen.hardware == profile.ZERO and "spaces" in sys.modules:
        worker.rent()
        for key in chosen.models:  # before the first visitor, and here: a worker is a copy of this process
            if not checkpoints.MODELS[key].missing:
                warm([key])
    page = Page(chosen).blocks.queue(max_size=chosen.queue, api_open=False)
    temp.keep(FOLDER, 60 * chosen.temp_minutes, chosen.temp_megabytes, page.temp_file_sets)
    try:
        page.launch(server_name=chosen.address, server_port=PORT, share=False, strict_cors=True, max_file_size="2mb",
                    show_error=False, enable_monitoring=False, run_history=False, state_session_capacity=64,
                    theme=look.theme(), css=look.styles(), head=look.head(), footer_links=[], ssr_mode=False,
                    mcp_server=args.mcp, prevent_thread_lock=True, quiet=True, **door(),
                    app_kwargs={"middleware": [Middleware(Gate, chosen.hosts)],
                                "routes": health.routes(page._queue, chosen.queue, READY, chosen.metrics)})
    except OSError:
        sys.exit(f"Port {PORT} is taken: choose another one, for example GRADIO_SERVER_PORT={PORT + 1} make app.")
    print(f"fastviz is ready: http://{chosen.address}:{PORT}", flush=True)
    if not worker.LENT:
        threading.Thread(target=warm, args=(chosen.models,), name="warm", daemon=True).start()
    try:
        LOST.wait()
    except KeyboardInterrupt:
        page.close()
        return
    time.sleep(FAREWELL)
    os._exit(70)  # at once: threads that wait for the device would keep an orderly end from coming


if __name__ == "__main__":
    main()
