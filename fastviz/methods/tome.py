"""Similar tokens are merged before an attention and copied back after it.

Changed: the forward functions of the U-Net's transformer blocks. Bolya and Hoffman, Token Merging for Fast Stable
Diffusion, arXiv 2303.17604. Beyond the paper: the draw belongs to (seed, step, block), levels are counted from the
finest grid that has attention, a match can serve several steps and blocks, and a floor keeps dissimilar tokens apart.
torch is imported where it is used: the page builds its controls from Knobs and must not wait for it.
"""

import hashlib
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ..knobs import number, switch
from ..patch import Refused, replaced, transformer_blocks
from ..ranges import own

KEY = "tome"
TITLE = "Token merging"
SAYS = "Merges tokens that look alike before attention and copies the result back to each of them."
PAPER = ("Bolya and Hoffman, Token Merging for Fast Stable Diffusion", "https://arxiv.org/abs/2303.17604")
ROLE = "patch"

OFF = -1.0  # the floor that every cosine reaches


@dataclass(frozen=True)
class Knobs:
    """ratio = 0 is the full model."""
    ratio: float = number(0.5, 0.0, 0.95, "Share of the tokens that merge. More is faster and coarser; at most all but "
                          "one token of each cell, 0.75 for cells of 2 x 2.")
    max_downsample: int = number(1, 1, 8, "Merges on grids reduced up to this factor. More reaches deeper levels, "
                                 "where there is less to save and more to lose.")
    merge_cross: bool = switch(False, "Merges for cross-attention too. A little faster, and details drift.")
    merge_mlp: bool = switch(False, "Merges for the feed-forward layers too. Faster, and visibly coarser.")
    sx: int = number(2, 1, 8, "Width of the cell, in tokens, that keeps one token for the others to merge into.",
                     tinker=True)
    sy: int = number(2, 1, 8, "Height of that cell.", tinker=True)
    random: bool = switch(True, "Keeps a random token of each cell; off: always its top left one.", tinker=True)
    merge_self: bool = switch(True, "Merges for self-attention, where the cost grows with the square of the tokens.",
                              tinker=True)
    every: int = number(1, 1, 100, "Matches anew every so many steps. More saves time in matching, and the match ages.",
                        tinker=True)
    share: bool = switch(False, "The first block of a stage matches, and the others on its grid merge as it does: saves "
                         "their matching, and what they merge suits them less.", tinker=True)
    floor: float = number(OFF, OFF, 1.0, "Cosine similarity below which tokens stay apart, whatever the ratio. More is "
                          "slower and closer to the full model; -1 merges all. How many tokens merge then depends on "
                          "the picture, so the network cannot be compiled as one graph.", tinker=True)
    finest: bool = switch(True, "Counts downsampling from the finest grid that has attention; off: from the latents, "
                          "as the paper does, which on some models leaves nothing to merge.", tinker=True)


NEUTRAL = Knobs(ratio=0.0)


# Which tokens merge, section 3 of the paper

def places(seed, step, name, cells, count):
    """Random places 0..count-1, one for each of (rows, columns) of cells. They belong to this seed, step and block."""
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).integers(count, size=cells)


