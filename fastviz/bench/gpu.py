"""Everything at once on a GPU: our methods, peers and one-step models on networks of the real sizes, random weights.

Cells are run in order of importance until the minutes are over; the same command goes on. Seconds are those of the
network's calls in a whole guided run of one batch (for the one-step models of everything from prompt embedding to decoded
pixels): each kind of step is timed a few times and counts as often as it occurs, peers run their first steps, scaled. Text
encoder, scheduler and, but for the one-step models, decoder are left out; "olss" has its scheduler in. "eager" is half
precision and nothing else; "expert" adds channels_last, fused projections where a method allows them, compiled blocks and
CUDA graphs. Peak memory is above the weights. A cell that fails is recorded with its sentence; --again tries it once more.
Of a cell that misses a goal, the kernels that took the time and the operations that took the memory are recorded.
"""

import argparse
import csv
import gc
import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .. import models
from ..compare import environment
from ..request import BadRequest, check_number
from ..run import Peak
from . import lanes, networks

LARGEST = 64  # pictures in the largest batch that is tried
SAME = ("device", "dtype", "torch", "diffusers")  # of the environments of cells that may be compared
PROFILING = 120  # seconds after which no profile is begun
FILL = 0.8  # of the free memory that the largest batch is meant to take


@dataclass(frozen=True)
class Cell:
    """One measurement. lane: a stack as the command line takes it, a peer of lanes.PEERS, or "olss"; batch: pictures, 0
    for the most that fit by the peak of the same cell with one."""
    network: str
    size: int
    lane: str = "full"
    steps: int = 50
    attention: str = "fused"
    how: str = "eager"
    batch: int = 1

    @property
    def key(self):
        return ", ".join((self.network, f"{self.size} px", self.lane, f"{self.steps} steps", self.attention, self.how,
                          f"batch {self.batch or 'most'}"))


TOME, STACKED = "tome(ratio=0.6)", "tome(share=true)+attention_reuse(keep=output)"
OUTPUT = "attention_reuse(keep=output)"


def cells():
    """All cells, the most telling first."""
    one, xl, sd = networks.ONE_STEP, ("SDXL", 1024), "SD 1.5"
    sizes = dict(zip(one, (512, 1024)))
    found = [Cell(name, sizes[name], steps=1, how=how) for how in ("expert", "eager") for name in one]
    found += [Cell(*xl, lane, attention=attention) for attention in ("materialised", "fused")
              for lane in ("full", "atedm", "atedm(finest=false)")]
    found += [Cell(sd, 512, lane, attention="materialised") for lane in ("full", TOME, "tomesd 0.6")]
    found += [Cell(sd, 2048, lane) for lane in ("full", TOME, "tomesd 0.6")]
    found += [Cell(sd, 512), Cell(sd, 512, "olss", 10)]
    found += [Cell(*xl, lane, 10) for lane in (OUTPUT, STACKED, "olss", STACKED + "+atedm")]
    found += [Cell(sd, size, lane) for size in (512, 768, 1024)
              for lane in ("full", "tome", "tome(share=true)", "tomesd 0.5")]
    found += [Cell(*place, lane, how="expert") for place in (xl, (sd, 1024))
              for lane in ("full", STACKED, "tome(share=true)", "atedm")]
    found += [Cell(*xl, STACKED, 10, how="expert"), Cell(sd, 512, how="expert"), Cell(sd, 512, "olss", 10, how="expert")]
    found += [Cell(sd, 1024, lane, how="expert") for lane in ("attention_reuse", OUTPUT)]
    found += [Cell(sd, size, lane) for size in (512, 768, 1024) for lane in (
        "attention_reuse", OUTPUT, "pyramid broadcast 2", "DeepCache 3")]
    found += [Cell(*xl, lane) for lane in ("tome", "attention_reuse", OUTPUT, "pyramid broadcast 2", "DeepCache 3")]
    found += [Cell(sd, size, lane, attention="materialised") for size in (768, 1024)
              for lane in ("full", TOME, "tomesd 0.6", "attention_reuse")]
    found += [Cell("SDXL", 2048, lane) for lane in ("full", "tome", "atedm", OUTPUT)]
    found += [Cell(name, sizes[name], steps=1, how="expert", batch=0) for name in one]
    found += [Cell(*place, lane, batch=0) for place in ((sd, 512), xl)
              for lane in ("full", "tome", "attention_reuse", OUTPUT)]
    found += [Cell(sd, 512, lane, attention="materialised", batch=0) for lane in ("full", TOME, "tomesd 0.6")]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Goal:
    """A ratio of two cells of one run, or, with no cell below, pictures a second. figure: "seconds" or "peak"."""
    what: str
    least: float
    above: Cell
    below: Cell = None
    figure: str = "seconds"

    @property
    def ours(self):
        """The cell that is to be fast or small."""
        return self.below or self.above

    def missed(self, known):
        """Whether it was measured and not reached."""
        value = self.value(known)
        return value is not None and value < self.least

    def value(self, known):
        """None where it was not measured."""
        top, bottom = (known.get(cell.key, {}) if cell else None for cell in (self.above, self.below))
        if bottom is None:
            return top.get("images_per_second")
        return top[self.figure] / bottom[self.figure] if top.get(self.figure) and bottom.get(self.figure) else None


