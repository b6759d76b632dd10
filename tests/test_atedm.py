"""AT-EDM against numpy, slow loops and a reference made of hooks, and against its own promises."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from fastviz import cost, gwpr
from fastviz.bench import flops as bench
from fastviz.methods import atedm, attention_reuse, attached, tome
from fastviz.methods.atedm import Knobs
from fastviz.methods.attention_reuse import attention_map
from fastviz.patch import transformer_blocks
from fastviz.request import Request, parse_stack
from fastviz.trace import Context, Trace

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PLAIN = Knobs(tau=0, every=1)


def queries_and_keys(b, h, n, d, spread=1.2, dtype=torch.double, local=0.0, seed=0):
    """Scaled queries and keys; local > 0 makes neighbours on a circle attend to each other."""
    torch.manual_seed(seed)
    angle = torch.arange(n)[:, None] / n * 2 * math.pi * torch.arange(1, d // 2 + 1)
    place = torch.cat([angle.sin(), angle.cos()], 1).double() * local
    q, k = (spread * torch.randn(b, h, n, d, dtype=torch.double) + place for _ in range(2))
    return (q * d ** -0.5).to(dtype), k.to(dtype)


def leading(a):
    """The leading left eigenvector of a matrix, by numpy; sums to 1."""
    values, vectors = np.linalg.eig(a.T)
    vector = np.real(vectors[:, np.argmax(values.real)])
    return vector / vector.sum()


# The rank

def limit(graph):
    """The leading left eigenvectors of all of a graph's maps, (B, H, N)."""
    return torch.tensor(np.array([[leading(head.numpy()) for head in half] for half in graph.map]))


@pytest.mark.parametrize("local", (0.0, 1.2))
@pytest.mark.parametrize("n, strips", ((120, 1), (120, 12), (97, 32), (256, 32)))
def test_rank_is_the_leading_left_eigenvector(n, strips, local):
    graph = gwpr.Held(*queries_and_keys(2, 1, n, 16, local=local))
    s = gwpr.rank(graph, 2000, 1e-9, strips)
    assert (s - limit(graph)).abs().sum(-1).max() < 1e-4
    assert s.shape == (2, 1, n) and torch.allclose(s.sum(-1), torch.ones(2, 1, dtype=s.dtype))


def test_rank_of_cross_attention_is_the_leading_eigenvector_of_both_ways():
    q, k = queries_and_keys(1, 2, 60, 8)
    graph = gwpr.Held(q, k[:, :, :7])
    s = gwpr.rank(graph, 5000, 1e-13, back=True)
    for a, found in zip(graph.map[0].numpy(), s[0].numpy()):
        vector = np.abs(np.linalg.eigh(a @ a.T)[1][:, -1])
        assert np.abs(found - vector / vector.sum()).sum() < 1e-6


def test_rounds_are_counted_and_end_when_settled(monkeypatch):
    graph, asked = gwpr.Held(*queries_and_keys(1, 2, 64, 8)), []
    votes = graph.votes
    monkeypatch.setattr(graph, "votes", lambda s, strips: asked.append(strips) or votes(s, strips))
    ten = gwpr.rank(graph, 10, 0.0)
    assert asked == [1] * 10
    s = torch.full((64,), 1 / 64, dtype=torch.double)
    for _ in range(10):
        s = graph.map[0, 0].T @ s
    torch.testing.assert_close(ten[0, 0], s)
    asked.clear()
    settled = gwpr.rank(graph, 50, 1e-4)
    rounds = len(asked)
    assert rounds < 50 and (settled - gwpr.rank(graph, rounds - 1, 0.0)).abs().sum(-1).max() < 1e-4
    assert (gwpr.rank(graph, rounds - 1, 0.0) - gwpr.rank(graph, rounds - 2, 0.0)).abs().sum(-1).max() >= 1e-4


def test_strips_need_fewer_rounds_and_the_papers_stop_keeps_nearly_the_same_tokens():
    """On maps of neighbours, where plain rounds carry votes no further than to the neighbours."""
    for seed in range(3):
        graph = gwpr.Held(*queries_and_keys(1, 2, 256, 16, 0.8, local=1.6, seed=seed))
        exact, rounds = limit(graph), {}
        for strips in (1, 32):
            s, rounds[strips] = graph.uniform, 0
            while (s - exact).abs().sum(-1).max() > 1e-4:
                s, rounds[strips] = gwpr.normalised(gwpr.settled(graph.votes(s, strips))), rounds[strips] + 1
        assert rounds[1] > 4 * rounds[32]
        stopped = gwpr.rank(graph, 50, 1e-4)
        first, second = (gwpr.aggregate(s, "rms").topk(95).indices[0].tolist() for s in (stopped, exact))
        assert (stopped - exact).abs().sum(-1).max() > 5e-4 and len({*first} & {*second}) > 0.9 * 95


