"""Serves the page: python app.py. FASTVIZ_PROFILE names a profile of spaces_config.yaml, GRADIO_SERVER_PORT a port."""

import gc
import logging
import os
import sys
import threading
import time

gc.disable()  # until everything is imported: imports make much and throw away little, and take 12 % less time without
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything that runs here lies in the project or was fetched before

from fastviz.ui import temp  # noqa: E402

PORT = int(os.environ.get("GRADIO_SERVER_PORT", 7860))
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER := temp.fresh(f"fastviz-{os.getuid()}-{PORT}"))  # Gradio reads it when imported

from fastviz import profile  # noqa: E402
from fastviz.ui import look  # noqa: E402
from fastviz.ui.job import LOST  # noqa: E402
from fastviz.ui.page import Page  # noqa: E402

FAREWELL = 3  # seconds in which visitors hear that the device is lost


def warm(models):
    """Loads torch, diffusers and the first model while the page is already being looked at."""
    from fastviz import models as table

    try:
        import fastviz.compare  # noqa: F401

        table.unknown_words(models[0], "")
        table.load(models[0])
    except table.BadModel as error:
        logging.error("%s", error)
    finally:
        gc.freeze()  # what is imported stays: never look through it again, least of all while something is being timed
        gc.enable()


def main():
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    chosen = profile.load(os.environ.get("FASTVIZ_PROFILE", "local"))
    temp.keep(FOLDER, 60 * chosen.temp_minutes, chosen.temp_megabytes)
    page = Page(chosen).blocks.queue(max_size=chosen.queue, api_open=False)
    try:
        page.launch(server_name=chosen.address, server_port=PORT, share=False, strict_cors=True, max_file_size="2mb",
                    show_error=False, enable_monitoring=False, run_history=False, state_session_capacity=64,
                    theme=look.theme(), css=look.styles(), head=look.head(), footer_links=[], ssr_mode=False,
                    prevent_thread_lock=True, quiet=True)
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
