"""Properties that hold for any logits, priors and q."""

import keras
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_balanced import (
    BalancedAccuracy,
    BalancedLoss,
    BinaryBalancedAccuracy,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassCalibrationError,
    GCALoss,
    GLALoss,
    Surrogate,
    gca_loss,
    gla_loss,
)

# Every setting in full: none of them may follow a default.
LOSSES = {
    "gla": (gla_loss, oracle.gla, GLALoss, {"tau": None}),
    "gla, tau = 1": (gla_loss, oracle.gla, GLALoss, {"tau": 1.0}),
    "gca": (gca_loss, oracle.gca, GCALoss, {"margins": "cube_root", "consistent": False}),
    "gca, consistent": (
        gca_loss,
        oracle.gca,
        GCALoss,
        {"margins": "cube_root", "consistent": True},
    ),
    "gca, equal margins": (gca_loss, oracle.gca, GCALoss, {"margins": None, "consistent": False}),
}


def floats(low, high):
    return st.floats(low, high, width=32)


@st.composite
def problems(draw):
    """Logits, labels, priors down to 1e-8 and q from 1e-8 to 0.99."""
    num_classes = draw(st.integers(2, 6))
    z = draw(hnp.arrays("float32", (4, num_classes), elements=floats(-50, 50)))
    y = draw(hnp.arrays("int32", 4, elements=st.integers(0, num_classes - 1)))
    exponents = draw(hnp.arrays("float64", num_classes, elements=st.floats(-8, 0)))
    q = draw(st.one_of(st.just(0.0), st.floats(1e-8, 0.99)))
    return y, z, 10.0**exponents, q


def each_loss(test):
    relaxed = settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    return pytest.mark.parametrize("name", LOSSES)(relaxed(given(problems())(test)))


def values(name, y, z, priors, q):
    function, _, _, arguments = LOSSES[name]
    return ops.convert_to_numpy(function(y, z, priors, q=q, **arguments))


def close(ours, expected, scale):
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4 * max(1.0, scale))


def scale_of(name, priors):
    """The largest weight: float32 errors of the logits come out multiplied by it."""
    priors = priors / priors.sum()
    if name.startswith("gla"):
        return 1.0
    arguments = LOSSES[name][-1]
    margins = np.cbrt(1 / priors) if arguments["margins"] else np.ones(len(priors))
    margins /= margins.mean()
    weights = (margins if arguments["consistent"] else 1) / (len(priors) * priors)
    return (weights / margins).max()


@each_loss
def test_never_negative_and_finite(name, problem):
    y, z, priors, q = problem
    ours = values(name, y, z, priors, q)
    assert np.isfinite(ours).all()
    assert (ours >= 0).all()


@each_loss
def test_a_constant_added_to_the_logits_changes_nothing(name, problem):
    y, z, priors, q = problem
    shifted = values(name, y, z + np.float32(8), priors, q)
    close(shifted, values(name, y, z, priors, q), scale_of(name, priors))


@each_loss
def test_classes_in_another_order_change_nothing(name, problem):
    y, z, priors, q = problem
    order = np.arange(len(priors))[::-1]
    permuted = values(name, order[y], z[:, order], priors[order], q)
    close(permuted, values(name, y, z, priors, q), scale_of(name, priors))


