"""FLOPs against torch's own counter, against the textbook, and against what is executed at every step."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastviz import cost
from fastviz.methods import attention_reuse, full, tome
from fastviz.request import Request, parse_stack

FULL = (full.Knobs(),)
REQUEST = Request("a cat", size=128, steps=6)


@pytest.fixture(autouse=True)
def forget():
    cost.counted.clear()


def attention_matmuls(unet, side, batch):
    """FLOP of Q K^T and A V over all attentions of the tiny U-Net on latents of side x side: the textbook."""
    total = 0
    for level, blocks in ((0, unet.down_blocks[0]), (1, unet.down_blocks[1]), (1, unet.up_blocks[1]), (0, unet.up_blocks[2])):
        tokens = (side >> level) ** 2
        for module in blocks.modules():
            if hasattr(module, "to_q"):
                width, keys = module.to_q.out_features, 24 if module.is_cross_attention else tokens
                total += 2 * 2 * batch * tokens * keys * width
    return total


def test_the_count_is_that_of_torchs_counter_on_real_numbers(tiny_pipe):
    found = cost.flops(tiny_pipe, REQUEST, FULL, 6)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as text:
            embeds = torch.cat(tiny_pipe.encode_prompt("a cat", torch.device("cpu"), 1, True))
        with FlopCounterMode(display=False) as step:
            tiny_pipe.unet(torch.zeros(2, 4, 16, 16), 5, encoder_hidden_states=embeds)
        with FlopCounterMode(display=False) as decoder:
            tiny_pipe.vae.decode(torch.zeros(1, 4, 16, 16))
    assert found == {"text": text.get_total_flops(), "steps": (step.get_total_flops(),) * 6, "decoder": decoder.get_total_flops()}
    assert cost.total(found) == text.get_total_flops() + 6 * step.get_total_flops() + decoder.get_total_flops()


def test_attention_is_counted(tiny_pipe):
    """Four times the pixels cost four times as much, but sixteen times in self-attention's products, and once in what
    sees no pixel: the time embedding and the keys and values of the prompt."""
    small, large = (cost.flops(tiny_pipe, Request("a cat", size=size), FULL, 1)["steps"][0] for size in (128, 256))
    square = attention_matmuls(tiny_pipe.unet, 32, 2) - 4 * attention_matmuls(tiny_pipe.unet, 16, 2)
    parts = dict(tiny_pipe.unet.named_modules())
    time = sum(part.weight.numel() for name, part in parts.items() if "time_emb" in name and hasattr(part, "weight"))
    prompt = sum(part.weight.numel() for name, part in parts.items() if name.endswith(("attn2.to_k", "attn2.to_v")))
    assert square > 0 and large == 4 * small + square - 3 * 2 * 2 * (time + 24 * prompt)


def test_reuse_saves_what_the_formula_says(tiny_pipe):
    """A reuse step skips W_q, W_k and Q K^T of self-attention, half of its 4NC^2 + 2N^2C multiply-adds, and all 2NC^2 + 2MCD
    + 2NMC of cross-attention, whose values never change. The pair of guidance and 2 FLOP per multiply-add make it four times
    as many."""
    found = cost.flops(tiny_pipe, REQUEST, (attention_reuse.Knobs(share=0.5),), 6)["steps"]
    plain = cost.flops(tiny_pipe, REQUEST, FULL, 6)["steps"]
    saved = 0
    for name, attn, part in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "both"):
        n = 256 if name.startswith(("down_blocks.0", "up_blocks.2")) else 64
        m, c, d = 24 if part == "cross" else n, attn.to_q.out_features, attn.to_k.in_features
        saved += 2 * 2 * (n * c * c + m * d * c + n * m * c) * (2 if part == "cross" else 1)
    assert found[:3] == plain[:3] and set(found[3:]) == {plain[0] - saved}  # a step that stores does the work of any other


@pytest.mark.parametrize("text", ["few_step", "attention_reuse(schedule=10110)", "tome+attention_reuse", "tome(floor=0.5)",
                                  "tome(every=2)+attention_reuse(schedule=11010,maps=self)", "attention_reuse(keep=output)"])
def test_steps_of_one_kind_cost_the_same_when_all_are_executed(tiny_pipe, text, monkeypatch):
    stack = parse_stack(text)
    short = cost.flops(tiny_pipe, REQUEST, stack, 5)
    monkeypatch.setattr(cost, "kinds", lambda stack, steps: list(range(steps)))
    cost.counted.clear()
    assert cost.flops(tiny_pipe, REQUEST, stack, 5) == short


def test_merging_costs_less_and_more_merging_still_less(tiny_pipe):
    totals = [cost.total(cost.flops(tiny_pipe, REQUEST, (tome.Knobs(ratio=ratio),), 2)) for ratio in (0.0, 0.25, 0.75)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 3
    assert totals[0] == cost.total(cost.flops(tiny_pipe, REQUEST, FULL, 2))


def test_without_guidance_a_step_costs_half(tiny_pipe):
    one = cost.flops(tiny_pipe, Request("a cat", size=128, guidance=1.0), FULL, 1)
    two = cost.flops(tiny_pipe, REQUEST, FULL, 1)
    assert 2 * one["steps"][0] == two["steps"][0] and 2 * one["text"] == two["text"] and one["decoder"] == two["decoder"]


def test_counting_leaves_everything_alone_and_is_remembered(tiny_pipe, monkeypatch):
    before, state = dict(tiny_pipe.__dict__), torch.get_rng_state()
    first = cost.flops(tiny_pipe, REQUEST, FULL, 2)
    assert dict(tiny_pipe.__dict__) == before and torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(cost, "count", lambda *_: pytest.fail("counted again"))
    assert cost.flops(tiny_pipe, Request("another prompt", seed=3, size=128), FULL, 2) == first


def test_the_count_is_that_of_the_device_that_it_is_for(tiny_pipe):
    """AT-EDM ranks tokens in another way on a GPU, and a process that has none may count for one that has."""
    request, stack = Request("a cat", size=256, steps=4), parse_stack("atedm")
    here, there = (cost.flops(tiny_pipe, request, stack, 4, device) for device in (None, "cuda"))
    assert cost.total(here) != cost.total(there) and cost.flops(tiny_pipe, request, stack, 4) == here
    assert cost.flops(tiny_pipe, request, FULL, 4, "cuda") == cost.flops(tiny_pipe, request, FULL, 4)


def test_what_is_remembered_is_bounded(tiny_pipe, monkeypatch):
    monkeypatch.setattr(cost, "KEPT", 3)
    monkeypatch.setattr(cost, "counted", {})
    monkeypatch.setattr(cost, "count", lambda pipe, request, stack, steps, device: {"steps": steps})
    for steps in range(1, 7):
        cost.flops(tiny_pipe, REQUEST, (tome.Knobs(),), steps)
    assert len(cost.counted) == 3 and any(key[-1] == 6 for key in cost.counted)
