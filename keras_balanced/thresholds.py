"""The threshold of one logit that keeps within a budget of alerts, or a precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from keras_balanced import targets, validation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["find_threshold"]


def find_threshold(
    probabilities: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    max_alert_rate: float | None = None,
    min_precision: float | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Finds the threshold of one logit that keeps within a budget, on held-out data.

    Of all thresholds within the budget it is the lowest, which finds the most of label 1. It lies
    halfway between two probabilities of the data, so that rounding changes no decision. On new
    data of the same kind the number of alerts varies, as with any rare event.

    Formula:

    ```
    alerts     = examples with probability > threshold
    alert rate = weight of alerts / weight of all                  <= max_alert_rate
    precision  = weight of alerts of label 1 / weight of alerts    >= min_precision
    ```

    What an error costs needs no data: where a missed positive costs `c` times a false alert, the
    threshold of right probabilities is `1 / (1 + c)`.

    Args:
        probabilities: Probability of label 1 of each example, `(N,)` or `(N, 1)`, or class
            probabilities `(N, 2)`: those by which the model will decide, under the class mix and
            the temperature of production. Of independent labels one column at a time.
        labels: Labels 0 and 1, `(N,)` or `(N, 1)`, or one-hot `(N, 2)`. For `min_precision`.
            Leave out examples whose label is not known.
        max_alert_rate: Number in `(0, 1]`: the largest fraction of the examples to be alerted of,
            as in `100 / examples_per_day`.
        min_precision: Number in `(0, 1]`: the smallest fraction of label 1 among the alerts.
        sample_weight: Weights `(N,)` that make the class mix of the data that of production. `None`
            is 1 for all.

    Returns:
        The threshold, a float, for `Decision(loss, threshold=threshold, priors=priors)`.

    Raises:
        ValueError: for bad arguments, or a budget that allows no alert at all.

    Example:

    >>> probabilities = [0.9, 0.8, 0.6, 0.4, 0.2]
    >>> print(find_threshold(probabilities, max_alert_rate=0.4))
    0.7
    >>> print(find_threshold(probabilities, labels=[1, 0, 1, 0, 0], min_precision=0.6))
    0.5
    """
    values = _probabilities_of_1(probabilities)
    if max_alert_rate is None and min_precision is None:
        raise ValueError("Expected a budget, `max_alert_rate` or `min_precision`. Received: none")
    weights = _weights_of(values, sample_weight)
    ids = None if labels is None else _labels_of(values, labels)
    distinct, place = np.unique(-values, return_inverse=True)  # From the largest.
    alerts = np.cumsum(np.bincount(place, weights))
    allowed = np.ones(len(distinct), bool)
    if max_alert_rate is not None:
        _check_fraction("max_alert_rate", max_alert_rate)
        allowed &= alerts <= max_alert_rate * alerts[-1] * (1 + 1e-12)
    if min_precision is not None:
        _check_fraction("min_precision", min_precision)
        if ids is None:
            raise ValueError("`min_precision` needs `labels`. Received: labels=None")
        right = np.cumsum(np.bincount(place, weights * ids))
        allowed &= right >= min_precision * alerts * (1 - 1e-12)
    if not allowed.any():
        raise ValueError(
            "The budget must allow an alert. Received: "
            f"max_alert_rate={max_alert_rate} and min_precision={min_precision} for {len(values)} "
            "examples, and no threshold keeps it"
        )
    last = int(np.flatnonzero(allowed)[-1])
    least = -distinct[last]
    below = -distinct[last + 1] if last + 1 < len(distinct) else 0.0
    middle = (least + below) / 2
    # Between neighbours in float32 there is no middle: the lower one decides the same.
    return float(middle if np.float32(below) < np.float32(middle) < np.float32(least) else below)


def _probabilities_of_1(probabilities):
    """Returns the probabilities of label 1, `(N,)` float64."""
    values = targets.as_numpy("`probabilities`", probabilities).astype("float64")
    shape = values.shape
    if values.ndim:
        validation.check_finite("`probabilities`", values)
    valid = ((values >= 0) & (values <= 1)).all()
    if not values.size or shape[1:] not in ((), (1,), (2,)) or not valid:
        raise ValueError(
            "`probabilities` must be those of label 1, `(N,)` or `(N, 1)`, or `(N, 2)` (logits go "
            "through `loss.posterior`; of several labels pass one column). "
            f"Received: {'' if valid else 'other '}numbers of shape {shape}"
        )
    if shape[1:] == (2,) and not np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        raise ValueError(
            "`probabilities` of shape (N, 2) must be those of two classes, and sum to 1. Received: "
            f"sums from {values.sum(axis=-1).min():.3g}; of several labels pass one column, as in "
            "`p[:, 0]`"
        )
    return values.reshape(shape[0], -1)[:, -1]


def _weights_of(probabilities, sample_weight):
    """Returns the weights `(N,)` of probabilities `(N,)`."""
    number = len(probabilities)
    weights = np.ones(number) if sample_weight is None else sample_weight
    weights = targets.match_weights(targets.as_numpy("`sample_weight`", weights), (number,))
    validation.check_finite("`sample_weight`", weights)
    if (weights < 0).any() or not weights.any():
        raise ValueError(
            "`sample_weight` must be finite, not negative, and positive for some example. "
            f"Received: weights from {np.min(weights)} to {np.max(weights)}"
        )
    return weights


def _labels_of(probabilities, labels):
    """Returns the labels 0 and 1 `(N,)` of probabilities `(N,)`."""
    given = targets.as_numpy("`labels`", labels, "integer classes")
    if np.isin(probabilities, (0, 1)).all() and ((given > 0) & (given < 1)).any():
        raise ValueError(
            "`labels` must be 0 and 1. Received: numbers in between, and `probabilities` that are "
            "all 0 or 1. Did you mean `find_threshold(probabilities, labels, ...)`?"
        )
    ids = targets.class_ids("labels", labels, 2)
    if len(ids) != len(probabilities):
        raise ValueError(
            "`labels` must be as many as `probabilities`. "
            f"Received: {len(ids)} labels for {len(probabilities)} probabilities"
        )
    return ids


def _check_fraction(name, value):
    if not 0 < validation.check_number(name, value) <= 1:
        raise ValueError(f"`{name}` must be in (0, 1]. Received: {name}={value!r}")
