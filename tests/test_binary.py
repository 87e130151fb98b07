"""One logit and independent labels, everywhere: equal to scikit-learn, and as served."""

import copy
import json
import pathlib
import re

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops
from matplotlib import pyplot
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, precision_recall_curve, recall_score

from keras_balanced import (
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassCalibrationError,
    ClassPrior,
    ClassRecall,
    Decision,
    GCALoss,
    GeometricMeanRecall,
    GLALoss,
    LogitAdjustment,
    ShotRecall,
    WorstClassRecall,
    callbacks,
    plots,
    serving,
)

BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


exports = pytest.mark.skipif(BACKEND == "torch", reason="Keras does not export from PyTorch")


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def two_priors():
    """Every form of the two priors 0.8 and 0.2 of one problem."""
    prior = ClassPrior(2)
    prior.adapt([0, 0, 0, 0, 1])
    return {
        "ClassPrior": prior,
        "dict": {0: 40, 1: 10},
        "unordered dict": {1: 1, 0: 4},
        "booleans": {True: 0.2, False: 0.8},
        "Series": pd.Series([1, 0, 0, 0, 0]).value_counts(),
    }


# A rate


@pytest.mark.parametrize("form", two_priors())
@pytest.mark.parametrize("loss_class", [BinaryGLALoss, BinaryGCALoss])
def test_two_priors_of_one_problem_are_a_rate(form, loss_class, rng):
    y, z = rng.integers(0, 2, 20), rng.standard_normal(20).astype("float32")
    expected = loss_class(0.2, target_priors=0.3)
    target = {0: 7, 1: 3} if form == "dict" else 0.3
    loss = loss_class(two_priors()[form], target_priors=target)
    assert float(loss(y, z)) == pytest.approx(float(expected(y, z)), rel=1e-6)
    # The rate is what it keeps: two numbers would be the rates of two labels.
    restored = loss_class.from_config(json.loads(json.dumps(loss.get_config())))
    assert float(restored(y, z)) == float(loss(y, z))
    assert restored.priors == pytest.approx(0.2)


def test_a_vector_stays_the_rates_of_labels(rng):
    loss = BinaryGLALoss([0.8, 0.2])
    assert loss.surrogate.num_labels == 2
    with pytest.raises(ValueError, match="2 rates"):
        loss(np.zeros(3), np.zeros(3, "float32"))


@pytest.mark.parametrize(
    ("priors", "received"),
    [
        ({0: 5, 1: 4, 2: 1}, "a dict of 3 classes"),
        (ClassPrior(3, counts=[5, 4, 1]), "a ClassPrior of 3 classes"),
        (pd.Series([5, 4, 1, 2]), "a Series of 4 classes"),
        ({0: 5}, "priors=0.0"),
        ({1: 5}, "priors=1.0"),
    ],
)
def test_other_mixes_are_no_rate(priors, received):
    with pytest.raises(ValueError, match=re.escape(received)):
        BinaryGLALoss(priors)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (4, 2, 1)])
def test_logit_adjustment_of_one_logit(shape, rng):
    z = rng.standard_normal(shape).astype("float32")
    expected = z - 0.7 * (np.log(0.2 / 0.8) - np.log(0.4 / 0.6))
    layers = [
        LogitAdjustment(0.2, target_priors=0.4, tau=0.7),
        LogitAdjustment(np.float32(0.2), target_priors=0.4, tau=0.7),
    ]
    if shape[-1] == 1:
        layers += [
            LogitAdjustment(
                form, target_priors=[6, 4] if name == "dict" else {1: 0.4, 0: 0.6}, tau=0.7
            )
            for name, form in two_priors().items()
        ]
    for layer in layers:
        restored = LogitAdjustment.from_config(json.loads(json.dumps(layer.get_config())))
        for each in (layer, restored):
            np.testing.assert_allclose(ops.convert_to_numpy(each(z)), expected, atol=1e-6)


