"""What labels, weights and predictions may look like: their shapes and kinds."""

import numpy as np
from keras import ops


def shape_of_losses(y_pred, binary):
    """Returns the shape of the losses of predictions `y_pred`."""
    shape = tuple(ops.shape(y_pred))
    one_label = len(shape) > 1 and y_pred.shape[-1] == 1
    return shape[:-1] if one_label or not binary else shape


def blank_labels(y_true, weights):
    """Returns labels with 0 where their weight is 0: such a label may be anything."""
    y_true = ops.convert_to_tensor(y_true)
    rank = len(weights.shape)
    if len(y_true.shape) == rank + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    if len(y_true.shape) != rank:
        return y_true  # One-hot or soft targets.
    return ops.where(ops.equal(weights, 0), ops.zeros_like(y_true), y_true)


def match_weights(weights, shape):
    """Returns weights `(...)`, `(..., 1)` or of fewer leading axes broadcast to `shape`."""
    xp = np if isinstance(weights, np.ndarray) else ops  # NumPy stays NumPy, in its dtype.
    rank = len(shape)
    if len(weights.shape) == rank + 1 and weights.shape[-1] == 1:
        weights = xp.squeeze(weights, axis=-1)
    missing = rank - len(weights.shape)
    # An axis of unknown size is that of the targets.
    sizes = zip(weights.shape, shape, strict=False)
    if missing < 0 or not all(_same_size(a, b) or a == 1 for a, b in sizes):
        raise ValueError(
            "`sample_weight` must have the leading axes of the targets. Received: "
            f"sample_weight of shape {tuple(weights.shape)} for targets of shape {tuple(shape)}"
        )
    weights = xp.reshape(weights, (*xp.shape(weights), *(1,) * missing))
    return xp.broadcast_to(weights, shape)


def check_classes(logits, num_classes):
    """Raises unless the last axis of `logits` has the classes."""
    shape = tuple(logits.shape)
    if not shape or shape[-1] not in (num_classes, None):
        hint = " For one logit per example use the binary losses." if shape[-1:] == (1,) else ""
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
    """Returns whether two static shapes agree, where `None` agrees with any size."""
    return len(shape) == len(expected) and all(map(_same_size, shape, expected))


def _same_size(a, b):
    # `None`, or a tensor, is a size that is not known before it runs.
    return not isinstance(a, int) or not isinstance(b, int) or a == b
