"""What the search commands share: options, a state file to go on from, and a progress bar."""

import json
import math
import os
import sys
import time

from .. import checkpoints, fitted
from ..request import BadRequest, Request, check_number


def options(parser, numbers):
    """The options that say what is run, and `numbers`: {option: (default, lowest, highest, what it is)}."""
    for name, (default, _, _, says) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} (default {default})")
    checkpoints.model_options(parser)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt's noise; the next ones follow")
    parser.add_argument("--maps", choices=["self", "cross", "both"], default="both")
    parser.add_argument("--keep", choices=["map", "output"], default="map")
    parser.add_argument("--prompts-file", help="prompts of your own, one a line")
    parser.add_argument("--out", help="file of the result")
    parser.add_argument("--figure", help="PNG to draw")


def checked(args, numbers):
    """The options with the model's defaults, or BadRequest. numbers: see `options`."""
    checkpoints.take_folder(args, "stickers")
    first = Request("a", steps=args.steps, size=args.size, guidance=args.guidance, seed=args.seed, model=args.model)
    if first.steps < 2:
        raise BadRequest("steps", "With one step there is nothing to reuse: 2 steps at least.")
    args.size, args.guidance = first.size, first.guidance
    for name, (_, low, high, _) in numbers.items():
        check_number(name, f"--{name}", getattr(args, name.replace("-", "_")), low, high, int)
    return args


def requests(args, texts, seed):
    """One Request a prompt, each with noise of its own."""
    return [Request(text, seed=seed + i, steps=args.steps, size=args.size, guidance=args.guidance, model=args.model,
                    methods="full") for i, text in enumerate(texts)]


def settings(pipe, args, texts, *names):
    """What a result depends on, as plain values: the weights, the scheduler, the prompts and the options."""
    folder = fitted.folder(pipe)
    told = {"weights": folder and fitted.weights(folder), "scheduler": type(pipe.scheduler).__name__, "prompts": texts}
    return told | {name: getattr(args, name) for name in
                   ("model", "steps", "size", "guidance", "seed", "maps", "keep", *names)}


def write(path, told):
    """Writes JSON so that a reader finds the old file or the new one, never half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class File:
    """The state of an experiment on disk, beside its result: plain values, and the settings that they depend on."""

    def __init__(self, out, settings):
        self.path, self.settings = out.with_suffix(".state.json"), settings

    def load(self):
        """The state; {} where there is none, or the weights have changed since. BadRequest when it was begun with other
        settings, or is none."""
        if not self.path.is_file():
            return {}
        try:
            told = json.loads(self.path.read_text())
            other = [name for name, value in self.settings.items() if told["settings"].get(name) != value]
            state = dict(told["state"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequest("out", f"{self.path} is no state that this version reads: delete it, or choose another "
                                    "--out.") from None
        if other == ["weights"]:
            print("The weights have changed: it begins anew.", file=sys.stderr)
            return {}
        if other:
            raise BadRequest("out", f"{self.path} was begun with other settings ({', '.join(other)}): repeat those, "
                                    "delete it, or choose another --out.")
        return state

    def save(self, state):
        write(self.path, {"settings": self.settings, "state": state})


class Bar:
    """A progress bar on stderr: one line written over on a terminal, else a line every minute."""

    def __init__(self):
        self.terminal, self.shown = sys.stderr.isatty(), -math.inf

    def due(self):
        return time.monotonic() - self.shown >= (0.2 if self.terminal else 60)

    def show(self, share, text):
        """share: 0..1 of the work that is done."""
        if self.due():
            self.shown = time.monotonic()
            line = f"[{'#' * round(20 * share):.<20}] {text}"
            before, after = ("\r\033[K", "") if self.terminal else ("", "\n")
            print(before + line, end=after, file=sys.stderr, flush=True)

    def close(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr)
