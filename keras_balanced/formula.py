"""The balanced losses as one formula on `keras.ops`.

For logits `z` over `K` classes, a true class `y` and a training prior `p`:

    s    = softmax(z / rho_y + a)_y       probability of the true class
    c    = -log s                         its cross-entropy
    loss = w_y * (1 - s^q) / q            (w_y * c at q = 0)

A loss is a choice of shift `a`, margins `rho`, weights `w` and `q`: a `Surrogate`.
"""

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets


def surrogate_loss(y_true, y_pred, surrogate, from_logits=True, ignore_class=None):
    """Returns the loss `(...)` of targets `y_true` under predictions `y_pred` `(..., K)`."""
    num_classes = len(surrogate.priors)
    logits = as_logits(y_pred, from_logits)
    y_true, sparse = targets.match_shapes(ops.convert_to_tensor(y_true), logits, num_classes)
    if sparse:
        return _sparse_loss(ops.cast(y_true, "int32"), logits, surrogate, ignore_class)
    if ignore_class is not None:
        raise ValueError(
            "`ignore_class` needs `y_true` of integer classes. Received: targets of shape "
            f"{tuple(y_true.shape)} and ignore_class={ignore_class}"
        )
    losses = _psi(_cross_entropy_of_classes(logits, surrogate), surrogate.q)
    if surrogate.weights is not None:
        losses = losses * _like(logits, surrogate.weights)
    return ops.sum(ops.cast(y_true, logits.dtype) * losses, axis=-1)


def _sparse_loss(labels, logits, surrogate, ignore_class):
    num_classes = len(surrogate.priors)
    ignored = None if ignore_class is None else ops.equal(labels, ignore_class)
    if ignored is not None:
        labels = ops.where(ignored, 0, labels)
        # So that a NaN there does not reach the gradient.
        logits = ops.where(ignored[..., None], _like(logits, 0.0), logits)
    labels, valid = backends.check_labels(labels, num_classes)

    def of_class(vector):
        return ops.take(_like(logits, vector), labels)

    # Under XLA this takes less time than Keras's sparse cross-entropy of the adjusted logits.
    is_class = ops.equal(labels[..., None], ops.arange(num_classes, dtype=labels.dtype))
    true = ops.sum(ops.where(is_class, logits, _like(logits, 0.0)), axis=-1)
    if surrogate.margins is not None:
        inverse_margin = of_class(1.0 / surrogate.margins)
        true, logits = true * inverse_margin, logits * inverse_margin[..., None]
    if surrogate.shift is not None:
        true, logits = true + of_class(surrogate.shift), logits + _like(logits, surrogate.shift)
    largest = ops.stop_gradient(ops.max(logits, axis=-1))
    normalizer = ops.log(ops.sum(ops.exp(logits - largest[..., None]), axis=-1))
    losses = _psi(normalizer - (true - largest), surrogate.q)
    if surrogate.weights is not None:
        losses = losses * of_class(surrogate.weights)
    losses = ops.where(valid, losses, _like(logits, np.nan))
    return losses if ignored is None else ops.where(ignored, _like(logits, 0.0), losses)


def _cross_entropy_of_classes(logits, surrogate):
    """Returns what the cross-entropy would be for each true class, `(..., K)`."""
    shift = _like(logits, _or(surrogate.shift, 0.0))
    if surrogate.margins is None:
        return -ops.log_softmax(logits + shift)

    def normalizer(inverse_margin, logits):
        return ops.logsumexp(logits * inverse_margin + shift, axis=-1)

    # One class at a time, and again for the gradient: all at once would take (..., K, K) memory.
    if keras.backend.backend() != "torch":  # There it saves nothing and takes ten times the time.
        normalizer = keras.remat(normalizer)
    inverse = _like(logits, 1.0 / surrogate.margins)
    normalizers = ops.map(lambda r: normalizer(r, logits), inverse)
    return ops.moveaxis(normalizers, 0, -1) - (logits * inverse + shift)


