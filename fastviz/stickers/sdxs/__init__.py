"""The one-step student of the embedded model: SDXS, Song et al., arXiv 2403.16627, trained from the paper's equations.

Stages in order: distil, student-decoder, pairs, warmup, refine, score. Each goes on from the one before, and from its checkpoint;
reader trains a network that refine asks;
keep-student writes what there is where any machine goes on from, export-student what the row `sdxs` of the app draws with, and
evaluate-student tells what it is worth.
"""

UNETS = ("distil", "warmup", "refine", "score")  # the stages that train the U-Net, in order
STAGES = ("distil", "student-decoder", "pairs", "warmup", "reader", "refine", "score", "keep-student", "export-student", "evaluate-student")


def run(args):
    """One of STAGES with the arguments of the command line; ends the program with a sentence when another has to run first."""
    from . import chain, decoder, distil, evaluate, export, pairs, reader, refine, score, warmup

    try:
        if args.stage == "pairs":
            pairs.make(args.minutes, args.batch, args.steps, args.guidance, args.count, args.drawn)
        elif args.stage == "score":
            score.fit(args.minutes, args.batch, args.lr, args.decay)
        elif args.stage == "keep-student":
            print(f"kept the student after the stage {export.keep()}")
        elif args.stage == "export-student":
            print(f"exported the student after the stage {export.export(stage=args.of)}")
        elif args.stage == "evaluate-student":
            evaluate.main(args.count, args.repeats)
        else:
            {"distil": distil, "student-decoder": decoder, "warmup": warmup, "reader": reader, "refine": refine}[args.stage].fit(args.minutes, args.batch, args.lr, args.decay)
    except chain.NotYet as told:
        raise SystemExit(str(told)) from None
