"""Kernels for CUDA where torch would take several, or would write an attention map to memory. Triton is optional.

Each has the same name and arguments as the torch function below it, which is its reference and what every other device
runs. Sums are made in float32 and in a fixed order, without atomics: the same input gives the same bits. Spreading merged
tokens again has no kernel here: torch takes one gather for it.
"""

import os
import shutil

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

COMPILER = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang")))  # Triton builds its launcher with one
TYPES = (torch.float16, torch.bfloat16, torch.float32)
ENOUGH = 264  # programs that keep a large GPU busy: two for each of an H100's multiprocessors


def here(x):
    """Whether a kernel takes this tensor."""
    return bool(triton is not None and COMPILER) and x.is_cuda and x.dtype in TYPES


def row_lse(q, k):
    """Log-sum-exp of every row of q k^T: (B, H, N, d), (B, H, M, d) -> (B, H, N) float32. The map is not stored."""
    if here(q):
        return launched_row_lse(q, k)
    return (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)).logsumexp(-1)


def column_sums(q, k, lse, s, strips=1):
    """What each strip of queries gives to each key, sum_i exp(q_i k_j - lse_i) s_i over its i; all strips together give
    A^T s. q (B, H, N, d), k (B, H, M, d), lse and s (B, H, N) -> (B, H, strips, M) float32. strips divides N."""
    if here(q):
        return launched_column_sums(q, k, lse, s, strips)
    shares = (q @ k.transpose(2, 3) - lse[..., None]).exp()
    return (s.unflatten(2, (strips, 1, -1)) @ shares.unflatten(2, (strips, -1))).squeeze(3)


def merge(x, members, starts):
    """Means of groups of tokens: x (B, N, C); members (B * N,): tokens of the whole batch in order of their group; starts
    (B * G,): where each group begins. -> (B, G, C)"""
    if here(x):
        return launched_merge(x, members, starts)
    found = torch.nn.functional.embedding_bag(members, x.flatten(0, 1), starts, mode="mean")
    return found.unflatten(0, (len(x), -1))


