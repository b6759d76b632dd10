"""`python -m fastviz search reuse`: finds which steps should reuse attention maps, for one model and number of steps.

Our reconstruction of PHAST (Hunter et al., arXiv 2401.01008). The same command goes on where it was stopped. Results: a
table, then one JSON line; the schedule lies where the method looks for it: attention_reuse(schedule=phast).
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from statistics import mean

from .. import fitted, models, views
from ..compare import environment
from ..methods import attention_reuse
from ..request import BadRequest, check_number
from ..trace import Trace
from . import held_out, prompts, schedules, session
from .climb import Plan, Search, State
from .sampler import Sampler

NUMBERS = {  # option -> (default, lowest, highest, what it is)
    "prompts": (8, 1, 1000, "prompts to search on"),
    "held-out": (64, 2, 1000, "other prompts, on which the result is judged"),
    "batch": (4, 1, 1000, "prompts per call of the network; a move that is no better on the first ones is given up"),
    "rejects": (30, 1, 10_000, "moves in a row that are no better before a climb ends"),
    "restarts": (2, 0, 10_000, "climbs after the first, from a perturbed schedule"),
}
SETTINGS = ("reuse", "batch", "objective", "start", "rejects", "restarts")
NOISE = 10_000  # between the seeds of the search's noise and of the held-out prompts'


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz search reuse", description=__doc__.splitlines()[0])
    session.options(parser, NUMBERS)
    parser.add_argument("--reuse", type=int, help="how many steps reuse; half of them by default")
    parser.add_argument("--objective", choices=["psnr", "latent"], default="psnr",
                        help="what is maximised: PSNR of the decoded pictures, or closeness of the latents, cheaper")
    parser.add_argument("--start", choices=["additive", "hurry"], default="additive",
                        help="where from: the best schedules of a measured additive model, or HURRY and random swaps")
    parser.add_argument("--equal", choices=["flops", "seconds"], default="seconds",
                        help="how many fewer steps to set beside it: as much measured time, or as many FLOPs")
    parser.add_argument("--minutes", type=float, help="stop searching after these; the same command goes on")
    return parser


def checked(args):
    """The options with their defaults, or BadRequest."""
    session.checked(args, NUMBERS)
    args.reuse = max(1, args.steps // 2) if args.reuse is None else args.reuse
    check_number("reuse", "--reuse", args.reuse, 1, args.steps - 1, int)
    if args.minutes is not None:
        check_number("minutes", "--minutes", args.minutes, 0, 1e6, float)
    return args


def progress(bar, seconds):
    """What Search calls to tell where it is."""
    def tell(search):
        if not bar.due():
            return
        state, passed = search.state, time.monotonic() - search.began
        left = search.left() * passed / max(1, search.ran)
        left = left if seconds is None else min(left, max(0.0, seconds - passed))
        hurry = f"HURRY {search.mean(state.starts['HURRY']):.2f}" if state.best else ""
        best = f", {search.mean(state.best):.2f} dB ({hurry})" if state.best else ""
        bar.show(passed / max(passed + left, 1e-9), f"{search.phase}{best}, at most about {left / 60:.0f} min left")
    return tell


def search(pipe, args, texts, state, save):
    """Runs or goes on with a search until it is finished or its minutes are over."""
    if state.finished:
        return
    asked, size = session.requests(args, texts, args.seed), args.batch
    samplers = [Sampler(pipe, asked[i:i + size], args.maps, args.keep) for i in range(0, len(asked), size)]
    plan = Plan(args.reuse, args.objective, args.start, args.rejects, args.restarts, args.seed)
    bar, seconds = session.Bar(), None if args.minutes is None else 60 * args.minutes
    try:
        Search(samplers, plan, state, save, progress(bar, seconds), seconds).run()
    finally:
        bar.close()


def judge(pipe, args, texts, best, judged, save):
    """Fills `judged` with the rows of held_out.one, one for every held-out prompt, as far as they are not those of this
    schedule already. save() is called after each."""
    wanted = {"schedule": best, "equal": args.equal, "prompts": texts, "timed": held_out.TIMED}
    asked, bar = session.requests(args, texts, args.seed + NOISE), session.Bar()
    rows = held_out.stacks(schedules.read(best), args.maps, args.keep)
    if {name: judged.get(name) for name in wanted} != wanted:
        judged |= wanted | {"few": held_out.equal_steps(pipe, asked, rows["found"], args.equal), "rows": []}
    for i, request in enumerate(asked[len(judged["rows"]):], len(judged["rows"])):
        bar.show(i / len(asked), f"held-out prompt {i + 1} of {len(asked)}")
        judged["rows"].append(held_out.one(pipe, request, rows, judged["few"]))
        save()
    bar.close()


def result(pipe, args, settings, state, judged):
    """All that is known, as plain values: the file that the method reads."""
    rows, gains = held_out.summary(judged["rows"])
    request, = session.requests(args, judged["prompts"][:1], args.seed + NOISE)
    stacks = held_out.stacks(schedules.read(state.best), args.maps, args.keep)
    starts = {name: {"schedule": digits, "score": mean(state.scores[digits])}
              for name, digits in state.starts.items()}
    return {
        "schedule": state.best, "k": args.reuse, "weights": settings["weights"], "settings": settings,
        "search": {"score": mean(state.scores[state.best]), "unit": "dB", "starts": starts, "tried": len(state.tried),
                   "steps_run": state.steps_run, "minutes": state.seconds / 60, "finished": state.finished,
                   "history": state.history},
        "held_out": {"prompts": judged["prompts"], "rows": rows, "found_less": gains, "unit": "dB of PSNR",
                     "few_steps": {"steps": judged["few"], "equal": judged["equal"]},
                     "lpips_name": judged["rows"][0]["found"]["lpips_name"]},
        "flops": {name: held_out.work(pipe, request, stacks[name], args.steps)[0] for name in ("full", "found")},
        "environment": environment(pipe),
    }


def table(told):
    """The result as text for people."""
    found = told["search"]
    lines = [f"On {len(told['settings']['prompts'])} prompts of the search, {told['settings']['objective']}, dB"]
    lines += [f"  {name:<16}{start['score']:7.2f}" for name, start in found["starts"].items()]
    more = "" if found["finished"] else "; not finished, the same command goes on"
    lines += [f"  {'found':<16}{found['score']:7.2f}  after {found['tried']} schedules, {found['steps_run']} network "
              f"steps, {found['minutes']:.0f} min{more}", ""]
    return "\n".join([*lines, judgement(told)])


def judgement(told):
    """The schedule and its rows on the held-out prompts, as text for people."""
    held = told["held_out"]
    lines = [f"schedule  {told['schedule']}  ({told['k']} of {len(told['schedule'])} steps reuse; {told['settings']['maps']}, "
             f"{told['settings']['keep']})", "", f"On {len(held['prompts'])} held-out prompts, {held['lpips_name']}; ddim and dpm take "
             f"{held['few_steps']['steps']} steps for equal {held['few_steps']['equal']}",
             f"  {'':<16}{'PSNR':>7}{'LPIPS':>8}{'s':>7}   found is closer by, dB of PSNR"]
    return "\n".join([*lines, *(line(name, row, held["found_less"].get(name)) for name, row in held["rows"].items())])


def line(name, row, less):
    psnr = "-" if name == "full" else f"{row['psnr']:.2f}"
    lpips = "-" if isinstance(row["lpips"], str) else f"{row['lpips']:.4f}"
    gain = "   {:+.2f}, 95 % interval {:+.2f} to {:+.2f}".format(less["gain"], *less["interval"]) if less else ""
    return f"  {name:<16}{psnr:>7}{lpips:>8}{row['seconds']:7.2f}{gain}"


def figure(pipe, args, told):
    """What HURRY and the found schedule did in a traced run of the first held-out prompt."""
    asked = session.requests(args, told["held_out"]["prompts"][:1], args.seed + NOISE)
    sampler, traces = Sampler(pipe, asked, args.maps, args.keep), {}
    for name, gamma in (("HURRY", attention_reuse.hurry(args.steps, args.reuse)),
                        ("the found schedule", schedules.read(told["schedule"]))):
        traces[name] = Trace()
        sampler.run(gamma, trace=traces[name])
    return views.schedules({name: trace.channels for name, trace in traces.items()})


def main(argv=None):
    args = checked(arguments().parse_args(argv))
    texts, held = prompts.read(args.model, args.prompts, args.held_out, args.prompts_file)
    pipe = models.load(args.model)
    folder = fitted.folder(pipe)
    if folder is None:
        raise BadRequest("model", f"{args.model} has no folder, beside which a schedule could lie.")
    out = Path(args.out or attention_reuse.schedule_file(folder, args.steps, args.reuse, args.maps, args.keep))
    out.parent.mkdir(parents=True, exist_ok=True)  # before hours are spent
    settings = session.settings(pipe, args, texts, *SETTINGS)
    file = session.File(out, settings)
    told = file.load()
    state, judged = State(**told.get("search", {})), told.get("judged", {})

    def save(_=None):
        file.save({"search": dataclasses.asdict(state), "judged": judged})

    search(pipe, args, texts, state, save)
    if not state.best:
        print("The time was over before the first schedule was run: the same command goes on.", file=sys.stderr)
        return 1
    judge(pipe, args, held, state.best, judged, save)
    told = result(pipe, args, settings, state, judged)
    session.write(out, told)
    print(table(told), end="\n\n")
    if args.figure:
        Path(args.figure).write_bytes(views.png(figure(pipe, args, told)))
    print(json.dumps({"command": "search reuse", "out": str(out), **told}, allow_nan=False))
    return 0
