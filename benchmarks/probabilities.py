"""Are the probabilities right, and do they stay so when the class mix changes?

Log loss (nats) and class-wise calibration error of a loss's posterior, as the model is and after
`calibrate`, on test sets resampled to the mixes `n ** power` of the training counts `n`: with a
power of 1 as in training, 0 with classes equally frequent, -1 with the tail as the head. The mix is
known, or estimated from the images alone, or taken for that of the training data.
"""

import functools

import keras
import numpy as np

from keras_balanced import BalancedLoss, calibration

POWERS = (1.0, 0.5, 0.0, -0.5, -1.0)
SMALLEST = 1e-6  # Probability in a log loss.


def log_loss(y, p, weights=None):
    return -np.average(np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST)), weights=weights)


def calibration_error(y, p, weights=None, num_bins=15):
    """Returns what `ClassCalibrationError` does, for small arrays faster."""
    weights = np.ones(len(y)) if weights is None else weights
    bins = np.minimum((p * num_bins).astype("int64"), num_bins - 1)
    num_classes = p.shape[1]
    gaps = weights[:, None] * (p - np.eye(num_classes)[y])
    cells = (bins + num_bins * np.arange(num_classes)).ravel()
    return np.abs(np.bincount(cells, gaps.ravel())).sum() / (num_classes * weights.sum())


def posterior(loss, logits, mix, temperature=None):
    """Returns the probabilities under a mix, float64; a loss of others may have no temperature."""
    options = () if temperature is None else (temperature,)
    parts = [
        keras.ops.convert_to_numpy(loss.posterior(logits[i : i + 1000], mix, *options))
        for i in range(0, len(logits), 1000)
    ]
    return np.concatenate(parts).astype("float64")


@functools.cache
def identity(num_classes):
    """A model whose output is its input, to hand logits to `calibrate`."""
    return keras.Sequential([keras.Input((num_classes,)), keras.layers.Identity()])


def resample(y, mix, rng):
    """Returns as many examples of `y` as there are in the mix, at least one of each class."""
    of_class = [rng.permutation(np.flatnonzero(y == k)) for k in range(len(mix))]
    scale = min(len(of) / share for of, share in zip(of_class, mix, strict=True))
    counts = np.maximum(np.round(scale * mix), 1).astype("int64")
    return np.concatenate([of[:n] for of, n in zip(of_class, counts, strict=True)])


def estimated_mix(loss, logits, training, temperature):
    try:
        return calibration.estimate_target_priors(
            posterior(loss, logits, training, temperature), training
        )
    except (ValueError, RuntimeError):  # Too few images, or probabilities all alike.
        return None


def scores(y, p):
    found = {"log_loss": log_loss(y, p), "calibration_error": calibration_error(y, p)}
    return {name: round(float(value), 5) for name, value in found.items()}


def under_mixes(loss, logits, y, counts, temperature, rng):
    """Returns, for each power, the scores by each mix that the posterior is given."""
    counts = np.asarray(counts, "float64")
    found = {}
    for power in POWERS:
        wanted = counts**power / (counts**power).sum()
        rows = resample(y, wanted, rng)
        given = {"known": np.bincount(y[rows]) / len(rows), "training": counts / counts.sum()}
        estimated = estimated_mix(loss, logits[rows], given["training"], temperature)
        if estimated is not None:
            given["estimated"] = estimated
        found[power] = {
            name: scores(y[rows], posterior(loss, logits[rows], mix, temperature))
            for name, mix in given.items()
        }
        if estimated is not None:
            distance = float(np.abs(estimated - given["known"]).sum() / 2)
            found[power]["estimated"]["distance"] = round(distance, 5)
    return found


def fitted_temperature(loss, logits, y):
    """Returns what `calibrate` finds; `None` for the losses that it does not take."""
    if not isinstance(loss, BalancedLoss):
        return None
    try:
        model = identity(logits.shape[1])
        return calibration.calibrate(model, loss, [(logits, y)]).temperature
    except ValueError:  # All of them right: there is no best temperature.
        return None


def score(loss, logits, y, counts, true_counts, noisy, seed):
    """Returns the scores of one half of the test set before and after calibration on the other.

    The half to calibrate on is as a user's held-out data: in the mix `true_counts` of the training
    data, with labels as wrong as theirs, `noisy(y)`. `counts` are those that the loss knows.
    """
    rng = np.random.default_rng([seed, 2])
    tested = np.zeros(len(y), bool)
    for k in range(len(counts)):
        rows = rng.permutation(np.flatnonzero(y == k))
        tested[rows[: len(rows) // 2]] = True
    rest = np.flatnonzero(~tested)
    rest = rest[resample(y[rest], np.asarray(true_counts, "float64"), rng)]
    temperature = fitted_temperature(loss, logits[rest], noisy(y[rest]))
    found = {"temperature": temperature}
    for name, at in (("before", None), ("after", temperature)):
        if name == "before" or at is not None:
            # The same images, before and after.
            images = np.random.default_rng([seed, 3])
            found[name] = under_mixes(loss, logits[tested], y[tested], counts, at, images)
    return found
