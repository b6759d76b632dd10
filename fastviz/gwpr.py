"""Generalized weighted page rank (G-WPR): which tokens an attention points at, with its map in memory and without.

Wang et al., AT-EDM, arXiv 2405.05252. An attention map A (B, H, N, M) is the adjacency matrix of a directed, weighted
graph: N queries vote for M keys, rows sum to 1, and a vote counts as much as its voter, s <- A^T s. Only A^T s is ever
needed. Beyond the paper: votes are counted by strips, runs of neighbouring queries, and one round of votes settles how
much each strip counts (iterative aggregation and disaggregation: Takahashi 1975; Koury, McAllister and Stewart 1984).
The limit is the same, and it is reached in fewer rounds.
"""

import torch

from . import kernels

HELD = 4 * 2**20  # bytes of a map up to which it is held rather than made again: about what a core's cache takes
TILE = HELD  # bytes of the part of a map that is made at a time
GPU_TILE = 256 * 2**20  # the same where each operation has to be launched
COARSE = 1024  # rounds in the small chain of strips; a power of two, so ten products
VARIANCE = (0.05, 4.0)  # of N s in a head that the filter lets through: below, it is flat; above, a few tokens have all


def normalised(s):
    return s / s.sum(-1, keepdim=True)


# One attention as a graph: three ways to count its votes and to look up how similar two tokens are

