"""Pictures in rows, and the pictures of a fitted schedule from its file."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_views_student import words

from fastviz import views
from fastviz.fit import figures
from fastviz.methods import olss
from fastviz.views.rows import traced


@pytest.fixture
def told(olss_files):
    """A file of coefficients as the command writes it, with what was measured."""
    told = json.loads((olss_files / "olss-4-guidance-3.json").read_text())
    told["fitted"] |= {"measured": {
        "DDIM": {"gaps": [0.4, 0.3, 0.2, 0.1], "rmse": 0.1, "timesteps": [999, 749, 499, 249]},
        "DDIM, AYS timesteps": {"gaps": [0.5, 0.4, 0.3, 0.2], "rmse": 0.2, "timesteps": [999, 692, 455, 173]},
        "OLSS": {"gaps": [0.3, 0.2, 0.1, 0.05], "rmse": 0.05, "timesteps": told["timesteps"]}}}
    return told


def test_a_file_becomes_three_pictures(told, tmp_path):
    found = views.scheme(olss.explained(told))
    assert list(found) == ["timesteps", "coefficients", "distance"]
    dots = [line.get_xdata() for line in found["timesteps"].axes[0].lines if line.get_marker() not in ("None", "")]
    assert sorted(map(list, dots)) == sorted([told["timesteps"], [999, 749, 499, 249], [999, 692, 455, 173]])
    assert {"0.050  OLSS", "0.100  DDIM", "0.200  DDIM, AYS timesteps"} <= {
        text.get_text() for text in found["distance"].axes[0].get_legend().get_texts()}
    path = tmp_path / "olss-4.json"
    path.write_text(json.dumps(told))
    figures.write(path, tmp_path)
    assert sorted(each.name for each in tmp_path.glob("*.png")) == [f"olss-4-{kind}.png" for kind in ("coefficients", "distance", "timesteps")]


def test_a_file_without_published_timesteps_has_two_lines(told):
    del told["fitted"]["measured"]["DDIM, AYS timesteps"]
    assert "Align" not in words(views.scheme(olss.explained(told))["timesteps"])


@pytest.mark.parametrize("dark", (False, True))
def test_equal_steps_name_every_way_and_prompt(dark):
    ways = {name: [Image.new("RGB", (8, 8), name)] * 2 for name in ("red", "green", "blue")}
    figure = views.equal_steps(ways, ["a cat", "a dog"], 5, dark)
    assert len(figure.axes) == 6 and "asked 5 times" in words(figure)
    assert all(name in words(figure) for name in (*ways, "a cat", "a dog"))
    assert np.array_equal(figure.axes[1].images[0].get_array()[0, 0], (0, 128, 0))


def test_the_lines_of_a_sketch_lie_on_the_picture():
    drawing = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(drawing).line((8, 8, 56, 8), fill=0, width=3)
    found = np.asarray(traced(drawing, Image.new("RGB", (128, 128))))
    assert tuple(found[16, 60]) == (230, 30, 120) and not found[60:].any()
    figure = views.followed([drawing], {"With it": [Image.new("RGB", (64, 64))], "Without": [Image.new("RGB", (64, 64))]}, ["a cat"])
    assert [axis.get_title() for axis in figure.axes] == ["The sketch", "With it", "Without", "The lines on it"]
