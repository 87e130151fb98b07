"""What every metric does: targets of any kind, weights and masks, and exact sums over a batch."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets, validation

_SUMS = 2**14  # Float32 sums beside each other, over which the examples of a batch are spread.


class ClassMetric(keras.metrics.Metric):
    """What the metrics do with targets of any kind, weights, masks and `ignore_class`."""

    _better, _of_labels = "up", False

    def __init__(self, num_classes, ignore_class, name, dtype, least=2):
        super().__init__(name=name, dtype=dtype or backends.full_precision())
        backends.set_direction(self, self._better)
        self.num_classes = validation.check_integer("num_classes", num_classes, low=least)
        self.ignore_class = validation.check_ignore_class(ignore_class)

    def _flatten(self, y_true, y_pred, sample_weight):
        """Returns labels `(N,)` or targets `(N, K)`, and weights `(N,)`."""
        y_true, sparse = targets.match_shapes(
            y_true,
            y_pred,
            self.num_classes,
            of="the metric",
            binary="`BinaryBalancedAccuracy`",
        )
        weights = self._weights(y_pred, sample_weight, ops.shape(y_pred)[:-1])
        if sparse:
            y_true, weights = self._check_labels(y_true, weights)
            y_true = ops.reshape(y_true, (-1,))
        else:
            targets.refuse_ignored(y_true, self.ignore_class, self._of_labels)
            y_true = ops.cast(targets.blank_labels(y_true, weights), self.dtype)
            # Soft targets may be rounded; padding of -1 is none.
            valid = ops.logical_and(y_true >= 0, y_true <= 1 + 1e-3)
            if self.ignore_class is not None:
                ignored = targets.is_ignored(y_true, self.ignore_class)
                valid = ops.logical_or(valid, ignored)
            weights = self._nan_where_invalid(weights, ops.all(valid, axis=-1))
            y_true = ops.reshape(y_true, (-1, self.num_classes))
        return y_true, ops.reshape(weights, (-1,))

    def _flatten_binary(self, y_true, y_pred, sample_weight, num_labels=None):
        """Returns labels in `[0, 1]` and weights, both `(N, L)`, `L` 1 by default."""
        y_true, matched = targets.match_binary(y_true, y_pred, num_labels)
        weights = self._weights(y_pred, sample_weight, ops.shape(matched))
        y_true = ops.cast(y_true, self.dtype)
        if self.ignore_class is not None:
            weights = ops.where(targets.is_ignored(y_true, self.ignore_class), 0.0, weights)
        valid = ops.logical_and(y_true >= 0, y_true <= 1)
        weights = self._nan_where_invalid(weights, valid)
        y_true = ops.where(valid, y_true, ops.zeros_like(y_true))
        return (ops.reshape(part, (-1, num_labels or 1)) for part in (y_true, weights))

    def _weights(self, y_pred, sample_weight, shape):
        weights = ops.ones(shape, self.dtype)
        for factor in (backends.get_mask(y_pred), sample_weight):
            if factor is not None:
                factor = ops.cast(targets.as_tensor("sample_weight", factor), self.dtype)
                weights = weights * targets.match_weights(factor, shape)
        return weights

    def _nan_where_invalid(self, weights, valid):
        """Returns weights that are NaN for invalid labels: a masked label may be anything."""
        bad = ops.logical_and(ops.logical_not(valid), ops.not_equal(weights, 0))
        return ops.where(bad, ops.full_like(weights, np.nan), weights)

    def _check_labels(self, labels, weights):
        """Returns labels in `[0, K)` and weights: 0 for one to ignore, NaN for one out of range."""
        ids, valid = targets.valid_ids(labels, self.num_classes)
        weights = self._nan_where_invalid(weights, valid)
        if self.ignore_class is not None:
            weights = ops.where(targets.is_ignored(labels, self.ignore_class), 0.0, weights)
        return ids, weights

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_class": self.ignore_class,
        }


def sums_of(values, cells=None, num_cells=1):
    """Returns the sum over the first axis of `values` `(N, ...)`, or with `cells` of each cell.

    `cells` are integers `(N, ...)`; the sums then `(num_cells,)`.
    """
    # A single float32 sum of ones ends at 2**24, and images have many pixels: many sums side by
    # side, and those in rows.
    shape = values.shape[1:] if cells is None else (num_cells,)
    side = max(1, int(math.sqrt(_SUMS // math.prod(shape))))
    number, length = side**2, ops.shape(values)[0]
    if cells is None:
        whole = length // number * number
        sums = ops.sum(ops.reshape(values[:whole], (-1, number, *shape)), axis=0)
        rest = ops.sum(values[whole:], axis=0)
    else:
        place = ops.reshape(
            ops.arange(length, dtype="int32") % number, (-1, *(1,) * (len(cells.shape) - 1))
        )
        cells = ops.reshape(place * num_cells + ops.cast(cells, "int32"), (-1,))
        sums, rest = ops.segment_sum(ops.reshape(values, (-1,)), cells, number * num_cells), 0.0
    return ops.sum(ops.sum(ops.reshape(sums, (side, side, *shape)), axis=0), axis=0) + rest
