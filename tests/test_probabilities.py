"""Scores of probabilities under changed mixes: the truth scores best, by the mix that holds."""

import keras
import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

from benchmarks import probabilities
from benchmarks.methods import METHODS
from keras_balanced import GLALoss
from keras_balanced.metrics import ClassCalibrationError

COUNTS = np.array([4000, 400, 40])


def test_scores_of_probabilities(rng):
    y = np.repeat([0, 1], [30, 10])
    p = rng.dirichlet([1, 1], 40)
    for weights in (np.ones(40), (1 / np.bincount(y))[y]):
        metric = ClassCalibrationError(2)
        metric.update_state(y, p.astype("float32"), weights.astype("float32"))
        error = probabilities.calibration_error(y, p, weights)
        assert error == pytest.approx(float(metric.result()), abs=1e-5)
        expected = sklearn_metrics.log_loss(y, p, sample_weight=weights)
        assert probabilities.log_loss(y, p, weights) == pytest.approx(expected)
    assert probabilities.log_loss(
        np.array([1]), np.array([[1.0, 0.0]]), np.ones(1)
    ) == pytest.approx(-np.log(probabilities.SMALLEST))


def problem(rng, n=6000):
    """Returns labels of equally frequent classes, and logits of their true probabilities."""
    y = np.repeat([0, 1, 2], n // 3)
    x = 1.5 * rng.normal(size=(n, 3))
    x[np.arange(n), y] += 2.25
    # Of unit normals times 1.5, 2.25 apart: log p(x | y) is x_y and what all classes share.
    return y, x.astype("float32")


@pytest.mark.parametrize("tau", [0, 1])
def test_true_probabilities_are_right_in_every_mix(tau, rng):
    y, x = problem(rng)
    logits = x + (1 - tau) * np.log(COUNTS / COUNTS.sum()).astype("float32")
    loss = GLALoss(COUNTS, 0.0, tau)
    found = probabilities.score(loss, logits, y, COUNTS, COUNTS, lambda labels: labels, seed=0)
    assert list(found["before"]) == list(probabilities.POWERS)
    for by_mix in found["before"].values():
        assert by_mix["known"]["calibration_error"] < 0.03
        assert by_mix["estimated"]["distance"] < 0.06
        assert by_mix["estimated"]["log_loss"] < by_mix["known"]["log_loss"] + 0.02
    for power in (0.0, -1.0):  # Far from the mix of training.
        by_mix = found["before"][power]
        assert by_mix["known"]["calibration_error"] < 2 * by_mix["floor"] + 0.005
        assert by_mix["training"]["log_loss"] > by_mix["known"]["log_loss"] + 0.1
        assert by_mix["training"]["calibration_error"] > 0.1
    assert found["temperature"] == pytest.approx(1.0, abs=0.3)


def test_calibration_mends_what_a_temperature_spoiled(rng):
    y, x = problem(rng)
    found = probabilities.score(
        GLALoss(COUNTS), 3 * x, y, COUNTS, COUNTS, lambda labels: labels, seed=0
    )
    assert found["temperature"] == pytest.approx(3.0, rel=0.3)
    for power in probabilities.POWERS:
        before, after = (found[name][power]["known"] for name in ("before", "after"))
        assert after["log_loss"] < before["log_loss"]
        assert after["calibration_error"] < before["calibration_error"]
        # Right probabilities would be far better than those that are too sure.
        assert 0 < found["before"][power]["floor"] < before["calibration_error"] / 2


def test_the_half_to_calibrate_on_is_as_held_out_data(rng, monkeypatch):
    """In the mix of training, with its wrong labels, and of other images."""
    y, x = problem(rng)
    seen = {}

    def calibrate(model, loss, batches):
        ((logits, labels),) = batches
        seen["calibrated on"] = logits, labels
        return real_calibrate(model, loss, batches)

    def under_mixes(loss, logits, labels, *rest):
        seen["tested"] = logits, labels
        return real_under_mixes(loss, logits, labels, *rest)

    def noisy(labels):
        return np.where(np.arange(len(labels)) % 4 == 0, (labels + 1) % 3, labels)

    real_calibrate = probabilities.calibration.calibrate
    real_under_mixes = probabilities.under_mixes
    monkeypatch.setattr(probabilities.calibration, "calibrate", calibrate)
    monkeypatch.setattr(probabilities, "under_mixes", under_mixes)
    counts = [3000, 600, 60]  # As they seem by wrong labels.
    found = probabilities.score(GLALoss(counts), x, y, counts, COUNTS, noisy, seed=0)
    assert np.bincount(seen["tested"][1]).tolist() == [1000] * 3
    truth = {z.tobytes(): k for z, k in zip(x, y, strict=True)}
    rows = {name: [z.tobytes() for z in logits] for name, (logits, _) in seen.items()}
    assert not set(rows["tested"]) & set(rows["calibrated on"])
    assert [truth[z] for z in rows["tested"]] == seen["tested"][1].tolist()
    true = np.array([truth[z] for z in rows["calibrated on"]])
    assert np.bincount(true).tolist() == [1000, 100, 10]
    np.testing.assert_array_equal(seen["calibrated on"][1], noisy(true))
    assert found["temperature"] > 1.5  # By such labels the model looks too sure.


def test_mixes_are_those_of_the_true_counts(rng):
    y, x = problem(rng)
    counts = np.array([3000, 900, 540])  # Some wrong labels.
    seen = []

    class Loss(GLALoss):
        def posterior(self, logits, *, priors=None, **kwargs):
            seen.append(np.asarray(priors))
            return super().posterior(logits, priors=priors, **kwargs)

    probabilities.score(Loss(counts), x, y, counts, COUNTS, lambda labels: labels, seed=0)
    seen = {tuple(np.round(mix, 6)) for mix in seen}
    for power in probabilities.POWERS:
        mix = COUNTS**power / (COUNTS**power).sum()
        assert tuple(np.round(mix, 6)) in seen
    assert tuple(np.round(counts / counts.sum(), 6)) in seen


def test_labels_drawn_from_probabilities(rng):
    p = rng.dirichlet([1, 2, 3], 5)
    labels = probabilities.drawn_from(np.repeat(p, 20000, axis=0), rng).reshape(5, 20000)
    found = [np.bincount(of, minlength=3) / 20000 for of in labels]
    np.testing.assert_allclose(found, p, atol=0.015)
    assert probabilities.drawn_from(np.array([[0.5, 0.5 - 1e-9]] * 50), rng).max() == 1


def test_logits_stay_exact_under_a_mixed_policy():
    policy = keras.config.dtype_policy()
    probabilities.identity.cache_clear()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        logits = np.array([[7.123456, -0.333333, 12.98765]], "float32")
        found = probabilities.identity(3).predict(logits, verbose=0)
    finally:
        keras.config.set_dtype_policy(policy)
        probabilities.identity.cache_clear()
    np.testing.assert_array_equal(found, logits)


def test_resampled_to_a_mix(rng):
    y = np.repeat([0, 1, 2], [50, 40, 30])
    rows = probabilities.resample(y, np.array([0.1, 0.3, 0.6]), rng)
    assert np.bincount(y[rows]).tolist() == [5, 15, 30]
    assert len(set(rows)) == 50
    rows = probabilities.resample(y, np.array([0.999, 0.0005, 0.0005]), rng)
    assert np.bincount(y[rows]).tolist() == [50, 1, 1]


@pytest.mark.parametrize("name", ["focal", "ldam_drw", "vs", "gca", "gla_q0.7_tau1"])
def test_every_loss_has_scores(name, rng):
    y, x = problem(rng, 300)
    x /= 10  # LDAM takes cosines.
    method = METHODS[name]
    loss = (method.then or method.loss)(COUNTS)
    found = probabilities.score(loss, x, y, COUNTS, COUNTS, lambda labels: labels, seed=0)
    # `calibrate` takes ours alone.
    assert ("after" in found) == (found["temperature"] is not None) == (name != "focal")
    p = probabilities.posterior(loss, x, np.full(3, 1 / 3))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    if name == "focal":
        return
    hot = probabilities.posterior(loss, x, np.full(3, 1 / 3), 2.0)
    np.testing.assert_allclose(hot, special.softmax(np.log(p) / 2, axis=-1), atol=1e-4)