def test_heads_become_one():
    s = gwpr.normalised(torch.rand(2, 3, 50, dtype=torch.double) + 0.2)
    torch.testing.assert_close(gwpr.aggregate(s, "mean"), (s[:, 0] + s[:, 1] + s[:, 2]) / 3)
    torch.testing.assert_close(gwpr.aggregate(s, "rms"), torch.sqrt((s[:, 0]**2 + s[:, 1]**2 + s[:, 2]**2) / 3))
    flat, peak = torch.full((50,), 1 / 50).double(), torch.zeros(50).double().index_fill(0, torch.tensor(7), 1.0)
    assert 0.05 < (50 * s[0, 1]).var() < 4
    mixed = torch.stack([flat, s[0, 1], peak])[None]
    torch.testing.assert_close(gwpr.aggregate(mixed, "filtered")[0], s[0, 1])
    torch.testing.assert_close(gwpr.aggregate(mixed[:, ::2], "filtered"), gwpr.aggregate(mixed[:, ::2], "rms"))


# Without the map

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ("tiles", "fused"))
@pytest.mark.parametrize("shape, strips", (((2, 3, 256, 64), 32), ((1, 2, 255, 40), 17), ((2, 1, 120, 24), 24)))
def test_votes_and_similarity_without_the_map_equal_those_of_the_map(monkeypatch, device, way, shape, strips):
    q, k = (x.to(device) for x in queries_and_keys(*shape, dtype=torch.float32))
    monkeypatch.setattr(gwpr, "TILE", 4 * shape[0] * shape[1] * shape[2] * 7)  # seven rows at a time
    held, graph = gwpr.Held(q, k), gwpr.graph_of(q, k, way, device)
    ours = gwpr.Streamed if gwpr.kernels.here(q) else gwpr.Fused if device == "cpu" or shape[2] % 8 == 0 else gwpr.Tiled
    assert type(graph) is (ours if way == "fused" else gwpr.Tiled)
    s = gwpr.normalised(torch.rand(shape[:3], device=device))
    rows, columns = (torch.stack([torch.randperm(shape[2])[:count] for _ in range(shape[0])]).to(device)
                     for count in (30, 20))
    similar = graph.similarity(rows, columns)  # before any votes
    for count in (1, strips):
        torch.testing.assert_close(graph.votes(s, count), held.votes(s, count), rtol=1e-5, atol=0)
    torch.testing.assert_close(graph.votes(s, strips).sum(2), (held.map.transpose(2, 3) @ s[..., None])[..., 0],
                               rtol=1e-5, atol=0)
    for found in (similar, graph.similarity(rows, columns)):
        torch.testing.assert_close(found, held.similarity(rows, columns), rtol=1e-4, atol=1e-7)
    assert torch.equal(gwpr.partners(graph, rows, columns), held.similarity(rows, columns).argmax(-1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, bound", ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)))
def test_fused_votes_keep_their_precision_in_half(device, dtype, bound):
    q, k = (x.to(device, dtype) for x in queries_and_keys(1, 2, 512, 64))
    held, graph = gwpr.Held(q.float(), k.float()), gwpr.graph_of(q, k, "fused", device)
    expected, found = held.votes(held.uniform), graph.votes(graph.uniform)
    assert found.dtype == torch.float32 and ((found - expected).abs() / expected).max() < bound


def test_the_gpu_kernels_shapes_on_the_meta_device():
    """Its log-sum-exp has more rows than there are queries."""
    q, k = torch.empty(1, 2, 40, 64, device="meta"), torch.empty(1, 2, 40, 64, device="meta")
    raw = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, k, None, True)[1]
    graph = gwpr.graph_of(q, k, "fused", "cuda")
    assert raw.shape == (1, 2, 64) and graph.votes(graph.uniform, 8).shape == (1, 2, 8, 40)
    assert graph.lse.shape == (1, 2, 40) and gwpr.rank(graph, 3, 1e-4, 32).shape == (1, 2, 40)


def test_the_way_of_counting_votes_follows_size_and_device():
    def kind(n, d, way, device):
        q = torch.empty(1, 2, n, d, device="meta")
        return type(gwpr.graph_of(q, q, way, device))

    cuda = [gwpr.Streamed] * 2 if torch.cuda.is_available() else [gwpr.Fused, gwpr.Tiled]  # with kernels of our own, or torch's
    assert {kind(256, 64, "auto", device) for device in ("cpu", "cuda", "mps")} == {gwpr.Held}
    assert [kind(4096, 64, "auto", device) for device in ("cpu", "cuda", "mps")] == [gwpr.Tiled, cuda[0], gwpr.Tiled]
    assert [kind(4095, 64, "fused", device) for device in ("cpu", "cuda", "mps")] == [gwpr.Fused, cuda[1], gwpr.Tiled]


def test_a_sample_of_the_queries_votes_as_the_map_says():
    q, k = queries_and_keys(1, 2, 64, 8)
    whole, some = gwpr.Held(q, k), gwpr.graph_of(q[:, :, ::4], k, "tiles", "cpu")
    expected = gwpr.normalised(whole.map[:, :, ::4].sum(2))
    torch.testing.assert_close(gwpr.rank(some, 1, 1e-4), expected, rtol=1e-5, atol=0)
    strips = gwpr.rank(some, 1, 1e-4, 16)
    assert strips.shape == (1, 2, 64) and strips.sum(-1) == pytest.approx(torch.ones(1, 2)) and not torch.allclose(strips, expected)
    odd = gwpr.graph_of(q[:, :, ::7], k, "tiles", "cpu")  # 10 queries and 64 keys: two strips divide both
    assert gwpr.rank(odd, 1, 1e-4, 32).shape == (1, 2, 64)


# Which tokens, and what they get

def test_dsap_and_pruning_points():
    assert [atedm.early_steps(Knobs(), steps) for steps in (50, 25, 10, 1)] == [15, 8, 3, 0]
    knobs = Knobs(every=4)
    assert [step for step in range(30) if atedm.due(knobs, 50, step, False)] == [0, 4, 8, 12, 16, 20, 24, 28]
    assert [step for step in range(30) if atedm.due(knobs, 50, step, True)] == [15, 19, 23, 27]
    assert atedm.left(Knobs(), 4096, 2) == {0: 1516} and atedm.left(Knobs(), 1024, 10) == {0: 379}
    assert atedm.left(Knobs(), 4096, 1) == atedm.left(Knobs(ratio=0.0001), 1024, 4) == {}
    assert atedm.left(Knobs(points="each"), 1024, 4) == {0: 735, 1: 528, 2: 379}
    assert atedm.left(Knobs(ratio=0.95), 4, 3) == {0: 1}
    names = [name.rpartition(".transformer_")[0] for name, _, _ in transformer_blocks(networks()["SDXL"], (32, 32))]
    assert atedm.outer(dict.fromkeys(names)) == {f"{stage}.attentions.{i}" for stage, i in (
        ("down_blocks.1", 0), ("down_blocks.2", 0), ("up_blocks.0", 2), ("up_blocks.1", 2))}


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), share=st.floats(0, 1), b=st.integers(1, 2), seed=st.integers(0, 99))
def test_choosing_and_filling_in_equal_slow_loops(h, w, share, b, seed):
    torch.manual_seed(seed)
    n, batch = h * w, 2
    count = max(1, round(share * n))
    importance, x = torch.rand(b, n), torch.randn(batch, n, 3)
    kept, pruned = atedm.chosen(importance, count)
    y = torch.randn(batch, count, 3)
    near = atedm.nearest(pruned, kept, w)
    slot = atedm.slots(pruned, kept, near)
    results = {how: atedm.filled(how, x, kept, slot, y) for how in ("copy", "update", "own", "zero")}
    for half in range(batch):
        k, p = kept[half % b].tolist(), pruned[half % b].tolist()
        assert sorted(k + p) == list(range(n)) and k == sorted(k) and p == sorted(p) and len(k) == count
        assert not p or min(importance[half % b][k]) >= max(importance[half % b][p])
        for place, i in enumerate(k):
            assert all(torch.equal(found[half, i], y[half, place]) for how, found in results.items() if how != "update")
            torch.testing.assert_close(results["update"][half, i], y[half, place])
        for place, i in enumerate(p):
            distance = [(i // w - j // w)**2 + (i % w - j % w)**2 for j in k]
            stand_in = distance.index(min(distance))
            assert near[half % b, place] == stand_in
            gained = y[half, stand_in] - x[half, k[stand_in]]
            expected = {"copy": y[half, stand_in], "own": x[half, i], "zero": torch.zeros(3), "update": x[half, i] + gained}
            assert all(torch.equal(found[half, i], expected[how]) for how, found in results.items())


def test_the_most_similar_kept_token_equals_a_slow_loop():
    graph = gwpr.Held(*queries_and_keys(2, 3, 24, 8))
    kept, pruned = atedm.chosen(torch.rand(2, 24), 9)
    found = gwpr.partners(graph, pruned, kept)
    for half in range(2):
        mean = sum(graph.map[half, head] for head in range(3)) / 3
        for place, i in enumerate(pruned[half]):
            similar = [float((mean[i, j] + mean[j, i]) / 2) for j in kept[half]]
            assert found[half, place] == similar.index(max(similar))


# The network

def networks():
    """Networks on the meta device in the layouts of SD 1.5 and SDXL, with few channels."""
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


class Pipe:
    """Just enough of a pipeline for attach."""

    def __init__(self, unet):
        self.unet = unet


@torch.no_grad()
def predict(unet, batch=2, grid=(16, 16), seed=1):
    torch.manual_seed(seed)
    return unet(sample=torch.randn(batch, 4, *grid), timestep=500, encoder_hidden_states=torch.randn(batch, 24, 32)).sample


def predicted(pipe, knobs, seed=1, **told):
    """(noise prediction, context) of one step with these knobs."""
    context = Context(1, grid=(16, 16), **told)
    with atedm.attach(pipe, knobs, context) as ready:
        context.start(0)
        return predict(ready.unet, seed=seed), context


def reference(unet, ratio):
    """AT-EDM for one step as hooks: numpy's eigenvectors, and loops over tokens. -> noise prediction"""
    handles = []

    def transformer(blocks):
        read, state = {}, {}

        def choose(module, args, output):
            a = attention_map(blocks[0].attn1, read["x"]).double()  # (2, H, N, N)
            scores = np.array([[leading(head.numpy()) for head in half] for half in a])
            importance = np.sqrt((scores**2).mean(1)).mean(0)
            keep = max(1, round((1 - ratio) * len(importance)))
            kept = sorted(np.argsort(-importance, kind="stable")[:keep].tolist())
            mean = a.mean((0, 1)).numpy()
            similarity = (mean + mean.T) / 2
            state["from"] = [kept.index(i) if i in kept else int(np.argmax(similarity[i][kept])) for i in range(len(importance))]
            return output[:, kept]

        handles.append(blocks[0].norm1.register_forward_hook(lambda module, args, output: read.update(x=output)))
        handles.append(blocks[0].register_forward_hook(choose))
        handles.append(blocks[-1].register_forward_hook(lambda module, args, output: output[:, state["from"]]))

    for module in unet.modules():
        if len(getattr(module, "transformer_blocks", ())) > 1:
            transformer(module.transformer_blocks)
    found = predict(unet)
    for handle in handles:
        handle.remove()
    return found


def test_the_whole_network_equals_a_reference_made_of_hooks(tiny_pipe):
    expected, plain = reference(tiny_pipe.unet, 0.4), predict(tiny_pipe.unet)
    exact = replace(PLAIN, ratio=0.4, rounds=50, tolerance=0.0)
    for way in ("held", "tiles", "fused"):
        found, context = predicted(tiny_pipe, replace(exact, map=way))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert len(context.acted["atedm"]) == 6
    assert (expected - plain).abs().max() > 1e-2


def test_nothing_to_leave_out_leaves_every_module_alone(tiny_pipe):
    for knobs in (atedm.NEUTRAL, Knobs(ratio=0.001)):
        with atedm.attach(tiny_pipe, knobs, Context(1, grid=(16, 16))) as pipe:
            assert not any("forward" in vars(module) for module in pipe.unet.modules())


def test_one_layer_transformers_are_not_acted_on():
    unet, context = networks()["SD 1.5"], Context(1, grid=(16, 16))
    with atedm.attach(Pipe(unet), PLAIN, context) as pipe:
        assert not any("forward" in vars(module) for module in pipe.unet.modules())
        with torch.device("meta"):
            pipe.unet(torch.empty(2, 4, 16, 16), torch.empty(()), encoder_hidden_states=torch.empty(2, 24, 32))
    assert not context.acted


def test_the_highest_resolution_can_be_left_alone(tiny_pipe):
    _, context = predicted(tiny_pipe, replace(PLAIN, finest=False))
    assert {name for name, _ in context.acted["atedm"]} == {
        "down_blocks.1.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"}


def hidden(pipe, knobs, steps=1, seeds=None, name="up_blocks.1.attentions.0"):
    """What leaves the layers of one transformer at each step, [(B, N, C)], and what was recorded there."""
    trace, seen = Trace(), []
    context = Context(steps, grid=(16, 16), trace=trace)
    host = pipe.unet.get_submodule(name)
    with atedm.attach(pipe, knobs, context) as ready:
        hook = host.proj_out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for step in range(steps):
            context.start(step)
            predict(ready.unet, seed=seeds[step] if seeds else 1)
        hook.remove()
    return seen, {key.removeprefix("atedm."): [cells[step, name] for step in range(steps)]
                  for key, cells in trace.channels.items()}


@pytest.mark.parametrize("points", ("first", "each"))
@pytest.mark.parametrize("recover", ("copy", "nearest", "zero"))
def test_what_is_filled_in_is_what_the_trace_tells(tiny_pipe, recover, points):
    (seen,), told = hidden(tiny_pipe, replace(PLAIN, recover=recover, points=points))
    out, kept, source = seen[-1], told["kept"][0].flatten(), told["source"][0].flatten()
    assert kept.sum() == round(0.37 * 64) == told["tokens"][0][1] and told["tokens"][0][0] == 64
    assert np.array_equal(source[kept], np.flatnonzero(kept))
    if recover == "zero":
        assert (source[~kept] == -1).all() and not out[~kept].any()
    else:
        assert kept[source].all() and torch.equal(out, out[source])
    assert len({tuple(row.tolist()) for row in out[kept]}) == kept.sum()
    importance = told["importance"][0].flatten()
    assert importance.astype(float).mean() == pytest.approx(1, abs=0.2)
    if points == "first":
        assert importance[kept].min() >= importance[~kept].max()


def test_previous_values_fill_in_after_the_first_step(tiny_pipe):
    knobs = Knobs(tau=0, every=2, recover="previous")
    seen, told = hidden(tiny_pipe, knobs, 4, seeds=[1, 2, 3, 4])
    copied, _ = hidden(tiny_pipe, PLAIN)
    assert torch.equal(seen[0], copied[0]) and (told["source"][0] >= 0).all()
    for step in range(1, 4):
        pruned = ~told["kept"][step].flatten()
        assert torch.equal(seen[step][:, pruned], seen[step - 1][:, pruned])
        assert not torch.equal(seen[step][:, ~pruned], seen[step - 1][:, ~pruned])
        assert (told["source"][step].flatten()[pruned] == -1).all()
    context = Context(1, grid=(16, 16))
    with atedm.attach(tiny_pipe, knobs, context) as pipe:
        context.start(0)
        predict(pipe.unet)
    assert context.kept_bytes == {"atedm": 4 * 2 * 32 * (3 * 256 + 3 * 64)}


def test_own_and_update_go_on_from_what_was_left_out(tiny_pipe):
    """In the first transformer, which gets the same input whatever fills in: kept tokens are equal, and update adds to
    own what the token that stands in gained."""
    name = "down_blocks.0.attentions.0"
    results = {how: hidden(tiny_pipe, replace(PLAIN, recover=how), name=name) for how in ("copy", "own", "update")}
    (copy, _), (own, _), (update, told) = ((seen[0][-1], told) for seen, told in results.values())
    source, kept = told["source"][0].flatten(), told["kept"][0].flatten()
    block = tiny_pipe.unet.get_submodule(name).transformer_blocks[0]
    before = []
    hook = block.register_forward_hook(lambda module, args, out: before.append(out[-1]))
    predict(tiny_pipe.unet)
    hook.remove()
    assert torch.equal(own[~kept], before[0][~kept]) and torch.equal(own[kept], copy[kept])
    torch.testing.assert_close(update, before[0] + (copy - before[0])[source], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recover, holds", (("copy", False), ("nearest", False), ("zero", False), ("previous", False),
                                            ("own", True), ("update", True)))
def test_what_was_left_out_is_held_only_where_filling_in_goes_on_from_it(tiny_pipe, monkeypatch, recover, holds):
    prune, held = atedm.Pruning.prune, []

    def watched(pruning, x, kept, slot):
        found = prune(pruning, x, kept, slot)
        held.append([point.untyped_storage().nbytes() >= x.nbytes for point, _, _ in pruning.points])
        assert all(point.shape[::2] == x.shape[::2] for point, _, _ in pruning.points)
        return found

    monkeypatch.setattr(atedm.Pruning, "prune", watched)
    predicted(tiny_pipe, replace(PLAIN, recover=recover, points="each"))
    assert held and all(each == [holds] * len(each) for each in held)


def test_halves_choose_together_alone_or_by_the_prompt(tiny_pipe):
    both, context = predicted(tiny_pipe, replace(PLAIN, guidance="apart"))

    def alone(half):
        torch.manual_seed(1)
        latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 24, 32)
        context = Context(1, grid=(16, 16))
        with atedm.attach(tiny_pipe, PLAIN, context) as pipe, torch.no_grad():
            context.start(0)
            return pipe.unet(latents[half:][:1], 500, encoder_hidden_states=text[half:][:1]).sample

    for half in range(2):
        torch.testing.assert_close(both[half:][:1], alone(half), rtol=1e-3, atol=1e-4)
    prompt, _ = predicted(tiny_pipe, replace(PLAIN, guidance="prompt"))
    torch.testing.assert_close(prompt[1:], both[1:], rtol=1e-3, atol=1e-4)
    shared, _ = predicted(tiny_pipe, PLAIN)
    assert not torch.allclose(prompt[:1], both[:1], atol=1e-3) and not torch.allclose(shared, both, atol=1e-3)


