"""Labels, classes and counts as people have them: right, or refused in their words."""

import collections
import itertools

import keras
import matplotlib as mpl
import numpy as np
import oracle
import pandas as pd
import pytest
import scipy.sparse
from keras import ops
from matplotlib import pyplot

from keras_balanced import (
    BalancedAccuracy,
    BalancedLoss,
    BinaryBalancedAccuracy,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassCalibrationError,
    ClassPrior,
    ClassRecall,
    Decision,
    GCALoss,
    GLALoss,
    LogitAdjustment,
    MacroF1,
    ShotRecall,
    Surrogate,
    callbacks,
    gca_loss,
    gla_loss,
    plots,
)

mpl.use("Agg")
BACKEND = keras.backend.backend()
FEW = [60.0, 30.0, 10.0]
LOSSES = {
    "gla": lambda priors, **kw: GLALoss(priors, q=0.3, tau=None, **kw),
    "gla tau": lambda priors, **kw: GLALoss(priors, q=0.3, tau=1.0, **kw),
    "gca": lambda priors, **kw: GCALoss(priors, q=0.2, margins="cube_root", consistent=False, **kw),
    "gca consistent": lambda priors, **kw: GCALoss(
        priors, margins="cube_root", consistent=True, **kw
    ),
    "weighted": lambda priors, **kw: GCALoss(priors, q=0.3, margins=None, consistent=False, **kw),
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def numpy(x):
    return ops.convert_to_numpy(x)


# A class that never occurs.


@pytest.mark.parametrize("absent", [0, 2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_an_absent_class_changes_no_constant_of_the_others(name, absent, rng):
    """The loss is that of the other classes with one more logit in the softmax."""
    occurs = np.arange(4) != absent
    counts, target = np.zeros(4), np.zeros(4)
    counts[occurs], target[occurs] = FEW, [0.2, 0.3, 0.5]
    wide = LOSSES[name](counts, target_priors=target).surrogate
    narrow = LOSSES[name](FEW, target_priors=[0.2, 0.3, 0.5]).surrogate
    for constant in ("priors", "target_priors", "shift", "margins", "weights"):
        np.testing.assert_array_equal(getattr(wide, constant)[occurs], getattr(narrow, constant))
    assert wide.shift[absent] == narrow.shift.max()
    assert wide.margins[absent] == wide.weights[absent] == 1.0
    assert len(wide.levels) == len(narrow.levels)


def test_absent_classes_among_many_leave_the_levels_as_they_are():
    counts = 100.0 ** -np.linspace(0, 1, 200)
    occurs = np.arange(240) % 6 != 5
    wide = np.zeros(240)
    wide[occurs] = counts
    ours = GCALoss(wide, margins="cube_root", target_priors=occurs / 200).surrogate
    narrow = GCALoss(counts, margins="cube_root").surrogate
    np.testing.assert_allclose(ours.margins[occurs], narrow.margins, rtol=1e-12)
    np.testing.assert_allclose(ours.levels, narrow.levels, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_posterior_of_an_absent_class_is_0_whatever_its_logit(name, rng):
    z = rng.normal(0, 3, (6, 4)).astype("float32")
    z[:, 1] = [-50, 0, 50, 1000, 3, 3]
    occurs = np.array([True, False, True, True])
    wide = LOSSES[name]([60, 0, 30, 10], target_priors=[1, 0, 1, 1])
    narrow = LOSSES[name](FEW)
    expected = narrow.posterior(z[:, occurs])
    for ours in (wide.posterior(z), np.exp(numpy(wide.log_posterior(z)))):
        np.testing.assert_allclose(ours[:, occurs], expected, rtol=2e-5, atol=1e-7)
        np.testing.assert_array_equal(ours[:, 1], 0.0)
    mixes = [6, 0, 3, 1], [6, 3, 1]
    np.testing.assert_allclose(
        wide.posterior(z, priors=mixes[0])[:, occurs],
        narrow.posterior(z[:, occurs], priors=mixes[1]),
        rtol=2e-5,
    )
    assert np.isfinite(numpy(wide.log_posterior(z))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logit_adjustment_masks_an_absent_class(dtype):
    layer = LogitAdjustment([0, 90, 10], target_priors=[0, 1, 1], dtype=dtype)
    logits = np.array([[30.0, 1.0, 0.0], [500.0, 3.0, -1.0]])
    ours = numpy(ops.cast(layer(ops.convert_to_tensor(logits, dtype=dtype)), "float32"))
    plain = numpy(LogitAdjustment([90, 10])(logits[:, 1:].astype("float32")))
    np.testing.assert_allclose(ours[:, 1:], plain, atol=0.05)
    assert np.isfinite(ours).all()
    assert (ours[:, 0] < -1e4).all()


@pytest.mark.parametrize("name", LOSSES)
def test_training_pushes_down_the_logit_of_an_absent_class(name, rng, gradient):
    loss = LOSSES[name]([60, 0, 30, 10], target_priors=[1, 0, 1, 1])
    y = np.array([0, 2, 3])
    slope = gradient(lambda z: ops.reshape(loss(y, z), (1,)), rng.normal(size=(3, 4)).astype("f"))
    assert (slope[:, 1] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_label_of_an_absent_class_is_out_of_range(name, rng):
    loss = LOSSES[name]([60, 0, 30, 10], target_priors=[1, 0, 1, 1], reduction=None)
    z = rng.normal(size=(2, 4)).astype("float32")
    if BACKEND == "jax":
        np.testing.assert_array_equal(np.isnan(numpy(loss(np.array([1, 2]), z))), [True, False])
    else:
        with pytest.raises(ValueError, match=r"except \[1\], whose prior is 0.*labels \[1"):
            loss(np.array([1, 2]), z)
    soft = np.array([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]], "float32")
    np.testing.assert_array_equal(np.isnan(numpy(loss(soft, z))), [True, False])
    ignoring = LOSSES[name]([60, 0, 30, 10], target_priors=[1, 0, 1, 1], ignore_class=1)
    assert np.isfinite(float(ignoring(np.array([1, 2]), z)))


@pytest.mark.parametrize(
    ("priors", "target", "message"),
    [
        ([0, 5, 5], None, r"`priors` must be positive.*class ids \[0\].*start at 1\?.*smoothing"),
        ([0, 5, 5], [1, 1, 1], r"must be 0 for a class that never occurs.*class ids \[0\]"),
        ([5, 5, 5], [0, 1, 1], r"`target_priors` must be positive for every class that occurs"),
        ([0, 5, 5], [1, 0, 1], "`target_priors` must be positive for every class that occurs"),
        ([0, 0, 5], [0, 0, 1], "`priors` must be positive"),
        ([1e-40, 0.5, 0.5], None, r"`priors` must be at least 1e-30.*class ids \[0\]"),
    ],
)
def test_mixes_that_do_not_fit(priors, target, message):
    for cls in (GLALoss, GCALoss, LogitAdjustment):
        with pytest.raises(ValueError, match=message):
            cls(priors, target_priors=target)


def test_a_model_with_a_reserved_class_saves_and_loads(tmp_path, rng):
    x = rng.normal(size=(64, 4)).astype("float32")
    y = 1 + rng.integers(0, 2, 64)
    prior = ClassPrior(3)
    prior.adapt(y)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", loss=GCALoss(prior, target_priors=[0, 1, 1]))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == model.loss.get_config()
    posterior = loaded.loss.posterior(loaded.predict(x, verbose=0))
    assert (posterior.argmax(axis=-1) > 0).all()


# Label smoothing.


def smoothed(onehot, eps, priors, target):
    mass = oracle.normalize(np.asarray(priors) / target)
    return (1 - eps) * onehot + eps * mass


@pytest.mark.parametrize("name", LOSSES)
def test_label_smoothing_is_that_of_the_targets(name, rng):
    z, y = rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)
    target = [0.2, 0.3, 0.5]
    plain = LOSSES[name](FEW, target_priors=target, reduction=None)
    ours = LOSSES[name](FEW, target_priors=target, reduction=None, label_smoothing=0.1)
    soft = smoothed(np.eye(3)[y], 0.1, np.array(FEW) / 100, target)
    expected = numpy(plain(soft.astype("float32"), z))
    np.testing.assert_allclose(numpy(ours(y, z)), expected, rtol=1e-5)
    np.testing.assert_allclose(numpy(ours(np.eye(3, dtype="f")[y], z)), expected, rtol=1e-5)
    # Targets that do not sum to 1 stay in proportion.
    half = numpy(ours(np.eye(3, dtype="f")[y] / 2, z))
    np.testing.assert_allclose(half, expected / 2, rtol=1e-5)


def test_label_smoothing_of_plain_accuracy_is_keras_own(rng):
    z, y = rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)
    ours = GLALoss(FEW, target_priors=FEW, label_smoothing=0.2)
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    one_hot = np.eye(3, dtype="f")[y]
    np.testing.assert_allclose(float(ours(y, z)), float(keras_own(one_hot, z)), rtol=1e-6)
    binary = BinaryGLALoss(0.2, target_priors=0.2, label_smoothing=0.2)
    keras_own = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    labels = (y > 0).astype("float32")
    np.testing.assert_allclose(
        float(binary(labels, z[:, 0])), float(keras_own(labels, z[:, 0])), 1e-6
    )


@pytest.mark.parametrize("functional", [gla_loss, gca_loss])
def test_label_smoothing_of_the_functions(functional, rng):
    z, y = rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 3, 8)
    cls = {gla_loss: GLALoss, gca_loss: GCALoss}[functional]
    expected = cls(FEW, reduction=None, label_smoothing=0.3)(y, z)
    ours = functional(y, z, FEW, label_smoothing=0.3)
    np.testing.assert_allclose(numpy(ours), numpy(expected), rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_smoothing_keeps_the_decision_where_classes_overlap(num_classes, rng):
    """Uniform smoothing with the same priors does not: a majority class of ratio 99 never wins."""
    target = np.full(num_classes, 1 / num_classes)
    priors = oracle.normalize(99.0 ** -np.linspace(0, 1, num_classes))
    eta = rng.dirichlet(np.full(num_classes, 0.05), 500)
    decided = (eta * target / priors).argmax(axis=-1)
    mass = GLALoss(priors, target_priors=target, label_smoothing=0.1).surrogate.smoothing_mass
    ours = ((0.9 * eta + mass) * target / priors).argmax(axis=-1)
    np.testing.assert_array_equal(ours, decided)
    uniform = 0.9 * eta + 0.1 / num_classes
    assert not ((uniform * target / priors).argmax(axis=-1) == 0).any()
    assert (decided == 0).any()


@pytest.mark.parametrize("name", ["gla", "gca", "weighted"])
def test_posterior_takes_the_smoothing_away(name, rng):
    """Of logits that minimise the smoothed loss: found by the posterior without smoothing."""
    eta = rng.dirichlet(np.ones(3), 4) * 0.9 + 0.1 / 3
    priors = np.array(FEW) / 100
    eta_smoothed = smoothed(eta, 0.1, priors, np.full(3, 1 / 3))
    ours = LOSSES[name](FEW, label_smoothing=0.1)
    plain = LOSSES[name](FEW)
    # Logits whose posterior under the training mix is the smoothed one.
    z = np.zeros((4, 3), "float32")
    for _ in range(40):
        now = plain.posterior(z, priors=priors)
        z += (np.log(eta_smoothed) - np.log(now)).astype("float32")
    np.testing.assert_allclose(plain.posterior(z, priors=priors), eta_smoothed, atol=1e-5)
    np.testing.assert_allclose(ours.posterior(z, priors=priors), eta, atol=1e-4)
    balanced = eta / priors
    balanced /= balanced.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ours.posterior(z), balanced, atol=1e-4)


@pytest.mark.parametrize("cls", [BinaryGLALoss, BinaryGCALoss])
def test_binary_posterior_takes_the_smoothing_away(cls):
    rate, eta = 0.1, np.array([0.05, 0.3, 0.9])
    eta_smoothed = 0.8 * eta + 0.2 * rate
    plain, ours = cls(rate), cls(rate, label_smoothing=0.2)
    z = np.zeros(3, "float32")
    for _ in range(40):
        now = plain.posterior(z, priors=rate)
        logit = np.log(eta_smoothed / (1 - eta_smoothed)) - np.log(now / (1 - now))
        z += logit.astype("float32")
    np.testing.assert_allclose(ours.posterior(z, priors=rate), eta, atol=1e-4)


@pytest.mark.parametrize("value", [-0.1, 1.0, "0.1", np.nan])
def test_bad_label_smoothing(value):
    for cls in (GLALoss, GCALoss):
        with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\)"):
            cls(FEW, label_smoothing=value)


# Class mixes and counts in tables.

LABELS = np.repeat([0, 1, 2], [10, 60, 30])
TABLES = {
    "value_counts": pd.Series(LABELS).value_counts(),  # Most frequent first.
    "value_counts of float": pd.Series(LABELS.astype("float64")).value_counts(),
    "normalized": pd.Series(LABELS).value_counts(normalize=True),
    "series": pd.Series([30, 10, 60], index=[2, 0, 1]),
    "dict": {1: 60, 2: 30, 0: 10},
    "counter": collections.Counter([2] * 30 + [1] * 60 + [0] * 10),
}


@pytest.mark.parametrize("name", TABLES)
def test_counts_in_a_table_are_aligned_by_their_keys(name):
    table, plain = TABLES[name], np.array([10.0, 60.0, 30.0])
    for cls in (GLALoss, GCALoss, LogitAdjustment):
        ours, expected = cls(table, target_priors=table), cls(plain, target_priors=plain)
        np.testing.assert_allclose(ours.surrogate.priors, plain / 100)
        np.testing.assert_allclose(ours.surrogate.target_priors, plain / 100)
        reloaded = cls.from_config(ours.get_config())
        np.testing.assert_allclose(reloaded.surrogate.shift, expected.surrogate.shift, atol=1e-9)
    surrogate = Surrogate(plain, weights=table)
    np.testing.assert_allclose(surrogate.weights / surrogate.weights.sum(), plain / 100)
    np.testing.assert_allclose(ClassPrior(3, counts=table).priors, plain / 100)
    if name != "normalized":
        assert ShotRecall(table, "few", (50, 20)).get_config()["counts"] == plain.tolist()


def test_class_counts_of_a_table():
    ax = plots.class_counts(TABLES["value_counts"])
    assert [bar.get_height() for bar in ax.patches] == [10, 60, 30]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.Series(list("abb")).value_counts(), r"must have the class ids.*'b'.*`.cat.codes`"),
        ({"cat": 3, "dog": 4}, "must have the class ids"),
        ({0: 3, -1: 4}, "must have the class ids"),
        ({0.5: 3, 1: 4}, "must have the class ids"),
        (pd.Series([1, 2, 3], index=[0, 0, 1]), "each class id once"),
        (pd.DataFrame({"n": [3, 4]}), "Received: a DataFrame; pass one of its columns"),
        (pd.DataFrame({"priors": [3, 4]}), "Received: a DataFrame"),
        ({0: 3, 2: 4}, r"`priors` must be positive.*class ids \[1\]"),
        (pd.Series(["3", "x"]), "`priors` must be"),
    ],
)
def test_tables_that_are_no_class_mix(table, message):
    for cls in (GLALoss, GCALoss, LogitAdjustment):
        with pytest.raises(ValueError, match=message):
            cls(table)


