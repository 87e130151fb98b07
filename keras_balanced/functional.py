"""The balanced losses as one formula, and `gla_loss` and `gca_loss` on it.

For logits `z` over `K` classes, a true class `y` and a training prior `p`:

    s    = softmax(z / rho_y + a)_y       probability of the true class
    c    = -log s                         its cross-entropy
    loss = w_y * (1 - s^q) / q            (w_y * c at q = 0)

A loss is a choice of shift `a`, margins `rho`, weights `w` and `q`: a `Surrogate`.
"""

import math
import numbers
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


class Surrogate(NamedTuple):
    """One row of the table of losses; every array is `(K,)` float64, `None` is "all the same"."""

    priors: np.ndarray
    target_priors: np.ndarray
    q: float
    shift: np.ndarray | None = None
    margins: np.ndarray | None = None
    weights: np.ndarray | None = None


def gla_surrogate(priors, q=0.0, tau=None, target_priors=None):
    """Returns the `Surrogate` of GLA; arguments as in `gla_loss`."""
    priors, target_priors = _check_mixes(priors, target_priors)
    q = _check_q(q)
    tau = 1.0 / (1.0 - q) if tau is None else check_number("tau", tau)
    shift = tau * (np.log(priors) - np.log(target_priors))
    return Surrogate(priors, target_priors, q, shift=shift)


def gca_surrogate(priors, q=0.0, margins="cube_root", consistent=True, target_priors=None):
    """Returns the `Surrogate` of GCA; arguments as in `gca_loss`."""
    priors, target_priors = _check_mixes(priors, target_priors)
    q = _check_q(q)
    weights = target_priors / priors
    if isinstance(margins, str) and margins == "cube_root":
        margins = np.cbrt(target_priors**2 / priors)
    elif margins is not None:
        if isinstance(margins, str):
            raise ValueError(
                '`margins` must be "cube_root", None or a 1-D vector of positive numbers. '
                f"Received: margins={margins!r}"
            )
        margins = check_positive_vector("margins", margins, length=len(priors))
    if margins is not None:
        margins = margins / margins.mean()
        if consistent:
            weights = weights * margins
    return Surrogate(priors, target_priors, q, margins=margins, weights=weights)


def gla_loss(
    y_true,
    y_pred,
    priors,
    q=0.0,
    tau=None,
    target_priors=None,
    from_logits=True,
):
    """Computes the generalized logit-adjusted loss of each example.

    Formula:

    ```
    s    = softmax(y_pred + tau * (log(priors) - log(target_priors)))[y_true]
    loss = (1 - s^q) / q                     # -log(s) at q = 0
    ```

    Args:
        y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets `(..., K)`,
            whose loss is `sum_k y_true[k] * loss(class k)`.
        y_pred: Logits `(..., K)`, float32 or float64 (half precision is computed in float32).
        priors: Class mix of the data that the model sees: `K` counts or probabilities, or an
            adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        tau: Strength of the logit adjustment. `None` is `1 / (1 - q)`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        from_logits: Whether `y_pred` is logits (default) or probabilities.

    Returns:
        The losses, `(...)`, in the dtype of `y_pred`. A label outside `[0, K)` raises where the
        backend can (TensorFlow and PyTorch on a CPU) and gives NaN elsewhere.

    Raises:
        ValueError: for arguments or shapes that do not fit each other.

    Example:

    >>> import numpy as np
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> losses = gla_loss(np.array([0, 1]), logits, priors=[90, 10])
    >>> print(keras.ops.convert_to_numpy(losses).round(3))
    [0.015 4.212]

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
        - [Menon et al., 2021](https://arxiv.org/abs/2007.07314) (q = 0)
    """
    return surrogate_loss(y_true, y_pred, gla_surrogate(priors, q, tau, target_priors), from_logits)


