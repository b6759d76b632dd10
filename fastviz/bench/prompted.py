"""What benchmarks on held-out prompts share: their options, the pictures that they ask for, and how they answer."""

import argparse
import json
from pathlib import Path

from .. import fitted, models
from ..compare import environment
from ..request import Request, check_number
from ..search import prompts
from ..search.session import Bar


def asked(name, says, argv, seed, count, steps, least=1):
    """(options, pipeline, Requests) of `bench <name>`. seed: of the first prompt's noise; count, steps: defaults; least: prompts."""
    parser = argparse.ArgumentParser(prog=f"python -m fastviz bench {name}", description=says.splitlines()[0])
    parser.add_argument("--model", default="stickers", choices=models.MODELS)
    parser.add_argument("--count", type=int, default=count, help="prompts, of things that the model was not trained on together")
    parser.add_argument("--prompts-file", help="a file with one prompt a line; not needed for the embedded model")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", help="file that the JSON is written to as well")
    args = parser.parse_args(argv)
    check_number("count", "--count", args.count, least, 10_000, int)
    check_number("steps", "--steps", args.steps, 5, 1000, int)
    texts, pipe = prompts.read(args.model, 0, args.count, args.prompts_file)[1], models.load(args.model)
    return args, pipe, [Request(text, seed=seed + i, steps=args.steps, model=args.model, methods="full") for i, text in enumerate(texts)]


def watched(requests):
    """The Requests one by one, with a bar on stderr."""
    bar = Bar()
    for i, request in enumerate(requests):
        bar.show(i / len(requests), f"prompt {i + 1} of {len(requests)}")
        yield request
    bar.close()


def answer(name, args, pipe, **found):
    """Prints one JSON line, and writes it to --out."""
    home = fitted.folder(pipe)
    told = {"bench": name, "model": args.model, "weights": home and fitted.weights(home), "prompts": args.count, "steps": args.steps,
            **found, "environment": environment(pipe)}
    if args.out:
        Path(args.out).write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    print(json.dumps(told, allow_nan=False))
