"""Drawing in a real browser: the sheet, the picture that follows the pen, and a run that starts from an earlier picture."""

import base64
import dataclasses
import io
import json
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
from conftest import make_student, make_tiny
from PIL import Image
from serving import pixels, serve
from test_browser import PATIENCE, Visit, browser, pytestmark, visits  # noqa: F401

from fastviz import fitted, given, models, run, sketch, store, verified
from fastviz.methods import sdxs
from fastviz.request import Request
from fastviz.stickers.sketch import network


@pytest.fixture(scope="module")
def sketch_folder(tiny_folder, tmp_path_factory):
    return shipped(tiny_folder, tmp_path_factory.mktemp("drawing"))


@pytest.fixture(scope="module")
def student_folder(tiny_folder, tmp_path_factory):
    return shipped(tiny_folder, tmp_path_factory.mktemp("student"), student=True)


def shipped(tiny_folder, parent, student=False):
    """The tiny model as it is shipped, with a network that reads sketches beside it, and a one-step student."""
    shutil.copytree(tiny_folder, parent / "model")
    if student:
        make_student(make_tiny(), parent / "model")
    torch.manual_seed(3)
    control = network.untrained(make_tiny().unet)
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    control.save_pretrained(parent / "sketch")
    (parent / "sketch" / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(parent / "model")}))
    verified.write_hashes(parent)
    return parent / "model"


@pytest.fixture(scope="module")
def visit(browser, sketch_folder, tmp_path_factory):  # noqa: F811
    with opened(browser, sketch_folder, tmp_path_factory.mktemp("tiny")) as open_tab:
        yield open_tab


@contextmanager
def opened(browser, folder, place):  # noqa: F811
    with serve(place, ("tests/tiny_app.py",), TINY=str(folder), GRADIO_ANALYTICS_MAX_EVENTS="8") as server, visits(browser, server) as open_tab:
        yield open_tab