# What `adapt` counts.


def counted(data, num_classes=3, **kwargs):
    prior = ClassPrior(num_classes, **kwargs)
    prior.adapt(*data) if isinstance(data, tuple) else prior.adapt(data)
    return prior.counts.tolist()


def test_lists_of_unequal_lengths_are_counted():
    assert counted([[1, 2], [1], [2, 2, 1]]) == [0, 3, 3]
    assert counted([[0], [], [2, 2]]) == [1, 0, 2]
    with pytest.raises(ValueError, match="lists of unequal lengths"):
        counted(([[1, 2], [1]], [1.0, 2.0]))


def test_ragged_labels_are_counted_without_padding():
    tf = pytest.importorskip("tensorflow")
    ragged = tf.ragged.constant([[1, 2], [1], [], [2, 2, 1]])
    x = np.zeros((4, 1), "float32")
    assert counted(ragged) == [0, 3, 3]
    dataset = tf.data.Dataset.from_tensor_slices((x, ragged))
    assert counted(dataset.batch(3)) == [0, 3, 3]
    assert counted(dataset.ragged_batch(2)) == [0, 3, 3]
    weights = tf.ragged.constant([[1.0, 2.0], [3.0], [], [4.0, 5.0, 6.0]])
    assert counted((ragged, weights)) == [0, 10, 11]
    assert counted((ragged, np.array([1.0, 10.0, 5.0, 100.0]))) == [0, 111, 201]
    weighted = tf.data.Dataset.from_tensor_slices((x, ragged, weights)).batch(2)
    assert counted((weighted, True)) == [0, 10, 11]
    deep = tf.ragged.constant([[[0], [1, 1]], [[2]]])
    assert counted(deep) == [1, 2, 1]
    one_hot = tf.RaggedTensor.from_row_lengths(np.eye(3, dtype="f")[[0, 2, 2]], [1, 2])
    assert counted(one_hot) == [1, 0, 2]
    with pytest.raises(ValueError, match="`sample_weight` of ragged labels"):
        counted((ragged, np.ones((4, 3))))