@pytest.mark.parametrize("knobs", (replace(PLAIN, score="cross"), replace(PLAIN, score="cross", recover="nearest"),
                                   replace(PLAIN, heads="mean"), replace(PLAIN, queries=4), replace(PLAIN, queries=7, recover="nearest"), replace(PLAIN, head=2)))
def test_other_ranks_choose_other_tokens(tiny_pipe, knobs):
    (_, usual), (_, other) = hidden(tiny_pipe, PLAIN), hidden(tiny_pipe, knobs)
    assert usual["kept"][0].sum() == other["kept"][0].sum() and not np.array_equal(usual["kept"][0], other["kept"][0])


@pytest.mark.parametrize("head", (1, 2))
def test_only_the_heads_that_are_asked_vote(tiny_pipe, head):
    name, read = "down_blocks.0.attentions.0", {}
    block = tiny_pipe.unet.get_submodule(name).transformer_blocks[0]
    hook = block.norm1.register_forward_hook(lambda module, args, out: read.setdefault("x", out))
    _, context = predicted(tiny_pipe, replace(PLAIN, head=head, rounds=3, strips=1, tolerance=0.0), trace=Trace())
    hook.remove()
    expected = []
    for half in attention_map(block.attn1, read["x"], read["x"]).double().numpy():
        asked = half[::head]
        assert len(asked) < len(half) or head == 1
        scores = np.full(asked.shape[:2], 1 / 256)
        for _ in range(3):
            scores = np.einsum("hij,hi->hj", asked, scores)
        expected.append(np.sqrt((scores**2).mean(0)))
    told = context.trace.channels["atedm.importance"][0, name].flatten().astype(float)
    np.testing.assert_allclose(told, 256 * np.mean(expected, 0), rtol=5e-3)


