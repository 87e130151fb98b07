"""Checks of arguments: each returns the value in the form that the rest of the package uses."""

import inspect
import math
import numbers
import reprlib
from typing import TYPE_CHECKING, Protocol, TypeAlias

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


ClassMix: TypeAlias = "ArrayLike | HasPriors"


def check_number(name, value, low=-math.inf, high=math.inf):
    """Returns `value` as a finite float in `[low, high)`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= value < high
    ):
        where = f"in [{low:g}, {high:g})" if math.isfinite(low) else "a finite number"
        raise ValueError(f"`{name}` must be {where}. Received: {name}={value!r}")
    return float(value)


def check_integer(name, value, low=-math.inf, high=math.inf):
    """Returns `value` as an int in `[low, high)`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not low <= value < high
    ):
        where = f" of at least {low}" if math.isfinite(low) else ""
        where = f" in [{low}, {high})" if math.isfinite(high) else where
        raise ValueError(f"`{name}` must be an integer{where}. Received: {name}={value!r}")
    return int(value)


def check_positive_vector(name, values, length=None):
    """Returns `values` as a `(K,)` float64 array of finite, positive numbers, `K >= 2`."""
    vector = _as_array(name, values, "a 1-D vector of positive numbers, one per class")
    if vector.ndim != 1:
        raise ValueError(
            f"`{name}` must be a 1-D vector of positive numbers, one per class. "
            f"Received: {name}={values!r} of shape {vector.shape}"
        )
    if length is not None and len(vector) != length:
        raise ValueError(
            f"`{name}` must have one number for each of the {length} classes. "
            f"Received: {len(vector)} numbers"
        )
    if len(vector) < 2:
        raise ValueError(
            f"`{name}` must have at least 2 classes (for one logit per example there are the "
            f"binary losses). Received: {name}={values!r}"
        )
    bad = np.flatnonzero(~(np.isfinite(vector) & (vector > 0)))
    if bad.size:
        message = (
            f"`{name}` must be positive and finite for every class. "
            f"Received: {vector[bad[:10]].tolist()} for the {bad.size} class ids "
            f"{bad[:10].tolist()}{'...' if bad.size > 10 else ''}"
        )
        if (vector[bad] == 0).any():
            message += (
                ". Give a class without examples some mass, as "
                "`ClassPrior(num_classes, smoothing=1.0)` does"
            )
        raise ValueError(message)
    return vector


def check_counts(name, values, shape):
    """Returns `values` as a float64 array of counts of the given shape."""
    counts = _as_array(name, values, f"counts of shape {shape}")
    if counts.shape != shape or not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(
            f"`{name}` must be non-negative, finite and of shape {shape}. "
            f"Received: {name}={values!r} of shape {counts.shape}"
        )
    return counts


def check_mix(name, values, length=None):
    """Returns a class mix (counts, probabilities or a `ClassPrior`) as `(K,)` probabilities."""
    if getattr(values, "multi_label", False):
        raise ValueError(
            f"`{name}` must be a class mix. Received: the `ClassPrior` of a multi-label problem, "
            "which goes with the binary losses"
        )
    vector = check_positive_vector(name, getattr(values, "priors", values), length)
    total = vector.sum()
    # What sums to 1 but for rounding stays as it is: a mix that was saved loads unchanged.
    return vector if abs(total - 1.0) < 1e-12 else vector / total


def check_rates(name, values):
    """Returns positive rates (a number, a vector or a `ClassPrior`) as `(2,)` or `(L, 2)`."""
    if not getattr(values, "multi_label", True):
        raise ValueError(
            f"`{name}` must be positive rates. Received: the `ClassPrior` of a multi-class "
            "problem; adapt one with `multi_label=True`"
        )
    expected = "the positive rate, or a 1-D vector of one for each label, in (0, 1)"
    rates = _as_array(name, getattr(values, "priors", values), expected)
    if rates.ndim > 1 or not ((rates > 0) & (rates < 1)).all():
        raise ValueError(
            f"`{name}` must be {expected} (`ClassPrior(..., smoothing=1.0)` keeps them there). "
            f"Received: {name}={rates.tolist()}"
        )
    if rates.size == 1:
        rates = rates.reshape(())
    return np.stack([1.0 - rates, rates], axis=-1)


def check_class_priors(name, values, binary):
    """Returns a class mix `(K,)`, or with `binary` positive rates as `(2,)` or `(L, 2)`."""
    return check_rates(name, values) if binary else check_mix(name, values)


def check_target(target_priors, priors, binary):
    """Returns `target_priors` as probabilities in the shape of `priors`."""
    if not binary:
        return check_mix("target_priors", target_priors, length=len(priors))
    target = check_rates("target_priors", target_priors)
    if target.shape not in ((2,), priors.shape):
        raise ValueError(
            "`target_priors` must be one positive rate, or one for each label of `priors`. "
            f"Received: {len(target)} rates for {priors.size // 2} labels"
        )
    return np.broadcast_to(target, priors.shape)


def check_per_class(name, values, shape, positive=False):
    """Returns `values`, one number or one per class, as a finite float64 array of `shape`."""
    what = "positive numbers" if positive else "finite numbers"
    array = _as_array(name, values, what)
    fits = array.ndim <= len(shape) and array.shape in (shape[len(shape) - array.ndim :], ())
    if not fits or not np.isfinite(array).all() or (positive and not (array > 0).all()):
        raise ValueError(
            f"`{name}` must be {what} of shape {shape}, or one for all. "
            f"Received: {name}={array.tolist()}"
        )
    return np.broadcast_to(array, shape).copy()


def check_ignore_class(value):
    """Returns `ignore_class`, an integer or `None`."""
    return None if value is None else check_integer("ignore_class", value)


def plain(value):
    """Returns an argument as JSON keeps it: vectors and mixes as lists of floats."""
    value = getattr(value, "priors", value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return np.asarray(value, dtype="float64").tolist()


def describe(instance):
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


def _as_array(name, values, expected):
    try:
        return np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={values!r}") from error
