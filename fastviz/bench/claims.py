"""Four claims of the papers, each tested on the same prompts and noise: a table, then one JSON line.

 - Reusing attention maps late distorts less than reusing as many early (Hunter et al., arXiv 2401.01008).
 - Self-attention ranks tokens better than cross-attention does (Wang et al., arXiv 2405.05252).
 - Early steps should prune less: the paper's schedule against even pruning of as many FLOPs (the same).
 - 60 % of the tokens merged still look right (Bolya and Hoffman, arXiv 2303.17604).
For the first three, right is closer to the full model's picture of the same noise, as PSNR; for the last, that as many of
the things that a prompt names are found in the picture, give or take ALLOWED. Pairs of one prompt are compared, and a
claim holds, or fails, when the 95 % bootstrap interval of their mean difference says so; else it is open.
"""

from dataclasses import replace
from statistics import mean

from .. import cost, metrics
from ..methods import atedm, attention_reuse, full, tome
from ..run import generate
from ..search import held_out
from ..search.sampler import EQUAL
from . import prompted

SEED = 70_000  # of the first prompt's noise
REUSED = 0.2  # share of the steps that reuse, early or late
RATIO, ALLOWED = 0.6, 0.05  # tokens merged; share of the named things that may be lost
HALVINGS = 12  # of the ratio's bracket: finer than one token


def even_pruning(pipe, request):
    """AT-EDM that prunes at all steps alike, by the ratio at which it takes as many FLOPs as the paper's schedule."""
    paper, low, high = atedm.Knobs(), 0.0, atedm.Knobs().ratio
    even = replace(paper, tau=0)
    wanted = cost.total(cost.flops(pipe, request, (paper,), request.steps))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        work = cost.total(cost.flops(pipe, request, (replace(even, ratio=middle),), request.steps))
        low, high = (middle, high) if work > wanted else (low, middle)
    return replace(even, ratio=high)


def arms(pipe, request):
    """{name: Knobs} of all runs of one prompt."""
    steps, k = request.steps, max(1, round(REUSED * request.steps))
    schedules = {"early": "1" + "0" * k + "1" * (steps - k - 1), "late": "1" * (steps - k) + "0" * k}
    return {"full": full.Knobs(), "early": attention_reuse.Knobs(schedule=schedules["early"]),
            "late": attention_reuse.Knobs(schedule=schedules["late"]), "self": atedm.Knobs(),
            "cross": atedm.Knobs(score="cross"), "even": even_pruning(pipe, request), "merged": tome.Knobs(ratio=RATIO)}


CLAIMS = {  # claim -> (what is compared, better arm, other arm)
    "Later reuse distorts less": ("psnr", "late", "early"),
    "Self-attention ranks better than cross-attention": ("psnr", "self", "cross"),
    "Early steps should prune less": ("psnr", "self", "even"),
    "60 % merging still looks right": ("match", "merged", "full"),
}


def scores(pipe, request, knobs):
    """One prompt: {arm: {"psnr", "match"}}."""
    pictures = {name: generate(pipe, request, (one,), request.steps).image for name, one in knobs.items()}
    told = {name: metrics.score(pictures["full"], picture, request.prompt, request.model) for name, picture in pictures.items()}
    return {name: {"psnr": min(EQUAL, one["psnr"]), "match": one["match"]} for name, one in told.items()}


def tested(told):
    """[{"claim", "figure", "better", "other", "gain", "interval", "verdict"}] from `scores` of every prompt. The figures
    are means; gain is the better arm's less the other's. A claim about what cannot be measured here has no figures."""
    found = []
    for claim, (figure, better, other) in CLAIMS.items():
        pairs = [(row[better][figure], row[other][figure]) for row in told]
        if any(isinstance(value, str) for pair in pairs for value in pair):
            found.append({"claim": claim, "figure": figure, "verdict": next(value for pair in pairs for value in pair if isinstance(value, str))})
            continue
        gains, floor = [a - b for a, b in pairs], -ALLOWED if figure == "match" else 0.0
        low, high = held_out.interval(gains)
        found.append({"claim": claim, "figure": figure, "better": mean(a for a, _ in pairs), "other": mean(b for _, b in pairs),
                      "gain": mean(gains), "interval": [low, high],
                      "verdict": "holds" if low > floor else "fails" if high < floor else "open"})
    return found


def table(found):
    lines = [("claim", "figure", "as claimed", "otherwise", "difference", "95 % interval", "verdict")]
    for row in found:
        figures = [f"{row[name]:.3f}" if name in row else "-" for name in ("better", "other", "gain")]
        span = "{:+.3f} to {:+.3f}".format(*row["interval"]) if "interval" in row else "-"
        lines.append((row["claim"], row["figure"], *figures, span, row["verdict"]))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main(argv=None):
    args, pipe, asked = prompted.asked("claims", __doc__, argv, SEED, 16, 50, least=2)
    knobs = arms(pipe, asked[0])
    found = tested([scores(pipe, request, knobs) for request in prompted.watched(asked)])
    print(f"{len(asked)} prompts, {args.steps} steps; even pruning takes {knobs['even'].ratio:.0%} of the tokens for as many FLOPs.\n")
    print(table(found))
    prompted.answer("claims", args, pipe, claims=found)
    return 0
