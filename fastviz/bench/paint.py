"""How long until somebody sees the page: ours beside an empty page of Gradio, in Chromium, each opened several times in turn."""

import argparse
import json
import shutil
import statistics
import sys
import time
from contextlib import ExitStack

from ..request import check_number
from .page import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EMPTY = "import gradio as gr\nwith gr.Blocks() as page: gr.Textbox(elem_id='ask-prompt')\npage.launch(quiet=True)"
LOADED = 15  # s in which ours imports torch and loads the model; a visitor in that time waits longer
PAGES = {"empty": ("-c", EMPTY), "ours": ("app.py",)}


def opened(browser, address):
    """Seconds from entering the address, nothing of it in the browser's store, until one can type a prompt."""
    page = browser.new_page()
    begun = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator("#ask-prompt textarea, #ask-prompt input").first.wait_for(timeout=60_000)
    seconds = time.perf_counter() - begun
    page.close()
    return seconds


def measure(browser, times):
    """{"empty", "ours"}: seconds of each of `times` visits, one page after the other."""
    with ExitStack() as servers:
        addresses = {name: servers.enter_context(serving(*what))[0] for name, what in PAGES.items()}
        time.sleep(LOADED)
        for address in addresses.values():
            opened(browser, address)
        visits = [{name: opened(browser, address) for name, address in addresses.items()} for _ in range(times)]
    return {name: [visit[name] for visit in visits] for name in PAGES}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastviz bench paint", description=__doc__)
    parser.add_argument("--times", type=int, default=9, help="visits of each page")
    args = parser.parse_args(argv)
    check_number("times", "--times", args.times, 1, 1000, int)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        sys.exit("No Chromium here: install it, for example apt-get install chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("Playwright is not installed: pip install playwright.")
    with sync_playwright() as play, play.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
        found = measure(browser, args.times)
    for name, seconds in found.items():
        print(f"{name:6} {statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})")
    more = statistics.median(found["ours"]) - statistics.median(found["empty"])
    print(json.dumps({"command": "bench paint", "visits": args.times, "more": more, "seconds": found}))
