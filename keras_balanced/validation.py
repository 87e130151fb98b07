"""Checks of arguments: each returns the value in the form that the rest of the package uses."""

import inspect
import math
import numbers
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    class HasPriors(Protocol):
        """A `ClassPrior`, or another object that has class priors."""

        @property
        def priors(self) -> np.ndarray: ...

    class HasCounts(Protocol):
        """A `ClassPrior`, or another object that has counts of classes."""

        @property
        def counts(self) -> np.ndarray: ...


ClassMix: TypeAlias = "ArrayLike | Mapping[int, float] | HasPriors"
# As `check_ignore_class` returns it.
IgnoreClass: TypeAlias = int | list[int] | None

# With a smaller prior, weights and margins would leave the range of float32.
SMALLEST_PRIOR = 1e-30


def show(value: Any, most: int = 100) -> str:
    """Returns an argument as errors print it: on one line, and a long one by its kind and size."""
    text = repr(value)
    if len(text) <= most and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{kind_of(value)} of shape {tuple(shape)}"
    if isinstance(value, (list, tuple)):
        return f"{kind_of(value)} of {len(value)}, {text[: most // 2]}..."
    return " ".join(text[:most].split()) + "..."


def kind_of(value: Any) -> str:
    """Returns the type of an argument as errors print it, with its article."""
    if value is None:
        return "None"
    kind = type(value).__name__
    # As they are spoken: an ndarray, a uint8.
    article = "an" if kind.lower().startswith(("a", "e", "i", "o", "nd")) else "a"
    return f"{article} {kind}"


def some(values: np.ndarray, most: int = 5) -> list:
    """Returns the first of some numbers as errors print them."""
    return [float(f"{v:.6g}") if isinstance(v, float) else v for v in values[:most].tolist()]


def check_finite(name: str, values: np.ndarray) -> np.ndarray:
    """Returns values `(N, ...)`, and raises with how many of the `N` are not finite, and where."""
    flat = np.reshape(values, (len(values), -1))
    bad = np.logical_or.reduce(~np.isfinite(flat), axis=1)
    refuse_examples(bad, f"{name} must be finite")
    return values


def refuse_examples(
    bad: np.ndarray, expected: str, index: np.ndarray | None = None, total: int | None = None
) -> None:
    """Raises with how many of `N` examples are bad, and where, if any are.

    `index` are their places among `total`, where some have been left out.
    """
    places = np.flatnonzero(bad)
    if places.size:
        number = len(bad) if total is None else total
        places = places if index is None else index[places]
        raise ValueError(
            f"{expected}. Received: {places.size} of {number} examples that are not, at the places "
            f"{places[:5].tolist()}{' and others' if places.size > 5 else ''}"
        )


def is_number(value: Any) -> bool:
    """Returns whether a value is one number, of Python or of NumPy."""
    return isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns `value` as a finite float in `[low, high)`."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real or not math.isfinite(value) or not low <= value < high:
        where = f"in [{low:g}, {high:g})" if math.isfinite(low) else "a finite number"
        raise ValueError(f"`{name}` must be {where}. Received: {name}={show(value)}")
    return float(value)


def check_tau(tau: Any) -> float:
    """Returns a strength of logit adjustment as a float: below 0 it would favour large classes."""
    tau = check_number("tau", tau)
    if tau < 0:
        raise ValueError(f"`tau` must be a finite number of at least 0. Received: tau={tau!r}")
    return tau


