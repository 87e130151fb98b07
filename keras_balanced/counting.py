"""What `ClassPrior` counts: class ids, targets that sum to 1, or independent labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, reading, targets
from keras_balanced.validation import IgnoreClass, kind_of

# Labels that stay in the cache while they are checked and counted.
_CHUNK = 1 << 17


class LabelCounter:
    """Counts the classes in labels of any form, in float64.

    Counts are `(K,)`, or with `multi_label` the zeros and ones `(K, 2)` of each label.
    """

    def __init__(self, num_classes: int, multi_label: bool, ignore_class: IgnoreClass):
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.ignore_class = ignore_class
        self.shape = (num_classes, 2) if multi_label else (num_classes,)

    def count(self, data: Any, sample_weight: Any, steps: int | None, is_whole: bool) -> np.ndarray:
        """Returns the counts of `data`, which are all the labels or a part of them."""
        batches = reading.read_labels(data, sample_weight, steps)
        if not self.multi_label:
            return self._count_classes(batches, is_whole)
        counts = np.zeros(self.shape)
        for _, labels, weights in batches:
            counts += self._count_labels(*self._as_arrays(labels, weights))
        return counts

    def _count_classes(self, batches: Iterable[reading.Batch], is_whole: bool) -> np.ndarray:
        """Returns the counts by the form that all labels of the stream have, counted as both."""
        form = LabelForm(self.num_classes, self.ignore_class)
        counters = {form.IDS: self._count_ids, form.TARGETS: self._count_targets}
        counts = {name: np.zeros(self.num_classes) for name in counters}

        def decide() -> str:
            return form.decide(bool(counts[form.IDS][2:].any()), is_whole)

        for x, given, its_weights in batches:
            labels, weights = self._as_arrays(given, its_weights)
            if not labels.size:
                continue
            form.add(labels, x, is_sparse=_is_sparse(given))
            for name in filter(form.may_be, counters):
                try:
                    counts[name] += counters[name](labels, weights)
                except ValueError as error:
                    form.exclude(name, error)
            if not any(map(form.may_be, counters)):
                decide()  # Raises.
        return counts[decide()]

    def _as_arrays(self, labels: Any, weights: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns labels and checked weights as arrays, without padding."""
        what = "integer classes, or one-hot or soft targets"
        if self.multi_label:
            what = f"numbers in [0, 1] of shape (..., {self.num_classes})"
        labels, weights = _as_arrays(labels, weights, self.num_classes, what)
        if weights is not None:
            weights = weights.astype("float64")
            if not (np.isfinite(weights) & (weights >= 0)).all():
                raise ValueError("`sample_weight` must be finite and not negative")
        return labels, weights

    def _count_labels(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if self.num_classes == 1 and labels.shape[-1:] != (1,):
            labels = labels[..., None]
        weights = targets.match_weights(np.ones(()) if weights is None else weights, labels.shape)
        if self.ignore_class is not None:
            weights = np.where(targets.is_ignored(labels, self.ignore_class), 0.0, weights)
        labels = np.where(weights > 0, labels, 0)
        invalid = labels[~((labels >= 0) & (labels <= 1))]
        if labels.shape[-1:] != (self.num_classes,) or invalid.size:
            received = f"labels {np.unique(invalid)[:10].tolist()}" if invalid.size else "labels"
            raise ValueError(
                f"Labels must be numbers in [0, 1] of shape (..., {self.num_classes}). "
                f"Received: {received} of dtype {labels.dtype} and shape {labels.shape}"
            )
        ones = weights * labels
        return np.stack([weights - ones, ones], -1).reshape(-1, self.num_classes, 2).sum(axis=0)

    def _count_ids(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if weights is not None:
            weights = targets.match_weights(weights, labels.shape)
            labels, weights = labels[weights > 0], weights[weights > 0]
        labels = labels.reshape(-1)
        counts = np.zeros(self.num_classes)
        for start in range(0, len(labels), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            counts += self._count_chunk(labels[chunk], None if weights is None else weights[chunk])
        return counts

    def _count_chunk(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if self.ignore_class is not None:
            kept = ~targets.is_ignored(labels, self.ignore_class)
            labels, weights = labels[kept], None if weights is None else weights[kept]
        with np.errstate(invalid="ignore"):  # NaN
            classes = labels.astype("int64", copy=False)
        if labels.dtype.kind == "f" and (classes != labels).any():
            raise ValueError(
                "Labels must be integer classes. "
                f"Received: labels of dtype {labels.dtype}, {labels[classes != labels][:5]}"
            )
        # As unsigned numbers the negative ones are large, so one comparison finds both kinds.
        if classes.size and classes.view("uint64").max() >= self.num_classes:
            bad = np.unique(classes[(classes < 0) | (classes >= self.num_classes)])
            raise ValueError(
                f"Labels must be in [0, {self.num_classes}). Received: labels {bad[:10].tolist()}. "
                "Give padding, such as -100 or 255, as `ignore_class`; take 1 off ids that start "
                "at 1"
            )
        return np.bincount(classes, weights, minlength=self.num_classes)

    def _count_targets(self, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if weights is not None:
            weights = targets.match_weights(weights, labels.shape[:-1])
            labels, weights = labels[weights > 0], weights[weights > 0]
        if not np.allclose(labels.sum(axis=-1), 1.0, atol=1e-3) or (labels < 0).any():
            raise ValueError(
                f"Labels of shape (..., {self.num_classes}) are read as one-hot or soft targets, "
                "whose last axis must be non-negative and sum to 1. Flatten them if they are "
                "integer classes; `multi_label=True` is for independent labels. "
                f"Received: labels of shape {labels.shape}"
            )
        labels = labels.astype("float64")
        if weights is not None:
            labels = labels * weights[..., None]
        return labels.reshape(-1, self.num_classes).sum(axis=0)


class LabelForm:
    """Finds out whether the labels of a stream are class ids or targets `(..., K)`.

    One batch does not tell: `[[0, 1], [1, 0]]` are two one-hot targets, or two sequences of two
    steps. So both remain possible until the whole stream has been seen:

    * Targets are all of shape `(..., K)`, not negative, and sum to 1 over that axis.
    * Class ids are integers in `[0, K)`, of any shape. Where all are of shape `(..., K)`, and can
      not be targets, they must not be zeros and ones only, which may be `K` independent labels.
    * Labels that can be both are targets if they have a batch axis and no `ignore_class` is given,
      which only ids have. Vectors `(K,)` are ids if `K` is 2, a pair of labels, and otherwise
      refused.
    """

    IDS, TARGETS = "class ids", "targets"

    def __init__(self, num_classes: int, ignore_class: IgnoreClass):
        self.num_classes = num_classes
        self.ignore_class = ignore_class
        # The first reason why the labels are not class ids, and why not targets.
        self.reasons: dict[str, ValueError] = {}
        self.batches = 0
        self.matrices = 0  # Batches `(..., K)` with a batch axis.
        self.vectors = 0  # Batches `(K,)`.
        self.single = 0  # Vectors that belong to one example, as the number of inputs says.
        self.floats = 0  # Batches of floats.

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

    def _form_of_vectors(self) -> str:
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

    def _why_neither(self) -> ValueError:
        ids, targets = self.reasons.get(self.IDS), self.reasons[self.TARGETS]
        if ids is None:
            return targets
        if self.matrices < self.batches:
            return ids
        return ValueError(f"{targets}. As class ids: {ids}")


def _as_arrays(
    labels: Any, weights: Any, num_classes: int, what: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns labels and weights as arrays, without the padding of ragged and masked ones.

    Sparse ones with `num_classes` as their last axis are targets, whose zeros are there.
    """
    if hasattr(labels, "columns") and labels.shape[1] not in (1, num_classes):
        raise ValueError(
            "`data` must have the labels of one output. Received: a DataFrame with "
            f"{labels.shape[1]} columns; pass those of one, as in `adapt(frame['label'])`"
        )
    if isinstance(weights, list):
        weights = targets.as_numpy("`sample_weight`", weights)
    if backends.is_ragged_or_sparse(labels):
        labels, weights = _stored(labels, weights, num_classes)
    elif isinstance(labels, np.ma.MaskedArray) and np.ma.is_masked(labels):
        kept = ~np.ma.getmaskarray(labels)
        of_rows = labels.ndim > 1 and labels.shape[-1] == num_classes
        if of_rows and (kept == kept[..., :1]).all():
            kept = kept[..., 0]
        if weights is not None:
            weights = targets.match_weights(
                targets.as_numpy("`sample_weight`", weights), kept.shape
            )[kept]
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
    weights = None if weights is None else targets.as_numpy("`sample_weight`", weights)
    return targets.as_numpy("Labels", labels, what), weights


def _even_parts(values: Any) -> list[np.ndarray]:
    """Returns the largest parts of nested lists that are arrays."""
    try:
        return [np.asarray(values)]
    except ValueError:
        return [part for value in values for part in _even_parts(value)]


def _stored(labels: Any, weights: Any, num_classes: int) -> tuple[Any, Any]:
    """Returns the values of ragged or sparse labels, and the weights of each."""
    is_ragged = not _is_sparse(labels)
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
            f"{kind_of(weights)} for {kind_of(labels)}"
        )
    return values, targets.as_numpy("`sample_weight`", weights)[ops.convert_to_numpy(rows)]


def _is_sparse(values: Any) -> bool:
    """Returns whether `values` is a sparse tensor of any library."""
    return backends.is_ragged_or_sparse(values) and not hasattr(values, "flat_values")
