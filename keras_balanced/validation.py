"""Checks of arguments: each returns the value in the form that the rest of the package uses."""

import math
import numbers

import numpy as np


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
    vector = _as_array(name, values, "a 1-D vector of positive numbers, one a class")
    if vector.ndim != 1:
        raise ValueError(
            f"`{name}` must be a 1-D vector of positive numbers, one a class. "
            f"Received: {name}={values!r} of shape {vector.shape}"
        )
    if length is not None and len(vector) != length:
        raise ValueError(
            f"`{name}` must have one number for each of the {length} classes. "
            f"Received: {len(vector)} numbers"
        )
    if len(vector) < 2:
        raise ValueError(
            f"`{name}` must have at least 2 classes (for one logit an example there are the "
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
    return vector / vector.sum()


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


def check_mixes(priors, target_priors, binary):
    """Returns both mixes as probabilities with the classes on the last axis."""
    priors = check_rates("priors", priors) if binary else check_mix("priors", priors)
    if target_priors is None:
        return priors, np.full_like(priors, 1.0 / priors.shape[-1])
    return priors, check_target(target_priors, priors, binary)


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


def plain(vector):
    """Returns a vector as the plain floats that JSON keeps; `None` and names stay."""
    if vector is None or isinstance(vector, str):
        return vector
    return np.asarray(getattr(vector, "priors", vector), dtype="float64").tolist()


def _as_array(name, values, expected):
    try:
        return np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={values!r}") from error
