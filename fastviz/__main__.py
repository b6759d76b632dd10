"""Command line: compare, explain, sweep, fastest, history, doctor, fetch, deploy, fit, bench, search.

Results go to stdout, one JSON line last; the rest to stderr.
"""

import argparse
import json
import sys

from .checkpoints import MODELS, BadFolder, folder_option, take_folder

NUMBERS = {"seed": "0 to 4294967295", "steps": "sampling steps of the full model", "guidance": "1 switches it off",
           "size": "pixels, both ways", "repeats": "timed runs per row; 1 is quick"}


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz", description="See how diffusion models are made fast.")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = asking(commands, "compare", "run the full model and its accelerated variants on one prompt")
    compare.add_argument("--out", help="folder for pictures, run.json, table.csv and figure.png")
    compare.add_argument("--records", action="store_true",
                         help="run each row once more and keep what happens inside: one .npz per row in --out")
    compare.add_argument("--report", metavar="FILE", help="one HTML file that opens without a server; with --records, with a step scrubber")
    compare.add_argument("--no-history", action="store_true", help="do not keep the run in the local history")
    commands.add_parser("sweep", help="run rows over values of their knobs, prompts and seeds, and go on where it stopped", add_help=False)
    commands.add_parser("fastest", help="find the fastest way under a bound on LPIPS, or the closest within a time", add_help=False)
    commands.add_parser("history", help="find, open or delete what was run on this machine", add_help=False)
    explain = asking(commands, "explain", "why is it not faster? where each row's time goes, and what its methods can touch")
    explain.add_argument("--out", help="folder for explain.json and explain.png")
    doctor = commands.add_parser("doctor", help="what runs here, and what to do about what does not")
    for command in (compare, explain, doctor):
        folder_option(command)
    deploy = commands.add_parser("deploy", help="upload this project as a Space")
    deploy.add_argument("--space", required=True, metavar="NAME", help="owner/name, or name for your own")
    deploy.add_argument("--profile", default="cpu-basic", help="a profile of spaces_config.yaml with hardware of a Space")
    deploy.add_argument("--dry-run", action="store_true", help="only tell what would be uploaded")
    fetch = commands.add_parser("fetch", help="bring what is not shipped")
    fetch.add_argument("what", choices=["lpips", *(key for key, model in MODELS.items() if model.hub)],
                       help="the ImageNet backbone of LPIPS, or a model of the table with its weights")
    fetch.add_argument("--net", choices=["alex", "vgg", "squeeze"], default="alex", help="which backbone of LPIPS")
    fit = commands.add_parser("fit", help="fit a schedule to a model", add_help=False)
    fit.add_argument("which", choices=["olss"])
    bench = commands.add_parser("bench", help="measure side by side with peers, or count against papers", add_help=False)
    bench.add_argument("which", choices=["local", "flops", "claims", "blocks", "rank", "olss", "gpu", "paint", "photo"])
    search = commands.add_parser("search", help="search a schedule on this model, or see why one is good", add_help=False)
    search.add_argument("which", choices=["reuse", "one-reuse", "report"])
    return parser


def asking(commands, name, says):
    """A command that takes what a Request holds."""
    parser = commands.add_parser(name, help=says)
    parser.add_argument("prompt")
    for number, tells in NUMBERS.items():
        parser.add_argument(f"--{number}", help=tells)
    parser.add_argument("--model", help="a key of the table of models")
    parser.add_argument("--methods", help="rows, such as full,tome(ratio=0.4),tome+attention_reuse,few_step(match=tome)")
    parser.add_argument("--sketch", metavar="FILE", help="a PNG of 256 x 256 px, black on white, that every row follows")
    parser.add_argument("--start", metavar="FILE", help="a square picture that every row starts from")
    parser.add_argument("--strength", help="how much of it may change, 0.1 to 1")
    return parser


def request_of(args):
    """The Request that the options ask for. Numbers that are none are passed on as they are, for Request to refuse."""
    from .request import Request, read_number

    values = {name: value for name in (*NUMBERS, "strength") if (value := getattr(args, name)) is not None}
    values = {name: value if (number := read_number(value)) is None else number for name, value in values.items()}
    values |= {name: value for name in ("model", "methods") if (value := getattr(args, name)) is not None}
    values |= {name: file_of(name, path) for name in ("sketch", "start") if (path := getattr(args, name)) is not None}
    return Request(args.prompt, **values)


