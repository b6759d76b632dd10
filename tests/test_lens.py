"""What traced runs record of every model: attention maps against slow loops, maps back on the grid, estimates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastviz import lens, models, run, trace
from fastviz.methods.attention_reuse import attention_map
from fastviz.patch import replaced, transformer_blocks
from fastviz.request import Request, parse_stack
from fastviz.trace import Context, Trace
from fastviz.views.activity import activity, strip

REQUEST = Request("a cat and a big dog", size=128, steps=4, guidance=3.0, methods="full")
TOKENS = 6


def traced(pipe, text, request=REQUEST):
    found = Trace()
    done = run.generate(pipe, request, parse_stack(text), request.steps, trace=found)
    return done, found.channels


def attention_of(pipe):
    (name, block, size), *_ = transformer_blocks(pipe.unet, (16, 16))
    return block, size


def test_shares_are_the_mean_of_the_heads_maps(tiny_pipe):
    block, _ = attention_of(tiny_pipe)
    x, text = torch.randn(1, 40, block.attn1.to_q.in_features), torch.randn(1, 9, block.attn2.to_k.in_features)
    with torch.no_grad():
        torch.testing.assert_close(lens.shares(block.attn1, x), attention_map(block.attn1, x)[0].mean(0))
        torch.testing.assert_close(lens.shares(block.attn2, x, text), attention_map(block.attn2, x, text)[0].mean(0))


def test_shares_do_not_pass_through_what_a_method_put_around_a_projection(tiny_pipe):
    block, _ = attention_of(tiny_pipe)
    seen = []
    with replaced(block.attn1.to_q, forward=lambda x: seen.append(x)), torch.no_grad():
        lens.shares(block.attn1, torch.randn(1, 4, block.attn1.to_q.in_features))
    assert not seen


def slow_self(shares, size, seen, side):
    """The recorded map by loops: shares (N, N) of seen tokens -> (hq, wq, hk, wk) before rounding."""
    h, w = size
    whole = np.zeros((h * w, h * w))
    members = np.bincount(seen[seen >= 0], minlength=len(shares))
    for q in range(h * w):
        for k in range(h * w):
            if seen[q] >= 0 and seen[k] >= 0:
                whole[q, k] = shares[seen[q], seen[k]] / members[seen[k]]
    step = h // side
    found = np.zeros((side, side, side, side))
    for q in range(h * w):
        for k in range(h * w):
            found[q // w // step, q % w // step, k // w // step, k % w // step] += whole[q, k] / step ** 4
    return found


@pytest.mark.parametrize("seen", (
    np.arange(64), np.r_[np.arange(48), np.arange(16)], np.r_[np.arange(32), np.full(32, -1)]), ids=("whole", "merged", "pruned"))
def test_maps_are_put_back_onto_the_grid(tiny_pipe, monkeypatch, seen):
    monkeypatch.setattr(lens, "SIDE", 4)
    block, _ = attention_of(tiny_pipe)
    x = torch.randn(1, int(seen.max()) + 1, block.attn1.to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = lens.shares(block.attn1, x).numpy()
        found = lens.self_shares(block.attn1, x, (8, 8), None if len(plain) == 64 else torch.from_numpy(seen)).numpy()
    expected = slow_self(plain, (8, 8), seen, 4)
    most = expected.max((2, 3), keepdims=True)
    expected = np.round(255 * np.sqrt(np.divide(expected, most, out=np.zeros_like(expected), where=most > 0)))
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1
    if seen.min() < 0:
        assert not found[2:].any() and not found[:, :, 2:].any() and found.any()


def test_tokens_of_unknown_places_are_left_out(tiny_pipe):
    block, _ = attention_of(tiny_pipe)
    assert lens.self_shares(block.attn1, torch.randn(1, 40, block.attn1.to_q.in_features), (8, 8), None) is None


def test_a_whole_grid_is_known_as_one_whatever_was_merged_for_the_other_attention(tiny_pipe):
    """On a grid that is no square, so that sides cannot be exchanged."""
    block, _ = attention_of(tiny_pipe)
    x, found = torch.randn(1, 32, block.attn1.to_q.in_features), []
    for seen in ({}, {"block": torch.zeros(32, dtype=torch.long)}):
        context = Context(1, grid=(4, 8), trace=Trace())
        context.seen, context.step = seen, 0
        with torch.no_grad():
            lens.Watching("block", (4, 8), context, 3, (32, 1, 1)).record(block.attn1, "attn1", x, None)
        (value,), = (channel.values() for channel in context.trace.channels.values())
        found.append(value)
    assert np.array_equal(*found) and np.ptp(found[0])


def test_a_prompt_that_is_cut_is_recorded_as_far_as_it_is_read(tiny_pipe):
    _, channels = traced(tiny_pipe, "full", replace(REQUEST, prompt="a cat and " * 20))
    assert {value.shape[0] for value in channels["attention.cross"].values()} == {tiny_pipe.tokenizer.model_max_length - 2}


@pytest.mark.parametrize("text", ("full", "tome", "atedm", "attention_reuse(share=0.5)", "few_step(steps=4)", "atedm+tome",
                                  "tome+atedm"))
def test_every_run_records_maps_and_estimates(tiny_pipe, text):
    done, channels = traced(tiny_pipe, text)
    blocks = transformer_blocks(tiny_pipe.unet, (16, 16))
    for name, _, (h, w) in blocks:
        for step in range(4):
            words, own = channels["attention.cross"][step, f"{name}.attn2"], channels["attention.self"][step, f"{name}.attn1"]
            assert words.shape == (TOKENS, h, w) and 0 < words.sum(0).max() < 1 and np.isfinite(words).all()
            assert own.shape == (h, w, h, w) and own.max() == 255
    assert [channels["estimate"][step, ""].shape for step in range(4)] == [(4, 16, 16)] * 4


def test_pruned_places_look_nowhere(tiny_pipe):
    _, channels = traced(tiny_pipe, "atedm(early=all)")
    found = 0
    for (step, layer), kept in channels["atedm.kept"].items():
        *_, last = [name for name, _, _ in transformer_blocks(tiny_pipe.unet, (16, 16)) if name.startswith(f"{layer}.")]
        words = channels["attention.cross"][step, f"{last}.attn2"]
        assert words[:, kept].sum(0).min() > 0 and not words[:, ~kept].any()
        found += (~kept).sum()
    assert found


def test_merged_places_share_what_they_look_at(tiny_pipe):
    _, channels = traced(tiny_pipe, "tome(merge_cross=true)")
    for (step, name), labels in channels["tome.labels"].items():
        words = channels["attention.cross"][step, f"{name}.attn2"]
        assert all(np.ptp(words[:, labels == label], axis=1).max() == 0 for label in np.unique(labels))


def test_the_last_estimate_is_nearly_the_picture_and_the_first_is_not(tiny_pipe):
    done, channels = traced(tiny_pipe, "full", Request("a cat", size=128, steps=20, guidance=3.0, methods="full"))
    end = done.latents[0].numpy()
    first, last = (np.abs(channels["estimate"][step, ""] - end).mean() for step in (0, 19))
    assert last < 0.05 * first


@pytest.mark.parametrize("text", ("full", "attention_reuse(schedule=11111010101010)"))
def test_maps_leave_room_for_the_rest(tiny_pipe, text):
    blocks, steps = transformer_blocks(tiny_pipe.unet, (16, 16)), 14
    small = Trace(next(budget for budget in range(0, 10 ** 8, 10 ** 4) if lens.planned(blocks, TOKENS, steps, budget)[2] == 6))
    _, words, own = lens.planned(blocks, TOKENS, steps, small.budget)
    run.generate(tiny_pipe, replace(REQUEST, steps=steps), parse_stack(text), steps, trace=small)
    for channel, count in (("attention.cross", words), ("attention.self", own)):
        found = {step for step, _ in small.channels[channel]}
        assert len(found) == count and {0, 6, 13} <= found and len(small.channels[channel]) == len(blocks) * count
    assert text == "full" or 12 in {step for step, _ in small.channels["attention.self"]}  # whose map the last one uses
    assert not small.dropped and len(small.channels["estimate"]) == steps


def unet_grids(stages):
    """[(name, block, (h, w))] of transformers, from [(their layers, side)]."""
    return [(f"{i}.{layer}", None, (side, side)) for i, (layers, side) in enumerate(stages) for layer in range(layers)]


SDXL = unet_grids([(4, 64), (20, 32), (10, 32), (30, 32), (6, 64)])  # at 1024 px
SD15 = unet_grids([(2, 64), (2, 32), (2, 16), (1, 8), (3, 16), (3, 32), (3, 64)])  # at 512 px


@pytest.mark.parametrize("blocks", (SDXL, SD15), ids=("sdxl", "sd15"))
@pytest.mark.parametrize("megabytes", (64, 128, 256))
@pytest.mark.parametrize("tokens", (10, 20, 75))
def test_both_kinds_of_maps_fit_for_long_prompts_on_large_models(blocks, tokens, megabytes):
    budget = megabytes * 2 ** 20
    side, words, own = lens.planned(blocks, tokens, 50, budget)
    taken = sum(2 * words * tokens * min(h, side) * min(w, side) + own * (min(h, 16) * min(w, 16)) ** 2 for _, _, (h, w) in blocks)
    assert 3 <= words <= 50 and 5 <= own <= 50 and taken <= lens.PLANNED * budget
    for reused in ((), range(25, 50), range(1, 50, 2), range(5, 50)):
        found = lens.moments(50, own, {(step, "self") for step in reused})
        sources = {max(set(range(step + 1)) - set(reused)) for step in found}
        assert {0, 24, 49} | sources <= found and len(found) <= own
    assert {0, 24, 49} <= lens.moments(50, words, (), "cross")


def test_timesteps_and_grids_are_those_of_the_network_that_ran(tiny_pipe, tiny_home):
    for text, steps in (("full", 4), ("few_step(steps=2)", 2), ("olss(steps=4)", 4), ("sdxs", 1)):
        found = Trace()
        run.generate(tiny_pipe, REQUEST, parse_stack(text), steps, trace=found)
        times, grids = found.about["timesteps"], found.about["grids"]
        assert len(times) == steps and times == sorted(times, reverse=True) and times[0] > 700
        assert {layer.removesuffix(".attn2") for _, layer in found.channels["attention.cross"]} == set(grids)
    assert times == [999]
    teachers = {name: size for name, _, size in transformer_blocks(tiny_pipe.unet, (16, 16))}
    theirs = trace.counterparts(teachers, grids)
    assert {name for name in theirs.values() if name} == set(grids) and None in theirs.values()
    for name, own in theirs.items():
        if own:
            assert teachers[name] == tuple(grids[own]) and name[:2] == own[:2] and name.partition(".att")[2] == own.partition(".att")[2]
    assert any(own and own != name for name, own in theirs.items()) and trace.counterparts(teachers, teachers) == {name: name for name in teachers}


def test_where_all_steps_fit_all_are_recorded_and_else_the_reused_ones_with_what_they_used():
    late, alternate = ({(step, "self") for step in steps} for steps in (range(25, 50), range(1, 50, 2)))
    assert lens.moments(50, 50, late) == lens.moments(50, 99) == set(range(50))
    assert lens.moments(50, 0) == set() and lens.moments(50, 1) == {0} and lens.moments(4, 1, {(1, "cross")}) == {0}
    even = sorted(lens.moments(50, 13))
    assert len(even) == 13 and max(b - a for a, b in zip(even, even[1:])) <= 8
    found = lens.moments(50, 20, late)
    assert len(found) == 20 and {0, 24} < found and len(found & set(range(25, 50))) == 18
    found = lens.moments(50, 20, alternate)
    assert len(found) == 20 and all(step - 1 in found for step in found if step % 2) and max(found) > 40 and min(found) < 2


def test_maps_of_stickers_are_recorded_at_every_step_of_fifty():
    pipe, tokens = models.load("stickers"), 8
    blocks = transformer_blocks(pipe.unet, (32, 32))
    assert lens.planned(blocks, tokens, 50, Trace().budget) == (32, 50, 50)


def test_what_belongs_to_a_block_is_read_alone(tiny_pipe, tmp_path):
    _, channels = traced(tiny_pipe, "atedm")
    whole = Trace()
    for channel, cells in channels.items():
        for (step, layer), array in cells.items():
            whole.add(channel, step, layer, array)
    whole.save(tmp_path / "run.npz")
    names = [name for name, _, _ in transformer_blocks(tiny_pipe.unet, (16, 16))]
    block = names[-1]
    found = trace.load(tmp_path / "run.npz", block).channels
    assert {layer for _, layer in found["attention.self"]} == {f"{block}.attn1"}
    assert {layer for _, layer in found["atedm.kept"]} <= {block.rpartition(".transformer_blocks.")[0]} and "estimate" not in found
    everything = trace.load(tmp_path / "run.npz").channels
    assert {channel: len(cells) for channel, cells in everything.items()} == {channel: len(cells) for channel, cells in channels.items()}


def test_activity_is_the_share_that_was_computed(tiny_pipe):
    names = [name for name, _, _ in transformer_blocks(tiny_pipe.unet, (16, 16))]
    reuse = activity(traced(tiny_pipe, "attention_reuse(schedule=1010)")[1], names, 4)
    assert reuse.tolist() == [[1, 0, 1, 0]] * len(names)
    half = activity(traced(tiny_pipe, "attention_reuse(schedule=1010,maps=self)")[1], names, 4)
    assert half.tolist() == [[1, 0.5, 1, 0.5]] * len(names)
    pruned = activity(traced(tiny_pipe, "atedm(ratio=0.5)")[1], names, 4)
    assert [pruned[i].max() for i, name in enumerate(names) if name.endswith(".0")] == [1] * sum(name.endswith(".0") for name in names)
    assert pruned.min() == 0.5 and all(pruned[i, 3] == 0.5 for i, name in enumerate(names) if name.endswith(".1"))
    assert activity(traced(tiny_pipe, "full")[1], names, 4).min() == 1
    for parts, share in (("", 0.75), (",merge_cross=true", 0.5), (",merge_self=false,merge_mlp=true", 1)):
        merged = traced(tiny_pipe, f"tome(ratio=0.5,max_downsample=1{parts})")[1]
        shares = activity(merged, names, 4)
        assert {shares[i].min() for i, name in enumerate(names) if (0, name) in merged["tome.tokens"]} == {share}
    assert strip(shares).size == (4, len(names))