def test_logit_adjustment_of_labels(rng):
    z = rng.standard_normal((5, 3)).astype("float32")
    rates = np.array([0.1, 0.5, 0.02])
    counts = 1000 * np.stack([1 - rates, rates], axis=-1)
    prior = ClassPrior(3, multi_label=True, counts=counts)
    expected = z - np.log(rates / (1 - rates))
    for layer in (LogitAdjustment(prior), LogitAdjustment(rates, binary=True)):
        restored = LogitAdjustment.from_config(layer.get_config())
        for each in (layer, restored):
            np.testing.assert_allclose(ops.convert_to_numpy(each(z)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="3 classes"):
        layer(z[:, :2])
    with pytest.raises(ValueError, match="use the positive rate as `priors`"):
        LogitAdjustment([5, 4, 1])(z[:, :1])


@pytest.mark.parametrize("shape", [(600,), (600, 1), (600, 2)])
@pytest.mark.parametrize("priors", [0.2, {0: 4, 1: 1}, [0.8, 0.2]])
def test_the_rate_of_unlabelled_data(shape, priors, rng):
    y = rng.random(600) < 0.6
    score = sigmoid(rng.normal(np.where(y, 1.5, -1.5), 1.0) * 3 + np.log(0.25))
    both = np.stack([1 - score, score], -1)
    mix = serving.estimate_priors(both, [0.8, 0.2])
    p = both if shape[1:] == (2,) else score.reshape(shape)
    rate = serving.estimate_priors(p, priors)
    if shape[1:] == (2,) and priors != 0.2:
        np.testing.assert_allclose(rate, mix)
    else:
        assert isinstance(rate, float)
        assert rate == pytest.approx(mix[1])
    assert mix[1] == pytest.approx(0.6, abs=0.1)


# Metrics


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("unknown", [False, True])
def test_balanced_accuracy_of_labels(weighted, unknown, rng):
    y, z = rng.integers(0, 2, (90, 4)), rng.standard_normal((90, 4)).astype("float32")
    y[:, 3] = 1  # A label without 0.
    w = rng.random(90) if weighted else np.ones(90)
    known = rng.random((90, 4)) < (0.7 if unknown else 2)
    expected = [
        balanced_accuracy_score(
            y[known[:, i], i], z[known[:, i], i] > 0, sample_weight=w[known[:, i]]
        )
        for i in range(3)
    ]
    expected.append(
        recall_score(y[known[:, 3], 3], z[known[:, 3], 3] > 0, sample_weight=w[known[:, 3]])
    )
    labels = np.where(known, y, -1)
    of = {None: np.mean(expected), **dict(enumerate(expected))}
    for label_id, value in of.items():
        metric = BinaryBalancedAccuracy(ignore_class=-1, num_labels=4, label_id=label_id)
        for part in (slice(0, 50), slice(50, 90)):
            metric.update_state(labels[part], z[part], w[part] if weighted else None)
        assert float(metric.result()) == pytest.approx(value, abs=1e-6)
    pooled = BinaryBalancedAccuracy(ignore_class=-1)
    pooled.update_state(labels, z, w if weighted else None)
    weights = np.repeat(w, 4).reshape(90, 4)
    expected = balanced_accuracy_score(y[known], z[known] > 0, sample_weight=weights[known])
    assert float(pooled.result()) == pytest.approx(expected, abs=1e-6)


def test_a_label_without_examples_is_left_out():
    metric = BinaryBalancedAccuracy(num_labels=2, ignore_class=-1)
    metric.update_state(np.array([[1, -1], [0, -1]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    assert float(metric.result()) == 0.5
    assert float(BinaryBalancedAccuracy(num_labels=2).result()) == 0


def test_a_bad_label_spoils_the_mean():
    metric = BinaryBalancedAccuracy(num_labels=2)
    metric.update_state(np.array([[1, 3], [0, 0]]), np.array([[1.0, 1.0], [1.0, 1.0]]))
    assert np.isnan(float(metric.result()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_id": 1}, "`label_id` needs `num_labels`"),
        ({"label_id": 3, "num_labels": 3}, r"`label_id` must be an integer in \[0, 3\)"),
        ({"num_labels": 0}, "`num_labels` must be an integer of at least 1"),
        ({"decision": GLALoss([9, 1])}, "Received: one of 2 classes"),
        ({"decision": BinaryGLALoss([0.1, 0.2])}, "Received: one of 2 labels"),
        ({"decision": BinaryGLALoss([0.1, 0.2]), "num_labels": 3}, "Received: one of 2 labels"),
        ({"decision": "gla"}, "`decision` must be a `Decision`, or a loss of keras_balanced"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BinaryBalancedAccuracy(**arguments)


@pytest.mark.parametrize("loss", [BinaryGLALoss(0.1), GLALoss([9, 1])])
def test_a_loss_of_other_classes_is_refused(loss):
    with pytest.raises(ValueError, match="`decision` must be of the 3 classes"):
        BalancedAccuracy(3, decision=loss)
    with pytest.raises(ValueError, match="`loss` must be of 3 classes or labels"):
        ClassCalibrationError(3, loss=loss)


def calibration_error(y, p, w, bins=15):
    """The gap between frequency and probability of label 1 in each bin, weighted by its share."""
    which = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs((w * (y - p))[which == b].sum()) for b in range(bins)]
    return sum(gaps) / w.sum()


@pytest.mark.parametrize("shape", [(200,), (200, 1), (50, 4)])
def test_calibration_of_one_logit(shape, rng):
    z, w = rng.standard_normal(200).astype("float32"), rng.random(200)
    y = (rng.random(200) < sigmoid(2 * z)).astype(int)
    known = rng.random(200) < 0.8
    expected = calibration_error(y[known], sigmoid(z)[known], w[known])
    labels = np.where(known, y, -1).reshape(shape)
    for arguments, y_pred in [
        ({}, sigmoid(z)),
        ({"from_logits": True}, z),
        ({"loss": BinaryGLALoss(0.5)}, z),
        ({"loss": BinaryGLALoss(0.01, target_priors=0.01, tau=3.0)}, z),
    ]:
        metric = ClassCalibrationError(1, ignore_class=-1, **arguments)
        metric.update_state(labels, y_pred.reshape(shape), w.reshape(shape))
        assert float(metric.result()) == pytest.approx(expected, abs=1e-5)


def test_calibration_of_labels(rng):
    p = rng.random((80, 3))
    y = (rng.random((80, 3)) < p).astype(int)
    known = rng.random((80, 3)) < 0.7
    gaps = [
        calibration_error(y[known[:, i], i], p[known[:, i], i], np.ones(known[:, i].sum()))
        for i in range(3)
    ]
    expected = np.average(gaps, weights=known.sum(axis=0))
    metric = ClassCalibrationError(3, ignore_class=-1)
    metric.update_state(np.where(known, y, -1), p)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)
    z = np.log(p / (1 - p)).astype("float32")
    metric = ClassCalibrationError(3, ignore_class=-1, loss=BinaryGLALoss([0.5, 0.5, 0.5]))
    metric.update_state(np.where(known, y, -1), z)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)


# Metrics decide as the model is served

LOSSES = {
    "GCA": GCALoss([80, 15, 5], margins=[3.0, 1.0, 0.5]),
    "GLA": GLALoss([80, 15, 5]),
    "cross-entropy": GLALoss([80, 15, 5], tau=0),
    "another target": GLALoss([80, 15, 5], target_priors=[5, 3, 2]),
    "absent class": GLALoss([80, 20, 0], target_priors=[1, 1, 0]),
}
METRICS = [
    lambda loss: BalancedAccuracy(3, decision=loss),
    lambda loss: ClassRecall(3, class_id=1, decision=loss),
    lambda loss: ClassRecall(3, decision=loss),
    lambda loss: WorstClassRecall(3, decision=loss),
    lambda loss: GeometricMeanRecall(3, decision=loss),
    lambda loss: ShotRecall([80, 15, 5], "few", decision=loss),
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", METRICS)
def test_metrics_decide_by_the_posterior(name, make, rng):
    y, z = rng.integers(0, 3, 300), (2 * rng.standard_normal((300, 3))).astype("float32")
    loss = LOSSES[name]
    by_logits, by_posterior, metric = make(None), make(None), make(loss)
    by_posterior.update_state(y, ops.convert_to_numpy(loss.posterior(z)))
    by_logits.update_state(y, z)
    metric.update_state(y, z)
    expected = ops.convert_to_numpy(by_posterior.result())
    np.testing.assert_array_equal(ops.convert_to_numpy(metric.result()), expected)
    differs = np.any(expected != ops.convert_to_numpy(by_logits.result()))
    assert differs == (name in ("GCA", "cross-entropy", "absent class")) or name == "GLA"
    restored = type(metric).from_config(json.loads(json.dumps(metric.get_config())))
    restored.update_state(y, z)
    np.testing.assert_array_equal(ops.convert_to_numpy(restored.result()), expected)


def test_binary_metric_decides_by_the_posterior(rng):
    y, z = rng.integers(0, 2, 300), rng.standard_normal((300, 1)).astype("float32")
    loss = BinaryGCALoss(0.05, margins=[3.0, 1.0])
    decision = Decision(loss, threshold=0.2, priors=0.1)
    metric = BinaryBalancedAccuracy(decision=decision)
    metric.update_state(y, z)
    expected = balanced_accuracy_score(y, loss.posterior(z, priors=0.1)[:, 0] > 0.2)
    assert float(metric.result()) == pytest.approx(expected)
    assert float(metric.result()) != pytest.approx(balanced_accuracy_score(y, z[:, 0] > 0))


def test_probabilities_of_a_loss_without_logits(rng):
    z = (2 * rng.standard_normal((100, 3))).astype("float32")
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    loss = GCALoss([80, 15, 5], from_logits=False)
    metric, other = (
        BalancedAccuracy(3, decision=loss),
        BalancedAccuracy(3, decision=GCALoss([80, 15, 5])),
    )
    y = rng.integers(0, 3, 100)
    metric.update_state(y, p)
    other.update_state(y, z)
    assert float(metric.result()) == float(other.result())


def test_metrics_with_a_loss_in_fit_and_in_a_saved_model(rng, tmp_path):
    x = rng.standard_normal((200, 4)).astype("float32")
    y = (x[:, 0] + 0.5 * rng.standard_normal(200) > 0.8).astype(int) + (x[:, 1] > 1.5)
    loss = GCALoss(np.bincount(y, minlength=3), margins=[3.0, 1.0, 0.5])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", loss, metrics=[BalancedAccuracy(3, decision=loss)])
    history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    predicted = loss.posterior(model.predict(x, verbose=0)).argmax(axis=-1)
    expected = balanced_accuracy_score(y, predicted)
    assert history["val_balanced_accuracy"][-1] == pytest.approx(expected, abs=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0)[1] == pytest.approx(expected, abs=1e-6)


# Plots


def test_reliability_of_one_logit_is_scikit_learns(rng):
    p = rng.random(400)
    y = (rng.random(400) < p**2).astype(int)
    expected, predicted = calibration_curve(y, p, n_bins=15)
    for values in (p, p[:, None]):
        for labels in (y, y[:, None], y.astype(bool)):
            line = plots.reliability_diagram(values, labels).lines[1]
            np.testing.assert_allclose(line.get_xdata(), predicted)
            np.testing.assert_allclose(line.get_ydata(), expected)
    line = plots.reliability_diagram(p.reshape(100, 4), y.reshape(100, 4)).lines[1]
    np.testing.assert_allclose(line.get_ydata(), expected)


@pytest.mark.parametrize(
    ("p", "y"),
    [
        (np.full((4, 3), 0.3), np.zeros((4, 2))),
        (np.full(4, 0.5), [0, 1, 2, 0]),
        (np.full(4, 0.5), [0, 1, 0]),
        (np.full((4, 2), 0.5), [[0, 1], [0, -1], [0, 0], [1, 1]]),
        (np.full(4, 1.5), [0, 1, 1, 0]),
        (np.empty(0), []),
    ],
)
def test_reliability_refuses(p, y):
    with pytest.raises(ValueError, match="must be"):
        plots.reliability_diagram(p, y)


def test_confusion_of_one_logit(rng):
    y, p = rng.integers(0, 2, 50), rng.random((50, 1))
    ax = plots.confusion_matrix(y[:, None], p > 0.5, class_names=["fraud"])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["not fraud", "fraud"]
    recall = recall_score(y, p[:, 0] > 0.5)
    assert ax.images[0].get_array()[1, 1] == pytest.approx(recall)


# Names

NAMES = {
    "list": ["cat", "dog", "owl"],
    "tuple": ("cat", "dog", "owl"),
    "array": np.array(["cat", "dog", "owl"]),
    "Index": pd.Index(["cat", "dog", "owl"]),
    "ids of names": {"owl": 2, "cat": 0, "dog": 1},
    "names of ids": {1: "dog", 0: "cat", 2: "owl"},
    "Series": pd.Series(["dog", "owl", "cat"], index=[1, 2, 0]),
    "categories": pd.Categorical(["owl", "cat", "dog"]).categories,
}
BAD_NAMES = [
    ["cat", "dog"],
    ["cat", "dog", "cat"],
    ["cat", "dog", 3],
    {"cat", "dog", "owl"},
    "cat",
    {"cat": 1, "dog": 2, "owl": 3},
    {0: "cat", 1: "dog"},
    {"cat": 0, "dog": 0, "owl": 1},
]


def names_of(class_names):
    """The names that each place takes from one argument."""
    found = [
        [t.get_text() for t in ax.get_xticklabels()]
        for ax in [plots.confusion_matrix([0, 1, 2], [0, 1, 2], class_names=class_names)]
    ]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", GLALoss([1, 1, 1]))
    x, y = np.eye(3, dtype="float32"), np.arange(3)
    history = model.fit(
        x, y, callbacks=[callbacks.PerClassReport((x, y), class_names=class_names)], verbose=0
    ).history
    keys = [name for name in history if name.startswith("val_recall_")]
    return [*found, [key.removeprefix("val_recall_") for key in keys]]


@pytest.mark.parametrize("form", NAMES)
def test_class_names_of_every_form(form):
    assert names_of(NAMES[form]) == [["cat", "dog", "owl"]] * 2


@pytest.mark.parametrize("names", BAD_NAMES)
def test_bad_class_names(names):
    with pytest.raises(ValueError, match=r"must be 3 different strings|must be classes in"):
        names_of(names)


# The report


@pytest.fixture
def one_logit(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    return model, rng.standard_normal((60, 4)).astype("float32"), rng.integers(0, 2, 60)


def report_of(model, x, y, **arguments):
    """The logs and what is printed of one epoch without learning, and the predictions."""
    if not model.compiled or model.loss is None:
        model.compile(keras.optimizers.SGD(0.0), BinaryGLALoss(0.3))
    report = callbacks.PerClassReport((x, y), **arguments)
    history = model.fit(x, np.maximum(y, 0), callbacks=[report], verbose=0).history
    return {name: values[0] for name, values in history.items()}, model.predict(x, verbose=0)


def test_report_of_one_logit(one_logit, capsys):
    model, x, y = one_logit
    logs, z = report_of(model, x, y, class_names=["fraud"])
    recalls = recall_score(y, z[:, 0] > 0, average=None)
    assert logs["val_recall_not fraud"] == pytest.approx(recalls[0])
    assert logs["val_recall_fraud"] == pytest.approx(recalls[1])
    assert logs["val_worst_class_recall"] == pytest.approx(recalls.min())
    assert f"  recall {recalls[1]:.3f}  fraud" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("way", ["decision", "threshold", "sigmoid", "keras"])
def test_report_decides_as_told(way, one_logit):
    model, x, y = one_logit
    arguments, cut = {}, 0.0
    if way == "decision":
        arguments = {"decision": BinaryGLALoss(0.1, tau=0.0)}
        cut = np.log(0.1 / 0.9)
    elif way == "threshold":
        decision = Decision(BinaryGLALoss(0.5), threshold=sigmoid(np.array(0.4)), priors=0.5)
        arguments, cut = {"decision": decision}, 0.4
    elif way == "sigmoid":
        model.add(keras.layers.Activation("sigmoid"))
        model.compile(keras.optimizers.SGD(0.0), BinaryGLALoss(0.3, from_logits=False))
        cut = 0.5
    else:
        model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy")
        cut = 0.5
    logs, z = report_of(model, x, y, **arguments)
    recalls = recall_score(y, z[:, 0] > cut, average=None)
    assert logs["val_recall_1"] == pytest.approx(recalls[1])
    assert logs["val_recall_0"] == pytest.approx(recalls[0])


@pytest.mark.parametrize("loss", ["ours", "keras"])
def test_report_of_labels(loss, rng, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    ours = BinaryGLALoss([0.5, 0.2, 0.3])
    of_keras = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), ours if loss == "ours" else of_keras)
    x, y = rng.standard_normal((60, 4)).astype("float32"), rng.integers(-1, 2, (60, 3))
    logs, z = report_of(model, x, y, class_names=list("abc"), ignore_class=-1)
    expected = [
        balanced_accuracy_score(y[y[:, i] >= 0, i], z[y[:, i] >= 0, i] > 0) for i in range(3)
    ]
    found = [logs[f"val_balanced_accuracy_{name}"] for name in "abc"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert logs["val_worst_label_balanced_accuracy"] == pytest.approx(min(expected))
    printed = capsys.readouterr().out.splitlines()
    rule = "an output above 0" if loss == "keras" else str(Decision(ours))
    found = f"mean balanced accuracy {np.mean(expected):.3f}"
    assert printed[0] == f"Epoch 1: {found}, all 3 labels, by {rule}"


def test_report_of_the_posterior(rng):
    x, y = rng.standard_normal((90, 4)).astype("float32"), rng.integers(0, 3, 90)
    loss = GCALoss([80, 15, 5], margins=[3.0, 1.0, 0.5])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.0), loss)
    logs, z = report_of(model, x, y)
    recalls = recall_score(y, loss.posterior(z).argmax(axis=-1), average=None)
    found = [logs[f"val_recall_{k}"] for k in range(3)]
    np.testing.assert_allclose(found, recalls, atol=1e-6)


def test_those_that_read_logs_see_recalls(rng, tmp_path):
    x, y = rng.standard_normal((30, 4)).astype("float32"), np.arange(30) % 3
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.0), GLALoss([1, 1, 1]))
    report = callbacks.PerClassReport((x, y), class_names=["a cat", "50% dog", "öwl"])
    seen = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("val_recall_50% dog", mode="max", patience=1),
        keras.callbacks.ReduceLROnPlateau("val_worst_class_recall", mode="max", patience=1),
    ]
    if BACKEND == "tensorflow":
        seen.append(keras.callbacks.TensorBoard(tmp_path / "board"))
    # What KerasTuner does before each trial.
    copied = copy.deepcopy([report])
    history = model.fit(x, y, epochs=5, callbacks=[*copied, *seen], verbose=0).history
    assert len(history["val_recall_öwl"]) == 2  # Nothing is learned: it stops.
    table = pd.read_csv(tmp_path / "log.csv")
    np.testing.assert_allclose(table["val_recall_a cat"], history["val_recall_a cat"])
    if BACKEND == "tensorflow":
        written = b"".join(path.read_bytes() for path in (tmp_path / "board").rglob("*tfevents*"))
        assert b"recall_a" in written


def test_report_is_copied_with_tf_data(rng):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((np.eye(3, dtype="float32"), [0, 1, 2])).batch(2)
    report = callbacks.PerClassReport(data)
    assert copy.deepcopy(report).validation_data is data


def test_report_of_a_thousand_classes_is_readable(rng, capsys):
    num_classes = 1000
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(num_classes)])
    model.compile(keras.optimizers.SGD(0.0), GLALoss(np.ones(num_classes)))
    x, y = rng.standard_normal((2000, 4)).astype("float32"), np.arange(2000) % num_classes
    logs, z = report_of(model, x, y)
    recalls = recall_score(y, z.argmax(axis=-1), average=None, zero_division=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[-1] == f"  recall 0.000  {(recalls == 0).sum() - 5} more classes"
    assert len(logs) < 5
    assert logs["val_worst_class_recall"] == 0.0


# Thresholds


@pytest.mark.parametrize("weighted", [False, True])
def test_threshold_of_a_precision_is_scikit_learns(weighted, rng):
    y = (rng.random(500) < 0.1).astype(int)
    p = sigmoid(rng.normal(np.where(y, 0.5, -2.5), 1.0)).round(2)  # With ties.
    w = rng.random(500) if weighted else None
    precision, recall, thresholds = precision_recall_curve(y, p, sample_weight=w)
    for least in (0.2, 0.5, 0.7):
        found = serving.find_threshold(p, y, min_precision=least, sample_weight=w)
        lowest = thresholds[np.flatnonzero(precision[:-1] >= least)[0]]
        np.testing.assert_array_equal(p > found, p >= lowest)
        (kept,) = precision[:-1][thresholds == lowest]
        weights = None if w is None else w[p > found]
        assert np.average(y[p > found], weights=weights) == pytest.approx(kept)
        assert recall[:-1][precision[:-1] >= least].max() == recall[:-1][thresholds == lowest]


@pytest.mark.parametrize("shape", [(400,), (400, 1), (400, 2)])
def test_threshold_of_an_alert_rate(shape, rng):
    p = rng.random(400).round(2).clip(0.01)
    values = np.stack([1 - p, p], -1) if shape[1:] == (2,) else p.reshape(shape)
    for rate in (0.01, 0.1, 0.33, 1.0):
        found = serving.find_threshold(values, max_alert_rate=rate)
        assert (p > found).mean() <= rate
        # The next lower one would not keep it.
        lower = p[p <= found].max(initial=-1)
        assert lower == -1 or (p >= lower).mean() > rate


def test_threshold_of_both(rng):
    p, y = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 1, 0, 1, 0])
    assert serving.find_threshold(p, y, max_alert_rate=0.4, min_precision=0.6) == pytest.approx(
        0.75
    )
    assert serving.find_threshold(p, y, max_alert_rate=0.9, min_precision=0.75) == pytest.approx(
        0.55
    )
    assert serving.find_threshold(p, y, max_alert_rate=1.0, min_precision=0.6) == pytest.approx(
        0.25
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Expected a budget"),
        ({"max_alert_rate": 0.0}, r"`max_alert_rate` must be in \(0, 1\]"),
        ({"max_alert_rate": 0.1}, "The budget must allow an alert"),
        ({"min_precision": 0.5}, "`min_precision` needs `labels`"),
        ({"min_precision": 1.2, "labels": [0, 1, 1]}, r"`min_precision` must be in \(0, 1\]"),
        ({"min_precision": 0.5, "labels": [0, 1]}, "2 labels for 3 probabilities"),
        ({"min_precision": 0.5, "labels": [0, 1, 2]}, "`labels` must be classes"),
        ({"min_precision": 1.0, "labels": [0, 0, 1]}, "The budget must allow an alert"),
        ({"probabilities": [0.1, 3.0], "max_alert_rate": 0.5}, "`probabilities` must be"),
        ({"probabilities": np.ones((2, 3)), "max_alert_rate": 0.5}, "`probabilities` must be"),
        ({"max_alert_rate": 0.5, "sample_weight": [1, 1]}, "`sample_weight` must have"),
    ],
)
def test_bad_thresholds(arguments, message):
    with pytest.raises(ValueError, match=message):
        serving.find_threshold(**{"probabilities": [0.9, 0.8, 0.7], **arguments})


