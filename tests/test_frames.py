"""Overlays against slow, obvious loops on small records, and on traces of real runs of every method."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastviz import run, views
from fastviz.methods import atedm, attention_reuse, tome
from fastviz.patch import transformer_blocks
from fastviz.request import Request
from fastviz.trace import Trace
from fastviz.views import frames_attention, frames_merged, frames_paint
from fastviz.views.frames import KINDS, laid
from fastviz.views.frames_attention import fate

TRANSFORMER = "up_blocks.1.attentions.0"
BLOCK = f"{TRANSFORMER}.transformer_blocks.1"
SIZES = ((6, 9), (20, 17))  # 8 and 4 pixels a token


def picture_of(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] * 8, size[1] * 8, 3), np.uint8)
    return Image.fromarray(noise)


def merged(size, seed, left=0.5):
    """Labels (h, w) and destinations as merging makes them: unmerged sources first, then destinations."""
    draw, tokens = np.random.default_rng(seed), size[0] * size[1]
    dst = np.sort(draw.choice(tokens, tokens // 4, replace=False))
    src = np.setdiff1d(np.arange(tokens), dst)
    alone = np.sort(draw.choice(src, int(left * len(src)), replace=False))
    labels = np.empty(tokens, np.int32)
    labels[alone], labels[dst] = np.arange(len(alone)), len(alone) + np.arange(len(dst))
    joining = np.setdiff1d(src, alone)
    labels[joining] = len(alone) + draw.integers(len(dst), size=len(joining))
    return labels.reshape(size), dst.astype(np.int32)


def tome_channels(size, steps, **told):
    made = {step: merged(size, step, **told) for step in steps}
    return {"tome.labels": {(step, BLOCK): labels for step, (labels, _) in made.items()},
            "tome.destinations": {(step, BLOCK): dst for step, (_, dst) in made.items()}}


def cell(images, step, y, x, k):
    return images[step, y * k:(y + 1) * k, x * k:(x + 1) * k]


# Merged tokens

@pytest.mark.parametrize("size", SIZES)
def test_a_group_has_the_mean_colour_of_its_pixels_and_tokens_alone_show_the_picture(size):
    channels, picture, k = tome_channels(size, (1, 3)), picture_of(size), 8 if size == SIZES[0] else 4
    pixels = np.asarray(picture).astype(float)
    found = views.frames(channels, "groups", BLOCK, 5, [picture])
    assert found.images.shape == (5, size[0] * k, size[1] * k, 4) and found.images.dtype == np.uint8
    for step in (1, 3):
        labels = channels["tome.labels"][step, BLOCK]
        for label in range(labels.max() + 1):
            members = list(zip(*np.nonzero(labels == label)))
            mean = np.mean([pixels[y * 8:y * 8 + 8, x * 8:x * 8 + 8].mean((0, 1)) for y, x in members], 0)
            for y, x in members:
                corner = cell(found.images, step, y, x, k)[0, 0]
                if len(members) == 1:
                    assert not cell(found.images, step, y, x, k)[:-1, :-1].any()
                else:
                    assert corner[3] == 255 and np.abs(corner[:3] - mean).max() <= 0.51
    assert not found.images[[0, 2, 4]].any()
    assert [text == "not active here" for text in found.captions] == [True, False, True, False, True]
    labels = channels["tome.labels"][1, BLOCK]
    assert found.captions[1] == f"{labels.size} -> {labels.max() + 1} tokens"


@pytest.mark.parametrize("kind", ("groups", "labels"))
@pytest.mark.parametrize("size", SIZES)
def test_lines_run_between_different_groups_only(size, kind):
    channels, k = tome_channels(size, (0,)), 8 if size == SIZES[0] else 4
    images = views.frames(channels, kind, BLOCK, 1, [picture_of(size)]).images
    labels = channels["tome.labels"][0, BLOCK]
    count = np.bincount(labels.ravel())[labels]
    seen = {True: 0, False: 0}
    for y, x in np.ndindex(*size):
        one = cell(images, 0, y, x, k)
        for dy, dx, edge in ((0, 1, one[0, -1]), (1, 0, one[-1, 0])):
            if y + dy < size[0] and x + dx < size[1]:
                there = (y + dy, x + dx)
                line = labels[y, x] != labels[there] and max(count[y, x], count[there]) > 1
                assert (edge != one[0, 0]).any() == line
                seen[bool(line)] += 1
    assert min(seen.values()) > 5


@pytest.mark.parametrize("size", SIZES)
def test_dots_mark_destinations_that_something_merged_into(size):
    channels, k = tome_channels(size, (0,)), 8 if size == SIZES[0] else 4
    images = views.frames(channels, "groups", BLOCK, 1, [picture_of(size)]).images
    labels, dst = channels["tome.labels"][0, BLOCK], channels["tome.destinations"][0, BLOCK]
    count = np.bincount(labels.ravel())[labels]
    for y, x in np.ndindex(*size):
        one = cell(images, 0, y, x, k)
        dot = (one[k // 2, k // 2] != one[0, 0]).any()
        assert dot == (y * size[1] + x in dst and count[y, x] > 1)


def test_colours_of_groups_are_distinct_and_stay_with_their_destination():
    size = (16, 16)
    channels = tome_channels(size, range(3))
    images = views.frames(channels, "labels", BLOCK, 3, [picture_of(size)]).images
    colours = {}
    for step in range(3):
        labels, dst = channels["tome.labels"][step, BLOCK], channels["tome.destinations"][step, BLOCK]
        count = np.bincount(labels.ravel())
        for rank, label in enumerate(labels.flat[dst]):
            found = {tuple(cell(images, step, y, x, 8)[0, 0]) for y, x in zip(*np.nonzero(labels == label))}
            if count[label] > 1:
                assert len(found) == 1 and colours.setdefault(rank, found) == found
    assert all(colours[rank] != colours[rank + 1] for rank in colours if rank + 1 in colours)


@pytest.mark.parametrize("columns", (4, 8, 12, 16, 24, 32, 48, 64))
def test_neighbouring_destinations_differ_in_colour(columns):
    """In a grid of cells as wide as those of the usual sizes of pictures."""
    rank = np.arange(3 * columns).reshape(3, columns)
    colour = frames_merged.STRIDE * rank % len(frames_merged.PALETTE)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one, other = colour[:3 - dy, max(0, -dx):columns - max(0, dx)], colour[dy:, max(0, dx):columns + min(0, dx)]
        assert (one != other).all()


def test_colours_are_told_apart():
    colours = frames_merged.PALETTE
    assert colours.min() >= 0 and colours.max() <= 255
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours))
    assert distance.min() > 30


def test_a_match_that_serves_several_steps_tells_its_step():
    channels = tome_channels((8, 8), (0, 1))
    for name in channels:
        channels[name][2, BLOCK] = channels[name][1, BLOCK]
    told = views.frames(channels, "groups", BLOCK, 3, [picture_of((8, 8))]).captions
    assert told[2] == f"{told[1]}, chosen at step 2" and "chosen" not in told[0] + told[1]


def test_nothing_merged_is_told():
    labels = np.arange(64, dtype=np.int32).reshape(8, 8)
    channels = {"tome.labels": {(0, BLOCK): labels}, "tome.destinations": {(0, BLOCK): np.arange(48, 64)},
                "tome.similarity": {(0, BLOCK): np.full((8, 8), np.nan, np.float16)}}
    for kind in views.kinds(channels):
        found = views.frames(channels, kind, BLOCK, 1, [picture_of((8, 8))])
        assert not found.images.any() and found.captions == ["nothing merged"]


def test_what_was_least_alike_is_brightest():
    values = np.linspace(0.7, 1, 63)
    cosines = np.append(values, np.nan).astype(np.float16).reshape(8, 8)
    channels = tome_channels((8, 8), (0,)) | {"tome.similarity": {(0, BLOCK): cosines}}
    found = views.frames(channels, "similarity", BLOCK, 1, [picture_of((8, 8))])
    at = found.images[0, ::8, ::8].reshape(64, 4)
    assert rising(at[:63][::-1]) and not at[63].any()
    assert found.legend[-1] == ("#fcfdbf", "70 % alike") and (at[0, :3] == (0xfc, 0xfd, 0xbf)).all()


def test_bars_count_what_merged_at_which_cosine():
    draw = np.random.default_rng(0)
    cosines = {0: draw.uniform(0.6, 1, (8, 8)), 1: draw.uniform(0.8, 1, (8, 8))}
    cosines[0].flat[:40], cosines[0].flat[50] = np.nan, 0.5
    cells = {step: each.astype(np.float16) for step, each in cosines.items()}
    found = views.frames({"tome.similarity": {(step, BLOCK): each for step, each in cells.items()}}, "histogram", BLOCK, 3,
                         picture_of((8, 8)))
    counts = [np.histogram(each[~np.isnan(each)].astype(float), np.linspace(0.5, 1, 26))[0] for each in cells.values()]
    yellow = (found.images[:2] == (0xF0, 0xE4, 0x42, 235)).all(-1)[:, 28:228] | (found.images[:2] == (0xF0, 0xE4, 0x42, 255)).all(-1)[:, 28:228]
    for step in (0, 1):
        heights = [int(yellow[step, :, 28 + 8 * i + 3].sum()) for i in range(25)]
        assert np.abs(np.array(heights) / 200 * max(map(max, counts)) - counts[step]).max() < 0.2
    assert not found.images[2].any()


# Heat

def rising(rgba):
    """Whether brightness and alpha both grow along (n, 4), and at all."""
    bright, alpha = rgba[:, :3] @ (0.2126, 0.7152, 0.0722), rgba[:, 3].astype(int)
    return (np.diff(bright) >= -0.5).all() and bright[-1] > bright[0] + 100 and (np.diff(alpha) >= 0).all() and alpha[0] < alpha[-1]


def test_heat_is_monotone_and_leaves_the_picture_visible():
    rgba = frames_paint.heat(np.linspace(0, 1, 500))
    assert rising(rgba) and 0 < rgba[:, 3].min() and rgba[:, 3].max() < 255
    ends = frames_paint.heat(np.array([-3.0, 0, 1, np.inf, np.nan]))
    assert (ends[0] == ends[1]).all() and (ends[2] == ends[3]).all() and not ends[4].any()


# Left out tokens

def pruned(size, steps, seed=0):
    """Channels with a third of the tokens kept and every other one a copy of one of them."""
    draw, tokens, channels = np.random.default_rng(seed), size[0] * size[1], {}
    for step in steps:
        kept = np.sort(draw.choice(tokens, tokens // 3, replace=False))
        source = draw.choice(kept, tokens)
        source[kept] = kept
        told = {"kept": np.isin(np.arange(tokens), kept), "source": source.astype(np.int32),
                "importance": draw.lognormal(size=tokens).astype(np.float16)}
        for name, values in told.items():
            channels.setdefault(f"atedm.{name}", {})[step, TRANSFORMER] = values.reshape(size)
    return channels


@pytest.mark.parametrize("size", SIZES)
def test_exactly_what_was_left_out_is_dimmed(size):
    channels, k = pruned(size, (0, 2)), 8 if size == SIZES[0] else 4
    found = views.frames(channels, "kept", BLOCK, 3, [picture_of(size)])
    for step in (0, 2):
        for y, x in np.ndindex(*size):
            kept = channels["atedm.kept"][step, TRANSFORMER][y, x]
            assert (cell(found.images, step, y, x, k) == ((0, 0, 0, 0) if kept else (0, 0, 0, 178))).all()
    tokens = size[0] * size[1]
    assert found.captions == [f"{tokens // 3} of {tokens} tokens kept", "not active here", f"{tokens // 3} of {tokens} tokens kept"]


def test_every_layer_of_a_transformer_shows_what_it_left_out():
    channels, picture = pruned((8, 8), (0,)), picture_of((8, 8))
    for kind in views.kinds(channels):
        one, other, elsewhere = (views.frames(channels, kind, name, 1, [picture]).images for name in (
            f"{TRANSFORMER}.transformer_blocks.0", BLOCK, "up_blocks.1.attentions.1.transformer_blocks.0"))
        assert one.any() and (one == other).all() and not elsewhere.any()


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_has_the_mean_colour_of_its_source(size):
    channels, picture, k = pruned(size, (0,)), picture_of(size), 8 if size == SIZES[0] else 4
    source, pixels = channels["atedm.source"][0, TRANSFORMER], np.asarray(picture).astype(float)
    images = views.frames(channels, "source", BLOCK, 1, [picture]).images
    for y, x in np.ndindex(*size):
        v, u = divmod(int(source[y, x]), size[1])
        corner = cell(images, 0, y, x, k)[0, 0]
        if (v, u) == (y, x):
            assert not corner.any()
        else:
            mean = pixels[v * 8:v * 8 + 8, u * 8:u * 8 + 8].mean((0, 1))
            assert corner[3] == 255 and np.abs(corner[:3] - mean).max() <= 0.51


def test_on_a_plain_background_lines_and_dots_tell_what_is_filled_in_from_where():
    source = np.repeat([[0, 0, 3, 3]], 3, 0).astype(np.int32)
    kept = source == np.arange(12).reshape(3, 4)
    channels = {"atedm.kept": {(0, TRANSFORMER): kept}, "atedm.source": {(0, TRANSFORMER): source}}
    for colour in ((255, 255, 255), (20, 20, 20), (128, 128, 128)):
        found = views.frames(channels, "source", BLOCK, 1, [Image.new("RGB", (32, 24), colour)])
        seen = np.asarray(laid(Image.new("RGB", (32, 24), colour), found.images[0])).astype(int)
        apart = (np.abs(seen - colour).sum(-1) > 100).reshape(3, 8, 4, 8)
        middle = apart[:, 3:5, :, 3:5].all((1, 3))
        assert (middle == kept).all() and apart[:, :, 1, -1].all()  # a dot on the two sources, a line between their regions
        apart[:, :, 1, -1] = apart[0, -1] = apart[0, :, 0, -1] = apart[0, :, 2, -1] = False  # and around the sources
        apart[:, 3:5, :, 3:5] = False
        assert not apart.any()
    assert [text for _, text in found.legend if text.startswith(("lines", "dot"))] and len(found.legend) <= 5


@pytest.mark.parametrize("kind", ("groups", "source"))
def test_colours_are_those_of_each_steps_own_picture(kind):
    channels = tome_channels((8, 8), (0, 2)) | pruned((8, 8), (0, 2))
    several = [picture_of((8, 8), seed) for seed in range(3)]
    found = views.frames(channels, kind, BLOCK, 3, several).images
    for step in (0, 2):
        assert (found[step] == views.frames(channels, kind, BLOCK, 3, [several[step]]).images[step]).all()
        assert (found[step] != views.frames(channels, kind, BLOCK, 3, [several[1]]).images[step]).any()


def test_tokens_that_get_no_value_of_another_are_dimmed_and_copies_are_offered_only_where_there_are_any():
    channels = pruned((8, 8), (0,))
    kept = channels["atedm.kept"][0, TRANSFORMER]
    assert list(views.kinds(channels)) == ["kept", "importance", "source"]
    channels["atedm.source"][1, TRANSFORMER] = np.where(kept, np.arange(64).reshape(8, 8), -1)
    found = views.frames(channels, "source", BLOCK, 2, [picture_of((8, 8))])
    assert ((found.images[1, ::8, ::8] == (0, 0, 0, 178)).all(-1) == ~kept).all() and len(found.legend) == 5
    del channels["atedm.source"][0, TRANSFORMER]
    assert list(views.kinds(channels)) == ["kept", "importance"]


def test_importance_is_heat_on_a_fixed_scale():
    channels, values = pruned((8, 8), (0, 1)), np.geomspace(0.25, 4, 64).reshape(8, 8)
    for step, scaled in enumerate((values, np.minimum(values * 4, 100))):
        channels["atedm.importance"][step, TRANSFORMER] = scaled.astype(np.float16)
    images = views.frames(channels, "importance", BLOCK, 2, [picture_of((8, 8))]).images[:, ::8, ::8].reshape(2, 64, 4)
    assert rising(images[0])
    average = np.abs(values.ravel() * 4 - 1).argmin(), np.abs(values.ravel() - 1).argmin()
    assert np.abs(images[1, average[0]].astype(int) - images[0, average[1]]).max() <= 8
    assert (images[1, 32:] == images[1, -1]).all()  # four times the average and more


# Reused attention

def test_moved_attention_is_heat_and_steps_that_compute_are_clear():
    values = np.linspace(0, 1, 64).astype(np.float16).reshape(8, 8)
    ages = {(step, f"{BLOCK}.{part}"): np.int16(age) for part in ("attn1", "attn2") for step, age in enumerate((0, 1, 0, 1, 2))}
    channels = {"attention_reuse.age": ages, "attention_reuse.moved": {
        (step, f"{BLOCK}.attn1"): values * scale for step, scale in ((1, 1), (4, 0.5))}}
    assert list(views.kinds(channels)) == ["moved.self"]
    found = views.frames(channels, "moved.self", BLOCK, 5, [picture_of((8, 8))])
    at = found.images[:, ::8, ::8].reshape(5, 64, 4)
    assert rising(at[1]) and np.abs(at[4, -1].astype(int) - at[1, 32]).max() <= 8 and not at[[0, 2, 3]].any()
    assert found.captions == ["computed", "attention of step 1, 1 step old", "computed",
                              "attention of step 3, 1 step old, not recorded by place", "attention of step 3, 2 steps old"]
    other = views.frames(channels, "moved.cross", BLOCK, 5, [picture_of((8, 8))])
    assert not other.images.any() and other.sentence.startswith("Nothing to see") and other.captions[0] == "computed"


# Attention maps

def test_a_words_maps_share_their_scale_and_the_nearest_one_stands_in_and_says_so():
    draw = np.random.default_rng(0)
    maps = {(step, f"{BLOCK}.attn2"): (draw.random((3, 8, 8)) * top).astype(np.float16) for step, top in ((1, 0.1), (3, 0.4))}
    maps[3, f"{BLOCK}.attn2"][1].flat[0] = 0.5
    found = views.words({"attention.cross": maps}, BLOCK, 6, 1)
    at = found.images[:, ::8, ::8].reshape(6, 64, 4)
    assert at[1, :, 3].max() < at[3, :, 3].max()
    for step, made in enumerate((1, 1, 1, 3, 3, 3)):
        expected = frames_paint.heat(maps[made, f"{BLOCK}.attn2"][1].astype(np.float32).ravel() / 0.5)
        assert (at[step] == expected)[:40].all() and (step != made or (at[step] == expected).all())
        stamped = found.images[step, 50:62, :24].reshape(-1, 4)
        assert ((stamped == (0, 0, 0, 255)).all(-1).mean() > 0.3 and (stamped.min(-1) > 200).any()) == (step != made)
    assert found.legend[-1] == ("#fcfdbf", "50 % of a square's attention") and found.legend[1][1].startswith("25 %")
    assert found.captions[0].endswith(", recorded at step 2") and found.captions[3:5] == ["at most 50 %", "at most 50 %, recorded at step 4"]


@pytest.mark.parametrize("place, token", (((0.0, 0.0), (0, 0)), ((0.3, 0.8), (2, 4)), ((1.0, 1.0), (7, 5)), ((-1, 9), (0, 5))))
def test_a_place_is_framed_and_shows_where_it_looks(place, token):
    values = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 6), np.uint8)
    found = views.point({"attention.self": {(1, f"{BLOCK}.attn1"): values}}, BLOCK, 3, place)
    assert found.images.shape == (3, 64, 48, 4) and (found.images[0] == found.images[2]).all()
    assert (found.images[1] == found.images[2])[:48].all() and (found.images[1] != found.images[2]).any()  # the stamp below
    assert found.captions == ["attention, recorded at step 2", "attention", "attention, recorded at step 2"]
    for y, x in np.ndindex(8, 6):
        one, heat = cell(found.images, 1, y, x, 8), frames_paint.heat(np.float32(values[token][y, x] / values[token].max()))
        assert np.abs(one[3:5, 3:5].astype(int) - heat).max() <= 2  # a root and back
        heat = one[3, 3]
        ring = np.concatenate([one[0], one[-1], one[:, 0], one[:, -1]])
        assert (ring == ((0, 0, 0, 255) if (y, x) == token else heat)).all()


def reused(maps):
    """Maps (4, ...) of four steps of which the third and fourth use the second one's."""
    ages = {(step, f"{BLOCK}.{part}"): np.int16(age) for part in ("attn1", "attn2") for step, age in enumerate((0, 0, 1, 2))}
    return {"attention_reuse.age": ages} | {channel: {(step, f"{BLOCK}.{part}"): one for step, one in enumerate(each)}
                                            for channel, (part, each) in maps.items()}