def test_sparse_labels_are_counted_by_what_they_hold():
    dense = np.eye(3)[[1, 2, 2, 0]]
    assert counted(scipy.sparse.csr_matrix(dense)) == [1, 1, 2]  # One-hot.
    tf = pytest.importorskip("tensorflow")
    assert counted(tf.sparse.from_dense(dense)) == [1, 1, 2]
    sequences = tf.sparse.from_dense([[1, 2, 0, 0, 0], [2, 2, 1, 0, 0]])  # 0 is padding.
    assert counted(sequences) == [0, 2, 3]
    labels = tf.sparse.from_dense([[1, 0, 0], [1, 1, 0]])
    prior = ClassPrior(3, multi_label=True, smoothing=1.0)
    prior.adapt(labels)
    np.testing.assert_array_equal(prior.counts, [[0, 2], [1, 1], [2, 0]])
    with pytest.raises(ValueError, match="`sample_weight` of ragged labels"):
        counted((sequences, np.ones(2)))


def test_masked_arrays_are_counted_without_what_they_mask():
    labels = np.ma.masked_equal([0, 1, 2, 2, 9], 9)
    assert counted(labels) == [1, 1, 2]
    assert counted((labels, np.array([1.0, 2.0, 3.0, 4.0, np.pi]))) == [1, 2, 7]
    assert counted(np.ma.masked_array([0, 1, 1])) == [1, 2, 0]
    with pytest.raises(ValueError, match=r"`y_true` must not be a masked array.*ignore_class"):
        GLALoss(FEW)(labels, np.zeros((5, 3), "float32"))


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series([0, 1, 2, 2]).iloc[[3, 1, 0, 2]],
        pd.Series([0, 1, 2, 2], dtype="Int64"),
        pd.Series([0, 1, 2, 2], dtype="category").cat.codes,
        pd.DataFrame({"y": [0, 1, 2, 2]}),
        np.array([0, 1, 2, 2], dtype=object),
        np.array([[0], [1], [2], [2]], "uint8"),
        np.array([0.0, 1.0, 2.0, 2.0]),
        [0, 1, 2, 2],
        [[0], [1], [2], [2]],
        range(0, 3),
    ],
    ids=str,
)
def test_labels_in_other_forms_are_read_by_adapt(labels):
    expected = [1, 1, 1] if isinstance(labels, range) else [1, 1, 2]
    assert counted(labels) == expected


def test_labels_of_weight_0_may_be_anything():
    weights = np.array([1.0, 0.0, 2.0])
    assert counted((np.array([0, -1, 2]), weights)) == [1, 0, 2]
    assert counted((np.array([0, np.nan, 2]), weights)) == [1, 0, 2]
    assert counted((np.array([[1, 0, 0], [np.nan] * 3, [0, 0, 1.0]]), weights)) == [1, 0, 2]
    prior = ClassPrior(2, multi_label=True)
    prior.adapt(np.array([[0, 1], [np.nan, -1], [1, 1]]), sample_weight=weights)
    np.testing.assert_array_equal(prior.counts, [[1, 2], [0, 3]])


