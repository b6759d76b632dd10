"""The commands sweep, history and fastest: tables for people, one JSON line last."""

import argparse
import json
import sys
import time
from pathlib import Path

from ..models import MODELS, model_options, take_folder
from ..request import BadRequest
from . import plan as planning
from .history import History, home

OWNER = "command line"


def numbers(text):
    """A number as it is written, for Request to refuse what is none."""
    from ..request import read_number

    return text if (number := read_number(text)) is None else number


def sweep(argv):
    parser = argparse.ArgumentParser(prog="python -m fastviz sweep", description="Run rows over values of their knobs, prompts and seeds. What "
                                     "is finished is kept: the same command goes on where it stopped.")
    parser.add_argument("prompt", nargs="+", help="one or more prompts, each in quotes")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=VALUES",
                        help="such as tome.ratio=0.2,0.4,0.6 or few_step.steps=5:25:5 or steps=20,50; again for another one")
    parser.add_argument("--rows", default="", help="such as tome,tome+attention_reuse; by default one for each method that is varied")
    parser.add_argument("--seeds", default="0", help="such as 0-3 or 1,5,9")
    model_options(parser)
    for name in planning.GENERAL:
        parser.add_argument(f"--{name}", type=numbers)
    parser.add_argument("--out", help="folder for cells.csv, cells.parquet, sweep.json and the pictures")
    parser.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="run on a Ray cluster; without an address on one of this "
                        "machine, made for this sweep (needs `pip install ray`)")
    parser.add_argument("--cores", type=int, help="with --ray: cores of a worker; by default all of the smallest machine")
    args = take_folder(parser.parse_args(argv), "stickers")
    if args.ray and args.model_folder:
        raise BadRequest("ray", "Workers of a Ray cluster know the models of the table only: leave --ray out, or --model-folder.")
    settings = {name: value for name in planning.GENERAL if (value := getattr(args, name)) is not None}
    plan = planning.read_plan(args.prompt, args.seeds, args.rows, args.vary, model=args.model, **settings)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # before minutes are spent
    from . import sweep as sweeping

    history = History(home())
    for told in on_cluster(plan, history, args) if args.ray else sweeping.run(plan, history, OWNER, show):
        pass
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(sweeping.table(told))
    line = {"command": "sweep", **sweeping.plain(told)}
    if args.out:
        write(Path(args.out), told, history, line)
    print(json.dumps(line, allow_nan=False))
    return 1 if any(cell["error"] for cell in told.cells.values()) else 0


def on_cluster(plan, history, args):
    try:
        from . import cluster
    except ImportError:
        raise BadRequest("ray", "--ray needs Ray, which is not installed: pip install ray.") from None
    for told in cluster.run(plan, history, OWNER, args.ray, args.cores):
        print(f"{sum(cell is not None for cell in told.cells.values())} of {len(told.keys)} pictures", file=sys.stderr, flush=True)
        yield told


def show(done, cells, step, steps):
    """One line on stderr, written over on a terminal; without one, a line a picture."""
    line = f"picture {done + 1} of {cells}: step {step} of {steps}"
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif step == 0:
        print(line, file=sys.stderr, flush=True)


def write(folder, told, history, line):
    from . import sweep as sweeping

    for name, table in sweeping.tables(told).items():
        (folder / name).write_bytes(table)
    (folder / "sweep.json").write_text(json.dumps(line, indent=1, allow_nan=False) + "\n")
    for (v, u), key in told.keys.items():
        if history.picture_of(key).is_file():
            (folder / f"{v:03d}-{u:03d}.png").write_bytes(history.picture_of(key).read_bytes())
    print(f"Written to {folder}: pictures are named variant-unit, in the order of sweep.json and of prompts and seeds.")