def goals():
    xl, sd = ("SDXL", 1024), "SD 1.5"
    found = [Goal(f"{name} images/s", least, Cell(name, size, steps=1, how="expert"))
             for name, size, least in zip(networks.ONE_STEP, (512, 1024), (100, 30))]
    for attention, least in (("materialised", 1.53), ("fused", 1.18)):
        found += [Goal(f"SDXL 1024 px {attention}: full / {lane}", least, Cell(*xl, attention=attention),
                       Cell(*xl, lane, attention=attention)) for lane in ("atedm", "atedm(finest=false)")]
    small = Cell(sd, 512, attention="materialised"), Cell(sd, 512, TOME, attention="materialised")
    found += [Goal("SD 1.5 512 px materialised: full / tome 60 %", 2.03, *small),
              Goal("SD 1.5 512 px materialised: full / tome 60 %, peak memory", 5, *small, "peak"),
              Goal("SD 1.5 2048 px: full / tome 60 %", 5.4, Cell(sd, 2048), Cell(sd, 2048, TOME)),
              Goal("SD 1.5 2048 px: tomesd / tome 60 %", 1, Cell(sd, 2048, "tomesd 0.6"), Cell(sd, 2048, TOME))]
    found += [Goal(f"SD 1.5 {size} px: tomesd / {lane}", 1, Cell(sd, size, "tomesd 0.5"), Cell(sd, size, lane))
              for size in (512, 768, 1024) for lane in ("tome", "tome(share=true)")]
    found += [Goal(f"SD 1.5 {size} px materialised: tomesd / tome 60 %", 1, Cell(sd, size, "tomesd 0.6", attention="materialised"),
                   Cell(sd, size, TOME, attention="materialised")) for size in (512, 768, 1024)]
    found += [Goal("SD 1.5 512 px: 50 steps / OLSS 10 steps", 4.8, Cell(sd, 512), Cell(sd, 512, "olss", 10))]
    found += [Goal(f"SDXL 1024 px: 50 steps / {lane}, 10 steps, {how}", 5,
                   Cell(*xl, how=how), Cell(*xl, lane, 10, how=how)) for lane, how in (
                       (OUTPUT, "eager"), (STACKED, "eager"), (STACKED + "+atedm", "eager"), (STACKED, "expert"))]
    return found


# One cell

def batch_of(cell, known, device):
    """How many pictures at once; for the most that fit, a power of two from what one picture took."""
    if cell.batch:
        return cell.batch
    peak = known.get(Cell(**{**asdict(cell), "batch": 1}).key, {}).get("peak")
    if not peak or device.type != "cuda":
        raise RuntimeError("The largest batch follows from the peak memory of one picture, and that is not known.")
    room = FILL * torch.cuda.mem_get_info(device)[0] / peak
    return 1 << max(0, min(LARGEST, int(room)).bit_length() - 1)