# Export


def served(version, x, signature="serving_default", **arguments):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(version))
    answer = loaded.signatures[signature](inputs=tf.constant(x), **arguments)
    return {name: value.numpy() for name, value in answer.items()}


@exports
def test_stopped_on_the_metric_and_exported_with_a_budget(rng, tmp_path):
    x = rng.standard_normal((3000, 6)).astype("float32")
    y = (x[:, :3].sum(axis=-1) + rng.standard_normal(3000) > 3.8).astype(int)
    rate = float(y[:2000].mean())
    loss = BinaryGCALoss(rate)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("adam", loss, metrics=[BinaryBalancedAccuracy(decision=loss)])
    stop = keras.callbacks.EarlyStopping(
        "val_binary_balanced_accuracy", patience=2, restore_best_weights=True
    )
    held_out = (x[2000:2500], y[2000:2500])
    history = model.fit(
        x[:2000], y[:2000], epochs=6, validation_data=held_out, callbacks=[stop], verbose=0
    ).history
    p = loss.posterior(model.predict(held_out[0], verbose=0))
    expected = balanced_accuracy_score(held_out[1], p[:, 0] > 0.5)
    assert max(history["val_binary_balanced_accuracy"]) == pytest.approx(expected, abs=1e-6)

    p = loss.posterior(model.predict(held_out[0], verbose=0), priors=rate)
    threshold = serving.find_threshold(p, max_alert_rate=0.02)
    decision = Decision(loss, threshold=threshold, priors={0: 1 - rate, 1: rate})
    version = serving.export(model, tmp_path, decision, class_names=["fraud"])
    alerts = served(version, held_out[0])["class_id"]
    np.testing.assert_array_equal(alerts, p[:, 0] > threshold)
    assert 0 < alerts.sum() <= 10
    answer = served(version, x[2500:])
    p = loss.posterior(model.predict(x[2500:], verbose=0), priors=rate)
    np.testing.assert_allclose(answer["probabilities"][:, 1], p[:, 0], rtol=1e-4)
    clear = abs(p[:, 0] - threshold) > 1e-5
    np.testing.assert_array_equal(answer["class_id"][clear], p[clear, 0] > threshold)
    assert set(answer["class_name"]) <= {b"fraud", b"not fraud"}
    kept = json.loads(pathlib.Path(version, "assets.extra", "classes.json").read_text())
    assert kept["decision"]["config"]["threshold"] == threshold
    assert keras.saving.deserialize_keras_object(kept["decision"]) == decision


