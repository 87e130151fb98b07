"""Scores of probabilities under changed mixes: the truth scores best, by the mix that holds."""

import accuracy
import numpy as np
import probabilities
import pytest
from scipy import special
from sklearn import metrics as sklearn_metrics

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


def test_the_half_to_calibrate_on_is_as_held_out_data(rng):
    """In the mix of training, with its wrong labels, and of other images."""
    y, x = problem(rng)
    seen = []

    def noisy(labels):
        seen.append(labels)
        return rng.permutation(labels)

    found = probabilities.score(GLALoss(COUNTS), x, y, COUNTS, COUNTS, noisy, seed=0)
    (labels,) = seen
    assert np.bincount(labels).tolist() == [1000, 100, 10]
    # Such labels say nothing: the hottest temperature, or none that is best.
    assert found["temperature"] is None or found["temperature"] > 3


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
    method = accuracy.METHODS[name]
    loss = (method.then or method.loss)(COUNTS)
    found = probabilities.score(loss, x, y, COUNTS, COUNTS, lambda labels: labels, seed=0)
    assert ("after" in found) == (found["temperature"] is not None)
    assert name != "focal" or found["temperature"] is None  # `calibrate` takes ours alone.
    p = probabilities.posterior(loss, x, np.full(3, 1 / 3))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    if name == "focal":
        return
    hot = probabilities.posterior(loss, x, np.full(3, 1 / 3), 2.0)
    np.testing.assert_allclose(hot, special.softmax(np.log(p) / 2, axis=-1), atol=1e-4)