def test_attention_used_again_is_shown_beside_what_would_be_computed():
    draw = np.random.default_rng(0)
    cross, own = draw.random((4, 3, 8, 8)).astype(np.float16), draw.integers(0, 256, (4, 8, 8, 8, 8), np.uint8)
    channels = reused({"attention.cross": ("attn2", cross), "attention.self": ("attn1", own)})
    assert list(views.looks(channels)) == ["now", "used", "change"] and views.looks({}) == {}
    word, point = ({look: show(look) for look in views.looks(channels)} for show in (
        lambda look: views.words(channels, BLOCK, 4, 1, look), lambda look: views.point(channels, BLOCK, 4, (0, 0), look)))
    for found in (word, point):
        now, used, change = (found[look].images[:, 8:] for look in ("now", "used", "change"))  # below the place's frame
        assert (used[2:] == now[1]).all() and (used[:2] == now[:2]).all() and (now[2] != now[3]).any()
        assert not change[:2, ..., :3].any() and change[2:, ..., :3].any()
        assert "attention of step 2, 2 steps old" in found["used"].captions[3]
        plain(found["change"])
    at = word["change"].images[3, 3::8, 3::8].astype(int)
    more = (cross[1, 1] > cross[3, 1]) & (np.abs(cross[1, 1] - cross[3, 1]) > 0.05)
    assert (at[more][:, 0] > at[more][:, 2]).all() and more.any()  # orange


