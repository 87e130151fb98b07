"""PerClassReport prints the worst classes, whatever holds the validation data."""

import importlib.util

import keras
import numpy as np
import pytest
from sklearn.metrics import recall_score

import keras_balanced
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
    report = callbacks.PerClassReport(source(*data), class_names=list("abcd"), num_classes_shown=2)
    model.fit(x, y, epochs=2, callbacks=[report], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert ", the worst of 3 classes, by" in lines[0]
    predicted = model.predict(x, verbose=0).argmax(-1)
    recalls = recall_score(
        y, predicted, labels=[0, 1, 3], average=None, zero_division=0, sample_weight=w
    )
    worst = np.argsort(recalls, kind="stable")[:2]
    expected = [f"  recall {recalls[i]:.3f}  {'abd'[i]}" for i in worst]
    mean = (
        f"Epoch 2: mean recall {recalls.mean():.3f}, the worst of 3 classes, by the largest output"
    )
    assert lines[3:] == [mean, *expected]


def test_without_weights_and_names(model, data, capsys):
    x, y, _ = data
    report = callbacks.PerClassReport((x, y), ignore_class=3)
    model.fit(x, y, callbacks=[report], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert ", all 2 classes, by" in lines[0]
    assert sorted(line.split()[-1] for line in lines[1:]) == ["0", "1"]


def test_masked_positions_do_not_count(rng, capsys):
    tokens = rng.integers(1, 20, (16, 7))
    tokens[:, 4:] = 0
    y = np.where(tokens == 0, 0, 1 + tokens % 3)  # Class 0 is padding only.
    model = keras.Sequential([keras.layers.Embedding(20, 8, mask_zero=True), keras.layers.Dense(K)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tokens, y, callbacks=[callbacks.PerClassReport((tokens, y))], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert ", all 3 classes, by" in lines[0]
    assert sorted(line.split()[-1] for line in lines[1:]) == ["1", "2", "3"]


def test_bad_arguments(data):
    x, y, w = data
    with pytest.raises(ValueError, match=r"can be read each epoch. Received: a generator"):
        callbacks.PerClassReport(batch for batch in batches(x, y, w))
    with pytest.raises(ValueError, match="must be a tuple of arrays"):
        callbacks.PerClassReport([x, y])
    with pytest.raises(ValueError, match="`num_classes_shown` must be an integer of at least 1"):
        callbacks.PerClassReport((x, y), num_classes_shown=0)
    names = list("abca" * 75)
    with pytest.raises(ValueError, match=r"`validation_data` must be numbers. Received: an .*text"):
        callbacks.PerClassReport((x, np.array(names)))
    with pytest.raises(ValueError, match="Labels belong to the data"):
        callbacks.PerClassReport((x, y), class_names=y.tolist())


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
    data, names = make(x, y)
    report = callbacks.PerClassReport(data, class_names=names)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, callbacks=[report], verbose=0)


def recalls_of(model, x, y):
    predicted = keras.ops.convert_to_numpy(model(x)).argmax(-1)
    return recall_score(y, predicted, labels=range(K), average=None, zero_division=0)


@pytest.mark.parametrize("first", ["report", "swap"])
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_the_report_is_of_the_weights_that_are_validated(swap_on_epoch, first, model, data):
    """`SwapEMAWeights` validates averages of the weights, which here stay near the first ones."""
    x, y, _ = data
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.999)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [keras_balanced.ClassRecall(K, class_id=k, name=f"r{k}") for k in range(K)]
    model.compile(optimizer, loss, weighted_metrics=metrics)
    report = callbacks.PerClassReport((x, y), verbose=0)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
    together = [report, swap] if first == "report" else [swap, report]
    raw = []

    class Raw(keras.callbacks.Callback):
        def on_test_end(self, logs=None):  # Comes last.
            raw.append(recalls_of(model, x, y))

    history = model.fit(
        *(x, y), validation_data=(x, y), epochs=3, callbacks=[*together, Raw()], verbose=0
    ).history
    for k in (0, 1, 3):
        np.testing.assert_allclose(history[f"val_recall_{k}"], history[f"val_r{k}"], rtol=1e-6)
    averaged = np.array([history[f"val_r{k}"] for k in (0, 1, 3)]).T
    assert np.abs(averaged - np.array(raw)[:, [0, 1, 3]]).max() > 0.05  # It makes a difference.


def test_without_validation_it_is_of_the_last_weights(model, data):
    x, y, _ = data
    report = callbacks.PerClassReport((x, y), verbose=0)
    history = model.fit(x, y, callbacks=[report], verbose=0).history
    expected = recalls_of(model, x, y)
    np.testing.assert_allclose(
        [history[f"val_recall_{k}"][0] for k in (0, 1, 3)], expected[[0, 1, 3]]
    )
    model.evaluate(x, y, callbacks=[report], verbose=0)  # Is none of its business.


def test_silent_and_with_the_same_keys_every_epoch(model, data, capsys):
    x, y, _ = data

    class Changing(keras.utils.PyDataset):
        """Another class is missing in each epoch."""

        epoch = -1

        def __len__(self):
            return 1

        def __getitem__(self, index):
            self.epoch += 1
            kept = y != [0, 1, 3][self.epoch % 3]
            return x[kept], y[kept]

    logs = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, each: logs.append(dict(each)))
    report = callbacks.PerClassReport(Changing(workers=1), class_names=list("abcd"), verbose=0)
    model.fit(x, y, epochs=3, callbacks=[report, keep], verbose=0)
    assert capsys.readouterr().out == ""
    recalls = [f"val_recall_{name}" for name in "abcd"]
    for each in logs:
        assert list(each) == list(logs[0])
        assert sum(np.isnan(each[name]) for name in recalls) == 2
        assert each["val_worst_class_recall"] == np.nanmin([each[name] for name in recalls])


@pytest.mark.parametrize(("shown", "words"), [(2, "the worst of 3 classes"), (3, "all 3 classes")])
def test_says_whether_it_lists_all(shown, words, model, data, capsys):
    x, y, _ = data
    report = callbacks.PerClassReport((x, y), num_classes_shown=shown)
    model.fit(x, y, callbacks=[report], verbose=0)
    lines = capsys.readouterr().out.splitlines()
    assert f"{words}, by" in lines[0]
    assert len(lines) == 1 + shown


def test_invalid_labels_are_refused_before_the_first_epoch(model, data):
    x, y, _ = data
    begun = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(epoch))
    for bad in ([(x, y + 1)], (x, y + 1), [(x, np.full(len(y), np.nan))]):
        with pytest.raises(ValueError, match=r"must have labels in \[0, 4\)"):
            model.fit(x, y, callbacks=[callbacks.PerClassReport(bad), watch], verbose=0)
    assert not begun