@pytest.mark.parametrize("rounds", (3, 50))
def test_cross_attention_ranks_by_the_words_votes(tiny_pipe, rounds):
    name, read = "down_blocks.0.attentions.0", {}
    block = tiny_pipe.unet.get_submodule(name).transformer_blocks[0]
    hook = block.norm2.register_forward_hook(lambda module, args, out: read.setdefault("x", out))
    _, context = predicted(tiny_pipe, replace(PLAIN, score="cross", rounds=rounds, tolerance=0.0), trace=Trace())
    hook.remove()
    torch.manual_seed(1)
    torch.randn(2, 4, 16, 16)
    text = torch.randn(2, 24, 32)
    expected = []
    for half in attention_map(block.attn2, read["x"], text).double().numpy():
        scores = np.full(half.shape[:2] + (1,), 1 / 256)
        for _ in range(rounds):
            scores = half @ (half.swapaxes(1, 2) @ scores)
            scores /= scores.sum(1, keepdims=True)
        expected.append(np.sqrt((scores[..., 0]**2).mean(0)))
    told = context.trace.channels["atedm.importance"][0, name].flatten().astype(float)
    np.testing.assert_allclose(told, 256 * np.mean(expected, 0), rtol=5e-3)


# Steps

def tokens(pipe, knobs, steps, frozen=(), name=None):
    """{transformer: (tokens that went on at each step, kept masks as text)}."""
    trace = Trace()
    context = Context(steps, grid=(16, 16), frozen=set(frozen), trace=trace)
    with atedm.attach(pipe, knobs, context) as ready:
        for step in range(steps):
            context.start(step)
            predict(ready.unet, seed=step)
    found = {}
    for (step, layer), mask in trace.channels["atedm.kept"].items():
        found.setdefault(layer, []).append((int(mask.sum()), mask.tobytes()))
    return found, context