def test_a_place_that_looks_here_more_is_told_so_whatever_its_largest_share_was():
    """Records hold shares by their largest: .1 of .4 is recorded as less than .08 of .2, and is more."""
    before, now = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    before[2, 2], before[5, 5], before[6, 6] = 0.1, 0.4, 0.5
    now[2, 2], now[4, 1], now[5, 2], now[6, 2], now[7, 2], now[3, 7] = 0.08, 0.2, 0.2, 0.2, 0.2, 0.12
    record = [np.broadcast_to(np.round(255 * np.sqrt(each / each.max())).astype(np.uint8), (8, 8, 8, 8)) for each in (before, now)]
    channels = reused({"attention.self": ("attn1", [record[0], record[0], record[1], record[1]])})
    red, _, blue, _ = views.point(channels, BLOCK, 4, (0, 0), "change").images[3, 8 * 2 + 4, 8 * 2 + 4].astype(int)
    assert red > blue  # orange: what was used looks here more


def test_what_a_place_was_merged_with_or_filled_in_from_is_framed_thinly():
    own = {(step, f"{BLOCK}.attn1"): np.full((8, 8, 8, 8), 100, np.uint8) for step in range(2)}
    labels = np.arange(64, dtype=np.int32).reshape(8, 8)
    labels[5, 6] = labels[3, 2] = labels[0, 0]
    source = np.full((8, 8), -1, np.int32)
    source[0, 0] = 4 * 8 + 1
    colour = [0, 0xE5, 0xFF, 255]
    for channels, kin in (({"tome.labels": {(1, BLOCK): labels}}, {(5, 6), (3, 2)}),
                          ({"atedm.source": {(1, TRANSFORMER): source}, "atedm.kept": {(1, TRANSFORMER): source < 0}}, {(4, 1)})):
        found = views.point({"attention.self": own} | channels, BLOCK, 2, (0, 0))
        ringed = [{(y, x) for y, x in np.ndindex(8, 8) if (cell(found.images, step, y, x, 8)[0] == colour).all()} for step in range(2)]
        assert ringed == [set(), kin] and (frames_attention.RELATED, found.legend[-1][1]) == found.legend[-1]
        plain(found)
    assert frames_attention.RELATED not in dict(views.point({"attention.self": own}, BLOCK, 2, (0, 0)).legend)


