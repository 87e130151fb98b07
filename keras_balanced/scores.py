"""Scores of confusion matrices, and the search for the class mix that makes one of them the best.

A decision by a mix takes the largest of `log-probability + log(mix)`. Along the mix of one class
alone a score is a step function: each example flips to the class at one point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

_BLOCK = 2**22  # Numbers in the largest array of confusion matrices.
_DIGITS = 10  # To which scores are compared: sums are rounded.
_NOTHING = 1e-12  # A smaller number is 0 up to rounding.
_SWEEPS = 50  # Over all classes, at most. Most searches end after 3 to 6.


@dataclasses.dataclass(frozen=True)
class SumsOfClasses:
    """A score of confusion matrices `(..., K, K)` that joins terms of one class each.

    The terms are of the fractions of the examples that are decided right for a class, are of it,
    and are decided for it: `(right, true, decided) -> (T, ...)`. What they join to over the
    classes, `(T, ...)`, makes the score `(...)`. With `np.minimum` terms must grow with `right`.
    """

    terms: Callable
    score: Callable
    join: np.ufunc = np.add

    def __call__(self, confusion):
        right, true, decided = _sums(confusion)
        return self.score(self.join.reduce(self.terms(right, true, decided), axis=-1))


def _sums(confusion):
    """Returns the fractions `(..., K)` decided right for each class, of it, and decided for it."""
    confusion = confusion / confusion.sum(axis=(-2, -1), keepdims=True)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return right, confusion.sum(axis=-1), confusion.sum(axis=-2)


def _ratio(a, b):
    """Returns `a / b`, 0 where `b` is 0."""
    return np.divide(a, b, where=b > 0, out=np.zeros(np.broadcast(a, b).shape))


def _accuracy(right, true, decided):
    return np.stack([right])


def _recalls(right, true, decided):
    return np.stack([_ratio(right, true), true > 0])


def _worst_recalls(right, true, decided):
    return np.stack([np.where(true > 0, _ratio(right, true), 1.0)])


def _log_recalls(right, true, decided):
    recalls = _ratio(right, true)
    none = recalls < _NOTHING
    logs = np.log(np.where(none, 1.0, recalls))
    return np.stack([logs, true > 0, none & (true > 0)])


def _f1_scores(right, true, decided):
    return np.stack([_ratio(2.0 * right, true + decided), true + decided > 0])


def _products(right, true, decided):
    return np.stack([right - true * decided, true**2, decided**2])


def _mean(sums):
    return _ratio(sums[0], sums[1])


def _geometric_mean(sums):
    return np.where(sums[2] > 0.5, 0.0, np.exp(_ratio(sums[0], sums[1])))


def _matthews(sums):
    spread = (1.0 - sums[1]) * (1.0 - sums[2])
    spread = np.where(spread > _NOTHING, spread, 0.0)
    return _ratio(sums[0], np.sqrt(spread))


def _f1(confusion):
    """Returns the F1 score `(...)` of label 1 of two classes."""
    right, true, decided = _sums(confusion)
    return _f1_scores(right, true, decided)[0, ..., 1]


SCORES: dict[str, Callable] = {
    "macro_f1": SumsOfClasses(_f1_scores, _mean),
    "f1": _f1,
    "geometric_mean": SumsOfClasses(_log_recalls, _geometric_mean),
    "worst_class_recall": SumsOfClasses(_worst_recalls, lambda sums: sums[0], np.minimum),
    "balanced_accuracy": SumsOfClasses(_recalls, _mean),
    "accuracy": SumsOfClasses(_accuracy, lambda sums: sums[0]),
    "matthews": SumsOfClasses(_products, _matthews),
}


def confusion_matrix(labels, decided, weights, num_classes):
    """Returns the weights `(K, K)` of examples: rows are the labels, columns the decisions."""
    cells = np.bincount(labels * num_classes + decided, weights, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


class Search:
    """The search for the class mix whose decision has the best score on some examples.

    The decision is the largest of `scores + log_mix`. Better is what falls less short of the
    floors, then has the higher score, then fewer classes of recall 0 (of which a single one makes
    a geometric mean 0).

    Args:
        scores: Log-probabilities `(N, K)` in the uniform mix, float64; very low where a class can
            not be the answer.
        labels: Class ids `(N,)`.
        weights: Positive weights `(N,)`.
        score: A function of confusion matrices `(..., K, K)`, of `SCORES` or another.
        floors: Least recall of each class, `(K,)`.
        reach: How far `log_mix` of a class may lie below and above that of each other one.
        gap: Flips closer to each other than this differ by rounding only.
    """

    def __init__(self, scores, labels, weights, score, floors, reach, gap):
        total = weights.sum()
        self.scores, self.labels, self.weights = scores, labels, weights / total
        of_fractions = isinstance(score, SumsOfClasses)
        self.score: Any = score if of_fractions else lambda confusion: score(confusion * total)
        self.floors, self.reach, self.gap = floors, reach, gap
        self.true = np.bincount(labels, self.weights, minlength=len(floors))
        self.occurring = np.flatnonzero(self.true)
        # With two classes only the difference counts. With more, rare classes move first.
        by_weight = self.occurring[np.argsort(self.true[self.occurring], kind="stable")]
        self.moved = self.occurring[1:] if len(self.occurring) == 2 else by_weight

    def best_of(self, starts, seed=0, restarts=20):
        """Returns the best `log_mix` `(K,)` found from several, and none worse than these."""
        best = max([*map(self.ascend, starts), *starts], key=self.rank_of)
        rng = np.random.default_rng(seed)
        for _ in range(restarts):
            if self.rank_of(best)[0] == 0:
                break
            # Floors that were not kept from these starts may be kept from elsewhere.
            again = self.ascend(best + rng.normal(size=len(best)))
            best = max(best, again, key=self.rank_of)
        return max(self.centred(best), best, key=self.rank_of)

    def confusion(self, log_mix):
        """Returns the fractions `(K, K)` of the examples by label and decision."""
        decided = (self.scores + log_mix).argmax(axis=1)
        return confusion_matrix(self.labels, decided, self.weights, len(self.true))

    def rank_of(self, log_mix):
        """Returns what orders decisions, the best last."""
        confusion = self.confusion(log_mix)
        parts = self._of_recalls(self.occurring, np.diagonal(confusion)[self.occurring])
        shortfall, none = parts.sum(axis=-1)
        return tuple(_rank(shortfall, self.score(confusion), none).tolist())

    def ascend(self, start):
        """Returns a `log_mix` that no move of a single class improves, from a start on."""
        log_mix, sums, unchanged, turn = start.copy(), self.scores + start, 0, 0
        while unchanged < len(self.moved) and turn < _SWEEPS * len(self.moved):
            k = self.moved[turn % len(self.moved)]
            turn, unchanged = turn + 1, unchanged + 1
            line = self._along(log_mix, k, sums)
            if (better := line.better(start[k])) is not None:
                log_mix[k], unchanged = line.middle(better, start[k]), 0
            sums[:, k] = self.scores[:, k] + log_mix[k]
        return log_mix

    def centred(self, log_mix):
        """Returns a `log_mix` of the same rank, each class in the middle of its interval."""
        log_mix, sums = log_mix.copy(), self.scores + log_mix
        for k in self.moved:
            line = self._along(log_mix, k, sums)
            log_mix[k] = line.middle(line.here, log_mix[k])
            sums[:, k] = self.scores[:, k] + log_mix[k]
        return log_mix

    def _along(self, log_mix, k, sums):
        """Returns the ranks of all decisions that `log_mix` of class `k` alone can make.

        `sums`, `scores + log_mix`, lose those of class `k`.
        """
        sums[:, k] = -np.inf
        rivals = sums.argmax(axis=1)
        flips = np.take_along_axis(sums, rivals[:, None], axis=1)[:, 0] - self.scores[:, k]
        order = np.argsort(flips)
        labels, rivals, weights = self.labels[order], rivals[order], self.weights[order]
        flow = _Flow(k, labels, rivals, weights, len(self.true))
        others = self.occurring[self.occurring != k]
        shortfall, none = flow.joined(np.add, self._of_recalls, others)
        if isinstance(self.score, SumsOfClasses):
            score = self.score.score(flow.joined(self.score.join, self._terms, others))
        else:
            score = self._of_matrices(k, labels, rivals, weights)
        limits = log_mix[others].max() - self.reach[0], log_mix[others].min() + self.reach[1]
        return _Line(flips[order], _rank(shortfall, score, none), log_mix[k], limits, self.gap)

    def _of_recalls(self, classes, right, decided=None):
        """Returns how far recalls fall short of their floors, and which are 0, `(2, ...)`."""
        recalls = right / self.true[classes]
        return np.stack([np.maximum(self.floors[classes] - recalls, 0.0), recalls < _NOTHING])

    def _terms(self, classes, right, decided):
        return self.score.terms(right, self.true[classes], decided)

    def _of_matrices(self, k, labels, rivals, weights):
        """Returns the scores `(N + 1,)` of whole confusion matrices, as examples flip to `k`."""
        size = len(self.true)
        matrix = confusion_matrix(labels, rivals, weights, size)
        scores, block = [np.ravel(self.score(matrix))], max(1, _BLOCK // size**2)
        for start in range(0, len(labels), block):
            here = slice(start, start + block)
            steps = np.zeros((len(labels[here]), size, size))
            index = np.arange(len(steps))
            steps[index, labels[here], rivals[here]] -= weights[here]
            steps[index, labels[here], k] += weights[here]
            matrices = matrix + np.cumsum(steps, axis=0)
            scores.append(self.score(np.maximum(matrices, 0.0)))
            matrix = matrices[-1]
        return np.concatenate(scores)


class _Flow:
    """What is decided right, and at all, for each class, as examples flip to class `k` one by one.

    `labels`, `rivals` (which lose the examples) and `weights` are `(N,)`, in the order of flips.
    """

    def __init__(self, k, labels, rivals, weights, num_classes):
        self.k, self.rivals = k, rivals
        lost = (weights * (labels == rivals), weights)
        self.whole = [np.bincount(rivals, part, minlength=num_classes) for part in lost]
        # In 16 bits NumPy sorts in linear time.
        order = np.argsort(
            rivals.astype("uint16" if num_classes < 2**16 else "int64"), kind="stable"
        )
        sizes = np.bincount(rivals, minlength=num_classes)
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.after = [np.empty(len(rivals)) for _ in lost]
        for left, part, whole in zip(self.after, lost, self.whole, strict=True):
            sums = np.concatenate([[0.0], np.cumsum(part[order])])
            left[order] = whole[rivals[order]] - (sums[1:] - sums[first])
            left[left < _NOTHING] = 0.0
        self.before = [left + part for left, part in zip(self.after, lost, strict=True)]
        won = (weights * (labels == k), weights)
        self.won = [np.concatenate([[0.0], np.cumsum(part)]) for part in won]

    def joined(self, join, terms, others):
        """Returns terms joined over class `k` and the others, `(T, N + 1)`."""
        changes = terms(self.rivals, *self.after)
        if join is np.add:
            changes = changes - terms(self.rivals, *self.before)
        first = join.reduce(terms(others, *(part[others] for part in self.whole)), axis=-1)
        of_others = join.accumulate(np.column_stack([first, changes]), axis=1)
        return join(of_others, terms(np.full(len(self.won[0]), self.k), *self.won))


def _rank(shortfall, score, none):
    """Returns what orders decisions, the best last, `(3, ...)`: the first that differs counts."""
    score = np.where(np.isnan(score), -np.inf, score)
    return np.stack([-np.round(shortfall, _DIGITS), np.round(score, _DIGITS), -np.round(none)])


class _Line:
    """The ranks `(3, N + 1)` of the intervals between flips `(N,)`, of which one is `here`."""

    def __init__(self, flips, ranks, value, limits, gap):
        self.ranks, self.limits, self.gap = ranks, limits, gap
        self.left = np.concatenate([[-np.inf], flips])
        self.right = np.concatenate([flips, [np.inf]])
        self.here = int(np.searchsorted(flips, value))

    def better(self, start):
        """Returns the best interval, of several the nearest to `start`: `None` if not better."""
        low, high = self.limits
        best = np.flatnonzero(np.minimum(self.right, high) - np.maximum(self.left, low) > self.gap)
        for rank in self.ranks:
            best = best[rank[best] == rank[best].max(initial=-np.inf)]
        if not best.size or tuple(self.ranks[:, best[0]]) <= tuple(self.ranks[:, self.here]):
            return None
        distances = np.maximum(self.left[best] - start, start - self.right[best])
        return int(best[np.maximum(distances, 0.0).argmin()])

    def middle(self, interval, start):
        """Returns the middle of an interval and those beside it of the same rank.

        Of one without an end the point nearest to `start` that is not within 1 of its other end.
        """
        same = (self.ranks == self.ranks[:, [interval]]).all(axis=0)
        others = np.flatnonzero(~same)
        place = np.searchsorted(others, interval)
        first = others[place - 1] + 1 if place else 0
        last = others[place] - 1 if place < len(others) else len(same) - 1
        low = max(self.left[first], self.limits[0])
        high = min(self.right[last], self.limits[1])
        middle = (low + high) / 2.0
        if first and last < len(same) - 1:
            return middle
        low = min(low + 1.0, middle) if first else low
        high = max(high - 1.0, middle) if last < len(same) - 1 else high
        return min(max(start, low), high)
