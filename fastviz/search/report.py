"""`python -m fastviz search report`: what all schedules searched for a model are worth on their held-out prompts, whichever wins.

A table with the found schedule's PSNR less HURRY's and less that of fewer steps, as 95 % bootstrap intervals over pairs of
the same prompt, and a figure of LPIPS against measured time. One JSON line last.
"""

import argparse
import json
from pathlib import Path

from .. import checkpoints, fitted, models, views
from ..methods import attention_reuse
from ..request import BadRequest
from .reuse import judgement


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz search report", description=__doc__.splitlines()[0])
    checkpoints.model_options(parser)
    parser.add_argument("--figure", help="PNG to draw")
    parser.add_argument("--out", help="file that the JSON is written to as well")
    return parser


def found(model):
    """Results of finished searches for these weights, by steps and reuses. BadRequest where there are none."""
    folder = attention_reuse.schedule_file(model.folder, 1, 1, "both", "map").parent
    files = (path for path in folder.glob("*.json") if not path.name.endswith(".state.json"))
    told, weights = [json.loads(path.read_text()) for path in sorted(files)], fitted.weights(model.folder)
    told = sorted((each for each in told if each["weights"] == weights), key=lambda each: (len(each["schedule"]), each["k"]))
    if not told:
        raise BadRequest("model", f"No schedule was searched for these weights of {model.key}: `python -m fastviz search reuse "
                                  f"{checkpoints.model_argument(model.folder)}` finds one.")
    return told


def summary(told):
    """One result as plain values: steps, reuses, prompts, {row: {"share" of the full run's median time, "psnr", "lpips"}}, and the
    gains over the others with their intervals."""
    held = told["held_out"]
    whole = held["rows"]["full"]["seconds"]
    rows = {name: {"share": row["seconds"] / whole, "psnr": row["psnr"], "lpips": row["lpips"]} for name, row in held["rows"].items()}
    return {"steps": len(told["schedule"]), "k": told["k"], "maps": told["settings"]["maps"], "keep": told["settings"]["keep"],
            "prompts": len(held["prompts"]), "schedule": told["schedule"], "rows": rows, "found_less": held["found_less"],
            "lpips_name": held["lpips_name"]}


def main(argv=None):
    args = checkpoints.take_folder(arguments().parse_args(argv), "stickers")
    results = found(models.MODELS[args.model])
    told = [summary(each) for each in results]
    print("\n\n".join(map(judgement, results)), end="\n\n")
    if args.figure:
        Path(args.figure).write_bytes(views.png(views.reused(told)))
    answer = {"command": "search report", "model": args.model, "weights": results[0]["weights"], "found": told}
    if args.out:
        Path(args.out).write_text(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    print(json.dumps(answer, allow_nan=False))
    return 0
