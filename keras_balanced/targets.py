"""What labels, weights and predictions may look like: their forms, shapes and kinds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends
from keras_balanced.backends import Tensor
from keras_balanced.validation import IgnoreClass, kind_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def as_tensor(name: str, values: Any) -> Tensor:
    """Returns labels or predictions of any form as a tensor: one that is a tensor as it is."""
    if backends.is_dense_tensor(values):
        if keras.backend.standardize_dtype(values.dtype) == "string":
            as_numpy(f"`{name}`", np.array([""]))  # Raises.
        return values
    array = as_numpy(f"`{name}`", values)
    if isinstance(values, (list, tuple)) and array.dtype == "float64":
        array = array.astype(backends.full_precision())  # Python has no float32.
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # JAX has 32 bits, and would drop the others; PyTorch has no uint64.
        array = np.clip(array, max(-(2**31), np.iinfo(array.dtype).min), 2**31 - 1).astype("int64")
    return ops.convert_to_tensor(array)


def as_numpy(name: str, values: Any, what: str = "numbers") -> np.ndarray:
    """Returns labels or predictions of any form as an array of numbers."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError(
                f"{name} must not be a masked array. Received: {values.mask.sum()} masked "
                "values; replace them, as in `values.filled(-1)`, and give `ignore_class=-1`, or "
                "give them the sample weight 0"
            )
        values = values.data
    if backends.is_ragged_or_sparse(values):
        raise ValueError(
            f"{name} must be dense. Received: {kind_of(values)}; pad a ragged one, as in "
            "`values.to_tensor(-1)`, and give `ignore_class=-1`; make a sparse one dense, as in "
            "`tf.sparse.to_dense(values)` or `values.toarray()`"
        )
    try:
        is_tensor = hasattr(values, "shape") and hasattr(values, "dtype")
        is_tensor = is_tensor and not isinstance(values, np.ndarray) and not hasattr(values, "iloc")
        array = ops.convert_to_numpy(values) if is_tensor else np.asarray(values)
        if array.dtype == object:
            array = _from_objects(array)
        if array.dtype.name == "bfloat16":
            array = array.astype("float32")
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        kind = "dates" if array.dtype.kind in "mM" else "text, missing values or unequal lists"
        raise ValueError(
            f"{name} must be {what}. Received: {kind_of(values)} of {kind}. Turn names "
            "into ids first, as pandas's `.cat.codes`, scikit-learn's `LabelEncoder` or "
            "`keras.layers.StringLookup` do; concatenate or pad lists of unequal lengths"
        )
    return array


def _from_objects(array: np.ndarray) -> np.ndarray:
    """Returns an array of Python's own numbers, or of pandas's, in a dtype of NumPy."""
    flat = array.ravel().tolist()
    if not all(isinstance(value, (int, float, np.number, np.bool_)) for value in flat):
        return array
    return np.array(flat).reshape(array.shape)


def class_ids(name: str, labels: Any, num_classes: int | None = None) -> np.ndarray:
    """Returns labels `(N,)` or `(N, 1)`, or one-hot `(N, K)`, as class ids `(N,)` int64."""
    labels = as_numpy(f"`{name}`", labels, "integer classes")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise ValueError(
                f"`{name}` must be class ids `(N,)`, or one-hot `(N, K)`. Received: other numbers "
                f"of shape {labels.shape}"
            )
        labels = labels.argmax(axis=1)
    elif labels.ndim == 2:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"`{name}` must be class ids `(N,)` of at least one example. Received: {name} of shape "
            f"{labels.shape}"
        )
    with np.errstate(invalid="ignore"):  # NaN
        ids = labels.astype("int64")
    high = np.inf if num_classes is None else num_classes
    bad = np.unique(labels[(ids != labels) | (ids < 0) | (ids >= high)])
    if bad.size:
        what = f"in [0, {num_classes})" if num_classes else "0, 1, 2, ..."
        raise ValueError(f"`{name}` must be classes {what}. Received: {bad[:10].tolist()}")
    return ids


def shape_of_losses(y_pred: Tensor, binary: bool) -> tuple:
    """Returns the shape of the losses of predictions `y_pred`."""
    shape = tuple(ops.shape(y_pred))
    one_label = len(shape) > 1 and y_pred.shape[-1] == 1
    return shape[:-1] if one_label or not binary else shape


def is_ignored(labels: Any, ignore_class: IgnoreClass) -> Any:
    """Returns whether each label is to be ignored: is `ignore_class`, or one of several."""
    ids: list[Any] = ignore_class if isinstance(ignore_class, list) else [ignore_class]
    if isinstance(labels, np.ndarray):
        return functools.reduce(np.logical_or, (labels == i for i in ids))
    labels = as_signed(labels)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype):
        ids = [float(i) for i in ids]  # JAX takes no integer beyond 32 bits.
    else:  # No label is what its dtype cannot hold.
        ids = [i for i in ids if np.iinfo(dtype).min <= i <= np.iinfo(dtype).max]
    none = ops.zeros_like(labels, dtype="bool")
    return functools.reduce(ops.logical_or, (ops.equal(labels, i) for i in ids), none)