def file_of(name, path):
    """The bytes of a file. BadRequest with a sentence when it cannot be read."""
    from pathlib import Path

    from .request import BadRequest

    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadRequest(name, f"{path} cannot be read: {error.strerror}.") from None


def show(progress):
    """One line on stderr, written over and over on a terminal; without one, a line at the start of each run."""
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left:.0f} s left"
    line = (f"{progress.title}: step {progress.step} of {progress.steps}, run {progress.repeat + 1} of {progress.repeats}, "
            f"row {progress.row + 1} of {progress.rows}{left}")
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif progress.step == 0:
        print(line, file=sys.stderr, flush=True)


def hint(request):
    """Says on stderr which words the model does not know and what is cut off."""
    from . import reading

    if words := reading.unknown_words(request.model, request.prompt):
        print(f"Unknown words: {', '.join(words)}", file=sys.stderr)
    if cut := reading.prompt_cut(request.model, request.prompt):
        print(f"Cut off, the prompt is too long for the model: {cut}", file=sys.stderr)


def run_compare(args):
    take_folder(args)
    request = request_of(args)
    from pathlib import Path

    from . import models, store, views
    from .compare import compare, environment, final
    from .request import BadRequest

    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # before minutes are spent
    elif args.records and not args.report:
        raise BadRequest("records", "Name a folder or a file for the records: --out FOLDER or --report FILE.")
    hint(request)
    rows = final(compare(request, on_progress=show))
    told = environment(models.load(request.model))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(views.table(rows))
    if note := models.MODELS[request.model].note:
        print(note)
    if not args.no_history and any(row.image is not None for row in rows):
        from .explore.command import keep

        keep(request, rows, told)
    line = {"command": "compare", **store.report(request, rows, told)}
    if args.out:
        line["out"] = str(store.save(args.out, request, rows, told))
        if args.records:
            record(request, rows, Path(args.out))
        print(f"Written to {args.out}.")
    if args.report:
        write_report(args, request, rows, told)
    for row in line["rows"]:
        del row["per_step"], row["flops_per_step"]  # run.json has them
    print(json.dumps(line, allow_nan=False))
    return 1 if any(row.error for row in rows) else 0


def record(request, rows, folder):
    """What happens inside each row, as .npz, and where and when it saved work, as a figure."""
    from . import store, views
    from .compare import traced
    from .run import Failed

    runs = {}
    for row in (row for row in rows if row.image is not None):
        print(f"{row.title}: recording", file=sys.stderr)
        try:
            trace = traced(request, row)
        except Failed as error:  # it takes more memory than the row did
            print(f"{row.title} was not recorded: {error}", file=sys.stderr)
            continue
        trace.save((folder / store.picture_name(row)).with_suffix(".npz"))
        if trace.dropped:
            print(f"There was no room for {trace.dropped.total()} records.", file=sys.stderr)
        blocks = list(trace.about["grids"])  # of the network that ran: a student has fewer
        runs[f"{row.index}. {row.title}"] = blocks, views.activity(trace.channels, blocks, row.steps), row.flops_per_step
    if runs:
        (folder / "inside.png").write_bytes(views.png(views.saved(runs, rows[0].flops_per_step)))


def write_report(args, request, rows, environment):
    """The report of a comparison, with what happened inside when the records were asked for."""
    import shutil
    from pathlib import Path

    from .ui.inside import Inside
    from .ui.job import Opened
    from .ui.report import html

    job, look = Opened(request, rows, environment), None
    if args.records:
        look = Inside(job)
        print("Recording for the report", file=sys.stderr)
        look.work()
        if look.state == "failed":
            print(look.sentence, file=sys.stderr)
    try:
        Path(args.report).write_text(html(job, look))
    finally:
        if look and look.folder:
            shutil.rmtree(look.folder)
    print(f"Report written to {args.report}.")


