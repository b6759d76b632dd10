"""The mathematics of OLSS: which timesteps to take, and the best linear combination for each step.

Duan et al., arXiv 2305.14677. Columns of A are the latents x_0 .. x_N and outputs e_0 .. e_N-1 of a full run of N steps,
x_0 pure noise, stacked over calibration runs. Everything is least squares among columns of A, and R of A = Q R gives the
same answers and errors from 2N + 1 rows instead of millions. Beyond the paper: errors to all later latents at once, a
bracket for the bound that has no scale, short paths filled up, and coefficients held near those of a known solver.
"""

import math

import torch

HALVINGS = 30  # of the bracket around the error bound


def triangle(blocks):
    """R of all blocks (rows, 2N + 1), one below the other: (2N + 1, 2N + 1) float64. One block at a time is in memory."""
    R = None
    for A in blocks:
        R = torch.linalg.qr(A.double() if R is None else torch.cat([R, A.double()]), mode="r").R
    return R


def columns(xs, es):
    """One block of A from runs side by side. xs: (N + 1, ...), es: (N, ...) of equal shapes -> (rows, 2N + 1)."""
    return torch.cat([xs.flatten(1), es.flatten(1)]).T


def latents(R):
    """The columns of x_0 .. x_N in R."""
    return R[:, :R.shape[1] // 2 + 1]


def outputs(R):
    """The columns of e_0 .. e_N-1 in R."""
    return R[:, R.shape[1] // 2 + 1:]


def hop_errors(R, nodes):
    """Distances |x_m - projection of x_m| for every m > nodes[-1], where the span is that of the reference latent at the
    last node and the outputs at all nodes: section 3.3. (N - nodes[-1],)"""
    last = nodes[-1]
    Q = torch.linalg.qr(torch.cat([latents(R)[:, [last]], outputs(R)[:, nodes]], 1)).Q
    targets = latents(R)[:, last + 1:]
    return (targets - Q @ (Q.T @ targets)).norm(dim=0)


def reach(R, bound, most):
    """Nodes from 0 on, each as far as `bound` allows and at least one index on, until x_N is reached; None when that
    takes more than `most` nodes."""
    nodes, end = [0], R.shape[1] // 2
    while len(nodes) <= most:
        good = (hop_errors(R, nodes) <= bound).nonzero()
        node = nodes[-1] + 1 + (int(good[-1]) if len(good) else 0)
        if node == end:
            return nodes
        nodes.append(node)
    return None


def search(R, n):
    """The n nodes, 0 first, whose largest hop error is smallest, by bisection of the bound."""
    low, high = 0.0, float(hop_errors(R, [0])[-1])  # with the upper bound one hop is enough
    best = [0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = reach(R, middle, n)
        low, high, best = (middle, high, best) if found is None else (low, middle, found)
    return fill(R, best, n)


def fill(R, nodes, n):
    """`nodes` with the hop of the largest error halved, at the index that leaves the smaller of larger errors, until
    there are n."""
    nodes, end = sorted(nodes), R.shape[1] // 2
    while len(nodes) < n:
        hops = [(k, after) for k, after in enumerate([*nodes[1:], end]) if after - nodes[k] > 1]
        k, after = max(hops, key=lambda hop: float(hop_errors(R, nodes[:hop[0] + 1])[hop[1] - nodes[hop[0]] - 1]))
        first = hop_errors(R, nodes[:k + 1])
        both = {m: max(float(first[m - nodes[k] - 1]), float(hop_errors(R, [*nodes[:k + 1], m])[after - m - 1]))
                for m in range(nodes[k] + 1, after)}
        nodes.insert(k + 1, min(both, key=both.get))
    return nodes


def even(N, n):
    """OLSS-P: n nodes of N at equal distances, 0 first."""
    return [round(i * N / n) for i in range(n)]


def solve(F, y, prior, lam):
    """argmin over c of |y - F c|^2 + lam s |c - prior|^2, s the mean square of F's columns: (k,). lam may be infinite."""
    if math.isinf(lam):
        return prior
    scale = F.square().sum(0).mean()
    F_, rest = torch.cat([F, (lam * scale).sqrt() * torch.eye(F.shape[1], dtype=F.dtype)]), y - F @ prior
    return prior + torch.linalg.lstsq(F_, torch.cat([rest, rest.new_zeros(F.shape[1])])[:, None]).solution[:, 0]


def coefficients(R, nodes, prior, lam):
    """All rows from the full runs' own outputs: (wx, we) as the scheduler takes them. prior: a known solver's (wx, we)."""
    wx, we = [], []
    for i, target in enumerate([*nodes[1:], R.shape[1] // 2]):
        F = torch.cat([latents(R)[:, :1], outputs(R)[:, nodes[:i + 1]]], 1)
        start, *row = solve(F, latents(R)[:, target], row_of(prior, i), lam).tolist()
        wx.append(start)
        we.append(row)
    return wx, we


def row_of(prior, i):
    """Row i of (wx, we) as one vector, the starting noise first: (i + 2,)."""
    return torch.tensor([prior[0][i], *prior[1][i]], dtype=torch.double)