@exports
@pytest.mark.parametrize("threshold", [None, 0.3, [0.1, 0.5, 0.9]])
def test_export_of_labels(threshold, rng, tmp_path):
    loss = BinaryGCALoss([0.1, 0.4, 0.02])
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    x = rng.standard_normal((20, 5)).astype("float32")
    rule = {} if threshold is None else {"threshold": threshold, "priors": 0.5}
    version = serving.export(model, tmp_path, Decision(loss, **rule), class_names=["a", "b", "c"])
    z = model.predict(x, verbose=0)
    answer = served(version, x)
    np.testing.assert_allclose(answer["probabilities"], loss.posterior(z), rtol=1e-5)
    cut = np.full(3, 0.5) if threshold is None else np.asarray(threshold)
    np.testing.assert_array_equal(answer["class_id"], loss.posterior(z) > cut)
    np.testing.assert_array_equal(answer["class_name"], [[b"a", b"b", b"c"]] * 20)
    rates = np.array([[0.3, 0.2, 0.6]], "float32")
    answer = served(version, x, "with_priors", priors=rates)
    expected = loss.posterior(z, priors=rates[0])
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4)


def test_labels_are_not_calibrated(rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    data = (np.zeros((4, 3), "float32"), np.eye(4, 3))
    with pytest.raises(ValueError, match="must have one class per example"):
        serving.calibrate(model, BinaryGLALoss([0.1, 0.2, 0.3]), data)


@exports
@pytest.mark.parametrize(
    ("loss", "threshold", "message"),
    [
        (BinaryGLALoss(0.1), 1.0, r"`threshold` must be a number in \[0, 1\)"),
        (BinaryGLALoss(0.1), [0.1], "`threshold` must be a number"),
        (BinaryGLALoss([0.1, 0.2, 0.3]), [0.1, 0.2], r"or 3 of them, one for each label"),
        (GLALoss([3, 2, 1]), 0.5, "must be left out for more than two classes"),
    ],
)
def test_bad_thresholds_of_an_export(loss, threshold, message, tmp_path):
    outputs = loss.surrogate.num_labels or (1 if loss.surrogate.binary else 3)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(outputs)])
    priors = 0.1 if loss.surrogate.binary else [3, 2, 1]
    with pytest.raises(ValueError, match=message):
        serving.export(model, tmp_path, Decision(loss, threshold=threshold, priors=priors))
    assert not list(tmp_path.iterdir())