def test_early_steps_leave_the_outer_transformers_whole(tiny_pipe):
    found, context = tokens(tiny_pipe, Knobs(every=1), 10)
    for name, steps in found.items():
        whole, outer = 256 if ".0.att" in name or "up_blocks.2" in name else 64, name not in (
            "up_blocks.1.attentions.0", "up_blocks.2.attentions.0")
        assert [left for left, _ in steps] == [whole if outer else round(whole * 0.37)] * 3 + [round(whole * 0.37)] * 7
    assert len(found) == 6 and len(context.acted["atedm"]) == 3 * 2 + 7 * 6
    found, context = tokens(tiny_pipe, Knobs(early="all"), 10)
    assert {step for _, step in context.acted["atedm"]} == set(range(3, 10))


def changes(steps):
    return [step for step in range(1, len(steps)) if steps[step] != steps[step - 1]]


def test_a_choice_serves_as_many_steps_as_asked_for(tiny_pipe):
    found, _ = tokens(tiny_pipe, Knobs(every=3), 10)  # tau is step 3
    assert {tuple(changes(steps)) for steps in found.values()} == {(3, 6, 9)}
    found, _ = tokens(tiny_pipe, Knobs(every=4), 10)
    assert changes(found["up_blocks.1.attentions.0"]) == [4, 8] and changes(found["up_blocks.1.attentions.1"]) == [3, 7]


