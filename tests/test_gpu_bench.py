"""The GPU benchmark, on this machine with tiny networks: the same code, cells that fail, and a second call that goes on."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fastviz.bench import gpu, lanes, networks
from fastviz.bench.matrix import OUTPUT, STACKED, Cell, Goal
from fastviz.stickers import __main__ as stickers

ROOT, CPU = Path(__file__).parents[1], torch.device("cpu")
TINY = dict(norm_num_groups=4, layers_per_block=1, cross_attention_dim=24, attention_head_dim=2, block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            mid_block_type=None, transformer_layers_per_block=2)
CONFIGS = {"SD 1.5": TINY, "SDXS-512": TINY, "broken": TINY | {"norm_num_groups": 7}, "SDXL": TINY | dict(
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16)}
CELLS = [Cell("SDXS-512", 64, steps=1, how="expert"), Cell("broken", 64), Cell("SDXL", 64), Cell("SDXL", 64, "atedm"),
         Cell("SD 1.5", 64, attention="materialised"), Cell("SD 1.5", 64, STACKED, 4, "materialised"), Cell("SD 1.5", 64),
         Cell("SD 1.5", 64, "tomesd 0.5"), Cell("SD 1.5", 64, "pyramid broadcast 2"), Cell("SD 1.5", 64, "olss", 10),
         Cell("SD 1.5", 64, "few_step", 5), Cell("SD 1.5", 64, "tome", how="expert"),
         Cell("SD 1.5", 64, "olss", 10, how="expert"), Cell("SD 1.5", 64, batch=0)]
MEASURED = {"seconds": 1.0, "images_per_second": 1.0, "batch": 1, "peak": 1, "flops": 1}
DECODER = dict(decoder_block_out_channels=(8,) * 4, encoder_block_out_channels=(8,) * 4)


def run(folder, capsys, *more, cells=CELLS):
    assert gpu.main(["--out", str(folder), *more], cells, CONFIGS, "eager", DECODER) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last), json.loads((folder / "cells.json").read_text())["cells"]


def test_cells_are_run_fail_and_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lanes, "TIMED", 1)
    ran, measured = [], gpu.measured
    monkeypatch.setattr(gpu, "measured", lambda cell, *told: ran.append(cell) or measured(cell, *told))
    lines, told, first = run(tmp_path, capsys, "--minutes", "10", cells=CELLS[:2])
    assert told["left"] == 0 and list(first) == [cell.key for cell in CELLS[:2]]
    assert any(line.startswith(f"{CELLS[1].key}: ValueError") for line in lines)
    _, told, known = run(tmp_path, capsys)
    assert ran == CELLS and told["left"] == 0 and {key: known[key] for key in first} == first
    failed = {key: row["error"] for key, row in known.items() if "error" in row}
    assert list(failed) == [CELLS[1].key, CELLS[-1].key] and "largest batch" in failed[CELLS[-1].key]
    good = {row["lane"]: row for row in known.values() if "error" not in row and row["network"] == "SD 1.5"}
    assert all(row["seconds"] > 0 for row in known.values() if "error" not in row)
    assert good["few_step"]["flops"] * 10 == good["full"]["flops"] and {row["call"] for row in known.values()} == {1, 2}
    assert good["tomesd 0.5"]["flops"] is None and 0 < good["tome"]["flops"] < good["full"]["flops"] == 5 * good["olss"]["flops"]
    with open(tmp_path / "cells.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CELLS) and float(rows[0]["seconds"]) == known[CELLS[0].key]["seconds"]
    assert (tmp_path / "cells.png").stat().st_size > 10_000
    run(tmp_path, capsys, "--again")
    assert ran[len(CELLS):] == [CELLS[1], CELLS[-1]]


def test_no_cell_begins_when_the_time_is_over(tmp_path, capsys):
    lines = gpu.main(["--out", str(tmp_path), "--minutes", "0"], CELLS, CONFIGS, "eager", DECODER)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert lines == 0 and told["left"] == len(CELLS) and {goal["value"] for goal in told["goals"].values()} == {None}


def broken(*told):
    raise torch.AcceleratorError("an illegal access", 700)


def test_a_lost_device_ends_the_call_and_an_ended_call_begins_the_same_cell_once_more(tmp_path, capsys, monkeypatch):
    def lost(cell, *told):
        broken() if cell is CELLS[0] else begun.append(cell)
        raise KeyboardInterrupt

    begun = []
    monkeypatch.setattr(gpu, "measured", lost)
    monkeypatch.setattr(gpu, "alive", lambda: False)
    _, told, known = run(tmp_path, capsys)
    assert list(known) == [CELLS[0].key] and told["left"] == len(CELLS) - 1
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, capsys)
        known = json.loads((tmp_path / "cells.json").read_text())["cells"]
        assert begun == CELLS[1:2] * times and list(known) == [cell.key for cell in CELLS[:2]]
        assert "did not end" in known[CELLS[1].key]["error"] and known[CELLS[1].key]["tries"] == times
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, capsys)
    assert begun[2:] == [CELLS[2]]
    monkeypatch.setattr(gpu, "measured", lambda *told: MEASURED)
    _, told, known = run(tmp_path, capsys)
    assert told["left"] == 0 and "error" not in known[CELLS[2].key] and "did not end" in known[CELLS[1].key]["error"]


def test_an_error_of_a_device_that_goes_on_computing_is_one_of_its_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "measured", broken)
    monkeypatch.setattr(gpu, "alive", lambda: True)
    _, told, known = run(tmp_path, capsys, cells=CELLS[:2])
    assert told["left"] == 0 and len(known) == 2 and all("illegal access" in row["error"] and "lost" not in row for row in known.values())


def test_memory_that_ends_while_a_graph_is_recorded_is_told_as_such():
    def recording():
        try:
            raise torch.OutOfMemoryError("no room")
        finally:
            broken()

    assert gpu.attempt(recording)["error"] == "AcceleratorError: Out of memory." and "access" in gpu.attempt(broken)["error"]


def test_a_cell_is_not_begun_when_it_would_not_end_in_time(tmp_path, capsys, monkeypatch):
    seconds, ran = [0.0], []
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: seconds[0], perf_counter=lambda: seconds[0]))

    def measured(cell, *told):
        seconds[0] += 40.0
        ran.append(cell)
        return MEASURED

    monkeypatch.setattr(gpu, "measured", measured)
    cells = [Cell("SD 1.5", size) for size in (64, 128, 256)]
    monkeypatch.setattr(gpu, "goals", lambda: [Goal("fast", 1e9, cells[0])])
    monkeypatch.setattr(gpu, "profiled", lambda cell, *told: pytest.fail("no profile ends in time"))
    monkeypatch.setattr(gpu, "PROFILING", 40)
    run(tmp_path, capsys, "--minutes", "1.5", cells=cells)
    assert ran == cells[:2]
    run(tmp_path, capsys, "--minutes", "0.1", cells=cells)
    assert ran == cells  # the first one of a call is begun whatever it takes
    monkeypatch.setattr(gpu, "PROFILING", 41)
    monkeypatch.setattr(gpu, "profiled", lambda cell, *told: {"steps": []})
    monkeypatch.setattr(gpu, "told_of", lambda *told: "")
    run(tmp_path, capsys, cells=cells)
    assert list(json.loads((tmp_path / "cells.json").read_text())["profiles"]) == [cells[0].key]


def test_what_a_cell_takes_is_expected_from_the_nearest_one():
    asked = [Cell("SDXL", 1024, how="expert"), Cell("SDXL", 1024), Cell("SDXL", 2048), Cell("SD 1.5", 1024)]
    known = {cell.key: {**vars(cell), "asked": 1, "seconds": 1.0, "took": float(i)} for i, cell in enumerate(asked)}
    known["failed"] = {**vars(Cell("SDXL", 1024, "tome")), "asked": 1, "error": "", "took": 100.0}
    alike = (Cell("SDXL", 1024, "tome"), Cell("SDXL", 4096), Cell("SDXL", 1024, "tome", how="expert"),
             Cell("SD 1.5", 512, attention="materialised"))
    assert [gpu.expected(cell, known) for cell in alike] == [1, 2, 0, 3] and gpu.expected(asked[0], {}) == 0


def test_goals_whose_cells_are_of_two_calls_say_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "measured", lambda *told: MEASURED)
    pair = [Cell("SD 1.5", 64), Cell("SD 1.5", 64, "tome")]
    monkeypatch.setattr(gpu, "goals", lambda: [Goal("ratio", 0.5, *pair), Goal("rate", 0.5, pair[1])])
    run(tmp_path, capsys, cells=pair[:1])
    lines, told, _ = run(tmp_path, capsys, cells=pair)
    assert "ratio: 1.00 (goal 0.5), from calls 1 and 2" in lines and "rate: 1.00 (goal 0.5)" in lines
    assert told["goals"]["ratio"]["calls"] == [1, 2] and told["goals"]["rate"]["calls"] == [2]


def test_results_of_another_machine_are_not_mixed_in(tmp_path):
    (tmp_path / "cells.json").write_text(json.dumps({"environment": {"device": "another"}, "cells": {}}))
    with pytest.raises(gpu.BadRequest, match="choose another folder"):
        gpu.main(["--out", str(tmp_path)], CELLS, CONFIGS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", networks.CONFIGS)
@torch.no_grad()
def test_networks_of_the_real_sizes_run_on_a_gpu(name):
    config, device = networks.CONFIGS[name], torch.device("cuda")
    unet = networks.unet_of(config, device, torch.half)
    told = networks.inputs(config, config["sample_size"], 2, device, torch.half)
    assert lanes.predict(unet, told).isfinite().all()
    grid = (config["sample_size"],) * 2
    for how in ("eager", "expert"):
        cell = Cell(name, 8 * config["sample_size"], "tome", 2, how=how)
        with lanes.prepared(unet, cell, "inductor"):
            assert lanes.seconds(unet, cell, told, grid, device) > 0
            assert lanes.profile(unet, cell, told, grid, device)[0]["kernels"][0]["milliseconds"] > 0


def test_goals_are_ratios_of_measured_cells():
    asked, goals = gpu.cells(), gpu.goals()
    assert len({cell.key for cell in asked}) == len(asked)
    assert all(cell in asked for goal in goals for cell in (goal.above, goal.below) if cell)
    first, goal = goals[0], goals[2]
    known = {goal.above.key: {"seconds": 6.0, "images_per_second": 1 / 6}, goal.below.key: {"seconds": 4.0}}
    assert goal.value(known) == 1.5 and first.value(known) is None and [each for each in goals if each.missed(known)] == [goal]
    known[first.above.key] = {"seconds": 0.01, "images_per_second": 100.0}
    known[goal.below.key]["seconds"] = 3.0
    assert first.value(known) == 100 and not any(each.missed(known) for each in goals)


def test_a_missed_goal_is_profiled_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lanes, "TIMED", 1)
    monkeypatch.setattr(gpu.Peak, "bytes", lambda self: 1000)  # not known on a processor
    goals = [Goal("reached", 0, CELLS[0]), Goal("fast", 1e9, CELLS[2], CELLS[3]),
             Goal("lean", 1e9, CELLS[2], CELLS[0], "peak")]
    monkeypatch.setattr(gpu, "goals", lambda: goals)
    cells = [CELLS[0], CELLS[2], CELLS[3]]
    lines, told, _ = run(tmp_path, capsys, cells=cells)
    assert told["goals"]["reached"]["value"] > 0 and told["goals"]["fast"]["least"] == 1e9
    missed = [line for line in lines if line.startswith("  missed: ")]
    assert len(missed) == 2 and "% aten::" in missed[0] and "MiB" in missed[1]
    kept = json.loads((tmp_path / "cells.json").read_text())["profiles"]
    assert set(kept) == {cells[0].key, cells[2].key} and all("error" not in profile for profile in kept.values())
    steps = kept[cells[2].key]["steps"]
    assert sum(step["often"] for step in steps) == 50 and len(steps) > 1
    for step in steps:
        assert 0 < sum(row["share"] for row in step["kernels"]) <= 1.000001 and step["kernels"][0]["calls"] > 0
        assert step["milliseconds"] > 0 and step["busy"] >= sum(row["milliseconds"] for row in step["kernels"]) * 0.999
        assert step["allocations"][0]["megabytes"] > 0
    asked = []

    def lost(cell, *told):
        asked.append(cell)
        raise torch.AcceleratorError("an illegal access", 700)

    monkeypatch.setattr(gpu, "profiled", lost)
    monkeypatch.setattr(gpu, "alive", lambda: False)
    run(tmp_path, capsys, cells=cells)
    assert not asked
    goals += [Goal("more", 1e9, CELLS[4]), Goal("most", 1e9, CELLS[6])]
    run(tmp_path, capsys, cells=[*cells, CELLS[4], CELLS[6]])
    assert asked == [CELLS[4]]
    run(tmp_path, capsys, "--again", cells=cells)
    assert asked == [CELLS[4]] * 2


def test_each_kind_of_step_counts_as_often_as_it_occurs(monkeypatch):
    """With a clock that gives 1 for steps that compute, 10 for the one that stores and 100 for those that reuse; the first
    start, which is cold, takes very long and does not count."""

    unet, seen = networks.unet_of(TINY, torch.device("cpu"), torch.float32), []
    told = networks.inputs(TINY, 8, 2, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(lanes.Clock, "spans", lambda self: [1e6] + [0.0] * (len(self.marks) // 2 - 1))
    monkeypatch.setattr(lanes, "seconds_of", lambda call, device: seen.append(call()) or 10.0 ** (len(seen) - 1))
    cell = Cell("SD 1.5", 64, "attention_reuse(share=0.4)")
    with torch.no_grad():
        assert lanes.seconds(unet, cell, told, (8, 8), torch.device("cpu")) == 29 + 10 + 2000


def test_a_start_takes_what_those_of_its_kind_take(monkeypatch):
    """With a clock that gives 1, 2, 3, ... to the steps in order."""
    unet = networks.unet_of(TINY, CPU, torch.float32)
    monkeypatch.setattr(lanes.Clock, "spans", lambda self: list(range(1, 1 + len(self.marks) // 2)))
    for text in ("full", "tome", "attention_reuse(share=0.4)", STACKED + "+atedm"):
        found = lanes.starts(unet, lanes.parse_stack(text), 50, (8, 8), CPU)
        assert all(1 <= value <= 50 for value in found.values()) and text != "full" or list(found.values()) == [25.5]
    reused = lanes.starts(unet, lanes.parse_stack("attention_reuse(share=0.4)"), 50, (8, 8), CPU)
    assert list(reused.values()) == [15, 30, 40.5]  # 29 steps compute, one stores, 20 reuse


class Helper:
    """DeepCache's published helper as far as it is called: what it reads, keeps between calls, and fails on."""

    def __init__(self, pipe):
        self.pipe = pipe

    def set_params(self, cache_interval, cache_branch_id):
        self.interval = cache_interval

    def enable(self):
        self.function_dict, self.deep, self.seen = {"unet_forward": self.pipe.unet.forward}, self.pipe.unet.mid_block.forward, []
        self.pipe.unet.forward, self.pipe.unet.mid_block.forward = self.forward, self.middle
        Helper.last = self

    def disable(self):
        self.pipe.unet.forward = self.function_dict["unet_forward"]

    def forward(self, *args, **kwargs):
        self.step = list(self.pipe.scheduler.timesteps).index(args[1].item())
        self.seen.append((self.step, args[1].device.type))
        return self.function_dict["unet_forward"](*args, **kwargs)

    def middle(self, *args, **kwargs):
        if self.step % self.interval == 0:
            self.kept = self.deep(*args, **kwargs)
        return self.kept