@pytest.mark.parametrize("name", ["gla", "gca", "weighted"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 3)])
def test_padded_rows_of_one_hot_targets_are_invalid(name, shape, rng):
    z = rng.normal(size=shape).astype("float32")
    y = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]], "float32").reshape(shape)
    loss = LOSSES[name](FEW, reduction=None)
    np.testing.assert_array_equal(np.isnan(numpy(loss(y, z))).ravel(), [0, 0, 0, 1])
    for metric in (
        BalancedAccuracy(3),
        ClassCalibrationError(3, from_logits=True),
        ShotRecall(FEW, "few"),
        MacroF1(3),
    ):
        assert np.isnan(float(metric(y, z)))
        metric.reset_state()
        assert np.isfinite(float(metric(y, z, (y[..., 0] >= 0).astype("float32"))))


@pytest.mark.parametrize("unknown", [-1.0, 2.0])
def test_calibration_of_labels_that_are_not_known(unknown):
    p = np.array([[0.5, 0.5, 0.5], [0.2, 0.9, 0.3]], "float32")
    y = np.array([[1.0, unknown, 0.0], [0.0, 1.0, unknown]], "float32")
    assert np.isnan(float(ClassCalibrationError(3)(y, p)))
    if unknown < 0:
        known = ClassCalibrationError(3, ignore_class=-1)(y, p)
        assert float(known) == pytest.approx((0.5 + 0.2 + 0.1 + 0.5) / 4)


