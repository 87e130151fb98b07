"""One reader of whatever `fit` takes: it yields batches `(x, y, sample_weight)`."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from time import monotonic
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets, validation

# Nobody reads so many batches: such a length says that there is no end.
_ENDLESS = 2**40
# Seconds after which the reader says how far it is, where it cannot know that there is an end.
_PATIENCE = 10.0


class Batch(NamedTuple):
    """Inputs, the labels of one output, and their weights; `None` for what there is not."""

    x: Any
    y: Any
    sample_weight: Any


def read(
    data: Any,
    steps: int | None = None,
    name: str = "validation_data",
    output_name: str | None = None,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """Yields batches of examples with labels, from any form that `evaluate` takes.

    `data` are arrays `(x, y)` or `(x, y, sample_weight)`, given in slices of `batch_size` (`None`:
    as one batch), or batches of them, of which `steps` are read (`None`: all). `output_name` is
    the output whose labels are wanted.
    """
    check(data, steps, name)
    for element in [data] if isinstance(data, tuple) else _elements(data, steps, name):
        x, y, sample_weight = _unpack(element, name, output_name)
        if y is None:
            received = f"a dict of {list(x)[:10]}" if isinstance(x, Mapping) else "none"
            raise ValueError(
                f"`{name}` must have labels, `(x, y)` as in `fit`. Received: {received}"
            )
        batch = Batch(as_inputs(x), y, sample_weight)
        if batch_size is None or not isinstance(data, tuple):
            yield batch
        else:
            yield from _slices(batch, batch_size, name)


def read_labels(data: Any, sample_weight: Any = None, steps: int | None = None) -> Iterator[Batch]:
    """Yields batches of labels, from any form that `fit` takes, and from labels alone.

    `sample_weight` are the weights of labels in one array. In batches the weights are those that
    they have (`None`; with `True` they must have some), or each label counts once (`False`).
    """
    in_batches = sample_weight is None or isinstance(sample_weight, bool)
    if _are_labels(data):
        if steps is not None:
            raise ValueError(f"`steps` needs batches. Received: steps={steps} and an array")
        if sample_weight is True:
            raise ValueError("`sample_weight=True` needs batches (x, labels, weights)")
        labels = list(data) if isinstance(data, tuple) else data
        yield Batch(None, labels, None if in_batches else sample_weight)
        return
    _check_batches_of_labels(data)
    _check_end(data, steps, "data")
    if not in_batches:
        raise ValueError(
            "With batches `sample_weight` must be None, or True for the weights in them, or False "
            "to count every label once. Received: sample_weight of type "
            f"{type(sample_weight).__name__}"
        )
    for element in _elements(data, steps, "data"):
        batch = _unpack(element, "data", labels_alone=True)
        if sample_weight is True and batch.sample_weight is None:
            raise ValueError("`sample_weight=True` needs batches (x, labels, weights)")
        yield batch if sample_weight is not False else Batch(batch.x, batch.y, None)


def check(data: Any, steps: int | None = None, name: str = "validation_data") -> None:
    """Raises unless `read` can read `data`, and they end, by themselves or after `steps`."""
    if isinstance(data, tuple):
        if steps is not None:
            raise ValueError(f"`steps` needs batches. Received: steps={steps} and arrays")
        return
    is_list_of_arrays = isinstance(data, list) and _is_array(next(iter(data), None))
    if is_list_of_arrays or not _is_iterable(data):
        received = "a list of arrays" if is_list_of_arrays else validation.kind_of(data)
        raise ValueError(
            f"`{name}` must be a tuple of arrays `(x, y)` or `(x, y, sample_weight)`, or "
            f"batches of them. Received: {received}"
        )
    _check_end(data, steps, name)


def _check_batches_of_labels(data: Any) -> None:
    if isinstance(data, tuple):
        raise ValueError(
            "`data` must be labels, or batches. Received: a tuple; pass only its labels, as in "
            "`adapt(y_train)`"
        )
    if isinstance(data, Mapping):
        raise ValueError(
            f"`data` must have the labels of one output. Received: a dict of {list(data)[:10]}; "
            f"pass those of one, as in `adapt(y[{next(iter(data), 'name')!r}])`"
        )
    if not _is_iterable(data):
        raise ValueError(f"`data` must be labels, or batches. Received: {validation.kind_of(data)}")


def _check_end(data: Any, steps: int | None, name: str) -> None:
    if steps is not None:
        validation.check_integer("steps", steps, low=1)
    elif number_of_batches(data) == math.inf:
        raise ValueError(
            "`steps` is needed for data without end. Received: steps=None, and as "
            f"`{name}` {validation.kind_of(data)}, which never ends"
        )


def number_of_batches(data: Any) -> float | None:
    """Returns how many batches there are: infinity where they never end, `None` if unknown."""
    if isinstance(data, (itertools.cycle, itertools.count)):
        return math.inf
    if isinstance(data, itertools.repeat):
        hint = operator.length_hint(data, -1)
        return math.inf if hint < 0 else hint
    is_py_dataset = isinstance(data, keras.utils.PyDataset)
    try:
        number = data.num_batches if is_py_dataset else len(data)
    except NotImplementedError:
        number = None
    except OverflowError:
        return math.inf
    except TypeError as error:  # TensorFlow says in it why there is no length.
        is_endless = "infinite" in str(error) or backends.is_endless_distributed(data)
        return math.inf if is_endless or _is_endless_grain(data) else None
    if number is None:
        return math.inf if is_py_dataset else None
    return math.inf if number >= _ENDLESS else number


def _is_endless_grain(data: Any) -> bool:
    """Returns whether an `IterDataset` or `DataLoader` of grain never ends, as far as it tells."""
    if not any(cls.__module__.split(".")[0] == "grain" for cls in type(data).__mro__):
        return False
    parents = getattr(data, "parents", None)
    if parents is None:
        return number_of_batches(backends.sampler_of(data)) == math.inf
    if type(data).__name__.startswith("Limit"):
        return False
    if "num_epochs=None" in str(data):
        return True
    return bool(parents) and all(number_of_batches(parent) == math.inf for parent in parents)


def _elements(data: Any, steps: int | None, name: str) -> Iterable:
    """Yields what `data` gives, `steps` times, and says how far it is if no end is known."""
    number = number_of_batches(data)
    is_indexed = isinstance(data, keras.utils.PyDataset) or not hasattr(data, "__iter__")
    if is_indexed and number is not None:
        # Python's own way goes on until an `IndexError`, which may never come.
        indices = itertools.count() if number == math.inf else range(int(number))
        elements = (data[i] for i in indices)
    else:
        elements = iter(data)
    if steps is None and number is None:
        return say_how_far(elements, f"`{name}`", "batches", "`steps=` limits how many are read")
    return itertools.islice(elements, steps)


def say_how_far(elements: Iterable, name: str, noun: str, advice: str) -> Iterator:
    """Yields the elements, and prints how many they are after 10 seconds, 20, 40 and so on."""
    start, due = monotonic(), _PATIENCE
    for number, element in enumerate(elements, 1):
        yield element
        seconds = monotonic() - start
        if seconds >= due:
            due = 2 * seconds
            print(
                f"{name}: {number:,} {noun} read in {seconds:.0f} seconds, and no end is known; "
                f"{advice}.",
                flush=True,
            )


def _unpack(
    element: Any, name: str, output_name: str | None = None, labels_alone: bool = False
) -> Batch:
    """Returns what a data set gave, or a tuple of arrays, as a `Batch` with labels of one output.

    What stands alone are labels with `labels_alone`, else inputs.
    """
    if isinstance(element, list) and _is_list_of_parts(element):
        element = tuple(element)  # As a PyTorch `DataLoader` gives it.
    parts = element if isinstance(element, tuple) else (element,)
    if len(parts) not in (1, 2, 3):
        alone = "labels, " if labels_alone else ""
        raise ValueError(
            f"`{name}` must have batches of {alone}(x, labels) or (x, labels, weights). "
            f"Received: a tuple of {len(parts)}"
        )
    if len(parts) == 1:
        parts = (None, *parts) if labels_alone else (*parts, None)
    x, y, sample_weight = (*parts, None)[:3]
    return Batch(
        x,
        _of_one_output(y, name, output_name, "labels"),
        _of_one_output(sample_weight, name, output_name, "weights"),
    )


def _of_one_output(values: Any, name: str, output_name: str | None, what: str) -> Any:
    """Returns the labels or weights of one output, out of a dict or list of several."""
    if isinstance(values, Mapping):
        key = next(iter(values), None) if output_name is None else output_name
        if key in values and (len(values) == 1 or output_name is not None):
            return values[key]
        received = f"a dict of {list(values)[:10]}"
    elif isinstance(values, (list, tuple)) and any(map(_is_part, values)):
        if len(values) == 1:
            return values[0]
        received = f"{what} in {validation.kind_of(values)} of {len(values)}"
    else:
        return list(values) if isinstance(values, tuple) else values
    which = "" if output_name is None else f", {output_name!r}"
    raise ValueError(
        f"`{name}` must have the {what} of one output{which}. Received: {received}; pass those of "
        "one, as in `dataset.map(lambda x, y: (x, y['name']))`"
    )


def as_inputs(x: Any) -> Any:
    """Returns inputs with plain dicts and arrays in place of mappings and lists of numbers."""
    if isinstance(x, Mapping):
        return {key: as_inputs(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        if any(map(_is_part, x)):
            return (
                type(x)(map(as_inputs, x)) if type(x) in (list, tuple) else list(map(as_inputs, x))
            )
        return np.asarray(x)
    if hasattr(x, "toarray"):  # Of SciPy.
        return x.toarray()
    return x.to_numpy() if hasattr(x, "iloc") else x


def _slices(batch: Batch, size: int, name: str) -> Iterator[Batch]:
    """Yields a batch of arrays in slices."""
    parts = (
        keras.tree.map_structure(ops.convert_to_numpy, batch.x),
        *(None if part is None else targets.as_numpy(f"`{name}`", part) for part in batch[1:]),
    )
    for start in range(0, _number_of_examples(parts, name), size):
        yield Batch(*(choose(part, slice(start, start + size)) for part in parts))


def choose(arrays: Any, chosen: Any) -> Any:
    """Returns the chosen examples (a mask or a slice) of arrays in any structure, or `None`."""
    if arrays is None:
        return None
    return keras.tree.map_structure(lambda array: array[chosen], arrays)


def choose_examples(dataset: Any, chosen: np.ndarray) -> Any:
    """Returns a `tf.data.Dataset` of the examples of another for which `chosen` `(N,)` is true."""
    import tensorflow as tf

    keep = tf.constant(chosen)
    kept = dataset.enumerate().filter(lambda i, _: keep[i]).map(lambda _, example: example)
    # A filter hides how many there are, and Keras warns where they end.
    return kept.apply(tf.data.experimental.assert_cardinality(int(chosen.sum())))


def _number_of_examples(parts: Iterable, name: str) -> int:
    arrays = [array for part in parts if part is not None for array in keras.tree.flatten(part)]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            f"`{name}` must be arrays of one length. Received: lengths {sorted(lengths)}"
        )
    return lengths.pop()


def _are_labels(data: Any) -> bool:
    """Returns whether data are labels alone: an array, or lists of numbers."""
    if isinstance(data, tuple):
        return bool(data) and all(isinstance(value, numbers.Number) for value in data)
    first = data
    while isinstance(first, list) and first:
        first = first[0]
    is_number = isinstance(data, list) and isinstance(first, numbers.Number)
    return is_number or hasattr(data, "shape") or hasattr(data, "__array__")


def _is_array(value: Any) -> bool:
    """Returns whether a value is an array, tensor or table of at least one axis."""
    return len(getattr(value, "shape", ())) > 0


def _is_part(value: Any) -> bool:
    """Returns whether a value is one of several inputs or outputs, and not a number or a label."""
    return _is_array(value) or isinstance(value, Mapping)


def _is_list_of_parts(values: list) -> bool:
    """Returns whether a list is `[x, y]`, and not labels."""
    last = values[-1] if values else None
    is_scalar_tensor = hasattr(last, "shape") and not isinstance(last, numbers.Number)
    return is_scalar_tensor or any(map(_is_part, values))


def _is_iterable(data: Any) -> bool:
    """Returns whether data can give batches: not one array, text, dict or set."""
    can_be_read = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    others = (str, bytes, Mapping, Set)
    return can_be_read and not hasattr(data, "shape") and not isinstance(data, others)


def is_dataset(data: Any) -> bool:
    """Returns whether data are a `tf.data.Dataset`."""
    return hasattr(data, "element_spec") and hasattr(data, "as_numpy_iterator")


def examples(x: Any, y: Any, sample_weight: Any = None) -> Batch:
    """Returns single examples in arrays, and refuses what is read batch by batch."""
    inputs = as_inputs(x)
    if not all(map(_is_array, keras.tree.flatten(inputs))):
        raise ValueError(
            "`x` must be an array, a tuple or dict of arrays, or a `tf.data.Dataset` of single "
            f"examples `(x, y)`. Received: {validation.kind_of(x)}"
        )
    if y is None:
        raise ValueError("`y` must be labels, where `x` is an array. Received: y=None")
    inputs = keras.tree.map_structure(ops.convert_to_numpy, inputs)
    y = targets.as_numpy("`y`", y)
    if sample_weight is not None:
        sample_weight = targets.as_numpy("`sample_weight`", sample_weight)
    batch = Batch(inputs, y, sample_weight)
    _number_of_examples(batch, "x")
    return batch


def labels_of_examples(dataset: Any, y: Any, name: str) -> np.ndarray:
    """Returns the labels `(N,)` or `(N, K)` of a `tf.data.Dataset` of single examples; `y` is None.

    It must come to an end, and in the same order each time: what is chosen is chosen by its place.
    """
    expected = (
        f"`{name}` must be a dataset of single examples `(x, y)` or `(x, y, sample_weight)`, that "
        "ends, in the same order each time"
    )
    if y is not None:
        raise ValueError(f"`y` must be left out, since `{name}` is a dataset `(x, y)`. Received: y")
    _check_single_examples(dataset, expected)
    is_known = number_of_batches(dataset) is not None
    advice = "if there is none, leave out its `.repeat()`"

    def labels() -> np.ndarray:
        examples = dataset.as_numpy_iterator()
        examples = examples if is_known else say_how_far(examples, f"`{name}`", "examples", advice)
        return np.array([example[1] for example in examples])

    first, second = labels(), labels()
    if not np.array_equal(first, second):
        raise ValueError(
            f"{expected}. Received: one that is shuffled anew; leave out its `.shuffle()`, or "
            "give `reshuffle_each_iteration=False`, as `shuffle=False` where Keras reads a "
            "directory"
        )
    return first


def _check_single_examples(dataset: Any, expected: str) -> None:
    """Raises unless a dataset has single examples with the labels of one output, and an end."""
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
    if number_of_batches(dataset) == math.inf:
        raise ValueError(f"{expected}. Received: one without end; leave out its `.repeat()`")
    if label.shape.rank is None or label.shape.rank > 1 or None in tuple(label.shape):
        raise ValueError(
            f"{expected}. Received: labels of shape {label.shape}; take batches apart with "
            "`.unbatch()`"
        )
