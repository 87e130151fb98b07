"""What labels, weights and predictions may look like: their forms, shapes and kinds."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends


def as_tensor(name, values):
    """Returns labels or predictions of any form as a tensor: one that is a tensor as it is."""
    if backends.is_dense_tensor(values):
        if keras.backend.standardize_dtype(values.dtype) == "string":
            as_numpy(f"`{name}`", np.array([""]))  # Raises.
        return values
    array = as_numpy(f"`{name}`", values)
    if isinstance(values, (list, tuple)) and array.dtype == "float64":
        array = array.astype(backends.full_precision())  # Python has no float32.
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # JAX has 32 bits, and takes what is left; PyTorch has no uint64.
        array = np.clip(array, max(-(2**31), np.iinfo(array.dtype).min), 2**31 - 1).astype("int64")
    return ops.convert_to_tensor(array)


def as_numpy(name, values, what="numbers"):
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
            f"{name} must be dense. Received: a {type(values).__name__}; pad a ragged one, as in "
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
            f"{name} must be {what}. Received: a {type(values).__name__} of {kind}. Turn names "
            "into ids first, as pandas's `.cat.codes`, scikit-learn's `LabelEncoder` or "
            "`keras.layers.StringLookup` do; concatenate or pad lists of unequal lengths"
        )
    return array


def _from_objects(array):
    """Returns an array of Python's own numbers, or of pandas's, in a dtype of NumPy."""
    flat = array.ravel().tolist()
    if not all(isinstance(value, (int, float, np.number, np.bool_)) for value in flat):
        return array
    return np.array(flat).reshape(array.shape)


def as_counted(labels, weights, num_classes, what):
    """Returns labels and weights as arrays, without the padding of ragged and masked ones.

    Sparse ones with `num_classes` as their last axis are targets, whose zeros are there.
    """
    if hasattr(labels, "columns") and labels.shape[1] not in (1, num_classes):
        raise ValueError(
            "`data` must have the labels of one output. Received: a DataFrame with "
            f"{labels.shape[1]} columns; pass those of one, as in `adapt(frame['label'])`"
        )
    if isinstance(weights, list):
        weights = as_numpy("`sample_weight`", weights)
    if backends.is_ragged_or_sparse(labels):
        labels, weights = _stored(labels, weights, num_classes)
    elif isinstance(labels, np.ma.MaskedArray) and np.ma.is_masked(labels):
        kept = ~np.ma.getmaskarray(labels)
        of_rows = labels.ndim > 1 and labels.shape[-1] == num_classes
        if of_rows and (kept == kept[..., :1]).all():
            kept = kept[..., 0]
        if weights is not None:
            weights = match_weights(as_numpy("`sample_weight`", weights), kept.shape)[kept]
        labels = labels.data[kept]
        labels = labels[:, None] if labels.ndim == 1 else labels
    elif isinstance(labels, list) and len(rows := _even_parts(labels)) != 1:
        if weights is not None:
            raise ValueError(
                "`sample_weight` needs labels in an array. Received: lists of unequal lengths"
            )
        rows = [row for row in rows if row.size] or [np.zeros((0, 1), "int64")]
        is_one_hot = all(row.ndim > 1 and row.shape[-1] == num_classes for row in rows)
        shape = (-1, num_classes if is_one_hot else 1)
        labels = np.concatenate([row.reshape(shape) for row in rows])
    weights = None if weights is None else as_numpy("`sample_weight`", weights)
    return as_numpy("Labels", labels, what), weights


def _even_parts(values):
    """Returns the largest parts of nested lists that are arrays."""
    try:
        return [np.asarray(values)]
    except ValueError:
        return [part for value in values for part in _even_parts(value)]


def _stored(labels, weights, num_classes):
    """Returns the values of ragged or sparse labels, and the weights of each."""
    is_ragged = not is_sparse(labels)
    if not is_ragged and len(labels.shape) > 1 and labels.shape[-1] in (1, num_classes):
        return backends.dense(labels), weights
    values = backends.stored_values(labels)
    values = values[:, None] if len(values.shape) == 1 else values  # Ids, whatever their number.
    if weights is None:
        return values, None
    rows = backends.rows_of_values(labels)
    if is_ragged and backends.is_ragged_or_sparse(weights):
        its_rows = backends.rows_of_values(weights)
        if rows is None or its_rows is None or np.array_equal(rows, its_rows):
            return values, backends.stored_values(weights)
        rows = None
    if rows is None or len(weights.shape) != 1:
        raise ValueError(
            "`sample_weight` of ragged labels must be as ragged, or one for each row. Received: "
            f"a {type(weights).__name__} for a {type(labels).__name__}"
        )
    return values, as_numpy("`sample_weight`", weights)[ops.convert_to_numpy(rows)]


def is_sparse(values):
    """Returns whether `values` is a sparse tensor of any library."""
    return backends.is_ragged_or_sparse(values) and not hasattr(values, "flat_values")


class LabelForm:
    """Finds out whether the labels of a stream are class ids or targets `(..., K)`.

    One batch does not tell: `[[0, 1], [1, 0]]` are two one-hot targets, or two sequences of two
    steps. So both remain possible until the whole stream has been seen:

    * Targets are all of shape `(..., K)`, not negative, and sum to 1 over that axis.
    * Class ids are integers in `[0, K)`, of any shape. Where all are of shape `(..., K)`, and can
      not be targets, they must be more than zeros and ones: these may be `K` independent labels.
    * What can be both are targets, with a batch axis and without `ignore_class`, which says ids.
      Vectors `(K,)` are ids where `K` is 2, a pair of labels, and else they are refused.
    """

    IDS, TARGETS = "class ids", "targets"

    def __init__(self, num_classes: int, ignore_class: int | None):
        self.num_classes = num_classes
        self.ignore_class = ignore_class
        # Why the labels are not class ids, or not targets: the first reason that was found.
        self.reasons: dict[str, ValueError] = {}
        # How many batches there are; are `(..., K)` with a batch axis; are vectors `(K,)`; hold
        # floats; and are vectors of a single example, as the number of inputs says.
        self.batches = self.matrices = self.vectors = self.floats = self.single = 0

    def add(self, labels: np.ndarray, x: Any = None, is_sparse: bool = False) -> None:
        """Takes note of the next labels, whose inputs are `x`."""
        self.batches += 1
        self.floats += labels.dtype.kind == "f"
        if labels.shape[-1:] != (self.num_classes,):
            self.exclude(self.TARGETS, ValueError(f"Received: labels of shape {labels.shape}"))
        elif labels.ndim == 1:
            self.vectors += 1
            shapes = [leaf.shape for leaf in keras.tree.flatten(x) if hasattr(leaf, "shape")]
            self.single += any(tuple(shape[:1]) != labels.shape for shape in shapes)
        else:
            self.matrices += 1
            if is_sparse:
                self.exclude(self.IDS, ValueError("their zeros may be padding"))

    def exclude(self, form: str, reason: ValueError) -> None:
        """Says why the labels do not have a form."""
        self.reasons.setdefault(form, reason)

    def may_be(self, form: str) -> bool:
        """Returns whether the labels seen so far can have a form."""
        return form not in self.reasons

    def decide(self, has_high_ids: bool, is_whole: bool) -> str:
        """Returns the form of the labels, or raises.

        `has_high_ids` says whether some are above 1, read as ids. With `is_whole` these are all
        labels of the stream; else what can have both forms is refused.
        """
        can_be_ids, says_ids = self.may_be(self.IDS), self.ignore_class is not None
        if not self.may_be(self.TARGETS):
            is_clear = has_high_ids or says_ids or self.num_classes == 2
            if can_be_ids and (is_clear or self.matrices < self.batches):
                return self.IDS
            raise self._why_neither()
        if can_be_ids and self.batches and not is_whole and not says_ids:
            raise ValueError(
                f"These labels of {self.num_classes} classes can be class ids as well as one-hot "
                "targets. Pass ids as `(N, 1)`, as in `labels.reshape(-1, 1)`, and the ids "
                "`labels.argmax(-1)[..., None]` of one-hot targets; or pass all labels to `adapt`, "
                "which tells by the rest of them. Received: all labels so far are 0 and 1, one 1 "
                "in each row"
            )
        if self.vectors == self.batches:
            return self._form_of_vectors()
        if not says_ids:
            return self.TARGETS
        if can_be_ids and self.num_classes == 2 and not self.floats:
            return self.IDS
        raise ValueError(
            "`ignore_class` needs integer labels. Received: labels of shape "
            f"(..., {self.num_classes}), which are one-hot or soft targets"
        )

    def _form_of_vectors(self):
        is_pair = self.num_classes == 2 and not self.floats and not self.single
        if self.batches <= 1 or self.ignore_class is not None or is_pair:
            if not self.may_be(self.IDS):
                raise self.reasons[self.IDS]
            return self.IDS
        raise ValueError(
            f"Labels must be integers, or (..., {self.num_classes}) targets with a batch axis. "
            "Received: batches that all look like one one-hot vector; batch them, or pass class "
            "ids as `(N, 1)`"
        )

    def _why_neither(self):
        ids, targets = self.reasons.get(self.IDS), self.reasons[self.TARGETS]
        if self.matrices < self.batches:
            return ids
        return targets if ids is None else ValueError(f"{targets}. As class ids: {ids}")


def class_ids(name, labels, num_classes=None):
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


def shape_of_losses(y_pred, binary):
    """Returns the shape of the losses of predictions `y_pred`."""
    shape = tuple(ops.shape(y_pred))
    one_label = len(shape) > 1 and y_pred.shape[-1] == 1
    return shape[:-1] if one_label or not binary else shape


def is_ignored(labels, ignore_class):
    """Returns whether each label is to be ignored: is `ignore_class`, or one of several."""
    ids = ignore_class if isinstance(ignore_class, list) else [ignore_class]
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


def is_kept(y_true, shape, ignore_class):
    """Returns whether each position of losses of this shape has a label that is not ignored."""
    return ops.reshape(ops.logical_not(is_ignored(y_true, ignore_class)), shape)


def refuse_ignored(y_true, ignore_class, or_labels=False):
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


def stand_in(occurs, ignore_class=None):
    """Returns the class that stands in for a label that does not count.

    One that occurs and is not ignored: the label goes through all that is done with the others.
    `occurs` is `(K,)`, or of binary labels `(2,)` or `(L, 2)`, which all occur.
    """
    ids = np.flatnonzero(np.atleast_2d(occurs)[0])
    if ignore_class is not None:
        counted = ids[~is_ignored(ids, ignore_class)]
        ids = counted if counted.size else ids
    return int(ids[0])


def blank_labels(y_true, weights, occurs=(True,), ignore_class=None):
    """Returns targets with another label where their weight is 0: such a label may be anything.

    One to ignore stays. One-hot and soft targets become 0 for every class.
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


