"""The theorems of docs/method.md by numbers, and the numbers that stand there."""

import keras
import numpy as np
import pytest
from processes import ROOT
from scipy import optimize, special

from keras_balanced import BalancedLoss, GCALoss, GLALoss, Surrogate

METHOD = (ROOT / "docs" / "method.md").read_text()


def risk(z, eta, loss):
    """Returns the expected loss of logits, and its gradient `u P - u`, in float64."""
    q, margins = loss.surrogate.q, loss.surrogate.margins
    log_p = special.log_softmax(z / margins[:, None] + loss.surrogate.shift, axis=-1)
    log_s = np.diag(log_p)
    psi = -log_s if q == 0 else -np.expm1(q * log_s) / q
    u = eta * loss.surrogate.weights * np.exp(q * log_s) / margins
    return eta @ (loss.surrogate.weights * psi), u @ np.exp(log_p) - u


def stationary(eta, loss, scale=1.0, seed=0):
    """Returns the best logits that are found from a few starts."""
    rng = np.random.default_rng(seed)
    starts = rng.normal(0, scale, (4, len(eta)))
    options = {"gtol": 1e-11, "maxiter": 5000}
    found = [
        optimize.minimize(risk, z, (eta, loss), jac=True, method="BFGS", options=options)
        for z in starts
    ]
    best = min(found, key=lambda result: result.fun).x
    return best - best.mean()


def problems(num_classes, count, seed=0):
    rng = np.random.default_rng(seed)
    eta, priors = rng.dirichlet(np.ones(num_classes), (2, count))
    return 0.96 * eta + 0.04 / num_classes, 0.96 * priors + 0.04 / num_classes


LOSSES = {
    "GLA": lambda p: GLALoss(p, q=0.6),
    "GLA, tau = 1": lambda p: GLALoss(p, q=0.6, tau=1.0),
    "weights": lambda p: GCALoss(p, q=0.6, margins=None),
    "GCA": lambda p: GCALoss(p),
    "all at once": lambda p: BalancedLoss(
        Surrogate(p, shift=np.sqrt(p), margins=0.8 + p, weights=1 + p, q=0.1)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_posterior_of_a_stationary_point(name):
    for eta, priors in zip(*problems(4, 5), strict=True):
        loss = LOSSES[name](priors)
        z = stationary(eta, loss)
        assert np.abs(risk(z, eta, loss)[1]).max() < 1e-6
        posterior = loss.posterior(z[None].astype("float32"), priors=priors)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(posterior)[0], eta, rtol=2e-3)


def test_posterior_without_margins():
    """In closed form: in the training mix with the weights, in the target mix without them."""
    rng = np.random.default_rng(0)
    priors, z = rng.dirichlet(np.ones(5)), rng.normal(size=5)
    for q in (0.0, 0.4):
        for loss in GLALoss(priors, q=q), GCALoss(priors, q=q, margins=None):
            surrogate = loss.surrogate
            in_training = (1 - q) * (z + surrogate.shift) - np.log(surrogate.weights)
            for given, expected in ((priors, in_training), (None, (1 - q) * z)):
                posterior = loss.posterior(z[None].astype("float32"), priors=given)
                np.testing.assert_allclose(
                    keras.ops.convert_to_numpy(posterior)[0], special.softmax(expected), rtol=1e-5
                )


@pytest.mark.parametrize("consistent", [False, True])
def test_there_is_a_minimum_below_the_ratio_of_the_margins(consistent):
    rng = np.random.default_rng(1)
    for eta, priors in zip(*problems(3, 5, seed=1), strict=True):
        margins = GCALoss(priors).surrogate.margins
        q = 0.5 * margins.min() / margins.max()
        loss = GCALoss(priors, q=q, consistent=consistent)
        z = stationary(eta, loss)
        least = risk(z, eta, loss)[0]
        # Nowhere on a ray to infinity it is less, and the lowest logit is pulled up there.
        for direction in rng.normal(size=(20, 3)):
            far = 60 * (direction - direction.max()) / np.ptp(direction)
            value, slope = risk(far, eta, loss)
            assert value > least
            assert slope[far.argmin()] < 0


def test_two_classes_decide_right_by_the_logits():
    """At every stationary point the larger logit is that of the larger score, up to the limit."""
    rng = np.random.default_rng(2)

    def log_ratio_of_scores(z, q, first, second):
        """Returns `log(e_0 / e_1)` of the scores `eta t / p` for which `z` is stationary."""
        log_s, log_other = special.log_expit(z / first), special.log_expit(-z / first)
        log_t, log_rest = special.log_expit(-z / second), special.log_expit(z / second)
        return q * log_t + log_rest - q * log_s - log_other

    margins = np.exp(rng.normal(0, 1, (2, 100_000)))
    z = rng.normal(0, 3, 100_000) * margins.max(axis=0)
    limit = margins.min(axis=0) / margins.max(axis=0)
    within = log_ratio_of_scores(z, rng.random(100_000) * limit, *margins)
    assert (np.sign(within) == np.sign(z)).all()
    beyond = log_ratio_of_scores(z, np.minimum(2 * limit, 0.99), *margins)
    assert (np.sign(beyond) != np.sign(z)).mean() > 0.1
    # The formula is that of the loss.
    loss = GCALoss([0.2, 0.8], q=0.2, consistent=True)
    eta = np.array([0.25, 0.75])
    z = stationary(eta, loss)
    ratio = log_ratio_of_scores(z[0] - z[1], 0.2, *loss.surrogate.margins)
    assert ratio == pytest.approx(np.log(eta[0] / 0.2) - np.log(eta[1] / 0.8), abs=1e-5)


def test_counterexamples():
    # Of two classes, with the default margins: by the logits wrong, unless `consistent`.
    priors, eta = np.array([0.1, 0.9]), np.array([0.16, 0.84])
    assert (eta / priors).argmax() == 0
    for consistent in (False, True):
        z = stationary(eta, GCALoss(priors, consistent=consistent))
        assert f"({z[0]:.3f}, {z[1]:.3f})" in METHOD
        assert z.argmax() == (0 if consistent else 1)
    # Of three classes, with `consistent` and q > 0.
    priors, eta = np.array([0.03, 0.06, 0.91]), np.array([0.032, 0.032, 0.936])
    scores = eta / priors / (eta / priors).sum()
    loss = GCALoss(priors, q=0.3, consistent=True)
    z = stationary(eta, loss, scale=0.5)
    assert scores.argmax() == 0
    assert z.argmax() == 2
    for values in (scores, z):
        assert "({})".format(", ".join(f"{value:.3f}" for value in values)) in METHOD
    assert loss.surrogate.q < loss.surrogate.margins.min() / loss.surrogate.margins.max()
    posterior = keras.ops.convert_to_numpy(loss.posterior(z[None].astype("float32")))
    np.testing.assert_allclose(posterior[0], scores, rtol=1e-3)


def test_theorems_have_proofs():
    section = METHOD[METHOD.index("## What can be proved") :].split("\n## ")[0]
    theorems = section.split("\n### ")[1:]
    assert len(theorems) >= 6
    assert all("*Proof.*" in text or "*Checked by numbers" in text for text in theorems)
