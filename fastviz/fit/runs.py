"""Sampling step by step: runs of a scheduler, and distances between runs."""

import copy

import torch

from ..schedulers import alphas_of


def walk(scheduler, network, x):
    """Samples from x with a scheduler whose timesteps are set, which is left as it is: yields (x, e) at every step and
    (last x, None) in the end."""
    scheduler = copy.deepcopy(scheduler)
    for t in scheduler.timesteps:
        e = network(scheduler.scale_model_input(x, t), t)
        yield x, e
        x = scheduler.step(e, t, x, return_dict=False)[0]
    yield x, None


def end(scheduler, network):
    """The last latents of a run, float on the CPU: (B, 4, h, w)."""
    for x, _ in walk(scheduler, network, network.start):
        pass
    return x.float().cpu()


def record(scheduler, network):
    """Every latent and output of a run, float on the CPU: (steps + 1, B, 4, h, w) and (steps, B, 4, h, w)."""
    xs, es = zip(*walk(scheduler, network, network.start))
    return torch.stack(xs).float().cpu(), torch.stack(es[:-1]).float().cpu()


def rmse(x, y):
    """Root mean square of the difference, per run: (B, ...) twice -> (B,)."""
    return (x - y).square().flatten(1).mean(1).sqrt()


def noise_levels(config, timesteps):
    """sqrt((1 - abar) / abar) at the timesteps and where the last step ends: (n + 1,) float64."""
    own = torch.tensor(alphas_of(config, timesteps), dtype=torch.double)
    return ((1 - own) / own).sqrt()


def gaps(config, path, full, taken, timesteps):
    """Root mean square distances, per step, of runs from their full runs at the same noise level, means over the runs: n
    floats.

    path (N + 1, B, ...) at the timesteps `full` and at the end; taken (n + 1, B, ...) at `timesteps` and at the end.
    Between two latents of the full run, latents over signal are interpolated in the noise level: in these, the path that
    both follow is nearly straight.
    """
    known, wanted = (noise_levels(config, each) for each in (full, timesteps))
    low = torch.searchsorted(-known, -wanted).clamp(1, len(known) - 1) - 1
    share = (wanted - known[low]) / (known[low + 1] - known[low])
    scaled = path * (1 + known.view(-1, *[1] * (path.ndim - 1)) ** 2).sqrt()
    there = torch.stack([torch.lerp(scaled[k], scaled[k + 1], s) for k, s in zip(low.tolist(), share.tolist())])
    there = there / (1 + wanted.view(-1, *[1] * (path.ndim - 1)) ** 2).sqrt()
    return (there - taken)[1:].square().flatten(2).mean(2).sqrt().mean(1).tolist()
