"""How soon the page can be read in a browser, beside the smallest page that Gradio makes: a text box and a button; and how
soon a picture follows the pen.

Both pages are served side by side and opened by turns in Chromium, each time as a stranger (nothing cached). Seconds from the
request until the text box and the button are painted, and from lifting the pen until the quick picture is another one. Needs
playwright, from requirements-test.txt, and Chromium.
"""

import argparse
import json
import shutil
import time
from statistics import median

from . import page

EMPTY = "import gradio\nwith gradio.Blocks() as demo: gradio.Textbox(); gradio.Button('Run')\ndemo.launch()"
PAGES = {"fastviz": ("app.py",), "empty": ("-c", EMPTY)}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PICTURE = "(document.querySelector('.glance img')?.src ?? '')"
SEEN = "() => [...document.querySelectorAll('textarea')].some(e => e.checkVisibility()) && " \
       "[...document.querySelectorAll('button')].some(e => e.innerText.trim().startsWith('Run') && e.checkVisibility())"


def chromium():
    """The browser's path, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def opened(browser, address):
    """{"seconds" until the page can be read, "files" and "bytes" that it took} of one visit by a stranger."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        tab, begun = context.new_page(), time.perf_counter()
        tab.goto(address, wait_until="commit")
        tab.wait_for_function(SEEN, polling="raf", timeout=60_000)
        seconds = time.perf_counter() - begun
        sizes = tab.evaluate("performance.getEntriesByType('resource').map(e => e.transferSize)")
        return {"seconds": seconds, "files": len(sizes), "bytes": sum(sizes)}
    finally:
        context.close()


def followed(browser, address, strokes):
    """Seconds from lifting the pen until the quick picture shows what was drawn, of so many lines on one sheet; the first one
    in a new tab, which may load the model, is not counted. None where no model here follows a sketch."""
    tab, found = browser.new_page(viewport={"width": 1280, "height": 1400}), []
    tab.goto(address)
    tab.wait_for_function(SEEN, polling="raf", timeout=60_000)
    tab.wait_for_selector("#ask-start", state="attached")  # which stands below the sheet
    if not tab.locator(".sheet").count():
        return None
    tab.locator("#ask-prompt textarea").fill("a cat on the beach")
    tab.locator(".sheet summary").click()
    box = tab.locator(".sheet canvas").bounding_box()
    for i in range(strokes + 1):
        before, y = tab.evaluate(PICTURE), box["y"] + box["height"] * (0.2 + 0.6 * i / strokes)
        tab.mouse.move(box["x"] + 0.2 * box["width"], y)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.8 * box["width"], y, steps=5)
        begun = time.perf_counter()
        tab.mouse.up()
        tab.wait_for_function(f"before => {PICTURE} !== before", arg=before, polling="raf", timeout=120_000)
        found.append(time.perf_counter() - begun)
    tab.close()
    return found[1:]


def measure(visits):
    """{page: {"seconds": median, "spread": [least, most], "files", "bytes"}} of so many counted visits to each, by turns, and
    what `followed` says of as many lines."""
    from playwright.sync_api import sync_playwright

    with page.serving(*PAGES["fastviz"]) as (ours, _), page.serving(*PAGES["empty"]) as (empty, _), sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        addresses, seen = {"fastviz": ours, "empty": empty}, {name: [] for name in PAGES}
        for i in range(visits + 1):
            for name in addresses if i % 2 else reversed(addresses):
                seen[name].append(opened(browser, addresses[name]))
        pen = followed(browser, ours, visits)
        browser.close()
    return {name: summary(found[1:]) for name, found in seen.items()}, pen  # the first visit warms the server


def summary(found):
    seconds = [visit["seconds"] for visit in found]
    return {"seconds": median(seconds), "spread": [min(seconds), max(seconds)], "files": found[-1]["files"], "bytes": found[-1]["bytes"]}


def main(argv=None):
    from ..compare import environment

    parser = argparse.ArgumentParser(prog="python -m fastviz bench paint", description=__doc__.splitlines()[0])
    parser.add_argument("--visits", type=int, default=7, help="counted visits to each page")
    args = parser.parse_args(argv)
    pages, pen = measure(args.visits)
    for name, told in pages.items():
        print(f"{name:8} {told['seconds']:.2f} s ({told['spread'][0]:.2f}-{told['spread'][1]:.2f}), {told['files']} files, {told['bytes'] / 1e6:.2f} MB")
    later = pages["fastviz"]["seconds"] - pages["empty"]["seconds"]
    print(f"later than Gradio's empty page: {later:.2f} s")
    if pen:
        print(f"a picture follows the pen after {median(pen):.2f} s ({min(pen):.2f}-{max(pen):.2f})")
    told = {"pages": pages, "later": later, "pen": pen}
    print(json.dumps({"bench": "paint", "environment": environment(), **told}))


if __name__ == "__main__":
    main()