# The posterior as the end of a model


def test_the_posterior_of_another_mix_ends_a_model(rng, tmp_path):
    loss, inputs = GCALoss([80, 15, 5]), keras.Input((3,))
    model = keras.Model(inputs, loss.posterior(inputs, priors={0: 6, 1: 3, 2: 1}))
    model.save(tmp_path / "model.keras")
    z = rng.standard_normal((7, 3)).astype("float32")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        expected = loss.posterior(z, priors=[6, 3, 1])
        np.testing.assert_allclose(each.predict(z, verbose=0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="3 classes of `priors`"):
        loss.posterior(keras.Input((4,)))
    with pytest.raises(ValueError, match="3 classes"):
        loss.posterior(inputs, priors=[1, 2])


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # tf2onnx
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(GLALoss([80, 15, 5]), marks=pytest.mark.slow),
        GCALoss([80, 15, 5]),
        pytest.param(GCALoss([80, 15, 5], label_smoothing=0.1), marks=pytest.mark.slow),
        pytest.param(BinaryGLALoss(0.1), marks=pytest.mark.slow),
        BinaryGCALoss([0.1, 0.2, 0.3]),
    ],
    ids=lambda loss: loss.name,
)
def test_the_posterior_ends_a_model(loss, rng, tmp_path):
    outputs = loss.surrogate.num_labels or (1 if loss.surrogate.binary else 3)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(outputs)])
    inputs = keras.Input((5,))
    ended = keras.Model(inputs, loss.posterior(model(inputs)))
    x = rng.standard_normal((7, 5)).astype("float32")
    expected = loss.posterior(model.predict(x, verbose=0))
    np.testing.assert_allclose(ended.predict(x, verbose=0), expected, rtol=1e-5)
    ended.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5)
    if BACKEND != "tensorflow":
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    ended.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(answer, expected, rtol=1e-4)
    pytest.importorskip("keras", minversion="3.13", reason="Older Keras exports no LiteRT.")
    import tensorflow as tf

    ended.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    (answer,) = runner(**{name: x[:1]}).values()
    np.testing.assert_allclose(answer, expected[:1], rtol=1e-4)