def is_kept(y_true: Tensor, shape: tuple, ignore_class: IgnoreClass) -> Tensor:
    """Returns whether each position of losses of this shape has a label that is not ignored."""
    return ops.reshape(ops.logical_not(is_ignored(y_true, ignore_class)), shape)


def refuse_ignored(y_true: Any, ignore_class: IgnoreClass, or_labels: bool = False) -> None:
    """Raises for targets `(..., K)`, which have no class ids that could be ignored.

    With `or_labels` they may be independent labels, of which what is outside `[0, K)` is not known.
    """
    if ignore_class is None:
        return
    if not or_labels or is_ignored(np.arange(y_true.shape[-1]), ignore_class).any():
        raise ValueError(
            "`ignore_class` needs `y_true` of integer classes. Received: targets of shape "
            f"{tuple(y_true.shape)} and ignore_class={ignore_class}"
        )


def stand_in(occurs: ArrayLike, ignore_class: IgnoreClass = None) -> int:
    """Returns the class that stands in for a label that does not count.

    It occurs and is not ignored, since it goes through the same computation as the others.
    `occurs` is `(K,)`, or of binary labels `(2,)` or `(L, 2)`, which all occur.
    """
    ids = np.flatnonzero(np.atleast_2d(occurs)[0])
    if ignore_class is not None:
        counted = ids[~is_ignored(ids, ignore_class)]
        ids = counted if counted.size else ids
    return int(ids[0])


def blank_labels(
    y_true: Tensor,
    weights: Tensor,
    occurs: ArrayLike = (True,),
    ignore_class: IgnoreClass = None,
) -> Tensor:
    """Returns targets with another label where their weight is 0: such a label may be anything.

    A label that is to be ignored stays. One-hot and soft targets become 0 for every class.
    """
    rank = len(weights.shape)
    while len(y_true.shape) > rank and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    if not _fits(y_true.shape[:rank], weights.shape):
        return y_true  # For others to refuse.
    excluded = ops.equal(weights, 0)
    if len(y_true.shape) > rank:
        return ops.where(excluded[..., None], ops.zeros_like(y_true), y_true)
    if ignore_class is not None:
        excluded = ops.logical_and(excluded, ops.logical_not(is_ignored(y_true, ignore_class)))
    label = stand_in(occurs, ignore_class)
    return ops.where(excluded, ops.full_like(y_true, label), y_true)


def match_weights(weights: Any, shape: tuple) -> Any:
    """Returns weights `(...)`, `(..., 1)` or of fewer leading axes broadcast to `shape`."""
    xp = np if isinstance(weights, np.ndarray) else ops  # NumPy stays NumPy, in its dtype.
    rank = len(shape)
    if len(weights.shape) == rank + 1 and weights.shape[-1] == 1:
        weights = xp.squeeze(weights, axis=-1)
    missing = rank - len(weights.shape)
    # An axis of unknown size is taken for that of the targets.
    sizes = zip(weights.shape, shape, strict=False)
    if missing < 0 or not all(_same_size(a, b) or a == 1 for a, b in sizes):
        raise ValueError(
            "`sample_weight` must have the leading axes of the targets. Received: "
            f"sample_weight of shape {tuple(weights.shape)} for targets of shape {tuple(shape)}"
        )
    weights = xp.reshape(weights, (*xp.shape(weights), *(1,) * missing))
    return xp.broadcast_to(weights, shape)


def check_classes(
    logits: Tensor, num_classes: int, of: str = "`priors`", binary: str = "the binary losses"
) -> None:
    """Raises unless the last axis of `logits` has the classes.

    An error says whose classes they are (`of`), and what takes one logit instead (`binary`).
    """
    shape = tuple(logits.shape)
    if not shape or shape[-1] not in (num_classes, None):
        one_logit = len(shape) < 2 or shape[-1] == 1
        hint = f" For one logit per example use {binary}." if one_logit else ""
        if num_classes in shape:
            hint = " Move the classes to the last axis, as `keras.ops.moveaxis` does."
        elif len(shape) < 2:
            hint += " Labels have no such axis: are the arguments in the right order?"
        raise ValueError(
            f"The last axis of `y_pred` must have the {num_classes} classes of {of}. "
            f"Received: y_pred.shape={shape}.{hint}"
        )


def match_shapes(
    y_true: Tensor,
    logits: Tensor,
    num_classes: int,
    of: str = "`priors`",
    binary: str = "the binary losses",
) -> tuple[Tensor, bool]:
    """Returns `y_true` as `(...)` or `(..., K)`, and whether it holds integer classes.

    `of` and `binary` are what an error names: see `check_classes`.
    """
    check_classes(logits, num_classes, of, binary)
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
    if sparse:
        y_true = as_signed(y_true)
    elif None in true_shape:
        # A (B, 1) whose shape is unknown until it runs must not broadcast against the logits.
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, sparse


