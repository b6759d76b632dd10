"""README's picture of the page: a comparison as a visitor sees it who opens a link and presses Run.

Needs playwright, from requirements-test.txt, and Chromium.
"""

import argparse
import io

from PIL import Image

from ..request import Request
from ..store import query
from . import page
from .paint import FLAGS, PAGES, SEEN, chromium


def taken(asked, width, height):
    """The page in a window of this size, once the comparison `asked` has finished: a PIL picture."""
    if not chromium():
        raise SystemExit("There is no Chromium here to take the picture with: install it, for example with apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    with page.serving(*PAGES["fastviz"]) as (address, _), sync_playwright() as play:
        tab = play.chromium.launch(executable_path=chromium(), args=FLAGS).new_page(viewport={"width": width, "height": height})
        tab.goto(f"{address}/?{query(asked)}")
        for state in ("restored", "running", "finished"):
            tab.wait_for_function("state => document.body.dataset.state === state", arg=state, timeout=600_000)
            if state == "restored":
                tab.wait_for_function(SEEN)
                tab.locator("#run").click()
        tab.locator(".card .time").last.wait_for()
        tab.mouse.move(0, 0)
        tab.wait_for_timeout(1000)  # what moves has come to rest
        return Image.open(io.BytesIO(tab.screenshot()))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastviz bench photo", description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", default="a cactus and a donut in a meadow")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--width", type=int, default=1280, help="px of the window")
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--out", required=True, help="file that the picture is written to")
    parser.add_argument("--steps", type=int, default=Request.steps)
    parser.add_argument("--methods", default="full,few_step,attention_reuse,tome")
    args = parser.parse_args(argv)
    taken(Request(args.prompt, seed=args.seed, steps=args.steps, methods=args.methods), args.width, args.height).save(args.out, quality=85, method=6)


if __name__ == "__main__":
    main()
