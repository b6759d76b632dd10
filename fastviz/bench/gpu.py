"""Everything at once on a GPU: our methods, peers and one-step models on networks of the real sizes, random weights.

Cells are run in order of importance until the minutes are over; the same command goes on. Seconds are those of the
network's calls in a whole guided run of one batch (for the one-step models of everything from prompt embedding to decoded
pixels): each kind of step is timed a few times and counts as often as it occurs, peers run their first steps, scaled. Text
encoder, scheduler and, but for the one-step models, decoder are left out; "olss" and "few_step" have their scheduler in.
"eager" is half precision and nothing else; "expert" adds channels_last, fused projections where a method allows them,
compiled blocks and CUDA graphs. Peers run eagerly alone, as they are published: tomesd draws from a generator of its own,
which a graph does not record, and the others decide in Python, step by step, what to leave out. SDXS is timed in half
precision; the page runs SDXS's weights in float32, as they are published, and is slower than the rate told here.

Peak memory is above the weights. A cell that fails is recorded with its sentence; --again tries it once more. One that was
begun when the process was ended is tried once more by itself. Cells of peers that are not installed are left.
Of a cell that misses a goal, the kernels that took the time and the operations that took the memory are recorded.
On a machine that is lent for ten minutes, --minutes 6: profiles take two more, the start and a cell's end the rest.
"""

import argparse
import csv
import gc
import json
import math
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from .. import models
from ..compare import environment
from ..request import BadRequest, check_number
from ..run import Peak, alive
from . import lanes, networks
from .matrix import Cell, cells, goals

ABOUT = " ".join(__doc__.split("\n\n")[1].split())  # what the seconds are
LARGEST = 64  # pictures in the largest batch that is tried
SAME = ("device", "dtype", "torch", "diffusers")  # of the environments of cells that may be compared
PROFILING = 120  # seconds in which profiles are made
FILL = 0.8  # of the free memory that the largest batch is meant to take
TRIES = 2  # of a cell whose process was ended


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


def memory_ended(error):
    """Whether an error, or one that it came from, is about memory: while a graph is recorded, its end raises another one."""
    while error and not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(error)):
        error = error.__context__
    return error is not None


def attempt(work, *told):
    """What `work` tells, or {"error": a sentence}, with "lost" where the device does not compute any more."""
    begun, doubted = time.perf_counter(), False
    try:
        found = work(*told)
    except Exception as error:  # whatever a kernel, a compiler or a peer raises: the other cells go on
        text = "Out of memory." if memory_ended(error) else (str(error).strip().splitlines() or [""])[0][:300]
        found, doubted = {"error": f"{type(error).__name__}: {text}"}, isinstance(error, torch.AcceleratorError)
    gc.collect()
    if doubted and not alive():  # out here, where the error's traceback keeps no tensors
        found["lost"] = True
    elif torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found | {"took": time.perf_counter() - begun}


# Which cells, and when

def wanted(row, again=False):
    """Whether a cell or a profile is to be made, from what is recorded of it: nothing, a try that did not end, or, if such
    are tried `again`, an error."""
    return not row or "took" not in row and row.get("tries", 1) < TRIES or again and "error" in row


def expected(cell, known):
    """Seconds that a cell may take: what the nearest one of those measured took, 0 where there is none."""
    def apart(row):
        unlike = [row[name] != getattr(cell, name) for name in ("network", "how")]
        return *unlike, row["asked"] != cell.batch, abs(math.log(row["size"] / cell.size)), row["attention"] != cell.attention, \
            row["lane"] != cell.lane

    rows = [row for row in known.values() if "seconds" in row]
    return min(rows, key=apart)["took"] if rows else 0.0


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


def report(known, profiles):
    """Prints every goal: its value, whether that is of two calls, and what a profile says where it is missed."""
    print()
    for goal in goals():
        value, calls = goal.value(known), goal.calls(known)
        told = "not measured" if value is None else f"{value:.2f}"
        apart = f", from calls {calls[0]} and {calls[1]}" if value is not None and len(calls) > 1 else ""
        print(f"{goal.what}: {told} (goal {goal.least:g}){apart}")
        if goal.missed(known) and goal.ours.key in profiles:
            print("  missed: " + told_of(goal, profiles[goal.ours.key]))


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
    parser = argparse.ArgumentParser(prog="python -m fastviz bench gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder; the same one goes on where an earlier call stopped")
    parser.add_argument("--minutes", type=float, default=8, help="in which cells are measured; profiles take two more. 6 for a machine "
                        "that is lent for ten")
    parser.add_argument("--again", action="store_true", help="tries cells once more that failed")
    args = parser.parse_args(argv)
    check_number("minutes", "--minutes", args.minutes, 0, 10_000, float)
    begun, folder, device, machine = time.monotonic(), Path(args.out), models.device(), environment()
    folder.mkdir(parents=True, exist_ok=True)
    (known, profiles), asked = load(folder, machine), cells() if asked is None else asked
    call = 1 + max((row.get("call", 0) for row in known.values()), default=0)
    lacking = {cell: lanes.missing(cell.lane) for cell in asked if wanted(known.get(cell.key), args.again)}
    todo, absent = [cell for cell, package in lacking.items() if not package], sorted(set(filter(None, lacking.values())))
    waits = f"Not installed: {', '.join(absent)}. Cells with it are left until `pip install -r requirements-bench.txt`." if absent else ""
    if waits:
        print(waits, flush=True)
    given = device, configs, backend, decoder or {}

    def keep(kept, cell, found):
        kept[cell.key] = found
        write(folder, {"bench": "gpu", "about": ABOUT, "environment": machine, "cells": known, "profiles": profiles})

    def tried(work, kept, cell, about):
        """Whether the device is still there."""
        about = about | {"call": call, "tries": kept.get(cell.key, {}).get("tries", 0) + 1}
        keep(kept, cell, about | {"error": "It was begun and did not end."})  # what stays if the process is ended meanwhile
        keep(kept, cell, about | attempt(work, cell, known, *given))
        return "lost" not in kept[cell.key]  # nothing in this process can use a lost device again

    there = True
    for i, cell in enumerate(todo):
        passed = time.monotonic() - begun
        if not there or passed > 60 * args.minutes or i and passed + expected(cell, known) > 60 * args.minutes:
            break  # the first one is begun whatever it takes, or no call would get past it
        there = tried(measured, known, cell, asdict(cell) | {"asked": cell.batch})
        told = known[cell.key]
        says = told.get("error") or "{seconds:.3f} s, {images_per_second:.3f} images/s".format(**told)
        print(f"{cell.key}: {says}", flush=True)
    missed, finished = [goal for goal in goals() if goal.missed(known)], time.monotonic()
    for cell in dict.fromkeys(goal.ours for goal in missed):  # after all timing: a profiler makes later calls slower
        fits = time.monotonic() - finished + known[cell.key]["took"] < PROFILING
        if there and fits and args.minutes and wanted(profiles.get(cell.key), args.again):
            there = tried(profiled, profiles, cell, {})
    left = sum(wanted(known.get(cell.key)) for cell in asked)
    figure(known, folder / "cells.png")
    report(known, profiles)
    if left:
        print(f"\n{left} of {len(asked)} cells are left: the same command goes on. {waits}".rstrip())
    values = {goal.what: {"value": goal.value(known), "least": goal.least, "calls": goal.calls(known)} for goal in goals()}
    print(json.dumps({"bench": "gpu", "about": ABOUT, "environment": machine, "left": left, "missing": absent, "goals": values}, allow_nan=False))
    return 0
