"""Similar tokens are merged before an attention and copied back after it.

Changed: the forward functions of the U-Net's transformer blocks. Bolya and Hoffman, Token Merging for Fast Stable
Diffusion, arXiv 2303.17604. Beyond the paper: the draw belongs to (seed, step, block), levels are counted from the
finest grid that has attention, the match can serve several steps, and a floor keeps dissimilar tokens apart.
torch is imported where it is used: the page builds its controls from Knobs and must not wait for it.
"""

import hashlib
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ..knobs import number, switch
from ..patch import replaced, transformer_blocks
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
    floor: float = number(OFF, OFF, 1.0, "Cosine similarity below which tokens stay apart, whatever the ratio. More is "
                          "slower and closer to the full model; -1 merges all.", tinker=True)
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
    import torch.nn.functional as F

    return F.embedding_bag(members, x.flatten(0, 1), starts, mode="mean").unflatten(0, (len(x), -1))


def unmerge(y, flat):
    """Each token gets what its merged token got: (B, N - r, C) -> (B, N, C)."""
    return y.flatten(0, 1).index_select(0, flat).unflatten(0, (len(y), -1))


def kinds(knobs, steps):
    """One label per step, equal labels for equal work: all the same, unless a match serves several steps."""
    return ("match",) * steps if knobs.every == 1 else tuple(range(steps))


# The block

class Merging:
    """One transformer block's match, made from the block's input and shared by its parts.

    Modifications:
     - block.forward matches first, on steps where a new match is due
     - forward of the parts that merge: merge before, unmerge after
    """

    def __init__(self, name, size, knobs, context):
        self.name, self.size, self.knobs, self.context = name, size, knobs, context
        self.r = count(knobs.ratio, size, knobs.sx, knobs.sy)
        self.since = self.match = None
        self.parts = [part for part, on in (("self", knobs.merge_self), ("cross", knobs.merge_cross)) if on]

    def due(self, step):
        """A match is kept on steps that reuse an attention between merge and unmerge: its map indexes these tokens."""
        if self.since is None:
            return True
        held = any((step, part) in self.context.frozen for part in self.parts)
        return step - self.since >= self.knobs.every and not held

    def draw(self, step):
        """(sources, destinations) of this step."""
        knobs, place = self.knobs, 0
        if knobs.random:
            cells, (sy, sx) = cells_of(self.size, knobs.sx, knobs.sy)
            place = places(self.context.seed, step, self.name, cells, sy * sx)
        return split(self.size, knobs.sx, knobs.sy, place)[::-1]

    def renew(self, x, step):
        """Makes the match for x (B, N, C)."""
        import torch

        knobs, tokens = self.knobs, self.size[0] * self.size[1]
        if x.shape[1] != tokens:
            raise ValueError(f"{self.name} has {x.shape[1]} tokens where {self.size[0]} x {self.size[1]} were expected")
        self.src, self.dst = (torch.from_numpy(one).to(x.device) for one in self.draw(step))
        self.similarity, partner = nearest(x, self.src, self.dst)
        r = self.r if knobs.floor == OFF else self.allowed()
        self.slot = assign(self.similarity, partner, self.src, self.dst, r)
        self.merged, self.since = r, step
        self.match = rows(self.slot, tokens - r)

    def allowed(self):
        """At most r, and no more than reach the floor in every half of the batch. On the meta device, where nothing is
        known about similarity, none: the work that is counted there is then never less than the work that is done."""
        reached = (self.similarity >= self.knobs.floor).sum(1).min()
        return 0 if reached.is_meta else min(self.r, int(reached))

    def prepare(self, x):
        step = self.context.step
        if self.due(step):
            self.renew(x, step)
        if self.merged:
            self.context.acted[KEY].add((self.name, step))

    def block(self, forward):
        def matched(hidden_states, *args, **kwargs):
            if self.name in self.context.pruned:
                self.merged = 0  # what is left of the grid has no cells
            else:
                self.prepare(hidden_states)
            return forward(hidden_states, *args, **kwargs)
        return matched

    def part(self, forward):
        def merged(hidden_states, *args, **kwargs):
            if not self.merged:
                return forward(hidden_states, *args, **kwargs)
            return self.all(forward(self.fewer(hidden_states), *args, **kwargs))
        return merged

    def fewer(self, x):
        return merge(x, *self.match[1:])

    def all(self, y):
        return unmerge(y, self.match[0])


class RecordedMerging(Merging):
    """Adds, for a traced run, at every step and block: the merged token of each token (h, w), the positions of the
    destinations, tokens in and out, and the cosine of each merged source with its destination (h, w), NaN for all other
    tokens; of the conditional half of the batch."""

    def prepare(self, x):
        super().prepare(x)
        add, step = self.context.trace.add, self.context.step
        self.context.seen.pop(self.name, None)
        if self.merged:
            self.context.seen[self.name] = self.slot[-1]
        add("tome.labels", step, self.name, self.slot[-1].view(self.size).int())
        add("tome.destinations", step, self.name, self.dst.int())
        add("tome.tokens", step, self.name, np.array([x.shape[1], x.shape[1] - self.merged], np.int32))
        add("tome.similarity", step, self.name, self.cosines().view(self.size).half())

    def cosines(self):
        merged = self.slot[-1][self.src] >= len(self.src) - self.merged
        found = self.similarity.new_full((self.size[0] * self.size[1],), math.nan)
        found[self.src[merged]] = self.similarity[-1][merged]
        return found


def active(unet, grid, knobs):
    """[(name, block, (h, w))] of the blocks whose grid is within max_downsample and where at least one token merges."""
    blocks = transformer_blocks(unet, grid)
    finest = max((h * w for _, _, (h, w) in blocks), default=0) if knobs.finest else grid[0] * grid[1]
    return [(name, block, size) for name, block, size in blocks
            if math.ceil(math.sqrt(finest // math.prod(size))) <= knobs.max_downsample
            and count(knobs.ratio, size, knobs.sx, knobs.sy)]


def parts(knobs):
    """The parts of a block that merge."""
    asked = {"attn1": knobs.merge_self, "attn2": knobs.merge_cross, "ff": knobs.merge_mlp}
    return [part for part, on in asked.items() if on]


def touched(unet, grid, knobs):
    """Names of the modules that it can save work in."""
    return [f"{name}.{part}" for name, _, _ in active(unet, grid, knobs) for part in parts(knobs)]


@contextmanager
def attach(pipe, knobs, context):
    """Modifications, in every active block; none when nothing would merge:
     - block.forward, and forward of attn1, attn2 and ff as far as they merge
    """
    kind = own(RecordedMerging if context.trace is not None else Merging, context, KEY, "prepare", "fewer", "all")
    wanted = parts(knobs)
    with ExitStack() as exits:
        for name, block, size in active(pipe.unet, context.grid, knobs) if wanted else []:
            merging = kind(name, size, knobs, context)
            exits.enter_context(replaced(block, forward=merging.block(block.forward)))
            for part in filter(None, (getattr(block, part) for part in wanted)):
                exits.enter_context(replaced(part, forward=merging.part(part.forward)))
        yield pipe
