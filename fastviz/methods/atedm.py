"""Tokens that attention hardly looks at are left out of a transformer's later layers and filled in after the last.

Changed: the forward functions of the U-Net's transformers that have more than one layer. Wang et al., Attention-Driven
Training-Free Efficiency Enhancement of Diffusion Models, arXiv 2405.05252: the rank (G-WPR, in gwpr.py), the copy by
similarity and the schedule (DSAP). Beyond the paper: a rank without an attention map in memory, choices that serve
several steps, and a copy of what a token gained instead of what it is. torch is imported where it is used: the page
builds its controls from Knobs and must not wait for it.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..knobs import choice, number, switch
from ..patch import replaced, transformer_blocks
from ..ranges import own
from ..trace import Context
from .attention_reuse import inputs, queries_and_keys

KEY = "atedm"
TITLE = "Token pruning (AT-EDM)"
SAYS = "Leaves out the tokens that attention hardly looks at, and copies the most similar kept one in their place."
PAPER = ("Wang et al., Attention-Driven Training-Free Efficiency Enhancement of Diffusion Models",
         "https://arxiv.org/abs/2405.05252")
ROLE = "patch"
NEEDS = "transformer of two layers or more"

OF = 50  # steps that tau is told for
ROUNDS = 50  # of votes, the paper's; the small map of a cross-attention allows them


@dataclass(frozen=True)
class Knobs:
    """ratio = 0 is the full model."""
    ratio: float = number(0.63, 0.0, 0.95, "Share of the tokens left out after a transformer's first layer. More is "
                          "faster and coarser.")
    tau: int = number(15, 0, OF, "Of 50 steps, the first ones that prune in fewer places; other numbers of steps in "
                      "proportion. More is slower and keeps more of the full model's layout.")
    recover: str = choice("copy", {
        "copy": "Value of the most similar kept token (the paper)", "update": "Own, plus what that token gained since",
        "nearest": "Value of the nearest kept token", "previous": "Own value of the step before",
        "own": "Own, as when it was left out", "zero": "Nothing"},
        "What a token that was left out gets before the next convolution.")
    score: str = choice("self", {"self": "Self-attention", "cross": "Cross-attention"},
                        "Whose votes rank the tokens. Cross-attention costs little and prunes too much background.")
    finest: bool = switch(True, "Prunes at the highest resolution too. Off is the paper's variant for fused attention, "
                          "which never asks for the largest maps.")
    early: str = choice("outer", {"outer": "First of each down stage, last of each up stage (the paper)", "all": "All"},
                        "Which transformers stay whole before tau.", tinker=True)
    points: str = choice("first", {"first": "Once, after the first layer", "each": "After each layer but the last"},
                         "When tokens are left out. Each: by equal factors, so that the share is reached at the last.",
                         tinker=True)
    heads: str = choice("rms", {"rms": "Root mean square", "mean": "Mean", "filtered": "Root mean square, filtered"},
                        "How the heads' ranks become one. Filtered ignores heads whose ranks vary hardly or wildly.",
                        tinker=True)
    guidance: str = choice("shared", {"shared": "Both, by their mean", "prompt": "The half with the prompt, for both",
                                      "apart": "Each half for itself"},
                           "Which half of the guided pair chooses, which the paper does not tell: both is our choice. The half with the "
                           "prompt alone is half the work.",
                           tinker=True)
    every: int = number(5, 1, 100, "Chooses anew every so many steps; 1 is the paper's. More saves the time that "
                        "choosing takes, and the choice ages.", tinker=True)
    map: str = choice("auto", {"auto": "By size and device", "held": "Held in memory", "tiles": "Made in tiles",
                               "fused": "Never made, by a fused kernel"},
                      "How votes are counted. As many rounds give the same rank in all; fused makes tiles where no kernel fits.",
                      tinker=True)
    rounds: int = number(0, 0, 50, "Rounds of votes, at most. More is closer to the limit; 50 is the paper's, 0 is 4 "
                         "where the map is held (50 of cross-attention) and 1 where a round costs about an attention.", tinker=True)
    strips: int = number(32, 1, 64, "Runs of tokens whose weight each round of self-attention settles exactly. More "
                         "needs fewer rounds; 1 is the paper's plain round.", tinker=True)
    queries: int = number(1, 1, 16, "Counts only the votes of every n-th token of self-attention, in one round. More is faster, unless "
                          "values are copied: what is most alike is asked of every token.", tinker=True)
    head: int = number(1, 1, 16, "Asks only every n-th head of self-attention, for ranks and for copies. More is faster and rougher.",
                       tinker=True)
    tolerance: float = number(1e-4, 0.0, 0.1, "Change of the ranks below which no further round is made. More is "
                              "faster and less settled.", step=0.0001, tinker=True)


NEUTRAL = Knobs(ratio=0.0)


# When, where and how many: DSAP and the pruning points

def early_steps(knobs, steps):
    """How many of the first steps leave some transformers whole: tau, in proportion."""
    return round(knobs.tau * steps / OF)


def due(knobs, steps, step, spared):
    """Whether a transformer chooses at this step. spared: whether it stays whole in early steps."""
    start = early_steps(knobs, steps) if spared else 0
    return step >= start and (step - start) % knobs.every == 0


def kinds(knobs, steps):
    """One label per step, equal labels for equal work. The first has no value of the step before to fill in."""
    labels = [(step < early_steps(knobs, steps), due(knobs, steps, step, False), due(knobs, steps, step, True))
              for step in range(steps)]
    return tuple(["first", *labels[1:]] if knobs.recover == "previous" else labels)


def left(knobs, tokens, layers):
    """{layer: tokens that go on after it} of a transformer, for the layers after which some are left out."""
    points = layers - 1 if knobs.points == "each" else min(1, layers - 1)
    counts = [tokens, *(max(1, round(tokens * (1 - knobs.ratio) ** (i / points))) for i in range(1, points + 1))]
    return {i: after for i, (before, after) in enumerate(zip(counts, counts[1:])) if after < before}


def outer(names):
    """The transformers that stay whole early: the first of each down stage and the last of each up stage."""
    stages = [list(stage) for _, stage in groupby(names, key=lambda name: name.partition(".attentions.")[0])]
    ends = {"down_blocks": 0, "up_blocks": -1}
    return {stage[ends[kind]] for stage in stages if (kind := stage[0].partition(".")[0]) in ends}


# Which tokens, and what they get

def chosen(importance, count):
    """Positions of the `count` most important tokens, and of the others, in order: (B, count) and (B, N - count)."""
    order = importance.argsort(stable=True, dim=-1, descending=True)
    return order[:, :count].sort(-1).values, order[:, count:].sort(-1).values


def nearest(pruned, kept, width):
    """For each pruned position of a grid so wide the place of the nearest kept one: (B, P) and (B, K) -> (B, P)."""
    (y, x), (v, u) = ((at // width, at % width) for at in (pruned[:, :, None], kept[:, None]))
    return ((y - v).square() + (x - u).square()).argmin(-1)


def slots(pruned, kept, partner):
    """For each token the place among the kept of the one that stands for it: (B, P), (B, K), (B, P) -> (B, N)."""
    import torch

    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    return torch.cat([partner, own], 1).gather(1, torch.cat([pruned, kept], 1).argsort(-1))


def at(index, x):
    """Index of the tokens `index` (B or 1, K) in x (B, N, C)."""
    import torch

    return torch.arange(len(x), device=x.device)[:, None], index


def put(full, kept, y):
    """`full` (B, N, C) with y (B, K, C) in its tokens kept (B or 1, K)."""
    full[at(kept, full)] = y
    return full


def filled(how, x, kept, slot, y):
    """y (B, K, C) at full number (B, N, C). x (B, N, C): the tokens when some were left out; slot: see slots."""
    if how == "own":
        return put(x.clone(), kept, y)
    if how == "update":
        gained = y - x[at(kept, x)]
        return x + gained[at(slot, x)]
    return put(x.new_zeros(x.shape), kept, y) if how == "zero" else y[at(slot, y)]


# The transformer

class Pruning:
    """One transformer's choice of tokens.

    Modifications:
     - forward of its first layer, of those after which tokens are left out and of its last: leave out, fill in
     - in layers after which tokens are left out, forward of norm1 and attn1's to_q and to_k, or of norm2 and attn2's:
       what they return is noted
    """

    def __init__(self, name, layers, size, spared, knobs, context):
        """layers: its named blocks, in order; size: its grid (h, w); spared: whether it stays whole in early steps."""
        self.name, self.size, self.spared, self.knobs, self.context = name, size, spared, knobs, context
        self.names, self.blocks = zip(*layers)
        self.left = left(knobs, size[0] * size[1], len(layers))
        self.after = self.names[min(self.left) + 1:]  # the layers that see fewer tokens
        self.noted, self.choices, self.since, self.previous = {}, {}, None, None

    def forwards(self):
        """[(module, its new forward)]"""
        parts = [("attn1", "norm1")] + [("attn2", "norm2")] * (self.knobs.score == "cross")
        for i, block in enumerate(self.blocks):
            if i in (0, len(self.blocks) - 1) or i in self.left:
                yield block, self.layer(i, block.forward)
            for part, norm in parts if i in self.left else ():
                attn = getattr(block, part)
                for key, module in ((part, getattr(block, norm)), ((part, "q"), attn.to_q), ((part, "k"), attn.to_k)):
                    yield module, self.note(key, module.forward)

    def note(self, key, forward):
        def noted(x, *args, **kwargs):
            y = forward(x, *args, **kwargs)
            if self.choosing:
                self.noted[key] = y
            return y
        return noted

    def layer(self, i, forward):
        def pruned(hidden_states, attention_mask=None, encoder_hidden_states=None, *args, **kwargs):
            if i == 0:
                self.begin(hidden_states)
            x = forward(hidden_states, attention_mask, encoder_hidden_states, *args, **kwargs)
            if i in self.left and self.choosing:
                self.choices[i] = self.choose(i, encoder_hidden_states)
            if i in self.choices:
                x = self.prune(x, *self.choices[i])
            return self.recover(x) if i == len(self.blocks) - 1 else x
        return pruned

    def start(self, step):
        """Whether tokens are chosen at this step, and which layers see fewer of them."""
        self.choosing = self.chooses(step)
        if self.choosing:
            self.since, self.choices = step, {}
        self.context.pruned.difference_update(self.after)
        if self.choosing or self.choices:
            self.context.pruned.update(self.after)
            self.context.acted[KEY].add((self.name, step))
        return self.choosing, bool(self.choices), self.previous is None

    def begin(self, x):
        self.kept, self.points = None, []
        if x.shape[1] != self.size[0] * self.size[1]:
            raise ValueError(f"{self.name} has {x.shape[1]} tokens where {self.size[0]} x {self.size[1]} were expected")

    def chooses(self, step):
        """A choice is kept on steps that reuse an attention, because what is stored belongs to these tokens; the next
        step catches up."""
        if any((step, part) in self.context.frozen for part in ("self", "cross")):
            return False
        since = 0 if self.since is None else self.since + 1
        return any(due(self.knobs, self.context.steps, missed, self.spared) for missed in range(since, step + 1))

    def choose(self, i, text):
        """(kept, slot) of layer i's tokens, from what its attentions read: (b, K) and (b, N), or None where no token
        stands for another. b is 1 where both halves share a choice."""
        how = "copy" if self.knobs.recover == "previous" and self.previous is None else self.knobs.recover
        cross, copies = self.knobs.score == "cross", how in ("copy", "update")
        nth = 1 if cross else self.knobs.queries
        own = self.graph(i, "attn1") if copies or not cross and nth == 1 else None
        voting = self.graph(i, "attn2", text) if cross else own if nth == 1 else self.graph(i, "attn1", nth=nth)
        importance = self.rank(voting, self.blocks[i].attn1.heads)
        self.noted.clear()
        kept, pruned = chosen(importance, self.left[i])
        if self.kept is None:
            self.importance = importance
        return kept, self.stand_ins(how, own, pruned, kept)

    def graph(self, i, part, text=None, nth=1):
        """Layer i's self- or cross-attention, "attn1" or "attn2", with heads (b, H or 2 H), of the heads that are asked; of every
        nth query."""
        from .. import gwpr

        attn, x = getattr(self.blocks[i], part), self.noted[part]
        made = [self.projected((part, name), project, y) for name, project, y in
                zip("qk", (attn.to_q, attn.to_k), inputs(attn, x, text))]
        q, k = queries_and_keys(attn, *made)
        if part == "attn1":
            q, k = q[:, ::self.knobs.head], k[:, ::self.knobs.head]
        if self.knobs.guidance == "shared":  # the halves as further heads
            q, k = q.flatten(0, 1)[None], k.flatten(0, 1)[None]
        if self.knobs.guidance == "prompt":
            q, k = q[-1:], k[-1:]
        return gwpr.graph_of(q[:, :, ::nth], k, self.knobs.map if text is None else "held", self.context.device)

    def projected(self, key, project, x):
        """What the attention itself made of x, unless it made nothing or was given merged tokens."""
        y = self.noted.get(key)
        return project(x) if y is None or y.shape[:2] != x.shape[:2] else y

    def rank(self, graph, heads):
        """Importance (b, N) of a layer's tokens: the heads of each half become one, then the halves."""
        from .. import gwpr

        knobs, cross = self.knobs, self.knobs.score == "cross"
        heads = heads if cross else len(range(0, heads, knobs.head))
        rounds, strips = knobs.rounds or (ROUNDS if cross else graph.rounds), 1 if cross else knobs.strips
        if knobs.queries > 1 and not cross:
            rounds = 1  # a second would ask for the weight of tokens that were not asked
        halves = gwpr.rank(graph, rounds, knobs.tolerance, strips, back=cross).unflatten(1, (-1, heads))
        return gwpr.aggregate(halves.flatten(0, 1), knobs.heads).unflatten(0, halves.shape[:2]).mean(1)

    def stand_ins(self, how, graph, pruned, kept):
        """See slots; None where values do not come from other tokens."""
        from .. import gwpr

        if how in ("copy", "update"):
            return slots(pruned, kept, gwpr.partners(graph, pruned, kept))
        if how == "nearest":
            places = [one if self.kept is None else self.kept.gather(1, one) for one in (pruned, kept)]
            return slots(pruned, kept, nearest(*places, self.size[1]))
        return None

    def prune(self, x, kept, slot):
        """The kept ones of x (B, N, C); `self.kept` tells where in the grid they are."""
        shape_only = x.new_empty(()).expand_as(x)  # no memory: few ways to fill in go on from what was left out
        self.points.append((x if self.knobs.recover in ("own", "update") else shape_only, kept, slot))
        self.kept = kept if self.kept is None else self.kept.gather(1, kept)
        return x[at(kept, x)]

    def recover(self, y):
        """What the last layer gave, (B, K, C), at full number, (B, N, C)."""
        how = self.knobs.recover
        if how == "previous" and self.points and self.previous is not None:
            y = put(self.previous.clone(), self.kept, y)
        else:
            for x, kept, slot in reversed(self.points):
                y = filled(how, x, kept, slot, y)
        self.points = []
        if how == "previous":
            self.previous = y
        return y