def check_integer(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> int:
    """Returns `value` as an int in `[low, high)`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not low <= value < high:
        where = f" of at least {low}" if math.isfinite(low) else ""
        where = f" in [{low}, {high})" if math.isfinite(high) else where
        raise ValueError(f"`{name}` must be an integer{where}. Received: {name}={show(value)}")
    return int(value)


def check_positive_vector(
    name: str, values: Any, length: int | None = None, zeros: bool = False
) -> np.ndarray:
    """Returns `values` as a `(K,)` float64 array of finite, positive numbers, `K >= 2`.

    With `zeros` all but two may be 0.
    """
    vector = as_array(name, values, "a 1-D vector of positive numbers, one per class", length)
    if vector.ndim != 1:
        raise ValueError(
            f"`{name}` must be a 1-D vector of positive numbers, one per class. "
            f"Received: {name}={show(values)} of shape {vector.shape}"
        )
    if length is not None and len(vector) != length:
        raise ValueError(
            f"`{name}` must have one number for each of the {length} classes. "
            f"Received: {len(vector)} numbers"
        )
    if len(vector) < 2:
        raise ValueError(
            f"`{name}` must have at least 2 classes (for one logit per example there are the "
            f"binary losses). Received: {name}={show(values)}"
        )
    if zeros and np.count_nonzero(vector) == 1 and (vector >= 0).all():
        raise ValueError(
            f"`{name}` must be positive for at least 2 classes. Received: {name}={values!r}, of "
            f"which only the class {np.flatnonzero(vector)[0]} occurs"
        )
    bad = np.flatnonzero(~(np.isfinite(vector) & ((vector >= 0) if zeros else (vector > 0))))
    if bad.size:
        message = (
            f"`{name}` must be positive and finite for every class. "
            f"Received: {some(vector[bad], 10)} for the class ids {some(bad, 10)}"
            f"{f' and {bad.size - 10} more' if bad.size > 10 else ''}"
        )
        if _are_labels(vector):
            message += (
                f", {len(vector)} numbers that look like labels. Did you mean `np.bincount(y)`, "
                "or a `ClassPrior` adapted to them?"
            )
        elif name in ("priors", "training_priors") and (vector[bad] == 0).any():
            message += (
                ". Do your ids start at 1? A class that never occurs needs 0 in `target_priors` "
                "too; a rare class without an example here needs some mass, as "
                "`ClassPrior(num_classes, smoothing=1.0)` gives it"
            )
        raise ValueError(message)
    return vector


def _are_labels(vector: np.ndarray) -> bool:
    """Returns whether a vector looks like the labels of examples: few ids, many times each."""
    ids = np.unique(vector)
    return len(vector) >= 10 * len(ids) and bool((ids == np.rint(ids)).all())


def check_counts(name: str, values: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns counts, or those of a `ClassPrior`, as a float64 array of `shape`, or `(K,)`."""
    values = _held_by(values, "counts")
    expected = f"non-negative, finite and of shape {shape}"
    if shape is None:
        expected = "a 1-D vector of non-negative, finite numbers, one for each of 2 or more classes"
    length = shape[0] if shape is not None and len(shape) == 1 else None
    counts = as_array(name, values, expected, length)
    fits = counts.ndim == 1 and len(counts) > 1 if shape is None else counts.shape == shape
    if not fits or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(
            f"`{name}` must be {expected}. Received: {name}={show(values)} of shape {counts.shape}"
        )
    return counts


def check_mix(name: str, values: Any, length: int | None = None, zeros: bool = False) -> np.ndarray:
    """Returns a class mix (counts, probabilities or a `ClassPrior`) as `(K,)` probabilities."""
    if getattr(values, "multi_label", False):
        raise ValueError(
            f"`{name}` must be a class mix. Received: the `ClassPrior` of a multi-label problem, "
            "which goes with the binary losses"
        )
    vector = check_positive_vector(name, _held_by(values, "priors"), length, zeros)
    total = vector.sum()
    # A mix that sums to 1 up to rounding stays as it is: one that was saved loads unchanged.
    mix = vector if abs(total - 1.0) < 1e-12 else vector / total
    tiny = np.flatnonzero((mix > 0) & (mix < SMALLEST_PRIOR))
    if tiny.size:
        raise ValueError(
            f"`{name}` must be at least {SMALLEST_PRIOR:g} for every class that occurs. "
            f"Received: {some(mix[tiny])} for the class ids {some(tiny)}"
        )
    return mix


def check_rates(name: str, values: Any) -> np.ndarray:
    """Returns positive rates as `(2,)`, of one logit, or `(L, 2)`, of `L` labels.

    A number is the rate of one logit, and so are the two priors of a `ClassPrior(2)`, dict or
    Series; a vector, or a `ClassPrior(..., multi_label=True)`, has those of `L` labels.
    """
    expected = "the positive rate, or a 1-D vector of one for each label, in (0, 1)"
    if _is_table(values) or not getattr(values, "multi_label", True):
        keys = list(values.keys()) if _is_table(values) else []
        if any(isinstance(key, str) for key in keys):
            raise ValueError(
                f"`{name}` must be {expected}. Received: {kind_of(values)} with the keys "
                f"{show(keys)}; of several labels pass a vector, as in `y.mean().to_numpy()`"
            )
        mix = as_array(name, _held_by(values, "priors"), expected, length=2)
        if mix.shape != (2,) or not (np.isfinite(mix) & (mix >= 0)).all() or not mix.any():
            raise ValueError(
                f"`{name}` must be {expected}; a `ClassPrior`, dict or Series of class ids must "
                f"have the classes 0 and 1. Received: {kind_of(values)} of {mix.size} classes, "
                f"{some(mix.ravel())}; of several labels pass a vector of rates, as in "
                "`y.mean().to_numpy()`, or a `ClassPrior` with `multi_label=True`"
            )
        rates = mix[1] / mix.sum()
    else:
        rates = as_array(name, _held_by(values, "priors"), expected)
    if rates.size > 1 and _are_labels(rates.ravel()):
        mean = "y.mean()" if rates.ndim == 1 or rates.shape[1:] == (1,) else "y.mean(axis=0)"
        raise ValueError(
            f"`{name}` must be {expected}. Received: {rates.size} numbers of shape {rates.shape} "
            f"that look like labels. Did you mean `{mean}`?"
        )
    if rates.ndim > 1 or not ((rates >= SMALLEST_PRIOR) & (rates < 1)).all():
        raise ValueError(
            f"`{name}` must be {expected} (`ClassPrior(..., smoothing=1.0)` keeps them there). "
            f"Received: {name}={show(rates.tolist())}"
        )
    if rates.size == 1:
        rates = rates.reshape(())
    return np.stack([1.0 - rates, rates], axis=-1)


def check_class_priors(name: str, values: Any, binary: bool, zeros: bool = False) -> np.ndarray:
    """Returns a class mix `(K,)`, or with `binary` positive rates as `(2,)` or `(L, 2)`."""
    return check_rates(name, values) if binary else check_mix(name, values, zeros=zeros)


def check_mix_like(name: str, mix: Any, priors: np.ndarray, binary: bool) -> np.ndarray:
    """Returns a class mix, or with `binary` positive rates, as probabilities shaped as `priors`."""
    if not binary:
        mix = check_mix(name, mix, length=len(priors), zeros=True)
        absent, unwanted = np.flatnonzero(priors == 0), np.flatnonzero(mix == 0)
        if set(unwanted) - set(absent):
            raise ValueError(
                f"`{name}` must be positive for every class that occurs; one that never "
                "occurs has 0 in the loss's `priors` too. Received: 0 for the class ids "
                f"{some(unwanted)}, and priors of 0 for {some(absent)}"
            )
        if set(absent) - set(unwanted):
            raise ValueError(
                f"`{name}` must be 0 for a class that never occurs. Received: priors of 0 "
                f"for the class ids {some(absent)}, and `{name}` of 0 for "
                f"{some(unwanted)}"
            )
        return mix
    rates = check_rates(name, mix)
    if rates.shape not in ((2,), priors.shape):
        one = priors.ndim == 1
        raise ValueError(
            f"`{name}` must be one positive rate{'' if one else ', or one for each label'}, as the "
            f"loss has. Received: {len(rates)} rates for a loss of "
            f"{'one rate' if one else f'{len(priors)} labels'}"
        )
    return np.broadcast_to(rates, priors.shape)


def check_per_class(
    name: str, values: Any, shape: tuple[int, ...], positive: bool = False
) -> np.ndarray:
    """Returns `values`, one number or one per class, as a finite float64 array of `shape`."""
    what = "positive numbers" if positive else "finite numbers"
    array = as_array(name, values, what)
    fits = array.ndim <= len(shape) and array.shape in (shape[len(shape) - array.ndim :], ())
    if not fits or not np.isfinite(array).all() or (positive and not (array > 0).all()):
        raise ValueError(
            f"`{name}` must be {what} of shape {shape}, or one for all. "
            f"Received: {name}={show(array.tolist())}"
        )
    return np.broadcast_to(array, shape).copy()


def check_class_names(names: Any, num_classes: int, binary: bool = False) -> list[str]:
    """Returns a list of `num_classes` different names: the numbers for `None`.

    A dict or Series maps names to ids, or ids to names. With `binary`, for the labels 0 and 1, a
    single name is that of label 1.
    """
    if names is None:
        return [str(k) for k in range(num_classes)]
    expected = f"`class_names` must be {num_classes} different strings, one for each class"
    if _is_table(names):
        names = _names_in_order(names, num_classes, expected)
    if isinstance(names, (str, bytes, set, frozenset)):
        raise ValueError(f"{expected}, in order. Received: class_names={show(names)}")
    names = list(names)
    if binary and len(names) == 1 and isinstance(names[0], str):
        names = [f"not {names[0]}", *names]
    if not all(isinstance(name, str) for name in names) or len(names) != num_classes:
        hint = ""
        if binary and len(names) > num_classes:
            hint = (
                ". With one rate, several outputs are positions of one label: for independent "
                f"labels the loss takes a rate for each, as `BinaryGLALoss([0.1] * {len(names)})`"
            )
        raise ValueError(f"{expected}. Received: {len(names)} names, {show(names)}{hint}")
    if len(set(names)) < num_classes:
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{expected}. Received: {show(repeated)} repeated")
    return [str(name) for name in names]


def check_ignore_class(value: Any) -> IgnoreClass:
    """Returns `ignore_class` as JSON keeps it: an integer, a list of several, or `None`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    several = isinstance(value, (list, tuple, set, frozenset, range))
    ids = list(value) if several else [] if value is None else [value]
    try:
        ids = [check_integer("ignore_class", i) for i in ids]
    except ValueError:
        ids = []
    if value is not None and not ids:
        raise ValueError(
            "`ignore_class` must be an integer, or a list of one or more. Received: "
            f"ignore_class={show(value)}"
        )
    return ids if several else ids[0] if ids else None


def as_json(value: Any, binary: bool = False) -> Any:
    """Returns an argument as JSON keeps it: vectors and mixes as lists of floats.

    With `binary` mixes as positive rates.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if binary:
        return check_rates("value", value)[..., 1].tolist()
    return as_array("value", _held_by(value, "priors"), "numbers").tolist()


def describe(instance: Any) -> str:
    """Returns `Class(argument=value, ...)` with the arguments that are not at their default."""
    config = instance.get_config()
    shown = []
    for p in inspect.signature(type(instance)).parameters.values():
        value = config.get(p.name, p.default)
        if p.name in ("name", "dtype") or value == p.default or p.kind is p.VAR_KEYWORD:
            continue
        # A dict is the config of an object.
        value = getattr(instance, p.name) if isinstance(value, dict) else reprlib.repr(value)
        shown.append(f"{p.name}={value}")
    return f"{type(instance).__name__}({', '.join(shown)})"


def as_array(name: str, values: Any, expected: str, length: int | None = None) -> np.ndarray:
    """Returns `values`, also those of a dict or Series by class id, as a float64 array.

    `length` is the number of class ids, where it is known.
    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"`{name}` must have a number for each class. Received: a masked array, with "
            f"{np.ma.count_masked(values)} values masked; fill it, as in `values.filled(0)`"
        )
    try:
        return np.asarray(_in_order(name, values, length), dtype="float64")
    except (TypeError, ValueError, RuntimeError) as error:
        if str(error).startswith("`"):
            raise
        if hasattr(values, "shape") and hasattr(values, "dtype") and not _is_table(values):
            raise ValueError(
                f"`{name}` must be numbers that are known before the model runs. Received: a "
                f"tensor of a graph, or one with a gradient, {show(values)}. What the model "
                "computes, such as how often each candidate of a batch is drawn, is subtracted "
                "from the logits: `gla_loss(y, z - log_q, np.ones(K))`, as in the recipe "
                '"Many items"'
            ) from error
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={show(values)}") from error


def _held_by(values: Any, name: str) -> Any:
    """Returns the `priors` or `counts` that an adapted `ClassPrior` holds, or the values."""
    return values if _is_table(values) else getattr(values, name, values)


def _is_table(values: Any) -> bool:
    """Returns whether `values` is a dict, or a Series or DataFrame of pandas."""
    return isinstance(values, Mapping) or (hasattr(values, "index") and hasattr(values, "to_numpy"))


def _in_order(name: str, values: Any, length: int | None) -> Any:
    """Returns the numbers of a dict or Series, whose keys are class ids, in the order of these.

    An id that is missing gets 0: it was not seen by whoever counted.
    """
    if hasattr(values, "columns"):
        raise ValueError(
            f"`{name}` must be a vector, a dict or a Series. Received: {kind_of(values)}; pass one "
            "of its columns"
        )
    if not _is_table(values):
        return values
    keys, numbers = (
        list(values.keys()),
        list(values.values() if isinstance(values, Mapping) else values.to_numpy()),
    )
    if not all(_is_class_id(key) for key in keys):
        raise ValueError(
            f"`{name}` must have the class ids 0, 1, 2, ... as its keys. Received: keys "
            f"{show(keys)}. Turn names into ids first, as pandas's `.cat.codes`, scikit-learn's "
            "`LabelEncoder` or `keras.layers.StringLookup` do"
        )
    ids = [int(key) for key in keys]
    if len(set(ids)) < len(ids):
        raise ValueError(f"`{name}` must have each class id once. Received: keys {show(keys)}")
    in_order = [0.0] * max(1 + max(ids, default=0), length or 0)
    for class_id, number in zip(ids, numbers, strict=True):
        in_order[class_id] = number
    return in_order


def _names_in_order(table: Any, num_classes: int, expected: str) -> list:
    """Returns the names of a table of names by class id, or of class ids by name."""
    keys = list(table.keys())
    values = list(table.values() if isinstance(table, Mapping) else table.to_numpy())
    if all(isinstance(key, str) for key in keys):  # `class_indices` of Keras's generators.
        keys, values = values, keys
    ids = [int(key) if _is_class_id(key) else -1 for key in keys]
    if sorted(ids) != list(range(num_classes)):
        raise ValueError(
            f"{expected}, or a dict of them and the class ids 0 to {num_classes - 1}. "
            f"Received: {show(dict(zip(keys, values, strict=True)))}"
        )
    return [values[ids.index(k)] for k in range(num_classes)]


def _is_class_id(key: Any) -> bool:
    is_scalar = isinstance(key, (numbers.Real, np.bool_))
    return is_scalar and 0 <= key < 1e7 and int(key) == key