class Held:
    """The whole map in memory. q: (B, H, N, d), scaled by 1 / sqrt(d); k: (B, H, M, d)."""

    rounds = 4  # of votes, as many as pay

    def __init__(self, q, k):
        exact = torch.promote_types(q.dtype, torch.float32)
        self.uniform = torch.full(q.shape[:3], 1 / q.shape[2], dtype=exact, device=q.device)
        tile = TILE if q.device.type == "cpu" else GPU_TILE
        self.rows = max(1, tile // (4 * q.shape[0] * q.shape[1] * k.shape[2]))
        self.keys, self.widest = k.shape[2], q.shape[2]  # the most strips that can be told apart
        self.prepare(q, k)

    def prepare(self, q, k):
        self.map = (q @ k.transpose(2, 3)).softmax(-1, dtype=self.uniform.dtype)
        self.mean = None

    def votes(self, s, strips=1):
        """What each strip of queries gives to each key: s (B, H, N) -> (B, H, strips, M). Their sum is A^T s."""
        return (s.unflatten(2, (strips, 1, -1)) @ self.map.unflatten(2, (strips, -1))).squeeze(3)

    def similarity(self, rows, columns):
        """(A_ij + A_ji) / 2, mean over heads, of self-attention: i of rows (B, P), j of columns (B, K) -> (B, P, K)."""
        if self.mean is None:
            self.mean = self.map.mean(1)
        batch, i, j = torch.arange(len(rows), device=rows.device)[:, None, None], rows[:, :, None], columns[:, None]
        return (self.mean[batch, i, j] + self.mean[batch, j, i]) / 2


class Tiled(Held):
    """The map made a few rows at a time and dropped at once, on any device. What stays of a round of votes is `lse`
    (B, H, N), the log-sum-exp of every row of logits, from which single entries of the map can be made again."""

    rounds = 1

    def prepare(self, q, k):
        self.q, self.k, self.lse = q, k, None

    def votes(self, s, strips=1):
        given, lse = [], []
        for one, q in zip(s.chunk(strips, 2), self.q.chunk(strips, 2)):
            tiles = zip(one.split(self.rows, 2), q.split(self.rows, 2))
            given.append(sum(self.tile(*tile, lse) for tile in tiles))
        self.lse = torch.cat(lse, 2)
        return torch.cat(given, 2)

    def tile(self, s, q, lse):
        """The votes of some queries: (B, H, 1, M). Their log-sum-exp is the largest logit less that of its probability:
        one exponential an entry, where a logsumexp beside the softmax would take two."""
        logits = q @ self.k.transpose(2, 3)
        rows = logits.softmax(-1, dtype=self.uniform.dtype)
        lse.append(logits.amax(-1) - rows.amax(-1).log())
        return s.unsqueeze(2) @ rows

    def similarity(self, rows, columns):
        if self.lse is None:
            self.votes(self.uniform)
        q, k, lse = ([of(x, index) for index in (rows, columns)] for x in (self.q, self.k, self.lse[..., None]))
        there = (q[0] @ k[1].transpose(2, 3) - lse[0]).exp_()
        back = (k[0] @ q[1].transpose(2, 3) - lse[1].transpose(2, 3)).exp_()
        return there.add_(back).mean(1) / 2


def of(x, index):
    """The tokens of `x` (B, H, N, d) at `index` (B, P): (B, H, P, d)."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


class Fused(Tiled):
    """Votes from a fused attention kernel in two passes; no part of the map reaches memory.

    The first pass gives the log-sum-exp L of the rows. The second swaps the roles: key j attends to the queries i with
    a bias of -L_i and values s_i, and its output times the exponential of its own log-sum-exp is sum_i A_ij s_i. The
    kernel takes values as wide as the keys, so each strip has a column at no cost. What the bias loses where the kernel
    computes in half precision is put into the values, so that L counts in full.
    """

    def __init__(self, q, k, kernel):
        self.kernel = kernel
        super().__init__(q, k)
        self.widest = q.shape[3]

    def votes(self, s, strips=1):
        n, width = self.q.shape[2:]
        if self.lse is None:
            self.lse = self.kernel(self.q, self.k, self.k)[1]
        bias = (-self.lse).to(self.q.dtype)
        strip, column = (torch.arange(count, device=s.device) for count in (n, width))
        values = (n * s * (-self.lse - bias).exp())[..., None] * ((strip * strips // n)[:, None] == column)
        out, lse = self.kernel(self.k, self.q, values.to(self.q.dtype),
                               bias[:, :, None].expand(-1, -1, self.k.shape[2], -1))
        return (out * (lse.exp() / n)[..., None])[..., :strips].transpose(2, 3)


class Streamed(Tiled):
    """Votes from our own kernels: one pass for the log-sum-exp of the rows, and one a round that adds up columns."""

    def votes(self, s, strips=1):
        if self.lse is None:
            self.lse = kernels.row_lse(self.q, self.k)
        return kernels.column_sums(self.q, self.k, self.lse, s, strips)


def on_cpu(q, k, v, bias=None):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=1.0)


def on_cuda(q, k, v, bias=None):
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=1.0)
    return out, lse[:, :, :q.shape[2]]  # the kernel rounds its rows up


KERNELS = {"cpu": on_cpu, "cuda": on_cuda}  # q, k, v, bias -> softmax(q k^T + bias) v, log-sum-exp of its rows


def fits(q, device):
    """Whether a fused kernel of this kind of device tells its log-sum-exp for these shapes."""
    aligned = q.shape[2] % 8 == 0 and q.shape[3] % 8 == 0  # what a GPU's kernel asks of a bias and of a head
    return device == "cpu" or device == "cuda" and aligned


def graph_of(q, k, way, device):
    """The attention of q (B, H, N, d), scaled, and k (B, H, M, d) in one of the three ways. way: "held", "tiles",
    "fused", or "auto": held while the map is small, else fused on a GPU, else tiles. device: "cpu", "cuda" ... of the
    machine that it is meant for. Fused takes our kernels on CUDA, and falls back to tiles where nothing fits."""
    if way == "auto":
        small = 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= HELD
        way = "held" if small else "fused" if device == "cuda" else "tiles"
    if way == "fused" and device == "cuda" and (kernels.here(q) or q.is_meta and torch.cuda.is_available()):
        return Streamed(q, k)
    if way == "fused" and fits(q, device):
        return Fused(q, k, KERNELS[device])
    return Held(q, k) if way == "held" else Tiled(q, k)


# The rank

def settled(given):
    """s (B, H, N) after a round of votes, given (B, H, strips, N), with each strip counting as much as in the limit of
    the small chain in which strips vote for strips as their tokens just did. With one strip this is the plain round."""
    chain = given.unflatten(3, (given.shape[2], -1)).sum(-1)
    mass = chain.sum(-1, keepdim=True).clamp(min=torch.finfo(chain.dtype).tiny)
    counts = mass.transpose(2, 3) @ torch.linalg.matrix_power(chain / mass, COARSE)  # (B, H, 1, strips)
    return ((counts / mass.transpose(2, 3)) @ given).squeeze(2)


def rank(graph, rounds, tolerance, strips=1, back=False):
    """Importance (B, H, N) of the tokens, sums to 1. From 1 / N on, rounds of votes until the sum of |change| is below
    `tolerance` in every head, at most `rounds`. strips: at most so many, as many as divide N. back: for cross-attention,
    held; the words get the tokens' votes, u = A^T s, and pass them back, s <- A u."""
    s, n = graph.uniform, graph.uniform.shape[2]
    strips = next(count for count in range(min(strips, graph.widest), 0, -1) if n % count == 0 and (count == 1 or graph.keys % count == 0))
    done = None
    for left in reversed(range(rounds)):
        after = settled(graph.votes(s, strips))
        after = normalised((graph.map @ after[..., None])[..., 0] if back else after)
        before, s = s, after if done is None else torch.where(done, s, after)
        if left and not s.is_meta:
            still = (s - before).abs().sum(-1).max() < tolerance
            if stops(s) and still:
                break
            done = still if done is None else done | still
    return s


def stops(s):
    """Whether it pays to ask if the last round changed nothing. A GPU would have to be waited for, and a graph that is
    being compiled cannot tell: there all rounds are made, and those after the last that counts leave `s` as it is."""
    return s.device.type == "cpu" and not torch.compiler.is_compiling()


def aggregate(scores, how):
    """One importance per token from that of the heads: (B, H, N) -> (B, N). how: "mean"; "rms", the root mean square;
    "filtered", the same without heads whose variance is out of range, as long as one is left."""
    if how == "mean":
        return scores.mean(1)
    weights = torch.ones_like(scores[..., :1])
    if how == "filtered":
        spread = (scores * scores.shape[2]).var(2, keepdim=True)
        inside = ((spread >= VARIANCE[0]) & (spread <= VARIANCE[1])).to(scores.dtype)
        weights = torch.where(inside.sum(1, keepdim=True) > 0, inside, weights)
    return ((scores.square() * weights).sum(1) / weights.sum(1)).sqrt()


def partners(graph, pruned, kept):
    """For each pruned token the place among the kept of the one most similar to it: (B, P) and (B, K) -> (B, P)."""
    return torch.cat([graph.similarity(rows, kept).argmax(-1) for rows in pruned.split(graph.rows, 1)], 1)
