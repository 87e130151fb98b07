"""The losses as functions: identities, and the oracle."""

import keras
import numpy as np
import oracle
import pytest
from keras import ops

from keras_balanced import gca_loss, gla_loss

GRID = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
CUBE_ROOT = {"margins": "cube_root", "consistent": False}
# Each loss with each kind of setting, in full so that none follows a default: ours, the oracle's,
# arguments.
SETTINGS = {
    "gla": (gla_loss, oracle.gla, {"tau": None}),
    "gla tau": (gla_loss, oracle.gla, {"tau": 1.0}),
    "gla target": (gla_loss, oracle.gla, {"tau": None, "target_priors": "linear"}),
    "gca": (gca_loss, oracle.gca, CUBE_ROOT),
    "gca consistent": (gca_loss, oracle.gca, {**CUBE_ROOT, "consistent": True}),
    "gca no margins": (gca_loss, oracle.gca, {**CUBE_ROOT, "margins": None}),
    "gca vector": (gca_loss, oracle.gca, {**CUBE_ROOT, "margins": "linear"}),
    "gca target": (gca_loss, oracle.gca, {**CUBE_ROOT, "target_priors": "linear"}),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return request.param


def losses_of(setting, num_classes, q=0.0):
    """Returns our loss and the oracle's as functions of `(y, z)`."""
    ours, theirs, arguments = SETTINGS[setting]
    linear = np.linspace(1.0, 2.0, num_classes)
    arguments = {k: linear if v == "linear" else v for k, v in arguments.items()}
    priors = 100.0 ** -np.linspace(0, 1, num_classes)
    return (
        lambda y, z: ours(y, z, priors, q=q, **arguments),
        lambda y, z: theirs(y, z, priors, q=q, **arguments),
    )


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_matches_oracle(setting, num_classes, scale, rng):
    z = (scale * rng.standard_normal((32, num_classes))).astype("float32")
    y = rng.integers(0, num_classes, 32)
    tolerance = 1e-5 if scale <= 10 else 1e-6 * scale
    for q in GRID:
        ours, theirs = losses_of(setting, num_classes, q)
        expected = theirs(y, z)
        error = np.abs(numpy(ours(y, z)) - expected) / np.maximum(1.0, np.abs(expected))
        assert error.max() <= tolerance, (q, error.max())


@pytest.mark.parametrize("q", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_gradient_matches_differences_of_oracle(setting, num_classes, q, rng, gradient):
    z = rng.standard_normal((16, num_classes)).astype("float32")
    y = rng.integers(0, num_classes, 16)
    ours, theirs = losses_of(setting, num_classes, q)
    expected = oracle.gradient(lambda z: theirs(y, z), z)
    np.testing.assert_allclose(
        gradient(lambda z: ours(y, z), z), expected, atol=1e-5 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("q", [0.0, 1e-8, 0.5, 0.99])
def test_finite_at_large_logits(setting, q, rng, gradient):
    z = (1e4 * rng.choice([-1.0, 0.0, 1.0], (64, 10))).astype("float32")
    y = rng.integers(0, 10, 64)
    ours, _ = losses_of(setting, 10, q)
    assert np.isfinite(numpy(ours(y, z))).all()
    assert np.isfinite(gradient(lambda z: ours(y, z), z)).all()


def test_confidently_wrong_example_keeps_its_gradient(gradient):
    z = np.array([[40.0, 0.0]], "float32")
    np.testing.assert_allclose(gradient(lambda z: gla_loss([1], z, [1, 1]), z), [[1, -1]])


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_q_zero_without_adjustment_is_keras_cross_entropy(shape, rng):
    z = rng.standard_normal((8, 5)).astype("float32")
    y = rng.integers(0, 5, 8)
    expected = numpy(keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True))
    p = [0.5, 0.2, 0.1, 0.1, 0.1]
    for losses in (
        gla_loss(y.reshape(shape), z, p, tau=0.0),
        gla_loss(y.reshape(shape), z, p, target_priors=p),
        gla_loss(y.reshape(shape), z, np.ones(5)),
        gca_loss(y.reshape(shape), z, np.ones(5)),
        gca_loss(y.reshape(shape), z, p, margins=None, target_priors=p),
    ):
        np.testing.assert_allclose(numpy(losses), expected, rtol=1e-6)


def test_uniform_priors_are_keras_generalized_cross_entropy(rng):
    z = rng.standard_normal((8, 5)).astype("float32")
    y = rng.integers(0, 5, 8)
    expected = keras.losses.categorical_generalized_cross_entropy(
        y, ops.softmax(ops.convert_to_tensor(z)), q=0.4
    )
    for ours in (gla_loss, gca_loss):
        np.testing.assert_allclose(numpy(ours(y, z, np.ones(5), q=0.4)), numpy(expected), rtol=1e-5)


def test_small_q_tends_to_q_zero(setting, rng):
    z = rng.standard_normal((64, 10)).astype("float32")
    y = rng.integers(0, 10, 64)
    small, _ = losses_of(setting, 10, 1e-7)
    zero, _ = losses_of(setting, 10, 0.0)
    np.testing.assert_allclose(numpy(small(y, z)), numpy(zero(y, z)), rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.3])
def test_one_hot_equals_sparse(setting, q, rng, gradient):
    z = rng.standard_normal((16, 10)).astype("float32")
    y = rng.integers(0, 10, 16)
    ours, _ = losses_of(setting, 10, q)
    one_hot = np.eye(10, dtype="float32")[y]
    np.testing.assert_allclose(numpy(ours(one_hot, z)), numpy(ours(y, z)), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(
        gradient(lambda z: ours(one_hot, z), z), gradient(lambda z: ours(y, z), z), atol=1e-4
    )


@pytest.mark.parametrize("q", [0.0, 0.3])
def test_soft_targets_mix_the_losses_of_the_classes(setting, q, rng):
    z = rng.standard_normal((16, 6)).astype("float32")
    targets = rng.dirichlet(np.ones(6), 16).astype("float32")
    ours, theirs = losses_of(setting, 6, q)
    by_class = np.stack([theirs(np.full(16, k), z) for k in range(6)], axis=-1)
    expected = (targets * by_class).sum(axis=-1)
    np.testing.assert_allclose(numpy(ours(targets, z)), expected, rtol=1e-5)


def test_counts_equal_probabilities(rng):
    z = rng.standard_normal((4, 3)).astype("float32")
    for ours in (gla_loss, gca_loss):
        np.testing.assert_array_equal(
            numpy(ours([0, 1, 2, 0], z, [60, 30, 10])), numpy(ours([0, 1, 2, 0], z, [6, 3, 1]))
        )


def test_margins_are_normalised(rng):
    z = rng.standard_normal((4, 3)).astype("float32")
    y = np.array([0, 1, 2, 0])
    once, twice = (gca_loss(y, z, [6, 3, 1], margins=m) for m in ([1, 2, 3], [2, 4, 6]))
    np.testing.assert_array_equal(numpy(once), numpy(twice))


def test_immax_is_a_setting_of_gca(rng):
    z = rng.standard_normal((8, 3)).astype("float32")
    y = rng.integers(0, 3, 8)
    p = oracle.normalize([6, 3, 1])
    rho = np.cbrt(p) / np.cbrt(p).mean()
    expected = -oracle.log_softmax(z / rho[y][:, None])[np.arange(8), y]
    ours = gca_loss(y, z, p, target_priors=p)
    np.testing.assert_allclose(numpy(ours), expected, rtol=1e-5)


def test_probabilities_equal_their_logits(setting, rng):
    z = rng.standard_normal((8, 4)).astype("float32")
    y = rng.integers(0, 4, 8)
    probabilities = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    ours, _, arguments = SETTINGS[setting]
    arguments = {k: [1, 2, 3, 4] if v == "linear" else v for k, v in arguments.items()}
    np.testing.assert_allclose(
        numpy(ours(y, probabilities, [8, 4, 2, 1], from_logits=False, **arguments)),
        numpy(ours(y, z, [8, 4, 2, 1], **arguments)),
        rtol=1e-5,
    )


def test_half_precision_logits_are_computed_in_float32(rng):
    z = rng.standard_normal((4, 3)).astype("float16")
    ours = gla_loss([0, 1, 2, 0], z, [6, 3, 1])
    np.testing.assert_array_equal(
        numpy(ours), numpy(gla_loss([0, 1, 2, 0], z.astype("float32"), [6, 3, 1]))
    )


Z = np.zeros((2, 3), "float32")
Y = np.array([0, 1])


@pytest.mark.parametrize("loss", [gla_loss, gca_loss])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": 1.0}, r"`q` must be in \[0, 1\). Received: q=1.0"),
        ({"q": 1.2}, r"`q` must be in \[0, 1\). Received: q=1.2"),
        ({"q": -0.1}, r"`q` must be in \[0, 1\)"),
        ({"q": float("nan")}, r"`q` must be in \[0, 1\)"),
        ({"q": "0.5"}, r"`q` must be in \[0, 1\). Received: q='0.5'"),
        ({"q": True}, r"`q` must be in \[0, 1\)"),
        ({"priors": [1, 0, 2]}, r"`priors` must be positive.*class ids \[1\].*smoothing=1.0"),
        (
            {"priors": [1, 1] + [0] * 13},
            r"class ids \[2, 3, 4, 5, 6, 7, 8, 9, 10, 11\] and 3 more\. Do your ids",
        ),
        ({"priors": [1, -1, 2]}, r"`priors` must be positive.*\[-1.0\].*class ids \[1\]$"),
        ({"priors": [1, float("nan"), 2]}, r"`priors` must be positive and finite"),
        ({"priors": [[1, 2, 3]]}, r"`priors` must be a 1-D vector.*of shape \(1, 3\)"),
        ({"priors": 0.5}, r"`priors` must be a 1-D vector.*Received: priors=0.5"),
        ({"priors": "cube"}, r"`priors` must be a 1-D vector.*Received: priors='cube'"),
        ({"priors": [1]}, r"`priors` must have at least 2 classes"),
        ({"priors": [1, 2]}, r"last axis of `y_pred` must have the 2 classes.*\(2, 3\)"),
        ({"target_priors": [1, 2]}, r"`target_priors` must have one number for each of the 3"),
        ({"target_priors": [1, 2, 0]}, r"`target_priors` must be positive"),
        ({"y_pred": np.zeros((2, 1))}, r"last axis of `y_pred`.*binary losses"),
        ({"y_pred": np.float32(0)}, r"last axis of `y_pred`.*shape=\(\)"),
        ({"y_true": np.zeros((2, 2))}, r"`y_true` must hold.*shape=\(2, 2\).*shape=\(2, 3\)"),
        ({"y_true": np.zeros(3)}, r"`y_true` must hold.*shape=\(3,\)"),
        ({"y_true": np.zeros((3, 3))}, r"`y_true` must hold.*shape=\(3, 3\)"),
        ({"y_true": np.zeros((2, 3, 3))}, r"`y_true` must hold.*shape=\(2, 3, 3\)"),
    ],
)
def test_bad_arguments(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        loss(**{"y_true": Y, "y_pred": Z, "priors": [3, 2, 1], **arguments})


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ([1, 2], r"`margins` must have one number for each of the 3 classes. Received: 2"),
        ([1, 2, 0], r"`margins` must be positive and finite"),
        ("cube", r'`margins` must be "cube_root", None or.*margins=\'cube\''),
    ],
)
def test_bad_margins(margins, message):
    with pytest.raises(ValueError, match=message):
        gca_loss(Y, Z, [3, 2, 1], margins=margins)


@pytest.mark.parametrize("tau", [float("inf"), float("nan"), "1"])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match="`tau` must be a finite number"):
        gla_loss(Y, Z, [3, 2, 1], tau=tau)


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("loss", [gla_loss, gca_loss])
def test_labels_out_of_range_never_train_silently(loss, label, gradient):
    y = np.array([0, label])
    if keras.backend.backend() == "jax":
        values = numpy(loss(y, Z, [3, 2, 1]))
        np.testing.assert_array_equal(np.isnan(values), [False, True])
    else:
        with pytest.raises(Exception, match=str(label)):
            loss(y, Z, [3, 2, 1])


def test_arguments_are_left_as_they_were(setting):
    ours, _ = losses_of(setting, 3)
    z = ops.ones((2, 3))
    ours(Y, z)
    ours(np.eye(3)[Y], z)
    np.testing.assert_array_equal(numpy(z), np.ones((2, 3)))
