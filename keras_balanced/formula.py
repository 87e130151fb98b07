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


def as_logits(y_pred, surrogate, from_logits=True):
    """Returns predictions, logits or probabilities, as float32 or float64 logits."""
    if from_logits:
        backends.refuse_probabilities(y_pred)
    elif (logits := backends.logits_of(y_pred)) is not None:
        y_pred, from_logits = logits, True
    y_pred = ops.convert_to_tensor(y_pred)
    dtype = keras.backend.standardize_dtype(y_pred.dtype)
    if dtype not in ("float32", "float64"):
        y_pred, dtype = ops.cast(y_pred, "float32"), "float32"
    if from_logits:
        return y_pred
    # The floor of the dtype, not epsilon: a wrong, confident example must keep its gradient.
    tiny = float(np.finfo(dtype).tiny)
    logits = ops.log(ops.maximum(y_pred, tiny))
    if surrogate.binary:
        return logits - ops.log(ops.maximum(1.0 - y_pred, tiny))
    return logits


def surrogate_loss(y_true, logits, surrogate, ignore_class=None):
    """Returns the loss `(...)` of each target under logits: of a binary surrogate of each label."""
    y_true = ops.convert_to_tensor(y_true)
    if surrogate.binary:
        return _binary_loss(y_true, logits, surrogate, ignore_class)
    y_true, sparse = targets.match_shapes(y_true, logits, len(surrogate.priors))
    if sparse:
        return _sparse_loss(ops.cast(y_true, "int32"), logits, surrogate, ignore_class)
    if ignore_class is not None:
        raise ValueError(
            "`ignore_class` needs `y_true` of integer classes. Received: targets of shape "
            f"{tuple(y_true.shape)} and ignore_class={ignore_class}"
        )
    return _soft_loss(ops.cast(y_true, logits.dtype), logits, surrogate)


def _sparse_loss(labels, logits, surrogate, ignore_class):
    if ignore_class is not None:
        ignored = ops.equal(labels, ignore_class)
        labels = ops.where(ignored, 0, labels)
        # So that a NaN there does not reach the gradient.
        logits = ops.where(ignored[..., None], _like(logits, 0.0), logits)

    num_classes = len(surrogate.priors)
    has_margins, has_weights = _differ(surrogate.margins, 1.0), _differ(surrogate.weights, 1.0)
    if has_margins or has_weights:
        # What is out of range is for the cross-entropy to refuse.
        known = ops.clip(labels, 0, num_classes - 1)
    if has_margins:
        logits = logits * ops.take(_like(logits, 1.0 / surrogate.margins), known)[..., None]
    if _differ(surrogate.shift, 0.0):
        logits = logits + _like(logits, surrogate.shift)
    losses = _psi(backends.sparse_cross_entropy(labels, logits, num_classes), surrogate.q)
    if has_weights:
        losses = losses * ops.take(_like(logits, surrogate.weights), known)
    return losses if ignore_class is None else ops.where(ignored, _like(logits, 0.0), losses)


def _soft_loss(y_true, logits, surrogate):
    losses = _psi(_cross_entropy_of_classes(logits, surrogate), surrogate.q)
    return ops.sum(y_true * losses * _like(logits, surrogate.weights), axis=-1)


def _cross_entropy_of_classes(logits, surrogate):
    """Returns what the cross-entropy would be for each true class, `(..., K)`."""
    shift = _like(logits, surrogate.shift)
    if not _differ(surrogate.margins, 1.0):
        return -ops.log_softmax(logits + shift)

    def normalizer(inverse_margin, logits):
        return ops.logsumexp(logits * inverse_margin + shift, axis=-1)

    # One class at a time, and again for the gradient: all at once would take (..., K, K) memory.
    normalizer = backends.rematerialize(normalizer)
    inverse = _like(logits, 1.0 / surrogate.margins)
    normalizers = ops.map(lambda r: normalizer(r, logits), inverse)
    return ops.moveaxis(normalizers, 0, -1) - (logits * inverse + shift)


