"""The balanced losses as one formula on `keras.ops`.

For logits `z` over `K` classes, a true class `y` and a training prior `p`:

    s    = softmax(z / rho_y + a)_y       probability of the true class
    c    = -log s                         its cross-entropy
    loss = w_y * (1 - s^q) / q            (w_y * c at q = 0)

A loss is a choice of shift `a`, margins `rho`, weights `w` and `q`: a `surrogates.Surrogate`.
"""

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets

_BLOCK = 2**25  # Numbers in the largest array of the posterior under margins.
_STAGE = 8  # States of its chain that are left out before the array shrinks.
_REACH = 5e5  # A class whose logit is smaller than the largest by more than this is masked.
MASKED = -1e9  # Its logit. Not infinite: the difference of two would be NaN.


def as_logits(y_pred, surrogate, from_logits=True):
    """Returns predictions, logits or probabilities, as float32 or float64 logits."""
    y_pred = targets.as_tensor("y_pred", y_pred)
    if from_logits:
        backends.refuse_probabilities(y_pred)
    elif (logits := backends.logits_of(y_pred)) is not None:
        y_pred, from_logits = logits, True
    y_pred = as_full_precision(y_pred)
    if from_logits:
        return y_pred
    # The floor of the dtype, not epsilon: a wrong, confident example must keep its gradient.
    tiny = float(np.finfo(keras.backend.standardize_dtype(y_pred.dtype)).tiny)
    logits = _log_from(tiny, y_pred)
    return logits - _log_from(tiny, 1.0 - y_pred) if surrogate.binary else logits


