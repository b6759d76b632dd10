"""The benchmark of single blocks: its parts fit together, and what it derives follows from what it timed."""

import json

import pytest
import torch

from fastviz.bench import blocks
from fastviz.patch import replaced

SHAPE = (8, 32, 2, 16)


@pytest.fixture(scope="module")
def made():
    with torch.no_grad():
        return blocks.parts(*SHAPE, torch.device("cpu"), torch.float32)


def test_both_ways_to_attend_agree_and_a_fresh_map_gives_the_same(made):
    with torch.no_grad():
        fused, materialised = made["attention, fused"](), made["attention, materialised"]()
        made["make map"]()
        torch.testing.assert_close(fused, materialised)
        torch.testing.assert_close(fused, made["reuse map"]())


def test_both_merge_as_many_tokens(made):
    ours, theirs = made["merge, unmerge"](), made["tomesd merge, unmerge"]()
    assert ours.shape == theirs.shape == (2, 64, 32)
    assert len(ours[0].unique(dim=0)) == len(theirs[0].unique(dim=0)) == 32
    with torch.no_grad():
        assert made["attention of merged"]().shape == (2, 32, 32)
        whole, shared = made["merged attention"]()[1], made["merged attention, match shared"]()
    assert torch.equal(whole, shared) and len(whole[0].unique(dim=0)) == 32


def test_what_is_left_out_is_filled_in(made):
    left, full = made["leave out, copy"]()
    assert full.shape == (2, 64, 32) and left.shape == (2, 24, 32) and len(full[0].unique(dim=0)) == 24


def test_where_kernels_run_torchs_functions_are_timed_beside_them(monkeypatch):
    monkeypatch.setattr(blocks.kernels, "here", lambda x: True)
    ran = []
    for name in ("merge", "apply", "row_lse", "column_sums"):  # nothing can be launched here
        monkeypatch.setattr(blocks.kernels, f"launched_{name}", by_torch(getattr(blocks.kernels, name), ran))
    with torch.no_grad():
        made = blocks.parts(*SHAPE, torch.device("cpu"), torch.bfloat16)
        for name in ("merge, unmerge", "reuse map"):  # ranking asks for the device as well
            ran.clear()
            slow = made[f"{name}, by torch"]()
            assert not ran
            torch.testing.assert_close(made[name](), slow)
            assert ran == ["merge" if name == "merge, unmerge" else "apply"]
    times = {name: 2.0 for name in made} | {f"{name}, by torch": 4.0 for name in blocks.KERNELS}
    assert all(blocks.ratios(times)[f"{name} / by torch"] == 0.5 for name in blocks.KERNELS)


def by_torch(function, ran):
    def run(*given):
        ran.append(function.__name__)
        with replaced(blocks.kernels, here=lambda x: False):
            return function(*given)
    return run


def test_ratios_follow_from_the_times():
    told = {"merged attention": 3.0, "merged attention, match shared": 1.25, "tomesd merged attention": 6.0, "attention, fused": 4.0,
            "attention, materialised": 8.0, "attention of merged": 1.0, "attention of merged, materialised": 2.0, "match": 0.5, "merge, unmerge": 0.25, "tomesd match": 1.0,
            "tomesd merge, unmerge": 0.5, "rank": 2.0, "find copies": 1.0, "leave out, copy": 0.1, "make map": 3.0, "reuse map": 2.0,
            "layer of all": 10.0, "layer of kept": 3.9, "layer of all, materialised": 20.0, "layer of kept, materialised": 5.9}
    assert blocks.ratios(told) == pytest.approx({
        "match, merge, unmerge / tomesd's": 0.5, "merged attention / tomesd's": 0.5, "the same, match shared / tomesd's": 0.25,
        "merged / fused": 0.4375, "merged / materialised": 0.34375, "merged, match shared / fused": 0.375,
        "rank, find copies / fused": 0.75, "rank, find copies / materialised": 0.375, "later layer, pruned / all": 0.4,
        "2 layers, pruned / all": 14.6 / 20, "10 layers, pruned / all": 45.8 / 100,
        "2 layers, pruned / all, materialised": 26.6 / 40, "10 layers, pruned / all, materialised": 73.8 / 200,
        "reuse map / fused": 0.5, "reuse map / materialised": 0.25})


def test_flops_are_those_of_the_operations():
    side, channels, heads, text = SHAPE
    found, n = blocks.flops(SHAPE), side * side
    projections, maps = 2 * 2 * n * channels ** 2, 2 * 2 * n * n * channels  # of two pictures; one matrix, Q K^T or A V
    assert found["attention, fused"] == found["attention, materialised"] == 4 * projections + 2 * maps
    assert found["attention of merged"] == 4 * projections / 2 + 2 * maps / 4
    assert found["reuse map"] == 2 * projections + maps and "merge, unmerge" not in found
    told = blocks.saved(found)
    assert told["reuse map"] == found["reuse map"] / found["attention, fused"] and 0.3 < told["later layer, pruned"] < 0.5


def test_the_command_prints_tables_and_json(capsys):
    assert blocks.main(["--rounds", "1"], {"tiny": SHAPE, "tinier": (4, 16, 1, 16)}) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert [row["shape"] for row in told["blocks"]] == ["tiny", "tinier"] and told["environment"]["device"]
    assert all(ms > 0 for row in told["blocks"] for ms in row["milliseconds"].values())
    assert any(line.startswith("match, merge, unmerge / tomesd's") for line in lines)
    ours, shared, theirs, match = (sum(row["milliseconds"][name] for row in told["blocks"]) for name in (*blocks.MERGED, "match"))
    shared += match / blocks.SHARED
    assert list(told["total"].values()) == pytest.approx([ours / theirs, shared / theirs])
