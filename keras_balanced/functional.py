"""The balanced losses as one formula, and `gla_loss` and `gca_loss` on it.

For logits `z` over `K` classes, a true class `y` and a training prior `p`:

    s    = softmax(z / rho_y + a)_y       probability of the true class
    c    = -log s                         its cross-entropy
    loss = w_y * (1 - s^q) / q            (w_y * c at q = 0)

A loss is a choice of shift `a`, margins `rho`, weights `w` and `q`: a `Surrogate`.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced.validation import check_mix, check_number, check_positive_vector, check_rates


class Surrogate(NamedTuple):
    """One row of the table of losses.

    Every array is float64 and has the classes on its last axis: `(K,)`, or for `L` binary labels
    `(L, 2)`. `None` is "the same for all".
    """

    priors: np.ndarray
    target_priors: np.ndarray
    q: float
    shift: np.ndarray | None = None
    margins: np.ndarray | None = None
    weights: np.ndarray | None = None


def gla_surrogate(priors, q=0.0, tau=None, target_priors=None, binary=False):
    """Returns the `Surrogate` of GLA; arguments as in `gla_loss`, `binary` with positive rates."""
    priors, target_priors = _check_mixes(priors, target_priors, binary)
    q = check_number("q", q, low=0.0, high=1.0)
    tau = 1.0 / (1.0 - q) if tau is None else check_number("tau", tau)
    shift = tau * (np.log(priors) - np.log(target_priors))
    return Surrogate(priors, target_priors, q, shift=shift)


def gca_surrogate(
    priors, q=0.0, margins="cube_root", consistent=False, target_priors=None, binary=False
):
    """Returns the `Surrogate` of GCA; arguments as in `gca_loss`, `binary` with positive rates."""
    priors, target_priors = _check_mixes(priors, target_priors, binary)
    q = check_number("q", q, low=0.0, high=1.0)
    weights = target_priors / priors
    if isinstance(margins, str) and margins == "cube_root":
        margins = np.cbrt(target_priors**2 / priors)
    elif margins is not None:
        if isinstance(margins, str):
            raise ValueError(
                '`margins` must be "cube_root", None or a 1-D vector of positive numbers. '
                f"Received: margins={margins!r}"
            )
        margins = check_positive_vector("margins", margins, length=priors.shape[-1])
    if margins is not None:
        margins = margins / margins.mean(axis=-1, keepdims=True)
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
    ignore_class=None,
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
        ignore_class: Integer label, in `[0, K)` or outside, whose positions get the loss 0.

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
    surrogate = gla_surrogate(priors, q, tau, target_priors)
    return surrogate_loss(y_true, y_pred, surrogate, from_logits, ignore_class)


def gca_loss(
    y_true,
    y_pred,
    priors,
    q=0.0,
    margins="cube_root",
    consistent=False,
    target_priors=None,
    from_logits=True,
    ignore_class=None,
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
        consistent: Whether to multiply the weights by the margins too, which makes the argmax of
            the logits Bayes-consistent at `q = 0`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        from_logits: Whether `y_pred` is logits (default) or probabilities.
        ignore_class: Integer label, in `[0, K)` or outside, whose positions get the loss 0.

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
    return surrogate_loss(y_true, y_pred, surrogate, from_logits, ignore_class)


def surrogate_loss(y_true, y_pred, surrogate, from_logits=True, ignore_class=None):
    """Returns the loss `(...)` of targets `y_true` under predictions `y_pred` `(..., K)`."""
    num_classes = len(surrogate.priors)
    logits = as_logits(y_pred, from_logits)
    y_true, sparse = match_shapes(ops.convert_to_tensor(y_true), logits, num_classes)
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
    labels, valid = _check_labels(labels, num_classes)

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


def _check_labels(labels, num_classes):
    """Returns labels with 0 for those out of range, and which were in range.

    Raises an error that names them on PyTorch, and on TensorFlow on a CPU without XLA.
    """
    valid = ops.logical_and(labels >= 0, labels < num_classes)
    if keras.backend.backend() == "torch" and not ops.all(valid):
        bad = np.unique(ops.convert_to_numpy(labels)[~ops.convert_to_numpy(valid)])
        raise ValueError(
            f"`y_true` must be in [0, {num_classes}). Received: labels {bad[:10].tolist()}"
        )
    if keras.backend.backend() == "tensorflow":
        # An operation that refuses them: a scatter, of zeros, whose sum changes nothing.
        flat = ops.reshape(labels, (-1,))
        zeros = ops.scatter(flat[:, None], ops.zeros_like(flat), (num_classes,))
        labels = labels + ops.sum(zeros)
    return ops.where(valid, labels, 0), valid


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
    y_true, logits = match_binary(ops.convert_to_tensor(y_true), logits, num_labels)
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


def refuse_probabilities(y_pred):
    """Raises if `y_pred` comes out of a softmax or sigmoid, which Keras marks with its logits."""
    if getattr(y_pred, "_keras_logits", None) is not None:
        raise ValueError(
            "Expected logits in `y_pred` since `from_logits=True`, but it is the output of a "
            "softmax or sigmoid. Remove that activation from the model's last layer, or pass "
            "`from_logits=False`."
        )


def last_layer(model):
    """Returns the layer that gives the model's output."""
    layer = model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    return layer


