"""Figures over several prompts and seeds: paired bootstrap intervals, and what nothing else beats."""

import numpy as np

DRAWS = 2000


def intervals(values, statistic=np.nanmean, draws=DRAWS, seed=0):
    """95 % bootstrap intervals of a statistic over units, paired: every draw takes the same units for all variants.

    values: (variants, units) floats, NaN where there is none -> [(statistic, low, high)], one per variant, None without
    any value; low and high are None where there are fewer than two. Efron and Tibshirani, 1993, section 13.3.
    """
    values = np.asarray(values, float)
    there = (~np.isnan(values)).sum(1)
    picks = np.random.default_rng(seed).integers(values.shape[1], size=(draws, values.shape[1]))
    found = []
    for row, count in zip(values, there):
        if count == 0:
            found.append(None)
            continue
        drawn = row[picks]
        drawn = drawn[~np.isnan(drawn).all(1)]
        ends = np.quantile(statistic(drawn, axis=1), (0.025, 0.975)) if count > 1 else (None, None)
        found.append((float(statistic(row)), *(None if end is None else float(end) for end in ends)))
    return found


def front(points):
    """Indices of the points (cost, loss), None for none, that no other point beats: as good in both and better in one."""
    known = [(i, point) for i, point in enumerate(points) if point is not None and None not in point]
    return {i for i, (x, y) in known if not any(a <= x and b <= y and (a, b) != (x, y) for _, (a, b) in known)}
