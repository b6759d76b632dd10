"""Command line of the embedded model's making: one command per stage, each resumable."""

import argparse

import torch

from . import parts, rebuild, sdxs

STAGES = {
    "atlas": "draw the glyphs from the colour emoji font",
    "autoencoder": "1: train the autoencoder",
    "decoder": "1b: train the small decoder further, latents settled",
    "reference": "1c: train the AutoencoderKL for the same latents",
    "judge": "2: train and export the judge",
    "teacher": "3: train the U-Net and its text encoder",
    "text": "3a: teach a fresh text encoder to answer as the teacher's, whose attention no longer learns, and take it instead",
    "keep": "3b: write what is trained to assets/stickers/onward, where any machine goes on from",
    "progress": "3c: figures and pictures of what is trained so far, in the learning curve",
    "heeded": "3d: which words of a caption the teacher heeds, by noise level",
    "experiments": "3e: what else might have been done: a short training of each, in a table",
    "evaluate": "4: figures and contact sheet of the shipped model",
    "diagnose": "4a: where the shipped model falls short: beside what training showed it, what its decoder allows, by object, by timestep",
    "behaviour": "4b: figures of the shipped model at other steps and guidance, as a table and curves",
    "export": "5: write the trained model to assets/stickers",
    "rebuild": "5b: export, and renew all that is made from the weights: figures, fitted and searched schedules, sketches, lessons",
    "distil": "6: train the one-step student's small U-Net to answer as the teacher does",
    "student-decoder": "6b: train the student's small decoder",
    "pairs": "7: draw with the guided teacher what the student learns to draw in one step",
    "warmup": "8: train the student to draw these pictures in one step",
    "reader": "8a: train a network that says which objects latents show",
    "refine": "8b: train it to draw at once what the teacher makes of its pictures in a few more steps",
    "score": "9: train the student to draw from the teacher's distribution",
    "keep-student": "9b: write what is trained of it to assets/stickers/onward-sdxs, where any machine goes on from",
    "export-student": "10: write the student to assets/stickers/sdxs, where the app finds it",
    "evaluate-student": "11: figures and pictures of the student beside the teacher, in training/",
    "sketch": "12: train the network that reads sketches",
    "student-sketch": "12b: train the student's own, to draw in one step what `pairs --drawn` hold",
    "export-sketch": "13: write them to assets/stickers/sketch and sdxs-sketch, where the app finds them",
    "evaluate-sketch": "14: figures of what they do, in assets/bench, and pictures, in training/",
}
TRAINING = {"autoencoder": (8, 1.5e-3), "decoder": (8, 1e-3), "reference": (8, 3e-3), "judge": (24, 2e-3),
            "teacher": (24, 2e-3), "text": (64, 1e-3), "distil": (8, 1e-3), "student-decoder": (8, 1e-3), "warmup": (16, 2e-3), "reader": (32, 2e-3), "refine": (16, 1e-3), "score": (8, 2.5e-4),
            "sketch": (16, 2e-3), "student-sketch": (16, 5e-4)}  # batch and learning rate for a CPU
DECAYING = ("decoder", "reference", "teacher", "distil", "student-decoder", "warmup", "reader", "refine", "score")  # stages that may be trained in several sittings