def match_binary(
    y_true: Tensor, logits: Tensor, num_labels: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns labels and logits of one shape: `(...)`, or `(..., L)` for `num_labels`."""
    shapes = tuple(y_true.shape), tuple(logits.shape)
    true_shape = shapes[0]
    if num_labels is None:
        if len(logits.shape) > 1 and logits.shape[-1] == 1:
            logits = ops.squeeze(logits, axis=-1)
        while len(true_shape) > len(logits.shape) and true_shape[-1] in (1, None):
            true_shape = true_shape[:-1]
        expected = tuple(logits.shape)
    else:
        expected = (*logits.shape[:-1], num_labels)
    if not (_fits(true_shape, expected) and _fits(logits.shape, expected)):
        is_pair = num_labels in (None, 1) and shapes[1][-1:] == (2,)
        hint = ". Two outputs, of two classes, are for `GLALoss` and `GCALoss`" if is_pair else ""
        raise ValueError(
            "`y_true` and `y_pred` must both be `(...)` or `(..., 1)` for one positive rate, and "
            f"`(..., L)` for a vector of `L`. Received: y_true.shape={shapes[0]}, "
            f"y_pred.shape={shapes[1]} and {num_labels or 1} rates{hint}"
        )
    if None in shapes[0] or true_shape != shapes[0]:
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, logits


def as_predictions(name: str, values: Any, check: Callable[[np.ndarray], None]) -> Tensor:
    """Returns predictions as a tensor; `check` sees those that are not a tensor yet."""
    if not backends.is_dense_tensor(values):
        check(as_numpy(f"`{name}`", values))
    return as_tensor(name, values)


def check_predictions(y_pred: np.ndarray, from_logits: bool, binary: bool, least: int = 10) -> None:
    """Raises for an array of probabilities where logits are wanted, or the other way round.

    An array does not show that it came out of a softmax; its rows sum to 1. In fewer rows than
    `least` that may be chance.
    """
    if not from_logits:
        if (y_pred < 0).any():
            raise ValueError(
                "`y_pred` must be probabilities, since `from_logits=False`. "
                "Received: negative numbers, such as logits or log-probabilities"
            )
    elif not binary and y_pred.ndim > 1 and math.prod(y_pred.shape[:-1]) >= least:
        sums = y_pred.sum(axis=-1, dtype="float64")
        # The softmax of bfloat16 numbers is off by some thousandths.
        if (y_pred >= 0).all() and np.allclose(sums, 1.0, atol=1e-2):
            raise ValueError(
                "`y_pred` must be logits, since `from_logits=True`. Received: numbers "
                "that sum to 1 for every example; pass logits, or `from_logits=False`, as in "
                "`GLALoss(priors, tau=0, from_logits=False)`"
            )


def as_signed(labels: Tensor) -> Tensor:
    """Returns labels in a dtype that can hold -1 too."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype) or dtype in ("int32", "int64"):
        return labels
    return ops.cast(labels, backends.long_integer() if dtype in ("uint32", "uint64") else "int32")


def valid_ids(
    labels: Tensor, num_classes: int, occurs: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Returns class ids int32, some in `[0, K)` for invalid ones, and whether each is valid."""
    ids = ops.clip(ops.cast(labels, "int32"), 0, num_classes - 1)
    # Invalid is what is out of range, not whole, NaN or of more than 32 bits.
    valid = ops.equal(ops.cast(ids, labels.dtype), labels)
    if occurs is not None and not occurs.all():
        valid = ops.logical_and(valid, ops.take(np.array(occurs), ids))
    return ids, valid


def range_of(occurs: np.ndarray) -> str:
    """Returns in words which class ids a label may have."""
    absent = np.flatnonzero(~occurs)[:10].tolist()
    return f"[0, {len(occurs)})" + (f" except {absent}, whose prior is 0" if absent else "")


def check_labels(labels: Tensor, num_classes: int, occurs: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns what `valid_ids` does, and raises for invalid labels where they can be seen."""
    ids, valid = valid_ids(labels, num_classes, occurs)
    message = (
        f"The labels in `y_true` must be integers in {range_of(occurs)}. Give padding, such as "
        "-100 or 255, to the loss as its `ignore_class`; take 1 off ids that start at 1."
    )
    return ids, backends.refuse_unless(valid, labels, message)


def _fits(shape: tuple, expected: tuple) -> bool:
    """Returns whether two static shapes agree, where `None` agrees with any size."""
    return len(shape) == len(expected) and all(map(_same_size, shape, expected))


def _same_size(a: Any, b: Any) -> bool:
    # `None`, or a tensor, is a size that is not known before it runs.
    return not isinstance(a, int) or not isinstance(b, int) or a == b
