"""Reading whatever `fit` takes, batch by batch."""

import itertools
import numbers

import keras
import numpy as np


def iterate_batches(data, steps=None):
    """Yields the batches of anything that `fit` takes batches from, at most `steps` of them."""
    if isinstance(data, keras.utils.PyDataset):
        size = data.num_batches
        batches = (data[i] for i in (itertools.count() if size is None else range(size)))
        endless = size is None
    else:
        batches = iter(data)
        endless = hasattr(data, "cardinality") and int(data.cardinality()) == -1  # tf.data
    if endless and steps is None:
        raise ValueError("`steps` is needed for data without end. Received: steps=None")
    for batch in itertools.islice(batches, steps):
        # A PyTorch `DataLoader` gives `[x, y]`; a list of numbers is labels.
        is_list = isinstance(batch, list) and batch and hasattr(batch[-1], "shape")
        is_tuple = is_list and not isinstance(batch[-1], numbers.Number)
        yield tuple(batch) if is_tuple else batch


def refuse_list_of_arrays(data, name):
    """Raises for `[x, y]`, which would be read as two batches."""
    if isinstance(data, list) and hasattr(next(iter(data), None), "shape"):
        raise ValueError(
            f"`{name}` must be a tuple of arrays `(x, y)`, or batches of them. Received: a list "
            "of arrays"
        )


def labels_and_weights(data, sample_weight, steps):
    """Yields the labels of `data` and their weights: `data` itself, or those of its batches."""
    if isinstance(data, tuple):
        raise ValueError(
            "`adapt` expected labels or batches. Received: a tuple; pass only its labels, "
            "as in `adapt(y_train)`"
        )
    if isinstance(data, dict):
        raise ValueError(
            "`adapt` counts the labels of one output. Received: a dict; pass those of one, as in "
            f"`adapt(y[{next(iter(data), '...')!r}])`"
        )
    first = data
    while isinstance(first, list) and first:
        first = first[0]
    if hasattr(data, "shape") or (isinstance(data, list) and isinstance(first, numbers.Number)):
        yield data, sample_weight
        return
    if sample_weight is not None and sample_weight is not True:
        raise ValueError(
            "With batches `sample_weight` must be None, or True for the weights in them. "
            f"Received: sample_weight of type {type(sample_weight).__name__}"
        )
    for batch in iterate_batches(data, steps):
        weights = None
        if isinstance(batch, tuple):
            if len(batch) not in (2, 3):
                raise ValueError(
                    "`adapt` expected batches of labels, (x, labels) or (x, labels, weights). "
                    f"Received: a tuple of {len(batch)}"
                )
            batch, weights = batch[1], batch[2] if len(batch) == 3 else None
        if sample_weight and weights is None:
            raise ValueError("`sample_weight=True` needs batches (x, labels, weights)")
        if isinstance(batch, (dict, tuple)) or _is_list_of_arrays(batch):
            raise ValueError(
                "`adapt` counts the labels of one output. Received: labels in a "
                f"{type(batch).__name__}; pass those of one, as in "
                "`adapt(dataset.map(lambda x, y: y[...]))`"
            )
        yield batch, weights if sample_weight else None


def _is_list_of_arrays(batch):
    return (
        isinstance(batch, list)
        and bool(batch)
        and hasattr(batch[0], "shape")
        and len(batch[0].shape) > 0
    )


def labels_of_examples(dataset, name):
    """Returns the labels `(N,)` or `(N, K)` of a `tf.data.Dataset` of single examples.

    It must come to an end, and in the same order each time: what is chosen is chosen by its place.
    """
    expected = (
        f"`{name}` must be a dataset of single examples `(x, y)` or `(x, y, sample_weight)`, that "
        "ends, in the same order each time"
    )
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        kind = f"a dict of {list(spec)}" if isinstance(spec, dict) else f"{spec!r}"
        raise ValueError(
            f"{expected}. Received: elements that are {kind}; map them, as in "
            '`.map(lambda element: (element["image"], element["label"]))`'
        )
    label = spec[1]
    if not hasattr(label, "shape") or type(label).__name__ != "TensorSpec":
        raise ValueError(
            f"{expected}, with the labels of one output. Received: labels {label!r}; map them"
        )
    if int(dataset.cardinality()) == -1:
        raise ValueError(f"{expected}. Received: one without end; leave out its `.repeat()`")
    if label.shape.rank is None or label.shape.rank > 1 or None in tuple(label.shape):
        raise ValueError(
            f"{expected}. Received: labels of shape {label.shape}; take batches apart with "
            "`.unbatch()`"
        )
    first, second = (
        np.array([example[1] for example in dataset.as_numpy_iterator()]) for _ in range(2)
    )
    if not np.array_equal(first, second):
        raise ValueError(
            f"{expected}. Received: one that is shuffled anew; leave out its `.shuffle()`, or "
            "give `reshuffle_each_iteration=False`, as `shuffle=False` where Keras reads a "
            "directory"
        )
    return first
