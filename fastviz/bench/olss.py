"""OLSS beside DDIM, DPM-Solver++ 2M and UniPC at the same number of network calls, on prompts and seeds never fitted to.

Distances are root mean squares of the last latents, to the full run that OLSS was fitted to and, with --fine, to a run of
DPM-Solver++ 2M in so many steps: the first target favours what is shaped like DDIM, the second what is shaped like
DPM-Solver++. All schedules end at the full run's last noise level. LPIPS is to the full run's picture. With --out, the same
command goes on where it was stopped.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from statistics import mean, stdev

from .. import fitted, metrics, models, views
from ..compare import environment
from ..fit import figures, runs, solvers
from ..fit.inputs import choices, numbers, requests
from ..fit.olss import NAMES
from ..fit.work import Work, networks
from ..methods import olss
from ..patch import Refused
from ..request import STEPS, BadRequest, check_number
from ..run import Clock, pictures
from ..search import prompts, session

SEED = 500_000  # of the prompts, and of the first one's noise; the fit's is below
SHOWN = 4  # prompts in a picture of equal steps
FIGURES = ("rmse", "rmse_fine", "lpips", "match", "seconds")


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz bench olss", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stickers", choices=models.MODELS)
    parser.add_argument("--steps", default="4,5,6,8,10", help="numbers of steps; coefficients must have been fitted for each")
    parser.add_argument("--search", default="olss,olss-p", help=f"fitted schedules: {', '.join(olss.SEARCHES)}")
    parser.add_argument("--guidance", type=float, help="by default the model's own")
    parser.add_argument("--prompts", type=int, default=64, help="how many; more may be asked for when --out is continued")
    parser.add_argument("--prompts-file", help="prompts of your own, one a line")
    parser.add_argument("--reference", type=int, default=100, help="steps of the full run")
    parser.add_argument("--fine", type=int, default=0, help="also the distance to DPM-Solver++ 2M in so many steps, say 1000")
    parser.add_argument("--fine-prompts", type=int, default=16, help="of how many prompts, the first ones: it takes long")
    parser.add_argument("--size", type=int, help="pixels, both ways; by default the model's own")
    parser.add_argument("--batch", type=int, default=4, help="runs side by side")
    parser.add_argument("--out", help="JSON file of the result")
    parser.add_argument("--figures", help="folder for pictures: of every fitted schedule, and of what all draw with equal steps")
    return parser


def schedule(folder, asked, n, search):
    """The scheduler with the coefficients beside a model's folder. BadRequest when there are none, they belong elsewhere,
    or were fitted to one of the prompts."""
    try:
        found = olss.load(folder, search, n, asked[0].guidance)
    except Refused as refusal:
        raise BadRequest("steps", str(refusal)) from None
    if known := {each.prompt for each in asked} & set(found.config.fitted.get("prompts", ())):
        raise BadRequest("prompts", f"The coefficients were fitted to {min(known)!r}: measure on other prompts.")
    found.set_timesteps()
    return found


def lanes(pipe, asked, steps, searches):
    """[(steps, name, scheduler)] of everything that is compared."""
    folder, peers = fitted.folder(pipe), {n: solvers.peers(dict(pipe.scheduler.config), n) for n in steps}
    found = {n: {NAMES[search]: schedule(folder, asked, n, search) for search in searches} for n in steps}
    return [(n, name, scheduler) for n in steps for name, scheduler in (found[n] | peers[n]).items()]


def finest(config, steps):
    """DPM-Solver++ 2M in `steps` steps, down to the noise level at which the full run ends."""
    scheduler = solvers.multistep(config, "dpm")
    scheduler.set_timesteps(steps)
    return scheduler


def scores(asked, latents, calls, picture, full, fine):
    """What is said of one schedule on one prompt, plain values."""
    told = metrics.score(full[1], picture, asked.prompt, asked.model)
    return {"rmse": float(runs.rmse(latents[None], full[0][None])), "calls": calls,
            "rmse_fine": None if fine is None else float(runs.rmse(latents[None], fine[None])),
            "lpips": told["lpips"], "lpips_name": told["lpips_name"], "match": told["match"]}


def timed(scheduler, network):
    """(last latents, seconds) of a run."""
    clock = Clock(network.start.device)
    clock.mark()
    latents = runs.end(scheduler, network)
    clock.mark()
    return latents, clock.spans()[0]


def measure(pipe, network, asked, compared, full, fine):
    """All schedules on one Network -> one record per Request: {"prompt", "seed", "rows": {steps: {name: scores}}}. Seconds
    are those of the whole batch, without decoding, by its size."""
    records = [{"prompt": each.prompt, "seed": each.seed, "rows": {}} for each in asked]
    target, whole = timed(full, network)
    drawn = pictures(pipe, target)
    far = None if fine is None else runs.end(fine, network)
    for n, name, scheduler in [(len(full.timesteps), "Full run", full), *compared]:
        before = network.calls
        latents, seconds = (target, whole) if scheduler is full else timed(scheduler, network)
        calls = n if scheduler is full else network.calls - before
        for i, picture in enumerate(pictures(pipe, latents)):
            row = scores(asked[i], latents[i], calls, picture, (target[i], drawn[i]), None if far is None else far[i]) | {"seconds": seconds / len(asked)}
            records[i]["rows"].setdefault(str(n), {})[name] = row
    return records


# What comes out

def drawn(pipe, asked, steps, compared, reference):
    """Pictures of the first prompts with every number of steps: {steps: {name: [PIL]}}, the full run first."""
    shown, full = asked[:SHOWN], solvers.reference(dict(pipe.scheduler.config), reference)
    ways = [(n, "Full run", full) for n in steps] + compared
    found = {n: {} for n in steps}
    with closing(Work(len(shown) * (reference + sum(n for n, _, _ in compared)))) as work:
        network, = networks(pipe, shown, len(shown), work)
        whole = pictures(pipe, runs.end(full, network))
        for n, name, scheduler in ways:
            found[n][name] = whole if scheduler is full else pictures(pipe, runs.end(scheduler, network))
    return found


def illustrate(pipe, args, asked, steps, searches, compared):
    """Writes the pictures that --figures asks for."""
    folder = Path(args.figures)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (olss.path_of(fitted.folder(pipe), search, n, asked[0].guidance) for n in steps for search in searches):
        figures.write(path, folder)
    for n, ways in drawn(pipe, asked, steps, compared, args.reference).items():
        prompts = [each.prompt for each in asked[:SHOWN]]
        (folder / f"equal-steps-{n}.png").write_bytes(views.png(views.equal_steps(ways, prompts, n)))


def summary(records):
    """Means over the prompts: [{"steps", "name", "calls", "rmse", "rmse_error" (standard), "rmse_fine", "lpips", "match", "seconds"}];
    None for what could not be had; fine_prompts: those with an "rmse_fine"."""
    found = []
    for n, rows in records[0]["rows"].items():
        for name, row in rows.items():
            each = [record["rows"][n][name] for record in records]
            known = {key: [one[key] for one in each if isinstance(one[key], (int, float))] for key in FIGURES}
            told = {key: mean(values) if values else None for key, values in known.items()}
            told["fine_prompts"] = len(known["rmse_fine"])
            told["rmse_error"] = stdev(known["rmse"]) / len(each) ** 0.5 if len(each) > 1 else None
            found.append({"steps": int(n), "name": name, "calls": row["calls"], **told})
    return found


def table(rows):
    """Aligned text; a blank line between numbers of steps."""
    lines = [("steps", "", "calls", "RMSE", "", "RMSE fine", "LPIPS", "match", "seconds")]
    for before, row in zip([None, *rows], rows):
        if before and before["steps"] != row["steps"]:
            lines.append(("",) * 9)
        spread = "" if row["rmse_error"] is None else f"+-{row['rmse_error']:.4f}"
        lines.append((str(row["steps"]), row["name"], str(row["calls"]), figure(row["rmse"]), spread, figure(row["rmse_fine"]),
                      figure(row["lpips"]), figure(row["match"]), figure(row["seconds"])))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) if i == 1 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def figure(value):
    return "-" if value is None else f"{value:.4f}"


def settings_of(pipe, args, one, compared):
    """What records depend on, as plain values."""
    return {"model": one.model, "guidance": one.guidance, "size": one.size, "weights": fitted.weights(fitted.folder(pipe)),
            "reference": args.reference, "fine": args.fine, "fine_prompts": args.fine_prompts,
            "prompts_file": args.prompts_file and Path(args.prompts_file).read_text(encoding="utf-8"),
            "coefficients": [scheduler.config.get("wx") for _, _, scheduler in compared]}


def begun(out, settings):
    """(records so far, what saves them) of a benchmark whose result goes to the file `out`; with None nothing is saved.
    BadRequest when it was begun with other settings."""
    if out is None:
        return [], lambda: None
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    file = session.File(Path(out), settings)
    records = file.load().get("records", [])
    return records, lambda: file.save({"records": records})


def run(pipe, args, asked, compared, records, save):
    """Adds the records of all prompts that have none. save() is called after each batch."""
    config, left = dict(pipe.scheduler.config), asked[len(records):]
    full, fine = solvers.reference(config, args.reference), finest(config, args.fine) if args.fine else None
    steps = args.fine * max(0, min(args.fine_prompts, len(asked)) - len(records))
    with closing(Work(len(left) * (args.reference + sum(n for n, _, _ in compared)) + steps)) as work:
        for network in networks(pipe, left, args.batch, work):
            chunk = asked[len(records):][:args.batch]
            work.say(f"prompts {len(records) + 1} to {len(records) + len(chunk)} of {len(asked)}")
            records += measure(pipe, network, chunk, compared, full, fine if len(records) < args.fine_prompts else None)
            save()


def main(argv=None):
    """The command. Returns the exit code."""
    args = arguments().parse_args(argv)
    for name, low, high in (("prompts", 1, 10_000), ("batch", 1, 64), ("reference", 2, 1000), ("fine", 0, 1000),
                            ("fine_prompts", 1, 10_000)):
        check_number(name, f"--{name.replace('_', '-')}", getattr(args, name), low, high, int)
    _, texts = prompts.read(args.model, 0, args.prompts, args.prompts_file, SEED)
    asked = requests(args, texts, SEED)
    steps, searches = numbers(args.steps, STEPS[1]), choices(args.search)
    pipe = models.load(args.model)
    compared = lanes(pipe, asked, steps, searches)
    settings = settings_of(pipe, args, asked[0], compared)
    records, save = begun(args.out, settings)
    run(pipe, args, asked, compared, records, save)
    records = records[:len(asked)]
    if args.figures:
        illustrate(pipe, args, asked, steps, searches, compared)
    rows, name = summary(records), next(iter(next(iter(records[0]["rows"].values())).values()))["lpips_name"]
    print(f"{len(records)} prompts that nothing was fitted to. RMSE: of the last latents to {args.reference} steps of DDIM; "
          f"fine: to {args.fine or 'no'} steps of DPM-Solver++ 2M, of {rows[0]['fine_prompts']} prompts. {name}: to the picture of the full run. match: what the "
          "prompt names that is found.\n")
    print(table(rows))
    told = {key: value for key, value in settings.items() if key not in ("coefficients", "prompts_file")}
    told = {"bench": "olss", **told, "prompts": len(records), "lpips_name": name, "environment": environment(pipe), "rows": rows}
    if args.out:
        session.write(Path(args.out), told)
    print(json.dumps(told, allow_nan=False))
    return 0