@exports
def test_a_temperature_in_python_is_that_of_the_export(rng, tmp_path):
    z = (3 * rng.standard_normal((50, 3))).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    loss = GCALoss([80, 15, 5])
    mix = [6, 3, 1]
    version = serving.export(model, tmp_path, Decision(loss, temperature=2.5), priors=mix)
    expected = loss.posterior(z, priors=mix, temperature=2.5)
    np.testing.assert_allclose(served(version, z)["probabilities"], expected, atol=1e-5)
    plain = loss.posterior(z, temperature=2.5)
    powers = loss.posterior(z) ** (1 / 2.5)
    np.testing.assert_allclose(plain, powers / powers.sum(-1, keepdims=True), atol=1e-5)
    inputs = keras.Input((3,))
    ended = keras.Model(inputs, loss.posterior(inputs, priors=mix, temperature=2.5))
    np.testing.assert_allclose(ended.predict(z, verbose=0), expected, atol=1e-5)
    with pytest.raises(ValueError, match="`temperature` must be in"):
        loss.posterior(z, temperature=0.0)


@exports
def test_a_mix_of_another_size_is_refused_by_the_served_model(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    version = serving.export(model, tmp_path, BinaryGLALoss(0.1))
    x = np.zeros((2, 4), "float32")
    assert served(version, x, "with_priors", priors=tf.constant([[0.9, 0.1]]))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="shape"):
        served(version, x, "with_priors", priors=tf.constant([[0.1]]))


