"""Errors are short, with the cause first and the likely intention named."""

import keras
import numpy as np
import pytest
from keras import ops
from matplotlib import pyplot

import keras_balanced as kb
from keras_balanced import callbacks, datasets, metrics, models, plots, serving

MOST = 600
LABELS = np.arange(28_000) % 2
HUGE = {
    "labels": LABELS,
    "a list": LABELS.tolist(),
    "numbers": np.linspace(-5.0, 5.0, 5000),
    "a matrix": np.random.default_rng(0).normal(size=(500, 40)),
    "text": ["a long name of a class"] * 5000,
    "one text": "x" * 5000,
    "a dict": {f"name {i}": i for i in range(5000)},
    "ids": {2 * i: float(i) for i in range(5000)},
    "nan": np.full(3000, np.nan),
    "an object": object(),
    "a number": -(10.0**30) / 3,
}
DATA = (np.zeros((4, 3), "float32"), np.array([0, 1, 2, 0]))
CALLS = {
    "GLALoss": (kb.GLALoss, {"priors": [1, 2]}, "q tau target_priors label_smoothing"),
    "GCALoss": (kb.GCALoss, {"priors": [1, 2]}, "margins"),
    "BinaryGLALoss": (kb.BinaryGLALoss, {"priors": 0.1}, "target_priors"),
    "BinaryGCALoss": (kb.BinaryGCALoss, {"priors": [0.1, 0.2]}, "margins target_priors"),
    "Surrogate": (kb.Surrogate, {"priors": [1, 2]}, "shift margins weights"),
    "BalancedLoss": (kb.BalancedLoss, {"surrogate": kb.Surrogate([1, 2])}, "ignore_class"),
    "ClassPrior": (kb.ClassPrior, {"num_classes": 3}, "smoothing output_mode counts"),
    "LogitAdjustment": (kb.LogitAdjustment, {"priors": [1, 2]}, "target_priors tau"),
    "BalancedAccuracy": (kb.BalancedAccuracy, {"num_classes": 3}, "ignore_class"),
    "ClassRecall": (kb.ClassRecall, {"num_classes": 3}, "class_id"),
    "ShotRecall": (kb.ShotRecall, {"counts": [200, 5], "group": "few"}, "thresholds"),
    "BinaryBalancedAccuracy": (kb.BinaryBalancedAccuracy, {}, "label_id num_labels"),
    "ClassCalibrationError": (kb.ClassCalibrationError, {"num_classes": 3}, "num_bins"),
    "shot_groups": (metrics.shot_groups, {"counts": [1, 2]}, ""),
    "PerClassReport": (
        callbacks.PerClassReport,
        {"validation_data": DATA},
        "class_names num_classes_shown",
    ),
    "find_threshold": (
        serving.find_threshold,
        {"probabilities": [0.1, 0.9], "labels": [0, 1], "min_precision": 0.5},
        "max_alert_rate sample_weight",
    ),
    "estimate_priors": (
        serving.estimate_priors,
        {"probabilities": np.eye(2), "training_priors": [1, 1]},
        "validation max_iterations tolerance",
    ),
    "long_tail": (datasets.long_tail, {"x": np.zeros((9, 1)), "y": np.arange(9) % 3}, ""),
    "load": (datasets.load, {"name": "digits"}, "imbalance_ratio validation_split profile"),
    "resnet": (models.resnet, {"input_shape": (8, 8, 1), "num_classes": 2}, "depth"),
    "confusion_matrix": (
        plots.confusion_matrix,
        {"labels": [0, 1], "predicted": [0, 1]},
        "class_names",
    ),
    "reliability_diagram": (
        plots.reliability_diagram,
        {"probabilities": [0.1, 0.9], "labels": [0, 1]},
        "",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_argument_makes_a_long_error(name):
    function, given, others = CALLS[name]
    refused = 0
    for argument in (*given, *others.split()):
        for kind, value in HUGE.items():
            text = ""
            try:
                function(**{**given, argument: value})
            except (ValueError, TypeError) as error:
                text = str(error)
            assert "unexpected keyword" not in text
            pyplot.close("all")
            assert len(text) <= MOST, (argument, kind, text[:1000])
            refused += bool(text)
    assert refused > len(given)


def test_labels_as_a_rate_or_a_mix():
    with pytest.raises(ValueError, match=r"28000 numbers .* look like labels. .* `y.mean\(\)`\?"):
        kb.BinaryGLALoss(LABELS)
    with pytest.raises(ValueError, match=r"Did you mean `y.mean\(axis=0\)`\?"):
        kb.BinaryGLALoss(np.eye(2)[LABELS])
    for loss in (kb.GLALoss, kb.GCALoss):
        with pytest.raises(ValueError, match=r"28000 numbers that look like labels. Did you mean"):
            loss(LABELS)


def test_swapped_arguments_of_a_threshold(rng):
    p = rng.random(100)
    y = (p > 0.5).astype(int)
    for budget in ({"max_alert_rate": 0.2}, {"min_precision": 0.5}):
        with pytest.raises(ValueError, match=r"Did you mean `find_threshold\(probabilities, lab"):
            serving.find_threshold(y, p, **budget)
    for bad in (np.nan, np.inf):
        spoiled = p.copy()
        spoiled[[7, 9]] = bad
        with pytest.raises(ValueError, match=r"finite. Received: 2 of 100 .* places \[7, 9\]"):
            serving.find_threshold(spoiled, y, max_alert_rate=0.5)
        with pytest.raises(ValueError, match=r"`sample_weight` must be finite. Received: 2 of 100"):
            serving.find_threshold(p, y, max_alert_rate=0.5, sample_weight=spoiled)


@pytest.mark.parametrize("function", [kb.gla_loss, kb.gca_loss])
def test_priors_that_a_graph_computes_are_refused(function):
    z, y = np.zeros((2, 3), "float32"), np.array([0, 1])
    message = r"`priors` must be numbers that are known before .* the recipe \"Many items\""
    with pytest.raises(ValueError, match=message):
        function(y, z, keras.Input((3,)))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with pytest.raises(ValueError, match=message):
            tf.function(lambda p: function(y, z, p), autograph=False)(tf.ones(3))
    if keras.backend.backend() == "jax":
        import jax

        with pytest.raises(ValueError, match=message):
            jax.jit(lambda p: function(y, z, p))(np.ones(3))
    ours = function(y, z, ops.convert_to_tensor([1.0, 2.0, 3.0]))  # It has a value.
    expected = function(y, z, [1, 2, 3])
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (ours, expected)))


