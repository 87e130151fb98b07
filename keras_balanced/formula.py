"""The balanced losses as one formula on `keras.ops`.

For logits `z` over `K` classes, a true class `y` and a training prior `p`:

    s    = softmax(z / rho_y + a)_y       probability of the true class
    c    = -log s                         its cross-entropy
    loss = w_y * (1 - s^q) / q            (w_y * c at q = 0)

A loss is a choice of shift `a`, margins `rho`, weights `w` and `q`: a `surrogates.Surrogate`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets
from keras_balanced.backends import Tensor, like
from keras_balanced.stationary import log_stationary
from keras_balanced.surrogates import Surrogate
from keras_balanced.validation import IgnoreClass

_REACH = 5e5  # A class whose logit is smaller than the largest by more than this is masked.
MASKED = -1e9  # Its logit. Not infinite: the difference of two would be NaN.


def as_logits(y_pred: Any, binary: bool, from_logits: bool = True) -> Tensor:
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
    return logits - _log_from(tiny, 1.0 - y_pred) if binary else logits


def as_full_precision(tensor: Tensor) -> Tensor:
    """Returns a float64 tensor as it is, and any other as float32."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return tensor if dtype in ("float32", "float64") else ops.cast(tensor, "float32")


def _log_from(low: float, x: Tensor) -> Tensor:
    # Not `ops.maximum`, which is float32 on PyTorch.
    return ops.log(ops.where(x < low, like(x, low), x))


def surrogate_loss(
    y_true: Any, logits: Tensor, surrogate: Surrogate, ignore_class: IgnoreClass = None
) -> Tensor:
    """Returns the loss `(...)` of each target under logits: of a binary surrogate of each label."""
    y_true = targets.as_tensor("y_true", y_true)
    if surrogate.binary:
        return _binary_loss(y_true, logits, surrogate, ignore_class)
    y_true, sparse = targets.match_shapes(y_true, logits, len(surrogate.priors))
    if sparse:
        return _sparse_loss(y_true, logits, surrogate, ignore_class)
    targets.refuse_ignored(y_true, ignore_class)
    return _soft_loss(ops.cast(y_true, logits.dtype), logits, surrogate)


def _sparse_loss(
    labels: Tensor, logits: Tensor, surrogate: Surrogate, ignore_class: IgnoreClass
) -> Tensor:
    if ignore_class is not None:
        ignored = targets.is_ignored(labels, ignore_class)
        label = targets.stand_in(surrogate.occurs, ignore_class)
        labels = ops.where(ignored, ops.full_like(labels, label), labels)
        # A NaN there must not reach the gradient.
        logits = ops.where(ignored[..., None], like(logits, 0.0), logits)

    num_classes = len(surrogate.priors)
    labels, valid = targets.check_labels(labels, num_classes, surrogate.occurs)
    scale = shift = None
    if _differ(surrogate.margins, 1.0):
        scale = ops.take(like(logits, 1.0 / surrogate.margins), labels)
    if _differ(surrogate.shift, 0.0):
        shift = like(logits, surrogate.shift)
    cross_entropy = backends.sparse_cross_entropy(labels, logits, num_classes, scale, shift)
    losses = _psi(cross_entropy, surrogate.q)
    if _differ(surrogate.weights, 1.0):
        losses = losses * ops.take(like(logits, surrogate.weights), labels)
    if surrogate.label_smoothing:
        mass = like(logits, surrogate.smoothing_mass)
        smoothed = ops.sum(mass * _losses_of_classes(logits, surrogate), axis=-1)
        losses = (1.0 - surrogate.label_smoothing) * losses + smoothed
    losses = ops.where(valid, losses, like(logits, np.nan))
    return losses if ignore_class is None else ops.where(ignored, like(logits, 0.0), losses)


def _soft_loss(y_true: Tensor, logits: Tensor, surrogate: Surrogate) -> Tensor:
    if not surrogate.occurs.all():
        out_of_range = ops.logical_and(~surrogate.occurs, ops.not_equal(y_true, 0))
        y_true = ops.where(out_of_range, like(logits, np.nan), y_true)
    if surrogate.label_smoothing:
        total = ops.sum(y_true, axis=-1, keepdims=True)
        mass = like(logits, surrogate.smoothing_mass)
        y_true = (1.0 - surrogate.label_smoothing) * y_true + total * mass
    losses = y_true * _losses_of_classes(logits, surrogate)
    # The loss of a masked class, of logit -inf, is infinite: no target may be there. A negative
    # target, such as padding of -1, is invalid.
    neutral = ops.where(ops.equal(y_true, 0), like(logits, 0.0), like(logits, np.nan))
    losses = ops.where(y_true > 0, losses, neutral)
    return ops.sum(losses, axis=-1)


def _losses_of_classes(logits: Tensor, surrogate: Surrogate) -> Tensor:
    """Returns the loss `(..., K)` that each class would have as the true one."""
    shift = like(logits, surrogate.shift)
    if not _differ(surrogate.margins, 1.0):
        cross_entropies = -ops.log_softmax(logits + shift)
    else:
        inverse = like(logits, 1.0 / surrogate.levels[:, None])
        normalizers = ops.logsumexp(logits[..., None, :] * inverse + shift, axis=-1)
        true = logits * like(logits, 1.0 / surrogate.margins) + shift
        cross_entropies = ops.take(normalizers, np.array(surrogate.level_of), axis=-1) - true
    return _psi(cross_entropies, surrogate.q) * like(logits, surrogate.weights)