def test_thresholds_of_each_label(rng):
    y, z = rng.integers(0, 2, (90, 3)), rng.standard_normal((90, 3)).astype("float32")
    cuts = [-0.5, 0.0, 0.8]
    decision = Decision(BinaryGLALoss([0.5] * 3), threshold=sigmoid(np.array(cuts)), priors=0.5)
    metric = BinaryBalancedAccuracy(3, decision=decision)
    metric.update_state(y, z)
    expected = [balanced_accuracy_score(y[:, i], z[:, i] > cuts[i]) for i in range(3)]
    assert float(metric.result()) == pytest.approx(np.mean(expected), abs=1e-6)
    assert BinaryBalancedAccuracy.from_config(metric.get_config()).decision == decision
    with pytest.raises(ValueError, match="`decision` must be of one logit, or of `num_labels`"):
        BinaryBalancedAccuracy(2, decision=decision)


def test_two_labels_are_not_two_classes():
    with pytest.raises(ValueError, match="of several labels pass one column"):
        serving.find_threshold(np.array([[0.9, 0.8], [0.1, 0.2]]), max_alert_rate=0.5)


def test_a_threshold_between_neighbours_of_float32(rng):
    p = sigmoid(np.linspace(5, 20, 1000)).astype("float32")
    for rate in (0.19, 0.3, 0.5):
        found = serving.find_threshold(p, max_alert_rate=rate)
        distinct = np.unique(p)[::-1]
        allowed = [value for value in distinct if (p >= value).mean() <= rate]
        for threshold in (found, np.float32(found)):
            np.testing.assert_array_equal(p > threshold, p >= allowed[-1])


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, np.nan, 1], [1, -1, 1]])
def test_bad_weights_of_a_threshold(weights):
    with pytest.raises(ValueError, match="`sample_weight` must be finite"):
        serving.find_threshold([0.9, 0.5, 0.1], max_alert_rate=0.5, sample_weight=weights)


