"""The figures of the student: what is written on them follows from what is given."""

import numpy as np
import pytest
from PIL import Image

from fastviz import stages, views
from fastviz.stickers import parts
from fastviz.stickers.sdxs import network


def words(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")))


@pytest.fixture(scope="module")
def both():
    teacher = parts.unet(widths=(32, 32, 32), depths=(2, 3, 1), heads=(2, 2, 2), context=32)
    return teacher, network.student_of(teacher)


def test_stages_are_counted_as_torch_counts_them(both):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for unet in both:
        told = stages.stages(unet, 16)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, depth=3) as counter:
            unet(torch.zeros(1, 4, 16, 16), 5, torch.zeros(1, 24, 32))
        counts, name = counter.get_flop_counts(), type(unet).__name__
        assert told[-1]["flops"] == counter.get_total_flops() and told[-1]["parameters"] == sum(p.numel() for p in unet.parameters())
        ups = len(unet.up_blocks)
        for stage in told[:-1]:
            key = {"down": f"down_blocks.{stage['level']}", "middle": "mid_block", "up": f"up_blocks.{ups - 1 - stage['level']}"}[stage["side"]]
            assert stage["flops"] == sum(counts[f"{name}.{key}"].values()), key
    assert [(s["side"], s["level"]) for s in stages.stages(both[1], 16)] == [("down", 0), ("down", 1), ("up", 1), ("up", 0), ("all", 0)]


@pytest.mark.parametrize("dark", (False, True))
def test_the_networks_say_what_is_gone(both, dark):
    told = words(views.networks(*(stages.stages(unet, 16) for unet in both), dark=dark))
    for gone in ("down 3: removed", "middle: removed", "up 3: removed", "attention removed", "2 of 6 transformer blocks"):
        assert gone in told
    share = network.parameters(both[1]) / network.parameters(both[0])
    assert f"keeps {share:.0%} of the parameters" in told.replace("\n", " ")


def test_the_way_goes_through_what_is_there(both):
    """Seven stages in a row and three levels in the teacher, four and two in the student."""
    teacher, student = views.networks(*(stages.stages(unet, 16) for unet in both)).axes
    ways = [[line.get_linestyle() for line in axis.lines] for axis in (teacher, student)]
    assert ways == [["-"] * 6 + [":"] * 3, ["-"] * 3 + [":"] * 2]


def test_a_network_beside_itself_lost_nothing(both):
    told = stages.stages(both[0], 16)
    assert "removed" not in words(views.networks(told, told)) and "100% of the parameters" in words(views.networks(told, told)).replace("\n", " ")


def test_the_difference_of_two_decoders_is_its_mean():
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (51, 51, 51))
    figure = views.decoders(black, grey)
    assert "Difference, 0.200 on average" in words(figure)
    assert np.allclose(figure.axes[2].images[0].get_array(), 0.2)
    assert "0.000 on average" in words(views.decoders(grey, grey))


def test_one_step_has_a_column_for_each_way_and_a_row_for_each_prompt():
    pictures = {"Teacher": [Image.new("RGB", (8, 8))] * 2, "Student": [Image.new("RGB", (8, 8), "red")] * 2}
    figure = views.one_step(pictures, ["a cat", "a $dog"])
    assert len(figure.axes) == 4 and all(axis.images for axis in figure.axes)
    assert "Teacher" in words(figure) and "a $dog" in words(figure)
    assert len(views.png(figure)) > 1000
    with pytest.raises(ValueError):
        views.one_step({"Teacher": pictures["Teacher"][:1]}, ["a cat", "a dog"])
