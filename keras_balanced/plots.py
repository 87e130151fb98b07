"""Pictures of long tails: matplotlib axes in, axes out, so that they compose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_balanced import targets, validation
from keras_balanced.decisions import check_decision
from keras_balanced.surrogates import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from keras_balanced.decisions import Decision
    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import HasCounts

__all__ = [
    "accuracy_against_q",
    "class_counts",
    "class_recalls",
    "confusion_matrix",
    "reliability_diagram",
]


def __dir__() -> list[str]:
    return __all__


_MAX_BARS = 20


def class_counts(counts: ArrayLike | HasCounts, ax: Axes | None = None) -> Axes:
    """Draws how many examples each class has, on a logarithmic scale.

    Args:
        counts: Examples of each class, `(K,)`, or an adapted `ClassPrior`.
        ax: matplotlib axes to draw on. `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ImportError: where matplotlib is missing.

    Example:

    >>> ax = class_counts([100, 30, 10])
    >>> print(ax.get_ylabel())
    training examples
    """
    heights = validation.check_counts("counts", counts)
    ax = _axes(ax)
    bars = ax.bar(np.arange(len(heights)), heights, color="0.6", width=0.8)
    if len(heights) <= _MAX_BARS:
        ax.bar_label(bars)
    ax.set_yscale("log")
    ax.set_ylim(max(heights.min(), 1) / 2, max(heights.max(), 1) * 2)
    ax.set_xlabel("class")
    ax.set_ylabel("training examples")
    _class_ticks(ax, len(heights))
    return ax


def class_recalls(
    recalls: Mapping[str, Sequence[float] | np.ndarray], ax: Axes | None = None
) -> Axes:
    """Draws the recall of each class, for one or several models side by side.

    Args:
        recalls: Dict of a model's name to its recalls `(K,)`, in `[0, 1]`.
        ax: matplotlib axes to draw on. `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ImportError: where matplotlib is missing.

    Example:

    >>> ax = class_recalls({"ce": [0.9, 0.5, 0.1], "gca": [0.8, 0.7, 0.6]})
    >>> print(ax.get_ylabel())
    recall
    """
    named = {
        name: validation.as_array(f"recalls of {name}", v, "recalls") for name, v in recalls.items()
    }
    if len({values.shape for values in named.values()}) != 1:
        raise ValueError(
            "`recalls` must be a dict of names to the recalls `(K,)` of the same classes. "
            f"Received: shapes {[values.shape for values in named.values()]}"
        )
    ax = _axes(ax)
    for i, (name, values) in enumerate(named.items()):
        classes = np.arange(len(values))
        label = f"{name} (mean {np.mean(values):.2f})"
        if len(values) <= _MAX_BARS:
            width = 0.8 / len(named)
            ax.bar(classes - 0.4 + (i + 0.5) * width, values, width=width, label=label)
        else:
            ax.plot(classes, values, ".-", linewidth=0.8, label=label)
    ax.set_ylim(0, 1)
    ax.set_xlabel("class")
    ax.set_ylabel("recall")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    _class_ticks(ax, len(values))
    return ax


def confusion_matrix(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    class_names: Sequence[str] | Mapping | None = None,
    decision: Decision | BalancedLoss | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws how often each class is predicted as each other; the diagonal is the recalls.

    Args:
        labels: Integer classes `(N,)` or `(N, 1)`, or one-hot `(N, K)`; with a `decision` also of
            time steps or pixels, `(...)`, `(..., 1)` or `(..., K)`.
        predicted: Predicted classes, `(N,)` or `(N, 1)`, or one-hot `(N, K)`; with a `decision` the
            predictions of the model, `(..., K)`, or of one logit `(...)` or `(..., 1)`.
        class_names: Name of each class, `K` of them in order, or a dict of names and ids; of the
            classes 0 and 1 also that of 1 alone. `None` takes the numbers up to the largest.
        decision: `Decision` by which to predict classes, or the loss that the model was trained
            with, which stands for its default one. `None` takes `predicted` for classes.
        ax: matplotlib axes to draw on. `None` makes new ones.

    Returns:
        The axes. Row `k` is the examples of class `k`, as fractions of them, and their number.

    Raises:
        ImportError: where matplotlib is missing.
        ValueError: for invalid labels, or different numbers of them.

    Example:

    >>> ax = confusion_matrix([0, 0, 1], [0, 1, 1], class_names=["healthy", "ill"])
    >>> print(ax.get_ylabel())
    class
    """
    rule = check_decision("decision", decision)
    if rule is None:
        num_classes = None if class_names is None else max(len(class_names), 2)
    else:
        labels, predicted = _decided(rule, labels, predicted)
        num_classes = rule.loss.surrogate.priors.shape[-1]
    rows = targets.class_ids("labels", labels, num_classes)
    columns = targets.class_ids("predicted", predicted, num_classes)
    num_classes = num_classes or int(max(rows.max(), columns.max())) + 1
    names = validation.check_class_names(class_names, num_classes, num_classes == 2)
    if len(rows) != len(columns):
        raise ValueError(
            f"`labels` and `predicted` must be classes in [0, {num_classes}), and equally many. "
            f"Received: {len(rows)} and {len(columns)}"
        )
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    counts = counts.reshape(num_classes, num_classes)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax = _axes(ax)
    image = ax.imshow(fractions, vmin=0.0, vmax=1.0, cmap="Blues")
    ax.figure.colorbar(image, ax=ax, label="fraction of the class")
    if num_classes <= _MAX_BARS:
        for row, column in np.ndindex(fractions.shape):
            value = fractions[row, column]
            color = "white" if value > 0.5 else "black"
            text = f"{value:.2f}\n({counts[row, column]})"
            ax.text(column, row, text, ha="center", va="center", color=color, size=8)
        ax.set_xticks(range(num_classes), names, rotation=90)
        ax.set_yticks(range(num_classes), names)
    ax.set_xlabel("predicted")
    ax.set_ylabel("class")
    return ax


