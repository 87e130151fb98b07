"""From logits to probabilities: minimise the population risk, and get eta back."""

import consistency
import keras
import numpy as np
import oracle
import pytest
from keras import ops

from keras_balanced import (
    BinaryGCALoss,
    BinaryGLALoss,
    GCALoss,
    GLALoss,
    LogitAdjustment,
    functional,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no float64 unless it is switched on"
)


def problem(num_classes, rng):
    eta, priors, target = rng.dirichlet(2.0 * np.ones(num_classes), 3) + 0.02
    return eta / eta.sum(), priors / priors.sum(), target / target.sum()


LOSSES = {
    "gla": lambda p, t, q: GLALoss(p, q=q, tau=None, target_priors=t, dtype="float64"),
    "gla tau": lambda p, t, q: GLALoss(p, q=q, tau=0.7, target_priors=t, dtype="float64"),
    "weighted": lambda p, t, q: GCALoss(
        p, q=q, margins=None, consistent=False, target_priors=t, dtype="float64"
    ),
    "gca": lambda p, t, q: GCALoss(
        p, q=q, margins="cube_root", consistent=False, target_priors=t, dtype="float64"
    ),
    "gca consistent": lambda p, t, q: GCALoss(
        p, q=q, margins="cube_root", consistent=True, target_priors=t, dtype="float64"
    ),
}


@pytest.mark.parametrize("num_classes", range(2, 7))
@pytest.mark.parametrize("q", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("name", LOSSES)
def test_posterior_of_the_minimiser_is_eta(name, q, num_classes, rng):
    attained = 0
    for _ in range(3):
        eta, priors, target = problem(num_classes, rng)
        loss = LOSSES[name](priors, target, q)
        z, is_minimum = consistency.minimise(eta, loss.surrogate, rng, starts=2)
        if not is_minimum:
            assert q > 0
            assert loss.surrogate.margins is not None
            continue
        attained += 1
        z = ops.convert_to_tensor(z, dtype="float64")
        for wanted, mix in [(None, target), (priors, priors), (np.ones(num_classes), 1.0)]:
            expected = eta * mix / priors
            np.testing.assert_allclose(
                ops.convert_to_numpy(loss.posterior(z, target_priors=wanted)),
                expected / expected.sum(),
                atol=2e-5,
            )
    assert attained or q > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("q", [0.0, 0.3])
def test_risk_of_the_benchmark_is_that_of_the_loss(name, q, rng):
    eta, priors, target = problem(4, rng)
    loss = LOSSES[name](priors, target, q)
    z = rng.normal(size=4)
    by_class = ops.convert_to_numpy(loss.call(np.arange(4), np.tile(z, (4, 1))))
    risk, gradient = consistency.conditional_risk(z, eta, loss.surrogate)
    assert risk == pytest.approx(eta @ by_class, rel=1e-12)
    for k in range(4):
        step = 1e-6 * np.eye(4)[k]
        up, _ = consistency.conditional_risk(z + step, eta, loss.surrogate)
        down, _ = consistency.conditional_risk(z - step, eta, loss.surrogate)
        assert gradient[k] == pytest.approx((up - down) / 2e-6, abs=1e-7)


def test_margins_with_large_q_have_no_minimum(rng):
    """Two classes, once q rho_i > rho_j: the risk can fall all the way to infinity."""
    for q, is_minimum in [(0.0, True), (0.2, True), (0.6, False), (0.9, False)]:
        loss = GCALoss([0.5, 0.5], q, [1.0, 3.0], consistent=True, dtype="float64")
        _, attained = consistency.minimise(np.array([0.4, 0.6]), loss.surrogate, rng)
        assert attained == is_minimum, q


def test_consistent_weights_mend_the_counterexample():
    logits = consistency.counterexample()
    assert logits[False].argmax() == 0
    assert logits[True].argmax() == 1


@pytest.mark.parametrize(
    ("name", "q", "always"),
    [
        ("logit-adjusted", 0.0, True),
        ("GLA", 0.6, True),
        ("class-weighted", 0.6, True),
        ("GCA, consistent", 0.0, True),
        ("cross-entropy", 0.0, False),
        ("GLA, tau = 1", 0.6, False),
    ],
)
def test_consistent_losses_decide_as_bayes(name, q, always):
    row = consistency.measure(consistency.LOSSES[name][0], q, problems=15)
    assert (row["argmax of logits"] == 100) == always
    assert row["argmax of posterior"] == 100


def test_posterior_at_large_logits_is_a_distribution(rng):
    z = 1e4 * rng.choice([-1.0, 0.0, 1.0], (64, 10))
    for loss in (GLALoss(np.arange(1, 11), q=0.3), GCALoss(np.arange(1, 11), q=0.3)):
        probabilities = ops.convert_to_numpy(loss.posterior(z.astype("float32")))
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)


def test_stationary_distribution_equals_that_by_linear_algebra(rng):
    p = rng.dirichlet(0.1 * np.ones(30), (20, 30))
    log_p = np.log(np.maximum(p, 1e-30))
    u = np.exp(ops.convert_to_numpy(functional._log_stationary(ops.convert_to_tensor(log_p))))
    for u_i, p_i in zip(u, p, strict=True):
        system = np.vstack([p_i.T - np.eye(30), np.ones(30)])
        expected = np.linalg.lstsq(system, np.r_[np.zeros(30), 1.0], rcond=None)[0]
        np.testing.assert_allclose(u_i / u_i.sum(), expected, atol=1e-5)