def test_an_in_batch_softmax_has_the_shift_of_gla_and_log_q_takes_it_away(rng, gradient):
    """The derivation of the recipe "Many items", for a batch of exactly `n_j` items `j`."""
    counts = np.array([5, 3, 1, 1])
    items, first = np.repeat(np.arange(4), counts), np.cumsum(counts) - counts
    log_q = np.log(counts / counts.sum()).astype("float32")
    z, y = rng.normal(size=(6, 4)).astype("float32"), rng.integers(0, 4, 6)
    ones = np.ones(len(items))

    def in_batch(z, correction):
        return kb.gla_loss(first[y], ops.take(z - correction, items, axis=-1), ones)

    for correction, tau in ((0.0, 1.0), (log_q, 0.0)):
        # But for a constant per item, which has no gradient.
        ours = ops.convert_to_numpy(in_batch(z, correction))
        expected = ops.convert_to_numpy(kb.gla_loss(y, z, counts, tau=tau))
        np.testing.assert_allclose(ours, expected + np.log(counts[y]), rtol=1e-5)
        slope = gradient(lambda z, correction=correction: in_batch(z, correction), z)
        expected = gradient(lambda z, tau=tau: kb.gla_loss(y, z, counts, tau=tau), z)
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


MASKED = np.ma.array([0.2, 0.3, 0.5], mask=[False, False, True])
OF_MASKED = {
    "priors": kb.GLALoss,
    "rates": kb.BinaryGLALoss,
    "target_priors": lambda values: kb.GCALoss([1, 2, 3], target_priors=values),
    "margins": lambda values: kb.GCALoss([1, 2, 3], margins=values),
    "weights": lambda values: kb.Surrogate([1, 2, 3], weights=values),
    "counts": lambda values: kb.ClassPrior(3, counts=values),
    "group": lambda values: kb.ShotRecall(values, "few"),
    "threshold": lambda values: kb.Decision(
        kb.BinaryGLALoss([0.1, 0.2, 0.3]), threshold=values, priors=[0.1, 0.2, 0.3]
    ),
    "costs": lambda values: kb.Decision(
        kb.GLALoss([1, 2, 3]), costs=np.ma.stack([values] * 3), priors=[1, 2, 3]
    ),
}


@pytest.mark.parametrize("name", OF_MASKED)
def test_masked_numbers_per_class_are_refused(name):
    with pytest.raises(ValueError, match=r"a masked array, with [13] values masked"):
        OF_MASKED[name](MASKED)
