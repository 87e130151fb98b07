"""Pictures of long tails: matplotlib axes in, axes out, so that they compose."""

import numpy as np

_MAX_BARS = 20


def class_counts(counts, ax=None):
    """Draws how many examples each class has, on a logarithmic scale.

    Args:
        counts: Examples of each class, `(K,)`.
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
    ax = _axes(ax)
    bars = ax.bar(np.arange(len(counts)), counts, color="0.6", width=0.8)
    if len(counts) <= _MAX_BARS:
        ax.bar_label(bars)
    ax.set_yscale("log")
    ax.set_ylim(min(counts) / 2, max(counts) * 2)
    ax.set_xlabel("class")
    ax.set_ylabel("training examples")
    _class_ticks(ax, len(counts))
    return ax


def class_recalls(recalls, ax=None):
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
    ax = _axes(ax)
    for i, (name, values) in enumerate(recalls.items()):
        classes = np.arange(len(values))
        label = f"{name} (mean {np.mean(values):.2f})"
        if len(values) <= _MAX_BARS:
            width = 0.8 / len(recalls)
            ax.bar(classes - 0.4 + (i + 0.5) * width, values, width=width, label=label)
        else:
            ax.plot(classes, values, ".-", linewidth=0.8, label=label)
    ax.set_ylim(0, 1)
    ax.set_xlabel("class")
    ax.set_ylabel("recall")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    _class_ticks(ax, len(values))
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