DEEP = TINY | dict(mid_block_type="UNetMidBlock2DCrossAttn")


@torch.no_grad()
def test_deepcache_is_called_as_its_helper_asks(monkeypatch):
    module = ModuleType("DeepCache")
    module.DeepCacheSDHelper = Helper
    monkeypatch.setitem(sys.modules, "DeepCache", module)
    assert lanes.missing("DeepCache 3") is None
    unet, deep = networks.unet_of(DEEP, CPU, torch.float32), []
    unet.mid_block.register_forward_hook(lambda *told: deep.append(0))
    monkeypatch.setattr(lanes.Clock, "spans", lambda self: [60.0, 12.0, 6.0])
    told = networks.inputs(DEEP, 8, 2, CPU, torch.float32)
    assert lanes.seconds(unet, Cell("SD 1.5", 64, "DeepCache 3", 50), told, (8, 8), CPU) == 50
    assert Helper.last.seen == [(step, "cpu") for step in range(6)] * 3 and len(deep) == 18


@torch.no_grad()
def test_deepcache_itself_runs_the_deep_blocks_every_third_step():
    pytest.importorskip("DeepCache")
    unet, deep = networks.unet_of(DEEP, CPU, torch.float32), []
    middle = unet.mid_block.forward
    unet.mid_block.forward = lambda *args, **kwargs: deep.append(0) or middle(*args, **kwargs)
    told = networks.inputs(DEEP, 8, 2, CPU, torch.float32)
    assert lanes.seconds(unet, Cell("SD 1.5", 64, "DeepCache 3", 50), told, (8, 8), CPU) > 0 and len(deep) == 6


