"""Reuse schedules as rows of segments: a step that computes, and how many after it use its map. Pure combinatorics.

An additive model gives every segment a cost of its own: table[j][l] for step j computing and the next l reusing, 0 for
l = 0, infinite beyond the end of table[j]. Reusing a map of age a at step i then costs table[i - a][a] less
table[i - a][a - 1].
"""

import math


def segments(gamma):
    """[(j, l)]: each step j that computes, with the number l of steps after it that reuse."""
    starts = [i for i, computed in enumerate(gamma) if computed]
    return [(j, after - j - 1) for j, after in zip(starts, [*starts[1:], len(gamma)])]


def cost(gamma, table):
    """What an additive model says of a schedule."""
    return sum(table[j][l] if l < len(table[j]) else math.inf for j, l in segments(gamma))


def cheapest(table, steps, k):
    """The schedule of `steps` steps, k of them reusing, of least cost under an additive model; None where all are
    infinite. Dynamic programming over (steps so far, reuses so far), in O(steps^2 k)."""
    least = [[math.inf] * (k + 1) for _ in range(steps + 1)]
    last = [[0] * (k + 1) for _ in range(steps + 1)]
    least[0][0] = 0.0
    for j in range(steps):
        for r in (r for r in range(k + 1) if least[j][r] < math.inf):
            for l in range(min(len(table[j]) - 1, k - r, steps - 1 - j) + 1):
                if (total := least[j][r] + table[j][l]) < least[j + 1 + l][r + l]:
                    least[j + 1 + l][r + l], last[j + 1 + l][r + l] = total, l
    return rebuilt(last, steps, k) if least[steps][k] < math.inf else None


def rebuilt(last, end, r):
    """The schedule whose last segment before step `end`, after r reuses, has last[end][r] of them."""
    gamma = ()
    while end:
        l = last[end][r]
        gamma, end, r = (1, *(0,) * l, *gamma), end - 1 - l, r - l
    return gamma


def even(steps, k):
    """Steps that compute spread evenly, so that segments differ in length by one at most."""
    ones = {i * steps // (steps - k) for i in range(steps - k)}
    return tuple(int(i in ones) for i in range(steps))


def swaps(gamma):
    """Every schedule in which one step reuses in place of another. Step 0 always computes."""
    ones = [i for i, computed in enumerate(gamma) if computed and i]
    zeros = [i for i, computed in enumerate(gamma) if not computed]
    return [tuple(1 - now if step in (i, j) else now for step, now in enumerate(gamma)) for i in ones for j in zeros]


def perturbed(gamma, count, rng):
    """`gamma` after `count` random swaps. rng: random.Random."""
    for _ in range(count):
        gamma = rng.choice(swaps(gamma))
    return gamma


def text(gamma):
    return "".join(map(str, gamma))


def read(digits):
    return tuple(map(int, digits))
