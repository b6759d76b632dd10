"""The CUDA kernels against torch; without a GPU, Triton's interpreter runs them (see conftest)."""

from types import SimpleNamespace

import pytest
import torch

from fastviz import gwpr, kernels
from fastviz.methods import tome

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PRODUCTS = [dtype for dtype in TYPES if DEVICE == "cuda" or dtype != torch.bfloat16]  # the interpreter multiplies their bits


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("n, m, d, strips", ((35, 77, 40, 5), (64, 64, 64, 1), (130, 9, 80, 10), (66, 70, 160, 2)))
def test_votes_and_log_sum_exp_equal_torchs(n, m, d, strips, dtype):
    q, k = drawn(1, 2, n, d, dtype=dtype) * d ** -0.5, drawn(1, 2, m, d, dtype=dtype, seed=1)
    s = drawn(1, 2, n, seed=2).exp()
    lse = kernels.row_lse(q.double(), k.double()).float()
    torch.testing.assert_close(kernels.launched_row_lse(q, k), lse, rtol=1e-4, atol=TYPES[dtype])
    found = kernels.launched_column_sums(q, k, lse, s, strips)
    assert found.shape == (1, 2, strips, m) and found.dtype == torch.float32
    torch.testing.assert_close(found, gwpr.Held(q.float(), k.float()).votes(s, strips), rtol=1e-3, atol=1e-4)


def test_heads_need_not_lie_in_a_row():
    q, k = (drawn(1, 24, 2, 16, seed=seed).transpose(1, 2) for seed in (0, 1))
    assert not q.is_contiguous()
    lse = kernels.row_lse(q.double(), k.double()).float()
    torch.testing.assert_close(kernels.launched_row_lse(q, k), lse)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size, c, ratio", (((7, 5), 40, 0.6), ((8, 8), 33, 0.75), ((6, 6), 600, 0.3)))
def test_merging_equals_torchs(size, c, ratio, dtype):
    x, r = drawn(2, size[0] * size[1], c, dtype=dtype), tome.count(ratio, size, 2, 2)
    dst, src = (torch.from_numpy(each).to(DEVICE) for each in tome.split(size, 2, 2))
    _, members, starts = tome.rows(tome.assign(*tome.nearest(x.float(), src, dst), src, dst, r), size[0] * size[1] - r)
    found = kernels.launched_merge(x, members, starts)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), tome.merge(x.double(), members, starts).float(), rtol=TYPES[dtype], atol=TYPES[dtype])


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("heads, n, m, d", ((2, 35, 77, 40), (4, 64, 64, 64), (1, 130, 9, 80), (3, 66, 70, 160)))
@pytest.mark.parametrize("enough", (1, 10 ** 6))
def test_a_kept_map_applied_equals_torchs(heads, n, m, d, enough, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "ENOUGH", enough)
    weights = drawn(2, heads, n, m).softmax(-1).to(dtype)
    v = drawn(2, m, heads * d, dtype=dtype, seed=1)
    found = kernels.launched_apply(weights, v)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), kernels.apply(weights.double(), v.double()).float(), rtol=TYPES[dtype], atol=TYPES[dtype])
    assert torch.equal(found, kernels.launched_apply(weights, v))


def test_a_graph_made_of_the_kernels_ranks_and_finds_as_the_map_does(monkeypatch):
    q, k = drawn(1, 4, 48, 16) * 0.25, drawn(1, 4, 48, 16, seed=1)
    monkeypatch.setattr(kernels, "here", lambda x: True)
    graph = gwpr.graph_of(q, k, "fused", "cuda")
    assert type(graph) is gwpr.Streamed
    monkeypatch.undo()
    held, rows, columns = gwpr.Held(q, k), torch.arange(0, 20, device=DEVICE)[None], torch.arange(20, 48, device=DEVICE)[None]
    torch.testing.assert_close(gwpr.rank(graph, 3, 0.0, 8), gwpr.rank(held, 3, 0.0, 8))
    torch.testing.assert_close(graph.similarity(rows, columns), held.similarity(rows, columns))
    assert type(gwpr.graph_of(q, k, "fused", "cpu")) is gwpr.Fused


def test_torch_applies_maps_in_single_precision(monkeypatch):
    ran = []
    monkeypatch.setattr(kernels, "here", lambda x: True)
    monkeypatch.setattr(kernels, "launched_apply", lambda weights, v: ran.append(v.dtype))
    for dtype in (torch.float32, torch.float16):
        kernels.apply(drawn(1, 2, 4, 4, dtype=dtype), drawn(1, 4, 8, dtype=dtype))
    assert ran == [torch.float16]


def test_without_a_compiler_torch_does_their_work(monkeypatch):
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.half)
    monkeypatch.setattr(kernels, "COMPILER", "gcc")
    assert kernels.here(tensor)
    monkeypatch.setattr(kernels, "COMPILER", None)
    assert not kernels.here(tensor)


def test_kernels_are_for_cuda_alone():
    assert not any(kernels.here(torch.zeros(2, device=device)) for device in ("cpu", "meta"))
