"""How soon the page can be read in a browser, beside the smallest page that Gradio makes: a text box and a button; how soon a
picture follows the pen; and how soon a look inside a comparison shows another moment.

Both pages are served side by side and opened by turns in Chromium, each time as a stranger (nothing cached). Seconds from the
request until the text box and the button are painted, from lifting the pen until the quick picture is another one, and from
choosing a step, a block, a word or a point until its overlays are painted. Needs playwright, from requirements-test.txt, and
Chromium.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median

from ..request import Request
from ..store import query
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


MOMENTS = {  # what is chosen in a look inside: the element, and what is done to it
    "step": ("#inside-step", """e => {
        e.value = (Number(e.value) + 1) % (Number(e.max) + 1);
        e.dispatchEvent(new Event("input")) }"""),
    "block": ("#inside-block", """e => {
        e.value = (Number(e.value) + 1) % (Number(e.max) + 1);
        e.dispatchEvent(new Event("input")) }"""),
    "word": (".chips", """e => {
        const words = [...e.querySelectorAll(".chip")].slice(1);
        words[(words.findIndex(each => each.ariaPressed === "true") + 1) % words.length].click() }"""),
    "point": (".lens > canvas", """e => {
        const box = e.getBoundingClientRect(), at = (part, side) => side + box[part] * (0.2 + 0.6 * Math.random());
        e.dispatchEvent(new MouseEvent("click", { clientX: at("width", box.left), clientY: at("height", box.top) })) }"""),
}
PAINTED = """async ([where, act]) => {
    const drawn = () => [...document.querySelectorAll('.lens canvas')].map(each => each.toDataURL()).join();
    const frame = () => new Promise(done => requestAnimationFrame(done));
    const before = drawn(), begun = performance.now();
    eval(act)(document.querySelector(where));
    do await frame(); while ((document.querySelector('.lenses.waiting') || drawn() === before) && performance.now() - begun < 20000);
    await frame();
    return (performance.now() - begun) / 1000;
}"""


def scrubbed(browser, address, times):
    """{what was chosen: seconds until other overlays are painted, so many times} in a look inside what `address` asks for."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(address)
    tab.wait_for_function(SEEN, polling="raf", timeout=60_000)
    for button in ("#run", "#look"):
        if button == "#look":
            tab.get_by_role("tab", name="Inside").click()
        tab.locator(button).click()
        for state in ("running", "finished"):
            tab.wait_for_function("state => document.body.dataset.state === state", arg=state, timeout=600_000)
    tab.wait_for_function("document.querySelectorAll('.lens canvas').length > 1")
    tab.wait_for_timeout(2000)  # the first overlays
    found = {name: [tab.evaluate(PAINTED, list(moment)) for _ in range(times)] for name, moment in MOMENTS.items()}
    tab.close()
    return found


def measure(visits, asked):
    """({page: {"seconds": median, "spread": [least, most], "files", "bytes"}} of so many counted visits to each, by turns, what
    `followed` says of as many lines, and `scrubbed` of as many moments of the comparison `asked`)."""
    from playwright.sync_api import sync_playwright

    with page.serving(*PAGES["fastviz"]) as (ours, _), page.serving(*PAGES["empty"]) as (empty, _), sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        addresses, seen = {"fastviz": ours, "empty": empty}, {name: [] for name in PAGES}
        for i in range(visits + 1):
            for name in addresses if i % 2 else reversed(addresses):
                seen[name].append(opened(browser, addresses[name]))
        pen, moments = followed(browser, ours, visits), scrubbed(browser, f"{ours}/?{query(asked)}", visits)
        browser.close()
    return {name: summary(found[1:]) for name, found in seen.items()}, pen, moments  # the first visit warms the server


def summary(found):
    seconds = [visit["seconds"] for visit in found]
    return {"seconds": median(seconds), "spread": [min(seconds), max(seconds)], "files": found[-1]["files"], "bytes": found[-1]["bytes"]}


def main(argv=None):
    from ..compare import environment

    parser = argparse.ArgumentParser(prog="python -m fastviz bench paint", description=__doc__.splitlines()[0])
    parser.add_argument("--visits", type=int, default=7, help="counted visits to each page")
    parser.add_argument("--out", help="file that the JSON is written to as well")
    args = parser.parse_args(argv)
    pages, pen, moments = measure(args.visits, Request("a cat and a pizza on the beach"))
    for name, told in pages.items():
        print(f"{name:8} {told['seconds']:.2f} s ({told['spread'][0]:.2f}-{told['spread'][1]:.2f}), {told['files']} files, {told['bytes'] / 1e6:.2f} MB")
    later = pages["fastviz"]["seconds"] - pages["empty"]["seconds"]
    print(f"later than Gradio's empty page: {later:.2f} s")
    if pen:
        print(f"a picture follows the pen after {median(pen):.2f} s ({min(pen):.2f}-{max(pen):.2f})")
    for name, seconds in moments.items():
        print(f"another {name} is shown inside after {median(seconds):.3f} s ({min(seconds):.3f}-{max(seconds):.3f})")
    told = {"bench": "paint", "environment": environment(), "pages": pages, "later": later, "pen": pen, "moments": moments}
    if args.out:
        Path(args.out).write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