def _binary_loss(y_true, logits, surrogate, ignore_class):
    """Returns the loss of each label, `(...)` or `(..., L)`: that of the logits `(0, z)`."""
    y_true, logits = targets.match_binary(y_true, logits, surrogate.num_labels)
    y_true = ops.cast(y_true, logits.dtype)
    if ignore_class is not None:
        ignored = ops.equal(y_true, ignore_class)
        y_true = ops.where(ignored, _like(logits, 0.0), y_true)
        logits = ops.where(ignored, _like(logits, 0.0), logits)

    def loss_of(label):
        shift = surrogate.shift[..., 1] - surrogate.shift[..., 0]
        z = logits * _like(logits, 1.0 / surrogate.margins[..., label]) + _like(logits, shift)
        losses = _psi(ops.softplus(-z if label else z), surrogate.q)
        return losses * _like(logits, surrogate.weights[..., label])

    losses = y_true * loss_of(1) + (1.0 - y_true) * loss_of(0)
    valid = ops.logical_and(y_true >= 0, y_true <= 1)
    losses = losses * ops.where(valid, _like(logits, 1.0), _like(logits, np.nan))
    return losses if ignore_class is None else ops.where(ignored, _like(logits, 0.0), losses)


def log_posterior(logits, surrogate, target_priors):
    """Returns the log-probabilities `(..., K)` of the classes under a class mix.

    Of a binary surrogate and logits `(...)` those of label 0 and 1, `(..., 2)`.

    With `u_y = eta_y w_y s_y^q / rho_y`, where `eta` is the posterior of the training mix, the
    minimiser of the loss is where `u P = u` for `P[y, k] = softmax(z / rho_y + a)_k`. Equal
    margins make every row of `P` the same, hence `u = s`.
    """
    if surrogate.binary:
        logits = ops.stack([ops.zeros_like(logits), logits], axis=-1)
    shift = _like(logits, surrogate.shift)
    if not _differ(surrogate.margins, 1.0):
        log_s = ops.log_softmax(logits + shift)
        log_u = log_s
    else:
        inverse = _like(logits, 1.0 / surrogate.margins[..., :, None])
        log_p = ops.log_softmax(logits[..., None, :] * inverse + shift[..., None, :])
        log_s = ops.diagonal(log_p, axis1=-2, axis2=-1)
        log_u = _log_stationary(log_p)
    change = np.log(target_priors * surrogate.margins / surrogate.priors / surrogate.weights)
    return ops.log_softmax(log_u - surrogate.q * log_s + _like(logits, change))


def _log_stationary(log_p, tolerance=1e-5, max_steps=1000):
    """Returns `log u` for `u P = u`, for row-stochastic `P` `(..., K, K)`, by power iteration."""
    p = ops.exp(log_p)
    tiny = float(np.finfo(keras.backend.standardize_dtype(p.dtype)).tiny)

    def step(u, _):
        new = ops.matmul(u[..., None, :], p)[..., 0, :]
        new = new / ops.sum(new, axis=-1, keepdims=True)
        # Relative to each entry: `log_posterior` takes a small one to be as sure as a large one.
        return new, ops.max(ops.abs(new - u) / ops.maximum(new, tiny))

    u, _ = ops.while_loop(
        lambda u, change: change > tolerance,
        step,
        (ops.mean(p, axis=-2), _like(p, 1.0)),
        maximum_iterations=max_steps,
    )
    # The last step in log space: what underflows in `u` keeps its logarithm.
    return ops.logsumexp(ops.log(ops.maximum(u, tiny))[..., :, None] + log_p, axis=-2)


def _psi(cross_entropy, q):
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _like(tensor, values):
    return ops.convert_to_tensor(values, dtype=tensor.dtype)


def _differ(values, neutral):
    """Returns whether constants per class change anything."""
    return bool((values != neutral).any())