@each_loss
def test_falls_as_the_true_logit_rises(name, problem):
    y, z, priors, q = problem
    raised = z.copy()
    raised[np.arange(4), y] += 1
    before = values(name, y, z, priors, q)
    assert (values(name, y, raised, priors, q) <= before * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_of_the_gradient_sum_to_zero(name, rng, gradient):
    z = rng.normal(0, 5, (32, 10)).astype("float32")
    y = rng.integers(0, 10, 32)
    function, _, _, arguments = LOSSES[name]
    for q in (0.0, 0.5):
        rows = gradient(lambda z, q=q: function(y, z, np.arange(1, 11), q=q, **arguments), z)
        np.testing.assert_allclose(rows.sum(axis=-1), 0, atol=1e-5)
        assert (rows[np.arange(32), y] <= 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_many_classes(name, rng):
    num_classes = 100_000
    z = rng.standard_normal((4, num_classes)).astype("float32")
    y = np.array([0, 1, num_classes - 2, num_classes - 1])
    priors = 100.0 ** -np.linspace(0, 1, num_classes)
    _, theirs, _, arguments = LOSSES[name]
    for q in (0.0, 0.3):
        expected = theirs(y, z, priors, q=q, **arguments)
        np.testing.assert_allclose(values(name, y, z, priors, q), expected, rtol=1e-4)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 by default")
@pytest.mark.parametrize("name", LOSSES)
def test_float64(name, rng):
    z = rng.normal(0, 10, (32, 10))
    y = rng.integers(0, 10, 32)
    priors = np.arange(1, 11)
    _, theirs, cls, arguments = LOSSES[name]
    for q in (0.0, 1e-8, 0.5, 0.99):
        expected = theirs(y, z, priors, q=q, **arguments)
        np.testing.assert_allclose(values(name, y, z, priors, q), expected, rtol=1e-9)
    # Each value: Keras's own mean is in float32 on PyTorch.
    loss = cls(priors, dtype="float64", reduction=None, **arguments)
    expected = theirs(y, z, priors, **arguments)
    np.testing.assert_allclose(ops.convert_to_numpy(loss(y, z)), expected, rtol=1e-9)


def test_nan_logits_are_seen():
    z = np.array([[np.nan, 0.0], [1.0, 0.0]], "float32")
    for name in LOSSES:
        np.testing.assert_array_equal(
            np.isnan(values(name, np.array([0, 1]), z, np.ones(2), 0.3)), [True, False]
        )


def test_loss_scaling_trains(rng):
    keras.config.set_dtype_policy("mixed_float16")
    x = rng.standard_normal((128, 4)).astype("float32")
    y = x[:, :3].argmax(axis=-1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), GCALoss(np.bincount(y))
    )
    history = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("q", [0.0, 0.3])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_soft_targets_is_that_of_finite_differences(name, q, rng, gradient):
    function, of_oracle, _, arguments = LOSSES[name]
    priors, z = [50, 30, 15, 5], rng.standard_normal((3, 4))
    y = rng.dirichlet(np.ones(4), 3)

    def soft(z):
        of_classes = [of_oracle(np.full(3, k), z, priors, q=q, **arguments) for k in range(4)]
        return (y * np.stack(of_classes, axis=-1)).sum()

    steps = 1e-5 * np.eye(12).reshape(12, 3, 4)
    expected = [(soft(z + step) - soft(z - step)) / 2e-5 for step in steps]
    targets = ops.convert_to_tensor(y.astype("float32"))
    ours = gradient(lambda z: function(targets, z, priors, q=q, **arguments), z.astype("float32"))
    np.testing.assert_allclose(ours.ravel(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's way to nest")
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(name, rng):
    import tensorflow as tf

    function, _, _, arguments = LOSSES[name]
    y, z = rng.dirichlet(np.ones(4), 3).astype("float32"), rng.standard_normal((3, 4))

    def slope(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            total = tf.reduce_sum(function(y, z, [50, 30, 15, 5], q=0.3, **arguments))
        return tape.gradient(total, z)

    z = tf.constant(z, "float32")
    with tf.GradientTape() as tape:
        tape.watch(z)
        first = slope(z)[:, 0]
    ours = tape.gradient(first, z)[:, 0]
    step = np.array([1e-2, 0, 0, 0], "float32")
    expected = (slope(z + step) - slope(z - step))[:, 0] / 2e-2
    np.testing.assert_allclose(ours, expected, rtol=2e-2, atol=1e-3)


# A single float32 sum of so many numbers is 1% off; one of many more stops.
MANY = 2**20


@pytest.mark.parametrize("form", ["classes", "one-hot", "one logit", "labels"])
def test_sums_over_a_large_batch_are_right(form):
    weights = np.full(MANY, 0.1, "float32")
    y = np.arange(MANY) % 2
    right = np.arange(MANY) % 8 < 6  # Of each class three quarters.
    decided = np.where(right, y, 1 - y)
    if form in ("classes", "one-hot"):
        metric, z = BalancedAccuracy(2), np.eye(2, dtype="float32")[decided]
        y = np.eye(2, dtype="float32")[y] if form == "one-hot" else y
    else:
        metric, z = BinaryBalancedAccuracy(), 2.0 * decided.astype("float32") - 1.0
        if form == "labels":
            metric = BinaryBalancedAccuracy(num_labels=3)
            y, z = (np.stack([part] * 3, axis=-1) for part in (y, z))
    metric.update_state(y, z, weights)
    total = ops.convert_to_numpy(metric.total)
    np.testing.assert_allclose(total, np.full(total.shape, MANY / 20), rtol=2e-6)
    assert float(metric.result()) == pytest.approx(0.75, rel=2e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_calibration_error_of_a_large_batch_is_right(num_classes):
    metric = ClassCalibrationError(num_classes)
    rest = max(num_classes - 1, 1)
    p = np.full((MANY, num_classes), 0.1 / rest, "float32")
    p[:, 0] = 0.1 if num_classes == 1 else 0.9
    y = np.zeros(MANY, "int32")
    metric.update_state(y, p, np.full(MANY, 0.1, "float32"))
    expected = {1: 0.1, 2: 0.1, 3: 0.2 / 3}[num_classes]
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_more_examples_of_one_batch_than_float32_counts():
    number = 2**24 + 2**22
    metric = BinaryBalancedAccuracy()
    z = np.ones(number, "float32")
    z[: number // 4] = -1.0
    metric.update_state(np.broadcast_to(np.float32(0), number), z)
    assert ops.convert_to_numpy(metric.total).tolist() == [number, 0]
    assert float(metric.result()) == 0.25


MASKED = [-1e6, -1e9, float(np.finfo("float32").min), -np.inf]
POSTERIORS = {
    "gla": lambda p: GLALoss(p),
    "gla, q": lambda p: GLALoss(p, q=0.7, tau=1.0),
    "gla, smoothed": lambda p: GLALoss(p, label_smoothing=0.1),
    "gca": lambda p: GCALoss(p),
    "gca, q": lambda p: GCALoss(p, q=0.3),
    "gca, large q": lambda p: GCALoss(p, q=0.95),
    "gca, consistent": lambda p: GCALoss(p, consistent=True),
}


def without_class(loss, k):
    """The loss of the other classes, with their constants."""
    s = loss.surrogate
    names = ("priors", "target_priors", "shift", "margins", "weights")
    return BalancedLoss(
        Surrogate(**{name: np.delete(getattr(s, name), k) for name in names}, q=s.q)
    )


@pytest.mark.parametrize("low", MASKED)
@pytest.mark.parametrize("name", POSTERIORS)
def test_a_masked_class_is_as_none(name, low, rng):
    loss = POSTERIORS[name]([0.9, 0.09, 0.009, 0.001])
    for k in range(4):
        z = rng.normal(0, 2, (5, 4)).astype("float32")
        z[:, k] = low
        for target in (None, [0.4, 0.3, 0.2, 0.1]):
            ours = loss.posterior(z, priors=target)
            assert (ours[:, k] == 0).all()
            np.testing.assert_allclose(ours.sum(axis=-1), 1.0, rtol=1e-5)
            if "smoothed" not in name:
                mix = None if target is None else np.delete(target, k)
                others = without_class(loss, k)
                expected = others.posterior(np.delete(z, k, axis=1), priors=mix)
                np.testing.assert_allclose(np.delete(ours, k, axis=1), expected, rtol=1e-4)


def test_the_issue_s_masked_posterior():
    loss = GCALoss([0.9, 0.09, 0.01])
    far = loss.posterior(np.array([[-1e3, 1.0, 0.0]], "float32"))
    for low in MASKED:
        ours = loss.posterior(np.array([[low, 1.0, 0.0]], "float32"))
        np.testing.assert_allclose(ours, far, atol=1e-6)


@pytest.mark.parametrize("name", POSTERIORS)
def test_extreme_logits_have_a_posterior(name):
    loss = POSTERIORS[name]([0.9, 0.09, 0.01])
    z = np.array([[np.inf, 0, 1], [0, 1e20, 1], [0, 1, 1e38], [np.nan, 0, 1]], "float32")
    ours = loss.posterior(z)
    np.testing.assert_allclose(ours[:3], np.eye(3), atol=1e-6)
    assert np.isnan(ours[3]).all()
    for low in MASKED:  # Nothing is left to choose from: as equal logits.
        ours, equal = (loss.posterior(np.full((1, 3), value, "float32")) for value in (low, 0.0))
        np.testing.assert_allclose(ours, equal, rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.9])
@pytest.mark.parametrize("make", [BinaryGLALoss, BinaryGCALoss])
def test_infinite_logits_of_labels_have_a_posterior(make, q):
    for rates in (0.1, [0.1, 0.2]):
        z = np.array([np.inf, -np.inf, 1e9, -1e9, 1e38, -1e38], "float32")
        z = z if np.ndim(rates) == 0 else np.stack([z, z], axis=-1)
        np.testing.assert_array_equal(make(rates, q=q).posterior(z), z > 0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("q", [0.0, 0.3])
def test_one_hot_targets_beside_a_masked_class(name, q, gradient):
    function, _, _, arguments = LOSSES[name]
    z, y = np.array([[-np.inf, 1.0, 0.0]], "float32"), np.array([1])
    one_hot, priors = np.eye(3, dtype="float32")[y], [0.9, 0.09, 0.01]
    sparse, soft = (
        ops.convert_to_numpy(function(each, z, priors, q=q, **arguments)) for each in (y, one_hot)
    )
    assert np.isfinite(sparse).all()
    np.testing.assert_allclose(soft, sparse, rtol=1e-5)
    slope = gradient(lambda z: function(one_hot, z, priors, q=q, **arguments), z)
    assert np.isfinite(slope).all()
