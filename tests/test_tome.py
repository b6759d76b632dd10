"""Token merging against tomesd, as its oracle, and against its own promises."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import tomesd
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from tomesd.merge import bipartite_soft_matching_random2d
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastviz.methods import tome
from fastviz.patch import transformer_blocks
from fastviz.trace import Context, Trace

GRIDS = [(16, 16), (32, 32), (15, 17), (9, 8), (7, 12), (5, 3)]


def ours(x, size, sx, sy, ratio, place=0):
    """(merge, unmerge, slot) of our match for x."""
    tokens, r = size[0] * size[1], tome.count(ratio, size, sx, sy)
    dst, src = map(torch.from_numpy, tome.split(size, sx, sy, place))
    slot = tome.assign(*tome.nearest(x, src, dst), src, dst, r)
    flat, members, starts = tome.rows(slot, tokens - r)
    return lambda x: tome.merge(x, members, starts), lambda y: tome.unmerge(y, flat), slot


def groups(slot):
    """Partitions of the tokens: one set of frozensets per batch entry."""
    return [{frozenset((row == label).nonzero().flatten().tolist()) for label in row.unique()} for row in slot]


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("random", (True, False))
@pytest.mark.parametrize("sx, sy", ((2, 2), (3, 2), (4, 4), (1, 2), (2, 1)))
@pytest.mark.parametrize("size", GRIDS)
def test_pairs_and_outputs_equal_tomesd(size, sx, sy, random):
    h, w = size
    if h < sy or w < sx:
        pytest.skip("tomesd has no destination on a grid smaller than a cell")
    for ratio in (0.1, 0.5, 0.75):
        torch.manual_seed(h * w + sx)
        x = torch.randn(2, h * w, 24, dtype=torch.double) * (0.01 + torch.rand(2, h * w, 1, dtype=torch.double))  # of any length
        cells, _ = tome.cells_of(size, sx, sy)
        # what tomesd will draw
        place = torch.randint(sy * sx, cells, generator=torch.Generator().manual_seed(3)).numpy()
        their_merge, their_unmerge = bipartite_soft_matching_random2d(
            x, w, h, sx, sy, int(h * w * ratio), no_rand=not random,
            generator=torch.Generator().manual_seed(3))
        merge, unmerge, slot = ours(x, size, sx, sy, ratio, place if random else 0)
        membership = their_merge(torch.eye(h * w, dtype=torch.double).expand(2, -1, -1)) > 0
        pairs = [{frozenset(row.nonzero().flatten().tolist()) for row in half} for half in membership]
        assert groups(slot) == pairs
        torch.testing.assert_close(unmerge(merge(x)), their_unmerge(their_merge(x)), rtol=0, atol=1e-6)
        torch.testing.assert_close(unmerge(attend(merge(x))), their_unmerge(attend(their_merge(x))), rtol=0, atol=1e-6)


def noise_prediction(unet, size=16):
    torch.manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(2, 4, size, size), 500, encoder_hidden_states=torch.randn(2, 24, 32)).sample


@pytest.mark.parametrize("parts", ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)))
def test_the_whole_network_equals_tomesd(tiny_pipe, parts):
    own, cross, mlp = map(bool, parts)
    peer = copy.deepcopy(tiny_pipe.unet)
    tomesd.apply_patch(peer, ratio=0.4, max_downsample=2, use_rand=False,
                       merge_attn=own, merge_crossattn=cross, merge_mlp=mlp)
    knobs = tome.Knobs(ratio=0.4, max_downsample=2, random=False, merge_self=own, merge_cross=cross, merge_mlp=mlp)
    plain, context = noise_prediction(tiny_pipe.unet), Context(1, grid=(16, 16))
    with tome.attach(tiny_pipe, knobs, context) as pipe:
        context.start(0)
        merged = noise_prediction(pipe.unet)
    torch.testing.assert_close(merged, noise_prediction(peer), rtol=1e-4, atol=1e-4)
    assert (merged - plain).abs().max() > 1e-2 and len(context.acted["tome"]) == 15


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_each_cell_has_one_destination(h, w, sx, sy, seed):
    cells, (height, width) = tome.cells_of((h, w), sx, sy)
    assert (height, width) == (min(sy, h), min(sx, w))
    dst, src = tome.split((h, w), sx, sy, tome.places(seed, 0, "block", cells, height * width))
    found = [(int(i) // w // height, int(i) % w // width) for i in dst]
    assert found == [(y, x) for y in range(h // height) for x in range(w // width)]
    assert sorted([*dst, *src]) == list(range(h * w))


@settings(max_examples=40, deadline=None)
@given(h=st.integers(2, 12), w=st.integers(2, 12), ratio=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_merging_keeps_the_mean_and_unmerging_undoes_nothing_else(h, w, ratio, seed):
    x = torch.randn(2, h * w, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    merge, unmerge, slot = ours(x, (h, w), 2, 2, ratio)
    merged = merge(x)
    sizes = F.one_hot(slot, merged.shape[1]).sum(1)
    assert (sizes >= 1).all() and merged.shape[1] == h * w - tome.count(ratio, (h, w), 2, 2)
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), x.sum(1))
    assert torch.equal(merge(unmerge(merged)).round(decimals=9), merged.round(decimals=9))
    alone = sizes.gather(1, slot) == 1
    assert torch.equal(unmerge(merged)[alone], x[alone])


def test_the_draw_belongs_to_seed_step_and_block():
    def drawn(*key):
        return tome.places(*key, (8, 8), 4).tolist()
    keys = [(seed, step, name) for seed in (0, 1, 2**32 - 1) for step in (0, 1) for name in ("a", "b")]
    assert drawn(1, 2, "a") == drawn(1, 2, "a")
    assert len({str(drawn(*key)) for key in keys}) == len(keys)
    assert set(np.unique(drawn(1, 2, "a"))) == {0, 1, 2, 3}


def networks():
    """Networks on the meta device: ours, and the layouts of SD 1.5 and SDXL at few channels."""
    told = {
        "SD 1.5": dict(block_out_channels=(32, 64, 64, 64), attention_head_dim=8),
        "SDXL": dict(block_out_channels=(32, 64, 64), attention_head_dim=(2, 2, 4), use_linear_projection=True,
                     down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                     up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                     transformer_layers_per_block=(1, 2, 3)),
    }
    with torch.device("meta"):
        return {name: UNet2DConditionModel(norm_num_groups=8, cross_attention_dim=32, **more).eval()
                for name, more in told.items()}


def run_on_meta(unet, grid):
    with torch.device("meta"):
        return unet(sample=torch.empty(2, 4, *grid), timestep=torch.empty((), dtype=torch.long),
                    encoder_hidden_states=torch.empty(2, 24, 32)).sample


class Pipe:
    """Just enough of a pipeline for attach."""

    def __init__(self, unet):
        self.unet = unet


@pytest.mark.parametrize("grid", ((16, 16), (24, 40), (17, 30)))
@pytest.mark.parametrize("name, unet", networks().items())
def test_grids_are_those_that_the_blocks_see(name, unet, grid):
    blocks, seen = transformer_blocks(unet, grid), []
    hooks = [block.register_forward_pre_hook(lambda module, args: seen.append((module, args[0].shape[1])))
             for _, block, _ in blocks]
    run_on_meta(unet, grid)
    for hook in hooks:
        hook.remove()
    assert seen == [(block, h * w) for _, block, (h, w) in blocks]  # in order of execution
    assert len(seen) == sum(type(module).__name__ == "BasicTransformerBlock" for module in unet.modules())


def test_default_knobs_act_on_sdxl_and_the_papers_counting_says_that_nothing_merges():
    unet, grid = networks()["SDXL"], (32, 32)
    found = {}
    for finest in (True, False):
        context = Context(1, grid=grid)
        with tome.attach(Pipe(unet), tome.Knobs(finest=finest), context) as pipe:
            context.start(0)
            run_on_meta(pipe.unet, grid)
        found[finest] = {name for name, _ in context.acted["tome"]}
    assert found[False] == set()
    assert found[True] == {name for name, _, size in transformer_blocks(unet, grid) if size == (16, 16)} != set()


@pytest.mark.parametrize("grid", ((16, 16), (15, 19)))
def test_executed_flops_follow_the_formula(grid):
    unet, knobs = networks()["SD 1.5"], tome.Knobs(ratio=0.4)

    def flops():
        context.start(0)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            run_on_meta(unet, grid)
        return counter.get_total_flops()

    context = Context(1, grid=grid)
    full = flops()
    with tome.attach(Pipe(unet), knobs, context):
        merged = flops()
    with tome.attach(Pipe(unet), dataclasses.replace(knobs, floor=0.9), context):
        bounded = flops()  # similarities are unknown: an upper bound
    n, c, batch = math.prod(grid), 32, 2
    d, left = (grid[0] // 2) * (grid[1] // 2), n - int(n * 0.4)
    attention = [2 * batch * (4 * m * c * c + 2 * m * m * c) for m in (n, left)]
    match = 2 * batch * (n - d) * d * c
    blocks = sum(size == grid for _, _, size in transformer_blocks(unet, grid))
    assert blocks == 5 and full - merged == blocks * (attention[0] - attention[1] - match)
    assert bounded == full + blocks * match


@pytest.mark.parametrize("knobs", (tome.NEUTRAL, tome.Knobs(merge_self=False), tome.Knobs(ratio=0.003)))
def test_nothing_to_merge_leaves_every_module_alone(tiny_pipe, knobs):
    with tome.attach(tiny_pipe, knobs, Context(1, grid=(16, 16))) as pipe:
        assert not any("forward" in vars(module) for module in pipe.unet.modules())


def test_floor_keeps_dissimilar_tokens_apart(tiny_pipe):
    plain = noise_prediction(tiny_pipe.unet)

    def merged_at(floor):
        trace = Trace()
        context = Context(1, grid=(16, 16), trace=trace)
        with tome.attach(tiny_pipe, tome.Knobs(floor=floor), context) as pipe:
            context.start(0)
            out = noise_prediction(pipe.unet)
        pairs = {key: cosines[~np.isnan(cosines)] for key, cosines in trace.channels["tome.similarity"].items()}
        return out, context, pairs

    out, context, pairs = merged_at(1.0)
    assert torch.equal(out, plain) and not context.acted["tome"]
    _, _, free = merged_at(tome.OFF)
    first = (0, "down_blocks.0.attentions.0.transformer_blocks.0")
    floor = float(sorted(free[first])[60])
    out, context, pairs = merged_at(floor)
    assert not torch.equal(out, plain) and context.acted["tome"]
    assert len(free[first]) == 128 and 0 < len(pairs[first]) <= 68
    assert all((similarity >= floor - 1e-3).all() for similarity in pairs.values())


def labels(pipe, knobs, steps, frozen=()):
    """The label maps of each step in one block, from bare calls of the network."""
    trace = Trace()
    context = Context(steps, seed=5, grid=(16, 16), frozen=set(frozen), trace=trace)
    torch.manual_seed(2)
    with tome.attach(pipe, knobs, context) as ready, torch.no_grad():
        for step in range(steps):
            context.start(step)
            ready.unet(sample=torch.randn(2, 4, 16, 16), timestep=500, encoder_hidden_states=torch.randn(2, 24, 32))
    name = "up_blocks.2.attentions.1.transformer_blocks.1"
    return [trace.channels["tome.labels"][step, name].tolist() for step in range(steps)], trace


def test_a_match_serves_as_many_steps_as_asked_for(tiny_pipe):
    maps, _ = labels(tiny_pipe, tome.Knobs(every=2), 5)
    assert maps[0] == maps[1] != maps[2] == maps[3] != maps[4]


def test_a_match_is_kept_on_steps_that_reuse_what_lies_inside_it(tiny_pipe):
    frozen = {(2, "self"), (3, "self"), (4, "cross")}
    maps, _ = labels(tiny_pipe, tome.Knobs(), 5, frozen)
    assert maps[0] != maps[1] == maps[2] == maps[3] != maps[4]
    maps, _ = labels(tiny_pipe, tome.Knobs(merge_cross=True), 5, frozen)
    assert maps[0] != maps[1] == maps[2] == maps[3] == maps[4]


def test_the_trace_tells_what_was_merged(tiny_pipe):
    maps, trace = labels(tiny_pipe, tome.Knobs(ratio=0.3), 2)
    for key, labelled in trace.channels["tome.labels"].items():
        tokens, left = trace.channels["tome.tokens"][key]
        destinations = trace.channels["tome.destinations"][key]
        assert (tokens, left) == (256, 256 - 76) and labelled.shape == (16, 16)
        assert sorted(set(labelled.flatten().tolist())) == list(range(left))
        assert sorted(labelled.flatten()[destinations].tolist()) == list(range(left - 64, left))
        merged = ~np.isnan(trace.channels["tome.similarity"][key])
        sizes = np.bincount(labelled.flatten())[labelled]
        sources = sizes > 1
        sources.flat[destinations] = False
        assert (merged == sources).all() and merged.sum() == 76
    assert len(trace.channels["tome.labels"]) == 2 * 6


@pytest.mark.parametrize("frozen, every", (((), 1), ((), 2), (((1, "self"),), 1)))
def test_a_shared_match_is_that_of_the_first_block_of_its_stage(tiny_pipe, frozen, every):
    """Against hooks that match for the first block of each stage, as that alone would, and merge around its self-attentions."""
    knobs, steps, found, handles = tome.Knobs(every=every, share=True, max_downsample=2), 3, {}, []
    made = {step: max(s for s in range(step + 1) if s % every == 0 and not any(s == at for at, _ in frozen))
            for step in range(steps)}
    now, used = [0], {}

    def remember(module, args, name, size):
        if now[0] == made[now[0]]:
            cells, (sy, sx) = tome.cells_of(size, 2, 2)
            used[name.partition(".attentions")[0]] = ours(args[0], size, 2, 2, 0.5, tome.places(5, now[0], name, cells, sy * sx))

    stages = set()
    for name, block, size in transformer_blocks(tiny_pipe.unet, (16, 16)):
        if size not in ((16, 16), (8, 8)):
            continue
        stage = name.partition(".attentions")[0]
        if stage not in stages:
            stages.add(stage)
            handles.append(block.register_forward_pre_hook(lambda m, args, name=name, size=size: remember(m, args, name, size)))
        handles.append(block.attn1.register_forward_pre_hook(lambda m, args, stage=stage: (used[stage][0](args[0]),)))
        handles.append(block.attn1.register_forward_hook(lambda m, args, out, stage=stage: used[stage][1](out)))

    def outs(context=None):
        torch.manual_seed(2)
        for now[0] in range(steps):
            if context:
                context.start(now[0])
            x, text = torch.randn(2, 4, 16, 16), torch.randn(2, 24, 32)
            yield tiny_pipe.unet(sample=x, timestep=500, encoder_hidden_states=text).sample

    with torch.no_grad():
        expected = list(outs())
        for handle in handles:
            handle.remove()
        context = Context(steps, seed=5, grid=(16, 16), frozen=set(frozen), trace=Trace())
        with tome.attach(tiny_pipe, knobs, context):
            assert all(torch.equal(a, b) for a, b in zip(outs(context), expected, strict=True))
    for (step, name), labelled in context.trace.channels["tome.labels"].items():
        found.setdefault((step, name.partition(".attentions")[0]), []).append(labelled.tobytes())
    assert all(len(set(each)) == 1 for each in found.values()) and max(map(len, found.values())) > 1
    assert len(set(map(str, found.values()))) == len(stages) * len(set(made.values()))


def test_a_shared_match_saves_the_matching_of_all_but_the_first(tiny_pipe):
    def flops(**told):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            with tome.attach(tiny_pipe, tome.Knobs(**told), context):
                context.start(0)
                noise_prediction(tiny_pipe.unet)
        return counter.get_total_flops()

    context = Context(1, grid=(16, 16))
    blocks = [name.partition(".attentions")[0] for name, _, size in transformer_blocks(tiny_pipe.unet, (16, 16)) if size == (16, 16)]
    assert flops() - flops(share=True) == (len(blocks) - len(set(blocks))) * 2 * 2 * (256 - 64) * 64 * 32 > 0


@pytest.mark.parametrize("batch", (1, 3))
def test_odd_batches_draw_too(tiny_pipe, batch):
    outs = []
    for seed in (0, 1):
        context = Context(1, seed=seed, grid=(16, 16))
        with tome.attach(tiny_pipe, tome.Knobs(), context) as pipe, torch.no_grad():
            context.start(0)
            torch.manual_seed(0)
            latents, text = torch.randn(batch, 4, 16, 16), torch.randn(batch, 24, 32)
            outs.append(pipe.unet(latents, 500, encoder_hidden_states=text).sample)
    assert not torch.equal(*outs)


def test_a_grid_that_is_not_the_runs_is_named(tiny_pipe):
    context = Context(1, grid=(32, 32))
    with tome.attach(tiny_pipe, tome.Knobs(), context) as pipe:
        context.start(0)
        with pytest.raises(ValueError, match="256 tokens where 32 x 32"):
            noise_prediction(pipe.unet)