def test_words_of_several_runs_share_a_scale():
    maps = {(0, f"{BLOCK}.attn2"): np.full((2, 8, 8), 0.25, np.float16)}
    assert views.highest({"attention.cross": maps}, BLOCK, 1) == 0.25 and views.highest({}, BLOCK, 1) == 0
    alone, beside = (views.words({"attention.cross": maps}, BLOCK, 1, 1, "now", most) for most in (None, 0.5))
    assert alone.legend[-1][1].startswith("25 %") and beside.legend[-1][1].startswith("50 %")
    assert (beside.images[0, 0, 0] == frames_paint.heat(np.float32(0.5))).all()


def test_strips_tell_the_age_and_the_staleness_of_what_was_reused():
    blocks = [f"{TRANSFORMER}.transformer_blocks.{i}" for i in range(2)]
    channels = {"attention_reuse.age": {(step, f"{blocks[0]}.attn1"): np.int16(step) for step in range(3)},
                "attention_reuse.staleness": {(step, f"{blocks[0]}.attn1"): 0.1 * step for step in (1, 2)}}
    found = views.strips(channels, blocks, 3)
    assert list(found) == ["computed", "age", "stale.self"] and list(views.strips({}, blocks, 3)) == ["computed"]
    assert "2 steps old" in found["age"][2] and "20%" in found["stale.self"][2]
    for key in ("age", "stale.self"):
        cells = np.asarray(found[key][1]).astype(int)
        assert cells.shape == (2, 3, 3) and (cells[1] == cells[0, 0]).all() and cells[0, 0].sum() != cells[0, 1].sum() < cells[0, 2].sum()