class RecordedPruning(Pruning):
    """Adds, for a traced run, at every step and transformer: which tokens of the grid (h, w) were kept to the end, the
    place of the one that stands for each (its own if it was kept, -1 where none does), tokens in and out and, where
    some were left out, the importance that decided, 1 on average; of the conditional half of the batch."""

    def start(self, step):
        for name in self.names[1:]:  # the first one sees all tokens, or those that another method merged
            self.context.seen.pop(name, None)
        return super().start(step)

    def prune(self, x, kept, slot):
        import torch

        x, kept = super().prune(x, kept, slot), self.kept[-1]
        seen = kept.new_full((self.size[0] * self.size[1],), -1)
        seen[kept] = torch.arange(len(kept), device=kept.device)
        self.context.seen.update(dict.fromkeys(self.names[1:], seen))
        return x

    def recover(self, y):
        add, step, tokens = self.context.trace.add, self.context.step, self.size[0] * self.size[1]
        kept = np.arange(tokens) if self.kept is None else self.kept[-1].cpu().numpy()
        add("atedm.kept", step, self.name, np.isin(np.arange(tokens), kept).reshape(self.size))
        add("atedm.source", step, self.name, self.sources(kept).astype(np.int32).reshape(self.size))
        add("atedm.tokens", step, self.name, np.array([tokens, len(kept)], np.int32))
        if self.points:
            add("atedm.importance", step, self.name, (self.importance[-1] * tokens).view(self.size).half())
        return super().recover(y)

    def sources(self, kept):
        """Place in the grid of the token that stands for each, from those that were kept to the end, point by point."""
        alone = self.knobs.recover == "previous" and self.previous is not None
        for x, stayed, slot in reversed(self.points):
            if slot is None or alone:
                full = np.full(x.shape[1], -1)
                full[stayed[-1].cpu().numpy()] = kept
                kept = full
            else:
                kept = kept[slot[-1].cpu().numpy()]
        return kept


