"""Colours that must be told apart are told apart with each of the three kinds of colour blindness, simulated in full.

Matrices for linear RGB: Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision
deficiency", table 1, severity 1. Distances are those of CIELAB (1976), where about 2 are just seen side by side."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fastviz.views import frames_attention, frames_merged, frames_paint, theme
from fastviz.views.activity import FULL, NONE
from fastviz.views.breakdown import COLOURS as SHARES

SEEN_AS = {
    "everybody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
APART = 15  # of colours that lie side by side or stand for different things
sights = pytest.mark.parametrize("sight", SEEN_AS)


def lab(colours, sight):
    """sRGB colours (n, 3) in 0..1 -> CIELAB (n, 3) as somebody with that sight sees them."""
    rgb = np.array(colours, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.array(SEEN_AS[sight]).T, 0, 1) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def distances(colours, sight):
    """{(name, name): distance} of {name: "#rrggbb" or RGB in 0..1}."""
    seen = dict(zip(colours, lab([to_rgb(each) for each in colours.values()], sight)))
    return {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(seen, 2)}


def test_the_simulation_knows_red_from_green_only_where_it_should():
    red_green = {sight: distances({"red": "#d06040", "green": "#887830"}, sight)["red", "green"] for sight in SEEN_AS}
    assert red_green["everybody"] > 40 and red_green["tritanopia"] > 40
    assert red_green["protanopia"] < 20 and red_green["deuteranopia"] < 20
    assert lab([[1, 1, 1]], "everybody")[0] == pytest.approx([100, 0, 0], abs=0.01)


@sights
@pytest.mark.parametrize("told", (
    {"saved": NONE / 255, "computed": FULL / 255},
    {"less": frames_paint.LESS, "more": frames_paint.MORE, "no difference": "#000000"},
    {"merged with it": frames_attention.RELATED, "the place": "#ffffff", "around it": "#000000"},
    dict(enumerate(theme.COLOURS)),
    dict(enumerate(SHARES)),
), ids=("strip", "change", "frames", "rows", "shares"))
def test_colours_of_different_things_are_told_apart(told, sight):
    assert min(distances(told, sight).values()) > APART, distances(told, sight)


@sights
def test_frames_stand_out_from_every_heat(sight):
    seen = lab([to_rgb(frames_attention.RELATED), *frames_paint.HEAT / 255], sight)
    assert np.linalg.norm(seen[1:] - seen[0], axis=1).min() > APART


@sights
@pytest.mark.parametrize("paper", (theme.LIGHT.paper, theme.DARK.paper))
def test_lines_stand_out_from_the_paper(paper, sight):
    assert min(distances({"paper": paper, i: colour}, sight)["paper", i] for i, colour in enumerate(theme.COLOURS)) > APART


@sights
def test_more_heat_is_always_brighter(sight):
    assert (np.diff(lab(frames_paint.HEAT[::8] / 255, sight)[:, 0]) > 0).all()


@sights
def test_groups_have_colours_of_their_own_beside_their_outlines(sight):
    assert min(distances(dict(enumerate(frames_merged.PALETTE / 255)), sight).values()) > APART / 3
