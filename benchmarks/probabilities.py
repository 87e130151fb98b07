"""Are the probabilities right, and do they stay so when the class mix changes?

Log loss (nats) and class-wise calibration error of a loss's posterior, as the model is and after
`calibrate`, in the mixes `n ** power` of the true training counts `n`: with a power of 1 as in
training, 0 with classes equally frequent, -1 with the tail as the head. Each test image has the
weight of its class in the mix. The posterior is given that mix, or the one estimated from images
alone, or still the one of the training labels.
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
    options = (
        {"priors": mix} if temperature is None else {"priors": mix, "temperature": temperature}
    )
    parts = [
        keras.ops.convert_to_numpy(loss.posterior(logits[i : i + 1000], **options))
        for i in range(0, len(logits), 1000)
    ]
    return np.concatenate(parts).astype("float64")


@functools.cache
def identity(num_classes):
    """A model whose output is its input, to hand logits to `calibrate`."""
    return keras.Sequential([keras.Input((num_classes,)), keras.layers.Identity(dtype="float32")])


def resample(y, mix, rng):
    """Returns as many examples of `y` as there are in the mix, at least one of each class."""
    of_class = [rng.permutation(np.flatnonzero(y == k)) for k in range(len(mix))]
    scale = min(len(of) / share for of, share in zip(of_class, mix, strict=True))
    counts = np.maximum(np.round(scale * mix), 1).astype("int64")
    return np.concatenate([of[:n] for of, n in zip(of_class, counts, strict=True)])


def drawn_from(p, rng):
    """Returns a label of each row of probabilities, drawn from them."""
    below = np.cumsum(p, axis=-1) < rng.random((len(p), 1))
    return np.minimum(below.sum(axis=-1), p.shape[1] - 1)


def scores(y, p, weights):
    found = {
        "log_loss": log_loss(y, p, weights),
        "calibration_error": calibration_error(y, p, weights),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def under_mixes(loss, logits, y, counts, true_counts, temperature, rng):
    """Returns, for each power, the scores by each mix that the posterior is given.

    `floor` is the calibration error that right probabilities would have on as many images. No
    mix is estimated where the expectation maximisation does not converge.
    """
    share, training = np.bincount(y) / len(y), counts / counts.sum()
    of_training = posterior(loss, logits, training, temperature)
    by_chance = drawn_from(posterior(loss, logits, share, temperature), rng)
    found = {}
    for power in POWERS:
        wanted = true_counts**power / (true_counts**power).sum()
        rows, ratio = resample(y, wanted, rng), wanted / share
        known = posterior(loss, logits, wanted, temperature)
        found[power] = {
            "known": scores(y, known, ratio[y]),
            "training": scores(y, of_training, ratio[y]),
            "floor": round(float(calibration_error(by_chance, known, ratio[by_chance])), 5),
        }
        try:
            mix = calibration.estimate_priors(of_training[rows], training)
        except (ValueError, RuntimeError):
            continue
        estimated = scores(y, posterior(loss, logits, mix, temperature), ratio[y])
        distance = np.abs(mix - np.bincount(y[rows]) / len(rows)).sum() / 2
        found[power]["estimated"] = estimated | {"distance": round(float(distance), 5)}
    return found


def fitted_temperature(loss, logits, y):
    """Returns what `calibrate` finds; `None` for a loss that it does not take."""
    if not isinstance(loss, BalancedLoss):
        return None
    held_out = [(logits, y)]  # A batch: without the costs of `predict`.
    try:
        return calibration.calibrate(identity(logits.shape[1]), loss, held_out).temperature
    except ValueError:  # All of them right, or right by chance: no temperature is best.
        return 1.0


def score(loss, logits, y, counts, true_counts, noisy, seed):
    """Returns the scores of one half of the test set before and after calibration on the other.

    The half to calibrate on is as a user's held-out data: in the mix `true_counts` of the training
    data, with labels as wrong as theirs, `noisy(y)`. `counts` are those that the loss knows.
    """
    counts, true_counts = np.asarray(counts, "float64"), np.asarray(true_counts, "float64")
    rng = np.random.default_rng([seed, 2])
    tested = np.zeros(len(y), bool)
    for k in range(len(counts)):
        rows = rng.permutation(np.flatnonzero(y == k))
        tested[rows[: len(rows) // 2]] = True
    rest = np.flatnonzero(~tested)
    rest = rest[resample(y[rest], true_counts / true_counts.sum(), rng)]
    temperature = fitted_temperature(loss, logits[rest], noisy(y[rest]))
    data = (loss, logits[tested], y[tested], counts, true_counts)
    found = {"temperature": temperature, "before": under_mixes(*data, None, rng)}
    if temperature is not None:
        found["after"] = under_mixes(*data, temperature, rng)
    return found