def active(unet, knobs, context, kind):
    """One `kind` of Pruning for each transformer that has a layer to save and tokens to leave out."""
    blocks = transformer_blocks(unet, context.grid)
    found = {name: [*layers] for name, layers in groupby(blocks, key=lambda one: one[0].rpartition(".transformer_")[0])}
    whole, finest = outer(found), max((h * w for _, _, (h, w) in blocks), default=0)
    for name, layers in found.items():
        size, parts = layers[0][2], [block for _, block, _ in layers]
        tokens, spared = size[0] * size[1], knobs.early == "all" or name in whole
        fits = not any(block.attn1.is_cross_attention or knobs.score == "cross" and not block.attn2 for block in parts)
        if fits and left(knobs, tokens, len(layers)) and (knobs.finest or tokens < finest):
            yield kind(name, [layer[:2] for layer in layers], size, spared, knobs, context)


def touched(unet, grid, knobs):
    """Names of the modules that it can save work in."""
    found = active(unet, knobs, Context(steps=OF, grid=grid), Pruning)
    return [name for pruning in found for name in pruning.after]


@contextmanager
def attach(pipe, knobs, context):
    """Modifications, in every active transformer; none where no layer follows the first:
     - forward of its layers and of what their attentions read and project, see Pruning
     - context.pruned: its later layers, at steps at which they see fewer tokens
    """
    kind = RecordedPruning if context.trace is not None else Pruning
    kind = own(kind, context, choose="ranking", prune="leaving out", recover="filling in")

    def tell(pruning):
        if pruning.previous is not None:
            context.kept_bytes[KEY] = context.kept_bytes.get(KEY, 0) + pruning.previous.nbytes

    with ExitStack() as exits:
        for pruning in active(pipe.unet, knobs, context, kind):
            exits.callback(tell, pruning)
            exits.callback(context.pruned.difference_update, pruning.names)
            exits.enter_context(context.at_start(pruning.start, first=True))  # who merges must know what is left
            for module, forward in pruning.forwards():
                exits.enter_context(replaced(module, forward=forward))
        yield pipe
