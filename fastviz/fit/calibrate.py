"""The fit of OLSS to one model: full runs, timesteps, coefficients, and how far the result is from full runs not seen.

Duan et al., arXiv 2305.14677. Beyond the paper: coefficients are held near those of a known solver at the same timesteps,
as firmly as proves best on runs that they were not fitted to, and may be fitted once more to the outputs that the short
run itself meets. Rows are fitted to the full run's outputs, and what they leave over adds up from step to step: plain
least squares knows nothing of that, solvers do.
"""

from dataclasses import dataclass, replace

import torch

from ..search.network import Network
from . import runs, solvers, subspace

HOLDS = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # how firmly coefficients are held near the solver's: lam of subspace.solve


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


def nodes_of(found, search, n):
    """The n indices into the full run that a choice of timesteps (olss.SEARCHES) means; None where it does not apply."""
    if search == "olss":
        return subspace.search(found.R, n)
    if search == "olss-p":
        return subspace.even(len(found.full.timesteps), n)
    wanted = solvers.ays(found.config, n)
    return wanted and subspace.fill(found.R, {int((found.full.timesteps - t).abs().argmin()) for t in wanted}, n)


def fit(found, search, n, anchor="unipc", refit=False):
    """The best Fit of n steps, or None where `search` does not apply. anchor: the solver that coefficients are held near,
    one of solvers.SOLVERS; refit: whether that is tried, too."""
    nodes = nodes_of(found, search, n)
    if nodes is None:
        return None
    timesteps = found.full.timesteps[nodes].tolist()
    prior = solvers.combination(solvers.at(found.config, anchor, timesteps))
    tried = [judged(found, Fit(nodes, timesteps, subspace.coefficients(found.R, nodes, prior, hold), hold)) for hold in HOLDS]
    best = min(tried, key=lambda one: one.error)
    if not refit:
        return best
    other = judged(found, replace(best, coefficients=refitted(found, best, prior), refit=True))
    return min(best, other, key=lambda one: one.error)


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