def test_blocks_that_a_network_does_without_are_black_in_every_strip():
    blocks = [f"{TRANSFORMER}.transformer_blocks.0", None]
    channels = {"attention_reuse.age": {(step, f"{blocks[0]}.attn1"): np.int16(step) for step in range(3)}}
    for _, strip, says in views.strips(channels, blocks, 3).values():
        cells = np.asarray(strip)
        assert not cells[1].any() and cells[0].any(-1).all() and says.endswith("because it was removed")
    assert "black" not in views.strips(channels, blocks[:1], 3)["computed"][2]
    found = views.removed(3)
    plain(found)
    assert len(found.images) == len(found.captions) == 3 and not found.images.any() and found.legend[0][0] == "#000000"


def test_no_other_step_stands_in_for_attention_that_was_not_recorded():
    """Of steps 0 to 3, the last two use the second one's attention, and 0 and 2 alone are recorded."""
    draw = np.random.default_rng(0)
    cross, own = draw.random((4, 3, 8, 8)).astype(np.float16), draw.integers(0, 256, (4, 8, 8, 8, 8), np.uint8)
    channels = reused({"attention.cross": ("attn2", cross), "attention.self": ("attn1", own)})
    for channel in ("attention.cross", "attention.self"):
        channels[channel] = {at: map for at, map in channels[channel].items() if at[0] % 2 == 0}
    for show in (lambda look: views.words(channels, BLOCK, 4, 1, look), lambda look: views.point(channels, BLOCK, 4, (0, 0), look)):
        for look in ("used", "change"):
            found = show(look)
            assert found.images[0].any() and not found.images[1:].any()
            assert all(text.startswith("not recorded at this step") for text in found.captions[1:])