@pytest.mark.parametrize("garbage", [np.nan, -7.0, 1e30])
@pytest.mark.parametrize("name", ["gla", "gca"])
def test_soft_targets_of_weight_0_may_be_anything(name, garbage, rng):
    z = rng.normal(size=(3, 3)).astype("float32")
    y = np.eye(3, dtype="float32")
    weights = np.array([1.0, 0.0, 2.0], "float32")
    loss = LOSSES[name](FEW)
    expected = float(loss(y, z, weights))
    bad = y.copy()
    bad[1] = garbage
    np.testing.assert_allclose(float(loss(bad, z, weights)), expected, rtol=1e-6)
    for metric in (
        BalancedAccuracy(3),
        ClassCalibrationError(3, from_logits=True),
        ShotRecall(FEW, "few"),
    ):
        expected = float(metric(y, z, weights))
        metric.reset_state()
        assert float(metric(bad, z, weights)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["a", "b"]), "Labels must be integer classes.*text.*`LabelEncoder`"),
        (pd.Series(["a", "b"], dtype="category"), "Labels must be integer classes.*text"),
        (pd.Series([1, None], dtype="Int64"), "Labels must be integer classes.*nan"),
        (np.array([0, "b"], dtype=object), "Labels must be integer classes"),
        (np.array(["2020-01-01"], "datetime64[D]"), "of dates"),
        (np.array([0, 3]), r"must be in \[0, 3\).*\[3\].*`ignore_class`.*start at 1"),
        (np.array([0, -100]), r"must be in \[0, 3\).*\[-100\].*`ignore_class`"),
        ({"a": np.array([0]), "b": np.array([1])}, "the labels of one output"),
    ],
)
def test_labels_that_adapt_refuses(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassPrior(3).adapt(labels)


@pytest.mark.parametrize("values", [np.nan, -1.0, 2.0])
def test_multi_label_errors_show_the_values(values):
    labels = np.array([[0, 1], [values, 0]])
    with pytest.raises(ValueError, match=rf"Received: labels \[{values}\]"):
        ClassPrior(2, multi_label=True).adapt(labels)


class Several(keras.utils.PyDataset):
    def __init__(self, targets):
        super().__init__()
        self.targets = targets

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return np.zeros((2, 1)), self.targets


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_several_targets_are_refused(kind):
    first, second = np.array([0, 1]), np.array([2, 2])
    targets = {"a": first, "b": second} if kind is dict else kind([first, second])
    with pytest.raises(ValueError, match=r"must have the labels of one output.*pass those of one"):
        ClassPrior(3).adapt(Several(targets))
    with pytest.raises(ValueError, match="must have the labels of one output"):
        ClassPrior(3).adapt(iter([(np.zeros((2, 1)), targets)]))


# Whether labels are class ids or one-hot targets: both in one pass, decided at the end.

IDS = {
    "pairs": (2, [[0, 1], [1, 0]]),
    "pairs and a single one": (2, [[0, 1], [1, 0], [1]]),
    "one batch": (3, [[0, 1, 0]]),
    "one-hot among ids": (3, [[0, 1, 0], [2, 1, 0], [1, 0, 0]]),
    "a last batch of one": (3, [[0, 1, 0], [1, 0, 0], [0]]),
    "one-hot among longer batches": (3, [[0, 1, 0], [1, 0, 0, 0]]),
    "sequences of K steps": (3, [[[0, 1, 0], [0, 0, 1]], [[2, 1, 0]]]),
    "sequences of K steps, the other way": (3, [[[2, 1, 0]], [[0, 1, 0], [0, 0, 1]]]),
    "sequences of two classes": (2, [[[0, 1], [1, 0]], [[1, 1], [0, 1]]]),
    "sequences of other lengths": (3, [[[0, 1, 0]], [[1, 0, 0, 0]]]),
    "images": (3, [[[[0, 1, 0], [1, 0, 0]]], [[[2, 2, 2], [0, 0, 0]]]]),
    "columns": (2, [[[0], [1]], [[1], [1]]]),
}


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
@pytest.mark.parametrize("name", IDS)
def test_labels_that_are_class_ids(name, dtype):
    num_classes, labels = IDS[name]
    batches = [np.array(batch, dtype) for batch in labels]
    if dtype == "float32" and name == "pairs":  # More likely two one-hot vectors.
        with pytest.raises(ValueError, match=r"look like one one-hot vector.*`\(N, 1\)`"):
            counted(batches, num_classes)
        return
    every = np.concatenate([batch.ravel() for batch in batches]).astype(int)
    expected = np.bincount(every, minlength=num_classes).tolist()
    assert counted(batches, num_classes) == expected
    weighted = [(np.zeros(len(batch)), batch, np.full(len(batch), 2.0)) for batch in batches]
    assert counted(weighted, num_classes) == [2 * count for count in expected]
    assert counted(batches, num_classes, ignore_class=-1) == expected


@pytest.mark.parametrize("dtype", ["int64", "bool", "float32"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_labels_that_are_one_hot(num_classes, dtype):
    """Where all are, also in a last batch of one, or one that has lost its axis."""
    one_hot = np.eye(num_classes, dtype=dtype)[[0, 1, 1, 0, 1]]
    for batches in (one_hot, [one_hot], [one_hot[:4], one_hot[4:]], [one_hot[:4], one_hot[4]]):
        assert counted(batches, num_classes)[:2] == [2, 3]
    steps = one_hot[[[0, 1], [2, 3]]]
    assert counted([steps, one_hot[None, 4:]], num_classes)[:2] == [2, 3]
    soft = 0.9 * one_hot + 0.1 / num_classes
    expected = one_hot.sum(axis=0) + soft.sum(axis=0)
    np.testing.assert_allclose(counted([soft, one_hot], num_classes), expected)


@pytest.mark.parametrize(
    ("num_classes", "batches", "message"),
    [
        # Exactly two, and more: vectors of single examples, or ids.
        (3, [[0, 1, 0], [1, 0, 0]], r"look like one one-hot vector; batch them.*`\(N, 1\)`"),
        (3, [[0, 1, 0]] * 3, "look like one one-hot vector"),
        (3, [[0.2, 0.8, 0.0], [1, 0, 0]], "look like one one-hot vector"),
        # Of one example each, as the inputs say.
        (2, [(np.zeros(4), [0, 1]), (np.zeros(4), [1, 0])], "look like one one-hot vector"),
        # Zeros and ones, which may be independent labels.
        (3, [[[1, 1, 0]], [[0, 1, 0]]], "Flatten them if they are.*`multi_label=True`"),
        (3, [[[0.5, 0.5, 0.5]]], "must be non-negative and sum to 1.*As class ids: .*integer"),
        (3, [[[3, 1, 0]]], r"sum to 1.*As class ids: .*must be in \[0, 3\).*labels \[3\]"),
        (3, [[0, 3, 1]], r"^Labels must be in \[0, 3\). Received: labels \[3\]"),
    ],
)
def test_labels_that_may_be_either(num_classes, batches, message):
    batches = [b if isinstance(b, tuple) else np.array(b) for b in batches]
    batches = [(b[0], np.array(b[1])) if isinstance(b, tuple) else b for b in batches]
    with pytest.raises(ValueError, match=message) as caught:
        counted(iter(batches), num_classes)
    assert len(str(caught.value)) <= 600


def test_bad_labels_end_endless_data():
    def forever():
        yield np.array([0, 7])
        raise AssertionError("read on after a batch that can be nothing")

    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        counted(forever())


def test_ignore_class_says_that_labels_are_ids():
    """But it does not make ids of one-hot targets."""
    assert counted(np.array([[0, 1], [1, 0]]), 2, ignore_class=255) == [2, 2]
    assert counted(np.array([[0, 1, 0], [0, 255, 1]]), 3, ignore_class=255) == [3, 2, 0]
    assert counted([np.array([0, 1, 0]), np.array([1, 0, 0])], 3, ignore_class=-1) == [4, 2, 0]
    for one_hot in (np.eye(3), np.eye(3, dtype=int), np.eye(2), np.full((2, 3), 1 / 3)):
        with pytest.raises(ValueError, match="`ignore_class` needs integer labels"):
            counted(one_hot, one_hot.shape[-1], ignore_class=255)


@pytest.mark.parametrize(
    ("num_classes", "labels"),
    [
        (2, [0, 1]),
        (3, [0, 1, 0]),
        (2, [[0, 1], [1, 0]]),
        (3, [[0, 1, 0]]),
        (3, [[0, 1, 0], [1, 0, 0]]),
        (3, np.eye(3)),
        (3, np.eye(3, dtype=bool)),
    ],
)
def test_a_part_that_may_be_either_is_refused(num_classes, labels):
    """`update_state` does not see the rest."""
    labels, prior = np.array(labels), ClassPrior(num_classes)
    for data in (labels, [labels], [(labels, labels)], [labels, labels]):
        with pytest.raises(ValueError, match=r"class ids as well as.*Pass ids as `\(N, 1\)`"):
            prior.update_state(data)
    assert not prior.counts.any()
    ids = labels.reshape(-1, 1)
    if labels.dtype.kind == "i":
        prior.update_state(ids)
        assert prior.counts.tolist() == np.bincount(labels.ravel(), minlength=num_classes).tolist()
        ignoring = ClassPrior(num_classes, ignore_class=-1)
        if num_classes == 2 or labels.ndim == 1:
            ignoring.update_state(labels)
            assert ignoring.counts.tolist() == prior.counts.tolist()


def test_parts_that_are_clear_are_counted():
    prior = ClassPrior(3)
    prior.update_state([[0, 1, 2], [2, 2, 2]])
    prior.update_state(np.array([[0.5, 0.5, 0.0], [1, 0, 0]]))
    prior.update_state([(np.zeros(2), [0, 1], [2.0, 3.0])])
    prior.update_state(itertools.cycle([np.array([1])]), steps=5)
    prior.update_state([])
    assert prior.counts.tolist() == [1 + 1.5 + 2, 1 + 0.5 + 3 + 5, 4]


def test_flat_values_of_ragged_lists_are_ids():
    """However many they are."""
    prior = ClassPrior(3)
    prior.update_state([[0, 1], [0]])
    assert prior.counts.tolist() == [2, 1, 0]
    assert counted([[], [[]], [0]], 2) == [1, 0]


def test_sparse_labels_of_k_columns_are_no_sequences():
    sequences = scipy.sparse.csr_matrix([[1, 2, 0], [2, 2, 1]])  # 0 may be padding.
    with pytest.raises(ValueError, match=r"sum to 1.*zeros may be padding"):
        counted(sequences)


def test_masked_rows_of_one_hot_targets():
    one_hot = np.ma.masked_array(np.eye(3)[[0, 1, 2, 1]], mask=np.zeros((4, 3), bool))
    one_hot[2] = np.ma.masked
    assert counted(one_hot) == [1, 2, 0]
    assert counted((one_hot, np.array([1.0, 2.0, 9.0, 4.0]))) == [1, 6, 0]


# What losses and metrics take.

FORMS = {
    "list": (lambda y: y.tolist(), lambda z: z.tolist()),
    "tuple": (tuple, lambda z: tuple(map(tuple, z.tolist()))),
    "series": (lambda y: pd.Series(y, index=[7, 3, 5, 1]), pd.DataFrame),
    "object": (lambda y: y.astype(object), lambda z: z.astype(object)),
    "uint8": (lambda y: y.astype("uint8"), lambda z: z.astype("float64")),
    "int64": (lambda y: y.astype("int64"), lambda z: z),
    "column": (lambda y: y[:, None], lambda z: z),
    "float": (lambda y: y.astype("float32"), lambda z: z),
    "tensor": (ops.convert_to_tensor, ops.convert_to_tensor),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_predictions_in_other_forms(form, rng):
    y, z = np.array([0, 2, 1, 2]), rng.normal(size=(4, 3)).astype("float32")
    weights = np.array([1.0, 2.0, 0.5, 1.0], "float32")
    as_y, as_z = FORMS[form]
    for loss in (GLALoss(FEW, q=0.3), GCALoss(FEW), GCALoss(FEW, ignore_class=2)):
        expected = float(loss(y, z, weights))
        ours = loss(as_y(y), as_z(z), weights if "int" in form else as_y(weights))
        np.testing.assert_allclose(float(ours), expected, rtol=1e-6)
        np.testing.assert_allclose(float(loss(as_y(y), as_z(z))), float(loss(y, z)), rtol=1e-6)
        expected = loss.posterior(z)
        np.testing.assert_allclose(numpy(loss.posterior(as_z(z))), expected, rtol=1e-5)
    for function in (gla_loss, gca_loss):
        ours = function(as_y(y), as_z(z), FEW)
        np.testing.assert_allclose(numpy(ours), numpy(function(y, z, FEW)), rtol=1e-5)
    for metric in (BalancedAccuracy(3), ClassRecall(3, class_id=2)):
        expected = float(metric(y, z, weights))
        metric.reset_state()
        assert float(metric(as_y(y), as_z(z), weights)) == expected
    prior = ClassPrior(3, counts=FEW)
    if form != "column":
        np.testing.assert_allclose(numpy(prior(as_y(y))), np.array(FEW)[y] / 100, rtol=1e-6)


def test_binary_labels_in_lists():
    loss, metric = BinaryGLALoss(0.2), BinaryBalancedAccuracy()
    y, z = [0, 1, 1], [-1.0, 2.0, -0.5]
    arrays = np.array(y), np.array(z, "float32")
    np.testing.assert_allclose(float(loss(y, z)), float(loss(*arrays)), rtol=1e-6)
    assert float(metric(y, z)) == 0.75


@pytest.mark.parametrize("bad", [[0, 3], [0, -100], [0.5, 1.0], [np.nan, 1.0], [0, 2**32 + 1]])
@pytest.mark.parametrize("name", ["gla", "gca"])
def test_labels_out_of_range_are_named(name, bad, rng):
    loss = LOSSES[name](FEW, reduction=None)
    z = rng.normal(size=(2, 3)).astype("float32")
    if BACKEND == "jax":
        assert np.isnan(numpy(loss(np.array(bad), z))).any()
        return
    message = (
        r"labels in `y_true` must be integers in \[0, 3\).*`ignore_class`.*start at 1.*Received"
    )
    with pytest.raises(ValueError, match=message):
        loss(np.array(bad), z)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's graphs")
@pytest.mark.parametrize("num_classes", [3, 200])
def test_labels_out_of_range_are_named_in_a_graph(num_classes):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(num_classes)])
    model.compile("sgd", loss=GLALoss(np.ones(num_classes)), jit_compile=False)
    with pytest.raises(Exception, match=r"must be integers in \[0, \d+\).*`ignore_class`"):
        model.fit(np.zeros((4, 2)), np.array([0, 1, 1, num_classes]), verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of XLA in TensorFlow")
def test_labels_out_of_range_are_nan_under_xla():
    import tensorflow as tf

    loss = GCALoss(FEW, reduction=None)
    compiled = tf.function(lambda y, z: loss(y, z), jit_compile=True)
    z = tf.zeros((3, 3))
    np.testing.assert_array_equal(np.isnan(compiled(tf.constant([0, 3, -1]), z)), [0, 1, 1])


@pytest.mark.parametrize("reduction", [None, "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch(name, reduction):
    loss = LOSSES[name](FEW, reduction=reduction)
    for y in (np.zeros(0, "int64"), np.zeros((0, 3), "float32")):
        value = numpy(loss(y, np.zeros((0, 3), "float32")))
        assert value.shape == (0,)  # As of Keras's own.
    assert numpy(loss.posterior(np.zeros((0, 3), "float32"))).shape == (0, 3)
    metric = BalancedAccuracy(3)
    metric.update_state(np.zeros(0, "int64"), np.zeros((0, 3), "float32"))
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize("floatx", ["bfloat16", "float16"])
def test_half_precision_as_the_default(floatx, rng):
    """A loss is then in float32, and ids above 256 stay what they are."""
    y = np.array([256, 257, 300])
    z = rng.normal(size=(3, 400)).astype("float32")
    expected = float(GLALoss(np.ones(400))(y, z))
    try:
        keras.config.set_floatx(floatx)
        loss = GLALoss(np.ones(400))
        assert loss.dtype == "float32"
        np.testing.assert_allclose(float(loss(y, z)), expected, rtol=1e-6)
    finally:
        keras.config.set_floatx("float32")


def test_channels_first_is_refused_with_its_cure():
    z = np.zeros((2, 3, 4, 5), "float32")
    y = np.zeros((2, 4, 5), "int64")
    for refuses in (GLALoss(FEW), BalancedAccuracy(3), LogitAdjustment(FEW)):
        with pytest.raises(ValueError, match="Move the classes to the last axis"):
            refuses(z) if isinstance(refuses, LogitAdjustment) else refuses(y, z)


def test_the_rank_decides_what_labels_are(rng):
    """Labels `(B, T)` with as many steps as classes are classes, since `y_pred` is `(B, T, K)`."""
    z, y = rng.normal(size=(2, 3, 3)).astype("float32"), rng.integers(0, 3, (2, 3))
    ours = GLALoss(FEW, reduction=None)(y, z)
    expected = GLALoss(FEW, reduction=None)(y.ravel(), z.reshape(-1, 3))
    np.testing.assert_allclose(numpy(ours).ravel(), numpy(expected), rtol=1e-6)


@pytest.mark.parametrize("tau", [-3, -1e-9])
def test_negative_tau_is_refused(tau):
    for cls in (GLALoss, LogitAdjustment):
        with pytest.raises(ValueError, match="`tau` must be a finite number of at least 0"):
            cls(FEW, tau=tau)


def test_metrics_speak_of_themselves():
    with pytest.raises(ValueError, match=r"3 classes of the metric.*`BinaryBalancedAccuracy`"):
        BalancedAccuracy(3).update_state(np.zeros(2), np.zeros((2, 1)))


@pytest.mark.parametrize("metric", [BalancedAccuracy, ClassCalibrationError])
def test_callbacks_know_the_direction_of_a_metric(metric, rng):
    x, y = rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, 3, 32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", loss=GLALoss(FEW, from_logits=False), metrics=[metric(3, name="own")])
    stop = keras.callbacks.EarlyStopping("val_own")
    model.fit(x, y, validation_data=(x, y), callbacks=[stop], verbose=0)
    better = stop.monitor_op(1.0, 0.0)
    assert bool(better) == (metric is BalancedAccuracy)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras leaves no mark on JAX")
def test_probabilities_at_the_threshold_of_logits_are_refused():
    output = keras.layers.Dense(1, "sigmoid")(np.zeros((4, 2), "float32"))
    with pytest.raises(ValueError, match="`decision` is needed for probabilities"):
        BinaryBalancedAccuracy().update_state(np.zeros((4, 1)), output)
    of_half = Decision(BinaryGLALoss(0.1, from_logits=False), by="logits")
    BinaryBalancedAccuracy(decision=of_half).update_state(np.zeros((4, 1)), output)


@pytest.mark.parametrize(
    "end",
    [
        [keras.layers.Dense(3, "softmax")],
        [keras.layers.Dense(3), keras.layers.Softmax()],
        [keras.layers.Dense(3, "softmax"), keras.layers.Reshape((3,))],
        [keras.layers.Dense(3), keras.layers.Activation("softmax"), keras.layers.Flatten()],
        [keras.Sequential([keras.layers.Dense(3, "softmax")]), keras.layers.Identity()],
    ],
)
def test_a_report_tells_of_a_softmax_on_every_backend(end, rng):
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    model = keras.Sequential([keras.Input((4,)), *end])
    model.compile("sgd", loss=GLALoss(FEW))
    with pytest.raises(ValueError, match=r"must give logits|Expected logits"):
        model.fit(x, y, callbacks=[callbacks.PerClassReport((x, y))], verbose=0)


def test_a_report_of_one_output_of_several(rng, capsys):
    x = rng.normal(size=(8, 4)).astype("float32")
    y = {"a": rng.integers(0, 3, 8), "b": rng.normal(size=(8, 1))}
    inputs = keras.Input((4,))
    outputs = {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(1)(inputs)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss={"a": GLALoss(FEW), "b": "mse"})
    report = callbacks.PerClassReport((x, y), output_name="a")
    model.fit(x, y, callbacks=[report], verbose=0)
    assert "all 3 classes" in capsys.readouterr().out
    for name in (None, "c"):
        with pytest.raises(ValueError, match=r"labels of one output.*\['a', 'b'\]"):
            model.fit(x, y, callbacks=[callbacks.PerClassReport((x, y), output_name=name)])
        report = callbacks.PerClassReport((x, y["a"]), output_name=name)
        with pytest.raises(ValueError, match=r"`output_name` must be one of.*\['a', 'b'\]"):
            model.fit(x, y, callbacks=[report])


def test_a_report_of_a_series_with_a_shuffled_index(rng, capsys):
    x = rng.normal(size=(6, 3)).astype("float32")
    y = pd.Series([0, 1, 2, 0, 1, 2], index=[5, 3, 4, 0, 2, 1])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", loss=GLALoss(FEW))
    model.fit(x, y.to_numpy(), callbacks=[callbacks.PerClassReport((x, y))], verbose=0)
    assert "all 3 classes" in capsys.readouterr().out


def test_a_layer_of_ones_own_is_built():
    class Scaled(LogitAdjustment):
        def build(self, input_shape):
            self.scale = self.add_weight((), "ones", name="scale")

        def call(self, logits, training=False):
            return super().call(logits, training) * self.scale

    layer = Scaled(FEW)
    layer(np.zeros((1, 3), "float32"))
    assert len(layer.weights) == 1


@pytest.mark.skipif(BACKEND == "jax", reason="nothing shows it on JAX")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_fit_sees_probabilities_behind_a_reshape_or_cast(activation, policy, rng):
    with_cast = keras.layers.Identity(dtype="float32")
    try:
        keras.config.set_dtype_policy(policy)
        layers = [keras.layers.Dense(6, activation), keras.layers.Reshape((2, 3)), with_cast]
        model = keras.Sequential([keras.Input((4,)), *layers])
        logits = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), *layers[1:]])
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, (8, 2))
    logits.compile("sgd", loss=GLALoss(FEW))
    logits.fit(x, y, verbose=0)
    model.compile("sgd", loss=GLALoss(FEW))
    with pytest.raises(ValueError, match="Expected logits in `y_pred`"):
        model.fit(x, y, verbose=0)


def test_counts_that_lack_the_last_classes():
    np.testing.assert_array_equal(ClassPrior(4, counts={1: 3, 0: 2}).counts, [2, 3, 0, 0])
    with pytest.raises(ValueError, match=r"`counts` must be .*of shape \(2,\)"):
        ClassPrior(2, counts={2: 3, 0: 2})


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others have no strings")
def test_text_in_a_tensor_is_refused():
    import tensorflow as tf

    for refuses in (GLALoss(FEW), BalancedAccuracy(3)):
        with pytest.raises(ValueError, match=r"`y_true` must be numbers.*`LabelEncoder`"):
            refuses(tf.constant(["a", "b"]), np.zeros((2, 3), "float32"))
    with pytest.raises(ValueError, match="Labels must be integer classes"):
        ClassPrior(3).adapt(tf.data.Dataset.from_tensor_slices(["a", "b"]).batch(2))


# Pictures.


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "bool", "int64"])
def test_pictures_read_labels_of_any_dtype(dtype):
    """Also where `label * K + predicted` would leave 8 bits."""
    num_classes = 2 if dtype == "bool" else 40
    labels = (np.arange(200) % num_classes).astype(dtype)
    ax = plots.confusion_matrix(labels, labels)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(num_classes))
    ax = plots.confusion_matrix(labels[:, None], labels)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(num_classes))
    probabilities = np.eye(num_classes)[labels.astype(int)]
    ax = plots.reliability_diagram(probabilities, labels[:, None])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0, 1])