def gca_loss(
    y_true,
    y_pred,
    priors,
    q=0.0,
    margins="cube_root",
    consistent=True,
    target_priors=None,
    from_logits=True,
):
    """Computes the generalized class-aware weighted loss of each example.

    Formula:

    ```
    s    = softmax(y_pred / margins[y_true])[y_true]
    w    = target_priors[y_true] / priors[y_true]   # times margins[y_true] if consistent
    loss = w * (1 - s^q) / q                        # -w * log(s) at q = 0
    ```

    Args:
        y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets `(..., K)`,
            whose loss is `sum_k y_true[k] * loss(class k)`. With margins such targets take `K`
            times the time of integer classes.
        y_pred: Logits `(..., K)`, float32 or float64 (half precision is computed in float32).
        priors: Class mix of the data that the model sees: `K` counts or probabilities, or an
            adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        margins: Confidence margin of each class: `"cube_root"` for
            `(target_priors^2 / priors)^(1/3)`, `None` for equal margins, or `K` positive numbers.
            Always normalised to mean 1.
        consistent: Whether to multiply the weights by the margins, which makes the argmax of the
            logits Bayes-consistent at `q = 0`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        from_logits: Whether `y_pred` is logits (default) or probabilities.

    Returns:
        The losses, `(...)`, in the dtype of `y_pred`. A label outside `[0, K)` raises where the
        backend can (TensorFlow and PyTorch on a CPU) and gives NaN elsewhere.

    Raises:
        ValueError: for arguments or shapes that do not fit each other.

    Example:

    >>> import numpy as np
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> losses = gca_loss(np.array([0, 1]), logits, priors=[90, 10], margins=None)
    >>> print(keras.ops.convert_to_numpy(losses).round(3))
    [ 0.071 10.635]

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
    """
    surrogate = gca_surrogate(priors, q, margins, consistent, target_priors)
    return surrogate_loss(y_true, y_pred, surrogate, from_logits)


def surrogate_loss(y_true, y_pred, surrogate, from_logits=True):
    """Returns the loss `(...)` of targets `y_true` under predictions `y_pred` `(..., K)`."""
    num_classes = len(surrogate.priors)
    logits = _as_logits(y_pred, from_logits)
    y_true, sparse = match_shapes(ops.convert_to_tensor(y_true), logits, num_classes)

    def constant(vector):
        return ops.convert_to_tensor(vector, dtype=logits.dtype)

    def of_class(vector):
        return ops.take(constant(vector), ops.clip(labels, 0, num_classes - 1))

    if sparse:
        labels = ops.cast(y_true, "int32")
        if surrogate.margins is not None:
            logits = logits * of_class(1.0 / surrogate.margins)[..., None]
        if surrogate.shift is not None:
            logits = logits + constant(surrogate.shift)
        cross_entropy = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        losses = _psi(cross_entropy, surrogate.q)
        if surrogate.weights is not None:
            losses = losses * of_class(surrogate.weights)
        # JAX would give a label out of range the loss 0 (TensorFlow and PyTorch raise on a CPU).
        valid = ops.logical_and(labels >= 0, labels < num_classes)
        return losses * ops.where(valid, constant(1.0), constant(np.nan))

    if surrogate.shift is not None:
        logits = logits + constant(surrogate.shift)
    # The cross-entropy of every class, (..., K).
    if surrogate.margins is None:
        cross_entropy = -ops.log_softmax(logits)
    else:
        inverse = constant(1.0 / surrogate.margins)
        # One class at a time: all at once would take (..., K, K) memory.
        normalizer = ops.map(lambda r: ops.logsumexp(logits * r, axis=-1), inverse)
        cross_entropy = ops.moveaxis(normalizer, 0, -1) - logits * inverse
    losses = _psi(cross_entropy, surrogate.q)
    if surrogate.weights is not None:
        losses = losses * constant(surrogate.weights)
    return ops.sum(ops.cast(y_true, logits.dtype) * losses, axis=-1)


def refuse_probabilities(y_pred):
    """Raises if `y_pred` comes out of a softmax or sigmoid, which Keras marks with its logits."""
    if getattr(y_pred, "_keras_logits", None) is not None:
        raise ValueError(
            "Expected logits in `y_pred` since `from_logits=True`, but it is the output of a "
            "softmax or sigmoid. Remove that activation from the model's last layer, or pass "
            "`from_logits=False`."
        )


def check_positive_vector(name, values, length=None):
    """Returns `values` as a `(K,)` float64 array of finite, positive numbers, `K >= 2`."""
    try:
        vector = np.asarray(values, dtype="float64")
    except (TypeError, ValueError):
        vector = None
    if vector is None or vector.ndim != 1:
        shape = "" if vector is None else f" of shape {vector.shape}"
        raise ValueError(
            f"`{name}` must be a 1-D vector of positive numbers, one a class. "
            f"Received: {name}={values!r}{shape}"
        )
    if length is not None and len(vector) != length:
        raise ValueError(
            f"`{name}` must have one number for each of the {length} classes. "
            f"Received: {len(vector)} numbers"
        )
    if len(vector) < 2:
        raise ValueError(f"`{name}` must have at least 2 classes. Received: {name}={values!r}")
    bad = np.flatnonzero(~(np.isfinite(vector) & (vector > 0)))
    if bad.size:
        raise ValueError(
            f"`{name}` must be positive and finite for every class. "
            f"Received: {vector[bad[:10]].tolist()} for the {bad.size} class ids "
            f"{bad[:10].tolist()}{'...' if bad.size > 10 else ''}"
            + (
                ". Give a class without examples some mass, as `ClassPrior(num_classes, "
                "smoothing=1.0)` does"
                if name.endswith("priors") and (vector[bad] == 0).any()
                else ""
            )
        )
    return vector