def test_without_maps_words_and_places_show_nothing():
    for found in (views.words({}, BLOCK, 4, 1), views.point({}, BLOCK, 4, (0.5, 0.5))):
        assert len(found.images) == 4 and not found.images.any() and found.captions == ["not recorded at this step"] * 4
        assert found.sentence == "Attention was not recorded in this part of the network."


# What was saved

def test_the_band_of_work_is_as_high_as_the_work():
    band = np.asarray(views.work([0, 5, 10, 11], 10, height=20)).astype(int)
    grey = (band == np.asarray(views.strip(np.ones((1, 1))))[0, 0]).all(-1)
    assert grey.sum(0).tolist() == [0, 10, 20, 20] and grey[10:, 1].all()


@pytest.mark.parametrize("dark", (False, True))
def test_what_was_saved_is_told_in_words_and_drawn_for_every_run(dark):
    blocks, flops = [f"{TRANSFORMER}.transformer_blocks.{i}" for i in range(2)], [10e9] * 4
    runs = {"Full model": (blocks, np.ones((2, 4)), flops),
            "Odd $title$": (blocks, np.array([[1, 1, 0.5, 0.5]] * 2), [10e9, 10e9, 5e9, 5e9])}
    figure = views.saved(runs, flops, dark)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["Full model: attention computed for 100% of the tokens", "A step takes 100 % of the full model's 10 GFLOP",
                      "Odd $title$: attention computed for 75% of the tokens", "A step takes 50 to 100 % of the full model's 10 GFLOP"]
    assert len(views.png(figure, 40)) > 1000