@torch.no_grad()
def test_peers_but_deepcache_get_timesteps_on_the_device(monkeypatch):
    unet, seen = networks.unet_of(TINY, torch.device("meta"), torch.float32), []
    told = networks.inputs(TINY, 8, 2, torch.device("meta"), torch.float32)
    monkeypatch.setattr(lanes, "predict", lambda unet, told, timestep: seen.append(timestep.device.type))
    for host in (False, True):
        monkeypatch.setitem(lanes.PEERS, "peer", lanes.Peer(lambda pipe: lambda: None, host=host))
        monkeypatch.setattr(lanes, "Clock", lambda device: SimpleNamespace(mark=lambda: None, spans=lambda: [1.0] * 3))
        lanes.peer(unet, told, "peer", 50, (8, 8), torch.device("meta"))
    assert seen == ["meta"] * 18 + ["cpu"] * 18
    assert [name for name, peer in lanes.PEERS.items() if peer.host] == ["DeepCache 3", "peer"]


@pytest.mark.parametrize("kinds", [("CrossAttnDownBlock2D", "DownBlock2D"), ("DownBlock2D", "CrossAttnDownBlock2D")])
@torch.no_grad()
def test_tomesd_merges_on_the_finest_grid_that_has_attention(kinds):
    config = TINY | dict(down_block_types=kinds, up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)])
    unet, seen = networks.unet_of(config, CPU, torch.float32), []
    block = next(module for name, module in unet.named_modules() if name.endswith("attn1"))
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    told = networks.inputs(config, 16, 2, CPU, torch.float32)
    lanes.predict(unet, told)
    lanes.peer(unet, told, "tomesd 0.5", 50, (16, 16), CPU)
    assert seen[1:] == [seen[0] // 2] * 18


def test_a_peer_that_is_not_installed_is_left_and_told_before_the_first_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "measured", lambda *told: MEASURED)
    monkeypatch.setitem(sys.modules, "tomesd", None)
    cells = [Cell("SD 1.5", 64, "tomesd 0.5"), Cell("SD 1.5", 64)]
    lines, told, known = run(tmp_path, capsys, cells=cells)
    assert lines[0].startswith("Not installed: tomesd.") and "requirements-bench.txt" in lines[0]
    assert list(known) == [cells[1].key] and told["left"] == 1 and told["missing"] == ["tomesd"]
    assert any(line.startswith("1 of 2 cells are left") and "tomesd" in line for line in lines)
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "measured", lambda *told: MEASURED)
    _, told, known = run(tmp_path, capsys, cells=cells)
    assert told["left"] == 0 and told["missing"] == [] and len(known) == 2


