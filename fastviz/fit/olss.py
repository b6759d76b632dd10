"""Fits OLSS coefficients to a model and says how good they are on prompts and seeds that they were not fitted to."""

import argparse
import json
from contextlib import closing
from pathlib import Path

from .. import checkpoints, fitted, models
from ..methods import olss
from ..request import STEPS, BadRequest, check_number
from ..search import prompts
from . import calibrate, figures, solvers
from .inputs import choices, numbers, requests
from .work import Work, networks

NAMES = {"olss": "OLSS", "olss-p": "OLSS-P", "ays": "OLSS" + solvers.AYS}
SEED = 1000  # of the prompts, and of the first run's noise


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz fit olss", description=__doc__)
    checkpoints.model_options(parser)
    parser.add_argument("--steps", default="10", help="numbers of steps, such as 4,5,6,8,10,20: they share the full runs")
    parser.add_argument("--search", default="olss,olss-p", help=f"choices of timesteps: {', '.join(olss.SEARCHES)}")
    parser.add_argument("--guidance", type=float, help="the coefficients serve this one only; by default the model's own")
    parser.add_argument("--prompts", type=int, default=9, help="prompts to fit to, one full run each")
    parser.add_argument("--held-out", type=int, default=6, help="other prompts: a third to choose by, the rest to measure")
    parser.add_argument("--prompts-file", help="prompts of your own, one a line")
    parser.add_argument("--reference", type=int, default=100, help="steps of a full run")
    parser.add_argument("--size", type=int, help="pixels, both ways; by default the model's own")
    parser.add_argument("--batch", type=int, default=4, help="runs side by side")
    parser.add_argument("--anchor", default="unipc", choices=solvers.SOLVERS,
                        help="the solver that coefficients are held near; the paper has none, ddim is the full run's own")
    parser.add_argument("--refit", action="store_true", help="also try a second fit, to the short run's own outputs")
    parser.add_argument("--out", help="folder for the coefficients; by default where the method looks for them")
    parser.add_argument("--figures", help="folder for pictures that explain the schedules")
    return parser


