"""Calibrated probabilities: their temperature, and the class mix of data without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, layers, losses, metrics, reading, targets, validation
from keras_balanced.decisions import Decision
from keras_balanced.losses import TEMPERATURES
from keras_balanced.validation import (
    SMALLEST_PRIOR,
    check_class_priors,
    check_finite,
    check_integer,
    check_number,
    is_number,
    show,
    some,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["Calibration", "calibrate", "estimate_priors"]


class Calibration(NamedTuple):
    """A temperature and how well it calibrates, as `calibrate` returns them.

    Attributes:
        temperature: The temperature, for a `Decision`, an export or `loss.posterior`.
        before: Dict of the `negative_log_likelihood` (nats) and the `class_calibration_error` at
            temperature 1, each class weighted to its share in the mix that the loss trains for.
        after: The same at the temperature found.
        probabilities: Dict of `"before"` and `"after"` to the probabilities `(N, K)`, under the
            class mix of the held-out data.
        labels: The labels `(N,)` of these, as `plots.reliability_diagram` takes them.

    Example:

    >>> from keras_balanced import GLALoss
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(10.0)])
    >>> x = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]], "float32")
    >>> y = np.array([0, 1, 1, 1, 1, 0])  # right in four of six, sure of all
    >>> calibration = calibrate(model, GLALoss([1, 1]), (x, y))
    >>> for errors in (calibration.before, calibration.after):
    ...     print(f"{errors['negative_log_likelihood']:.1f}")
    3.8
    0.7
    """

    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    probabilities: dict[str, np.ndarray]
    labels: np.ndarray


def calibrate(
    model: keras.Model,
    loss: BalancedLoss | None,
    validation_data: Any,
    steps: int | None = None,
) -> Calibration:
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
        A `Calibration`, a named tuple of the `temperature`; the dicts `before` and `after` of the
        `negative_log_likelihood` and `class_calibration_error` with these weights; and
        `probabilities` and `labels` for `plots.reliability_diagram`.

    Raises:
        ValueError: for data that do not fit, NaN or infinite logits and weights, or data that have
            no best temperature in `[0.01, 100)`: where every example is classified right, or the
            labels have nothing to do with the predictions.
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
    _scipy()  # Raises before the model predicts.
    loss = check_loss(model, loss)
    check_model(model, loss)
    # A model of plain cross-entropy, calibrated by a loss of ours, has no decision yet.
    if losses.has_posterior(loss) and isinstance(getattr(model, "loss", None), losses.BalancedLoss):
        metrics.warn_of_other_decisions(model, Decision(loss), given=False)
    target = loss.surrogate.target_priors
    log_posterior, labels, weights = _held_out(model, loss, validation_data, steps)
    mix = np.bincount(labels, weights, minlength=len(target)) / weights.sum()
    weights = weights * (target / np.where(mix > 0, mix, 1.0))[labels]
    temperature = _best_temperature(log_posterior, labels, weights)
    errors, probabilities = {}, {}
    for name, value in (("before", 1.0), ("after", temperature)):
        p = np.exp(_log_probabilities(log_posterior, value))
        calibration_error = metrics.ClassCalibrationError(len(target))
        calibration_error.update_state(labels, p, weights)
        errors[name] = {
            "negative_log_likelihood": _mean_loss(log_posterior, labels, weights, value),
            "class_calibration_error": float(calibration_error.result()),
        }
        moved = p * np.divide(mix, target, where=target > 0, out=np.zeros_like(mix))
        probabilities[name] = moved / moved.sum(axis=-1, keepdims=True)
    return Calibration(temperature, **errors, probabilities=probabilities, labels=labels)


def _log_probabilities(log_posterior, temperature):
    _, special = _scipy()
    return special.log_softmax(log_posterior / temperature, axis=-1)


def _mean_loss(log_posterior, labels, weights, temperature):
    """Returns the weighted mean of the negative log-likelihood at a temperature."""
    log_p = _log_probabilities(log_posterior, temperature)[np.arange(len(labels)), labels]
    return float(-np.average(log_p, weights=weights))


def _best_temperature(log_posterior, labels, weights):
    """Returns the temperature of the least negative log-likelihood, and raises if there is none."""
    optimize, _ = _scipy()

    def negative_log_likelihood(temperature):
        return _mean_loss(log_posterior, labels, weights, temperature)

    best = optimize.minimize_scalar(
        lambda log_temperature: negative_log_likelihood(np.exp(log_temperature)),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if best.fun >= min(map(negative_log_likelihood, TEMPERATURES)):
        raise ValueError(_no_temperature(log_posterior, labels, negative_log_likelihood))
    return float(np.exp(best.x))


def _scipy():
    try:
        from scipy import optimize, special
    except ImportError as error:
        raise ImportError(
            'Calibration needs SciPy: pip install "keras-balanced[serving]"'
        ) from error
    return optimize, special


def _no_temperature(log_posterior, labels, negative_log_likelihood):
    """Returns why no temperature in the range is the best."""
    expected = "`validation_data` must have a best temperature"
    low, high = TEMPERATURES
    kinds = "examples that the model gets wrong, and more that it gets right"
    received = f"{expected}: {kinds}. Received: {len(labels)} examples, "
    # The negative log-likelihood is convex in 1 / T: beyond the range it falls towards the best
    # temperature, if there is one.
    if negative_log_likelihood(low) < negative_log_likelihood(high):
        if (log_posterior.argmax(axis=-1) == labels).all():
            return f"{received}all right"
        limit, kind = low, "too unsure"
    elif negative_log_likelihood(1e3 * high) < negative_log_likelihood(1e4 * high):
        limit, kind = high, "too sure"
    else:
        return f"{received}no more often right than by chance"
    factor = max(limit, 1.0 / limit)
    return (
        f"{expected} in [{low:g}, {high:g}). Received: one beyond {limit:g}: the logits of the "
        f"model are more than {factor:g} times {kind}. Divide them by a number before `loss`, for "
        "instance in a `keras.layers.Rescaling` at its end"
    )


def estimate_priors(
    probabilities: ArrayLike,
    training_priors: ClassMix,
    *,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    max_iterations: int = 10_000,
    tolerance: float = 1e-6,
) -> np.ndarray | float:
    """Estimates the class mix of unlabelled data from a model's probabilities on it.

    Maximises the likelihood of the data over the class mix by expectation maximisation. Only the
    mix may have changed: the examples of each class still look as they did. And the probabilities
    must be calibrated for `training_priors`: where they are slightly too unsure (a temperature of
    1.1 to 1.5), the likeliest mix can be far off, with about 0 for classes that occur, and the data
    do not show it. So give `validation`: where the likeliest mix of those data, as they
    are or weighted to the estimate, is not that of their labels, the estimate comes from their
    confusion matrix instead, which takes the probabilities as they are.

    Formula:

    ```
    ratio[i, k]  = probabilities[i, k] / training_priors[k]
    gain[k]      = mean over i of ratio[i, k] / sum_j priors[j] ratio[i, j]
    priors[k]   <- priors[k] * gain[k]       # until max(gain) - 1 <= tolerance
    ```

    Each iteration takes two such steps and extrapolates them where that is likelier. No mix has a
    mean log-likelihood, in nats, that is better by more than `tolerance`.

    By the confusion matrix of `validation`, where a likelihood-ratio test of level 1% refuses the
    mix of its labels:

    ```
    confusion[j, k] = mean of probabilities[i, j] over the examples of class k in `validation`
    priors          = argmin |confusion @ priors - mean over i of probabilities[i]|, priors >= 0
    ```

    Args:
        probabilities: Posterior of each example under `training_priors`, `(N, K)`, for instance
            `loss.posterior(logits, priors=training_priors)`, or what the signature
            `with_priors` of an exported model answers. Of one logit `(N,)` or `(N, 1)`, the
            probability of label 1.
        training_priors: Class mix in which these probabilities hold: `K` counts or probabilities,
            a dict or pandas Series of them by class id, or an adapted `ClassPrior`. Of one logit
            also the positive rate.
        validation: Held-out examples of every class: `(probabilities, labels)`, the first as
            above, and integer or one-hot labels.
        max_iterations: Number of iterations after which to give up.
        tolerance: Positive number, in nats per example.

    Returns:
        The class mix, `(K,)` float64, which sums to 1, or of one logit the positive rate, a float.
        A class that seems absent has about 0, but no less than what `priors` may be.

    Raises:
        ValueError: for invalid probabilities, or ones that do not tell the classes apart.
        RuntimeError: if the steps do not converge.
        ImportError: where SciPy is missing, with `validation`.

    Example:

    >>> import numpy as np
    >>> probabilities = np.array([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 70)
    >>> print(estimate_priors(probabilities, training_priors=[0.5, 0.5]).round(3))
    [0.25 0.75]

    References:
        - [Saerens et al., 2002](https://doi.org/10.1162/089976602753284446)
        - [Varadhan and Roland, 2008](https://doi.org/10.1111/j.1467-9469.2007.00585.x) (SQUAREM)
        - [Lipton et al., 2018](https://arxiv.org/abs/1802.03916) (by the confusion matrix)
        - [Alexandari et al., 2020](https://arxiv.org/abs/1901.06852) (why to calibrate first)
    """
    is_rate = is_number(training_priors)
    # A class that never occurs has 0 here, and in all probabilities.
    priors = check_class_priors("training_priors", training_priors, is_rate, zeros=True)
    limits = (
        check_integer("max_iterations", max_iterations, low=1),
        check_number("tolerance", tolerance, low=0.0),
    )
    probabilities, one_logit = _posterior_of("probabilities", probabilities, priors)
    mix = _likeliest_mix(probabilities, priors, *limits)
    if validation is not None:
        held_out, labels = _labelled_posterior(validation, priors)
        own = np.bincount(labels, minlength=len(priors)) / len(labels)
        # By symmetry, wrong probabilities may be right about a uniform mix, and about no other.
        if any(_misses(there, held_out, labels, priors, *limits) for there in (own, mix)):
            mix = _mix_by_confusion(probabilities, held_out, labels, priors)
    mix = np.maximum(mix, np.where(priors > 0, SMALLEST_PRIOR, 0.0))
    # Where all examples are positive the rate is the largest float below 1.
    return float(min(mix[1], np.nextafter(1, 0))) if one_logit or is_rate else mix


def _posterior_of(name, probabilities, priors):
    """Returns probabilities as `(N, K)`, and whether they came as those of one logit."""
    probabilities = np.asarray(targets.as_numpy(f"`{name}`", probabilities), dtype="float64")
    one_logit = probabilities.ndim == 1 or probabilities.shape[1:] == (1,)
    if one_logit and len(priors) == 2:
        positive = probabilities.reshape(-1)
        probabilities = np.stack([1.0 - positive, positive], axis=-1)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(priors) or not len(probabilities):
        raise ValueError(
            f"`{name}` must be (N, {len(priors)}), one number for each class of "
            f"`training_priors`. Received: probabilities of shape {probabilities.shape}"
        )
    check_finite(f"`{name}`", probabilities)
    sums = probabilities.sum(axis=-1)
    if not ((probabilities >= 0).all() and np.allclose(sums, 1.0, atol=1e-3)):
        raise ValueError(
            f"`{name}` must be non-negative and sum to 1 for each example (logits go "
            f"through `loss.posterior`). Received: sums from {sums.min():.4g} to {sums.max():.4g}, "
            f"smallest value {probabilities.min():.4g}"
        )
    if (probabilities[:, priors == 0] > 0).any():
        raise ValueError(
            f"`{name}` must be 0 for a class whose training prior is 0. Received: others "
            f"for the class ids {some(np.flatnonzero(priors == 0))}"
        )
    # Columns that depend on each other leave the likelihood flat: any mix of them is as good. A
    # class that is 0 everywhere is known to be absent.
    seen = probabilities[:, probabilities.any(axis=0)]
    seen = seen / np.linalg.norm(seen, axis=0)
    if np.linalg.matrix_rank(seen.T @ seen, hermitian=True) < seen.shape[1]:
        raise ValueError(
            f"`{name}` must tell the classes apart: at least as many different examples as "
            f"classes. Received: {len(probabilities)} examples for {seen.shape[1]} classes, in "
            "which the classes' probabilities depend on each other"
        )
    return probabilities, one_logit


def _labelled_posterior(validation, priors):
    """Returns the probabilities `(N, K)` and the class ids `(N,)` of held-out examples."""
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise ValueError(
            "`validation` must be `(probabilities, labels)`. Received: "
            f"validation={show(validation)}"
        )
    held_out, _ = _posterior_of("validation", validation[0], priors)
    labels = targets.class_ids("validation", validation[1], len(priors))
    counts = np.bincount(labels, minlength=len(priors))
    if len(labels) != len(held_out) or ((counts > 0) != (priors > 0)).any():
        missing = np.flatnonzero((counts > 0) != (priors > 0))
        raise ValueError(
            "`validation` must have as many labels as probabilities, of every class that occurs, "
            f"and of no other. Received: {len(labels)} labels for {len(held_out)} examples, "
            f"and labels that do not fit for the class ids {some(missing)}"
        )
    return held_out, labels


def _likeliest_mix(probabilities, priors, max_iterations, tolerance, *, weights=None):
    """Returns the class mix of the greatest likelihood; `weights` of the examples sum to 1."""
    ratios = probabilities / np.where(priors > 0, priors, 1.0)
    weights = np.full(len(ratios), 1.0 / len(ratios)) if weights is None else weights

    def look_at(priors):
        """Returns the gain of each class, and the mean log-likelihood."""
        totals = ratios @ priors
        return (weights / totals) @ ratios, weights @ np.log(totals)

    longest, (gain, likelihood) = 1.0, look_at(priors)
    for _ in range(max_iterations):
        if gain.max() - 1.0 <= tolerance:
            return priors / priors.sum()
        # Two steps of expectation maximisation, extrapolated (SQUAREM).
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


def _misses(mix, probabilities, labels, priors, *limits):
    """Returns whether the likelihood of examples, weighted to a mix, prefers another one to it.

    Twice the logarithm of the ratio is distributed as chi-squared where the probabilities are
    right. The level is 1%; weighted examples count as their effective number.
    """
    _, special = _scipy()
    occurs = priors > 0
    weights = (mix / np.where(occurs, np.bincount(labels, minlength=len(priors)), 1.0))[labels]
    weights = weights / weights.sum()
    found = _likeliest_mix(probabilities, priors, *limits, weights=weights)
    seen = weights > 0
    ratios = (probabilities / np.where(occurs, priors, 1.0))[seen][:, occurs]
    with np.errstate(divide="ignore"):  # Where the labels are impossible.
        gained = np.log(ratios @ found[occurs]) - np.log(ratios @ mix[occurs])
    gained = weights[seen] @ gained / np.square(weights).sum()
    return 2.0 * gained > special.chdtri(occurs.sum() - 1, 0.01)


def _mix_by_confusion(probabilities, held_out, labels, priors):
    """Returns the mix that explains the mean probabilities by those of each class held out."""
    optimize, _ = _scipy()
    classes = np.flatnonzero(priors)
    confusion = np.stack([held_out[labels == k].mean(axis=0) for k in classes], axis=1)
    mix, _ = optimize.nnls(confusion, probabilities.mean(axis=0))
    full = np.zeros(len(priors))
    full[classes] = mix / mix.sum()
    return full


def check_loss(model, loss, labels=False, expected="`loss` must be the loss"):
    """Returns the loss whose posterior the model predicts: with `labels` also one of several."""
    compiled = loss is None
    if compiled:
        loss = getattr(model, "loss", None)
    if not isinstance(loss, losses.BalancedLoss):
        raise ValueError(
            f"{expected} of keras_balanced that the model was trained with, or "
            "None if the model is compiled with it (for plain cross-entropy "
            f"`GLALoss(priors, tau=0)`). Received: {'the compiled ' if compiled else ''}"
            f"loss={validation.show(loss)}"
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
            f"Received: model={validation.show(model)}"
        )
    if len(model.outputs) != 1:
        raise ValueError(
            f"`model` must have one output, the logits. Received: {len(model.outputs)} outputs"
        )
    if loss.from_logits:
        backends.refuse_probability_layer(model)
    layers.refuse_adjusted_twice(model, loss)
    if not loss.surrogate.binary or loss.surrogate.num_labels:
        targets.check_classes(model.outputs[0], len(loss.surrogate.priors))


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
    results = [labelled(loss, *part) for part in parts]
    logits, labels, weights, kept = (np.concatenate(part) for part in zip(*results, strict=True))
    if not len(labels):
        raise ValueError("`validation_data` must have labelled examples. Received: none")
    places = np.flatnonzero(kept)
    bad = ~np.isfinite(weights) | (weights < 0)
    expected = "The weights of `validation_data` must be finite and not negative"
    validation.refuse_examples(bad, expected, places, len(kept))
    # A logit of -inf masks a class, which must not be that of the label.
    finite = np.isfinite(logits) if loss.surrogate.binary else logits < np.inf
    log_posterior = ops.convert_to_numpy(loss.log_posterior(ops.convert_to_tensor(logits)))
    log_posterior = log_posterior.astype("float64")
    of_labels = log_posterior[np.arange(len(labels)), labels]
    bad = ~finite.reshape(len(labels), -1).all(axis=1) | ~(of_labels > -1e8)
    expected = "The model's logits for `validation_data` must be finite"
    validation.refuse_examples(bad, expected, places, len(kept))
    return log_posterior, labels, weights


def labelled(loss, y_pred, y_true, weights=None, of="`validation_data`"):
    """Returns the logits, labels and weights of the labelled positions of a batch, and which."""
    num_classes = len(loss.surrogate.priors)
    logits = loss.logits(y_pred)
    y_true = targets.as_tensor("y_true", y_true)
    if loss.surrogate.binary:
        y_true, logits = targets.match_binary(y_true, logits)
        shape, sparse = tuple(logits.shape), True
    else:
        y_true, sparse = targets.match_shapes(y_true, logits, num_classes)
        shape = tuple(logits.shape[:-1])
    weights = np.ones(()) if weights is None else targets.as_numpy("Weights", weights)
    weights = targets.match_weights(weights, shape).reshape(-1)
    y_true = ops.convert_to_numpy(y_true)
    if not sparse:
        targets.refuse_ignored(y_true, loss.ignore_class)
        one_hot = np.isin(y_true, (0, 1)).all(axis=-1) & (y_true.sum(axis=-1) == 1)
        if not one_hot[weights.reshape(shape) > 0].all():
            raise ValueError(
                f"The labels of {of} must be integers or one-hot. Received: soft targets"
            )
        y_true = y_true.argmax(axis=-1)
    labels = y_true.reshape(-1)
    # A label of weight 0 may be anything.
    kept = weights != 0
    if loss.ignore_class is not None:
        kept &= ~targets.is_ignored(labels, loss.ignore_class)
    occurs = loss.surrogate.occurs
    bad = np.unique(labels[kept & ~np.isin(labels, np.flatnonzero(occurs))])
    if bad.size:
        raise ValueError(
            f"The labels of {of} must be integers in {targets.range_of(occurs)}. "
            f"Received: {bad[:10].tolist()}. Padding is the loss's `ignore_class`, or has weight 0"
        )
    logits = ops.convert_to_numpy(logits).reshape(len(labels), *logits.shape[len(shape) :])[kept]
    return logits, labels[kept].astype("int64"), weights[kept].astype("float64"), kept