def test_a_choice_is_kept_while_attention_is_reused_even_across_tau(tiny_pipe):
    frozen = {(2, "self"), (3, "self"), (4, "cross"), (7, "self"), (8, "self")}
    found, _ = tokens(tiny_pipe, Knobs(every=1), 10, frozen)
    assert {tuple(changes(steps)) for steps in found.values()} == {(1, 5, 6, 9), (5, 6, 9)}
    found, _ = tokens(tiny_pipe, Knobs(every=4), 10, frozen)  # what was due at 4 and 8 is caught up on at 5 and 9
    assert changes(found["up_blocks.1.attentions.0"]) == [5, 9]


def test_stored_maps_meet_the_tokens_that_they_were_made_with(tiny_pipe):
    """Same input at every step: reuse then changes nothing, as long as tokens stay where they were."""
    def last(*stack):
        context = Context(6, grid=(16, 16))
        with attached(tiny_pipe, stack, context) as pipe:
            for step in range(6):
                context.start(step)
                found = predict(pipe.unet)
        return found

    reuse, own = attention_reuse.Knobs(schedule="110010"), Knobs(every=1)
    for stack in ((own, reuse), (reuse, own)):
        torch.testing.assert_close(last(*stack), last(own), rtol=1e-3, atol=1e-4)