def check_number(name, value, low=-math.inf, high=math.inf):
    """Returns `value` as a finite float in `[low, high)`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= value < high
    ):
        where = f"in [{low:g}, {high:g})" if math.isfinite(low) else "a finite number"
        raise ValueError(f"`{name}` must be {where}. Received: {name}={value!r}")
    return float(value)


def check_num_classes(num_classes):
    """Returns `num_classes` as an int of at least 2."""
    if (
        isinstance(num_classes, bool)
        or not isinstance(num_classes, numbers.Integral)
        or num_classes < 2
    ):
        raise ValueError(
            f"`num_classes` must be an integer of at least 2. Received: num_classes={num_classes!r}"
        )
    return int(num_classes)


def check_mix(name, values, length=None):
    """Returns `values` (a positive vector, or an object with `.priors`) as probabilities."""
    vector = check_positive_vector(name, getattr(values, "priors", values), length)
    return vector / vector.sum()


def _check_mixes(priors, target_priors):
    priors = check_mix("priors", priors)
    if target_priors is None:
        return priors, np.full_like(priors, 1.0 / len(priors))
    return priors, check_mix("target_priors", target_priors, length=len(priors))


def _check_q(q):
    return check_number("q", q, low=0.0, high=1.0)


def _psi(cross_entropy, q):
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _as_logits(y_pred, from_logits):
    if from_logits:
        refuse_probabilities(y_pred)
    elif getattr(y_pred, "_keras_logits", None) is not None:
        y_pred, from_logits = y_pred._keras_logits, True
    y_pred = ops.convert_to_tensor(y_pred)
    if keras.backend.standardize_dtype(y_pred.dtype) not in ("float32", "float64"):
        y_pred = ops.cast(y_pred, "float32")
    if not from_logits:
        # The floor of the dtype, not epsilon: a wrong, confident example must keep its gradient.
        dtype = keras.backend.standardize_dtype(y_pred.dtype)
        y_pred = ops.log(ops.maximum(y_pred, float(np.finfo(dtype).tiny)))
    return y_pred


def match_weights(weights, shape):
    """Returns weights `(...)`, `(..., 1)` or of fewer leading axes broadcast to `shape`."""
    rank = len(shape)
    if len(weights.shape) == rank + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    if len(weights.shape) > rank:
        raise ValueError(
            "`sample_weight` must have the leading axes of the targets. Received: "
            f"sample_weight.shape={tuple(weights.shape)} for targets of shape {tuple(shape)}"
        )
    missing = (1,) * (rank - len(weights.shape))
    return ops.broadcast_to(ops.reshape(weights, tuple(ops.shape(weights)) + missing), shape)


def match_shapes(y_true, logits, num_classes):
    """Returns `y_true` as `(...)` or `(..., K)`, and whether it holds integer classes."""
    true_shape, shape = tuple(y_true.shape), tuple(logits.shape)
    if not shape or shape[-1] not in (num_classes, None):
        hint = " For one logit an example use the binary losses." if shape[-1:] == (1,) else ""
        raise ValueError(
            f"The last axis of `y_pred` must have the {num_classes} classes of `priors`. "
            f"Received: y_pred.shape={shape}.{hint}"
        )
    if len(true_shape) == len(shape) and true_shape[-1] == 1:
        y_true, true_shape = ops.squeeze(y_true, axis=-1), true_shape[:-1]
    sparse = len(true_shape) == len(shape) - 1
    expected = shape[:-1] if sparse else (*shape[:-1], num_classes)
    if len(true_shape) != len(expected) or any(
        a != b and a is not None and b is not None
        for a, b in zip(true_shape, expected, strict=True)
    ):
        raise ValueError(
            "`y_true` must hold integer classes `(...)` or `(..., 1)`, or targets `(..., K)`, "
            "where `y_pred` is `(..., K)`. "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={shape}"
        )
    if not sparse and None in true_shape:
        # A (B, 1) whose shape is unknown until it runs must not broadcast against (B, K).
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, sparse