def _decided(rule, labels, predicted):
    """Returns labels and the classes that a decision makes of predictions, flat where it can be."""
    num_labels = rule.loss.surrogate.num_labels
    if num_labels is not None:
        raise ValueError(
            "`decision` must be of one class per example: draw independent labels one at a time. "
            f"Received: a decision of {num_labels} labels"
        )
    decided = rule(targets.as_numpy("`predicted`", predicted))
    truth = targets.as_numpy("`labels`", labels, "classes")
    if decided.ndim > 1 and truth.shape[: decided.ndim] == decided.shape:
        return truth.reshape(decided.size, -1), decided.ravel()
    return labels, decided


def reliability_diagram(
    probabilities: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    num_bins: int = 15,
    ax: Axes | None = None,
) -> Axes:
    """Draws how often classes occur against their predicted probability.

    All classes together, in bins of equal width. On the diagonal the probabilities are right.

    Args:
        probabilities: Probabilities `(N, K)`, as `loss.posterior` gives them; of one logit those
            of label 1, `(N,)` or `(N, 1)`, of independent labels `(N, L)`. Of time steps or pixels
            `(N, ..., K)`, with a last axis of 1 for one logit. Or a dict of a name to such, to draw
            side by side.
        labels: Integer classes `(N,)` or `(N, 1)`, or one-hot `(N, K)`; 0 and 1 `(N, L)` of
            labels; with the same further axes as the probabilities.
        num_bins: Number of bins in `[0, 1]`, at least 1.
        ax: matplotlib axes to draw on. `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ImportError: where matplotlib is missing.
        ValueError: for logits, or labels that are not classes.

    Example:

    >>> ax = reliability_diagram([[0.75, 0.25], [0.25, 0.75]], [0, 1])
    >>> print(ax.get_xlabel())
    predicted probability
    """
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    named = probabilities if isinstance(probabilities, dict) else {None: probabilities}
    for name, values in named.items():
        values = targets.as_numpy("`probabilities`", values).astype("float64")
        if not values.ndim or not values.size or not values.min() >= 0 or values.max() > 1 + 1e-3:
            found = f" in [{values.min():.3g}, {values.max():.3g}]" if values.size else ""
            raise ValueError(
                "`probabilities` must be probabilities, not logits. Received: values of shape "
                f"{values.shape}{found}"
            )
        hits = _hits(values, labels)
        values = values.ravel()
        bins = np.minimum((values * num_bins).astype("int64"), num_bins - 1)
        counts = np.bincount(bins, minlength=num_bins)
        filled = counts > 0
        predicted = np.bincount(bins, values, num_bins)[filled] / counts[filled]
        observed = np.bincount(bins, hits, num_bins)[filled] / counts[filled]
        ax.plot(predicted, observed, ".-", label=name)
    if isinstance(probabilities, dict):
        ax.legend(frameon=False)
    ax.set_aspect("equal")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("predicted probability")
    ax.set_ylabel("observed frequency")
    return ax


