"""A sketch as a condition of the embedded model: how the network that reads it is trained, exported and measured."""

STAGES = ("sketch", "student-sketch", "export-sketch", "evaluate-sketch")


def run(args):
    """One of STAGES with the arguments of the command line; ends the program with a sentence when another has to run first."""
    from ..sdxs.chain import NotYet
    from . import evaluate, export, fit, student

    try:
        if args.stage == "sketch":
            fit.fit(args.minutes, args.batch, args.lr)
        elif args.stage == "student-sketch":
            student.fit(args.minutes, args.batch, args.lr)
        elif args.stage == "export-sketch":
            export.export()
        else:
            evaluate.main(args.count, args.steps, args.guidance)
    except NotYet as told:
        raise SystemExit(str(told)) from None
