"""What the attention methods cost and save in one transformer block: milliseconds beside its self-attention.

Blocks have the shapes of stickers, SD 1.5 and SDXL with random weights, batch 2 as in a guided step, and random input.
Every part is timed alone, all parts of a block in a new order round after round; medians. "fused" and "materialised" are the
two ways to compute self-attention; tomesd is the token merging of its authors, given the same input. Merging pays when
match + merge + unmerge + attention of the merged tokens is less than the attention of all. "merged attention" is all of it
in one piece, and the last line its sum over all shapes against tomesd's; where a match is shared it counts half, as for two
blocks. Ranking pays over all later layers of the same transformer and every step that keeps it. FLOPs are counted from the
operations of the same parts. Where our kernels run, what they do is timed once more with torch's functions in their place.
"""

import argparse
import json
import random
import time
from functools import partial
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import gwpr, kernels, models
from ..compare import environment
from ..cost import Flops
from ..methods import atedm, attention_reuse, tome
from ..patch import replaced
from ..request import check_number
from ..trace import Context
from .flops import WORDS

SHAPES = {  # name: (side of the grid, channels, heads, width of the text)
    "stickers 256 px, fine": (32, 48, 1, 256), "stickers 256 px, middle": (16, 128, 4, 256),
    "stickers 512 px, fine": (64, 48, 1, 256), "stickers 512 px, middle": (32, 128, 4, 256), "SD 1.5 512 px, 16": (16, 1280, 8, 768),
    "SD 1.5 512 px, 32": (32, 640, 8, 768), "SD 1.5 512 px, 64": (64, 320, 8, 768),
    "SDXL 512 px, 16": (16, 1280, 20, 2048), "SDXL 1024 px, 32": (32, 1280, 20, 2048), "SDXL 1024 px, 64": (64, 640, 10, 2048),
}
RATIO = 0.5  # tokens merged
LEAST = 3.0  # seconds
SHARED = 2  # blocks that share a match, at least
DEPTHS = (2, 10)  # layers of a transformer: of stickers and of SDXL at 1024 and 2048 px
KERNELS = ("merge, unmerge", "rank", "reuse map")  # parts with kernels of ours
MERGED = ("merged attention", "merged attention, match shared", "tomesd merged attention")


def block_of(channels, heads, text, device, dtype):
    """A transformer block as diffusers' U-Nets have it, random weights from a fixed seed."""
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    made = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=text)
    return made.to(device, dtype).eval().requires_grad_(False)