@pytest.mark.parametrize("labels", [[], [[0, 1, 2]], [[0.5, 0.5]], [0.5], ["a"], [-1]])
def test_pictures_refuse_what_is_no_class(labels):
    with pytest.raises(ValueError, match="`labels` must be"):
        plots.confusion_matrix(labels, labels)
    for bad in (labels, [2]):
        with pytest.raises(ValueError, match="`labels` must be"):
            plots.reliability_diagram(np.full((1, 2), 0.5), bad)


# Ids and losses of any shape.


def test_loss_of_ones_own_reads_labels_as_well(rng):
    loss = BalancedLoss(Surrogate([0, 5, 5], target_priors=[0, 1, 1]))
    z = rng.normal(size=(2, 3)).astype("float32")
    expected = -oracle.log_softmax(z.astype("float64"))[[0, 1], [1, 2]].mean()
    np.testing.assert_allclose(float(loss([1, 2], z)), expected, rtol=1e-5)


@pytest.mark.parametrize("way", ["ignore_class", "weighted_metrics"])
def test_padding_in_fit_and_evaluate_is_not_counted(way, rng):
    """The two ways that work everywhere: on JAX a Keras mask does not reach metrics in `fit`."""
    y = rng.integers(0, 3, (16, 5))
    x = rng.normal(size=(16, 5, 4)).astype("float32")
    kept = np.arange(5) < rng.integers(1, 6, (16, 1))
    x[~kept] = 0
    model = keras.Sequential(
        [keras.Input((5, 4)), keras.layers.Masking(), keras.layers.Dense(3, use_bias=False)]
    )
    ignored = {"ignore_class": -1} if way == "ignore_class" else {}
    metrics = [BalancedAccuracy(3, **ignored)]
    model.compile(
        keras.optimizers.SGD(0.0),
        loss=GLALoss(FEW, **ignored),
        **{"metrics" if ignored else "weighted_metrics": metrics},
    )
    labels = np.where(kept, y, -1) if ignored else y
    weights = {} if ignored else {"sample_weight": kept.astype("float32")}
    logs = model.fit(x, labels, batch_size=4, verbose=0, **weights).history
    evaluated = model.evaluate(x, labels, verbose=0, return_dict=True, **weights)
    predicted = model.predict(x, verbose=0).argmax(axis=-1)
    recalls = [(predicted == k)[kept & (y == k)].mean() for k in range(3)]
    np.testing.assert_allclose(logs["balanced_accuracy"][0], np.mean(recalls), rtol=1e-5)
    np.testing.assert_allclose(evaluated["balanced_accuracy"], np.mean(recalls), rtol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_a_model_of_keras_2_is_refused():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Input((2,)), tf_keras.layers.Dense(3)])
    model.compile("sgd", loss=GLALoss(FEW))
    with pytest.raises(ValueError, match="need a model of Keras 3"):
        model.fit(np.zeros((3, 2)), np.arange(3), sample_weight=np.ones(3), verbose=0)