@contextmanager
def ready(cell, known, device, configs, backend, decoder):
    """The network as the cell asks for it, its input for a batch and how many pictures that is, and the further arguments of
    `lanes.seconds`."""
    config, dtype, free = configs[cell.network], models.precision(device), not cell.steps == 1
    unet, batch, side = networks.unet_of(config, device, dtype), batch_of(cell, known, device), cell.size // 8
    told = networks.inputs(config, side, batch * (1 + free), device, dtype)  # guided runs take a pair
    tiny = None if free else networks.decoder_of(device, dtype, **decoder)
    with torch.no_grad(), lanes.prepared(unet, cell, backend):
        yield unet, told, batch, ((side, side), device, tiny)


def measured(cell, known, device, configs, backend, decoder):
    """What is recorded of a cell: {"seconds", "images_per_second", "batch", "peak", "flops" of the network}. Raises what went
    wrong."""
    with ready(cell, known, device, configs, backend, decoder) as (unet, told, batch, others):
        flops = lanes.flops(configs[cell.network], cell.lane, cell.steps, cell.size // 8, len(told["sample"]), device)
        memory = Peak(device)
        seconds = lanes.seconds(unet, cell, told, *others)
        peak = memory.bytes()
    return {"seconds": seconds, "images_per_second": batch / seconds, "batch": batch, "peak": peak, "flops": flops}


def profiled(cell, *told):
    """What is recorded of a cell that misses a goal: {"steps": its `lanes.profile`}."""
    with ready(cell, *told) as (unet, told, _, others):
        return {"steps": lanes.profile(unet, cell, told, *others)}


def attempt(work, *told):
    """What `work` tells, or {"error": a sentence}."""
    begun = time.perf_counter()
    try:
        found = work(*told)
    except Exception as error:  # whatever a kernel, a compiler or a peer raises: the other cells go on
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        text = "Out of memory." if memory else (str(error).strip().splitlines() or [""])[0][:300]
        found = {"error": f"{type(error).__name__}: {text}"}
        if isinstance(error, torch.AcceleratorError):
            found["lost"] = True
    gc.collect()
    if torch.cuda.is_available() and "lost" not in found:
        torch.cuda.empty_cache()
    return found | {"took": time.perf_counter() - begun}


# What comes out

def told_of(goal, profile):
    """What a profile says of a missed goal, in one line."""
    if "error" in profile:
        return profile["error"]
    step = max(profile["steps"], key=lambda step: step["often"] * step["milliseconds"])
    if goal.figure == "peak":
        most = "; ".join(f"{row['megabytes']:.0f} MiB {row['name'][:60]}" for row in step["allocations"][:4])
    else:
        most = "; ".join(f"{row['share']:.0%} {row['name'][:60]}" for row in step["kernels"][:4])
    return f"{step['often']} x step {step['step']}, {step['milliseconds']:.1f} ms, of which {step['busy']:.1f} in kernels: {most}"


def write(folder, told):
    """cells.json, whole or not at all; cells.csv."""
    part = folder / "cells.json.part"
    part.write_text(json.dumps(told, indent=1, allow_nan=False))
    part.replace(folder / "cells.json")
    names = [*Cell.__dataclass_fields__, "seconds", "images_per_second", "peak", "flops", "error", "took"]
    with open(folder / "cells.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, names, extrasaction="ignore")
        rows.writeheader()
        rows.writerows(told["cells"].values())


def figure(known, path):
    """Speed-up over the full model of the same network, size, attention and settings, one bar a lane."""
    from matplotlib.figure import Figure

    bars = []
    for row in known.values():
        alike = {name: row[name] for name in ("network", "size", "attention", "how")}
        full = known.get(Cell(**alike, batch=row["asked"]).key, {})
        if row["lane"] != "full" and row.get("seconds") and full.get("seconds"):
            name = f"{row['network']} {row['size']} px, {row['attention']}, {row['how']}, batch {row['batch']}: {row['lane']}"
            bars.append((f"{name}, {row['steps']} steps", row["images_per_second"] / full["images_per_second"]))
    if not bars:
        return
    drawn = Figure(figsize=(12, 1 + 0.24 * len(bars)), layout="constrained")
    axes = drawn.subplots()
    names, values = zip(*reversed(bars))
    axes.barh(names, values, color="#5b6ee1")
    axes.bar_label(axes.containers[0], fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as many pictures a second as the full model, 50 steps")
    axes.tick_params(axis="y", labelsize=8)
    drawn.savefig(path, dpi=110)


def load(folder, machine):
    """Cells and profiles that an earlier call measured. BadRequest when that was another machine or version."""
    path = folder / "cells.json"
    if not path.is_file():
        return {}, {}
    told = json.loads(path.read_text())
    if any(told["environment"].get(name) != machine[name] for name in SAME):
        raise BadRequest("out", f"{path} was measured elsewhere or with other versions: choose another folder.")
    return told["cells"], told.get("profiles", {})


def main(argv=None, asked=None, configs=networks.CONFIGS, backend="inductor", decoder=None):
    """asked: Cells, if not all; configs: {network: configuration}; backend: of torch.compile; decoder: sizes of the tiny
    decoder, if not the published ones."""
    parser = argparse.ArgumentParser(prog="python -m fastviz bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder; the same one goes on where an earlier call stopped")
    parser.add_argument("--minutes", type=float, default=8, help="no cell is begun after so many; profiles take two more")
    parser.add_argument("--again", action="store_true", help="tries cells once more that failed")
    args = parser.parse_args(argv)
    check_number("minutes", "--minutes", args.minutes, 0, 10_000, float)
    begun, folder, device, machine = time.monotonic(), Path(args.out), models.device(), environment()
    folder.mkdir(parents=True, exist_ok=True)
    (known, profiles), asked = load(folder, machine), cells() if asked is None else asked
    todo = [cell for cell in asked if cell.key not in known or args.again and "error" in known[cell.key]]
    given = device, configs, backend, decoder or {}

    def keep(kept, cell, found):
        kept[cell.key] = found
        write(folder, {"bench": "gpu", "environment": machine, "cells": known, "profiles": profiles})

    def tried(work, kept, cell, about):
        """Whether the device is still there."""
        keep(kept, cell, about | {"error": "It was begun and did not end."})  # what stays if the process is ended meanwhile
        keep(kept, cell, about | attempt(work, cell, known, *given))
        return "lost" not in kept[cell.key]  # nothing in this process can use a lost device again

    there = True
    for cell in todo:
        if not there or time.monotonic() - begun > 60 * args.minutes:
            break
        there = tried(measured, known, cell, asdict(cell) | {"asked": cell.batch})
        told = known[cell.key]
        says = told.get("error") or "{seconds:.3f} s, {images_per_second:.3f} images/s".format(**told)
        print(f"{cell.key}: {says}", flush=True)
    missed, finished = [goal for goal in goals() if goal.missed(known)], time.monotonic()
    for goal in missed:  # after all timing: a profiler that was once there makes later calls slower
        done = goal.ours.key in profiles and not (args.again and "error" in profiles[goal.ours.key])
        if there and not done and args.minutes and time.monotonic() - finished < PROFILING:
            there = tried(profiled, profiles, goal.ours, {})
    left = sum(cell.key not in known for cell in asked)
    figure(known, folder / "cells.png")
    print()
    for goal in goals():
        value = goal.value(known)
        print(f"{goal.what}: " + ("not measured" if value is None else f"{value:.2f}") + f" (goal {goal.least:g})")
        if goal in missed and goal.ours.key in profiles:
            print("  missed: " + told_of(goal, profiles[goal.ours.key]))
    if left:
        print(f"\n{left} of {len(asked)} cells are left: the same command goes on.")
    values = {goal.what: {"value": goal.value(known), "least": goal.least} for goal in goals()}
    print(json.dumps({"bench": "gpu", "environment": machine, "left": left, "goals": values}, allow_nan=False))
    return 0
