"""Decisions found on held-out data: the best one for a score, the threshold that keeps a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from keras import ops

from keras_balanced import targets, validation
from keras_balanced.calibration import labelled
from keras_balanced.decisions import Decision
from keras_balanced.scores import SCORES, Search, confusion_matrix

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["FoundDecision", "find_decision", "find_threshold"]

# How far the logarithms of a mix may lie apart: it stays above 1e-30, and a rate below 1.
_REACH, _REACH_TO_1 = 60.0, 20.0


class FoundDecision(NamedTuple):
    """A decision and how good it is, as `find_decision` returns them.

    Args:
        decision: The `Decision` by the class mix found.
        score: Its score on the data that it was found on, and is the best for: too good.
        recalls: Its recalls on these data, `(K,)`: NaN for a class that never occurs.
        expected_score: The score to expect on new data, by cross-fitting, or `None`.
        expected_recalls: The recalls to expect on new data, `(K,)`, or `None`.

    Example:

    >>> from keras_balanced import BinaryGLALoss
    >>> found = find_decision([-3.0, -1.0, 1.0, 3.0], [0, 0, 1, 1], BinaryGLALoss(0.5))
    >>> print(found.score, found.recalls, found.expected_score)
    1.0 [1. 1.] 0.5
    """

    decision: Decision
    score: float
    recalls: np.ndarray
    expected_score: float | None
    expected_recalls: np.ndarray | None


def find_decision(
    y_pred: ArrayLike,
    labels: ArrayLike,
    loss: BalancedLoss,
    *,
    score: str | Callable[[np.ndarray], np.ndarray] = "macro_f1",
    min_recall: Mapping[int, float] | None = None,
    priors: ClassMix | None = None,
    sample_weight: ArrayLike | None = None,
    temperature: float = 1.0,
    folds: int | None = 5,
    seed: int = 0,
) -> FoundDecision:
    """Finds the class mix whose decision has the best score on held-out data.

    Any trained model can be judged by macro-F1, or by least recalls, without training it again:
    what changes is how its predictions become classes. That takes examples that the model was not
    trained on, of every class; what few examples of a rare class say is little.

    Formula:

    ```
    decision = argmax(log_posterior / temperature + log(target_priors) - log(loss_target_priors))
    found    = argmax over target_priors of score(confusion matrix of decision)
               where recall[k] >= min_recall[k]
    ```

    The search moves one class at a time to the middle of its best interval, until that improves
    nothing, from four mixes: the loss's own, the training mix, the uniform one and one between.
    It never ends below any of these that keeps `min_recall`. Of two classes it finds the best
    there is; of more there may be a better one, which is rare.

    Args:
        y_pred: Predictions of `N` held-out examples, as the loss takes them: `(..., K)`, of one
            logit `(N,)` or `(N, 1)`. Of independent labels one column at a time.
        labels: Class ids `(...)` or `(..., 1)`, or one-hot `(..., K)`. `ignore_class` of the loss
            is left out.
        loss: The loss of keras_balanced that the model was trained with. For any other model
            `GLALoss(priors, tau=0)`, with `from_logits=False` where it gives probabilities.
        score: `"macro_f1"`, `"f1"` (of label 1 of two), `"geometric_mean"` (of the recalls),
            `"worst_class_recall"`, `"balanced_accuracy"`, `"accuracy"`, `"matthews"`, or a
            function of confusion matrices `(..., K, K)` of weights, whose rows are the labels, to
            scores `(...)`, the higher the better; NaN counts as the worst. A function takes about
            `K * K` operations where a name takes one: seconds for 10 classes, hours for 100.
        min_recall: Least recall of some classes, `{class id: number in [0, 1]}`.
        priors: Class mix of the data that will be met, as in the loss: the data are weighted to
            it. Macro-F1, accuracy and Matthews' correlation depend on it. `None` is that of the
            data.
        sample_weight: Weights `(...)`, not negative.
        temperature: Number that `serving.calibrate` finds. The decision keeps it, for an export,
            and the class mix is found at it: calibrate first.
        folds: Number of parts for `expected_score`, at least 2. `None` leaves it out, which is as
            many times faster.
        seed: Seed of the random parts.

    Returns:
        A `FoundDecision`, a named tuple of the `decision`; its `score` and `recalls` `(K,)` on
        these data, which it was chosen by, so that they are too good; and `expected_score` and
        `expected_recalls` on new data, where each part is decided by what is found on the others.
        These are `None` with `folds=None`, and where a class has fewer than 2 examples.

    Raises:
        ValueError: for predictions, labels and arguments that do not fit, NaN, a class without an
            example, or `min_recall` that no decision keeps (says which recalls come nearest).

    Example:

    >>> import numpy as np
    >>> from keras_balanced import GLALoss
    >>> logits = np.array([[3, 0], [2, 0], [2, 1], [2, 1.5], [1, 2], [0, 2.0]])
    >>> labels = np.array([0, 0, 0, 1, 1, 1])
    >>> found = find_decision(logits, labels, GLALoss(priors=[5, 1]))
    >>> print(f"{found.score:.2f} {found.expected_score:.2f}", found.decision(logits))
    1.00 0.67 [0 0 0 1 1 1]

    References:
        - [Lipton et al., 2014](https://arxiv.org/abs/1402.1892) (thresholds for F1)
        - [Narasimhan et al., 2015](https://proceedings.mlr.press/v37/narasimhanb15.html) (scores
          of confusion matrices)
    """
    base = Decision(loss, temperature=temperature)
    surrogate = base.loss.surrogate
    if surrogate.num_labels:
        raise ValueError(
            "`loss` must have one class per example: of independent labels find the decision of "
            "one column at a time, as in `find_decision(y_pred[:, 0], labels[:, 0], "
            f"BinaryGLALoss(rate_of_label_0))`. Received: a loss of {surrogate.num_labels} labels"
        )
    function, floors = (
        _check_score(score, len(surrogate.priors)),
        _check_floors(min_recall, surrogate),
    )
    if folds is not None:
        folds = validation.check_integer("folds", folds, low=2)
    seed = validation.check_integer("seed", seed, low=0)
    y_pred = ops.convert_to_numpy(targets.as_tensor("y_pred", y_pred))
    _refuse_probabilities(y_pred, base.loss)
    _, ids, weights, kept = labelled(base.loss, y_pred, labels, sample_weight, "the held-out data")
    _check_examples(ids, weights, surrogate)
    scores = _scores_of(base, y_pred, kept)
    if priors is not None:
        weights = _weighted_to(surrogate.check_mix("priors", priors), ids, weights)
    reach = (_REACH, _REACH_TO_1 if surrogate.binary else _REACH)
    gap = 100.0 * np.finfo(scores.dtype).eps
    scores, starts = scores.astype("float64"), _starts(surrogate)

    def search_in(part, weights):
        return Search(scores[part], ids[part], weights, function, floors, reach, gap)

    with np.errstate(divide="ignore", invalid="ignore"):  # In the user's score.
        log_mix = search_in(slice(None), weights).best_of(starts, seed)
        found = _decision_of(log_mix, base)
        decided = found(y_pred).reshape(-1)[kept]
        confusion = confusion_matrix(ids, decided, weights, len(floors))
        value, recalls = float(function(confusion)), _recalls_of(confusion)
        _check_kept(recalls, floors)
        expected, expected_recalls = None, None
        if (
            folds is not None
            and np.bincount(ids, minlength=len(floors)).min(where=surrogate.occurs, initial=2) > 1
        ):
            confusion = _cross_fitted(search_in, starts, ids, weights, scores, folds, seed)
            expected, expected_recalls = float(function(confusion)), _recalls_of(confusion)
    return FoundDecision(found, value, recalls, expected, expected_recalls)


def _check_score(score, num_classes):
    """Returns a function of confusion matrices `(..., K, K)`."""
    expected = f"one of {sorted(SCORES)}, or a function of confusion matrices (..., K, K) to (...)"
    if not callable(score):
        if not isinstance(score, str) or score not in SCORES:
            raise ValueError(
                f"`score` must be {expected}. Received: score={validation.show(score)}"
            )
        if score == "f1" and num_classes != 2:
            raise ValueError(
                '`score="f1"` is that of label 1 of two classes: "macro_f1" is the mean over all. '
                f"Received: a loss of {num_classes} classes"
            )
        return SCORES[score]
    matrices = 1.0 + np.stack([np.eye(num_classes), np.ones((num_classes, num_classes))])
    result = np.asarray(score(matrices))
    if result.shape != (2,) or result.dtype.kind not in "biuf":
        raise ValueError(
            f"`score` must be {expected}. Received: a function that makes {result.dtype} of shape "
            f"{result.shape} of matrices {matrices.shape}; sum over the last axes, as in "
            "`confusion.sum(axis=-1)`"
        )
    return score


def _check_floors(min_recall, surrogate):
    """Returns the least recall of each class, `(K,)`."""
    floors, occurs = np.zeros(surrogate.priors.shape[-1]), np.flatnonzero(surrogate.occurs)
    if min_recall is not None and not isinstance(min_recall, Mapping):
        raise ValueError(
            "`min_recall` must be a dict of least recalls by class id, as in {1: 0.8}. Received: "
            f"min_recall={validation.show(min_recall)}"
        )
    for class_id, floor in (min_recall or {}).items():
        is_id = isinstance(class_id, (int, np.integer)) and not isinstance(class_id, bool)
        if not is_id or class_id not in occurs:
            raise ValueError(
                f"`min_recall` must have class ids in {targets.range_of(surrogate.occurs)} as its "
                f"keys. Received: {class_id!r}"
            )
        floors[class_id] = validation.check_number(f"min_recall[{class_id}]", floor)
        if not 0 <= floors[class_id] <= 1:
            raise ValueError(
                f"`min_recall` must have recalls in [0, 1]. Received: {floor!r} of class {class_id}"
            )
    return floors


def _refuse_probabilities(y_pred, loss):
    """Raises for class probabilities where the loss takes logits."""
    if loss.from_logits and loss.surrogate.axes and y_pred.ndim > 1 and y_pred.size:
        sums = y_pred.sum(axis=-1, dtype="float64")
        if (y_pred >= 0).all() and np.allclose(sums, 1.0, atol=1e-3):
            raise ValueError(
                "`y_pred` must be logits, since the loss has `from_logits=True`. Received: numbers "
                "that sum to 1 for every example; pass logits, or the loss with "
                "`from_logits=False`, as in `GLALoss(priors, tau=0, from_logits=False)`"
            )


def _check_examples(ids, weights, surrogate):
    """Raises unless there are examples of every class that occurs, all of a finite weight."""
    validation.refuse_examples(~np.isfinite(weights), "`sample_weight` must be finite")
    counts = np.bincount(ids, minlength=len(surrogate.priors))
    missing = np.flatnonzero((counts == 0) & np.broadcast_to(surrogate.occurs, counts.shape))
    if missing.size:
        raise ValueError(
            "`labels` must have an example of every class that occurs: nothing can be found out "
            f"about another. Received: none of the class ids {validation.some(missing)} in "
            f"{len(ids)} examples"
        )


def _scores_of(base, y_pred, kept):
    """Returns log-probabilities `(N, K)` in the uniform mix at the temperature."""
    surrogate = base.loss.surrogate
    flat = y_pred.reshape(len(kept), -1)[kept]
    bad = np.isnan(flat) | (np.isinf(flat) if surrogate.binary else flat == np.inf)
    places = np.flatnonzero(kept)
    validation.refuse_examples(
        bad.any(axis=1), "`y_pred` must be finite (-inf masks a class)", places, len(kept)
    )
    scores = base.scores(y_pred).reshape(len(kept), -1)[kept]
    return scores - _log(surrogate.target_priors).astype(scores.dtype)


def _log(mix):
    """Returns the logarithm of a class mix, and 0 for a class that does not occur."""
    return np.log(np.where(mix > 0, mix, 1.0))


def _starts(surrogate):
    """Returns the logarithms of the class mixes to start from."""
    prior, own = _log(surrogate.priors), _log(surrogate.target_priors)
    different = []
    for start in (own, prior, np.zeros_like(prior), 0.5 * prior):
        known = [np.ptp((start - other)[surrogate.occurs]) for other in different]
        if min(known, default=1.0) > 1e-9:
            different.append(start)
    return different


def _weighted_to(mix, ids, weights):
    """Returns weights of examples that make their class mix another, of the same sum."""
    totals = np.bincount(ids, weights, minlength=len(mix))
    ratios = np.divide(mix * totals.sum(), totals, where=totals > 0, out=np.zeros_like(mix))
    return weights * ratios[ids]


def _decision_of(log_mix, base):
    """Returns the decision by a class mix, of which the logarithm is given but for a constant."""
    surrogate = base.loss.surrogate
    mix = np.where(surrogate.occurs, np.exp(log_mix - log_mix[surrogate.occurs].max()), 0.0)
    mix = mix / mix.sum()
    target = float(mix[1]) if surrogate.binary else mix
    return Decision(base.loss, target_priors=target, temperature=base.temperature)


def _recalls_of(confusion):
    """Returns the recall of each class `(K,)`: NaN for one without an example."""
    true = confusion.sum(axis=1)
    return np.divide(np.diagonal(confusion), true, where=true > 0, out=np.full(len(true), np.nan))


def _check_kept(recalls, floors):
    """Raises unless recalls keep their floors."""
    asked = np.flatnonzero(floors)
    if (recalls[asked] < floors[asked] - 1e-9).any():
        shown = {int(k): float(f"{recalls[k]:.4g}") for k in asked[:10]}
        raise ValueError(
            "`min_recall` must be kept by a decision on these data. Received: "
            f"min_recall={validation.show({int(k): float(floors[k]) for k in asked[:10]})}, to "
            f"which the nearest that was found has the recalls {shown}"
        )


def _cross_fitted(search_in, starts, ids, weights, scores, folds, seed):
    """Returns the confusion matrix of decisions, each found on the other parts of the data."""
    mix = np.bincount(ids, weights, minlength=scores.shape[1])
    confusion = np.zeros((len(mix), len(mix)))
    # Class by class in a random order: each part gets its share of every class.
    order = np.lexsort([np.random.default_rng(seed).random(len(ids)), ids])
    part = np.empty(len(ids), "int64")
    part[order] = np.arange(len(ids)) % folds
    for fold in range(min(folds, len(ids))):
        rest = part != fold
        search = search_in(rest, _weighted_to(mix / mix.sum(), ids[rest], weights[rest]))
        decided = (scores[~rest] + search.best_of(starts, restarts=0)).argmax(axis=1)
        confusion += confusion_matrix(ids[~rest], decided, weights[~rest], len(mix))
    return confusion


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
    data of the same kind the number of alerts varies, as that of any rare event.

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
    values = targets.as_numpy("`probabilities`", probabilities).astype("float64")
    shape = values.shape
    if values.ndim:
        validation.check_finite("`probabilities`", values)
    valid = ((values >= 0) & (values <= 1)).all()
    if not values.size or shape[1:] not in ((), (1,), (2,)) or not valid:
        raise ValueError(
            "`probabilities` must be those of label 1, `(N,)` or `(N, 1)`, or `(N, 2)` (logits go "
            "through `loss.posterior`; of labels pass one column). "
            f"Received: {'' if valid else 'other '}numbers of shape "
            f"{shape}"
        )
    if shape[1:] == (2,) and not np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        raise ValueError(
            "`probabilities` of shape (N, 2) must be those of two classes, and sum to 1. Received: "
            f"sums from {values.sum(axis=-1).min():.3g}; of labels pass one column, as in `p[:, 0]`"
        )
    values, number = values.reshape(shape[0], -1)[:, -1], shape[0]
    if max_alert_rate is None and min_precision is None:
        raise ValueError("Expected a budget, `max_alert_rate` or `min_precision`. Received: none")
    weights = np.ones(number) if sample_weight is None else sample_weight
    weights = targets.match_weights(targets.as_numpy("`sample_weight`", weights), (number,))
    validation.check_finite("`sample_weight`", weights)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            "`sample_weight` must be finite, not negative, and positive for some example. "
            f"Received: weights from {np.min(weights)} to {np.max(weights)}"
        )
    ids = None if labels is None else _labels_of(values, labels)
    distinct, place = np.unique(-values, return_inverse=True)  # From the largest.
    alerts = np.cumsum(np.bincount(place, weights))
    allowed = np.ones(len(distinct), bool)
    if max_alert_rate is not None:
        _check_fraction("max_alert_rate", max_alert_rate)
        allowed &= alerts <= max_alert_rate * alerts[-1] * (1 + 1e-12)
    if min_precision is not None:
        _check_fraction("min_precision", min_precision)
        if labels is None:
            raise ValueError("`min_precision` needs `labels`. Received: labels=None")
        right = np.cumsum(np.bincount(place, weights * ids))
        allowed &= right >= min_precision * alerts * (1 - 1e-12)
    if not allowed.any():
        raise ValueError(
            "The budget must allow an alert. Received: "
            f"max_alert_rate={max_alert_rate} and min_precision={min_precision} for {number} "
            "examples, of which no threshold keeps it"
        )
    last = int(np.flatnonzero(allowed)[-1])
    least = -distinct[last]
    below = -distinct[last + 1] if last + 1 < len(distinct) else 0.0
    middle = (least + below) / 2
    # Between neighbours in float32 there is no middle: the lower one decides the same.
    return float(middle if np.float32(below) < np.float32(middle) < np.float32(least) else below)


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