def test_the_packages_of_all_peers_are_in_the_requirements():
    text = (ROOT / "requirements-bench.txt").read_text()
    assert {peer.package for peer in lanes.PEERS.values() if peer.package} == set(re.findall(r"^(\w+)>=", text, re.M))


def test_what_the_seconds_are_is_told_in_the_help_and_beside_them(capsys, tmp_path):
    with pytest.raises(SystemExit):
        gpu.main(["--help"])
    words = "each kind of step is timed a few times and counts as often as it occurs, peers run their first steps, scaled"
    assert words in " ".join(capsys.readouterr().out.split())
    assert gpu.main(["--out", str(tmp_path)], [Cell("SD 1.5", 64, steps=2)], CONFIGS, "eager", DECODER) == 0
    assert words in json.loads(capsys.readouterr().out.splitlines()[-1])["about"]
    assert words in json.loads((tmp_path / "cells.json").read_text())["about"]


def test_what_was_left_out_of_the_largest_batches_and_sizes_comes_last():
    """Each with a picture alone before it, whose peak tells how many fit."""
    cells, peers = gpu.cells(), ("tomesd 0.5", "pyramid broadcast 2", "DeepCache 3")
    late = [Cell("SDXL", 2048, lane) for lane in peers[1:]] + [Cell("SDXL", 1024, "atedm", batch=0)]
    late += [Cell(*place, lane, batch=0) for place in (("SD 1.5", 512), ("SDXL", 1024)) for lane in peers]
    assert cells[-len(late):] == late
    assert all(dataclasses.replace(cell, batch=1) in cells[:i] for i, cell in enumerate(cells) if not cell.batch)


