"""From logits to probabilities: minimise the population risk, and get eta back."""

import keras
import numpy as np
import oracle
import pytest
from keras import ops

from benchmarks.questions import consistency
from keras_balanced import (
    BalancedLoss,
    BinaryGCALoss,
    BinaryGLALoss,
    GCALoss,
    GLALoss,
    LogitAdjustment,
    Surrogate,
    backends,
)
from keras_balanced.stationary import _of_levels
from keras_balanced.surrogates import gca_surrogate


@pytest.fixture(autouse=True)
def _float64():
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64():
        yield


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
                ops.convert_to_numpy(loss.posterior(z, priors=wanted)),
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
    assert consistency.counterexample(consistent=False).argmax() == 0
    assert consistency.counterexample(consistent=True).argmax() == 1


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
    row = consistency.measure(name, q, problems=15)
    assert (row["argmax of logits"] == 100) == always
    assert row["argmax of posterior"] == 100


def test_posterior_at_large_logits_is_a_distribution(rng):
    z = 1e4 * rng.choice([-1.0, 0.0, 1.0], (64, 10))
    for loss in (GLALoss(np.arange(1, 11), q=0.3), GCALoss(np.arange(1, 11), q=0.3)):
        probabilities = ops.convert_to_numpy(loss.posterior(z.astype("float32")))
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)


def test_the_oracles_stationary_distribution_is_that_of_linear_algebra(rng):
    margins, uniform = rng.uniform(0.5, 2.0, 12), np.full(12, 1 / 12)
    z = rng.normal(0, 3, (5, 12))
    ours = np.exp(oracle.log_posterior(z, uniform, margins, margins, uniform))
    for row, z_i in zip(ours, z, strict=True):
        p = np.exp(oracle.log_softmax(z_i / margins[:, None]))
        system = np.vstack([p.T - np.eye(12), np.ones(12)])
        expected = np.linalg.lstsq(system, np.r_[np.zeros(12), 1.0], rcond=None)[0]
        np.testing.assert_allclose(row, expected, rtol=1e-9)


@pytest.mark.parametrize("q", [0.0, 0.3])
@pytest.mark.parametrize(("num_classes", "ratio"), [(2, 10), (10, 1e4), (100, 100), (400, 1e4)])
def test_posterior_under_margins_is_exact(num_classes, ratio, q, rng):
    loss = GCALoss(ratio ** -np.linspace(0, 1, num_classes), q=q)
    # The oracle takes seconds for a row of many classes.
    scales = np.repeat([1.0, 5.0, 30.0, 200.0], 6 if num_classes < 400 else 1)[:, None]
    z = (scales * rng.normal(size=(len(scales), num_classes))).astype("float32")
    ours = ops.convert_to_numpy(loss.log_posterior(ops.convert_to_tensor(z)))
    constants = loss.surrogate
    expected = oracle.log_posterior(
        z, constants.priors, constants.margins, constants.weights, constants.target_priors, q
    )
    counts = expected > np.log(1e-12)
    assert counts.any(axis=-1).all()
    np.testing.assert_allclose(np.exp(ours[counts] - expected[counts]), 1.0, rtol=2e-4)
    first, second = np.sort(expected)[:, [-1, -2]].T
    clear = first - second > 2e-4
    np.testing.assert_array_equal(ours.argmax(-1)[clear], expected.argmax(-1)[clear])


def test_posterior_of_margins_of_ones_own_and_a_shift(rng):
    """Each as it is given, in any order of the classes; a shift moves the logits of every row."""
    margins, shift = rng.choice([0.5, 1.0, 1.3, 2.0], 20), rng.normal(0, 2, 20)
    weights = rng.uniform(0.5, 2.0, 20)
    z = rng.normal(0, 3, (4, 20))
    surrogate = Surrogate(np.ones(20), margins=margins, weights=weights, shift=shift)
    ours = ops.convert_to_numpy(BalancedLoss(surrogate, dtype="float64").posterior(z))
    for row, z_i in zip(ours, z, strict=True):
        p = np.exp(oracle.log_softmax(z_i / margins[:, None] + shift))
        system = np.vstack([p.T - np.eye(20), np.ones(20)])
        u = np.linalg.lstsq(system, np.r_[np.zeros(20), 1.0], rcond=None)[0]
        np.testing.assert_allclose(row, oracle.normalize(u * margins / weights), rtol=1e-7)


@pytest.mark.parametrize("q", [0.0, 0.4])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_logarithm_of_the_posterior_under_margins_and_shift_does_not_underflow(scale, q, rng):
    """Not even where every probability of a level does: its shift is far below the others'."""
    margins, weights = np.array([0.5, 2.0, 1.0, 1.0, 2.0, 0.5]), rng.uniform(0.5, 2.0, 6)
    shift = scale * np.array([0.0, -1.0, 0.4, 0.3, -1.1, -0.1])
    z, uniform = rng.normal(0, scale, (5, 6)), np.full(6, 1 / 6)
    surrogate = Surrogate(np.ones(6), q=q, margins=margins, weights=weights, shift=shift)
    ours = BalancedLoss(surrogate, dtype="float64").log_posterior(ops.convert_to_tensor(z))
    expected = oracle.log_posterior(z, uniform, margins, weights, uniform, q, shift)
    np.testing.assert_allclose(ops.convert_to_numpy(ours), expected, rtol=1e-9, atol=1e-9)


