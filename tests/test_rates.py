"""The study of the rates, against the oracle and what can be derived."""

import numpy as np
import oracle
import pytest
from scipy import special, stats

from benchmarks.questions import consistency, rates

PRIORS = (0.3, 1e-2, 1e-5)
OF_ORACLE = {
    "GLA": lambda y, z, p: oracle.gla(y, z, p),
    "GLA, q = 0.3": lambda y, z, p: oracle.gla(y, z, p, 0.3),
    "class weights": lambda y, z, p: oracle.gca(y, z, p, margins=None),
    "GCA, by posterior": lambda y, z, p: oracle.gca(y, z, p),
    "GCA, consistent": lambda y, z, p: oracle.gca(y, z, p, consistent=True),
}


@pytest.mark.parametrize("loss", rates.LOSSES)
@pytest.mark.parametrize("p", PRIORS)
def test_formulas(loss, p):
    surrogate, threshold = rates.of_prior(loss, p)
    z = np.linspace(-3, 3, 7)
    losses, slopes = rates.binary(z, surrogate)
    logits, step = np.stack([np.zeros(7), z], axis=-1), 1e-6 * np.array([0.0, 1.0])
    for label in (0, 1):
        y = np.full(7, label)

        def value(logits, y=y):
            return OF_ORACLE[loss](y, logits, [1 - p, p])

        np.testing.assert_allclose(losses[label], value(logits), rtol=1e-9, atol=1e-14)
        difference = (value(logits + step) - value(logits - step)) / 2e-6
        np.testing.assert_allclose(slopes[label], difference, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose((rates.posterior(z, surrogate) * slopes).sum(0), 0, atol=1e-10)
    # At the threshold the input's posterior is the prior.
    np.testing.assert_allclose(rates.posterior(threshold, surrogate), [1 - p, p], rtol=1e-9)


@pytest.mark.parametrize("loss", rates.LOSSES)
def test_package_computes_the_formulas(loss):
    assert rates.package(loss)["difference"] < 1e-12


@pytest.mark.parametrize("p", PRIORS)
def test_smallest_constant(p):
    gla, weights = rates.bound("GLA", p), rates.bound("class weights", p)
    kearns_saul = np.sqrt((1 - 2 * p) / np.log((1 - p) / p)) / (2 * p * (1 - p))
    assert gla["pointwise"] == pytest.approx(kearns_saul, rel=1e-4)
    assert gla["averaged"] == pytest.approx(1 / np.sqrt(2 * p * (1 - p)), rel=1e-3)
    assert weights["averaged"] == pytest.approx(np.sqrt(2), rel=1e-4)
    if p < 0.1:
        assert weights["pointwise"] == pytest.approx(1 / np.sqrt(2 * p * np.log(2)), rel=1e-4)


@pytest.mark.parametrize("loss", rates.LOSSES)
def test_no_average_is_worse_than_of_two_inputs(loss):
    p, rng, draws = 0.01, np.random.default_rng(0), 5000
    surrogate, threshold = rates.of_prior(loss, p)
    sides = []
    for sign in (-1, 1):  # Three inputs on each side of the threshold, some decided wrongly.
        z = threshold + sign * rng.lognormal(0, 1.5, (draws, 3))
        found = np.reshape(rates.regrets(z.ravel(), threshold, surrogate), (3, *z.shape))
        found[1:] *= rng.integers(0, 2, z.shape)
        sides.append((found * rng.dirichlet(np.ones(3), draws)).sum(axis=-1))
    (low, b_low, r_low), (high, b_high, r_high) = sides
    of_high = (p - low) / (high - low)
    b = (1 - of_high) * b_low + of_high * b_high
    r = (1 - of_high) * r_low + of_high * r_high
    ratio = b[r > 0] / np.sqrt(r[r > 0])
    assert 0.7 < ratio.max() / rates.bound(loss, p)["averaged"] < 1.001


@pytest.mark.parametrize("loss", rates.LOSSES)
def test_expected_loss(loss):
    kinds = rates.random_kinds(np.random.default_rng(1))
    surrogate, _ = rates.of_prior(loss, 0.02)
    theta = np.array([0.7, -1.1, 0.4])
    value, gradient = rates.expected_loss(theta, kinds, surrogate)
    numeric = [
        (rates.expected_loss(theta + row, kinds, surrogate)[0] - value) / 1e-6
        for row in 1e-6 * np.eye(3)
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4)
    rng = np.random.default_rng(0)
    x = [rates.draw(rng, kinds, label, 200_000, 2) for label in (0, 1)]
    means = [
        rates.of_label(label, of_class @ theta[:2] + theta[2], surrogate)[0].mean()
        for label, of_class in enumerate(x)
    ]
    assert value == pytest.approx(surrogate.priors @ means, rel=0.02)
    errors = [np.mean((x[0] @ theta[:2] + theta[2]) > 0), np.mean((x[1] @ theta[:2]) <= -theta[2])]
    expected = rates.balanced_error(theta[:2], theta[2], kinds)
    assert expected == pytest.approx(np.mean(errors), abs=0.005)


def test_models_that_can_be_right():
    kinds = rates.PROBLEMS["well specified"]
    best = special.ndtr(-1.0)
    assert rates.best_error(kinds) == pytest.approx(best, abs=1e-8)
    for loss in ("GLA", "class weights"):
        assert rates.fitted_errors(loss, 1e-3, kinds)[0] == pytest.approx(100 * best, abs=1e-4)


def test_gla_sees_the_mean_of_a_class_that_is_rare_enough():
    kinds = rates.PROBLEMS["two kinds"]
    error = rates.fitted_errors("GLA", 1e-8, kinds)[0]
    assert error == pytest.approx(100 * rates.limit_of_gla(kinds), abs=0.02)


@pytest.mark.parametrize("loss", [loss for loss in rates.LOSSES if "posterior" not in loss])
@pytest.mark.parametrize("width", [2, 5])
def test_a_box_keeps_the_order(loss, width):
    prior = 1e4 ** -np.linspace(0, 1, 10)
    surrogate = rates.LOSSES[loss](prior)
    for balanced in np.random.default_rng(2).dirichlet(np.ones(10), 5):
        z = rates.in_box(balanced, surrogate, width)
        eta = balanced * surrogate.priors / (balanced @ surrogate.priors)
        value, gradient = consistency.conditional_risk(z, eta, surrogate)
        assert (gradient * (np.abs(z) < width / 2) / eta).max() < 1e-5
        order = z[np.argsort(balanced)]
        assert np.diff(order).min() > -1e-5
        # Nothing nearby in the box is better.
        near = z + np.random.default_rng(0).normal(0, 0.1, (200, 10))
        near = np.clip(near, -width / 2, width / 2)
        others = [consistency.conditional_risk(row, eta, surrogate)[0] for row in near]
        assert min(others) >= value


def test_fits_to_samples():
    """The mean regret falls as 1 / n, as that of every regular estimate."""
    few, many = (
        rates.sample("GLA", 0.1, "well specified", 2, rare, 40)["excess"] for rare in (40, 400)
    )
    assert min(few + many) >= 0
    assert 5 < np.mean(few) / np.mean(many) < 20
    assert stats.sem(many) < stats.sem(few)
