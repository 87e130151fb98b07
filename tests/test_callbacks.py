"""PerClassReport prints the worst classes, whatever holds the validation data."""

import importlib.util

import keras
import numpy as np
import pytest
from sklearn.metrics import recall_score

from keras_balanced import callbacks

K = 4


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture
def data(rng):
    y = rng.choice([0, 1, 3], 300)  # Class 2 is absent.
    return rng.standard_normal((300, K)).astype("float32"), y, rng.random(300).astype("float32")


def batches(x, y, w):
    return [(x[i : i + 70], y[i : i + 70], w[i : i + 70]) for i in range(0, len(y), 70)]


def tf_data(x, y, w):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tf.data is TensorFlow's")
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y, w)).batch(64)


@pytest.mark.parametrize("source", [lambda *arrays: arrays, batches, tf_data])
def test_prints_the_worst_classes(source, model, data, capsys):
    x, y, w = data
    report = callbacks.PerClassReport(source(*data), list("abcd"), num_classes_shown=2)
    model.fit(x, y, epochs=2, callbacks=[report], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].endswith(", the worst of 3 classes")
    predicted = model.predict(x, verbose=0).argmax(-1)
    recalls = recall_score(
        y, predicted, labels=[0, 1, 3], average=None, zero_division=0, sample_weight=w
    )
    worst = np.argsort(recalls, kind="stable")[:2]
    expected = [f"  recall {recalls[i]:.3f}  {'abd'[i]}" for i in worst]
    mean = f"Epoch 2: mean recall {recalls.mean():.3f}, the worst of 3 classes"
    assert lines[3:] == [mean, *expected]


def test_without_weights_and_names(model, data, capsys):
    x, y, _ = data
    report = callbacks.PerClassReport((x, y), ignore_class=3)
    model.fit(x, y, callbacks=[report], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", the worst of 2 classes")
    assert sorted(line.split()[-1] for line in lines[1:]) == ["0", "1"]


def test_masked_positions_do_not_count(rng, capsys):
    tokens = rng.integers(1, 20, (16, 7))
    tokens[:, 4:] = 0
    y = np.where(tokens == 0, 0, 1 + tokens % 3)  # Class 0 is padding only.
    model = keras.Sequential([keras.layers.Embedding(20, 8, mask_zero=True), keras.layers.Dense(K)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tokens, y, callbacks=[callbacks.PerClassReport((tokens, y))], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", the worst of 3 classes")
    assert sorted(line.split()[-1] for line in lines[1:]) == ["1", "2", "3"]


def test_bad_arguments(data):
    x, y, w = data
    with pytest.raises(ValueError, match=r"can be read each epoch. Received: a generator"):
        callbacks.PerClassReport(batch for batch in batches(x, y, w))
    with pytest.raises(ValueError, match="must be a tuple of arrays"):
        callbacks.PerClassReport([x, y])
    with pytest.raises(ValueError, match="`num_classes_shown` must be an integer of at least 1"):
        callbacks.PerClassReport((x, y), num_classes_shown=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x, y: ((x, y), ["a"]),
            "must be 4 different strings.* Received: 1 names",
        ),
        (lambda x, y: ([], None), "expected at least one batch"),
        (lambda x, y: ((x, y - 1), None), r"must have labels in \[0, 4\), or `ignore_class`"),
    ],
)
def test_bad_data(make, message, model, data):
    x, y, _ = data
    report = callbacks.PerClassReport(*make(x, y))
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, callbacks=[report], verbose=0)