def test_boolean_decisions_in_the_metric():
    metric = BinaryBalancedAccuracy()
    metric.update_state(np.array([0, 0, 1, 1]), np.array([False, False, True, False]))
    assert float(metric.result()) == 0.75


def test_the_posterior_at_the_end_keeps_the_mask():
    loss, inputs = GLALoss([5, 3, 2]), keras.Input((5,), dtype="int32")
    model = keras.Model(
        inputs, keras.layers.Dense(3)(keras.layers.Embedding(10, 4, mask_zero=True)(inputs))
    )
    ended = keras.Model(inputs, loss.posterior(model(inputs)))
    totals = []
    for each in (model, ended):
        metric = BalancedAccuracy(3)
        ids = np.array([[1, 2, 0, 0, 0]] * 4)
        metric.update_state(ids % 3, each(ops.convert_to_tensor(ids)))
        totals.append(ops.convert_to_numpy(metric.total).sum())
    assert totals == [8, 8]


@pytest.mark.parametrize(
    "loss", ["bce", "BinaryCrossentropy", keras.losses.binary_crossentropy, ["binary_crossentropy"]]
)
def test_report_of_labels_under_any_form_of_a_loss(loss, rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    model.compile(keras.optimizers.SGD(0.0), loss)
    x, y = rng.standard_normal((20, 4)).astype("float32"), rng.integers(0, 2, (20, 3))
    logs, p = report_of(model, x, y)
    expected = balanced_accuracy_score(y[:, 0], p[:, 0] > 0.5)
    assert logs["val_balanced_accuracy_0"] == pytest.approx(expected)


def test_output_name_of_the_only_output_is_refused(one_logit):
    model, x, y = one_logit
    with pytest.raises(ValueError, match="`output_name` must be left out"):
        report_of(model, x, y, output_name="a")


def test_rates_of_named_columns_say_what_to_pass():
    frame = pd.DataFrame({"cat": [0, 1, 0, 0], "dog": [1, 1, 0, 0]})
    with pytest.raises(ValueError, match=r"y.mean\(\).to_numpy\(\)"):
        BinaryGLALoss(frame.mean())