def check_classes(logits, num_classes, of="`priors`", binary="the binary losses"):
    """Raises unless the last axis of `logits` has the classes.

    An error says whose classes they are (`of`), and what takes one logit instead (`binary`).
    """
    shape = tuple(logits.shape)
    if not shape or shape[-1] not in (num_classes, None):
        hint = f" For one logit per example use {binary}." if shape[-1:] == (1,) else ""
        if num_classes in shape:
            hint = " Move the classes to the last axis, as `keras.ops.moveaxis` does."
        raise ValueError(
            f"The last axis of `y_pred` must have the {num_classes} classes of {of}. "
            f"Received: y_pred.shape={shape}.{hint}"
        )


def match_shapes(y_true, logits, num_classes, of="`priors`", binary="the binary losses"):
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


def match_binary(y_true, logits, num_labels=None):
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
        raise ValueError(
            "`y_true` and `y_pred` must both be `(...)` or `(..., 1)` for one positive rate, and "
            f"`(..., L)` for a vector of `L`. Received: y_true.shape={shapes[0]}, "
            f"y_pred.shape={shapes[1]} and {num_labels or 1} rates"
        )
    if None in shapes[0] or true_shape != shapes[0]:
        y_true = ops.reshape(y_true, ops.shape(logits))
    return y_true, logits


