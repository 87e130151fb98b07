"""The losses as Keras classes: the contract of a loss, training, and round trips."""

import inspect
import json

import keras
import numpy as np
import oracle
import pytest
from keras import ops

from keras_balanced import (
    BalancedLoss,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassPrior,
    GCALoss,
    GLALoss,
    Surrogate,
    gca_loss,
    gla_loss,
)

PRIORS = [6.0, 3.0, 1.0]
LOSSES = {
    "gla": GLALoss(PRIORS, q=0.3, tau=None),
    "gca": GCALoss(PRIORS, q=0.3, margins="cube_root", consistent=False),
}
# Every argument away from its default, where it has a second legal value.
SHARED = {"from_logits": False, "ignore_class": 255, "reduction": "sum", "name": "other"}
GLA = {"q": 0.3, "tau": 0.5}
GCA = {"q": 0.1, "consistent": True}
CHANGED = {
    GLALoss: {"priors": PRIORS, "target_priors": [1.0, 2.0, 3.0], **GLA, **SHARED},
    GCALoss: {
        "priors": PRIORS,
        "target_priors": [1.0, 2.0, 3.0],
        "margins": [3.0, 2.0, 1.0],
        **GCA,
        **SHARED,
    },
    BinaryGLALoss: {"priors": [0.1, 0.2, 0.7], "target_priors": 0.4, **GLA, **SHARED},
    BinaryGCALoss: {
        "priors": [0.1, 0.2, 0.7],
        "target_priors": [0.4, 0.3, 0.2],
        "margins": [2.0, 1.0],
        **GCA,
        **SHARED,
    },
}
# JAX has no float64 unless it is switched on.
DTYPE = "float32" if keras.backend.backend() == "jax" else "float64"
for loss_class, arguments in CHANGED.items():
    arguments |= {"dtype": DTYPE}
    if "label_smoothing" in inspect.signature(loss_class).parameters:
        arguments |= {"label_smoothing": 0.1}


def data(rng, size=32):
    return rng.standard_normal((size, 4)).astype("float32"), rng.integers(0, 3, size)


def classifier(activation=None):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation)])


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


