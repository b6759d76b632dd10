"""Serves the page: python app.py. FASTVIZ_PROFILE names a profile of spaces_config.yaml, GRADIO_SERVER_PORT a port.

A server whose device is lost ends with 70, and has to be started again: `python -m fastviz.supervise` does it.
"""

import gc
import logging
import os
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

from fastviz.ui import temp  # noqa: E402

PORT = int(os.environ.get("GRADIO_SERVER_PORT", 7860))
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER := temp.fresh(f"fastviz-{os.getuid()}-{PORT}"))  # Gradio reads it when imported

from starlette.middleware import Middleware  # noqa: E402

from fastviz import log, profile  # noqa: E402
from fastviz.ui import health, look  # noqa: E402
from fastviz.ui.gate import Gate  # noqa: E402
from fastviz.ui.job import LOST  # noqa: E402
from fastviz.ui.page import Page  # noqa: E402

FAREWELL = 3  # seconds in which visitors hear that the device is lost
PROFILE = os.environ.get("FASTVIZ_PROFILE") or ("space" if os.environ.get("SPACE_ID") else "local")
READY = threading.Event()


def warm(models):
    """Loads torch, diffusers and the first model while the page is already being looked at."""
    from fastviz import models as table

    try:
        import fastviz.compare  # noqa: F401

        table.unknown_words(models[0], "")
        table.load(models[0])
    except table.BadModel as error:
        logging.error("%s", error)
        health.note("model", str(error))
    finally:
        READY.set()
        gc.freeze()  # what is imported stays: never look through it again, least of all while something is being timed
        gc.enable()


def main():
    log.begin()
    chosen = profile.load(PROFILE)
    temp.keep(FOLDER, 60 * chosen.temp_minutes, chosen.temp_megabytes)
    page = Page(chosen).blocks.queue(max_size=chosen.queue, api_open=False)
    try:
        page.launch(server_name=chosen.address, server_port=PORT, share=False, strict_cors=True, max_file_size="2mb",
                    show_error=False, enable_monitoring=False, run_history=False, state_session_capacity=64,
                    theme=look.theme(), css=look.styles(), head=look.head(), footer_links=[], ssr_mode=False,
                    prevent_thread_lock=True, quiet=True,
                    app_kwargs={"middleware": [Middleware(Gate, chosen.hosts)],
                                "routes": health.routes(page._queue, chosen.queue, READY, chosen.metrics)})
    except OSError:
        sys.exit(f"Port {PORT} is taken: choose another one, for example GRADIO_SERVER_PORT={PORT + 1} make app.")
    print(f"fastviz is ready: http://{chosen.address}:{PORT}", flush=True)
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