def cells_of(size, sx, sy):
    """Rows and columns of whole cells in a grid of (h, w), and the cell's own (height, width), at most the grid's."""
    (h, w), (sy, sx) = size, (min(sy, size[0]), min(sx, size[1]))
    return (h // sy, w // sx), (sy, sx)


def split(size, sx, sy, place=0):
    """Positions in a grid of (h, w): destinations (D,), one in each whole cell, and sources (S,), the rest.

    place: where in its cell each destination lies, row by row: 0 is the top left. Tokens beyond the last whole cell
    are always sources.
    """
    cells, (sy, sx) = cells_of(size, sx, sy)
    rows, columns = np.arange(cells[0])[:, None] * sy + place // sx, np.arange(cells[1]) * sx + place % sx
    dst = (rows * size[1] + columns).ravel()
    return dst, np.delete(np.arange(size[0] * size[1]), dst)


def count(ratio, size, sx, sy):
    """r, how many of the h * w tokens merge: the ratio, rounded down, but never a destination."""
    (rows, columns), _ = cells_of(size, sx, sy)
    tokens = size[0] * size[1]
    return min(int(tokens * ratio), tokens - rows * columns)


def nearest(x, src, dst):
    """For each source its most similar destination: cosine (B, S) and index into dst (B, S). x: (B, N, C)."""
    x = x * x.norm(dim=-1, keepdim=True).clamp(min=1e-4).reciprocal()
    scores = x.index_select(1, src) @ x.index_select(1, dst).transpose(1, 2)  # (B, S, D)
    return scores.max(-1)


def assign(similarity, partner, src, dst, r):
    """The merged token that each token belongs to: (B, N) in 0..N-r-1. The r most similar sources merge.

    Merged tokens are ordered as unmerged sources, then destinations.
    """
    import torch

    left = len(src) - r
    merged = torch.zeros_like(partner, dtype=torch.bool).scatter(1, similarity.topk(r).indices, True)
    of_src = torch.where(merged, left + partner, (~merged).cumsum(1) - 1)
    of_dst = (left + torch.arange(len(dst), device=dst.device)).expand(len(partner), -1)
    return torch.cat([of_src, of_dst], 1).index_select(1, torch.cat([src, dst]).argsort())


def rows(slot, merged):
    """Positions of tokens among the merged tokens of the whole batch (B * N,), and the same as bags for `merge`:
    the tokens in order of their bag (B * N,), and where each of the B * merged bags begins."""
    import torch

    batch = torch.arange(len(slot), device=slot.device)[:, None]
    flat = (slot + merged * batch).flatten()
    ordered, members = flat.sort(stable=True)
    return flat, members, torch.searchsorted(ordered, torch.arange(len(slot) * merged, device=slot.device))


def merge(x, members, starts):
    """Means of tokens: (B, N, C) -> (B, N - r, C). One pooled gather: on a GPU, too, it adds in a fixed order."""
    from .. import kernels

    return kernels.merge(x, members, starts)


def unmerge(y, flat):
    """Each token gets what its merged token got: (B, N - r, C) -> (B, N, C)."""
    return y.flatten(0, 1).index_select(0, flat).unflatten(0, (len(y), -1))


def kinds(knobs, steps):
    """One label per step, equal labels for equal work: all the same, unless a match serves several steps."""
    return ("match",) * steps if knobs.every == 1 else tuple(range(steps))


# The block

class Match:
    """Which tokens of a grid merge: made from the input of one block, used by that block or by all of its stage.

    Each step is one of: "match", made anew; "keep", as at the step before.
    """

    def __init__(self, name, size, knobs, context, device):
        """name: of the block whose input it is made from."""
        import torch

        self.name, self.size, self.knobs, self.context = name, size, knobs, context
        self.since, self.merged = None, count(knobs.ratio, size, knobs.sx, knobs.sy)
        tokens, cells = math.prod(size), math.prod(cells_of(size, knobs.sx, knobs.sy)[0])
        # one place for all steps: a recorded CUDA graph reads the draw where it was when it was recorded
        self.order = torch.empty(tokens, dtype=torch.long, device=device)
        self.src, self.dst = self.order.split([tokens - cells, cells])
        self.parts = [part for part, on in (("self", knobs.merge_self), ("cross", knobs.merge_cross)) if on]

    def due(self, step):
        """A match is kept on steps that reuse an attention between merge and unmerge: its map indexes these tokens."""
        if self.since is None:
            return True
        held = any((step, part) in self.context.frozen for part in self.parts)
        return step - self.since >= self.knobs.every and not held

    def draw(self, step):
        """Places of the sources, then of the destinations, of this step."""
        knobs, place = self.knobs, 0
        if knobs.random:
            cells, (sy, sx) = cells_of(self.size, knobs.sx, knobs.sy)
            place = places(self.context.seed, step, self.name, cells, sy * sx)
        return np.concatenate(split(self.size, knobs.sx, knobs.sy, place)[::-1])

    def start(self, step):
        import torch

        self.label = "keep"
        if self.name not in self.context.pruned and self.due(step):
            self.label, self.since = "match", step
            self.order.copy_(torch.from_numpy(self.draw(step)), non_blocking=self.context.device == "cuda")
        return self.label

    def make(self, x):
        """From x (B, N, C)."""
        tokens = math.prod(self.size)
        if x.shape[1] != tokens:
            raise ValueError(f"{self.name} has {x.shape[1]} tokens where {self.size[0]} x {self.size[1]} were expected")
        self.similarity, partner = nearest(x, self.src, self.dst)
        if self.knobs.floor != OFF:
            self.merged = self.allowed()
        self.slot = assign(self.similarity, partner, self.src, self.dst, self.merged)
        self.rows = rows(self.slot, tokens - self.merged)

    def allowed(self):
        """At most r, and no more than reach the floor in every half of the batch. On the meta device, where nothing is
        known about similarity, none: the work that is counted there is then never less than the work that is done."""
        reached = (self.similarity >= self.knobs.floor).sum(1).min()
        r = count(self.knobs.ratio, self.size, self.knobs.sx, self.knobs.sy)
        return 0 if reached.is_meta else min(r, int(reached))


class Merging:
    """One transformer block that merges by a match.

    Modifications:
     - block.forward matches first, if the match is made from this block's input, on steps where a new one is due
     - forward of the parts that merge: merge before, unmerge after
    """

    def __init__(self, name, match):
        self.name, self.match, self.context = name, match, match.context

    def start(self, step):
        self.whole = self.name not in self.context.pruned  # what is left of the grid has no cells
        if self.whole and self.match.knobs.floor == OFF:
            self.context.acted[KEY].add((self.name, step))
        return self.whole

    def prepare(self, x):
        match = self.match
        if match.label == "match" and match.name == self.name:
            match.make(x)
        if match.knobs.floor != OFF and match.merged:
            self.context.acted[KEY].add((self.name, self.context.step))

    def block(self, forward):
        def matched(hidden_states, *args, **kwargs):
            if self.whole:
                self.prepare(hidden_states)
            return forward(hidden_states, *args, **kwargs)
        return matched

    def part(self, forward):
        def merged(hidden_states, *args, **kwargs):
            if not (self.whole and self.match.merged):
                return forward(hidden_states, *args, **kwargs)
            return self.all(forward(self.fewer(hidden_states), *args, **kwargs))
        return merged

    def fewer(self, x):
        return merge(x, *self.match.rows[1:])

    def all(self, y):
        return unmerge(y, self.match.rows[0])


class RecordedMerging(Merging):
    """Adds, for a traced run, at every step and block: the merged token of each token (h, w), the positions of the
    destinations, tokens in and out, and the cosine of each merged source with its destination (h, w), NaN for all other
    tokens; of the conditional half of the batch. Cosines are those of the tokens that the match was made from."""

    def prepare(self, x):
        super().prepare(x)
        add, step, match = self.context.trace.add, self.context.step, self.match
        self.context.seen.pop(self.name, None)
        if match.merged:
            self.context.seen[self.name] = match.slot[-1]
        add("tome.labels", step, self.name, match.slot[-1].view(match.size).int())
        add("tome.destinations", step, self.name, match.dst.int())
        add("tome.tokens", step, self.name, np.array([x.shape[1], x.shape[1] - match.merged], np.int32))
        knobs = match.knobs
        add("tome.parts", step, self.name, np.array([knobs.merge_self, knobs.merge_cross, knobs.merge_mlp]))
        add("tome.similarity", step, self.name, cosines(match).view(match.size).half())


def cosines(match):
    """(N,) of each merged source with its destination, NaN elsewhere."""
    merged = match.slot[-1][match.src] >= len(match.src) - match.merged
    found = match.similarity.new_full((math.prod(match.size),), math.nan)
    found[match.src[merged]] = match.similarity[-1][merged]
    return found


def active(unet, grid, knobs):
    """[(name, block, (h, w))] of the blocks whose grid is within max_downsample and where at least one token merges."""
    blocks = [(name, block, size) for name, block, size in transformer_blocks(unet, grid) if parts(block, knobs)]
    finest = max((h * w for _, _, (h, w) in blocks), default=0) if knobs.finest else grid[0] * grid[1]
    return [(name, block, size) for name, block, size in blocks
            if math.ceil(math.sqrt(finest // math.prod(size))) <= knobs.max_downsample
            and count(knobs.ratio, size, knobs.sx, knobs.sy)]


def parts(block, knobs):
    """The parts of a block that merge. Its first attention may be to the words, too: SDXS-512 0.9 has that at the highest
    resolution."""
    first = knobs.merge_cross if block.attn1.is_cross_attention else knobs.merge_self
    asked = {"attn1": first, "attn2": knobs.merge_cross, "ff": knobs.merge_mlp}
    return [part for part, on in asked.items() if on and getattr(block, part) is not None]


def touched(unet, grid, knobs):
    """Names of the modules that it can save work in."""
    return [f"{name}.{part}" for name, block, _ in active(unet, grid, knobs) for part in parts(block, knobs)]


@contextmanager
def attach(pipe, knobs, context):
    """Modifications, in every active block; none when nothing would merge:
     - block.forward, and forward of attn1, attn2 and ff as far as they merge
    Refused for a floor in compiled blocks.
    """
    kind = own(RecordedMerging if context.trace is not None else Merging, context,
               prepare="matching", fewer="merging", all="merging")
    matches = {}
    with ExitStack() as exits:
        for name, block, size in active(pipe.unet, context.grid, knobs):
            if knobs.floor != OFF and getattr(block, "_compiled_call_impl", None):
                raise Refused("With a similarity floor, how many tokens merge is known only while it runs, and a compiled network "
                              "cannot follow: leave the floor at -1, or run it uncompiled.")
            key = (name.partition(".attentions.")[0], size) if knobs.share else name
            if key not in matches:
                matches[key] = Match(name, size, knobs, context, pipe.unet.device)
                exits.enter_context(context.at_start(matches[key].start))
            merging = kind(name, matches[key])
            exits.enter_context(context.at_start(merging.start))
            exits.enter_context(replaced(block, forward=merging.block(block.forward)))
            for part in (getattr(block, part) for part in parts(block, knobs)):
                exits.enter_context(replaced(part, forward=merging.part(part.forward)))
        yield pipe
