"""Our methods beside their peers on this machine: same latents, one process, interleaved. A table, then one JSON line.

Seconds are those of one picture, from the text encoder to the finished picture: of our runs as the Row shows them, of
bare diffusers calls by the wall clock. Every round draws another prompt and seed for all lanes; LPIPS is the mean over
the rounds, against the full model's picture of the same round. FLOPs: ours as the Row shows them, the peers' counted
from one executed run. What loads or happens once per process (model, metrics, warm-up) is not in the times.
"""

import argparse
import copy
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import cost, fitted, metrics, models
from ..compare import compare, environment
from ..methods import few_step, steps_of
from ..request import Request, parse_stack
from ..run import generate, noise
from . import page

PROMPTS = ("a cat and a pizza on the beach", "a big robot in the snow", "an owl to the left of a castle at night",
           "a rocket above a tree at sunset")
OURS = ("full", "tome(ratio=0.5)", "attention_reuse(share=0.5)", "attention_reuse(share=0.5,keep=output)")
FULL, TOME, _, OUTPUT = OURS
BARE, TOMESD, BROADCAST, HALF = "bare diffusers", "tomesd 0.5", "pyramid broadcast 2", "bare, in bfloat16"
PAIRS = ((FULL, BARE), (TOME, TOMESD), (OUTPUT, BROADCAST))  # ours, the peer that does the same
DUELS, SHORT = 24, 20  # rounds of each pair, and their steps: single rounds differ by 10 % and more


@dataclass
class Lane:
    """One way to make the picture. run(request) -> (seconds, PIL picture); flops: of one picture."""
    name: str
    run: callable
    flops: int | None = None
    seconds: list = field(default_factory=list)
    lpips: list = field(default_factory=list)


def ours(pipe, request, text):
    """A lane of our own: `text` is a stack as the command line takes it."""
    stack = parse_stack(text)

    def run(request):
        done = generate(pipe, request, stack, steps_of(stack, request.steps))
        return done.seconds, done.image

    return Lane(text, run, cost.total(cost.flops(pipe, request, stack, steps_of(stack, request.steps))))


def bare(pipe, request, name, before=lambda request: None):
    """A lane that calls the diffusers pipeline as anybody would, after `before(request)`. One run counts its FLOPs."""
    def run(request):
        before(request)
        latents, start = noise(pipe, request), time.perf_counter()
        picture = pipe(request.prompt, height=request.size, width=request.size, num_inference_steps=request.steps,
                       guidance_scale=request.guidance, latents=latents).images[0]
        return time.perf_counter() - start, picture

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels count as nothing
        run(request)
    return Lane(name, run, counter.get_total_flops())


def sibling(pipe):
    """A pipeline of the same parts with a U-Net of its own, for peers that leave traces in what they touch."""
    made = type(pipe)(**{**pipe.components, "unet": copy.deepcopy(pipe.unet)}, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def tomesd_lane(pipe, request):
    """Token merging as its authors' own package does it (tomesd), its defaults."""
    import tomesd

    other = sibling(pipe)
    tomesd.apply_patch(other, ratio=0.5)

    def reseed(request):  # its generator goes on from run to run, and no picture could be had twice
        other.unet._tome_info["args"]["generator"] = torch.Generator(pipe.device).manual_seed(request.seed)

    return bare(other, request, TOMESD, reseed)


def broadcast_lane(pipe, request):
    """diffusers' pyramid attention broadcast: every attention output serves two steps, first to last."""
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
    from diffusers.hooks import HookRegistry

    other = sibling(pipe)
    apply_pyramid_attention_broadcast(other.unet, PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000), cross_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500))  # a timestep within the range, so all of them are
    registry = HookRegistry.check_if_exists_or_initialize(other.unet)
    return bare(other, request, BROADCAST, before=lambda request: registry.reset_stateful_hooks())


def half_lane(pipe, request):
    """The full model in bfloat16, on a processor that knows it: our own rows stay in float32 there."""
    lane = bare(pipe, request, HALF)

    def run(request, exact=lane.run):
        with torch.autocast("cpu", torch.bfloat16):
            return exact(request)

    lane.run = run
    return lane


def equal_latency(pipe, request, lanes):
    """{lane's name: few_step stack that takes about as long}, from one run of each accelerated lane."""
    full = generate(pipe, request, parse_stack(FULL), request.steps)
    per_step, fixed = median(full.steps), full.text + full.decode
    plans = {}
    for lane in (lane for lane in lanes if lane.name not in (FULL, BARE)):
        seconds, _ = lane.run(request)
        steps = few_step.plan(few_step.Knobs(match=lane.name), request.steps, seconds, per_step, fixed)
        plans[lane.name] = f"few_step(steps={steps})"
    return plans


def rounds(lanes, requests):
    """Runs every lane on the first request, then every lane on the next, and keeps times and LPIPS.

    Returns the name of the LPIPS, or the reason why there is none."""
    for request in requests:
        pictures = {}
        for lane in lanes:
            seconds, pictures[lane.name] = lane.run(request)
            lane.seconds.append(seconds)
        try:
            for lane in lanes:
                value, _, name = metrics.lpips_score(pictures[FULL], pictures[lane.name])
                lane.lpips.append(value)
        except metrics.Unavailable as reason:
            name = str(reason)
    return name