def parts(side, channels, heads, text, device, dtype):
    """{name: function to time} of one block."""
    from tomesd.merge import bipartite_soft_matching_random2d

    block, size = block_of(channels, heads, text, device, dtype), (side, side)
    x = torch.randn(2, side * side, channels, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    match = tome.Match("block", size, tome.Knobs(ratio=RATIO), Context(1, grid=size), device)

    def our_match():
        match.since = None  # one is due
        match.start(0)
        match.make(x)

    our_match()
    flat, members, starts = match.rows
    merged = tome.merge(x, members, starts)
    drawn = device.type not in ("mps", "meta")  # where a generator can be had
    theirs = torch.Generator(device if drawn else "cpu").manual_seed(0)

    def their_match():
        return bipartite_soft_matching_random2d(x, side, side, 2, 2, match.merged, no_rand=not drawn, generator=theirs)

    their_merge, their_unmerge = their_match()

    def their_attention():
        merge, unmerge = their_match()
        return unmerge(block.attn1(merge(x)))

    q, k = attention_reuse.queries_and_keys(block.attn1, block.attn1.to_q(x), block.attn1.to_k(x))
    kept_map = attention_reuse.attention_map(block.attn1, x)
    knobs = atedm.Knobs()

    def rank():
        graph = gwpr.graph_of(*(each.flatten(0, 1)[None] for each in (q, k)), knobs.map, x.device.type)
        votes = gwpr.rank(graph, graph.rounds, knobs.tolerance, knobs.strips)
        return graph, gwpr.aggregate(votes.unflatten(1, (-1, heads)).flatten(0, 1), knobs.heads).mean(0, keepdim=True)

    graph, importance = rank()
    kept, pruned = atedm.chosen(importance, max(1, round(side * side * (1 - knobs.ratio))))
    slot = atedm.slots(pruned, kept, gwpr.partners(graph, pruned, kept))
    left = x[atedm.at(kept, x)]

    words = torch.randn(2, WORDS, text, generator=torch.Generator().manual_seed(2)).to(device, dtype)

    def materialised(module, *args, **kwargs):
        with sdpa_kernel(SDPBackend.MATH):
            return module(*args, **kwargs)

    made = {
        "attention, fused": lambda: block.attn1(x), "attention, materialised": partial(materialised, block.attn1, x),
        "attention of merged": lambda: block.attn1(merged), "attention of merged, materialised": partial(materialised, block.attn1, merged),
        "match": our_match,
        "merge, unmerge": lambda: tome.unmerge(tome.merge(x, members, starts), flat),
        "tomesd match": their_match, "tomesd merge, unmerge": lambda: their_unmerge(their_merge(x)),
        "merged attention": lambda: (our_match(), tome.unmerge(block.attn1(tome.merge(x, *match.rows[1:])), match.rows[0])),
        "merged attention, match shared": lambda: tome.unmerge(block.attn1(tome.merge(x, members, starts)), flat),
        "tomesd merged attention": their_attention,
        "rank": rank, "find copies": lambda: gwpr.partners(graph, pruned, kept),
        "leave out, copy": lambda: (x[atedm.at(kept, x)], atedm.filled("copy", x, kept, slot, left)),
        "layer of all": lambda: block(x, encoder_hidden_states=words), "layer of kept": lambda: block(left, encoder_hidden_states=words),
        "layer of all, materialised": partial(materialised, block, x, encoder_hidden_states=words),
        "layer of kept, materialised": partial(materialised, block, left, encoder_hidden_states=words),
        "make map": lambda: attention_reuse.attention_map(block.attn1, x),
        "reuse map": lambda: attention_reuse.apply_map(block.attn1, kept_map, x),
    }

    def by_torch(function):
        with replaced(kernels, here=lambda x: False):
            return function()

    if kernels.here(x):
        made |= {f"{name}, by torch": partial(by_torch, made[name]) for name in KERNELS}
    return made


def timed(functions, rounds, device, least=LEAST):
    """{name: median seconds}; all functions in each round, after one that warms up: so many rounds, and for so many
    seconds at least, because what takes a millisecond is told by few rounds badly. The order of a round is drawn: who
    follows a relative finds memory and caches as he needs them."""
    seconds, order, rng = {name: [] for name in functions}, list(functions), random.Random(0)
    for function in functions.values():
        function()
    wait(device)
    end, done = time.perf_counter() + least, 0
    while done < rounds or time.perf_counter() < end:
        rng.shuffle(order)
        for name in order:
            begun = time.perf_counter()
            functions[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - begun)
        done += 1
    return {name: median(each) for name, each in seconds.items()}


@torch.no_grad()
def flops(shape):
    """{name: FLOP} of the parts of one block, from their operations on the meta device; those without any left out."""
    found = {}
    for name, function in parts(*shape, torch.device("meta"), torch.float32).items():
        with Flops() as mode:
            function()
        found[name] = mode.total
    return {name: total for name, total in found.items() if total}


def wait(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()


def ratios(told):
    """What follows from the times of one block's parts: shares of the fused attention's time, and ours over tomesd's."""
    ours, theirs = (sum(told[name] for name in names) for names in (
        ("match", "merge, unmerge"), ("tomesd match", "tomesd merge, unmerge")))
    fused, made = told["attention, fused"], told["attention, materialised"]
    shared = told["merged attention, match shared"] + told["match"] / SHARED
    ranked, layers = told["rank"] + told["find copies"], (told["layer of all"], told["layer of kept"] + told["leave out, copy"])

    def pruned(count, kind=""):
        """A transformer of `count` layers whose later ones see the kept tokens, ranked as often as by default, over one of all."""
        whole, later = told[f"layer of all{kind}"], told[f"layer of kept{kind}"]
        return (whole + (count - 1) * later + told["leave out, copy"] + ranked / atedm.Knobs().every) / (count * whole)

    return {"match, merge, unmerge / tomesd's": ours / theirs,
            "merged attention / tomesd's": told["merged attention"] / told["tomesd merged attention"],
            "the same, match shared / tomesd's": shared / told["tomesd merged attention"],
            "merged / fused": (ours + told["attention of merged"]) / fused,
            "merged / materialised": (ours + told["attention of merged, materialised"]) / made,
            "merged, match shared / fused": shared / fused,
            "rank, find copies / fused": ranked / fused, "rank, find copies / materialised": ranked / made,
            "later layer, pruned / all": layers[1] / layers[0],
            **{f"{count} layers, pruned / all{kind}": pruned(count, kind) for count in DEPTHS for kind in ("", ", materialised")},
            "reuse map / fused": told["reuse map"] / fused,
            "reuse map / materialised": told["reuse map"] / made} | {
                f"{name} / by torch": told[name] / told[f"{name}, by torch"] for name in KERNELS if f"{name}, by torch" in told}


def saved(flops):
    """Shares of the FLOPs that are left: of merged over full attention, of a pruned over a full layer, of a reused map."""
    whole = flops["attention, fused"]
    return {"merged": (flops["attention of merged"] + flops["match"]) / whole, "later layer, pruned": flops["layer of kept"] / flops["layer of all"],
            "rank, find copies": (flops["rank"] + flops.get("find copies", 0)) / whole, "reuse map": flops["reuse map"] / whole}


def table(rows):
    """Three tables, a column per block: milliseconds, ratios of them, and shares of the FLOPs."""
    def lines(kind, show):
        names = list(rows[0][kind])
        width = max(map(len, names))
        cells = [[show(row[kind][name]) for row in rows] for name in names]
        return [f"{name:<{width}}  " + "  ".join(cell.rjust(len(row["shape"])) for cell, row in zip(line, rows))
                for name, line in zip(names, cells)]

    def head(kind):
        return " " * max(map(len, rows[0][kind])) + "  " + "  ".join(row["shape"] for row in rows)

    milliseconds = lines("milliseconds", "{:.2f}".format)
    return "\n".join([head("milliseconds"), *milliseconds, "", head("ratios"), *lines("ratios", "{:.2f}".format),
                      "", head("flops"), *lines("flops", "{:.2f}".format)])


@torch.no_grad()
def main(argv=None, shapes=SHAPES):
    parser = argparse.ArgumentParser(prog="python -m fastviz bench blocks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    check_number("rounds", "--rounds", args.rounds, 1, 1000, int)
    device, found = models.device(), []
    dtype = models.precision(device)
    for name, shape in shapes.items():
        told, counted = timed(parts(*shape, device, dtype), args.rounds, device), flops(shape)
        found.append({"shape": name, "tokens": shape[0] ** 2, "channels": shape[1], "heads": shape[2],
                      "milliseconds": {part: 1000 * seconds for part, seconds in told.items()}, "ratios": ratios(told),
                      "flop": counted, "flops": saved(counted)})
    machine, total = environment(), {name: sum(row["milliseconds"][name] for row in found) for name in (*MERGED, "match")}
    total[MERGED[1]] += total["match"] / SHARED
    slowest = max(found, key=lambda row: row["ratios"]["merged attention / tomesd's"])
    total = {f"{name} / tomesd's": total[name] / total[MERGED[-1]] for name in MERGED[:-1]}
    print("Milliseconds, medians of {} rounds. {}\n".format(args.rounds, ", ".join(f"{k} {v}" for k, v in machine.items())))
    print(table(found), end="\n\n")
    print("All shapes together: " + ", ".join(f"{name} {value:.2f}" for name, value in total.items()))
    print("Least ahead of tomesd's: {:.2f} of its time, {}\n".format(slowest["ratios"]["merged attention / tomesd's"], slowest["shape"]))
    print(json.dumps({"bench": "blocks", "environment": machine, "rounds": args.rounds, "blocks": found,
                      "total": total}, allow_nan=False))
    return 0