def test_the_matrix_holds_what_is_compared():
    found = {(cell.network, cell.size, cell.lane, cell.attention, cell.how) for cell in gpu.cells() if cell.batch}
    assert not any(cell.how == "expert" and cell.lane in lanes.PEERS for cell in gpu.cells())
    assert ("SD 1.5", 1024, "atedm", "fused", "expert") not in found
    for network, size in (("SD 1.5", 512), ("SD 1.5", 768), ("SD 1.5", 1024), ("SDXL", 1024), ("SDXL", 2048)):
        for lane in ("full", "tome(share=true)", OUTPUT):
            assert (network, size, lane, "fused", "expert") in found
        assert (network, size, "tomesd 0.5", "fused", "eager") in found
        for attention in ("fused", "materialised") if size < 2048 else ():
            for lane in ("full", "attention_reuse"):
                assert (network, size, lane, attention, "eager") in found
            assert any(each[:2] + each[3:] == (network, size, attention, "eager") and each[2].startswith("tome(") or
                       each == (network, size, "tome", attention, "eager") for each in found)
    assert ("SD 1.5", 512, "few_step", "fused", "eager") in found
    assert any(goal.what == "SDXL 1024 px fused: tomesd / tome" for goal in gpu.goals())


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_the_queue_for_a_gpu_is_made_of_commands_that_exist_and_short_parts(monkeypatch):
    asked = []
    monkeypatch.setattr(stickers, "run", asked.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    def minutes(target):
        asked.clear()
        told = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for names, words in re.findall(r"(?:for stage in ([^;]+); do )?\S+ -m fastviz\.stickers ([^;|\n]+)", told):
            for stage in names.split() or [None]:
                monkeypatch.setattr(sys, "argv", ["", *words.replace("$stage", stage or "").split()])
                stickers.main()
        return sum(getattr(each, "minutes", 0) for each in asked), [each.stage for each in asked]

    found = {name: minutes(name) for name in ("teacher-windows", "teacher-scenes", "student-distil", "student-score", "larger")}
    assert sum(found[name][0] for name in found if name != "larger") == 14 and all(told[0] <= 6 for name, told in found.items())
    assert found["teacher-windows"][1][-1] == "keep" and found["teacher-scenes"][1][1] == "keep"
    assert found["larger"][1][0] == "export" and found["larger"][1][-1] == "rebuild"