def main():
    parser = argparse.ArgumentParser(prog="python -m fastviz.stickers", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, says in STAGES.items():
        stage = stages.add_parser(name, help=says)
        stage.add_argument("--threads", type=int, default=torch.get_num_threads())
        if name in TRAINING:
            batch, rate = TRAINING[name]
            stage.add_argument("--minutes", type=float, default=20, help="time budget")
            stage.add_argument("--batch", type=int, default=batch)
            stage.add_argument("--lr", type=float, default=rate)
        if name in DECAYING:
            stage.add_argument("--decay", type=float, default=0.25, help="last share of the time, in which the rate falls")
        if name == "teacher":
            stage.add_argument("--scenes", type=float, default=0.0, help="share of whole scenes among the batches; else windows")
            stage.add_argument("--layout", type=float, default=0.0, help="share of them, very noisy, whose captions tell where things stand")
            stage.add_argument("--fresh", type=float, default=2.0, help="new scenes painted and encoded per batch")
            stage.add_argument("--anew", action="store_true", help="from random weights, where there is no checkpoint")
            stage.add_argument("--room", type=int, default=12_000, help="encoded scenes kept")
        if name in ("teacher", "text", "progress", "heeded", "keep", "export", "rebuild"):
            stage.add_argument("--network", choices=parts.SIZES, default="small", help="the teacher's size; large is for a GPU")
        if name == "pairs":
            stage.add_argument("--minutes", type=float, default=20, help="time budget")
            stage.add_argument("--batch", type=int, default=8)
            stage.add_argument("--count", type=int, default=32_000, help="pairs that are enough")
            stage.add_argument("--steps", type=int, default=20)
            stage.add_argument("--guidance", type=float, default=3.0, help="what the student will do without")
            stage.add_argument("--drawn", action="store_true", help="along sketches, for student-sketch")
        if name == "rebuild":
            stage.add_argument("parts", nargs="*", help=f"{', '.join(rebuild.STEPS)}; all by default")
        if name == "export-student":
            stage.add_argument("--stage", dest="of", choices=sdxs.UNETS, help="what to export the student of; by default the last that ran")
        if name == "evaluate-student":
            stage.add_argument("--count", type=int, default=32, help="prompts for each number of objects")
            stage.add_argument("--repeats", type=int, default=5, help="timed runs of teacher and student, by turns")
        if name == "behaviour":
            stage.add_argument("--count", type=int, default=16, help="prompts for each number of objects")
        if name == "experiments":
            stage.add_argument("names", nargs="*", help="of those to make; all by default")
            stage.add_argument("--minutes", type=float, default=10, help="time budget of each")
        if name == "heeded":
            stage.add_argument("--count", type=int, default=48, help="scenes for each kind of word")
        if name in ("evaluate", "evaluate-sketch", "progress", "diagnose"):
            quick = name in ("progress", "diagnose")
            stage.add_argument("--count", type=int, default=32 if quick else 64, help="prompts for each number of objects")
            stage.add_argument("--steps", type=int, default=25 if quick else 50)
            stage.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args)


def run(args):
    from . import autoencoder, behaviour, diagnose, evaluate, experiments, export, heeded, judge, progress, retext, sketch, teacher, world

    if args.stage == "atlas":
        world.render_atlas().save(world.ATLAS, quality=92, method=6)
    elif args.stage == "autoencoder":
        autoencoder.fit(args.minutes, args.batch, args.lr)
    elif args.stage == "decoder":
        autoencoder.fit_decoder(args.minutes, args.batch, args.lr, args.decay)
    elif args.stage == "reference":
        autoencoder.fit_reference(args.minutes, args.batch, args.lr, args.decay)
    elif args.stage == "judge":
        judge.fit(args.minutes, args.batch, args.lr)
    elif args.stage == "teacher":
        teacher.fit(args.minutes, args.batch, args.lr, args.scenes, args.fresh, args.room, args.decay, args.anew, args.network, args.layout)
    elif args.stage == "rebuild":
        rebuild.rebuild(args.parts, args.network)
    elif args.stage in ("export", "keep"):
        getattr(export, args.stage)(network=args.network)
    elif args.stage == "behaviour":
        behaviour.main(args.count)
    elif args.stage == "text":
        retext.fit(args.minutes, args.batch, args.lr, args.network)
    elif args.stage == "heeded":
        heeded.main(args.count, args.network)
    elif args.stage == "experiments":
        experiments.main(args.minutes, args.names)
    elif args.stage == "diagnose":
        diagnose.main(args.count, args.steps, args.guidance)
    elif args.stage == "progress":
        progress.main(args.count, args.steps, args.guidance, args.network)
    elif args.stage in sketch.STAGES:
        sketch.run(args)
    elif args.stage in sdxs.STAGES:
        sdxs.run(args)
    else:
        evaluate.main(args.count, args.steps, args.guidance)


if __name__ == "__main__":
    main()
