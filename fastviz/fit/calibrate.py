"""The fit of OLSS to one model: full runs, timesteps, coefficients, and how far the result is from full runs not seen.

Duan et al., arXiv 2305.14677. Beyond the paper: coefficients are held near those of a known solver at the same timesteps,
as firmly as proves best on runs that they were not fitted to, and may be fitted once more to the outputs that the short
run itself meets. Rows are fitted to the full run's outputs, and what they leave over adds up from step to step: plain
least squares knows nothing of that, solvers do. For the same reason the path that the paper's search finds, which looks at
one hop at a time, is compared with even nodes, and the better of them climbs: nodes move where that helps on the same runs.
"""

from dataclasses import dataclass, replace

import torch

from ..search.network import Network
from . import runs, solvers, subspace

HOLDS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # how firmly coefficients are held near the solver's: lam of subspace.solve
AROUND = 1  # holds on either side of the best one that a refit is tried with
CALLS, STRIDES = 320, (4, 2, 1)  # of a climb: steps of all paths that are tried, at most, and indices that a node moves by


@dataclass
class Group:
    """Runs side by side. path: every latent of their full runs, (N + 1, B, 4, h, w)."""
    network: Network
    path: torch.Tensor


@dataclass
class Study:
    """What is known of a model. config: its scheduler's; full: the full run's scheduler; R: see subspace.triangle; fitting,
    choosing, measuring: Groups that share no seed."""
    config: dict
    full: object
    R: torch.Tensor
    fitting: list
    choosing: list
    measuring: list


@dataclass(frozen=True)
class Fit:
    """A schedule. nodes: indices into the full run; timesteps: there; coefficients: (wx, we); hold: one of HOLDS; refit:
    whether they were fitted to the outputs of the short run; error: on the choosing runs."""
    nodes: list
    timesteps: list
    coefficients: tuple
    hold: float
    refit: bool = False
    error: float = float("inf")


@dataclass(frozen=True)
class Measured:
    """A schedule on the measuring runs. rmse: of the last latent, mean over the runs; gaps: distance from the full run's
    path after each step, see runs.gaps; timesteps: where the network was asked."""
    rmse: float
    gaps: list
    timesteps: list


def study(config, steps, fitting, choosing, measuring):
    """Makes the full runs, of `steps` steps: Networks, three times -> Study."""
    full, groups = solvers.reference(config, steps), []

    def blocks():
        for network in fitting:
            path, outputs = runs.record(full, network)
            groups.append(Group(network, path))
            yield subspace.columns(path, outputs)

    R = subspace.triangle(blocks())
    others = [[Group(network, runs.record(full, network)[0]) for network in part] for part in (choosing, measuring)]
    return Study(config, full, R, groups, *others)


def starts(found, search, n):
    """Paths of n indices into the full run that a choice of timesteps (olss.SEARCHES) begins with; none where it does not apply."""
    even = subspace.even(len(found.full.timesteps), n)
    if search == "olss":
        return [subspace.search(found.R, n), even]
    if search == "olss-p":
        return [even]
    wanted = solvers.ays(found.config, n)
    return [subspace.fill(found.R, {int((found.full.timesteps - t).abs().argmin()) for t in wanted}, n)] if wanted else []


def fit(found, search, n, anchor="unipc", refit=False):
    """The best Fit of n steps, or None where `search` does not apply. anchor: the solver that coefficients are held near,
    one of solvers.SOLVERS; refit: whether that is tried, too."""
    tried = [one for nodes in starts(found, search, n) for one in fits(found, nodes, anchor)]
    best = min(tried, key=error, default=None)
    if search == "olss":
        best = min([best, *fits(found, climbed(found, best, anchor).nodes, anchor)], key=error)
    if best and refit:
        prior = prior_at(found, best.nodes, anchor)
        at = HOLDS.index(best.hold)
        others = [replace(best, hold=hold, refit=True) for hold in HOLDS[max(0, at - AROUND):at + AROUND + 1]]
        best = min([best, *(judged(found, replace(one, coefficients=refitted(found, one, prior))) for one in others)], key=error)
    return best


def error(one):
    return one.error


def prior_at(found, nodes, anchor):
    """(wx, we) of a known solver at the timesteps of nodes."""
    return solvers.combination(solvers.at(found.config, anchor, found.full.timesteps[nodes].tolist()))


def fits(found, nodes, anchor, holds=HOLDS):
    """A judged Fit of `nodes` for each of `holds`."""
    prior, timesteps = prior_at(found, nodes, anchor), found.full.timesteps[nodes].tolist()
    return [judged(found, Fit(nodes, timesteps, subspace.coefficients(found.R, nodes, prior, hold), hold)) for hold in holds]


def climbed(found, best, anchor):
    """The Fit that `best` becomes when nodes move, one at a time and ever less far, as long as its error falls."""
    left = CALLS // len(best.nodes)
    for stride in STRIDES:
        moved = True
        while moved and left:
            moved = False
            for nodes in neighbours(best.nodes, stride, len(found.full.timesteps))[:left]:
                one, = fits(found, nodes, anchor, (best.hold,))
                left -= 1
                if one.error < best.error:
                    best, moved = one, True
                    break
    return best


def neighbours(nodes, stride, end):
    """Paths in which one node, but the first, is `stride` indices earlier or later and still between those beside it."""
    found = []
    for i in range(1, len(nodes)):
        for node in (nodes[i] - stride, nodes[i] + stride):
            if nodes[i - 1] < node < [*nodes, end][i + 1]:
                found.append([*nodes[:i], node, *nodes[i + 1:]])
    return found


def judged(found, one):
    """The Fit with its error on the choosing runs: the mean over them of the last latent's root mean square error."""
    scheduler = solvers.linear(found.config, one.timesteps, one.coefficients)
    errors = [runs.rmse(runs.end(scheduler, group.network), group.path[-1]) for group in found.choosing]
    return replace(one, error=float(torch.cat(errors).mean()))


def refitted(found, one, prior):
    """(wx, we), row after row, from the outputs that the network gives at the latents of the rows before: what it will
    meet. The full run's own outputs, which all rows are fitted to otherwise, it meets only at the first step."""
    networks, wx, we = [group.network for group in found.fitting], [], []
    xs = [network.start for network in networks]
    columns = [[network.start.float().cpu()] for network in networks]
    for i, target in enumerate([*one.nodes[1:], len(found.full.timesteps)]):
        for network, x, known in zip(networks, xs, columns):
            known.append(network(x, one.timesteps[i]).float().cpu())
        F = torch.cat([torch.stack(known, -1).flatten(0, -2) for known in columns]).double()
        y = torch.cat([group.path[target].flatten() for group in found.fitting]).double()
        weights = subspace.solve(F, y, subspace.row_of(prior, i), one.hold)
        xs = [(torch.stack(known, -1).double() @ weights).to(network.start) for network, known in zip(networks, columns)]
        wx.append(float(weights[0]))
        we.append(weights[1:].tolist())
    return wx, we


def measure(found, scheduler):
    """A ready scheduler on the measuring runs -> Measured."""
    timesteps = scheduler.timesteps.tolist()
    taken = torch.cat([runs.record(scheduler, group.network)[0] for group in found.measuring], 1)
    path = torch.cat([group.path for group in found.measuring], 1)
    gaps = runs.gaps(found.config, path, found.full.timesteps.tolist(), taken, timesteps)
    return Measured(float(runs.rmse(taken[-1], path[-1]).mean()), gaps, timesteps)
