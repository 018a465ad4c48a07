"""The free sums of the specification in two orders.

f32: a plain float32 chain from 0, ascending index, one rounding an addition, no FMA. Independent outputs
     are vectorised, the chain itself never.
f64: the sum in double, rounded to float32 once.
"""

import numpy as np

BLOCK = 32768  # outputs worked on at once: accumulator and product stay in the L2 cache


def _chain_small(a, b):
    """Few rows: all products, then a reduction over the outer axis, which NumPy runs in order."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    for t in range(a.shape[0]):
        product = b * a[t, :, None]
        out[t] = np.add.reduce(product, axis=0)
    return out + np.float32(0)


def chain_matmul(a, b):
    """a [T,K] @ b [K,N] as chains over K."""
    rows, depth = a.shape
    width = b.shape[1]
    if rows <= 2 and width >= 8:  # below 8 columns the reduction might become a contiguous one
        return _chain_small(a, b)
    out = np.zeros((rows, width), np.float32)
    step = max(1, BLOCK // width)
    for t in range(0, rows, step):
        part, left = out[t:t + step], np.ascontiguousarray(a[t:t + step].T)
        product = np.empty_like(part)
        for k in range(depth):
            np.multiply(left[k][:, None], b[k], out=product)
            np.add(part, product, out=part)
    return out


def chain_sum(x):
    """Sum over the last axis as a chain."""
    return np.add.accumulate(x, axis=-1, dtype=np.float32)[..., -1]


class Sums:
    """One of the two orders."""

    def __init__(self, order):
        if order not in ("f32", "f64"):
            raise ValueError(f"unknown sum order {order}")
        self.double = order == "f64"

    def matmul(self, a, b):
        """a [T,K] @ b [K,N]; products are exact or rounded to f32 first (no FMA) in f32 order."""
        if self.double:
            return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
        return chain_matmul(a, b)

    def total(self, x):
        """Sum over the last axis."""
        if self.double:
            return x.astype(np.float64).sum(axis=-1).astype(np.float32)
        return chain_sum(x)

    def scores(self, q, keys):
        """q [T,H,D] against each token's own keys [T,D,S] -> [T,H,S]."""
        if self.double:
            return np.matmul(q.astype(np.float64), keys.astype(np.float64)).astype(np.float32)
        out = np.zeros((q.shape[0], q.shape[1], keys.shape[2]), np.float32)
        left = np.ascontiguousarray(q.transpose(2, 0, 1))
        right = np.ascontiguousarray(keys.transpose(1, 0, 2))
        product = np.empty_like(out)
        for d in range(q.shape[2]):
            np.multiply(left[d][:, :, None], right[d][:, None, :], out=product)
            np.add(out, product, out=out)
        return out

    def mix(self, p, values):
        """p [T,H,S] with each token's own values [T,S,D] -> [T,H,D]; p is 0 where S is padding."""
        if self.double:
            return np.matmul(p.astype(np.float64), values.astype(np.float64)).astype(np.float32)
        out = np.zeros((p.shape[0], p.shape[1], values.shape[2]), np.float32)
        left = np.ascontiguousarray(p.transpose(2, 0, 1))
        product = np.empty_like(out)
        for s in range(p.shape[2]):
            np.multiply(left[s][:, :, None], values[:, s][:, None, :], out=product)
            np.add(out, product, out=out)
        return out