def asked_for(args):
    """Requests of all full runs, those to fit to, those to choose by and those to measure; what they ask for is checked."""
    checkpoints.take_folder(args, "stickers")
    for name, low, high in (("prompts", 1, 1000), ("held_out", 2, 1000), ("batch", 1, 64), ("reference", 2, 1000)):
        check_number(name, f"--{name.replace('_', '-')}", getattr(args, name), low, high, int)
    texts, others = prompts.read(args.model, args.prompts, args.held_out, args.prompts_file, SEED)
    found, first = requests(args, texts + others, SEED), len(texts)
    middle = first + max(1, len(others) // 3)
    return found[:first], found[first:middle], found[middle:]


def amount(config, asked, steps, searches, reference, refit):
    """Units of work, at most: full runs, peers, and for every schedule its holds, its climb, its refits and the measurement."""
    fitting, choosing, measuring = map(len, asked)
    holds, refits = len(calibrate.HOLDS), (2 * calibrate.AROUND + 1) * refit
    each = choosing * holds + (fitting + choosing) * refits + measuring
    climb = lambda n: choosing * (2 * holds + calibrate.CALLS // n) * ("olss" in searches)  # noqa: E731
    return (reference * (fitting + choosing + measuring)
            + sum(n * (each * len(searches) + climb(n) + measuring * len(solvers.peers(config, n))) for n in steps))


# What comes out

def save(scheduler, path):
    """Writes a scheduler's configuration, one entry a line, as diffusers reads it."""
    told = json.loads(scheduler.to_json_string())
    path.write_text("{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in told.items()) + "\n}\n")


def table(found):
    """{steps: {name: Measured}} -> aligned text, one line per schedule."""
    names = list(dict.fromkeys(name for lanes in found.values() for name in lanes))
    lines = [("", *map(str, found))]
    lines += [(name, *(f"{lanes[name].rmse:.4f}" if name in lanes else "-" for lanes in found.values())) for name in names]
    width = max(len(name) for name in names)
    return "\n".join("  ".join([first.ljust(width), *(cell.rjust(7) for cell in rest)]) for first, *rest in lines)


def belonging(weights, args, asked, search, fit, lanes):
    """What a file says beside its coefficients: what they belong to, how they were made, how good they are. weights: see
    fitted.weights; asked: the Requests of the runs to fit to."""
    one = asked[0]
    measured = {name: {"rmse": round(told.rmse, 6), "gaps": [round(gap, 6) for gap in told.gaps], "timesteps": told.timesteps}
                for name, told in lanes.items()}
    return {"model": one.model, "guidance": one.guidance, "weights": weights, "size": one.size,
            "search": search, "reference": args.reference, "prompts": [each.prompt for each in asked],
            "held_out": args.held_out, "anchor": args.anchor, "hold": fit.hold, "refit": fit.refit, "measured": measured}


def schedules(known, n, searches, args, say):
    """Everything with n steps: ({search: Fit}, {name: Measured})."""
    fits, lanes = {}, {}
    for search in searches:
        say(f"{n} steps: {NAMES[search]}")
        if fit := calibrate.fit(known, search, n, args.anchor, args.refit):
            fits[search] = fit
            lanes[NAMES[search]] = calibrate.measure(known, solvers.linear(known.config, fit.timesteps, fit.coefficients))
    say(f"{n} steps: what to compare with")
    return fits, lanes | {name: calibrate.measure(known, peer) for name, peer in solvers.peers(known.config, n).items()}


def run(pipe, args, asked, steps, searches, folders, work):
    """All of it: ({steps: {name: Measured}}, what was written). Files are written as soon as they are fitted."""
    config, home, found, made = dict(pipe.scheduler.config), fitted.folder(pipe), {}, []
    weights = fitted.weights(home)
    work.say(f"{sum(map(len, asked))} full runs of {args.reference} steps")
    known = calibrate.study(config, args.reference, *(networks(pipe, part, args.batch, work) for part in asked))
    for n in steps:
        fits, found[n] = schedules(known, n, searches, args, work.say)
        for search, fit in fits.items():
            path = folders["out"] / olss.path_of(home, search, n, asked[0][0].guidance).name
            told = belonging(weights, args, asked[0], search, fit, found[n])
            save(solvers.linear(config, fit.timesteps, fit.coefficients, told), path)
            made.append({"steps": n, "search": search, "timesteps": fit.timesteps, "hold": fit.hold, "refit": fit.refit,
                         "file": str(path)})
            if "figures" in folders:
                figures.write(path, folders["figures"])
    return found, made


def main(argv=None):
    """The command. Returns the exit code."""
    args = arguments().parse_args(argv)
    asked, searches = asked_for(args), choices(args.search)
    steps, one = numbers(args.steps, min(STEPS[1], args.reference)), asked[0][0]
    pipe = models.load(args.model)
    config, home = dict(pipe.scheduler.config), fitted.folder(pipe)
    if home is None:
        raise BadRequest("model", f"{args.model} has no folder, beside which coefficients could lie.")
    solvers.reference(config, args.reference)  # refuses before minutes are spent
    out = args.out or olss.path_of(home, searches[0], steps[0], one.guidance).parent
    folders = {"out": Path(out)} | ({"figures": Path(args.figures)} if args.figures else {})
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    with closing(Work(amount(config, asked, steps, searches, args.reference, args.refit))) as work:
        found, made = run(pipe, args, asked, steps, searches, folders, work)
    print(f"Distance from {args.reference} steps of DDIM: root mean square of the latents, mean over {len(asked[2])} prompts "
          "and seeds that nothing was fitted to or chosen by. Columns: numbers of steps.\n")
    print(table(found), end="\n\n")
    for each in made:
        print(f"{NAMES[each['search']]}, {each['steps']} steps: {each['file']}")
    print(json.dumps({"command": "fit", "method": "olss", "model": one.model, "guidance": one.guidance, "size": one.size,
                      "reference": args.reference, "prompts": args.prompts, "held_out": args.held_out,
                      "seconds": round(work.seconds, 1), "fits": made,
                      "rmse": {n: {name: told.rmse for name, told in lanes.items()} for n, lanes in found.items()}},
                     allow_nan=False))
    return 0
