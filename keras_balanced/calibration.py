"""Calibrated probabilities: their temperature, thresholds, and the mix of data without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, losses, metrics, reading, targets, validation
from keras_balanced.losses import TEMPERATURES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["calibrate", "estimate_target_priors", "find_threshold"]


class _Calibration(NamedTuple):
    temperature: float
    before: dict
    after: dict
    probabilities: dict
    labels: np.ndarray


def calibrate(
    model: keras.Model,
    loss: BalancedLoss | None,
    validation_data: Any,
    steps: int | None = None,
) -> _Calibration:
    """Fits the temperature of the posterior of a trained model on held-out data.

    The temperature minimises the negative log-likelihood, each class weighted to its share in
    the mix that the loss trains for: by default every class counts the same.

    Formula:

    ```
    weight[i]   = target_priors[y[i]] / fraction of class y[i] in the data
    temperature = argmin_T -sum_i weight[i] log softmax(log_posterior[i] / T)[y[i]]
    ```

    Args:
        model: Trained model with one output.
        loss: The loss that it was trained with; `None` is the compiled one.
        validation_data: Held-out data as in `fit`: arrays `(x, y)` or `(x, y, sample_weight)`, or
            batches of them (a `tf.data.Dataset`, `PyDataset`, PyTorch or grain loader, generator).
            Integer or one-hot labels.
        steps: How many batches to read, at most; needed where these have no end.

    Returns:
        A named tuple of the `temperature`, for `export`; the dicts `before` (at temperature 1)
        and `after` of the `negative_log_likelihood` (nats) and `class_calibration_error` with
        these weights; the dict `probabilities` of the two, `(N, K)` under the class mix of the
        held-out data, and their `labels` `(N,)`, for `plots.reliability_diagram`.

    Raises:
        ValueError: for data that do not fit, or that have no best temperature: where every
            example is classified right, or the labels have nothing to do with the predictions.
        ImportError: where SciPy is missing.

    Example:

    >>> import numpy as np
    >>> from keras_balanced import GLALoss
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(10.0)])
    >>> x = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]], "float32")
    >>> y = np.array([0, 1, 1, 1, 1, 0])  # right in four of six, sure of all
    >>> calibration = calibrate(model, GLALoss([1, 1]), (x, y))
    >>> print(f"{calibration.temperature:.1f}")
    19.6

    References:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    try:
        from scipy import optimize, special
    except ImportError as error:
        raise ImportError(
            'Calibration needs SciPy: pip install "keras-balanced[serving]"'
        ) from error

    loss = check_loss(model, loss)
    check_model(model, loss)
    target = loss.surrogate.target_priors
    log_posterior, labels, weights = _held_out(model, loss, validation_data, steps)
    mix = np.bincount(labels, weights, minlength=len(target)) / weights.sum()
    weights = weights * (target / np.where(mix > 0, mix, 1.0))[labels]

    def log_probabilities(temperature):
        return special.log_softmax(log_posterior / temperature, axis=-1)

    def negative_log_likelihood(temperature):
        log_p = log_probabilities(temperature)[np.arange(len(labels)), labels]
        return float(-np.average(log_p, weights=weights))

    best = optimize.minimize_scalar(
        lambda log_temperature: negative_log_likelihood(np.exp(log_temperature)),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    low, high = (negative_log_likelihood(temperature) for temperature in TEMPERATURES)
    if best.fun >= min(low, high):
        what = "all right" if low < high else "no more often right than by chance"
        raise ValueError(
            "`validation_data` must have a best temperature: examples that the model gets wrong, "
            f"and more that it gets right. Received: {len(labels)} examples, {what}"
        )
    temperatures = {"before": 1.0, "after": float(np.exp(best.x))}
    errors, probabilities = {}, {}
    for name, temperature in temperatures.items():
        p = np.exp(log_probabilities(temperature))
        calibration_error = metrics.ClassCalibrationError(len(target))
        calibration_error.update_state(labels, p, weights)
        errors[name] = {
            "negative_log_likelihood": negative_log_likelihood(temperature),
            "class_calibration_error": float(calibration_error.result()),
        }
        moved = p * np.divide(mix, target, where=target > 0, out=np.zeros_like(mix))
        probabilities[name] = moved / moved.sum(axis=-1, keepdims=True)
    return _Calibration(temperatures["after"], **errors, probabilities=probabilities, labels=labels)


def estimate_target_priors(
    probabilities: ArrayLike,
    training_priors: ClassMix,
    max_iterations: int = 10_000,
    tolerance: float = 1e-6,
) -> np.ndarray | float:
    """Estimates the class mix of unlabelled data from a model's probabilities on it.

    Maximises the likelihood of the data over the class mix by expectation maximisation. The
    probabilities must be calibrated for `training_priors`, and only the mix may have changed:
    the examples of each class still look as they did.

    Formula:

    ```
    ratio[i, k]  = probabilities[i, k] / training_priors[k]
    gain[k]      = mean over i of ratio[i, k] / sum_j priors[j] ratio[i, j]
    priors[k]   <- priors[k] * gain[k]       # until max(gain) - 1 <= tolerance
    ```

    Each iteration takes two such steps and extrapolates them where that is likelier.

    That bound is on the mean log-likelihood, in nats: no mix has a better one by more.

    Args:
        probabilities: Posterior of each example under `training_priors`, `(N, K)`, for instance
            `loss.posterior(logits, target_priors=training_priors)`, or what the signature
            `with_priors` of an exported model answers. Of one logit `(N,)` or `(N, 1)`, the
            probability of label 1.
        training_priors: Class mix in which these probabilities hold: `K` counts or probabilities,
            a dict or pandas Series of them by class id, or an adapted `ClassPrior`. Of one logit
            also the positive rate.
        max_iterations: Number of iterations after which to give up.
        tolerance: Positive number, in nats per example.

    Returns:
        The class mix, `(K,)` float64, which sums to 1, or of one logit the positive rate, a float.
        A class that seems absent has about 0, but no less than what `target_priors` of the losses
        and of `export` may be.

    Raises:
        ValueError: for invalid probabilities, or such that do not tell the classes apart.
        RuntimeError: if the steps do not converge.

    Example:

    >>> import numpy as np
    >>> probabilities = np.array([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 70)
    >>> print(estimate_target_priors(probabilities, training_priors=[0.5, 0.5]).round(3))
    [0.25 0.75]

    References:
        - [Saerens et al., 2002](https://doi.org/10.1162/089976602753284446)
        - [Varadhan and Roland, 2008](https://doi.org/10.1111/j.1467-9469.2007.00585.x) (SQUAREM)
    """
    probabilities = np.asarray(targets.as_numpy("`probabilities`", probabilities), dtype="float64")
    one_logit = probabilities.ndim == 1 or probabilities.shape[1:] == (1,)
    is_rate = validation.is_number(training_priors)
    # A class that never occurs has 0 here, and in all probabilities.
    priors = validation.check_class_priors("training_priors", training_priors, is_rate, zeros=True)
    if one_logit and len(priors) == 2:
        positive = probabilities.reshape(-1)
        probabilities = np.stack([1.0 - positive, positive], axis=-1)
    max_iterations = validation.check_integer("max_iterations", max_iterations, low=1)
    tolerance = validation.check_number("tolerance", tolerance, low=0.0)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(priors) or not len(probabilities):
        raise ValueError(
            f"`probabilities` must be (N, {len(priors)}), one number for each class of "
            f"`training_priors`. Received: probabilities of shape {probabilities.shape}"
        )
    sums = probabilities.sum(axis=-1)
    if not ((probabilities >= 0).all() and np.allclose(sums, 1.0, atol=1e-3)):
        raise ValueError(
            "`probabilities` must be non-negative and sum to 1 for each example (logits go "
            f"through `loss.posterior`). Received: sums from {sums.min():.4g} to {sums.max():.4g}, "
            f"smallest value {probabilities.min():.4g}"
        )
    if (probabilities[:, priors == 0] > 0).any():
        raise ValueError(
            "`probabilities` must be 0 for a class whose training prior is 0. Received: others "
            f"for the class ids {np.flatnonzero(priors == 0).tolist()}"
        )
    # Columns that depend on each other leave the likelihood flat: any mix of them is as good. A
    # class that is 0 everywhere is known to be absent.
    seen = probabilities[:, probabilities.any(axis=0)]
    seen = seen / np.linalg.norm(seen, axis=0)
    if np.linalg.matrix_rank(seen.T @ seen, hermitian=True) < seen.shape[1]:
        raise ValueError(
            "`probabilities` must tell the classes apart: at least as many different examples as "
            f"classes. Received: {len(probabilities)} examples for {seen.shape[1]} classes, in "
            "which the classes' probabilities depend on each other"
        )
    ratios = probabilities / np.where(priors > 0, priors, 1.0)
    least = np.where(priors > 0, validation.SMALLEST_PRIOR, 0.0)

    def look_at(priors):
        """Returns the gain of each class, and the mean log-likelihood."""
        totals = ratios @ priors
        return (1.0 / totals) @ ratios / len(ratios), np.log(totals).mean()

    longest, (gain, likelihood) = 1.0, look_at(priors)
    for _ in range(max_iterations):
        if gain.max() - 1.0 <= tolerance:
            mix = np.maximum(priors / priors.sum(), least)
            # The rate of what is all positive is the largest float below 1.
            return float(min(mix[1], np.nextafter(1, 0))) if one_logit or is_rate else mix
        # Two steps of expectation maximisation, and as far as they point to (SQUAREM).
        first = priors * gain
        second = first * look_at(first)[0]
        change, bend = first - priors, second - 2.0 * first + priors
        stride = float(np.linalg.norm(change) / (np.linalg.norm(bend) + 1e-300))
        stride = min(max(stride, 1.0), longest)
        longest = 4.0 * longest if stride == longest else longest
        far = priors + 2.0 * stride * change + stride**2 * bend
        far = np.where(far > 0, far, second)
        far = far / far.sum()
        gain, there = look_at(far)
        if there < likelihood:
            far, longest = second, max(longest / 4.0, 1.0)
            gain, there = look_at(far)
        priors, likelihood = far, there
    raise RuntimeError(
        f"The class mix did not converge in {max_iterations} steps: its mean log-likelihood may "
        f"still grow by {gain.max() - 1.0:.2g}. Raise `max_iterations` or `tolerance`."
    )


def find_threshold(
    probabilities: ArrayLike,
    labels: ArrayLike | None = None,
    max_alert_rate: float | None = None,
    min_precision: float | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Finds the threshold of one logit that keeps within a budget, on held-out data.

    Of all thresholds within the budget it is the lowest, which finds the most of label 1. It lies
    halfway between two probabilities of the data, so that rounding changes no decision. On new
    data of the same kind the number of alerts varies, as that of any rare event.

    Formula:

    ```
    alerts     = examples with probability > threshold
    alert rate = weight of alerts / weight of all                  <= max_alert_rate
    precision  = weight of alerts of label 1 / weight of alerts    >= min_precision
    ```

    What an error costs needs no data: where a missed positive costs `c` times a false alert, the
    threshold of right probabilities is `1 / (1 + c)`.

    Args:
        probabilities: Probability of label 1 of each example, `(N,)` or `(N, 1)`, or class
            probabilities `(N, 2)`: those by which the model will decide, under the class mix and
            the temperature of production. Of independent labels one column at a time.
        labels: Labels 0 and 1, `(N,)` or `(N, 1)`, or one-hot `(N, 2)`. For `min_precision`.
            Leave out examples whose label is not known.
        max_alert_rate: Number in `(0, 1]`: the largest fraction of the examples to be alerted of,
            as in `100 / examples_per_day`.
        min_precision: Number in `(0, 1]`: the smallest fraction of label 1 among the alerts.
        sample_weight: Weights `(N,)` that make the class mix of the data that of production. `None`
            is 1 for all.

    Returns:
        The threshold, a float, for `export` and `BinaryBalancedAccuracy`.

    Raises:
        ValueError: for bad arguments, or a budget that allows no alert at all.

    Example:

    >>> probabilities = [0.9, 0.8, 0.6, 0.4, 0.2]
    >>> print(find_threshold(probabilities, max_alert_rate=0.4))
    0.7
    >>> print(find_threshold(probabilities, labels=[1, 0, 1, 0, 0], min_precision=0.6))
    0.5
    """
    values = targets.as_numpy("`probabilities`", probabilities).astype("float64")
    shape = values.shape
    valid = ((values >= 0) & (values <= 1)).all()
    if not values.size or shape[1:] not in ((), (1,), (2,)) or not valid:
        raise ValueError(
            "`probabilities` must be those of label 1, `(N,)` or `(N, 1)`, or `(N, 2)` (logits go "
            "through `loss.posterior`; of labels pass one column). "
            f"Received: {'' if valid else 'other '}numbers of shape "
            f"{shape}"
        )
    if shape[1:] == (2,) and not np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        raise ValueError(
            "`probabilities` of shape (N, 2) must be those of two classes, and sum to 1. Received: "
            f"sums from {values.sum(axis=-1).min():.3g}; of labels pass one column, as in `p[:, 0]`"
        )
    values, number = values.reshape(shape[0], -1)[:, -1], shape[0]
    if max_alert_rate is None and min_precision is None:
        raise ValueError("Expected a budget, `max_alert_rate` or `min_precision`. Received: none")
    weights = np.ones(number) if sample_weight is None else sample_weight
    weights = targets.match_weights(targets.as_numpy("`sample_weight`", weights), (number,))
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(
            "`sample_weight` must be finite, not negative, and positive for some example. "
            f"Received: weights from {np.min(weights)} to {np.max(weights)}"
        )
    distinct, place = np.unique(-values, return_inverse=True)  # From the largest.
    alerts = np.cumsum(np.bincount(place, weights))
    allowed = np.ones(len(distinct), bool)
    if max_alert_rate is not None:
        _check_fraction("max_alert_rate", max_alert_rate)
        allowed &= alerts <= max_alert_rate * alerts[-1] * (1 + 1e-12)
    if min_precision is not None:
        _check_fraction("min_precision", min_precision)
        if labels is None:
            raise ValueError("`min_precision` needs `labels`. Received: labels=None")
        ids = targets.class_ids("labels", labels, 2)
        if len(ids) != number:
            raise ValueError(
                "`labels` must be as many as `probabilities`. "
                f"Received: {len(ids)} labels for {number} probabilities"
            )
        right = np.cumsum(np.bincount(place, weights * ids))
        allowed &= right >= min_precision * alerts * (1 - 1e-12)
    if not allowed.any():
        raise ValueError(
            "The budget must allow an alert. Received: "
            f"max_alert_rate={max_alert_rate} and min_precision={min_precision} for {number} "
            "examples, of which no threshold keeps it"
        )
    last = int(np.flatnonzero(allowed)[-1])
    least = -distinct[last]
    below = -distinct[last + 1] if last + 1 < len(distinct) else 0.0
    middle = (least + below) / 2
    # Between neighbours in float32 there is no middle: the lower one decides the same.
    return float(middle if np.float32(below) < np.float32(middle) < np.float32(least) else below)


def _check_fraction(name, value):
    if not 0 < validation.check_number(name, value) <= 1:
        raise ValueError(f"`{name}` must be in (0, 1]. Received: {name}={value!r}")


def check_loss(model, loss, labels=False):
    """Returns the loss whose posterior the model predicts: with `labels` also one of several."""
    compiled = loss is None
    if compiled:
        loss = getattr(model, "loss", None)
    if not isinstance(loss, losses.BalancedLoss):
        raise ValueError(
            "`loss` must be the loss of keras_balanced that the model was trained with, or "
            "None if the model is compiled with it (for plain cross-entropy "
            f"`GLALoss(priors, tau=0)`). Received: {'the compiled ' if compiled else ''}"
            f"loss={loss!r}"
        )
    if loss.surrogate.num_labels and not labels:
        raise ValueError(
            "`loss` must have one class per example. Received: a loss of "
            f"{loss.surrogate.num_labels} labels, of which an example can have several"
        )
    return loss


def check_model(model, loss):
    """Raises unless a model gives what the loss takes, as its only output."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            "`model` must be a built Functional or Sequential model: call it or fit it first, and "
            "wrap a subclassed one as `keras.Model(inputs, model(inputs))`. "
            f"Received: model={model!r}"
        )
    if len(model.outputs) != 1:
        raise ValueError(
            f"`model` must have one output, the logits. Received: {len(model.outputs)} outputs"
        )
    if loss.from_logits:
        backends.refuse_probability_layer(model)
    if not loss.surrogate.binary or loss.surrogate.num_labels:
        targets.check_classes(model.outputs[0], len(loss.surrogate.priors))
    elif model.outputs[0].shape[1:] not in ((), (1,)):
        raise ValueError(
            "`model` must have one logit per example for a binary loss. "
            f"Received: an output of shape {model.outputs[0].shape}"
        )


def only(outputs):
    """Returns the one output of a model, also out of a dict or list."""
    (output,) = keras.tree.flatten(outputs)
    return output


def _held_out(model, loss, data, steps):
    """Returns log-posterior `(N, K)`, labels `(N,)` and weights `(N,)` of held-out data."""
    arrays = isinstance(data, tuple)
    parts = []
    for x, y_true, weights in reading.read(data, steps):
        if arrays and not backends.gives_mask(model):
            y_pred = only(model.predict(x, verbose=0))
        else:
            # Not `predict`, which loses the mask; nor `predict_on_batch`, which under a strategy of
            # several replicas answers once for each.
            y_pred = only(model(keras.tree.map_structure(backends.own_tensor, x), training=False))
        if (mask := backends.get_mask(y_pred)) is not None:
            weights = ops.ones(mask.shape) if weights is None else weights
            weights = targets.match_weights(targets.as_numpy("Weights", weights), mask.shape)
            weights = weights * ops.convert_to_numpy(mask)
        parts.append((y_pred, y_true, weights))
    if not parts:
        raise ValueError("`validation_data` must have examples. Received: none")
    results = [_labelled(loss, *part) for part in parts]
    log_posterior, labels, weights = (np.concatenate(part) for part in zip(*results, strict=True))
    if not weights.sum() > 0:
        raise ValueError("`validation_data` must have labelled examples. Received: none")
    return log_posterior, labels, weights


def _labelled(loss, y_pred, y_true, weights=None):
    """Returns the log-posterior, labels and weights of the labelled positions of a batch."""
    num_classes = len(loss.surrogate.priors)
    logits = loss.logits(y_pred)
    y_true = targets.as_numpy("Labels", y_true)
    if loss.surrogate.binary:
        logits = ops.reshape(logits, (-1,))
        y_true, shape = np.reshape(y_true, logits.shape), tuple(logits.shape)
    else:
        shape = tuple(logits.shape[:-1])
    weights = np.ones(()) if weights is None else targets.as_numpy("Weights", weights)
    if loss.surrogate.binary and weights.ndim:
        weights = np.reshape(weights, shape)
    weights = targets.match_weights(weights, shape).reshape(-1)
    if not loss.surrogate.binary:
        y_true, sparse = targets.match_shapes(ops.convert_to_tensor(y_true), logits, num_classes)
        y_true = ops.convert_to_numpy(y_true)
        if not sparse:
            one_hot = np.isin(y_true, (0, 1)).all(axis=-1) & (y_true.sum(axis=-1) == 1)
            if not one_hot[weights.reshape(shape) > 0].all():
                raise ValueError(
                    "`validation_data` must have integer or one-hot labels. Received: soft targets"
                )
            y_true = y_true.argmax(axis=-1)
    labels = y_true.reshape(-1)
    # A label of weight 0 may be anything.
    kept = weights != 0
    if loss.ignore_class is not None:
        kept &= labels != loss.ignore_class
    occurs = loss.surrogate.occurs
    bad = np.unique(labels[kept & ~np.isin(labels, np.flatnonzero(occurs))])
    if bad.size:
        raise ValueError(
            f"The labels of `validation_data` must be integers in {targets.range_of(occurs)}. "
            f"Received: {bad[:10].tolist()}. Padding is the loss's `ignore_class`, or has weight 0"
        )
    logits = ops.convert_to_numpy(logits).reshape(len(labels), *logits.shape[len(shape) :])[kept]
    log_posterior = ops.convert_to_numpy(loss.log_posterior(ops.convert_to_tensor(logits)))
    log_posterior = log_posterior.astype("float64")
    return log_posterior, labels[kept].astype("int64"), weights[kept].astype("float64")
