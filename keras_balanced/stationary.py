"""The stationary distribution `u P = u` that the posterior of a loss with margins needs.

For logits `z` and the margin `rho_y` of each class, `P[y, k] = softmax(z / rho_y + shift)_k`.
Classes of one margin have the same row of `P`, so the chain is solved between the `G` levels of
margins.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_balanced import backends
from keras_balanced.backends import Tensor, like
from keras_balanced.surrogates import Surrogate

_BLOCK = 2**25  # Numbers in the largest array.
_STAGE = 8  # States of the chain that are left out before the array shrinks.


def log_stationary(logits: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Returns `log u`, up to a constant per example, and `log s`, where `s_y = P[y, y]`.

    Both are `(..., K)`, as the logits; of a binary surrogate `(..., 2)`.
    """
    if surrogate.binary:
        return _of_two(logits, surrogate)
    if (surrogate.margins == 1.0).all():  # Every row of `P` is `u`.
        log_s = ops.log_softmax(logits + like(logits, surrogate.shift))
        return log_s, log_s
    return _in_blocks(lambda rows: _of_levels(rows, surrogate), logits, surrogate)


def _of_two(logits: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Returns `log u` and `log s`, both `(..., 2)`: of two states `u` is `(P[1, 0], P[0, 1])`."""
    inverse = like(logits, 1.0 / surrogate.margins[..., :, None])
    shift = like(logits, surrogate.shift[..., None, :])
    log_p = ops.log_softmax(logits[..., None, :] * inverse + shift)
    log_u = ops.stack([log_p[..., 1, 0], log_p[..., 0, 1]], axis=-1)
    return log_u, ops.stack([log_p[..., 0, 0], log_p[..., 1, 1]], axis=-1)


def _in_blocks(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], logits: Tensor, surrogate: Surrogate
) -> tuple[Tensor, Tensor]:
    """Returns `function(logits)`, of as many rows at once as `(rows, G, K)` numbers allow."""
    num_classes, shape = len(surrogate.priors), ops.shape(logits)
    rows = max(1, _BLOCK // (len(surrogate.levels) * num_classes))
    flat = ops.reshape(logits, (-1, num_classes))
    # A number of rows that is not known before it runs is that of a batch.
    if not isinstance(flat.shape[0], int) or flat.shape[0] <= rows:
        return function(logits)
    parts = [function(flat[i : i + rows]) for i in range(0, flat.shape[0], rows)]
    log_u, log_s = (ops.reshape(ops.concatenate(p), shape) for p in zip(*parts, strict=True))
    return log_u, log_s


def _of_levels(logits: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Returns `log u`, up to a constant, and `log s`, both `(..., K)`.

    Classes of one margin have the same row of `P`. So the mass `U_g` of each of the `G` levels is
    stationary too, under `Q[g, h]`, the sum of row `g` over the classes of level `h`; and
    `u_k = sum_g U_g P_g[k]`.
    """
    level_of, shift = np.array(surrogate.level_of), surrogate.shift
    num_levels = len(surrogate.levels)
    members = [np.flatnonzero((level_of == g) & surrogate.occurs) for g in range(num_levels)]
    # The members of each level, repeated up to one length, which changes no maximum.
    size = max(map(len, members))
    padded = np.stack([np.resize(classes, size) for classes in members])
    largest = backends.largest(ops.take(logits, padded, axis=-1))  # (..., G), of a level
    largest_shift = np.array([shift[classes].max() for classes in members])
    inverse = like(logits, 1.0 / surrogate.levels[:, None])

    # Every level's sum has a term near 1, so nothing that counts is lost to underflow.
    below = logits - ops.take(largest, level_of, axis=-1)
    below = below[..., None, :] * inverse + like(logits, shift - largest_shift[level_of])
    of_level = like(logits, np.eye(num_levels)[level_of])
    # An operator: `ops.matmul` of float64 is float32 on PyTorch.
    log_q = ops.log(ops.exp(below) @ of_level)
    log_q = log_q + largest[..., None, :] * inverse + like(logits, largest_shift)
    normalizers = ops.logsumexp(log_q, axis=-1)  # (..., G), of a row
    log_q = ops.reshape(log_q - normalizers[..., None], (-1, num_levels, num_levels))
    log_mass = ops.reshape(_solve(log_q), ops.shape(normalizers))

    # In this order, TensorFlow does not hold an array of `(..., G, K)` until the masses are known.
    masses = (log_mass - normalizers) * like(logits, surrogate.levels)
    rows = (logits[..., None, :] + masses[..., None]) * inverse
    log_u = ops.logsumexp(rows, axis=-2) + like(logits, shift)
    true = logits * like(logits, 1.0 / surrogate.margins) + like(logits, shift)
    return log_u, true - ops.take(normalizers, level_of, axis=-1)


@backends.compiled
def _solve(log_q: Tensor) -> Tensor:
    """Returns `log u`, up to a constant, where `u Q = u` for row-stochastic `Q` `(N, G, G)`.

    State reduction: the chain watched only while it is in the first `n` states, for falling `n`.
    Nothing is subtracted, so small entries are as exact as large ones.

    References:
        - [Grassmann, Taksar and Heyman, 1985](https://doi.org/10.1287/opre.33.5.1107)
    """
    never = like(log_q, 0.5 * float(np.finfo(keras.backend.standardize_dtype(log_q.dtype)).min))
    # A few states at a time, between which the array shrinks: that halves the work.
    stages = []
    while (num_states := log_q.shape[-1]) > 1:
        left_out = min(_STAGE, num_states - 1)
        log_q = ops.fori_loop(
            0, left_out, lambda step, q: _leave_out(q, q.shape[-1] - 1 - step, never), log_q
        )
        kept = num_states - left_out
        stages.append(log_q[..., kept:])
        log_q = log_q[..., :kept, :kept]
    log_u = ops.zeros_like(log_q[..., 0])
    for entered in reversed(stages):
        kept = log_u.shape[-1]
        padding = ops.full_like(entered[..., 0, :], never)
        log_u = ops.fori_loop(
            0,
            entered.shape[-1],
            lambda step, u, entered=entered, kept=kept: _enter(u, entered, kept, step, never),
            ops.concatenate([log_u, padding], axis=-1),
        )
    return log_u


def _leave_out(log_q: Tensor, n: Tensor, never: Tensor) -> Tensor:
    """Returns `log Q` of the chain watched before state `n`, and beside it how it enters `n`."""
    state = ops.arange(log_q.shape[-1])
    leave = ops.where(state < n, ops.take(log_q, n, axis=-2), never)
    enter = ops.take(log_q, n, axis=-1) - ops.logsumexp(leave, axis=-1, keepdims=True)
    watched = _log_add(log_q, enter[..., :, None] + leave[..., None, :])
    watched = ops.where(ops.equal(state, n), enter[..., :, None], watched)
    return ops.where(ops.logical_and((state < n)[:, None], state <= n), watched, log_q)


def _enter(log_u: Tensor, entered: Tensor, kept: int, step: Tensor, never: Tensor) -> Tensor:
    """Returns `log u` with that of the state `kept + step`, from the states before it."""
    state, n = ops.arange(log_u.shape[-1]), kept + step
    of_state = ops.where(state < n, log_u + ops.take(entered, step, axis=-1), never)
    of_state = ops.logsumexp(of_state, axis=-1, keepdims=True)
    log_u = ops.where(ops.equal(state, n), of_state, log_u)
    # The largest becomes 0: a masked class, which the chain leaves for good, may have come first.
    return log_u - backends.largest(log_u)[..., None]


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    # `ops.logaddexp` is float32 on PyTorch, and its gradient wrong at ties on TensorFlow.
    larger, smaller = ops.where(a > b, a, b), ops.where(a > b, b, a)
    return larger + ops.log(1.0 + ops.exp(smaller - larger))  # ONNX has no log1p.