def as_full_precision(tensor):
    """Returns a float64 tensor as it is, and any other as float32."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return tensor if dtype in ("float32", "float64") else ops.cast(tensor, "float32")


def _log_from(low, x):
    # Not `ops.maximum`, which is float32 on PyTorch.
    return ops.log(ops.where(x < low, _like(x, low), x))


def surrogate_loss(y_true, logits, surrogate, ignore_class=None):
    """Returns the loss `(...)` of each target under logits: of a binary surrogate of each label."""
    y_true = targets.as_tensor("y_true", y_true)
    if surrogate.binary:
        return _binary_loss(y_true, logits, surrogate, ignore_class)
    y_true, sparse = targets.match_shapes(y_true, logits, len(surrogate.priors))
    if sparse:
        return _sparse_loss(y_true, logits, surrogate, ignore_class)
    targets.refuse_ignored(y_true, ignore_class)
    return _soft_loss(ops.cast(y_true, logits.dtype), logits, surrogate)


def _sparse_loss(labels, logits, surrogate, ignore_class):
    if ignore_class is not None:
        ignored = targets.is_ignored(labels, ignore_class)
        label = targets.stand_in(surrogate.occurs, ignore_class)
        labels = ops.where(ignored, ops.full_like(labels, label), labels)
        # So that a NaN there does not reach the gradient.
        logits = ops.where(ignored[..., None], _like(logits, 0.0), logits)

    num_classes = len(surrogate.priors)
    labels, valid = targets.check_labels(labels, num_classes, surrogate.occurs)
    scale = shift = None
    if _differ(surrogate.margins, 1.0):
        scale = ops.take(_like(logits, 1.0 / surrogate.margins), labels)
    if _differ(surrogate.shift, 0.0):
        shift = _like(logits, surrogate.shift)
    cross_entropy = backends.sparse_cross_entropy(labels, logits, num_classes, scale, shift)
    losses = _psi(cross_entropy, surrogate.q)
    if _differ(surrogate.weights, 1.0):
        losses = losses * ops.take(_like(logits, surrogate.weights), labels)
    if surrogate.label_smoothing:
        mass = _like(logits, surrogate.smoothing_mass)
        smoothed = ops.sum(mass * _losses_of_classes(logits, surrogate), axis=-1)
        losses = (1.0 - surrogate.label_smoothing) * losses + smoothed
    losses = ops.where(valid, losses, _like(logits, np.nan))
    return losses if ignore_class is None else ops.where(ignored, _like(logits, 0.0), losses)


def _soft_loss(y_true, logits, surrogate):
    if not surrogate.occurs.all():
        out_of_range = ops.logical_and(~surrogate.occurs, ops.not_equal(y_true, 0))
        y_true = ops.where(out_of_range, _like(logits, np.nan), y_true)
    if surrogate.label_smoothing:
        total = ops.sum(y_true, axis=-1, keepdims=True)
        mass = _like(logits, surrogate.smoothing_mass)
        y_true = (1.0 - surrogate.label_smoothing) * y_true + total * mass
    losses = y_true * _losses_of_classes(logits, surrogate)
    # The loss of a masked class, of logit -inf, is infinite: no target may be there. A negative
    # target, such as padding of -1, is invalid.
    neutral = ops.where(ops.equal(y_true, 0), _like(logits, 0.0), _like(logits, np.nan))
    losses = ops.where(y_true > 0, losses, neutral)
    return ops.sum(losses, axis=-1)


def _losses_of_classes(logits, surrogate):
    """Returns the loss `(..., K)` that each class would have as the true one."""
    shift = _like(logits, surrogate.shift)
    if not _differ(surrogate.margins, 1.0):
        cross_entropies = -ops.log_softmax(logits + shift)
    else:
        inverse = _like(logits, 1.0 / surrogate.levels[:, None])
        normalizers = ops.logsumexp(logits[..., None, :] * inverse + shift, axis=-1)
        true = logits * _like(logits, 1.0 / surrogate.margins) + shift
        cross_entropies = ops.take(normalizers, np.array(surrogate.level_of), axis=-1) - true
    return _psi(cross_entropies, surrogate.q) * _like(logits, surrogate.weights)


def _binary_loss(y_true, logits, surrogate, ignore_class):
    """Returns the loss of each label, `(...)` or `(..., L)`: that of the logits `(0, z)`."""
    y_true, logits = targets.match_binary(y_true, logits, surrogate.num_labels)
    y_true = ops.cast(y_true, logits.dtype)
    if ignore_class is not None:
        ignored = targets.is_ignored(y_true, ignore_class)
        y_true = ops.where(ignored, _like(logits, 0.0), y_true)
        logits = ops.where(ignored, _like(logits, 0.0), logits)
    valid = ops.logical_and(y_true >= 0, y_true <= 1)
    if surrogate.label_smoothing:
        mass = _like(logits, surrogate.smoothing_mass[..., 1])
        y_true = (1.0 - surrogate.label_smoothing) * y_true + mass

    def loss_of(label):
        shift = surrogate.shift[..., 1] - surrogate.shift[..., 0]
        z = logits * _like(logits, 1.0 / surrogate.margins[..., label]) + _like(logits, shift)
        losses = _psi(ops.softplus(-z if label else z), surrogate.q)
        return losses * _like(logits, surrogate.weights[..., label])

    losses = y_true * loss_of(1) + (1.0 - y_true) * loss_of(0)
    losses = losses * ops.where(valid, _like(logits, 1.0), _like(logits, np.nan))
    return losses if ignore_class is None else ops.where(ignored, _like(logits, 0.0), losses)


def log_posterior(logits, surrogate, mix):
    """Returns the log-probabilities `(..., K)` of the classes under a class mix.

    Of a binary surrogate and logits `(...)` those of label 0 and 1, `(..., 2)`.

    With `u_y = eta_y w_y s_y^q / rho_y`, where `eta` is the posterior of the training mix, the
    minimiser of the loss is where `u P = u` for `P[y, k] = softmax(z / rho_y + a)_k`. Equal
    margins make every row of `P` the same, hence `u = s`.
    """
    if surrogate.binary:
        logits = ops.stack([ops.zeros_like(logits), logits], axis=-1)
    logits, masked = _within_reach(logits, surrogate)
    if surrogate.binary:
        log_u, log_s = _stationary_of_two(logits, surrogate)
    elif not _differ(surrogate.margins, 1.0):
        log_u = log_s = ops.log_softmax(logits + _like(logits, surrogate.shift))
    else:
        log_u, log_s = _in_blocks(lambda z: _stationary(z, surrogate), logits, surrogate)
    log_eta = log_u - surrogate.q * log_s + _log_ratio(logits, surrogate.margins, surrogate.weights)
    if surrogate.label_smoothing:
        log_eta = _without_smoothing(ops.log_softmax(log_eta), surrogate)
    log_eta = ops.where(masked, _like(log_eta, MASKED), log_eta)
    return change_mix(log_eta, surrogate, surrogate.priors, mix)


def change_mix(log_p, surrogate, before, after):
    """Returns log-probabilities, but for a constant, under one class mix as those under another."""
    # A mix says nothing of an absent class.
    before, after = (np.where(surrogate.occurs, mix, 1.0) for mix in (before, after))
    return ops.log_softmax(mask_absent(log_p + _log_ratio(log_p, after, before), surrogate))


def mask_absent(logits, surrogate):
    """Returns logits with a large negative number for the classes that do not occur."""
    if surrogate.occurs.all():
        return logits
    low = -3e4 if keras.backend.standardize_dtype(logits.dtype) == "float16" else MASKED
    return ops.where(ops.convert_to_tensor(np.array(surrogate.occurs)), logits, _like(logits, low))


def _within_reach(logits, surrogate):
    """Returns logits near enough to each other to compute with, and which classes are masked.

    Masked are the classes that do not occur, and those whose logit is far below the largest of
    their example, as one of -inf. The posterior of the others is what it would be without them.
    """
    logits = ops.clip(logits, -1e30, 1e30)
    if not surrogate.occurs.all():
        occurs = ops.convert_to_tensor(np.array(surrogate.occurs))
        logits = ops.where(occurs, logits, _like(logits, -np.inf))
    largest = backends.largest(logits)[..., None]
    # Near 0 the logits stay as they are: a difference is rounded, and of small ones not exact.
    far = ops.where(ops.abs(largest) > 0.1 * _REACH, largest, _like(logits, 0.0))
    logits, lowest = logits - far, largest - far - _REACH
    masked = logits < lowest
    return ops.where(masked, lowest, logits), masked


def _without_smoothing(log_eta, surrogate):
    """Returns the logarithm of the posterior of the labels before they were smoothed."""
    mass = surrogate.smoothing_mass
    # A model that has not fitted may predict less than the mass: then a hundredth of it is left.
    # (Of an absent class there is none, and its logit is masked.)
    least = _like(log_eta, np.where(surrogate.occurs, 0.01 * mass, 1.0))
    eta = ops.exp(log_eta) - _like(log_eta, mass)
    return ops.log_softmax(ops.log(ops.where(eta < least, least, eta)))


def _stationary_of_two(logits, surrogate):
    """Returns `log u`, where `u P = u`, and `log s`, both `(..., 2)`."""
    inverse = _like(logits, 1.0 / surrogate.margins[..., :, None])
    shift = _like(logits, surrogate.shift[..., None, :])
    log_p = ops.log_softmax(logits[..., None, :] * inverse + shift)
    log_u = ops.stack([log_p[..., 1, 0], log_p[..., 0, 1]], axis=-1)  # But for a constant.
    return log_u, ops.stack([log_p[..., 0, 0], log_p[..., 1, 1]], axis=-1)


def _in_blocks(function, logits, surrogate):
    """Returns `function(logits)`, of so many rows at once as `(rows, G, K)` numbers fit."""
    num_classes, shape = len(surrogate.priors), ops.shape(logits)
    rows = max(1, _BLOCK // (len(surrogate.levels) * num_classes))
    flat = ops.reshape(logits, (-1, num_classes))
    # A number of rows that is not known before it runs is that of a batch.
    if not isinstance(flat.shape[0], int) or flat.shape[0] <= rows:
        return function(logits)
    parts = [function(flat[i : i + rows]) for i in range(0, flat.shape[0], rows)]
    return [ops.reshape(ops.concatenate(part), shape) for part in zip(*parts, strict=True)]


def _stationary(logits, surrogate):
    """Returns `log u`, where `u P = u`, but for a constant, and `log s`, both `(..., K)`.

    Classes of one margin have the same row of `P`. So the mass `U_g` of each of the `G` levels is
    stationary too, under `Q[g, h]`, the sum of row `g` over the classes of level `h`; and
    `u_k = sum_g U_g P_g[k]`.
    """
    level_of, shift = np.array(surrogate.level_of), surrogate.shift
    num_levels = len(surrogate.levels)
    members = [np.flatnonzero((level_of == g) & surrogate.occurs) for g in range(num_levels)]
    # Members of each level, the first repeated up to one length: for the largest that is enough.
    size = max(map(len, members))
    padded = np.stack([np.resize(classes, size) for classes in members])
    largest = backends.largest(ops.take(logits, padded, axis=-1))  # (..., G), of a level
    largest_shift = np.array([shift[classes].max() for classes in members])
    inverse = _like(logits, 1.0 / surrogate.levels[:, None])

    # Every level's sum has a term near 1, so nothing that counts is lost to underflow.
    below = logits - ops.take(largest, level_of, axis=-1)
    below = below[..., None, :] * inverse + _like(logits, shift - largest_shift[level_of])
    of_level = _like(logits, np.eye(num_levels)[level_of])
    # An operator: `ops.matmul` of float64 is float32 on PyTorch.
    log_q = ops.log(ops.exp(below) @ of_level)
    log_q = log_q + largest[..., None, :] * inverse + _like(logits, largest_shift)
    normalizers = ops.logsumexp(log_q, axis=-1)  # (..., G), of a row
    log_q = ops.reshape(log_q - normalizers[..., None], (-1, num_levels, num_levels))
    log_mass = ops.reshape(_log_stationary(log_q), ops.shape(normalizers))

    # In this order, TensorFlow does not hold an array of `(..., G, K)` until the masses are known.
    masses = (log_mass - normalizers) * _like(logits, surrogate.levels)
    rows = (logits[..., None, :] + masses[..., None]) * inverse
    log_u = ops.logsumexp(rows, axis=-2) + _like(logits, shift)
    true = logits * _like(logits, 1.0 / surrogate.margins) + _like(logits, shift)
    return log_u, true - ops.take(normalizers, level_of, axis=-1)


@backends.compiled
def _log_stationary(log_q):
    """Returns `log u`, but for a constant, where `u Q = u` for row-stochastic `Q` `(N, G, G)`.

    State reduction: the chain watched only while it is in the first `n` states, for falling `n`.
    Nothing is subtracted, so small entries are as exact as large ones.

    References:
        - [Grassmann, Taksar and Heyman, 1985](https://doi.org/10.1287/opre.33.5.1107)
    """
    never = _like(log_q, 0.5 * float(np.finfo(keras.backend.standardize_dtype(log_q.dtype)).min))
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


def _leave_out(log_q, n, never):
    """Returns `log Q` of the chain watched before state `n`, and beside it how it enters `n`."""
    state = ops.arange(log_q.shape[-1])
    leave = ops.where(state < n, ops.take(log_q, n, axis=-2), never)
    enter = ops.take(log_q, n, axis=-1) - ops.logsumexp(leave, axis=-1, keepdims=True)
    watched = _log_add(log_q, enter[..., :, None] + leave[..., None, :])
    watched = ops.where(ops.equal(state, n), enter[..., :, None], watched)
    return ops.where(ops.logical_and((state < n)[:, None], state <= n), watched, log_q)


def _enter(log_u, entered, kept, step, never):
    """Returns `log u` with that of the state `kept + step`, from the states before it."""
    state, n = ops.arange(log_u.shape[-1]), kept + step
    of_state = ops.where(state < n, log_u + ops.take(entered, step, axis=-1), never)
    of_state = ops.logsumexp(of_state, axis=-1, keepdims=True)
    log_u = ops.where(ops.equal(state, n), of_state, log_u)
    # The largest is 0: what the chain leaves for good, a masked class, may have come first.
    return log_u - backends.largest(log_u)[..., None]


def _log_add(a, b):
    # `ops.logaddexp` is float32 on PyTorch, and its gradient wrong at ties on TensorFlow.
    larger, smaller = ops.where(a > b, a, b), ops.where(a > b, b, a)
    return larger + ops.log(1.0 + ops.exp(smaller - larger))  # ONNX has no log1p.


def _psi(cross_entropy, q):
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _like(tensor, values):
    # A copy: PyTorch warns of arrays that are read-only.
    return ops.convert_to_tensor(np.array(values), dtype=tensor.dtype)


def _log_ratio(tensor, numerator, denominator):
    return _like(tensor, np.log(numerator / denominator))


def _differ(values, neutral):
    """Returns whether constants per class change anything."""
    return bool((values != neutral).any())
