"""The decision that is best for a score, found on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from keras import ops

from keras_balanced import targets, validation
from keras_balanced.calibration import labelled
from keras_balanced.decisions import Decision
from keras_balanced.losses import check_predictions
from keras_balanced.scores import SCORES, Search, confusion_matrix

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["FoundDecision", "find_decision"]

# How far the logarithms of a mix may lie apart: it stays above 1e-30, and a rate below 1.
_REACH, _REACH_TO_1 = 60.0, 20.0
# How much of the way from the best start to the mix found: cross-fitting chooses.
_STEPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


class FoundDecision(NamedTuple):
    """A decision and how good it is, as `find_decision` returns them.

    Attributes:
        decision: The `Decision` by the class mix found.
        score: Its score on the data that it was found on: too good, since they chose it.
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
    what changes is how its predictions become classes. That takes examples of every class that the
    model was not trained on; a few examples of a rare class say little.

    Formula:

    ```
    decision = argmax(log_posterior / temperature + log(target_priors) - log(loss_target_priors))
    best     = argmax over target_priors of score(confusion matrix of decision)
               where recall[k] >= min_recall[k]
    found    = start^(1 - step) * best^step, up to a constant
    ```

    The search moves one class at a time to the middle of its best interval, until that improves
    nothing, from four mixes: the loss's own, the training mix, the uniform one and one between.
    It never ends below any of these that keeps `min_recall`. Of two classes it finds the best
    decision; of more there is rarely a better one.

    What is best on few examples fits their noise. So of more than two classes cross-fitting
    chooses the `step` from the best of the four mixes: 0, 1/4, 1/2, 3/4 or 1. With `min_recall`
    it is 1.

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
        folds: Number of parts for cross-fitting, at least 2. `None` leaves it out: the step is 1,
            nothing is expected, and it is as many times faster.
        seed: Seed of the random parts.

    Returns:
        A `FoundDecision`, a named tuple of the `decision`; its `score` and `recalls` `(K,)` on
        these data, which are too good, since it was chosen by them; and `expected_score` and
        `expected_recalls` on new data, where each part is decided by what is found on the others.
        These are `None` with `folds=None`. Where a class has fewer than 2 examples, it is as if
        there were `folds=None`.

    Raises:
        ValueError: for predictions, labels and arguments that do not fit, NaN, a class without an
            example, or `min_recall` that no decision keeps (says which recalls come nearest).

    Example:

    >>> import numpy as np
    >>> from keras_balanced import GLALoss
    >>> logits = np.array([[3, 0], [2, 0], [2, 1], [2, 1.5], [1, 2], [0, 2.0]]).repeat(5, axis=0)
    >>> labels = np.array([0, 0, 0, 1, 1, 1]).repeat(5)
    >>> found = find_decision(logits, labels, GLALoss(priors=[5, 1]))
    >>> print(f"{found.score:.2f} {found.expected_score:.2f}", found.decision(logits[::5]))
    1.00 1.00 [0 0 0 1 1 1]

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
    function = _check_score(score, len(surrogate.priors))
    floors = _check_floors(min_recall, surrogate)
    if folds is not None:
        folds = validation.check_integer("folds", folds, low=2)
    seed = validation.check_integer("seed", seed, low=0)
    y_pred = ops.convert_to_numpy(targets.as_tensor("y_pred", y_pred))
    ids, weights, kept = _examples(base, y_pred, labels, sample_weight)
    scores = _scores_of(base, y_pred, kept)
    if priors is not None:
        weights = _weighted_to(surrogate.check_mix("priors", priors), ids, weights)
    reach = (_REACH, _REACH_TO_1 if surrogate.binary else _REACH)
    gap = 100.0 * np.finfo(scores.dtype).eps
    scores, starts = scores.astype("float64"), _starts(surrogate)

    def search_in(part, weights):
        return Search(scores[part], ids[part], weights, function, floors, reach, gap)

    def judged(confusion):
        return float(function(confusion)), _recalls_of(confusion)

    with np.errstate(divide="ignore", invalid="ignore"):  # In the user's score.
        search = search_in(slice(None), weights)
        log_mix, expected = search.best_of(starts, seed), (None, None)
        counts = np.bincount(ids, minlength=len(floors))
        if folds is not None and counts.min(where=surrogate.occurs, initial=2) > 1:
            matrices = _cross_fitted(search_in, starts, ids, weights, scores, folds, seed)
            log_mix, confusion = _stepped(search, starts, log_mix, matrices)
            expected = judged(confusion)
        found = _decision_of(log_mix, base)
        decided = found(y_pred).reshape(-1)[kept]
        value, recalls = judged(confusion_matrix(ids, decided, weights, len(floors)))
        _check_kept(recalls, floors)
    return FoundDecision(found, value, recalls, *expected)


