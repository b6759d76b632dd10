"""What a model of one step does with pictures: its one step follows the pen, and begins at pure noise alone."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from folders import make, sdxs_control
from PIL import Image, ImageDraw

from fastviz import fitted, models, profile, run, sketch, verified
from fastviz.compare import compare, final
from fastviz.methods import full
from fastviz.request import BadRequest, Request
from fastviz.ui.page import Page


@pytest.fixture
def published(tmp_path, monkeypatch):
    """published(key): the folder of a model of one step, as fetched and at tiny width, with the network that reads sketches."""
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "_loaded", {})

    def published(key):
        monkeypatch.setitem(models.MODELS, key, dataclasses.replace(models.MODELS[key], size=128, sizes=(128,), parameters=0.1))
        folder = models.MODELS[key].folder
        make(key).save_pretrained(folder)
        if models.MODELS[key].control:
            sdxs_control().save_pretrained(sketch.path_of(folder))
            (sketch.path_of(folder) / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(folder), "scale": 0.8}))
        verified.write_hashes(folder.parent)
        return folder

    return published


def drawing():
    sheet, file = Image.new("RGB", (256, 256), "white"), io.BytesIO()
    ImageDraw.Draw(sheet).line([(40, 60), (200, 90), (120, 220)], fill="black", width=4)
    sheet.save(file, "PNG")
    return file.getvalue()


def test_its_own_step_is_the_quick_picture_and_follows_the_pen(published):
    published("sdxs-dreamshaper")
    page = Page(dataclasses.replace(profile.load(), models=("sdxs-dreamshaper",), example={"prompt": "a cat", "model": "sdxs-dreamshaper"}))
    asked = Request("a cat", model="sdxs-dreamshaper", seed=7, methods="full", sketch=drawing())
    told = page.draw.follow(*page.ask.values(asked))
    assert told.get("quick") is True and told["says"].startswith("One step of the model, "), told
    shown = Image.open(io.BytesIO(base64.b64decode(told["picture"].partition(",")[2])))
    expected = run.generate(models.load("sdxs-dreamshaper"), asked, (full.Knobs(),), 1)
    assert np.array_equal(shown, expected.image)
    blank = run.generate(models.load("sdxs-dreamshaper"), dataclasses.replace(asked, sketch=None), (full.Knobs(),), 1)
    assert not np.array_equal(shown, blank.image)


@pytest.mark.parametrize("key", ("sdxs-dreamshaper", "sdxs"))
def test_it_does_not_start_from_a_picture(key, published):
    published(key)
    with pytest.raises(BadRequest, match="was trained for one step from pure noise and cannot start from a picture: remove the start"):
        Request("a cat", model=key, methods="full", repeats=1, start=drawing(), strength=0.6)
    assert final(compare(Request("a cat", model=key, methods="full", repeats=1)))[0].error is None
