"""`python -m fastviz search one-reuse`: reuses attention maps at one step alone and follows what that does to the end.

This is the argument for late reuse (Hunter et al., arXiv 2401.01008, section 3) as an experiment. For every step i: how
far the latents are off right after it, |d_i|, and at the end; how far the picture is off; and how stale each layer's map
was. The same command goes on where it was stopped. Results: a table, a figure and a JSON file, which is the last line.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from .. import metrics, models, views
from ..compare import environment
from ..trace import Trace
from . import prompts, session
from .additive import single
from .sampler import EQUAL, Sampler, mse

NUMBERS = {  # option -> (default, lowest, highest, what it is)
    "prompts": (4, 1, 1000, "prompts to average over"),
    "every": (1, 1, 99, "at every so many of the steps"),
}
STALE = "attention_reuse.staleness"


def arguments():
    parser = argparse.ArgumentParser(prog="python -m fastviz search one-reuse", description=__doc__.splitlines()[0])
    session.options(parser, NUMBERS)
    return parser


def lpips(reference, picture):
    """LPIPS, or the reason why there is none."""
    try:
        return metrics.lpips_score(reference, picture)[0]
    except metrics.Unavailable as reason:
        return str(reason)


def once(sampler, reference, i):
    """What reusing at step i does to one prompt: root mean squares of the latents' deviation right after the step and at
    the end, LPIPS and PSNR (dB) of the picture, and each layer's staleness |A_i - A_{i-1}| / |A_i|."""
    trace = Trace()
    path = sampler.run(single(len(reference.gamma), i), [reference], trace=trace)
    local, end = (float(mse(path.latents[step], reference.latents[step])) ** 0.5 for step in (i + 1, -1))
    (picture,), (found,) = sampler.pictures(reference), sampler.pictures(path)
    return {"local": local, "end": end, "lpips": lpips(picture, found),
            "psnr": min(EQUAL, metrics.psnr(picture, found)),
            "staleness": {layer: float(value) for (_, layer), value in trace.channels[STALE].items()}}


def experiment(pipe, requests, steps, args, cells, save, bar):
    """Fills `cells`, {prompt: {step: what `once` tells}}, with what is not in it yet."""
    for p, request in enumerate(requests):
        row = cells.setdefault(str(p), {})
        if all(str(i) in row for i in steps):
            continue
        sampler = Sampler(pipe, [request], args.maps, args.keep)
        reference = sampler.run((1,) * request.steps)
        for done, i in enumerate(steps):
            if str(i) not in row:
                share = (p + done / len(steps)) / len(requests)
                bar.show(share, f"prompt {p + 1} of {len(requests)}, reuse at step {i}")
                row[str(i)] = once(sampler, reference, i)
                save()


def result(pipe, settings, steps, cells):
    """Lists by step, one figure a prompt in each; staleness of a layer: means over the prompts."""
    def by_step(name):
        return [[row[str(i)][name] for row in cells.values()] for i in steps]

    layers = cells["0"][str(steps[0])]["staleness"]
    stale = {layer: [mean(row[str(i)]["staleness"][layer] for row in cells.values()) for i in steps]
             for layer in layers}
    local, end = by_step("local"), by_step("end")
    told = {"settings": settings, "reuse_at": steps, "latent_rmse": end, "local_rmse": local, "lpips": by_step("lpips"),
            "psnr": by_step("psnr"), "staleness": stale, "environment": environment(pipe),
            "amplification": [mean(b) / mean(a) if mean(a) else None for a, b in zip(local, end)]}
    try:
        told["lpips_name"] = metrics.perceptual()[1]
    except metrics.Unavailable as reason:
        told["lpips_name"] = str(reason)
    return told


def table(told):
    """One line a step: means over the prompts."""
    lines = [f"{'step':>5}{'|d_i|':>10}{'at the end':>12}{'amplified':>11}{'LPIPS':>9}{'PSNR':>8}"]
    for row in zip(told["reuse_at"], told["local_rmse"], told["latent_rmse"], told["amplification"], told["lpips"],
                   told["psnr"]):
        i, local, end, gain, distance, psnr = row
        seen = "-" if isinstance(distance[0], str) else f"{mean(distance):.4f}"
        gain = "-" if gain is None else f"{gain:.2f}x"
        lines.append(f"{i:>5}{mean(local):>10.5f}{mean(end):>12.5f}{gain:>11}{seen:>9}{mean(psnr):>8.2f}")
    return "\n".join(lines)


def main(argv=None):
    args = session.checked(arguments().parse_args(argv), NUMBERS)
    texts, _ = prompts.read(args.model, args.prompts, 0, args.prompts_file)
    pipe = models.load(args.model)
    out = Path(args.out or f"runs/one-reuse-{args.model}-{args.steps}-{args.maps}-{args.keep}.json")
    figure = Path(args.figure or out.with_suffix(".png"))
    out.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    settings = session.settings(pipe, args, texts, "every")
    file, bar = session.File(out, settings), session.Bar()
    cells, steps = file.load(), list(range(1, args.steps, args.every))
    try:
        experiment(pipe, session.requests(args, texts, args.seed), steps, args, cells, lambda: file.save(cells), bar)
    finally:
        bar.close()
    told = result(pipe, settings, steps, cells)
    session.write(out, told)
    figure.write_bytes(views.png(views.one_reuse(told)))
    print(f"{table(told)}\n\nWritten to {out} and {figure}.")
    print(json.dumps({"command": "search one-reuse", "out": str(out), "figure": str(figure), **told}, allow_nan=False))
    return 0
