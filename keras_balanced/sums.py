"""What the metrics share: targets of any kind, weights and masks, decisions, exact sums."""

from __future__ import annotations

import functools
import math
import types
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, formula, targets, validation
from keras_balanced.decisions import Decision, check_decision
from keras_balanced.losses import check_predictions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keras_balanced.losses import BalancedLoss

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
            # Soft targets may be rounded; padding of -1 is not a target.
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


def _renamed(function, qualified_name):
    """Returns a copy of a function under another name."""
    copy = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    functools.update_wrapper(copy, function)
    copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    copy.__qualname__ = qualified_name
    return copy


class RecallMetric(ClassMetric):
    """The weight of each class, in all and predicted right; subclasses read `result` off them."""

    _default_name: str | None = None
    _sums: tuple[str, ...] = ("correct", "total")
    correct: Any
    total: Any
    predicted: Any

    def __init__(
        self,
        num_classes: int,
        *,
        decision: Decision | BalancedLoss | None = None,
        ignore_class: int | Sequence[int] | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ):
        super().__init__(num_classes, ignore_class, name or self._default_name, dtype)
        self.decision = check_decision("decision", decision)
        if self.decision is not None:
            check_size("decision", self.decision.loss, *self._sizes(), of=self._kind())
        for sums in self._sums:
            setattr(self, sums, self.add_variable(self._shape(), "zeros", self.dtype, name=sums))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            # Python's errors of a missing or unknown argument should name this class.
            cls.__init__ = _renamed(cls.__init__, f"{cls.__qualname__}.__init__")  # type: ignore[method-assign]

    def _shape(self):
        return (self.num_classes,)

    def _sizes(self):
        return [(False, self.num_classes)]

    def _kind(self):
        return f"the {self.num_classes} classes"

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets
                `(..., K)`, which count as fractions of examples. A label outside `[0, K)` that is
                not `ignore_class` makes the result NaN.
            y_pred: Predictions `(..., K)`: as `decision` takes them, or logits or probabilities.
            sample_weight: Optional weights `(...)`, or of fewer leading axes. Keras gives those of
                `fit` to `weighted_metrics` only.
        """
        y_true = targets.as_tensor("y_true", y_true)
        if self.decision is None:
            y_pred = targets.as_tensor("y_pred", y_pred)
        else:
            check = functools.partial(check_predictions, self.decision.loss)
            y_pred = targets.as_predictions("y_pred", y_pred, check)
        y_true, weights = self._flatten(y_true, y_pred, sample_weight)
        if self.decision is None:
            predicted = backends.argmax(formula.as_full_precision(y_pred))
        else:
            predicted = self.decision(y_pred)
        self._count(y_true, ops.reshape(predicted, (-1,)), weights)

    def decides_as(self, decision: Decision) -> bool:
        """Returns whether the predicted classes are those of a decision."""
        own = self.decision or Decision(decision.loss, by="logits")
        return own.decides_as(decision)

    def _count(self, y_true, predicted, weights):
        if len(y_true.shape) == 1:
            hits = weights * ops.cast(ops.equal(y_true, predicted), self.dtype)
            total, correct = (sums_of(part, y_true, self.num_classes) for part in (weights, hits))
        else:
            weighted = y_true * weights[:, None]
            hits = ops.take_along_axis(weighted, predicted[:, None], axis=-1)[:, 0]
            total, correct = sums_of(weighted), sums_of(hits, predicted, self.num_classes)
        # One label out of range makes every class NaN.
        self.total.assign_add(total + 0.0 * ops.sum(weights))
        self.correct.assign_add(correct)

    def recalls(self) -> Any:
        """Returns the recall of each class, `(K,)`; 0 for an unseen class."""
        return ops.divide_no_nan(self.correct, self.total)

    def _mean(self, values, among=1.0):
        """Returns the mean of `values` `(K,)` over the classes seen."""
        present = ops.cast(ops.not_equal(self.total, 0), self.dtype) * among
        return ops.divide_no_nan(ops.sum(values * present), ops.sum(present))

    def get_config(self) -> dict[str, Any]:
        decision = self.decision and keras.saving.serialize_keras_object(self.decision)
        return {**super().get_config(), "decision": decision}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RecallMetric:
        """Returns the metric of a config, also of one saved before there were decisions."""
        loss = config.get("loss")
        config = {key: config[key] for key in config if key not in ("loss", "threshold")}
        return cls(**config, **({} if loss is None else {"decision": loss}))


def check_size(name, loss, *sizes, of):
    """Raises unless a loss has one of some sizes: `(is binary, number of classes or labels)`.

    An error says in words what it must be `of`.
    """
    surrogate = loss.surrogate
    size = surrogate.num_labels if surrogate.binary else len(surrogate.priors)
    if (surrogate.binary, size) not in sizes:
        kind = f"{size} labels" if surrogate.binary else f"{size} classes"
        kind = "one logit per example" if size is None else kind
        hint = ""
        if name == "decision" and size is None:
            hint = (
                ". One logit has `BinaryBalancedAccuracy`; any other score takes "
                "`decision(y_pred)`, which are labels 0 and 1"
            )
        raise ValueError(f"`{name}` must be of {of}. Received: one of {kind}{hint}")


def sums_of(values, cells=None, num_cells=1):
    """Returns the sum over the first axis of `values` `(N, ...)`, or with `cells` of each cell.

    `cells` are integers `(N, ...)`; the sums then `(num_cells,)`.
    """
    # A float32 sum of ones stops at 2**24, and images have many pixels. So many sums are kept side
    # by side, and these are added row by row.
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
