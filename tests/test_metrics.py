"""Metrics equal scikit-learn's on the whole data, however it is batched."""

import itertools
import json

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.metrics import balanced_accuracy_score, recall_score

from keras_balanced import BalancedAccuracy, ClassRecall

K = 5


@pytest.fixture
def batches(rng):
    """Labels (class 3 is absent), logits and weights in uneven batches."""
    y = rng.choice([0, 1, 2, 4], 101)
    z = rng.standard_normal((101, K)).astype("float32")
    w = rng.random(101).astype("float32")
    cuts = [0, 1, 40, 41, 100, 101]
    return y, z, w, [slice(a, b) for a, b in itertools.pairwise(cuts)]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("labels", ["sparse", "column", "one_hot"])
@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_accuracy_equals_scikit_learn(batches, labels, weighted):
    y, z, w, slices = batches
    targets = {"sparse": y, "column": y[:, None], "one_hot": np.eye(K)[y]}[labels]
    metric = BalancedAccuracy(K)
    for s in slices:
        metric.update_state(targets[s], z[s], w[s] if weighted else None)
    expected = balanced_accuracy_score(y, z.argmax(-1), sample_weight=w if weighted else None)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_class_recall_equals_scikit_learn(batches, weighted):
    y, z, w, slices = batches
    expected = recall_score(
        y,
        z.argmax(-1),
        labels=range(K),
        average=None,
        zero_division=0,
        sample_weight=w if weighted else None,
    )
    every, third = ClassRecall(K), ClassRecall(K, class_id=2)
    for s in slices:
        for metric in (every, third):
            metric.update_state(y[s], z[s], w[s] if weighted else None)
    np.testing.assert_allclose(ops.convert_to_numpy(every.result()), expected, atol=1e-6)
    assert float(third.result()) == pytest.approx(expected[2], abs=1e-6)


def test_soft_targets_count_as_fractions():
    metric = ClassRecall(2)
    metric.update_state(np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(metric.result()), [0.0, 1.0])
    metric.update_state(np.array([[0.75, 0.25]]), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(metric.result()), [0.375, 0.75])


def test_weights_of_fewer_axes_broadcast(rng):
    y = rng.integers(0, K, (6, 7))
    z = rng.standard_normal((6, 7, K))
    w = rng.random(6)
    metric = ClassRecall(K)
    metric.update_state(y, z, w)
    flat = ClassRecall(K)
    flat.update_state(y.ravel(), z.reshape(-1, K), np.repeat(w, 7))
    np.testing.assert_allclose(
        ops.convert_to_numpy(metric.result()), ops.convert_to_numpy(flat.result()), rtol=1e-6
    )


def test_nothing_seen_is_zero_and_reset_forgets(batches):
    y, z, _, _ = batches
    metric = BalancedAccuracy(K)
    assert float(metric.result()) == 0.0
    metric.update_state(y, z)
    assert float(metric.result()) > 0.0
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_in_fit_and_evaluate(batches):
    y, z, _, _ = batches
    model = keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)])
    model.compile(
        "sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[BalancedAccuracy(K), ClassRecall(K), ClassRecall(K, class_id=1, name="first")],
    )
    history = model.fit(z, y, validation_data=(z, y), batch_size=32, verbose=2).history
    predicted = model.predict(z, verbose=0).argmax(-1)
    recalls = recall_score(y, predicted, labels=range(K), average=None, zero_division=0)
    assert history["val_balanced_accuracy"][-1] == pytest.approx(recalls[[0, 1, 2, 4]].mean())
    assert history["val_first"][-1] == pytest.approx(recalls[1])
    np.testing.assert_allclose(history["val_class_recall"][-1], recalls, atol=1e-6)


@pytest.mark.parametrize(
    ("metric_class", "arguments"), [(BalancedAccuracy, {}), (ClassRecall, {"class_id": 2})]
)
def test_config_round_trip(metric_class, arguments):
    # JAX has no float64 unless it is switched on.
    dtype = "bfloat16" if keras.backend.backend() == "jax" else "float64"
    arguments = {"num_classes": 3, "name": "other", "dtype": dtype, **arguments}
    config = json.loads(json.dumps(metric_class(**arguments).get_config()))
    assert config == arguments
    assert metric_class.from_config(config).get_config() == config


@pytest.mark.parametrize("class_id", [5, -1, 1.5, "cat"])
def test_unknown_class_id(class_id):
    with pytest.raises(ValueError, match=r"`class_id` must be None or an integer in \[0, 5\)"):
        ClassRecall(K, class_id=class_id)


@pytest.mark.parametrize(
    ("y", "w", "message"),
    [
        (np.zeros(3), None, "`y_true` must hold integer classes"),
        (np.zeros(4), np.zeros((4, 2)), "`sample_weight` must have the leading axes"),
    ],
)
def test_bad_shapes(y, w, message):
    with pytest.raises(ValueError, match=message):
        BalancedAccuracy(K).update_state(y, np.zeros((4, K)), w)