def _examples(base, y_pred, labels, sample_weight):
    """Returns class ids `(N,)` and weights of the examples that count, and which these are."""
    check_predictions(base.loss, y_pred, least=1)
    _, ids, weights, kept = labelled(base.loss, y_pred, labels, sample_weight, "the held-out data")
    _check_examples(ids, weights, base.loss.surrogate)
    return ids, weights, kept


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


def _check_examples(ids, weights, surrogate):
    """Raises unless there are examples of every class that occurs, all of a positive weight."""
    validation.check_finite("`sample_weight`", weights)
    negative = "The weights of the held-out data must not be negative"
    validation.refuse_examples(weights < 0, negative)
    counts = np.bincount(ids, minlength=len(surrogate.priors))
    missing = np.flatnonzero((counts == 0) & np.broadcast_to(surrogate.occurs, counts.shape))
    if missing.size:
        raise ValueError(
            "`labels` must have an example of every class that occurs: nothing is known about "
            f"another. Received: none of the class ids {validation.some(missing)} in "
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
    different: list[np.ndarray] = []
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
    """Returns the decision by a class mix, given its logarithm up to a constant."""
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


def _way(search, starts, log_mix):
    """Returns the mixes `(steps, K)` from the best of the starts to the mix found.

    It is that mix alone where there are floors, which hold there and not before; and of two
    classes, which have one number to fit.
    """
    start = max(starts, key=search.rank_of)
    steps = _STEPS[-1:] if search.floors.any() or len(log_mix) == 2 else _STEPS
    return start + np.outer(steps, log_mix - start)


def _stepped(search, starts, log_mix, matrices):
    """Returns the mix of the step that is the best on data left out, and what to expect of it.

    On the data themselves it is no worse than the starts.

    Args:
        search: The `Search` on all data.
        starts: The mixes that it starts from.
        log_mix: The mix that it found.
        matrices: What `_cross_fitted` returns.

    Returns:
        The mix `(K,)`; and the confusion matrix `(K, K)` of each part decided by the mix and the
        step that are the best on the others.
    """
    way = _way(search, starts, log_mix)
    ranks = [search.rank_of(log_mix) for log_mix in way]
    no_worse = np.array([rank >= ranks[0] for rank in ranks])

    def best(matrices, among=True):
        scores = np.array([search.score(matrix / matrix.sum()) for matrix in matrices])
        # Of equals that nearest to the start.
        return np.where(among & ~np.isnan(scores), scores, -np.inf).argmax()

    whole = matrices.sum(axis=0)
    expected = sum(part[best(whole - part)] for part in matrices)
    return search.centred(way[best(whole, no_worse)]), expected


def _cross_fitted(search_in, starts, ids, weights, scores, folds, seed):
    """Returns confusion matrices `(parts, steps, K, K)` of what is found on the other parts."""
    mix = np.bincount(ids, weights, minlength=scores.shape[1])
    # Class by class in a random order: each part gets its share of every class.
    order = np.lexsort([np.random.default_rng(seed).random(len(ids)), ids])
    part = np.empty(len(ids), "int64")
    part[order] = np.arange(len(ids)) % folds
    matrices = []
    for fold in range(min(folds, len(ids))):
        rest = part != fold
        search = search_in(rest, _weighted_to(mix / mix.sum(), ids[rest], weights[rest]))
        way = _way(search, starts, search.best_of(starts, restarts=0))
        decided = (scores[~rest] + way[:, None]).argmax(axis=-1)
        matrices.append(
            [confusion_matrix(ids[~rest], row, weights[~rest], len(mix)) for row in decided]
        )
    return np.array(matrices)