def apply(weights, v):
    """A V of all heads, side by side as the next projection reads them: weights (B, H, N, M), v (B, M, H * d) as the
    projection of the values writes them -> (B, N, H * d). torch copies the values and the result to change their layout; in
    single precision it is the faster one all the same."""
    if here(v) and v.dtype != torch.float32:
        return launched_apply(weights, v)
    return (weights @ v.unflatten(2, (weights.shape[1], -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


# How they are launched

def tile(d):
    """Rows and keys taken at a time and the width of a head as a power of two, for heads of width d."""
    wide = max(16, triton.next_power_of_2(d))
    return (64, 64, wide) if wide <= 128 else (32, 32, wide)


def launched_row_lse(q, k):
    (b, h, n, d), m = q.shape, k.shape[2]
    lse, (rows, keys, wide) = q.new_empty(b, h, n, dtype=torch.float32), tile(d)
    row_lse_kernel[triton.cdiv(n, rows), b * h](q.contiguous(), k.contiguous(), lse, n, m, d, rows, keys, wide)
    return lse


def launched_column_sums(q, k, lse, s, strips=1):
    (b, h, n, d), m = q.shape, k.shape[2]
    sums, (rows, keys, wide) = q.new_empty(b, h, strips, m, dtype=torch.float32), tile(d)
    column_sums_kernel[triton.cdiv(m, keys), strips, b * h](
        q.contiguous(), k.contiguous(), lse.float().contiguous(), s.float().contiguous(), sums, n, m, d, n // strips, rows,
        keys, wide)
    return sums


def launched_merge(x, members, starts):
    (b, n, c), groups = x.shape, len(starts)
    out = x.new_empty(b, groups // b, c)
    wide = min(512, triton.next_power_of_2(c))
    merge_kernel[groups, triton.cdiv(c, wide)](x.contiguous(), members, starts, out, b * n, groups, c, wide)
    return out


def launched_apply(weights, v):
    (b, h, n, m), width = weights.shape, v.shape[2]
    out, d = v.new_empty(b, n, width), width // h
    (rows, keys, wide), warps = tile(d), 4
    if wide <= 64 and b * h * triton.cdiv(n, 128) >= ENOUGH:  # the values are read once for each block of rows
        rows, warps = 128, 8
    elif wide > 128:
        rows, warps = 64, 8
    apply_kernel[triton.cdiv(n, rows), h, b](weights.contiguous(), v.contiguous(), out, n, m, width, d, rows, keys, wide,
                                             num_warps=warps)
    return out


# The kernels

if triton is not None:
    @triton.jit
    def row_lse_kernel(Q, K, LSE, n, m, d: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr):
        head, row, x = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
        q = tl.load(Q + head * n * d + row[:, None] * d + x[None, :], mask=(row[:, None] < n) & (x[None, :] < d), other=0.0)
        most, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
        for start in range(0, m, KEYS):
            key = start + tl.arange(0, KEYS)
            k = tl.load(K + head * m * d + key[None, :] * d + x[:, None], mask=(key[None, :] < m) & (x[:, None] < d), other=0.0)
            logits = tl.where(key[None, :] < m, tl.dot(q, k, input_precision="ieee"), float("-inf"))
            more = tl.maximum(most, tl.max(logits, 1))
            total = total * tl.exp(most - more) + tl.sum(tl.exp(logits - more[:, None]), 1)
            most = more
        tl.store(LSE + head * n + row, most + tl.log(total), mask=row < n)

    @triton.jit
    def column_sums_kernel(Q, K, LSE, S, SUMS, n, m, d: tl.constexpr, length, ROWS: tl.constexpr, KEYS: tl.constexpr,
                           WIDE: tl.constexpr):
        strip, head, x = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.arange(0, WIDE)
        key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
        k = tl.load(K + head * m * d + key[None, :] * d + x[:, None], mask=(key[None, :] < m) & (x[:, None] < d), other=0.0)
        sums = tl.zeros([KEYS], tl.float32)
        for start in range(0, length, ROWS):
            inside = start + tl.arange(0, ROWS)
            row = strip * length + inside
            q = tl.load(Q + head * n * d + row[:, None] * d + x[None, :],
                        mask=(inside[:, None] < length) & (x[None, :] < d), other=0.0)
            lse = tl.load(LSE + head * n + row, mask=inside < length, other=float("inf"))
            s = tl.load(S + head * n + row, mask=inside < length, other=0.0)
            sums += tl.sum(tl.exp(tl.dot(q, k, input_precision="ieee") - lse[:, None]) * s[:, None], 0)
        tl.store(SUMS + (head * tl.num_programs(1) + strip) * m + key, sums, mask=key < m)

    @triton.jit
    def merge_kernel(X, MEMBERS, STARTS, OUT, tokens, groups, c, WIDE: tl.constexpr):
        group, x = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        begin = tl.load(STARTS + group)
        end = tl.load(STARTS + group + 1, mask=group + 1 < groups, other=tokens)
        total = tl.zeros([WIDE], tl.float32)
        for i in range(begin, end):
            total += tl.load(X + tl.load(MEMBERS + i) * c + x, mask=x < c, other=0.0).to(tl.float32)
        tl.store(OUT + group * c + x, total / (end - begin), mask=x < c)

    @triton.jit
    def apply_kernel(A, V, OUT, n, m, width, d: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr):
        h, head, b = tl.num_programs(1), tl.program_id(1), tl.program_id(2).to(tl.int64)
        row, x = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, WIDE)
        A += (b * h + head) * n * m
        V += b * m * width + head * d
        total = tl.zeros([ROWS, WIDE], tl.float32)
        for start in range(0, m, KEYS):
            key = start + tl.arange(0, KEYS)
            a = tl.load(A + row[:, None] * m + key[None, :], mask=(row[:, None] < n) & (key[None, :] < m), other=0.0)
            v = tl.load(V + key[:, None] * width + x[None, :], mask=(key[:, None] < m) & (x[None, :] < d), other=0.0)
            total += tl.dot(a, v, input_precision="ieee")
        place = (b * n + row[:, None]) * width + head * d + x[None, :]
        tl.store(OUT + place, total, mask=(row[:, None] < n) & (x[None, :] < d))
