"""The GPU benchmark, on this machine with tiny networks: the same code, cells that fail, and a second call that goes on."""

import csv
import json

import pytest
import torch

from fastviz.bench import gpu, lanes, networks
from fastviz.bench.gpu import Cell

TINY = dict(norm_num_groups=4, layers_per_block=1, cross_attention_dim=24, attention_head_dim=2, block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            mid_block_type=None, transformer_layers_per_block=2)
CONFIGS = {"SD 1.5": TINY, "SDXS-512": TINY, "broken": TINY | {"norm_num_groups": 7}, "SDXL": TINY | dict(
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16)}
CELLS = [Cell("SDXS-512", 64, steps=1, how="expert"), Cell("broken", 64), Cell("SDXL", 64), Cell("SDXL", 64, "atedm"),
         Cell("SD 1.5", 64, attention="materialised"), Cell("SD 1.5", 64, gpu.STACKED, 4, "materialised"), Cell("SD 1.5", 64),
         Cell("SD 1.5", 64, "tomesd 0.5"), Cell("SD 1.5", 64, "pyramid broadcast 2"), Cell("SD 1.5", 64, "olss", 10),
         Cell("SD 1.5", 64, "tome", how="expert"), Cell("SD 1.5", 64, "olss", 10, how="expert"), Cell("SD 1.5", 64, batch=0)]
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


def test_a_lost_device_ends_the_call_and_an_ended_call_does_not_begin_the_same_cell_again(tmp_path, capsys, monkeypatch):

    def lost(cell, *told):
        raise (torch.AcceleratorError("an illegal access", 700) if cell is CELLS[0] else KeyboardInterrupt)

    monkeypatch.setattr(gpu, "measured", lost)
    _, told, known = run(tmp_path, capsys)
    assert list(known) == [CELLS[0].key] and told["left"] == len(CELLS) - 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, capsys)
    known = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert list(known) == [cell.key for cell in CELLS[:2]] and "did not end" in known[CELLS[1].key]["error"]


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
    goals = [gpu.Goal("reached", 0, CELLS[0]), gpu.Goal("fast", 1e9, CELLS[2], CELLS[3]),
             gpu.Goal("lean", 1e9, CELLS[2], CELLS[0], "peak")]
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
    run(tmp_path, capsys, cells=cells)
    assert not asked
    goals += [gpu.Goal("more", 1e9, CELLS[4]), gpu.Goal("most", 1e9, CELLS[6])]
    run(tmp_path, capsys, cells=[*cells, CELLS[4], CELLS[6]])
    assert asked == [CELLS[4]]
    run(tmp_path, capsys, "--again", cells=cells)
    assert asked == [CELLS[4]] * 2


def test_each_kind_of_step_counts_as_often_as_it_occurs(monkeypatch):
    """With a clock that gives 1 for steps that compute, 10 for the one that stores and 100 for those that reuse."""

    unet, seen = networks.unet_of(TINY, torch.device("cpu"), torch.float32), []
    told = networks.inputs(TINY, 8, 2, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(lanes.Clock, "spans", lambda self: [0.0])
    monkeypatch.setattr(lanes, "seconds_of", lambda call, device: seen.append(call()) or 10.0 ** (len(seen) - 1))
    cell = Cell("SD 1.5", 64, "attention_reuse(share=0.4)")
    with torch.no_grad():
        assert lanes.seconds(unet, cell, told, (8, 8), torch.device("cpu")) == 29 + 10 + 2000