def stationary(p):
    """The left eigenvector of a row-stochastic matrix, exact to each entry.

    It subtracts nothing (Grassmann, Taksar and Heyman, 1985), so that a small entry is as right as
    a large one; solving the linear system would lose what is below 1e-16.
    """
    p = p.astype("float64").copy()
    for n in range(len(p) - 1, 0, -1):
        p[:n, n] /= p[n, :n].sum()
        p[:n, :n] += p[:n, [n]] * p[[n], :n]
    u = np.ones(len(p))
    for n in range(1, len(p)):
        u[n] = u[:n] @ p[:n, n]
    return u / u.sum()


@pytest.mark.parametrize(
    ("margins", "z"),
    [
        ("cube_root", [0.0, 5.0, 28.0, 30.0, -10.0, -35.0]),
        # All but gone, and from the last two rows slow to go: the large entries have long settled.
        ([1.0, 1.0, 30.0, 20.0], [2.8, 2.75, 0.0, -0.5]),
    ],
)
def test_small_entries_of_the_posterior_are_right_too(margins, z, rng):
    """Each relative to itself: another mix can make any of them the largest."""
    z = np.array(z) + rng.normal(0, 0.02, (3, len(z)))
    priors = np.array([0.3, 0.25, 0.2, 0.15, 0.07, 0.03])[: z.shape[1]]
    priors /= priors.sum()
    loss = GCALoss(priors, margins=margins, consistent=False, dtype="float64")
    posterior = ops.convert_to_numpy(loss.posterior(ops.convert_to_tensor(z, dtype="float64")))
    rho = np.cbrt(1 / priors) if margins == "cube_root" else np.array(margins)
    rho /= rho.mean()
    for ours, logits in zip(posterior, z, strict=True):
        p = np.exp(oracle.log_softmax(logits / rho[:, None]))
        # `u = eta w / rho` is stationary, and `eta w` is the posterior in the target mix.
        expected = stationary(p) * rho
        expected /= expected.sum()
        assert expected.min() < 1e-11
        np.testing.assert_allclose(ours, expected, rtol=1e-3)


@pytest.mark.parametrize("q", [0.0, 0.3])
@pytest.mark.parametrize("margins", [None, [1.0, 1.5]])
def test_binary_posterior_is_that_of_two_logits(q, margins, rng):
    z = rng.normal(size=(5, 1))
    pair = np.concatenate([np.zeros((5, 1)), z], axis=-1)
    for binary, multi in [
        (BinaryGLALoss(0.1, q=q), GLALoss([0.9, 0.1], q=q)),
        (BinaryGCALoss(0.1, q=q, margins=margins), GCALoss([0.9, 0.1], q=q, margins=margins)),
    ]:
        np.testing.assert_allclose(
            ops.convert_to_numpy(binary.posterior(z, target_priors=0.3))[:, 0],
            ops.convert_to_numpy(multi.posterior(pair, target_priors=[0.7, 0.3]))[:, 1],
            rtol=1e-6,
        )


def test_binary_posterior_of_labels_is_that_of_each(rng):
    z = rng.normal(size=(5, 3)).astype("float32")
    rates = [0.1, 0.5, 0.02]
    together = ops.convert_to_numpy(BinaryGCALoss(rates, q=0.2).posterior(z))
    for label, rate in enumerate(rates):
        alone = BinaryGCALoss(rate, q=0.2).posterior(z[:, label])
        np.testing.assert_allclose(together[:, label], ops.convert_to_numpy(alone), rtol=1e-5)


def test_posterior_of_probabilities_is_that_of_their_logits(rng):
    z = rng.normal(size=(5, 3)).astype("float32")
    expected = GCALoss([6, 3, 1]).posterior(z)
    probabilities = ops.softmax(ops.convert_to_tensor(z))
    ours = GCALoss([6, 3, 1], from_logits=False).posterior(ops.convert_to_numpy(probabilities))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), ops.convert_to_numpy(expected), rtol=1e-4
    )


def test_logit_adjustment_turns_cross_entropy_into_the_target_decision(rng):
    eta, priors, target = problem(5, rng)
    layer = LogitAdjustment(priors, target_priors=target, dtype="float64")
    logits = ops.convert_to_tensor(np.log(eta)[None], dtype="float64")
    adjusted = ops.convert_to_numpy(ops.softmax(layer(logits)))[0]
    expected = eta * target / priors
    np.testing.assert_allclose(adjusted, expected / expected.sum(), rtol=1e-6)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer(logits, training=True)), ops.convert_to_numpy(logits)
    )


@pytest.mark.parametrize(
    ("loss", "logits", "target", "message"),
    [
        (GLALoss([1, 2]), np.zeros((1, 3)), None, "last axis of `y_pred` must have the 2"),
        (GLALoss([1, 2]), np.zeros((1, 2)), [1, 2, 3], "`target_priors` must have one number"),
        (BinaryGLALoss(0.1), np.zeros((1, 1)), 1.5, "`target_priors` must be the positive rate"),
        (BinaryGLALoss(0.1), np.zeros((1, 1)), [0.1, 0.2], "must be one positive rate, or one"),
    ],
)
def test_bad_arguments(loss, logits, target, message):
    with pytest.raises(ValueError, match=message):
        loss.posterior(logits, target)