def _binary_loss(
    y_true: Tensor, logits: Tensor, surrogate: Surrogate, ignore_class: IgnoreClass
) -> Tensor:
    """Returns the loss of each label, `(...)` or `(..., L)`: that of the logits `(0, z)`."""
    y_true, logits = targets.match_binary(y_true, logits, surrogate.num_labels)
    y_true = ops.cast(y_true, logits.dtype)
    if ignore_class is not None:
        ignored = targets.is_ignored(y_true, ignore_class)
        y_true = ops.where(ignored, like(logits, 0.0), y_true)
        logits = ops.where(ignored, like(logits, 0.0), logits)
    valid = ops.logical_and(y_true >= 0, y_true <= 1)
    if surrogate.label_smoothing:
        mass = like(logits, surrogate.smoothing_mass[..., 1])
        y_true = (1.0 - surrogate.label_smoothing) * y_true + mass

    def loss_of(label: int) -> Tensor:
        shift = surrogate.shift[..., 1] - surrogate.shift[..., 0]
        z = logits * like(logits, 1.0 / surrogate.margins[..., label]) + like(logits, shift)
        losses = _psi(ops.softplus(-z if label else z), surrogate.q)
        return losses * like(logits, surrogate.weights[..., label])

    losses = y_true * loss_of(1) + (1.0 - y_true) * loss_of(0)
    losses = losses * ops.where(valid, like(logits, 1.0), like(logits, np.nan))
    return losses if ignore_class is None else ops.where(ignored, like(logits, 0.0), losses)


def log_posterior(logits: Tensor, surrogate: Surrogate, mix: np.ndarray) -> Tensor:
    """Returns the log-probabilities `(..., K)` of the classes under a class mix.

    Of a binary surrogate and logits `(...)` those of label 0 and 1, `(..., 2)`.

    With `u_y = eta_y w_y s_y^q / rho_y`, where `eta` is the posterior of the training mix, the
    minimiser of the loss is where `u P = u` for `P[y, k] = softmax(z / rho_y + a)_k`. Equal
    margins make every row of `P` the same, hence `u = s`.
    """
    if surrogate.binary:
        logits = ops.stack([ops.zeros_like(logits), logits], axis=-1)
    logits, masked = _within_reach(logits, surrogate)
    log_u, log_s = log_stationary(logits, surrogate)
    log_eta = log_u - surrogate.q * log_s + _log_ratio(logits, surrogate.margins, surrogate.weights)
    if surrogate.label_smoothing:
        log_eta = _without_smoothing(ops.log_softmax(log_eta), surrogate)
    log_eta = ops.where(masked, like(log_eta, MASKED), log_eta)
    return change_mix(log_eta, surrogate, surrogate.priors, mix)


def change_mix(
    log_p: Tensor, surrogate: Surrogate, before: np.ndarray, after: np.ndarray
) -> Tensor:
    """Returns log-probabilities of one class mix, given up to a constant, as those of another."""
    # A mix says nothing of an absent class.
    before, after = (np.where(surrogate.occurs, mix, 1.0) for mix in (before, after))
    return ops.log_softmax(mask_absent(log_p + _log_ratio(log_p, after, before), surrogate))


def mask_absent(logits: Tensor, surrogate: Surrogate) -> Tensor:
    """Returns logits with a large negative number for the classes that do not occur."""
    if surrogate.occurs.all():
        return logits
    low = -3e4 if keras.backend.standardize_dtype(logits.dtype) == "float16" else MASKED
    return ops.where(ops.convert_to_tensor(np.array(surrogate.occurs)), logits, like(logits, low))


def _within_reach(logits: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Returns logits near enough to each other to compute with, and which classes are masked.

    Masked are the classes that do not occur, and those whose logit is far below the largest of
    their example, as one of -inf. The posterior of the others is what it would be without them.
    """
    logits = ops.clip(logits, -1e30, 1e30)
    if not surrogate.occurs.all():
        occurs = ops.convert_to_tensor(np.array(surrogate.occurs))
        logits = ops.where(occurs, logits, like(logits, -np.inf))
    largest = backends.largest(logits)[..., None]
    # Logits near 0 stay as they are, since a difference would be rounded.
    far = ops.where(ops.abs(largest) > 0.1 * _REACH, largest, like(logits, 0.0))
    logits, lowest = logits - far, largest - far - _REACH
    masked = logits < lowest
    return ops.where(masked, lowest, logits), masked


def _without_smoothing(log_eta: Tensor, surrogate: Surrogate) -> Tensor:
    """Returns the logarithm of the posterior of the labels before they were smoothed."""
    mass = surrogate.smoothing_mass
    # A model that has not fitted may predict less than the mass: then a hundredth of it is left.
    # (An absent class has no mass, and its logit is masked.)
    least = like(log_eta, np.where(surrogate.occurs, 0.01 * mass, 1.0))
    eta = ops.exp(log_eta) - like(log_eta, mass)
    return ops.log_softmax(ops.log(ops.where(eta < least, least, eta)))


def _psi(cross_entropy: Tensor, q: float) -> Tensor:
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _log_ratio(tensor: Tensor, numerator: np.ndarray, denominator: np.ndarray) -> Tensor:
    return like(tensor, np.log(numerator / denominator))


def _differ(values: np.ndarray, neutral: float) -> bool:
    """Returns whether constants per class change anything."""
    return bool((values != neutral).any())