def test_gradient_of_the_posterior_at_equal_logits(gradient):
    """That of central differences, also with half of the classes in the last level."""
    loss = GCALoss(np.ones(4), margins=[0.5, 1.0, 1.5, 1.5], dtype="float64")

    def first_and_last(z):
        return loss.log_posterior(z)[..., 0] + 2.0 * loss.log_posterior(z)[..., 3]

    z, step = np.zeros((1, 4)), 1e-5 * np.eye(4)
    up, down = (
        ops.convert_to_numpy(first_and_last(ops.convert_to_tensor(z + s))) for s in (step, -step)
    )
    np.testing.assert_allclose(gradient(first_and_last, z)[0], (up - down) / 2e-5, atol=1e-8)


def test_posterior_in_blocks_is_the_same(rng, monkeypatch):
    loss = GCALoss(np.arange(1, 21))
    z = rng.normal(0, 3, (2, 5, 20)).astype("float32")
    whole = loss.posterior(z)
    monkeypatch.setattr("keras_balanced.stationary._BLOCK", 3 * 20 * 20)  # Three rows.
    rows = []

    def counted(logits, surrogate):
        rows.append(logits.shape[0])
        return _of_levels(logits, surrogate)

    monkeypatch.setattr("keras_balanced.stationary._of_levels", counted)
    np.testing.assert_allclose(loss.posterior(z), whole, rtol=1e-5)
    assert rows == [3, 3, 3, 1]


def test_posterior_of_numpy_is_numpy(rng):
    z = rng.normal(size=(3, 1)).astype("float32")
    for loss, logits in ((GCALoss([3, 1]), np.tile(z, 2)), (BinaryGLALoss(0.1), z)):
        assert type(loss.posterior(logits)) is np.ndarray
        assert type(loss.posterior(ops.convert_to_tensor(logits))) is not np.ndarray


def test_margins_are_rounded_to_levels_where_there_are_many():
    for num_classes, ratio in ((65, 2), (1000, 100), (8142, 1e4)):
        priors = ratio ** -np.linspace(0, 1, num_classes)
        exact = priors ** (-1 / 3)
        surrogate = gca_surrogate(priors, consistent=True)
        moved = surrogate.margins / surrogate.margins[0] / (exact / exact[0])
        assert np.abs(np.log(moved)).max() <= np.log(1.0251)
        assert len(surrogate.levels) <= 64
        assert surrogate.margins.mean() == pytest.approx(1.0)
        # The weights are those of the same margins.
        expected = surrogate.margins / (num_classes * surrogate.priors)
        np.testing.assert_allclose(surrogate.weights, expected)
    few = np.arange(1.0, 65.0)
    np.testing.assert_allclose(
        gca_surrogate(few).margins, few ** (-1 / 3) / np.mean(few ** (-1 / 3)), rtol=1e-12
    )
    own = np.linspace(1, 2, 200)
    np.testing.assert_allclose(gca_surrogate(np.ones(200), margins=own).margins, own / own.mean())


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
            ops.convert_to_numpy(binary.posterior(z, priors=0.3))[:, 0],
            ops.convert_to_numpy(multi.posterior(pair, priors=[0.7, 0.3]))[:, 1],
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
        (GLALoss([1, 2]), np.zeros((1, 2)), [1, 2, 3], "`priors` must have one number"),
        (BinaryGLALoss(0.1), np.zeros((1, 1)), 1.5, "`priors` must be the positive rate"),
        (BinaryGLALoss(0.1), np.zeros((1, 1)), [0.1, 0.2], "must be one positive rate"),
    ],
)
def test_bad_arguments(loss, logits, target, message):
    with pytest.raises(ValueError, match=message):
        loss.posterior(logits, priors=target)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("axes", [0, 1])
def test_a_function_of_rows_is_given_few_sizes_on_jax(axes, as_tensor, rng):
    """Each new size would be compiled again, and stay."""
    sizes = set()

    def double(values):
        sizes.add(values.shape[0])
        return 2.0 * ops.convert_to_tensor(values)

    for number in (*range(1, 40), 1000):
        values = rng.normal(size=(number, *(3,) * axes)).astype("float32")
        given = ops.convert_to_tensor(values) if as_tensor else values
        ours = backends.of_rows(double, given, axes)
        assert ops.is_tensor(ours) == as_tensor
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), 2.0 * values)
    if keras.backend.backend() == "jax":
        assert sizes == {1, 2, 4, 8, 16, 32, 64, 1024}


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="what JAX traces")
def test_a_posterior_within_a_function_of_jax(rng):
    import jax

    loss, z = GCALoss([90, 10], dtype="float64"), rng.normal(size=(5, 2))
    inside = jax.jit(loss.posterior)(z)
    assert inside.shape == (5, 2)
    np.testing.assert_allclose(inside, loss.posterior(z), rtol=1e-6)
