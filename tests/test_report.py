"""A report is one file: it opens without a server, asks nobody for anything, and shows what the page shows."""

import json
import re

import pytest
from test_browser import browser, pytestmark  # noqa: F401

from fastviz import __main__ as command
from fastviz import models

NASTY = "a cat </script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report(tiny_pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._loaded, "stickers", tiny_pipe)
        assert command.main(["compare", NASTY, "--methods", "tome,few_step(steps=2)", "--size", "128", "--steps", "3", "--repeats", "1",
                             "--report", str(path), "--records", "--no-history"]) == 0
    return path


def test_it_names_no_address_and_holds_the_prompt_as_text(report):
    text = report.read_text()
    assert NASTY not in text and "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[a-z]+:""", text)
    told = json.loads(re.search(r'id="told">(.*?)</script>', text, re.S).group(1))
    assert told["board"]["prompt"] == NASTY and len(told["inside"]["overlays"]) == len(told["inside"]["board"]["blocks"])


@pytest.mark.parametrize("width, scheme", ((1280, "light"), (390, "dark")))
def test_it_opens_without_a_server(report, browser, width, scheme):  # noqa: F811
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
    page.goto(report.as_uri())
    assert page.locator(".card img").count() == 3 and page.locator(".numbers tbody tr").count() == 3
    assert NASTY in page.locator(".said").inner_text() and page.locator("img[src='x']").count() == 0
    page.get_by_label("How much of the left picture shows").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".wipe").evaluate("wipe => wipe.style.getPropertyValue('--cut')") == "51%"
    scrubbed(page)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth") and complaints == []
    assert page.evaluate("document.documentElement.classList.contains('dark')") == (scheme == "dark")
    context.close()


def scrubbed(page):
    def drawn():
        return page.evaluate("[...document.querySelectorAll('.lens > canvas')].map((each) => each.toDataURL())")

    page.get_by_label("Picture below").select_option("estimates")
    page.get_by_label("Block", exact=True).fill("0")
    page.locator(".lens", has_text="Token merging").get_by_text("tokens").first.wait_for()
    page.get_by_label("Step", exact=True).focus()
    page.keyboard.press("End")
    last = drawn()
    page.keyboard.press("Home")
    assert all(before != after for before, after in zip(last, drawn(), strict=True))
    page.locator(".lens > canvas").first.click(position={"x": 40, "y": 40})
    page.get_by_text("this file holds what was skipped").wait_for()