def overhead(request):
    """Wall time of compare() in quick mode over the sum of the pipeline times that its Rows show."""
    quick = replace(request, repeats=1, methods="full,few_step,attention_reuse,tome")
    start, inside = time.perf_counter(), 0.0
    for row in compare(quick):
        if row.error:
            raise RuntimeError(f"{row.title}: {row.error}")
        inside += row.run.seconds
    return (time.perf_counter() - start) / inside


def row_of(lane, full, plans):
    """What the table and the JSON say of a lane, plain values; times in s."""
    seconds = median(lane.seconds)
    return dict(name=lane.name, seconds=seconds, spread=[min(lane.seconds), max(lane.seconds)],
                speedup=median(full.seconds) / seconds, flops=lane.flops, flops_share=lane.flops / full.flops,
                lpips=mean(lane.lpips) if lane.lpips else None, equal_latency=plans.get(lane.name))


def duel(lane, other, requests):
    """One lane's time over another's: the median over the requests, which both run one right after the other, in turn
    first and second, because whoever follows finds the machine warmer or busier."""
    found = []
    for i, request in enumerate(requests):
        seconds = {each.name: each.run(request)[0] for each in ((lane, other) if i % 2 else (other, lane))}
        found.append(seconds[lane.name] / seconds[other.name])
    return median(found)


def measure(request, repeats):
    """All of it but the page: {"lpips_name", "rows", "ratios", "overhead"}."""
    pipe = models.load(request.model)
    full, tome, maps, outputs = (ours(pipe, request, text) for text in OURS)
    lanes = [full, bare(pipe, request, BARE), tome, tomesd_lane(pipe, request), maps, outputs,
             broadcast_lane(pipe, request)]
    if pipe.device.type == "cpu" and models.knows_bfloat16():
        lanes.append(half_lane(pipe, request))
    for lane in lanes:
        lane.run(replace(request, steps=min(2, request.steps)))  # what only a first run costs
    plans = equal_latency(pipe, request, lanes)
    lanes += [ours(pipe, request, text) for text in dict.fromkeys(plans.values())]
    lpips_name = rounds(lanes, [replace(request, prompt=PROMPTS[i % len(PROMPTS)], seed=request.seed + i)
                                for i in range(repeats)])
    named, steps = {lane.name: lane for lane in lanes}, min(SHORT, request.steps)
    asked = [replace(request, seed=request.seed + i, steps=steps) for i in range(DUELS)]
    return {"lpips_name": lpips_name, "rows": [row_of(lane, named[FULL], plans) for lane in lanes],
            "ratios": {f"{a} / {b}": duel(named[a], named[b], asked) for a, b in PAIRS}, "overhead": overhead(request)}


def table(rows):
    """Aligned text, one line per lane, with the few-step run that takes as long at its end."""
    quick = {row["name"]: row for row in rows}
    lines = [("", "seconds", "spread", "speed-up", "GFLOP", "share", "LPIPS", "few steps in the same time")]
    for row in rows:
        beside, spread = quick.get(row["equal_latency"]), "{:.2f}-{:.2f}".format(*row["spread"])
        lines.append((row["name"], f"{row['seconds']:.2f}", spread, f"{row['speedup']:.2f}x",
                      f"{row['flops'] / 1e9:.1f}", f"{row['flops_share']:.0%}", score(row),
                      f"{beside['name']}: {beside['seconds']:.2f} s, LPIPS {score(beside)}" if beside else ""))
    width, *widths = [max(map(len, column)) for column in zip(*lines)]
    cells = ([first.ljust(width), *map(str.rjust, middle, widths), last] for first, *middle, last in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def score(row):
    return "-" if row["lpips"] is None else f"{row['lpips']:.4f}"


def kept(path, found):
    """Adds a run to a file of runs, the latest first; those of other weights leave it."""
    before = json.loads(path.read_text()) if path.exists() else []
    runs = [found] + [run for run in before if run.get("weights") == found["weights"]]
    path.write_text(json.dumps(runs, indent=1, allow_nan=False) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m fastviz bench local", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stickers", choices=models.MODELS)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-page", action="store_true", help="do not start the page to time it")
    parser.add_argument("--out", help="file that the JSON is added to, beside other runs of the same weights")
    args = parser.parse_args(argv)
    request = Request(PROMPTS[0], seed=args.seed, steps=args.steps, size=args.size, model=args.model,
                      repeats=args.repeats, methods="full")
    asked = {name: getattr(request, name) for name in ("model", "steps", "size", "guidance", "repeats")}
    weights = fitted.weights(models.MODELS[request.model].folder)
    found = {"bench": "local", "weights": weights, "environment": environment(models.load(request.model)), "request": asked}
    print("  ".join(f"{name}: {value}" for name, value in {**found["environment"], **asked}.items()))
    found.update(measure(request, request.repeats))
    print(f"\nDistance: {found['lpips_name']}. Seconds: medians of {request.repeats} rounds.\n")
    print(table(found["rows"]), end="\n\n")
    for name, value in found["ratios"].items():
        print(f"{name}: {value:.3f}")
    print(f"compare(), wall time over pipeline time: {found['overhead']:.3f}")
    if not args.no_page:
        found["page"] = page.times(request)
        print("page: served after {served:.1f} s; a picture {first_picture:.1f} s after Run when that is pressed at once, "
              "{next_picture:.1f} s when the model is loaded".format(**found["page"]))
    if args.out:
        kept(Path(args.out), found)
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
