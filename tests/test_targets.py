"""Every shape of target, mask and weight that Keras users have."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_balanced import (
    BalancedAccuracy,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassCalibrationError,
    ClassPrior,
    Decision,
    GCALoss,
    GLALoss,
    MacroF1,
    gca_loss,
    gla_loss,
    serving,
)

K = 4
PRIORS = [8.0, 4.0, 2.0, 1.0]
LOSSES = {
    "gla": lambda **kwargs: GLALoss(PRIORS, q=0.3, tau=None, **kwargs),
    "gca": lambda **kwargs: GCALoss(PRIORS, q=0.1, margins="cube_root", consistent=False, **kwargs),
}
SHAPES = [(), (6,), (6, 5), (6, 5, 3)]


@pytest.fixture(params=LOSSES)
def make(request):
    return LOSSES[request.param]


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def batch(rng, shape):
    return rng.integers(0, K, shape), rng.standard_normal((*shape, K)).astype("float32")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", ["sparse", "column", "one_hot", "soft"])
def test_any_number_of_leading_axes(make, shape, targets, rng):
    y, z = batch(rng, shape)
    y = {
        "sparse": y,
        "column": np.asarray(y)[..., None],
        "one_hot": np.eye(K)[y],
        "soft": rng.dirichlet(np.ones(K), shape),
    }[targets]
    loss = make(reduction=None)
    values = numpy(loss(y, z))
    assert values.shape == shape
    flat_y = np.reshape(y, (-1, K) if targets in ("one_hot", "soft") else (-1,))
    flat = numpy(loss(flat_y, z.reshape(-1, K)))
    np.testing.assert_allclose(values.ravel(), flat, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_fit_on_sequences_and_images(make, shape, rng):
    _, z = batch(rng, shape)
    model = keras.Sequential([keras.Input((*shape[1:], K)), keras.layers.Dense(K)])
    model.compile("sgd", loss=make())
    history = model.fit(z, z.argmax(-1), epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="dynamic shapes")
def test_shapes_unknown_until_they_run(make, rng):
    import tensorflow as tf

    y, z = batch(rng, (6, 5))
    loss = make()
    unknown = tf.TensorSpec([None, None, None], tf.float32)

    @tf.function(input_signature=[unknown, unknown])
    def dense(y, z):
        return loss(y, z)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32), unknown])
    def sparse(y, z):
        return loss(y, z)

    one_hot = np.eye(K, dtype="float32")[y]
    expected = pytest.approx(float(loss(y, z)), rel=1e-5)
    assert float(sparse(y, z)) == expected
    assert float(dense(one_hot, z)) == expected
    # A last axis of 1 that only shows when it runs must not broadcast.
    with pytest.raises(tf.errors.InvalidArgumentError):
        dense(y[..., None].astype("float32"), z)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA on TensorFlow")
@pytest.mark.parametrize("targets", ["sparse", "soft"])
def test_xla_equals_eager(make, targets, rng, gradient):
    import tensorflow as tf

    y, z = batch(rng, (6,))
    y = y if targets == "sparse" else rng.dirichlet(np.ones(K), 6).astype("float32")
    loss = make()

    def value_and_gradient(y, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(y, z)
        return value, tape.gradient(value, z)

    tensors = tf.constant(y), tf.constant(z)
    compiled = tf.function(value_and_gradient, jit_compile=True)(*tensors)
    for ours, expected in zip(compiled, value_and_gradient(*tensors), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX says what memory it takes")
def test_memory_of_soft_targets_with_margins(rng):
    import jax

    num_classes, size = 200, 64
    z = rng.standard_normal((size, num_classes)).astype("float32")
    y = rng.dirichlet(np.ones(num_classes), size).astype("float32")

    counts = np.arange(1, num_classes + 1)
    num_levels = len(GCALoss(counts).surrogate.levels)

    def loss(z):
        return gca_loss(y, z, counts).sum()

    for function in (loss, jax.grad(loss)):
        memory = jax.jit(function).lower(z).compile().memory_analysis().temp_size_in_bytes
        assert memory < 3 * num_levels * z.nbytes  # Far from 200 * z.nbytes.


# ---------------------------------------------------------------------------- masks and weights


@pytest.mark.parametrize("ignored", [0, 2, 255, -1])
@pytest.mark.parametrize("shape", [(40,), (8, 5)])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_ignored_positions_are_as_if_not_there(make, ignored, shape, reduction, rng, gradient):
    y, z = batch(rng, shape)
    y = np.where(rng.random(shape) < 0.3, ignored, y)
    w = rng.random(shape).astype("float32")
    kept = y != ignored
    loss, plain = make(ignore_class=ignored, reduction=reduction), make(reduction=reduction)
    for weights, kept_weights in [(None, None), (w, w[kept])]:
        np.testing.assert_allclose(
            float(loss(y, z, weights)), float(plain(y[kept], z[kept], kept_weights)), rtol=1e-5
        )
        ours = gradient(lambda z, w=weights: loss(y, z, w), z)
        assert (ours[~kept] == 0).all()
        np.testing.assert_allclose(
            ours[kept],
            gradient(lambda z, w=kept_weights: plain(y[kept], z, w), z[kept]),
            atol=1e-6,
        )


def test_ignore_class_is_that_of_keras(rng):
    y, z = batch(rng, (8, 5))
    y = np.where(rng.random(y.shape) < 0.3, -1, y)
    for reduction in ("sum_over_batch_size", None):
        expected = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1, reduction=reduction
        )(y, z)
        ours = GLALoss(np.ones(K), ignore_class=-1, reduction=reduction)(y, z)
        np.testing.assert_allclose(numpy(ours), numpy(expected), rtol=1e-5)


def test_nan_logits_at_ignored_positions_stay_there(make, rng, gradient):
    y, z = batch(rng, (8,))
    y[3], z[3] = -1, np.nan
    ours = gradient(lambda z: make(ignore_class=-1)(y, z), z)
    assert (ours[3] == 0).all()
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("ignored", [None, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_fewer_axes_with_masks_and_ignored_labels(make, ignored, masked, rng):
    y, z = batch(rng, (8, 5))
    y = y if ignored is None else np.where(rng.random(y.shape) < 0.3, ignored, y)
    w = rng.random(8).astype("float32")
    kept = (y != -1) & (z[..., 0] > 0 if masked else True)
    ours = make(ignore_class=ignored)(y, Masked()(z) if masked else z, w)
    expected = make()(y[kept], z[kept], np.broadcast_to(w[:, None], y.shape)[kept])
    # Without a mask Keras's mean is over all positions.
    np.testing.assert_allclose(float(ours), float(expected), rtol=1e-5)


@pytest.mark.parametrize("label", [-1, K, 255])
@pytest.mark.parametrize("column", [False, True])
def test_labels_that_do_not_count_may_be_anything(make, label, column, rng, gradient):
    y, z = batch(rng, (8, 5))
    kept = z[..., 0] > 0
    padded = np.where(kept, y, label)
    if column:
        padded = padded[..., None]
    expected = float(make()(y[kept], z[kept]))
    assert float(make()(padded, Masked()(z))) == pytest.approx(expected, rel=1e-5)
    w = kept.astype("float32")
    total = make(reduction="sum")
    expected = float(total(y[kept], z[kept]))
    assert float(total(padded, z, w)) == pytest.approx(expected, rel=1e-5)
    ours = gradient(lambda z: total(padded, z, w), z)
    assert np.isfinite(ours).all()
    assert (ours[~kept] == 0).all()


def test_all_ignored_is_zero(make):
    loss = make(ignore_class=-1)
    assert float(loss(np.full(3, -1), np.ones((3, K), "float32"))) == 0.0


def test_functions_give_zero_where_ignored(rng):
    y, z = batch(rng, (6,))
    for function in (gla_loss, gca_loss):
        ours = numpy(function(y, z, PRIORS, ignore_class=int(y[0])))
        np.testing.assert_array_equal(ours == 0, y == y[0])


def test_ignored_class_with_soft_targets_is_refused(make, rng):
    _, z = batch(rng, (6,))
    with pytest.raises(ValueError, match="`ignore_class` needs `y_true` of integer classes"):
        make(ignore_class=0)(np.eye(K)[[0] * 6], z)
    for bad in (0.5, [0, 0.5], [], "0", True):
        with pytest.raises(ValueError, match=r"`ignore_class` must be an integer, or a list.*"):
            make(ignore_class=bad)


@pytest.mark.parametrize("form", [list, tuple, set, np.array])
def test_several_ids_are_ignored_and_stored_plainly(make, form, rng):
    y, z = batch(rng, (40,))
    y[::5] = -1
    kept = ~np.isin(y, [-1, 2])
    loss = make(ignore_class=form([-1, 2]))
    assert loss.get_config()["ignore_class"] in ([-1, 2], [2, -1])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    expected = float(make()(y[kept], z[kept]))
    for ours in (loss, again):
        assert float(ours(y, z)) == pytest.approx(expected, rel=1e-5)


def test_several_ids_everywhere(rng):
    y, z = batch(rng, (40,))
    y[::5] = -1
    kept = ~np.isin(y, [-1, 2])
    prior = ClassPrior(K, ignore_class=[-1, 2], counts=PRIORS)
    np.testing.assert_array_equal(numpy(prior(y)) == 0, ~kept)
    prior.adapt(y)
    np.testing.assert_array_equal(prior.counts, np.bincount(y[kept], minlength=K))
    for metric in (BalancedAccuracy, ClassCalibrationError):
        values = [
            float(metric(K, ignore_class=ignored)(y_true, ops.softmax(y_pred)))
            for ignored, y_true, y_pred in [([-1, 2], y, z), (None, y[kept], z[kept])]
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    for function in (gla_loss, gca_loss):
        ours = numpy(function(y, z, PRIORS, ignore_class=[-1, 2]))
        np.testing.assert_array_equal(ours == 0, ~kept)


@pytest.mark.parametrize("ignored", [0, [0, 1], -1])
def test_ids_to_ignore_need_ids(ignored, rng):
    y, z = batch(rng, (6,))
    metrics = [
        BalancedAccuracy(K, ignore_class=ignored),
        ClassCalibrationError(K, ignore_class=ignored),
    ]
    for metric in metrics[: 1 if ignored == -1 else 2]:
        with pytest.raises(ValueError, match="`ignore_class` needs `y_true` of integer classes"):
            metric(np.eye(K)[y], z)


@pytest.mark.parametrize("absent", [0, 1, K - 1])
def test_what_does_not_count_stands_for_a_class_that_occurs(absent, rng, gradient):
    counts = np.where(np.arange(K) == absent, 0, PRIORS)
    target = (counts > 0) / (K - 1)
    y = rng.choice(np.flatnonzero(counts), 12)
    _, z = batch(rng, (12,))
    w = (rng.random(12) < 0.5).astype("float32")
    expected = float(GLALoss(counts, target_priors=target, reduction="sum")(y, z, w))
    junk = np.where(w == 0, 99, y)
    for labels, ignored in [(y, None), (junk, None), (np.where(w == 0, absent, y), absent)]:
        loss = GLALoss(counts, target_priors=target, ignore_class=ignored, reduction="sum")
        assert float(loss(labels, z, w)) == pytest.approx(expected, rel=1e-5)
        slope = gradient(lambda z, loss=loss, labels=labels: loss(labels, z, w), z)
        assert np.isfinite(slope).all()


def test_an_ignored_label_of_weight_0_is_no_part_of_the_mean(make, rng):
    y, z = batch(rng, (6,))
    y[:] = [0, 1, 2, 3, 3, 2]
    w = np.array([0, 1, 1, 0, 1, 1], "float32")
    expected = make(reduction="sum")(y[1:], z[1:], w[1:]) / 5
    assert float(make(ignore_class=0)(y, z, w)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "bool"])
@pytest.mark.parametrize("ignored", [None, -1, 255, 2**40])
def test_labels_of_any_integer_dtype(make, dtype, ignored, rng):
    y, z = batch(rng, (40,))
    y = (y > 1).astype(dtype)
    ids = y.astype("int64")
    if ignored == 255 and dtype.startswith("u"):
        y[::3], ids = 255, np.delete(ids, np.s_[::3])
        z_kept = np.delete(z, np.s_[::3], axis=0)
    expected = float(make()(ids, z if len(ids) == 40 else z_kept))
    assert float(make(ignore_class=ignored)(y, z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_the_largest_number_can_be_padding(dtype, rng):
    if dtype == "uint32" and keras.backend.backend() == "jax":
        pytest.skip("JAX has 32 bits, one of them the sign")
    y, z = batch(rng, (40,))
    padding = int(np.iinfo(dtype).max)
    padded = np.where(y == 0, padding, y).astype(dtype)
    for function in (gla_loss, gca_loss):
        ours = numpy(function(padded, z, PRIORS, ignore_class=padding))
        np.testing.assert_array_equal(ours == 0, y == 0)
    prior = ClassPrior(K, ignore_class=padding, counts=PRIORS)
    np.testing.assert_array_equal(numpy(prior(padded)) == 0, y == 0)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has 32 bits")
def test_arrays_keep_their_precision(make, rng):
    """Lists, which Python has in float64 only, do not."""
    y, z = rng.integers(0, K, 40), rng.standard_normal((40, K))
    loss = make(reduction=None, dtype="float64")
    expected = numpy(loss(y, ops.convert_to_tensor(z)))
    np.testing.assert_array_equal(numpy(loss(y, z)), expected)
    np.testing.assert_allclose(numpy(loss(y, z.tolist())), expected, rtol=1e-5)


@pytest.mark.parametrize("time", [1, 2, 5])
def test_binary_labels_of_steps_with_or_without_an_axis_of_1(time, rng):
    y = rng.integers(0, 2, (6, time))
    z = rng.standard_normal((6, time)).astype("float32")
    w = rng.random((6, time)).astype("float32")
    loss = BinaryGLALoss(0.2)
    expected = float(loss(y.ravel(), z.ravel(), w.ravel()))
    for labels in (y, y[..., None]):
        for logits in (z, z[..., None]):
            assert float(loss(labels, logits, w)) == pytest.approx(expected, rel=1e-5)


def test_negative_weights_are_weights(make, rng):
    y, z = batch(rng, (20,))
    w = rng.standard_normal(20).astype("float32")
    each = numpy(make(reduction=None)(y, z))
    np.testing.assert_allclose(numpy(make(reduction=None)(y, z, w)), w * each, rtol=1e-5)


def test_two_batches_of_one_hot_targets():
    prior = ClassPrior(K)
    prior.adapt([np.eye(K)[[0, 0, 1]], np.eye(K)[[2]]])
    np.testing.assert_array_equal(prior.counts, [2, 1, 1, 0])
    with pytest.raises(ValueError, match="one-hot vector; batch them"):
        prior.adapt([np.eye(K)[0], np.eye(K)[1]])


class Masked(keras.layers.Layer):
    """Passes its input on, with a mask where the first feature is positive."""

    supports_masking = True

    def call(self, inputs):
        return inputs + 0.0

    def compute_mask(self, inputs, previous_mask=None):
        return inputs[..., 0] > 0


@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_masks_of_layers(make, ignored, weighted, rng):
    y, z = batch(rng, (8, 5))
    w = rng.random((8, 5)).astype("float32") if weighted else None
    mask = z[..., 0] > 0
    kept = mask if ignored is None else mask & (y != ignored)
    ours = make(ignore_class=ignored)(y, Masked()(z), w)
    expected = make()(y[kept], z[kept], w[kept] if weighted else None)
    np.testing.assert_allclose(float(ours), float(expected), rtol=1e-5)


def test_mask_of_embedding_in_fit(make, rng):
    tokens = rng.integers(1, 20, (16, 7))
    tokens[:, 4:] = 0
    y = rng.integers(0, K, (16, 7))
    model = keras.Sequential([keras.layers.Embedding(20, 8, mask_zero=True), keras.layers.Dense(K)])
    model.compile("sgd", loss=make())
    z = model.predict(tokens, verbose=0)
    expected = float(make()(y[:, :4], z[:, :4]))
    assert model.evaluate(tokens, y, batch_size=16, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
@pytest.mark.parametrize("targets", ["sparse", "one_hot"])
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", None]
)
def test_weights_of_any_leading_axes(make, shape, targets, reduction, rng):
    y, z = batch(rng, shape)
    y = y if targets == "sparse" else np.eye(K)[y]
    loss = make(reduction=reduction)
    for rank in range(1, len(shape) + 1):
        w = rng.random(shape[:rank]).astype("float32")
        full = np.broadcast_to(w.reshape(w.shape + (1,) * (len(shape) - rank)), shape)
        np.testing.assert_allclose(numpy(loss(y, z, w)), numpy(loss(y, z, full)), rtol=1e-6)


def test_weights_in_fit(make, rng):
    y, z = batch(rng, (6, 5, 3))
    w = rng.random(6)
    model = keras.Sequential([keras.Input((5, 3, K)), keras.layers.Dense(K)])
    model.compile("sgd", loss=make())
    logits = model.predict(z, verbose=0)
    expected = float(make()(y, logits, w))
    history = model.fit(z, y, sample_weight=w, verbose=0).history["loss"]
    assert history[0] == pytest.approx(expected, rel=1e-5)


def test_weights_that_do_not_fit(make, rng):
    y, z = batch(rng, (6,))
    with pytest.raises(ValueError, match=r"`sample_weight` must have the leading axes.*\(6, 2\)"):
        make()(y, z, np.ones((6, 2)))


# -------------------------------------------------------------------------- binary, multi-label

BINARY = [
    (BinaryGLALoss, GLALoss, {"q": 0.3}),
    (BinaryGLALoss, GLALoss, {"q": 0.3, "tau": 1.0}),
    (BinaryGCALoss, GCALoss, {}),
    (BinaryGCALoss, GCALoss, {"q": 0.2, "margins": [1.0, 1.5], "consistent": True}),
    (BinaryGCALoss, GCALoss, {"margins": None}),
]


@pytest.mark.parametrize(("binary", "multi", "arguments"), BINARY)
@pytest.mark.parametrize("shape", [(30,), (30, 1), (6, 5)])
def test_one_logit_is_two_logits(binary, multi, arguments, shape, rng, gradient):
    y = rng.integers(0, 2, shape)
    z = (10 * rng.standard_normal(shape)).astype("float32")
    pair = np.stack([np.zeros_like(z), z], axis=-1)
    ours = binary(0.1, target_priors=0.3, **arguments)
    theirs = multi([0.9, 0.1], target_priors=[0.7, 0.3], **arguments)
    np.testing.assert_allclose(float(ours(y, z)), float(theirs(y, pair)), rtol=1e-5)
    np.testing.assert_allclose(
        gradient(lambda z: ours(y, z), z),
        gradient(lambda pair: theirs(y, pair), pair)[..., 1],
        atol=1e-6,
    )


@pytest.mark.parametrize(("binary", "_multi", "arguments"), BINARY)
def test_labels_are_independent(binary, _multi, arguments, rng):
    rates = [0.1, 0.5, 0.02]
    y = rng.random((6, 5, 3)).astype("float32")
    z = rng.standard_normal((6, 5, 3)).astype("float32")
    together = numpy(binary(rates, reduction=None, **arguments)(y, z))
    assert together.shape == (6, 5, 3)
    for label, rate in enumerate(rates):
        alone = binary(rate, reduction=None, **arguments)(y[..., label], z[..., label])
        np.testing.assert_allclose(together[..., label], numpy(alone), rtol=1e-5)


def test_even_rates_are_keras_binary_cross_entropy(rng):
    y = rng.integers(0, 2, (6, 3))
    z = rng.standard_normal((6, 3)).astype("float32")
    w = rng.random(6).astype("float32")
    expected = keras.losses.BinaryCrossentropy(from_logits=True)
    for binary in (BinaryGLALoss, BinaryGCALoss):
        ours = binary([0.5, 0.5, 0.5])
        for weights in (None, w):
            np.testing.assert_allclose(
                float(ours(y, z, weights)), float(expected(y, z, weights)), rtol=1e-5
            )


@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
@pytest.mark.parametrize("shapes", [((8,), (8, 1)), ((8, 1), (8,)), ((8, 1), (8, 1))])
def test_columns_do_not_broadcast(binary, shapes, rng):
    y, z = rng.integers(0, 2, 8), rng.standard_normal(8).astype("float32")
    loss = binary(0.1, reduction=None)
    ours = numpy(loss(y.reshape(shapes[0]), z.reshape(shapes[1])))
    np.testing.assert_array_equal(ours, numpy(loss(y, z)))
    assert loss(y[:1], z[:1]).shape == (1,)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="dynamic shapes")
@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
def test_columns_do_not_broadcast_where_shapes_are_unknown(binary, rng):
    """Labels of some (None, None) beside logits of (None, 3): as by themselves, or refused."""
    import tensorflow as tf

    y, z = rng.integers(0, 2, (8, 3)), rng.standard_normal((8, 3)).astype("float32")
    loss = binary([0.1, 0.2, 0.3], reduction=None)
    signature = [tf.TensorSpec((None, None)), tf.TensorSpec((None, 3))]
    function = tf.function(lambda y, z: loss(y, z), input_signature=signature)
    np.testing.assert_allclose(numpy(function(y.astype("float32"), z)), numpy(loss(y, z)), 1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(y[:, :1].astype("float32"), z)


@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
@pytest.mark.parametrize("shape", [(8,), (8, 3)])
def test_nan_logits_of_unknown_labels_stay_there(binary, shape, rng, gradient):
    y = rng.integers(0, 2, shape)
    y[:2] = -1
    z = rng.standard_normal(shape).astype("float32")
    spoilt = np.where(y == -1, np.float32(np.nan), z)
    loss = binary(np.full(shape[1:], 0.2) if shape[1:] else 0.2, ignore_class=-1)
    assert float(loss(y, spoilt)) == float(loss(y, z))
    np.testing.assert_array_equal(
        gradient(lambda z: loss(y, z), spoilt), gradient(lambda z: loss(y, z), z)
    )


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", None])
@pytest.mark.parametrize("name", [*LOSSES, "binary gla", "binary gca"])
def test_a_column_of_weights_is_a_vector_of_them(name, reduction, rng):
    y, z = batch(rng, (6,))
    if name in LOSSES:
        loss = LOSSES[name](reduction=reduction)
    else:
        y, z = y % 2, z[:, 0]
        loss = {"binary gla": BinaryGLALoss, "binary gca": BinaryGCALoss}[name](
            0.2, reduction=reduction
        )
    w = rng.random(6).astype("float32")
    np.testing.assert_array_equal(numpy(loss(y, z, w[:, None])), numpy(loss(y, z, w)))


@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
def test_unknown_labels_are_ignored(binary, rng):
    y = rng.integers(-1, 2, (20, 3))
    z = rng.standard_normal((20, 3)).astype("float32")
    rates = [0.1, 0.5, 0.2]
    values = numpy(binary(rates, reduction=None)(np.maximum(y, 0), z))
    ours = binary(rates, ignore_class=-1)(y, z)
    assert float(ours) == pytest.approx(values[y != -1].mean(), rel=1e-5)


def test_mask_of_a_layer_covers_all_labels(rng):
    y = rng.integers(-1, 2, (8, 5, 3))
    z = rng.standard_normal((8, 5, 3)).astype("float32")
    rates = [0.1, 0.5, 0.2]
    values = numpy(BinaryGLALoss(rates, reduction=None)(np.maximum(y, 0), z))
    kept = (y != -1) & (z[..., :1] > 0)
    ours = BinaryGLALoss(rates, ignore_class=-1)(y, Masked()(z))
    assert float(ours) == pytest.approx(values[kept].mean(), rel=1e-5)
    # And with one rate for all labels.
    values = numpy(BinaryGLALoss(0.1, reduction=None)(np.maximum(y, 0), z))
    ours = BinaryGLALoss(0.1, ignore_class=-1)(y, Masked()(z))
    assert float(ours) == pytest.approx(values[kept].mean(), rel=1e-5)
    # And that of one logit per example.
    ours = BinaryGLALoss(0.1)(np.maximum(y[..., :1], 0), Masked()(z[..., :1]))
    values = numpy(BinaryGLALoss(0.1, reduction=None)(np.maximum(y[..., 0], 0), z[..., 0]))
    assert float(ours) == pytest.approx(values[z[..., 0] > 0].mean(), rel=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="dynamic shapes")
def test_binary_weights_where_the_last_axis_is_unknown(rng):
    import tensorflow as tf

    y, z = rng.integers(0, 2, (4, 3)), rng.standard_normal((4, 3)).astype("float32")
    w = rng.random(4).astype("float32")
    loss = BinaryGLALoss(0.3)
    unknown = tf.TensorSpec((None, None))
    function = tf.function(loss, input_signature=[unknown, unknown, tf.TensorSpec((None,))])
    ours = function(y.astype("float32"), z, w)
    assert float(ours) == pytest.approx(float(loss(y, z, w)), rel=1e-6)


@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
def test_binary_fit(binary, rng):
    x = rng.standard_normal((256, 3)).astype("float32")
    y = (x[:, 0] > 1).astype("int32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), loss=binary(y.mean()))
    history = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
def test_probabilities_of_one_logit(binary, rng):
    y, z = rng.integers(0, 2, 8), rng.standard_normal(8)
    probabilities = (1 / (1 + np.exp(-z))).astype("float32")
    ours = binary(0.1, from_logits=False)(y, probabilities)
    assert float(ours) == pytest.approx(float(binary(0.1)(y, z.astype("float32"))), rel=1e-4)


@pytest.mark.parametrize("label", [2.0, -1.0])
def test_label_that_is_none_gives_nan(label):
    values = numpy(BinaryGLALoss(0.1, reduction=None)(np.array([0, label]), np.zeros(2)))
    np.testing.assert_array_equal(np.isnan(values), [False, True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": 0.0}, r"`priors` must be the positive rate.*in \(0, 1\).*Received: priors=0.0"),
        ({"priors": [0.5, 1.0]}, "`priors` must be the positive rate"),
        ({"priors": [[0.5]]}, "`priors` must be the positive rate"),
        ({"priors": "half"}, "`priors` must be the positive rate.*priors='half'"),
        ({"target_priors": [0.1, 0.2]}, "`target_priors` must be one positive rate"),
        ({"q": 1.0}, r"`q` must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("binary", [BinaryGLALoss, BinaryGCALoss])
def test_bad_binary_arguments(binary, arguments, message):
    with pytest.raises(ValueError, match=message):
        binary(**{"priors": 0.1, **arguments})


@pytest.mark.parametrize(
    ("rates", "y", "z"),
    [
        (0.1, np.zeros(6), np.zeros((6, 2))),
        (0.1, np.zeros((6, 2)), np.zeros((6, 1))),
        ([0.1, 0.2], np.zeros(6), np.zeros((6, 2))),
        ([0.1, 0.2], np.zeros((6, 3)), np.zeros((6, 3))),
        ([0.1, 0.2], np.zeros((6, 1)), np.zeros((6, 1))),
    ],
)
def test_bad_binary_shapes(rates, y, z):
    with pytest.raises(ValueError, match=r"`y_true` and `y_pred` must both be.*rates"):
        BinaryGLALoss(rates)(y, z)


def test_margins_of_many_labels_are_those_of_each():
    rates = np.linspace(0.01, 0.4, 100)
    margins = BinaryGCALoss(rates, margins="cube_root").surrogate.margins
    for label in (0, 50, 99):
        alone = BinaryGCALoss(rates[label], margins="cube_root").surrogate.margins
        np.testing.assert_allclose(margins[label], alone, rtol=1e-12)


@pytest.mark.parametrize("label", [-1, 200])
@pytest.mark.parametrize("loss", [gla_loss, gca_loss])
def test_a_label_out_of_range_is_seen_among_many_classes(loss, label, rng):
    z = rng.standard_normal((3, 200)).astype("float32")
    y, counts = np.array([0, label, 1]), np.arange(1, 201)
    if keras.backend.backend() == "jax":
        losses = ops.convert_to_numpy(loss(y, z, counts))
        np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
        return
    with pytest.raises(Exception, match=str(label)):
        loss(y, z, counts)


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda y, z: serving.find_decision(y, z, GLALoss([3, 1])), "in the right order"),
        (lambda y, z: BalancedAccuracy(2)(y, y), "`BinaryBalancedAccuracy`.*in the right order"),
        (lambda y, z: BalancedAccuracy(2)(y, z[:, :1]), r"use `BinaryBalancedAccuracy`\.$"),
        (lambda y, z: BinaryGLALoss(0.1)(y, z), "Two outputs, .* `GLALoss`"),
        (lambda y, z: BinaryGLALoss([0.1, 0.2, 0.3])(y, z), "and 3 rates$"),
        (
            lambda y, z: MacroF1(2, decision=Decision(BinaryGLALoss(0.1))),
            r"any other score takes `decision\(y_pred\)`",
        ),
    ],
)
def test_another_number_of_outputs_is_told_what_takes_it(call, hint, rng):
    with pytest.raises(ValueError, match=hint):
        call(np.arange(20) % 2, rng.normal(size=(20, 2)).astype("float32"))