def _hits(probabilities, labels):
    """Returns whether each of the probabilities is that of the true class, flat."""
    labels = targets.as_numpy("`labels`", labels, "classes")
    shape = probabilities.shape
    if len(shape) > 2 and labels.shape[: len(shape) - 1] == shape[:-1]:  # Time steps or pixels.
        shape = (probabilities.size // shape[-1], shape[-1])
        labels = labels.reshape(shape[0], -1)
    if len(shape) == 1 or shape[1:] == (1,):
        ids, shape = targets.class_ids("labels", labels, 2), (shape[0],)
        hits = ids.astype(bool)
    elif labels.shape == shape:  # One-hot, or of independent labels.
        hits = labels
    else:
        ids = targets.class_ids("labels", labels, shape[-1])
        hits = np.eye(shape[-1])[ids]
    if hits.shape != shape or not np.isin(hits, (0, 1)).all():
        raise ValueError(
            "`labels` must be classes of the `probabilities`, or 0 and 1 in their shape. Received: "
            f"labels of shape {labels.shape}, such as {np.unique(labels)[:5].tolist()}, for "
            f"probabilities of shape {shape}; leave out what is not known, as in `p[y >= 0]`"
        )
    return hits.ravel()


def accuracy_against_q(table: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draws the balanced accuracy against q, a curve for each loss, with standard errors.

    Args:
        table: Dicts of `loss`, `q`, where the loss has it `tau` or `margins`, `balanced_accuracy`,
            in `[0, 1]`, and optionally `standard_error`, as `examples/tune_q.py` makes them.
        ax: matplotlib axes to draw on. `None` makes new ones.

    Returns:
        The axes.

    Raises:
        ImportError: where matplotlib is missing.

    Example:

    >>> row = {"loss": "gla", "tau": "1", "standard_error": 0.02}
    >>> points = [(0.0, 0.7), (0.5, 0.8)]
    >>> ax = accuracy_against_q([{**row, "q": q, "balanced_accuracy": b} for q, b in points])
    >>> print(ax.get_legend().get_texts()[0].get_text())
    gla, tau 1
    """
    ax = _axes(ax)
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(table, key=lambda row: row["q"]):
        names = [family.option for family in FAMILIES.values()]
        options = [f"{name} {row[name]}" for name in names if row.get(name)]
        curves.setdefault(", ".join([row["loss"], *options]), []).append(row)
    for name, rows in sorted(curves.items()):
        q, scores = ([row[key] for row in rows] for key in ("q", "balanced_accuracy"))
        errors = [row.get("standard_error", 0.0) for row in rows]
        ax.errorbar(q, scores, errors, marker=".", capsize=2, linewidth=1, label=name)
    ax.set_xlabel("q")
    ax.set_ylabel("balanced accuracy")
    ax.legend(frameon=False)
    return ax


def _axes(ax):
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "keras-balanced[plots]"') from error
    return pyplot.subplots(layout="constrained")[1]


def _class_ticks(ax, num_classes):
    if num_classes <= _MAX_BARS:
        ax.set_xticks(range(num_classes))