def binary_loss(y_true, y_pred, surrogate, from_logits=True, ignore_class=None):
    """Returns the loss of each label, `(...)` or `(..., L)`: that of the logits `(0, y_pred)`."""
    logits = as_logits(y_pred, from_logits, binary=True)
    num_labels = None if surrogate.priors.ndim == 1 else len(surrogate.priors)
    y_true, logits = targets.match_binary(ops.convert_to_tensor(y_true), logits, num_labels)
    y_true = ops.cast(y_true, logits.dtype)
    ignored = None if ignore_class is None else ops.equal(y_true, ignore_class)
    if ignored is not None:
        y_true = ops.where(ignored, _like(logits, 0.0), y_true)
        logits = ops.where(ignored, _like(logits, 0.0), logits)

    def loss_of(label):
        z = logits
        if surrogate.margins is not None:
            z = z * _like(z, 1.0 / surrogate.margins[..., label])
        if surrogate.shift is not None:
            z = z + _like(z, surrogate.shift[..., 1] - surrogate.shift[..., 0])
        losses = _psi(ops.softplus(-z if label else z), surrogate.q)
        if surrogate.weights is not None:
            losses = losses * _like(z, surrogate.weights[..., label])
        return losses

    losses = y_true * loss_of(1) + (1.0 - y_true) * loss_of(0)
    valid = ops.logical_and(y_true >= 0, y_true <= 1)
    losses = losses * ops.where(valid, _like(logits, 1.0), _like(logits, np.nan))
    return losses if ignored is None else ops.where(ignored, _like(logits, 0.0), losses)


def log_posterior(logits, surrogate, target_priors):
    """Returns the log-probabilities `(..., K)` of the classes under a class mix.

    With `u_y = eta_y w_y s_y^q / rho_y`, where `eta` is the posterior of the training mix, the
    minimiser of the loss is where `u P = u` for `P[y, k] = softmax(z / rho_y + a)_k`. Equal
    margins make every row of `P` the same, hence `u = s`.
    """
    shift = np.atleast_1d(_or(surrogate.shift, 0.0))
    if surrogate.margins is None:
        log_s = ops.log_softmax(logits + _like(logits, shift))
        log_u = log_s
    else:
        inverse = _like(logits, 1.0 / surrogate.margins[..., :, None])
        log_p = ops.log_softmax(logits[..., None, :] * inverse + _like(logits, shift[..., None, :]))
        log_s = ops.diagonal(log_p, axis1=-2, axis2=-1)
        log_u = _log_stationary(log_p)
    change = np.log(target_priors) - np.log(surrogate.priors)
    change = change + np.log(_or(surrogate.margins, 1.0)) - np.log(_or(surrogate.weights, 1.0))
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


def as_logits(y_pred, from_logits, binary=False):
    """Returns predictions as float32 or float64 logits."""
    if from_logits:
        backends.refuse_probabilities(y_pred)
    elif getattr(y_pred, "_keras_logits", None) is not None:
        y_pred, from_logits = y_pred._keras_logits, True
    y_pred = ops.convert_to_tensor(y_pred)
    if keras.backend.standardize_dtype(y_pred.dtype) not in ("float32", "float64"):
        y_pred = ops.cast(y_pred, "float32")
    if from_logits:
        return y_pred
    # The floor of the dtype, not epsilon: a wrong, confident example must keep its gradient.
    tiny = float(np.finfo(keras.backend.standardize_dtype(y_pred.dtype)).tiny)
    logits = ops.log(ops.maximum(y_pred, tiny))
    return logits - ops.log(ops.maximum(1.0 - y_pred, tiny)) if binary else logits


def _psi(cross_entropy, q):
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _like(tensor, values):
    return ops.convert_to_tensor(values, dtype=tensor.dtype)


def _or(array, default):
    return default if array is None else array
