"""The additive model of a reuse schedule's distortion, measured on the full model's own run.

A segment, step j computing and the next l reusing, is run from the full model's latents; the mean square of where that
leads away is multiplied by how much the full model amplifies a deviation from there to the end. Segments are taken as
independent, so their mean squares add up: the first order of the argument in section 3 of Hunter et al., arXiv
2401.01008. The truth is somewhat more, because segments that follow one another lead away in similar directions.
"""

import math

from .sampler import mse
from .schedules import cheapest, cost

TAILS = 8  # steps at which the amplification is measured; between them its logarithm is a straight line


def error(path, reference, i):
    """Mean square error of the latents that enter step i, over the batch."""
    return float(mse(path.latents[i], reference.latents[i]).mean())


def single(steps, i):
    """The schedule that reuses at step i alone."""
    return (1,) * i + (0,) + (1,) * (steps - i - 1)


def tail_steps(steps):
    """The steps i of single reuses whose deviation is followed to the end."""
    count = min(TAILS, steps - 1)
    return sorted({1 + round(t * (steps - 2) / max(1, count - 1)) for t in range(count)})


def amplification(sampler, reference):
    """gain[i], i = 0..steps: by how much the full model multiplies the mean square of a deviation of the latents that
    enter step i, up to its result."""
    steps, points = len(reference.gamma), {}
    for i in tail_steps(steps):
        path = sampler.run(single(steps, i), [reference])
        start, end = error(path, reference, i + 1), error(path, reference, steps)
        if start and end:
            points[i + 1] = math.log(end / start)
    points[steps] = 0.0
    return [math.exp(between(i, points)) for i in range(steps + 1)]


def between(i, points):
    """Piecewise linear through `points`, {place: value}; constant beyond the first and the last."""
    left = max((x for x in points if x <= i), default=min(points))
    right = min((x for x in points if x >= i), default=max(points))
    return points[left] + (points[right] - points[left]) * ((i - left) / (right - left) if right > left else 0)


def extend(sampler, reference, gain, table, j, paths):
    """Makes table[j] twice as long, as far as there are steps. paths[j]: how far that segment was run before."""
    steps = len(reference.gamma)
    length = min(2 * len(table[j]), steps - j) - 1
    gamma = (1,) * (j + 1) + (0,) * (steps - j - 1)
    known = [reference, paths[j]] if j in paths else [reference]
    paths[j] = path = sampler.run(gamma, known, until=j + 1 + length)
    table[j] = [0.0, *(gain[i] * error(path, reference, i) for i in range(j + 2, j + 2 + length))]


def measure(sampler, reference, gain, table, k, on_segment=lambda: None):
    """Fills `table`, [[0.0]] * steps at first, as far as the best schedule of k reuses can depend on it: segments double
    in length until one alone costs more than the cheapest schedule of those so far. A table that is not empty is gone on
    with."""
    steps, length, paths = len(table), 1, {}
    while length < steps:
        short = [costs[:length] for costs in table]  # and no longer, so that a resumed measurement decides alike
        found = cheapest(short, steps, k)
        bound = cost(found, short) if found else math.inf
        for j in (j for j, costs in enumerate(short) if len(table[j]) == length < steps - j and costs[-1] < bound):
            extend(sampler, reference, gain, table, j, paths)
            on_segment()
        length *= 2