def run_explain(args):
    take_folder(args)
    request = request_of(args)
    from pathlib import Path

    from . import models, store, views
    from .compare import compare, environment, final
    from .explore import explain
    from .explore.classes import CLASSES

    hint(request)
    rows = final(compare(request, on_progress=show))
    found = []
    for told in explain.explain(request, rows):
        print(f"{told.title}: profiled", file=sys.stderr)
        found.append(told)
    print(explain.table(found))
    for told in found:
        print(f"{told.stack}: {explain.verdict(told)}")
    for row in (row for row in rows if row.error):
        print(f"{row.stack}: {row.error}")
    line = {"command": "explain", "recipe": store.recipe(request), "environment": environment(models.load(request.model)),
            "rows": [explain.plain(told) for told in found]}
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "explain.json").write_text(json.dumps(line, indent=1, allow_nan=False) + "\n")
        (folder / "explain.png").write_bytes(views.png(views.breakdown(found, CLASSES)))
        print(f"Written to {folder}.")
    print(json.dumps(line, allow_nan=False))
    return 1 if any(each.error for each in [*rows, *found]) else 0


def run_doctor(args):
    take_folder(args)
    from . import doctor

    print(doctor.text(doctor.report()))
    return 0


def run_fetch(args):
    if args.what in MODELS:
        from . import hub

        print(f"In place: {hub.fetch(MODELS[args.what])}")
        return 0
    from . import metrics

    def on_progress(done, total):
        if sys.stderr.isatty():
            print(f"\r\033[K{done / 2**20:.0f} of {total / 2**20:.0f} MiB", end="", file=sys.stderr, flush=True)

    print(f"\nIn place: {metrics.fetch_backbone(args.net, on_progress)}")
    return 0


def run_deploy(args):
    from . import deploy, profile
    from .request import BadRequest

    try:
        plan = deploy.plan(profile.load(args.profile), args.profile)
    except ValueError as error:
        raise BadRequest("profile", str(error)) from None
    print(deploy.text(args.space, plan))
    if not args.dry_run:
        print(deploy.upload(args.space, plan))
    return 0


def run_bench(args, rest):
    from .bench import blocks, claims, flops, gpu, local, olss, paint, photo, rank

    commands = {"local": local, "flops": flops, "claims": claims, "blocks": blocks, "rank": rank, "olss": olss, "gpu": gpu,
                "paint": paint, "photo": photo}
    return commands[args.which].main(rest) or 0


def run_sweep(args, rest):
    from .explore import command

    return command.sweep(rest)


def run_fastest(args, rest):
    from .explore import command

    return command.fastest(rest)


def run_history(args, rest):
    from .explore import command

    return command.history(rest)


def run_fit(args, rest):
    from .fit import olss

    return {"olss": olss}[args.which].main(rest)


def run_search(args, rest):
    from .search import one_reuse, report, reuse

    return {"reuse": reuse, "one-reuse": one_reuse, "report": report}[args.which].main(rest)


def main(argv=None):
    """Returns the exit code: 0 all is well, 1 something failed, 2 bad input, 70 the device is lost, 130 stopped."""
    args, rest = arguments().parse_known_args(argv)
    apart = {"bench": run_bench, "fit": run_fit, "search": run_search, "sweep": run_sweep, "fastest": run_fastest,
             "history": run_history}  # commands with options of their own
    if rest and args.command not in apart:
        arguments().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.command in apart:
            return apart[args.command](args, rest)
        commands = {"compare": run_compare, "explain": run_explain, "doctor": run_doctor, "fetch": run_fetch, "deploy": run_deploy}
        return commands[args.command](args)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        code = told(error)
        if code is None:
            raise
        print(error, file=sys.stderr)
        return code


def told(error):
    """The exit code for an error whose text is a sentence of ours or the system's, else None."""
    from .metrics import Unavailable
    from .verified import BadModel
    from .patch import Refused
    from .request import BadRequest
    from .run import Failed, Lost

    codes = {BadRequest: 2, BadFolder: 2, Lost: 70, Failed: 1, BadModel: 1, Unavailable: 1, Refused: 1, OSError: 1}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


if __name__ == "__main__":
    sys.exit(main())