# Nothing recorded

@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_was_recorded_nothing_is_drawn(kind):
    channels = tome_channels((8, 8), (0, 1)) | pruned((8, 8), (0, 1))
    found = views.frames(channels, kind, "mid_block.attentions.0.transformer_blocks.0", 4, [picture_of((8, 8))])
    assert len(found.images) == 4 and not found.images.any() and found.captions == ["not active here"] * 4
    assert found.sentence.startswith("Nothing to see")


def test_no_records_allow_no_kinds():
    assert views.kinds({}) == {} and views.kinds({"attention.self": {(0, f"{BLOCK}.attn1"): 1}}) == {}


def test_a_trace_that_ran_full_is_drawn_as_far_as_it_goes(tiny_pipe):
    whole = real(tiny_pipe, (tome.Knobs(), atedm.Knobs(tau=0))).channels
    for budget in range(500, 40_000, 3_700):
        trace = Trace(budget)
        for channel, cells in whole.items():
            for (step, layer), value in cells.items():
                trace.add(channel, step, layer, value)
        for kind in views.kinds(trace.channels):
            for name in ("down_blocks.0.attentions.0.transformer_blocks.1", BLOCK):
                assert len(views.frames(trace.channels, kind, name, 4, [picture_of((16, 16))]).images) == 4


# Real runs

def real(pipe, stack, steps=4):
    return run.generate(pipe, Request("a cat", size=128, seed=1), stack, steps, trace=Trace()).trace


STACKS = {
    "tome": ((tome.Knobs(),), ["groups", "labels", "similarity", "histogram"]),
    "tome, deep and by floor": ((tome.Knobs(max_downsample=8, floor=0.5, every=2),), ["groups", "labels", "similarity", "histogram"]),
    "atedm": ((atedm.Knobs(),), ["kept", "importance", "source"]),
    "atedm, apart": ((atedm.Knobs(guidance="apart", points="each", tau=0),), ["kept", "importance", "source"]),
    "atedm, filled with nothing": ((atedm.Knobs(recover="zero"),), ["kept", "importance"]),
    "maps": ((attention_reuse.Knobs(share=0.5),), ["moved.self", "moved.cross"]),
    "outputs": ((attention_reuse.Knobs(share=0.5, keep="output"),), ["moved.self", "moved.cross"]),
    "cross maps": ((attention_reuse.Knobs(share=0.5, maps="cross"),), ["moved.cross"]),
    "a stack": ((tome.Knobs(), atedm.Knobs(), attention_reuse.Knobs(share=0.5)), [*KINDS]),
    "the full model": ((), []),
}


@pytest.mark.parametrize("stack, kinds", STACKS.values(), ids=STACKS)
def test_every_block_of_a_real_run_is_drawn(tiny_pipe, stack, kinds):
    channels, picture = real(tiny_pipe, stack).channels, picture_of((16, 16))
    assert list(views.kinds(channels)) == kinds
    for kind in kinds:
        drawn = 0
        for name, _, size in transformer_blocks(tiny_pipe.unet, (16, 16)):
            found = views.frames(channels, kind, name, 4, [picture])
            assert found.images.shape[0] == len(found.captions) == 4
            plain(found)
            if found.images.any():
                drawn += 1
                assert kind == "histogram" or found.images.shape[1:3] == (8 * size[0], 8 * size[1])
            shown = [text for text, image in zip(found.captions, found.images) if not image.any()]
            assert all(re.search("not active|nothing|all tokens|computed|by place", text) for text in shown)
        assert drawn