def test_merging_takes_the_whole_grids_and_pruning_the_rest(tiny_pipe):
    def run(*stack):
        context = Context(10, seed=4, grid=(16, 16))
        with attached(tiny_pipe, stack, context) as pipe:
            for step in (0, 5):
                context.start(step)
                found = predict(pipe.unet)
        assert not context.pruned
        return found, context

    merge, prune = tome.Knobs(), Knobs()
    (a, context), (b, _), (c, _) = run(merge, prune), run(prune, merge), run(prune)
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-3)
    merged = {step: {name for name, at in context.acted["tome"] if at == step} for step in (0, 5)}
    assert len(merged[0]) == 5 and merged[5] == {name for name in merged[0] if name.endswith("transformer_blocks.0")}
    assert len(merged[5]) == 3


def test_a_grid_that_is_not_the_runs_is_named(tiny_pipe):
    context = Context(1, grid=(32, 32))
    with atedm.attach(tiny_pipe, Knobs(), context) as pipe:
        context.start(0)
        with pytest.raises(ValueError, match="256 tokens where 32 x 32"):
            predict(pipe.unet)


# Cost

@pytest.mark.parametrize("text", ("atedm(every=3,recover=previous)", "atedm(every=4)+attention_reuse(schedule=1100110010)",
                                  "tome+attention_reuse(schedule=1110001100)+atedm(every=2,tau=25)"))