class Sheet:
    def __init__(self, tab):
        self.page = tab.page
        self.page.locator(".sheet summary").click()
        self.canvas = self.page.locator(".paper canvas")
        self.canvas.scroll_into_view_if_needed()

    def line(self, *points):
        """Draws with the mouse; points: shares of the sheet."""
        self.move(points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.move(point, steps=4)
        self.page.mouse.up()

    def move(self, point, steps=1):
        box = self.canvas.bounding_box()
        self.page.mouse.move(box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"], steps=steps)

    def drawn(self):
        """The drawing as Request keeps it; None of an empty sheet."""
        uri = self.canvas.evaluate("canvas => canvas.toDataURL('image/png')")
        return given.sketch(base64.b64decode(uri.partition(",")[2]))

    def button(self, name):
        return self.page.locator(".sheet").get_by_role("button", name=name)


def ran(tab):
    tab.page.evaluate("document.body.dataset.state = 'asked'")  # a run of two steps may be over before it is seen
    tab.page.locator("#run").click()
    assert tab.wait("finished", "failed", "refused") == "finished", tab.words
    uri = tab.page.locator(".card img").first.get_attribute("src")
    return base64.b64decode(uri.partition(",")[2])


def told(data):
    return json.loads(Image.open(io.BytesIO(data)).text[store.CHUNK])


def expected(folder, request, stack=None, steps=None):
    """The picture's digest, made here without any server. stack, steps: the full model's row if None."""
    pipe = models.read(dataclasses.replace(models.MODELS["stickers"], source=str(folder)))
    return pixels(run.generate(pipe, request, stack or request.methods[0], steps or request.steps).image)


def glanced(tab, wanted):
    """Whether the quick picture is the one of this digest, or becomes it."""
    end = time.monotonic() + PATIENCE / 4000
    while time.monotonic() < end:
        uri = tab.page.locator(".glance img").get_attribute("src")
        if uri and pixels(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) == wanted:
            return True
        tab.page.wait_for_timeout(100)
    return False


def begun(visit, **told):
    tab = visit(**told)
    tab.prompt.fill("a cat")
    tab.small(steps=2)
    tab.methods()
    return tab


def test_a_line_is_followed_carried_and_comes_back_with_the_picture(visit, sketch_folder):
    tab = begun(visit)
    sheet = Sheet(tab)
    assert sheet.drawn() is None and sheet.button("Undo").is_disabled()
    sheet.line((0.2, 0.2), (0.8, 0.3), (0.5, 0.8))
    tab.page.get_by_text("6 quick steps").wait_for(timeout=PATIENCE)
    assert tab.page.locator(".glance img").get_attribute("src").startswith("data:image/png")
    saved, drawing = ran(tab), sheet.drawn()
    request = store.read_png(io.BytesIO(saved))
    assert request.sketch == drawing is not None
    assert pixels(Image.open(io.BytesIO(saved))) == expected(sketch_folder, request)
    assert expected(sketch_folder, request) != expected(sketch_folder, dataclasses.replace(request, sketch=None))
    sheet.button("Clear").click()
    assert sheet.drawn() is None
    tab.page.locator("#recipe").set_input_files({"name": "saved.png", "mimeType": "image/png", "buffer": saved})
    tab.wait("restored")
    tab.page.wait_for_function("!document.querySelector('.tools button').disabled")
    assert sheet.drawn() == drawing
    assert "drawing is not in it" not in tab.words


def test_one_step_of_the_student_follows_the_pen_while_it_is_down(browser, student_folder, tmp_path_factory):  # noqa: F811
    with opened(browser, student_folder, tmp_path_factory.mktemp("one-step")) as visit:
        tab = begun(visit)
        sheet, seed = Sheet(tab), int(tab.seen("seed"))

        def students():
            request = Request("a cat", seed=seed, steps=2, size=128, methods="full", sketch=sheet.drawn())
            return expected(student_folder, request, (sdxs.Knobs(),), 1)

        sheet.line((0.2, 0.2), (0.8, 0.3))
        tab.page.get_by_text("One step of the student").wait_for(timeout=PATIENCE)
        assert glanced(tab, first := students())
        sheet.move((0.2, 0.6))
        tab.page.mouse.down()
        sheet.move((0.5, 0.9), steps=4)
        tab.page.wait_for_timeout(600)  # it asks twice a second at most
        sheet.move((0.8, 0.6))
        assert glanced(tab, second := students()) and second != first
        tab.page.mouse.up()


def test_undo_takes_back_one_line_and_clear_all(visit):
    tab = begun(visit)
    sheet = Sheet(tab)
    sheet.line((0.2, 0.2), (0.8, 0.2))
    first = sheet.drawn()
    sheet.line((0.2, 0.7), (0.8, 0.7))
    assert sheet.drawn() != first
    sheet.button("Undo").click()
    assert sheet.drawn() == first
    sheet.button("Clear").press("Enter")
    assert sheet.drawn() is None and sheet.button("Clear").is_disabled()


def test_the_keyboard_draws(visit):
    tab = begun(visit)
    sheet = Sheet(tab)
    sheet.canvas.focus()
    for key in ("Space", *["ArrowRight"] * 10, "Space", "ArrowDown"):
        tab.page.keyboard.press(key)
    ink = given.picture(sheet.drawn()).convert("L")
    assert ink.getpixel((160, 128)) == 0 and ink.getpixel((160, 140)) == 255 and ink.getpixel((90, 128)) == 255


def test_a_finger_draws_on_a_phone_and_the_page_stays_where_it_is(visit):
    tab = begun(visit, width=390)
    sheet = Sheet(tab)
    box, wire = sheet.canvas.bounding_box(), tab.context.new_cdp_session(tab.page)
    before = tab.page.evaluate("scrollY")
    for kind, y in (("touchStart", 0.3), *(("touchMove", 0.3 + 0.05 * i) for i in range(8)), ("touchEnd", None)):
        points = [] if y is None else [{"x": box["x"] + box["width"] / 2, "y": box["y"] + y * box["height"]}]
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    tab.page.wait_for_function("!document.querySelector('.tools button').disabled")
    assert sheet.drawn() is not None and tab.page.evaluate("scrollY") == before
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert min(tab.page.locator(".tools button").nth(i).bounding_box()["height"] for i in range(2)) >= 40


def test_a_finished_picture_becomes_the_start_of_the_next_run(visit):
    tab = begun(visit)
    first = ran(tab)
    assert tab.page.locator(".start").is_hidden()
    tab.page.get_by_role("button", name="Start from this").first.click()
    tab.page.get_by_label("How much may change").fill("0.3")
    second = ran(tab)
    assert told(second)["strength"] == 0.3 and told(second)["start"] == store.fingerprint(given.start(first))
    assert pixels(Image.open(io.BytesIO(second))) != pixels(Image.open(io.BytesIO(first)))
    tab.page.locator("#recipe").set_input_files({"name": "saved.png", "mimeType": "image/png", "buffer": second})
    tab.wait("restored")
    assert "The start picture is not in it" in tab.words
    tab.page.locator(".start").wait_for(state="hidden")
    assert "start" not in told(ran(tab))


def test_without_a_network_there_is_no_sheet(browser, tiny_server):  # noqa: F811
    tab = Visit(browser, tiny_server)
    assert tab.page.locator("#ask-sketch").count() == 0 and tab.page.locator("#ask-start").count() == 1
    tab.context.close()
    assert tab.complaints == []