def plain(found):
    """Text is ASCII, one sentence, and a short legend of colours."""
    assert len(found.sentence) < 160 and found.sentence.endswith(".") and ". " not in found.sentence
    assert 1 <= len(found.legend) <= 5 and all(re.fullmatch("#[0-9a-f]{6}", colour) for colour, _ in found.legend)
    for text in (found.sentence, *found.captions, *(text for _, text in found.legend)):
        assert text.isascii() and text and "nan" not in text.lower()


def test_all_text_is_plain():
    maps = np.random.default_rng(0).random((3, 8, 8)).astype(np.float16)
    channels = {"attention.cross": {(0, f"{BLOCK}.attn2"): maps / 20},
                "attention.self": {(0, f"{BLOCK}.attn1"): np.full((8, 8, 8, 8), 9, np.uint8)}}
    plain(views.words(channels, BLOCK, 2, 0))
    plain(views.point(channels, BLOCK, 2, (0, 0)))
    assert all(label.isascii() and len(label) < 60 for _, _, label, _ in KINDS.values())


# Export

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 23), st.integers(1, 5), st.integers(1, 4), st.integers(1, 12))
def test_a_sheet_holds_every_frame_in_its_place(steps, h, w, columns):
    images = np.random.default_rng(steps).integers(0, 256, (steps, h, w, 4), np.uint8)
    found = views.sheet(images, columns)
    pixels, wide = np.asarray(found), min(columns, steps)
    assert found.mode == "RGBA" and found.size == (wide * w, -(-steps // wide) * h)
    for i in range(wide * -(-steps // wide)):
        y, x = divmod(i, wide)
        assert (pixels[y * h:(y + 1) * h, x * w:(x + 1) * w] == (images[i] if i < steps else 0)).all()


@pytest.mark.parametrize("suffix", ("gif", "webp"))
@pytest.mark.parametrize("several", (False, True))
def test_an_animation_opens_with_its_frames(tmp_path, suffix, several):
    images = np.zeros((6, 32, 32, 4), np.uint8)
    for step in range(6):
        images[step, 4 * step:4 * step + 4] = (255, 40 * step, 0, 255)
    base = [picture_of((8, 8), seed).resize((64, 64)) for seed in (range(6) if several else (0,))]
    path = tmp_path / f"a.{suffix}"
    views.animation(base, images, path)
    with Image.open(path) as found:
        assert found.n_frames == 6 and found.size == (64, 64) and found.info.get("loop") == 0
        durations = []
        for step in range(6):
            found.seek(step)
            seen = np.asarray(found.convert("RGB")).astype(int)
            expected = np.asarray(laid(base[step if several else 0], images[step])).astype(int)
            durations.append(found.info["duration"])
            bar = (slice(8 * step, 8 * step + 8), slice(None))
            assert np.abs(seen - expected)[bar].mean() < 20
            assert suffix == "gif" or (seen == expected).all()
    assert durations[-1] >= 1000 and all(100 <= each <= 150 for each in durations[:-1])


def test_overlays_are_enlarged_without_smoothing_and_pictures_to_their_size():
    overlay = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    overlay[..., 3] = 255
    found = np.asarray(laid(picture_of((8, 8)), overlay))
    assert (found == overlay[..., :3].repeat(8, 0).repeat(8, 1)).all()
    assert laid(Image.new("L", (4, 4)), overlay).size == (8, 8)


def test_a_point_tells_what_became_of_it():
    labels, kept, source = np.array([[0, 1], [1, 1]]), np.array([[True, False], [True, True]]), np.array([[0, 2], [2, 3]])
    block = "down_blocks.0.attentions.0.transformer_blocks.1"
    transformer = block.partition(".transformer_blocks.")[0]
    channels = {"tome.labels": {(0, block): labels}, "atedm.kept": {(1, transformer): kept}, "atedm.source": {(1, transformer): source},
                "attention_reuse.age": {(2, f"{block}.attn1"): np.int16(2), (1, f"{block}.attn1"): np.int16(0), (2, f"{block}.attn2"): np.int16(1)}}
    assert fate(channels, block, 4, (0.9, 0.1)) == ["merged with 2 others", "kept", "used instead: attention of step 1", ""]
    assert fate(channels, block, 4, (0.1, 0.1))[0] == "not merged"
    assert fate(channels, block, 4, (0.0, 1.0))[1] == "left out, filled in from row 2, column 1 of 2 x 2"