def as_signed(labels):
    """Returns labels in a dtype that can hold -1 too."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype) or dtype in ("int32", "int64"):
        return labels
    return ops.cast(labels, backends.long_integer() if dtype in ("uint32", "uint64") else "int32")


def valid_ids(labels, num_classes, occurs=None):
    """Returns class ids int32, some in `[0, K)` for invalid ones, and whether each is valid."""
    ids = ops.clip(ops.cast(labels, "int32"), 0, num_classes - 1)
    # Not so what is out of range, not whole, NaN or of more than 32 bits.
    valid = ops.equal(ops.cast(ids, labels.dtype), labels)
    if occurs is not None and not occurs.all():
        valid = ops.logical_and(valid, ops.take(np.array(occurs), ids))
    return ids, valid


def range_of(occurs):
    """Returns in words which class ids a label may have."""
    absent = np.flatnonzero(~occurs)[:10].tolist()
    return f"[0, {len(occurs)})" + (f" but for {absent}, whose prior is 0" if absent else "")


def check_labels(labels, num_classes, occurs):
    """As `valid_ids`, and raises an error that names invalid labels where it can be seen."""
    ids, valid = valid_ids(labels, num_classes, occurs)
    message = (
        f"The labels in `y_true` must be integers in {range_of(occurs)}. Give padding, such as "
        "-100 or 255, to the loss as its `ignore_class`; take 1 off ids that start at 1."
    )
    return ids, backends.refuse_unless(valid, labels, message)


def _fits(shape, expected):
    """Returns whether two static shapes agree, where `None` agrees with any size."""
    return len(shape) == len(expected) and all(map(_same_size, shape, expected))


def _same_size(a, b):
    # `None`, or a tensor, is a size that is not known before it runs.
    return not isinstance(a, int) or not isinstance(b, int) or a == b