def history(argv):
    parser = argparse.ArgumentParser(prog="python -m fastviz history", description="Find, write out or delete what was run on this machine.")
    parser.add_argument("word", nargs="*", help="words that the runs have to contain: of the prompt, a method, a device")
    parser.add_argument("--open", metavar="ID", help="print a comparison again; with --out, write its files")
    parser.add_argument("--out", help="folder for the files of --open")
    parser.add_argument("--delete", metavar="ID")
    args = parser.parse_args(argv)
    kept = History(home())
    if args.delete:
        kept.delete(None, args.delete)
    if args.open:
        return reopened(kept, args)
    runs = kept.search(None, " ".join(args.word))
    for run in runs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["made"]))
        print(f"{run['id']}  {when}  {run['kind']:<10}  {run['bytes'] / 1e6:6.1f} MB  {run['device']}  {run['prompt']}")
    print(json.dumps({"command": "history", "bytes": kept.size(), "runs": [
        {name: run[name] for name in ("id", "kind", "made", "prompt", "device", "bytes", "recipe")} for run in runs]}))
    return 0


def reopened(kept, args):
    from .. import store, views

    request, rows, environment = kept.open(None, args.open)
    print(views.table(rows))
    if args.out:
        print(f"Written to {store.save(args.out, request, rows, environment)}.")
    print(json.dumps({"command": "history", **store.report(request, rows, environment)}, allow_nan=False))
    return 0


def keep(request, rows, environment):
    """Keeps a comparison of the command line. A history that cannot be written must not take the result with it."""
    try:
        History(home()).keep(OWNER, request, rows, environment)
    except (OSError, BadRequest) as error:
        print(f"The run is not in the history: {error}", file=sys.stderr)


def fastest(argv):
    from . import fastest as searching
    from . import sweep as sweeping

    parser = argparse.ArgumentParser(prog="python -m fastviz fastest", description="Find the fastest way that stays close to the full model, or "
                                     "the closest within a time: proposed on some pictures, verified on others.")
    parser.add_argument("prompt", nargs="*", help="4 prompts or more; the embedded model has its own")
    parser.add_argument("--lpips", type=float, help="the largest LPIPS to the full model's picture")
    parser.add_argument("--seconds", type=float, help="or the most seconds for a picture")
    parser.add_argument("--seeds", type=int, default=2, help="noises per prompt (default 2)")
    parser.add_argument("--methods", help="which methods may take part, such as few_step,tome; all by default")
    model_options(parser)
    for name in planning.GENERAL:
        parser.add_argument(f"--{name}", type=numbers)
    args = take_folder(parser.parse_args(argv), "stickers")
    if not args.prompt and not MODELS[args.model].closed:
        raise BadRequest("prompt", "Give 4 prompts or more for this model.")
    for name, bound in (("lpips", args.lpips), ("seconds", args.seconds)):
        if bound is not None and not 0 < bound < 1e6:
            raise BadRequest(name, f"--{name} must be a number above 0.")
    first = planning.Request("a", **{name: value for name in planning.GENERAL if (value := getattr(args, name)) is not None}, model=args.model)
    seeds = planning.check_number("seeds", "--seeds", args.seeds, 1, 20, int)
    prompts = [planning.check_prompt(prompt) for prompt in dict.fromkeys(args.prompt or searching.PROMPTS)]
    answer, proposing, verifying = searching.search(
        History(home()), OWNER, lpips=args.lpips, seconds=args.seconds, prompts=prompts, seeds=seeds, model=args.model,
        methods=args.methods.split(",") if args.methods else None, steps=first.steps, guidance=first.guidance, size=first.size,
        on_progress=lambda what, *place: show(*place))
    for what, told in (("Proposed on", proposing), ("Verified on", verifying)):
        if told:
            print(f"{what} {len(told.plan.units)} pairs of prompt and seed\n{sweeping.table(told)}\n")
    print(answer.said)
    print(json.dumps({"command": "fastest", "lpips": args.lpips, "seconds": args.seconds, "best": answer.best, "verified": answer.verified,
                      "proposed": answer.proposed, "environment": proposing.environment}, allow_nan=False))
    return 0 if answer.best else 1