def test_steps_of_one_label_do_equal_work(tiny_pipe, monkeypatch, text):
    request, stack = Request("a cat", steps=10, size=128, guidance=3.0), parse_stack(text)
    told = cost.count(tiny_pipe, request, stack, 10)
    monkeypatch.setattr(cost, "kinds", lambda stack, steps: range(steps))
    assert told == cost.count(tiny_pipe, request, stack, 10) and len(set(told["steps"])) > 2


SMALL = {**bench.SDXL, "block_out_channels": (32, 64, 128), "attention_head_dim": (1, 1, 2),
         "cross_attention_dim": 48, "transformer_layers_per_block": (1, 2, 3), "sample_size": 32}


def layer(n, c, d, words=bench.WORDS):
    """FLOP of one transformer layer on n tokens of width c, and text of width d."""
    own, cross = 8 * n * c * c + 4 * n * n * c, 4 * n * c * c + 4 * words * d * c + 4 * n * words * c
    return own + cross + 24 * n * c * c


@pytest.mark.parametrize("way", bench.WAYS)
def test_executed_flops_follow_the_formula(way):
    unet, knobs = bench.network(SMALL), Knobs(every=1, map=way, rounds=1, strips=1)
    full, pruned = bench.per_step(unet, SMALL, atedm.NEUTRAL), bench.per_step(unet, SMALL, knobs)
    levels = {(256, 64, 1, 2): (3, 5), (64, 128, 2, 3): (4, 6)}  # tokens, width, heads, layers: transformers early, late
    for step, which in ((0, 0), (49, 1)):
        saved = choosing = 0
        for (n, c, heads, layers), count in levels.items():
            keep, count = round(0.37 * n), count[which]
            saved += count * (layers - 1) * (layer(n, c, 48) - layer(keep, c, 48))
            votes = 8 * n * n * c if way == "fused" else 2 * n * n * c + 2 * n * n * heads
            similar = 0 if way == "held" else 4 * (n - keep) * keep * c
            choosing += count * (votes + similar + 2 * heads * (10 + 1 + n))  # and the chain of one strip
        assert full[step][0] - pruned[step][0] == saved and full[step][1] == 0
        assert pruned[step][1] == choosing


def test_flops_of_sdxl_meet_the_papers():
    unet = bench.network(bench.SDXL)
    for name, knobs in bench.VARIANTS.items():
        network = [network for network, _ in bench.per_step(unet, bench.SDXL, replace(knobs, map="held", every=1))]
        assert network[-1] / 1e12 == pytest.approx(bench.PAPER[name], rel=0.03)


def test_the_benchmark_prints_a_table_and_one_json_line_last(capsys, monkeypatch):
    monkeypatch.setattr(bench, "WAYS", ("held", "fused"))
    bench.main([], {**SMALL, "transformer_layers_per_block": (1, 2, 2)})
    shown = capsys.readouterr().out.splitlines()
    rows = json.loads(shown[-1])["tflop_per_step"]
    assert [row["name"] for row in rows] == list(bench.VARIANTS)
    assert all(any(line.startswith(row["name"]) for line in shown) for row in rows)
    full, pruned, dagger = rows
    assert full["early"] == full["after_tau"] and full["choosing"] == {}
    assert pruned["after_tau"] < dagger["after_tau"] < full["mean"] and pruned["after_tau"] < pruned["mean"] < pruned["early"]
    assert pruned["mean"] == pytest.approx(0.3 * pruned["early"] + 0.7 * pruned["after_tau"])
    for row in (pruned, dagger):
        assert set(row["choosing"]) == set(bench.WAYS)
        assert all(way["with_network"] == pytest.approx(row["after_tau"] + way["once"] / 5) for way in row["choosing"].values())


def test_steps_of_the_same_kind_choose_in_the_same_transformers():
    """Every third step chooses: in those that are pruned from the start at 0, 3, 6, in the others, whole for one step, at 1, 4, 7."""
    labels = atedm.kinds(replace(PLAIN, every=3, tau=5), 10)
    assert [labels.index(label) for label in labels] == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