def gives_probabilities(layer):
    """Says whether a layer ends in a softmax or sigmoid; also on JAX, where no mark is left."""
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )


def _check_mixes(priors, target_priors, binary):
    """Returns both mixes as probabilities with the classes on the last axis."""
    priors = check_rates("priors", priors) if binary else check_mix("priors", priors)
    if target_priors is None:
        return priors, np.full_like(priors, 1.0 / priors.shape[-1])
    return priors, check_target(target_priors, priors, binary)


def check_target(target_priors, priors, binary):
    """Returns `target_priors` as probabilities in the shape of `priors`."""
    if not binary:
        return check_mix("target_priors", target_priors, length=len(priors))
    target = check_rates("target_priors", target_priors)
    if target.shape not in ((2,), priors.shape):
        raise ValueError(
            "`target_priors` must be one positive rate, or one for each label of `priors`. "
            f"Received: {len(target)} rates for {priors.size // 2} labels"
        )
    return np.broadcast_to(target, priors.shape)


def _psi(cross_entropy, q):
    # expm1 keeps (1 - s^q) / q accurate for small q, and its gradient finite when s underflows.
    return cross_entropy if q == 0.0 else -ops.expm1(-q * cross_entropy) / q


def _like(tensor, values):
    return ops.convert_to_tensor(values, dtype=tensor.dtype)


def _or(array, default):
    return default if array is None else array


def as_logits(y_pred, from_logits, binary=False):
    """Returns predictions as float32 or float64 logits."""
    if from_logits:
        refuse_probabilities(y_pred)
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


def shape_of_losses(y_pred, binary):
    """Returns the shape of the losses of predictions `y_pred`."""
    shape = tuple(ops.shape(y_pred))
    one_label = len(shape) > 1 and y_pred.shape[-1] == 1
    return shape[:-1] if one_label or not binary else shape


def blank_labels(y_true, weights):
    """Returns labels with 0 where their weight is 0: what is there is no one's business."""
    y_true = ops.convert_to_tensor(y_true)
    rank = len(weights.shape)
    if len(y_true.shape) == rank + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    if len(y_true.shape) != rank:
        return y_true  # One-hot or soft targets.
    return ops.where(ops.equal(weights, 0), ops.zeros_like(y_true), y_true)


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


def check_classes(logits, num_classes):
    """Raises unless the last axis of `logits` has the classes."""
    shape = tuple(logits.shape)
    if not shape or shape[-1] not in (num_classes, None):
        hint = " For one logit an example use the binary losses." if shape[-1:] == (1,) else ""
        raise ValueError(
            f"The last axis of `y_pred` must have the {num_classes} classes of `priors`. "
            f"Received: y_pred.shape={shape}.{hint}"
        )


def match_shapes(y_true, logits, num_classes):
    """Returns `y_true` as `(...)` or `(..., K)`, and whether it holds integer classes."""
    check_classes(logits, num_classes)
    true_shape, shape = tuple(y_true.shape), tuple(logits.shape)
    if len(true_shape) == len(shape) and true_shape[-1] == 1:
        y_true, true_shape = ops.squeeze(y_true, axis=-1), true_shape[:-1]
    sparse = len(true_shape) == len(shape) - 1
    expected = shape[:-1] if sparse else (*shape[:-1], num_classes)
    if not _fits(true_shape, expected):
        raise ValueError(
            "`y_true` must hold integer classes `(...)` or `(..., 1)`, or targets `(..., K)`, "
            "where `y_pred` is `(..., K)`. "
            f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={shape}"
        )
    if not sparse and None in true_shape:
        # A (B, 1) whose shape is unknown until it runs must not broadcast against the logits.
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, sparse


def match_binary(y_true, logits, num_labels=None):
    """Returns labels and logits of one shape: `(...)`, or `(..., L)` for `num_labels`."""
    shapes = tuple(y_true.shape), tuple(logits.shape)
    if num_labels is None:
        y_true, logits = (
            ops.squeeze(x, axis=-1) if len(x.shape) > 1 and x.shape[-1] == 1 else x
            for x in (y_true, logits)
        )
        expected = tuple(logits.shape)
    else:
        expected = (*logits.shape[:-1], num_labels)
    if not (_fits(y_true.shape, expected) and _fits(logits.shape, expected)):
        raise ValueError(
            "`y_true` and `y_pred` must both be `(...)` or `(..., 1)` for one positive rate, and "
            f"`(..., L)` for a vector of `L`. Received: y_true.shape={shapes[0]}, "
            f"y_pred.shape={shapes[1]} and {num_labels or 1} rates"
        )
    if None in y_true.shape:
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, logits


def _fits(shape, expected):
    """Says whether two static shapes agree, where `None` agrees with any size."""
    return len(shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(shape, expected, strict=True)
    )