def test_one_hot_labels_in_nested_lists():
    assert counted([[[0, 1, 0], [1, 0, 0]], [[0, 0, 1]]]) == [1, 1, 1]
    assert counted([[[1, 2], [1]], [[2], [2, 1]]], 4) == [0, 3, 3, 0]
    assert counted([[[1, 2], [0, 4]], [[1]]], 5) == [1, 2, 1, 0, 1]


def test_columns_of_labels():
    assert counted(pd.get_dummies(pd.Series([0, 1, 2, 2]), dtype=int)) == [1, 1, 2]
    assert counted(scipy.sparse.csr_matrix([[0], [1], [2], [0]])) == [2, 1, 1]
    with pytest.raises(ValueError, match=r"one output\. Received: a DataFrame with 2 columns"):
        ClassPrior(3).adapt(pd.DataFrame({"a": [0, 1], "b": [2, 2]}))


def test_ragged_weights_have_the_rows_of_the_labels():
    tf = pytest.importorskip("tensorflow")
    labels = tf.ragged.constant([[1, 2], [1]])
    with pytest.raises(ValueError, match="`sample_weight` of ragged labels"):
        counted((labels, tf.ragged.constant([[1.0], [2.0, 3.0]])))
    assert counted((labels, [10.0, 100.0])) == [0, 110, 10]