@pytest.mark.parametrize(
    ("loss_class", "function", "arguments"),
    [(GLALoss, gla_loss, {"q": 0.3}), (GCALoss, gca_loss, {"q": 0.1, "margins": [3, 2, 1]})],
)
def test_class_is_the_function_reduced(loss_class, function, arguments, rng):
    _, y = data(rng)
    z = rng.standard_normal((32, 3)).astype("float32")
    w = rng.random(32).astype("float32")
    values = ops.convert_to_numpy(function(y, z, PRIORS, **arguments))
    for reduction, expected in [
        ("sum_over_batch_size", (w * values).mean()),
        ("sum", (w * values).sum()),
        ("mean_with_sample_weight", (w * values).sum() / w.sum()),
        (None, w * values),
    ]:
        loss = loss_class(PRIORS, reduction=reduction, **arguments)
        np.testing.assert_allclose(ops.convert_to_numpy(loss(y, z, w)), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", None])
def test_labels_of_shape_b1_do_not_broadcast(loss, rng, reduction):
    _, y = data(rng)
    z = rng.standard_normal((32, 3)).astype("float32")
    loss = type(loss)(PRIORS, reduction=reduction)
    flat, column = ops.convert_to_numpy(loss(y, z)), ops.convert_to_numpy(loss(y[:, None], z))
    assert column.shape == flat.shape
    np.testing.assert_array_equal(column, flat)


def test_class_ids_survive_the_cast_of_keras(rng):
    y = np.array([256, 257, 998, 999])
    z = rng.standard_normal((4, 1000)).astype("float32")
    priors = np.linspace(1, 2, 1000)
    expected = ops.convert_to_numpy(gla_loss(y, z, priors))
    np.testing.assert_allclose(
        ops.convert_to_numpy(GLALoss(priors, reduction=None)(y, z)), expected, rtol=1e-6
    )


@pytest.mark.parametrize("labels", ["sparse", "column", "one_hot"])
def test_fit(loss, labels, rng):
    x, y = data(rng, 128)
    y = x[:, :3].argmax(axis=-1)
    targets = {"sparse": y, "column": y[:, None], "one_hot": np.eye(3)[y]}[labels]
    model = classifier()
    model.compile(keras.optimizers.Adam(0.1), loss=loss)
    history = model.fit(x, targets, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_fit_gives_the_same_weights_for_sparse_and_one_hot(loss, rng):
    x, y = data(rng)
    first, second = classifier(), classifier()
    second.set_weights(first.get_weights())
    for model, targets in [(first, y), (second, np.eye(3)[y])]:
        model.compile("sgd", loss=loss)
        model.fit(x, targets, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(first.get_weights()[0], second.get_weights()[0], atol=1e-6)


def test_adapted_class_prior_equals_its_counts(rng):
    _, y = data(rng)
    z = rng.standard_normal((32, 3)).astype("float32")
    prior = ClassPrior(3)
    prior.adapt(y)
    for loss_class in (GLALoss, GCALoss):
        assert float(loss_class(prior)(y, z)) == float(loss_class(np.bincount(y))(y, z))


def test_unadapted_class_prior_is_refused():
    with pytest.raises(ValueError, match=r"has not counted any labels.*`adapt\(data\)`"):
        GLALoss(ClassPrior(3))


def test_class_without_examples_is_refused():
    prior = ClassPrior(3)
    prior.adapt(np.array([0, 0, 2]))
    with pytest.raises(ValueError, match=r"class ids \[1\].*smoothing=1.0"):
        GCALoss(prior)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_softmax_model_is_refused(activation, policy, loss, rng):
    if keras.backend.backend() == "jax":
        pytest.skip("JAX arrays take no mark, so a softmax cannot be seen")
    x, y = data(rng)
    keras.config.set_dtype_policy(policy)
    model = classifier(activation)
    for eagerly in (True, False):
        model.compile("sgd", loss=loss, run_eagerly=eagerly)
        with pytest.raises(ValueError, match=r"Expected logits in `y_pred`.*`from_logits=False`"):
            model.fit(x, y, verbose=0)


def test_softmax_model_trains_as_its_logits(loss, rng):
    x, y = data(rng)
    logits, softmax = classifier(), classifier("softmax")
    softmax.set_weights(logits.get_weights())
    config = loss.get_config()
    for model, from_logits in [(logits, True), (softmax, False)]:
        model.compile("sgd", loss=type(loss)(**{**config, "from_logits": from_logits}))
        model.fit(x, y, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(logits.get_weights()[0], softmax.get_weights()[0], atol=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.3])
def test_a_tiny_probability_counts_in_full(q, gradient):
    """What a softmax or sigmoid gives to a wrong, confident example, far below 1e-7."""
    p = np.array([[1e-20, 1.0]], "float32")
    z = np.log(p.astype("float64"))
    tiny = np.array([1e-20], "float32")
    for loss_class, formula in ((GLALoss, oracle.gla), (GCALoss, oracle.gca)):
        loss = loss_class([2, 1], q=q, from_logits=False)
        assert float(loss([0], p)) == pytest.approx(formula([0], z, [2, 1], q=q)[0], rel=1e-5)
        assert gradient(lambda p, loss=loss: loss(np.array([0]), p), p)[0, 0] < 0
    for loss_class, formula in ((BinaryGLALoss, oracle.gla), (BinaryGCALoss, oracle.gca)):
        loss = loss_class(0.25, q=q, from_logits=False)
        pair = np.array([[0.0, z[0, 0]]])
        expected = formula([1], pair, [0.75, 0.25], q=q)[0]
        assert float(loss(np.ones(1), tiny)) == pytest.approx(expected, rel=1e-5)
        assert gradient(lambda p, loss=loss: loss(np.ones(1), p), tiny)[0] < 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16"])
def test_half_precision_dtype_is_refused(loss, dtype):
    with pytest.raises(ValueError, match="`dtype` of a loss must be float32 or float64"):
        type(loss)(PRIORS, dtype=dtype)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(loss, policy, rng):
    x, _ = data(rng, 128)
    y = x[:, :3].argmax(axis=-1)
    keras.config.set_dtype_policy(policy)
    model = classifier()
    model.compile(keras.optimizers.Adam(0.1), loss=loss)
    history = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("loss_class", CHANGED)
def test_config_round_trip(loss_class):
    loss = loss_class(**CHANGED[loss_class])
    config = json.loads(json.dumps(loss.get_config()))
    assert config == CHANGED[loss_class]
    assert loss_class.from_config(config).get_config() == config


@pytest.mark.parametrize("loss_class", CHANGED)
def test_compiled_model_round_trip(loss_class, rng, tmp_path):
    arguments = CHANGED[loss_class]
    x, y = data(rng)
    binary = "Binary" in loss_class.__name__
    if binary:
        y = np.eye(3)[y]
    model = classifier("sigmoid" if binary else "softmax")
    model.compile("sgd", loss=loss_class(**arguments))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == arguments
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    for each in (model, loaded):
        each.fit(x, y, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


EFFECTIVE = np.array([0.5, 1.0, 1.5])


class Scaled(BalancedLoss):
    """Of the predictions times a number: the ten lines of a custom loss."""

    def __init__(self, scale, **kwargs):
        super().__init__(Surrogate([6, 3, 1], weights=EFFECTIVE, q=0.3), **kwargs)
        self.scale = scale

    def logits(self, y_pred):
        return super().logits(y_pred) * self.scale


def own_formula(y, z, scale=1.0):
    log_s = oracle.log_softmax(scale * z.astype("float64"))[np.arange(len(y)), y]
    return EFFECTIVE[y] * oracle.psi(log_s, 0.3)


def test_a_loss_of_ones_own_has_the_whole_contract(rng):
    y, z = rng.integers(0, 3, 8), rng.normal(size=(8, 3)).astype("float32")
    weights = rng.uniform(size=8).astype("float32")
    each = own_formula(y, z, 2.0)
    loss = Scaled(2.0, reduction="sum", ignore_class=-1)
    np.testing.assert_allclose(float(loss(y, z)), each.sum(), rtol=1e-5)
    np.testing.assert_allclose(float(loss(y[:, None], z, weights)), weights @ each, rtol=1e-5)
    ignored = np.where(np.arange(8) < 3, -1, y)
    np.testing.assert_allclose(float(loss(ignored, z)), each[3:].sum(), rtol=1e-5)
    again = Scaled.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()
    np.testing.assert_allclose(float(again(y, z)), each.sum(), rtol=1e-5)
    direct = BalancedLoss(loss.surrogate).posterior(2 * z)
    np.testing.assert_allclose(loss.posterior(z), direct, rtol=1e-5)


def test_a_surrogate_fills_its_defaults_and_is_a_loss(rng):
    y, z = rng.integers(0, 3, 8), rng.normal(size=(8, 3)).astype("float32")
    plain = BalancedLoss(Surrogate([1, 1, 1]))
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, z)
    np.testing.assert_allclose(float(plain(y, z)), float(expected), rtol=1e-6)
    own = BalancedLoss(Surrogate([6, 3, 1], q=0.3, weights=EFFECTIVE))
    np.testing.assert_allclose(float(own(y, z)), own_formula(y, z).mean(), rtol=1e-5)
    labels = Surrogate([0.2, 0.6], weights=[1, 2], binary=True)
    assert labels.margins.shape == (2, 2)
    np.testing.assert_array_equal(labels.weights, [[1, 2], [1, 2]])
    again = BalancedLoss.from_config(BalancedLoss(labels).get_config())
    assert again.get_config() == BalancedLoss(labels).get_config()


@pytest.mark.parametrize("q", [0.0, 0.3])
def test_shift_margins_and_weights_of_a_surrogate_work_together(q, rng):
    shift, margins, weights = rng.normal(size=3), np.array([0.5, 2.0, 0.502]), np.array([1, 2, 3])
    y, z = rng.integers(0, 3, 8), rng.normal(size=(8, 3)).astype("float32")
    own = BalancedLoss(
        Surrogate([6, 3, 1], q=q, shift=shift, margins=margins, weights=weights), reduction=None
    )
    log_s = oracle.log_softmax(z[:, None, :] / margins[:, None] + shift)
    of_class = weights * oracle.psi(np.einsum("bkk->bk", log_s), q)
    np.testing.assert_allclose(
        ops.convert_to_numpy(own(y, z)), of_class[np.arange(8), y], rtol=1e-5
    )
    soft = rng.dirichlet(np.ones(3), 8).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(own(soft, z)), (soft * of_class).sum(axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", sorted({"float32", DTYPE}))
@pytest.mark.parametrize("q", [0.0, 0.3])
def test_a_sure_and_wrong_probability_is_finite(q, dtype):
    """At 0 as at 1: of both the loss is that of the smallest number of the dtype."""
    expected = oracle.psi(np.log(np.float64(np.finfo(dtype).tiny)), q)
    loss = BinaryGLALoss(0.5, q=q, from_logits=False, reduction=None, dtype=dtype)
    got = ops.convert_to_numpy(loss(np.array([1.0, 0.0]), np.array([0.0, 1.0], dtype)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    loss = GLALoss([1, 1], q=q, from_logits=False, reduction=None, dtype=dtype)
    got = ops.convert_to_numpy(loss(np.array([1, 0]), np.array([[1, 0], [0, 1]], dtype)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weights": [1, 2]},
            r"`weights` must be positive numbers of shape \(3,\), or one for all",
        ),
        (
            {"weights": [1, 0, 2]},
            r"`weights` must be positive.*Received: weights=\[1.0, 0.0, 2.0\]",
        ),
        ({"margins": -1.0}, "`margins` must be positive numbers"),
        ({"shift": [1, np.nan, 2]}, "`shift` must be finite numbers"),
        ({"shift": "wide"}, "`shift` must be finite numbers"),
        ({"q": 1.0}, r"`q` must be in \[0, 1\)"),
    ],
)
def test_bad_constants_of_a_surrogate(arguments, message):
    with pytest.raises(ValueError, match=message):
        Surrogate([6, 3, 1], **arguments)


def test_a_balanced_loss_needs_a_surrogate():
    with pytest.raises(ValueError, match=r"`surrogate` must be a `Surrogate`. Received: surro"):
        BalancedLoss([6, 3, 1])


def test_representations_show_what_objects_hold():
    assert repr(GLALoss([90, 10], q=0.3)) == "GLALoss(priors=[90.0, 10.0], q=0.3)"
    assert repr(GCALoss(np.arange(1, 1001))).startswith("GCALoss(priors=[1.0, 2.0, 3.0, 4.0")
    assert len(repr(GCALoss(np.arange(1, 1001)))) < 100
    prior = ClassPrior(2, smoothing=1.0)
    assert repr(prior) == "ClassPrior(num_classes=2, smoothing=1.0)"
    prior.adapt([0, 0, 1])
    assert repr(prior) == "ClassPrior(num_classes=2, smoothing=1.0, counts=[2.0, 1.0])"
    assert repr(BalancedLoss(Surrogate([1, 3], q=0.5))).startswith(
        "BalancedLoss(surrogate=Surrogate(priors=[0.25, 0.75], q=0.5, shift=[0.0, 0.0], "
    )
