"""Long-tailed subsets of labelled data, and stratified parts of it."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from keras_balanced import reading, targets, validation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["long_tail", "long_tail_counts", "stratified_split"]

Profile: TypeAlias = Literal["exponential", "step"]

PROFILES = ("exponential", "step")


def long_tail_counts(
    num_classes: int, max_count: int, imbalance_ratio: float = 100, profile: Profile = "exponential"
) -> np.ndarray:
    """Returns how many examples each class keeps in a long tail.

    Formula:

    ```
    exponential: counts[k] = int(max_count * imbalance_ratio ** (-k / (num_classes - 1)))
    step:        counts[k] = max_count, and int(max_count / imbalance_ratio) from the middle class
    ```

    Args:
        num_classes: Number of classes `K`, at least 2.
        max_count: Examples of class 0, the largest.
        imbalance_ratio: Number of at least 1: the largest class over the smallest.
        profile: `"exponential"` or `"step"`.

    Returns:
        Examples of each class, `(K,)` int64.

    Raises:
        ValueError: for bad arguments, or if a class would keep nothing.

    Example:

    >>> print(long_tail_counts(10, 5000, imbalance_ratio=100))
    [5000 2997 1796 1077  645  387  232  139   83   50]

    References:
        - [Cao et al., 2019](https://arxiv.org/abs/1906.07413)
    """
    num_classes = validation.check_integer("num_classes", num_classes, low=2)
    max_count = validation.check_integer("max_count", max_count, low=1)
    check_imbalance(imbalance_ratio, profile)
    if profile == "exponential":
        fractions = (1 / imbalance_ratio) ** (np.arange(num_classes) / (num_classes - 1))
    else:
        fractions = np.where(np.arange(num_classes) < num_classes // 2, 1.0, 1 / imbalance_ratio)
    counts = (max_count * fractions).astype("int64")
    if counts.min() < 1:
        raise ValueError(
            f"`imbalance_ratio` must be at most the largest class's {max_count} examples, or the "
            f"smallest class keeps none. Received: imbalance_ratio={imbalance_ratio}"
        )
    return counts


def long_tail(
    x: Any,
    y: ArrayLike | None = None,
    imbalance_ratio: float = 100,
    profile: Profile = "exponential",
    max_count: int | None = None,
    seed: int = 0,
) -> Any:
    """Draws a long-tailed subset of labelled data.

    Args:
        x: Array of examples `(N, ...)`, or a dict of arrays, or an unbatched `tf.data.Dataset` of
            `(x, y)` or `(x, y, sample_weight)` that gives the same order each time.
        y: Integer labels `(N,)`; `None` when `x` is a dataset, whose labels may be one-hot.
        imbalance_ratio: Number of at least 1: the largest class over the smallest.
        profile: `"exponential"` or `"step"`, as in `long_tail_counts`.
        max_count: Examples that class 0 keeps. `None` is the size of the smallest class.
        seed: Seed of the choice of examples.

    Returns:
        `(x, y)` arrays, or a `tf.data.Dataset`, in the order of the data.

    Raises:
        ValueError: if a class has fewer examples than it should keep; for a dataset that has no
            end, is batched, or is shuffled anew each time.

    Example:

    >>> import numpy as np
    >>> x, y = long_tail(np.arange(40), np.repeat([0, 1], 20), imbalance_ratio=5)
    >>> print(np.bincount(y))
    [20  4]
    """
    is_dataset = reading.is_dataset(x)
    if is_dataset:
        labels = reading.labels_of_examples(x, y, "x")
    else:
        x = np.asarray(x) if isinstance(x, (list, tuple)) else x
        arrays, labels, _ = reading.examples(x, y)
        x = x if hasattr(x, "iloc") else arrays  # A table of pandas stays one.
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                "`y` must be integer labels `(N,)`, one for each of the examples in `x`. "
                f"Received: y of shape {labels.shape} and dtype {labels.dtype}"
            )
    ids = targets.class_ids("y", labels)
    counts = _counts_to_keep(ids, imbalance_ratio, profile, max_count)
    rng = np.random.default_rng(seed)
    keep = np.zeros(len(ids), bool)
    for k, count in enumerate(counts):
        keep[rng.permutation(np.flatnonzero(ids == k))[:count]] = True
    if is_dataset:
        return reading.choose_examples(x, keep)
    return reading.choose(x, keep), labels[keep]


def _counts_to_keep(ids, imbalance_ratio, profile, max_count):
    """Returns how many examples each class keeps, `(K,)`, and raises where it has fewer."""
    available = np.bincount(ids)
    if not available.all():
        raise ValueError(
            "`y` must have examples of every class up to the largest. Received: none of the class "
            f"ids {np.flatnonzero(available == 0)[:10].tolist()}; do your ids start at 1?"
        )
    if max_count is None:
        max_count = int(available.min())
    counts = long_tail_counts(len(available), max_count, imbalance_ratio, profile)
    short = np.flatnonzero(available < counts)
    if short.size:
        raise ValueError(
            f"The data must have {counts[short[0]]} examples of class {short[0]} for "
            f"imbalance_ratio={imbalance_ratio}, profile={profile!r}. "
            f"Received: {available[short[0]]} of them"
        )
    return counts


def stratified_split(y: ArrayLike, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples in two parts, both of which have every class of at least two examples.

    Args:
        y: Integer labels `(N,)`.
        fraction: Fraction of each class in the second part, in `(0, 1)`. A class with at least
            two examples keeps at least one in each part; a single example stays in the first.
        seed: Seed of the choice of examples.

    Returns:
        The indices of the two parts, int64, each in increasing order.

    Raises:
        ValueError: if `fraction` is outside `(0, 1)`.

    Example:

    >>> import numpy as np
    >>> fit, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1, 2]), fraction=0.25)
    >>> print(len(fit), len(held_out))
    5 2
    """
    if not 0 < fraction < 1:
        shown = validation.show(fraction)
        raise ValueError(f"`fraction` must be in (0, 1). Received: fraction={shown}")
    if not (np.ndim(y) == 1 and np.asarray(y).dtype.kind in "OSU"):  # Names are fine here.
        y = targets.class_ids("y", y)
    y = np.asarray(y)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(y), bool)
    for k in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == k))
        if len(members) > 1:
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            held_out[members[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def check_imbalance(imbalance_ratio, profile):
    """Raises unless `imbalance_ratio` and `profile` describe a long tail."""
    is_scalar = isinstance(imbalance_ratio, numbers.Real)
    if not is_scalar or not 1 <= imbalance_ratio < np.inf:
        raise ValueError(
            "`imbalance_ratio` must be a finite number of at least 1. "
            f"Received: imbalance_ratio={validation.show(imbalance_ratio)}"
        )
    if profile not in PROFILES:
        shown = validation.show(profile)
        raise ValueError(f"`profile` must be one of {PROFILES}. Received: profile={shown}")