@pytest.mark.parametrize("floatx", ["bfloat16", "float16"])
def test_half_precision_as_the_default_of_metrics_and_lists(floatx):
    y = np.full(70_000, 257)
    z = np.zeros((1, 400), "float32")
    try:
        keras.config.set_floatx(floatx)
        metric, loss = BalancedAccuracy(400), GLALoss(np.arange(1, 401))
        metric.update_state(y, np.broadcast_to(np.eye(400, dtype="f")[257], (70_000, 400)))
        assert float(metric.result()) == 1.0
        assert float(metric.total[257]) == 70_000
        assert float(loss([257.0], z)) == float(loss([257], z))
    finally:
        keras.config.set_floatx("float32")


def test_recalls_of_a_series_are_aligned():
    ax = plots.class_recalls({"ce": pd.Series([0.9, 0.1, 0.5], index=[2, 0, 1])})
    assert [bar.get_height() for bar in ax.patches] == [0.1, 0.5, 0.9]
    for bad in ({}, {"a": [0.1, 0.2], "b": [0.3, 0.4, 0.5]}):
        with pytest.raises(ValueError, match="`recalls` must be a dict"):
            plots.class_recalls(bad)


def test_logit_adjustment_of_integers_and_lists():
    expected = numpy(LogitAdjustment([90, 10])(np.array([[1.0, 0.0]], "float32")))
    for logits in (np.array([[1, 0]]), [[1.0, 0.0]]):
        np.testing.assert_allclose(numpy(LogitAdjustment([90, 10])(logits)), expected)


@pytest.mark.parametrize("mode", ["prior", "log_prior", "weight"])
def test_a_class_prior_of_ids_from_1(mode):
    """An unseen label is treated as one out of range, and changes nothing for the others."""
    wide, narrow = ClassPrior(4, output_mode=mode), ClassPrior(3, output_mode=mode)
    labels = np.array([0, 1, 1, 2])
    wide.adapt(labels + 1)
    narrow.adapt(labels)
    np.testing.assert_allclose(numpy(wide(labels + 1)), numpy(narrow(labels)))
    np.testing.assert_array_equal(np.isnan(numpy(wide([0, 1, 4]))), [True, False, True])


def test_narrow_labels_with_an_ignored_class():
    prior = ClassPrior(256, ignore_class=-1, counts=np.arange(1, 257))
    np.testing.assert_allclose(numpy(prior(np.array([255], "uint8"))), prior.priors[255], rtol=1e-6)
    prior = ClassPrior(3, ignore_class=255, counts=FEW)
    assert np.isnan(numpy(prior(np.array([-1], "int8")))).all()


def test_a_report_refuses_masked_labels_and_a_softmax_of_its_output(rng):
    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    masked = np.ma.masked_array(y, y == 0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", loss=GLALoss(FEW))
    with pytest.raises(ValueError, match="must not be a masked array"):
        model.fit(x, y, callbacks=[callbacks.PerClassReport((x, masked))], verbose=0)
    inputs = keras.Input((4,))
    outputs = {"b": keras.layers.Dense(3)(inputs), "a": keras.layers.Dense(3, "softmax")(inputs)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss={"a": GLALoss(FEW), "b": GLALoss(FEW)})
    report = callbacks.PerClassReport((x, {"a": y, "b": y}), output_name="a")
    with pytest.raises(ValueError, match=r"must give logits|Expected logits"):
        model.fit(x, {"a": y, "b": y}, callbacks=[report], verbose=0)


def test_a_gate_of_a_subclassed_model_is_no_output(rng, capsys):
    class Gated(keras.Model):
        def __init__(self):
            super().__init__()
            self.head, self.gate = keras.layers.Dense(3), keras.layers.Dense(4, "sigmoid")

        def call(self, x):
            return self.head(x * self.gate(x))

    x, y = rng.normal(size=(8, 4)).astype("float32"), rng.integers(0, 3, 8)
    model = Gated()
    model.compile("sgd", loss=GLALoss(FEW))
    model.fit(x, y, callbacks=[callbacks.PerClassReport((x, y))], verbose=0)
    assert "all 3 classes" in capsys.readouterr().out


def test_what_a_model_predicts_below_the_smoothed_mass_stays_possible():
    loss = GLALoss(FEW, label_smoothing=0.1)
    z = np.array([[30.0, 0.0, 0.0], [0.0, 30.0, 0.0]], "float32")
    posterior = loss.posterior(z, priors=FEW)
    assert posterior.min() > 1e-5
    assert (posterior.max(axis=-1) > 0.99).all()


@pytest.mark.parametrize("table", [{0: 1, 1: 1}, pd.Series([1, 1]), collections.Counter([0, 1])])
def test_a_missing_key_counts_0_between_mixes(table):
    surrogate = GCALoss([5, 3, 0], target_priors=table).surrogate
    np.testing.assert_array_equal(surrogate.target_priors, [0.5, 0.5, 0.0])
    ours = GCALoss([0, 5, 5], margins={1: 1, 2: 2}, target_priors=[0, 1, 1]).surrogate
    np.testing.assert_allclose(ours.margins, [1.0, 2 / 3, 4 / 3])
