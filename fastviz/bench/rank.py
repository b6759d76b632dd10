"""How settled AT-EDM's ranks are when their rounds of votes end, and what that changes in the tokens kept: a table, then one JSON line.

G-WPR (Wang et al., arXiv 2405.05252) is a limit: tokens vote for tokens until nothing changes. Each way to count ends
earlier. On the self-attention of pictures that AT-EDM draws: how far its ranks are from the limit (sum of the absolute
differences of ranks that sum to 1, in the mean over heads), and which share of the tokens that the limit keeps it keeps too. Of
the limit itself: how far another round would move it, in the worst head.
A round counts every query's votes in every head, which takes about half an attention; a sample counts some of them.
"""

from statistics import mean

import torch

from .. import gwpr
from ..methods import atedm
from ..patch import replaced
from ..run import generate
from . import prompted

SEED = 80_000  # of the first prompt's noise
LIMIT = dict(rounds=400, tolerance=1e-7, strips=32)
SOME, HALF = 4, 2  # every so manyth query, and head, where a sample is asked
ALL = (1, 1)
ARMS = {  # name -> ((1 or SOME queries, 1 or HALF heads), how it counts)
    **{f"plain, {rounds} round{'s' * (rounds > 1)}": (ALL, dict(rounds=rounds, tolerance=0.0)) for rounds in (1, 2, 4, 8)},
    **{f"plain, change below {tolerance:g}, 50 rounds at most": (ALL, dict(rounds=50, tolerance=tolerance)) for tolerance in (1e-2, 1e-3, 1e-4)},
    **{f"by 32 strips, {rounds} round{'s' * (rounds > 1)}": (ALL, dict(rounds=rounds, tolerance=0.0, strips=32)) for rounds in (1, 2, 4)},
    f"plain, 1 round of every {SOME}th query": ((SOME, 1), dict(rounds=1, tolerance=0.0)),
    f"by 32 strips, 1 round of every {SOME}th query": ((SOME, 1), dict(rounds=1, tolerance=0.0, strips=32)),
    f"by 32 strips, 1 round of every {HALF}nd head": ((1, HALF), dict(rounds=1, tolerance=0.0, strips=32)),
}
SETTLED = "the limit, one round more"
PAPER, OURS = "plain, change below 0.0001, 50 rounds at most", "by 32 strips, 1 round"


class Counted(gwpr.Held):
    """The map in memory, made once for all ways to count; `rounds` of votes are counted."""

    def prepare(self, q, k):
        super().prepare(q, k)
        self.rounds = 0

    def votes(self, s, strips=1):
        self.rounds += 1
        return super().votes(s, strips)


def graphs(pipe, request):
    """[(q, k)] of every self-attention that chose tokens while a picture was drawn: (1, heads of both halves, N, d)."""
    found, made = [], gwpr.graph_of

    def noting(q, k, *way):
        found.append((q, k))
        return made(q, k, *way)

    with replaced(gwpr, graph_of=noting):
        generate(pipe, request, (atedm.Knobs(),), request.steps)
    return found


def importance(scores):
    """The ranks of the heads of both halves as one (1, N), as the method's default makes it."""
    halves = scores.unflatten(1, (2, -1)).flatten(0, 1)
    return gwpr.aggregate(halves, atedm.Knobs().heads).mean(0, keepdim=True)


def of_heads(x, nth):
    """x (1, heads of both halves, ...) of every nth head of each half."""
    return x.unflatten(1, (2, -1))[:, :, ::nth].flatten(1, 2)


def measured(q, k):
    """One attention: {arm: {"rounds", "distance", "agreement"}}, as told above."""
    graphs = {(nth, head): Counted(of_heads(q, head)[:, :, ::nth], of_heads(k, head)) for nth, head in (ALL, (SOME, 1), (1, HALF))}
    keep, limit = max(1, round(q.shape[2] * (1 - atedm.Knobs().ratio))), gwpr.rank(graphs[ALL], **LIMIT)
    wanted, found = set(atedm.chosen(importance(limit), keep)[0][0].tolist()), {}
    for name, (some, way) in ARMS.items():
        graphs[some].rounds = 0
        scores = gwpr.rank(graphs[some], **way)
        kept = set(atedm.chosen(importance(scores), keep)[0][0].tolist())
        found[name] = {"rounds": graphs[some].rounds / max(some), "distance": (scores - of_heads(limit, some[1])).abs().sum(-1).mean().item(),
                       "agreement": len(kept & wanted) / keep}
    after = gwpr.normalised(graphs[ALL].votes(limit).sum(2))
    return found | {SETTLED: {"rounds": LIMIT["rounds"], "distance": (after - limit).abs().sum(-1).max().item(), "agreement": 1.0}}


def summary(told):
    """{tokens: {arm: means over all attentions with so many tokens; of agreement the least as well}} of [(tokens, measured)]."""
    return {tokens: {name: {"rounds": mean(each[name]["rounds"] for each in some), "distance": mean(each[name]["distance"] for each in some),
                            "agreement": mean(each[name]["agreement"] for each in some),
                            "least": min(each[name]["agreement"] for each in some)} for name in (*ARMS, SETTLED)}
            for tokens in sorted({tokens for tokens, _ in told}, reverse=True)
            for some in [[each for count, each in told if count == tokens]]}


def table(found):
    lines = []
    for tokens, arms in found.items():
        lines += ["", f"{tokens} tokens".ljust(50) + "rounds  distance  same tokens kept  least"]
        lines += [name.ljust(50) + "{rounds:6.2f}  {distance:8.4f}  {agreement:16.1%}  {least:5.1%}".format(**one)
                  for name, one in arms.items()]
    return "\n".join(lines[1:])


@torch.inference_mode()
def main(argv=None):
    args, pipe, requests = prompted.asked("rank", __doc__, argv, SEED, 8, 20)
    told = [(q.shape[2], measured(q, k)) for request in prompted.watched(requests) for q, k in graphs(pipe, request)]
    found = summary(told)
    print(f"{len(told)} attentions of {len(requests)} pictures, {args.steps} steps; {1 - atedm.Knobs().ratio:.0%} of the tokens are kept.\n")
    print(table(found))
    print(f"\nThe paper: {PAPER}. Ours, where the map is not held: {OURS}.")
    prompted.answer("rank", args, pipe, attentions=len(told), tokens=found)
    return 0
