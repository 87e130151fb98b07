"""Long tails: golden totals, seeded choice, and honest errors."""

import os
import pathlib
import sys

import keras
import numpy as np
import pytest
from processes import finish, start

from keras_balanced import datasets

CIFAR = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nonexistent"))
needs_cifar = pytest.mark.skipif(
    not (CIFAR / "cifar10").is_dir(), reason="needs TFDS_DATA_DIR with CIFAR prepared in it"
)


@pytest.mark.parametrize(
    ("num_classes", "max_count", "ratio", "profile", "total"),
    [
        (10, 5000, 100, "exponential", 12_406),
        (10, 5000, 50, "exponential", 13_996),
        (100, 500, 100, "exponential", 10_847),
        (10, 5000, 100, "step", 25_250),
        (10, 5000, 1, "exponential", 50_000),
    ],
)
def test_golden_totals(num_classes, max_count, ratio, profile, total):
    counts = datasets.long_tail_counts(num_classes, max_count, ratio, profile)
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (max_count, max_count // ratio)


def test_long_tail_of_arrays(rng):
    x, y = np.arange(600), rng.permutation(np.repeat(np.arange(6), 100))
    x_tail, y_tail = datasets.long_tail(x, y, imbalance_ratio=20, seed=1)
    np.testing.assert_array_equal(np.bincount(y_tail), datasets.long_tail_counts(6, 100, 20))
    np.testing.assert_array_equal(y_tail, y[x_tail])
    again, _ = datasets.long_tail(x, y, imbalance_ratio=20, seed=1)
    other, _ = datasets.long_tail(x, y, imbalance_ratio=20, seed=2)
    np.testing.assert_array_equal(x_tail, again)
    assert not np.array_equal(x_tail, other)


def test_long_tail_of_tf_data_equals_that_of_arrays(rng):
    tf = pytest.importorskip("tensorflow")
    x, y = np.arange(60), rng.permutation(np.repeat(np.arange(3), 20))
    tail = datasets.long_tail(tf.data.Dataset.from_tensor_slices((x, y)), imbalance_ratio=5)
    x_tail, y_tail = zip(*tail.as_numpy_iterator(), strict=True)
    expected = datasets.long_tail(x, y, imbalance_ratio=5)
    np.testing.assert_array_equal(x_tail, expected[0])
    np.testing.assert_array_equal(y_tail, expected[1])


def test_stratified_split_keeps_every_class_of_two_in_both(rng):
    y = rng.permutation(np.repeat(np.arange(5), [1, 2, 3, 40, 100]))
    fit, held_out = datasets.stratified_split(y, 0.2, seed=3)
    np.testing.assert_array_equal(np.sort([*fit, *held_out]), np.arange(len(y)))
    np.testing.assert_array_equal(np.bincount(y[held_out], minlength=5), [0, 1, 1, 8, 20])


@pytest.mark.parametrize("profile", datasets.PROFILES)
def test_load_digits(profile):
    (x, y), (x_val, y_val), (x_test, y_test) = datasets.load(
        "digits", imbalance_ratio=20, profile=profile, validation_split=0.2
    )
    (x_all, y_all), test = datasets.load("digits", imbalance_ratio=20, profile=profile)
    counts = np.bincount(y_all)
    np.testing.assert_array_equal(
        counts, datasets.long_tail_counts(10, int(counts.max()), 20, profile)
    )
    assert len(x) + len(x_val) == len(x_all)
    assert (np.bincount(y_val) > 0).all()
    assert (np.bincount(y) > 0).all()
    np.testing.assert_array_equal(np.bincount(y_test), np.full(10, 50))
    np.testing.assert_array_equal(x_test, test[0])
    assert x.shape[1:] == (8, 8, 1)
    assert (x.dtype, x.min(), x.max()) == ("uint8", 0, 255)


def test_train_and_test_digits_are_disjoint():
    from sklearn.datasets import load_digits

    train, (x_test, _) = datasets._load_digits()
    together = np.concatenate([train[0], x_test]).reshape(1797, -1)
    raw = np.round(load_digits().data * (255 / 16)).astype("uint8")
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(raw, axis=0))


@needs_cifar
@pytest.mark.parametrize(
    ("name", "ratio", "total"), [("cifar10", 50, 13_996), ("cifar100", 100, 10_847)]
)
def test_load_cifar(name, ratio, total):
    (x, y), (x_test, y_test) = datasets.load(name, imbalance_ratio=ratio)
    assert x.shape == (total, 32, 32, 3)
    assert x.dtype == "uint8"
    assert np.bincount(y)[0] == ratio * np.bincount(y)[-1]
    assert x_test.shape == (10_000, 32, 32, 3)
    assert len(set(np.bincount(y_test))) == 1


def test_cifar_that_cannot_be_had_says_how_to_get_it(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    not_a_directory = tmp_path / "file"
    not_a_directory.touch()
    code = "from keras_balanced import datasets; datasets.load('cifar10')"
    ((exit_code, output),) = finish(start("-c", code, TFDS_DATA_DIR=str(not_a_directory)))
    assert exit_code != 0
    assert "RuntimeError: cifar10 could not be downloaded" in output
    assert 'tensorflow_datasets.load("cifar10")' in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, r"`name` must be one of \('digits', .*name='mnist'"),
        ({"imbalance_ratio": 0.5}, "`imbalance_ratio` must be a finite number of at least 1"),
        ({"imbalance_ratio": "100"}, "`imbalance_ratio` must be a finite number of at least 1"),
        ({"imbalance_ratio": 1000}, "`imbalance_ratio` must be at most the largest class's 124"),
        ({"profile": "linear"}, "`profile` must be one of.*profile='linear'"),
        ({"validation_split": 1.0}, r"`validation_split` must be in \[0, 1\)"),
        ({"max_count": 0}, "`max_count` must be an integer of at least 1. Received: max_count=0"),
        ({"max_count": 10.5}, "`max_count` must be an integer of at least 1"),
        ({"max_count": "9"}, "`max_count` must be an integer of at least 1"),
    ],
)
def test_bad_arguments_of_load(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(**{"name": "digits", **arguments})


def test_bad_labels_of_long_tail():
    with pytest.raises(ValueError, match=r"`y` must be integer labels.*\(3, 1\)"):
        datasets.long_tail(np.zeros(3), np.zeros((3, 1), int))
    with pytest.raises(ValueError, match=r"must have 5 examples of class 1.*Received: 4"):
        datasets.long_tail(np.zeros(14), np.repeat([0, 1], [10, 4]), 2, max_count=10)
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 1\). Received: fraction=0"):
        datasets.stratified_split([0, 1], 0)


def test_cifar_without_tensorflow_comes_through_keras(monkeypatch, rng):
    # The rest of the file runs where it is installed.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    x = rng.integers(0, 256, (60, 32, 32, 3)).astype("uint8")
    y = np.repeat(np.arange(10), 6)[:, None].astype("uint8")
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x, y), (x[:20], y[:20])))
    monkeypatch.setitem(datasets._CIFAR_MAX_COUNT, "cifar10", 6)
    (x_train, y_train), (x_test, y_test) = datasets.load("cifar10", imbalance_ratio=3)
    assert np.bincount(y_train).tolist() == datasets.long_tail_counts(10, 6, 3).tolist()
    assert all((image == x).all(axis=(1, 2, 3)).any() for image in x_train)
    assert (y_train.dtype, y_test.shape, x_test.dtype) == ("int64", (20,), "uint8")


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_keras_and_tfds_give_the_same_arrays(data_format, tmp_path, monkeypatch, rng):
    """TFDS prepares an archive as CIFAR's, from random images, and Keras loads the same images."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(str(k) for k in range(10)))
    parts = {}
    for split, size in (("train", 300), ("test", 50)):
        y = rng.permutation(np.arange(size) % 10).astype("uint8")
        x = rng.integers(0, 256, (size, 3, 32, 32)).astype("uint8")
        rows = np.concatenate([y[:, None], x.reshape(size, -1)], axis=1)
        names = (
            [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
        )
        for name, batch in zip(names, np.split(rows, len(names)), strict=True):
            (folder / name).write_bytes(batch.tobytes())
        x = x if data_format == "channels_first" else x.transpose(0, 2, 3, 1)
        parts[split] = (x, y[:, None])
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda *_: str(tmp_path)
    )
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(keras.config, "image_data_format", lambda: data_format)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: tuple(parts.values()))
    monkeypatch.setitem(datasets._CIFAR_MAX_COUNT, "cifar10", 30)
    by_tfds = datasets.load("cifar10", imbalance_ratio=10, seed=3)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    by_keras = datasets.load("cifar10", imbalance_ratio=10, seed=3)
    for (x, y), (same_x, same_y) in zip(by_tfds, by_keras, strict=True):
        np.testing.assert_array_equal(x, same_x)
        np.testing.assert_array_equal(y, same_y)
        assert (x.dtype, y.dtype) == (same_x.dtype, same_y.dtype)


def test_cifar_that_keras_cannot_have_says_so(monkeypatch):
    def offline():
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setattr(keras.datasets.cifar100, "load_data", offline)
    with pytest.raises(RuntimeError, match="could not be downloaded by Keras"):
        datasets.load("cifar100")


def tail_of(elements):
    """A dataset of 6, 4 and 2 examples of three classes, and what is to be done with it."""
    tf = pytest.importorskip("tensorflow")
    y = np.repeat([0, 1, 2], 8)
    return elements(tf, tf.data.Dataset.from_tensor_slices((np.arange(24.0)[:, None], y)))


FORMS = {
    "plain": lambda tf, d: d,
    "shuffled once": lambda tf, d: d.shuffle(24, seed=1, reshuffle_each_iteration=False),
    "one-hot": lambda tf, d: d.map(lambda x, y: (x, tf.one_hot(y, 3))),
    "weighted": lambda tf, d: d.map(lambda x, y: (x, y, 2.0)),
    "unbatched": lambda tf, d: d.batch(5).unbatch(),
    "repeated twice": lambda tf, d: d.repeat(2),
    "dict of inputs": lambda tf, d: d.map(lambda x, y: ({"x": x}, y)),
}
BAD_FORMS = {
    "shuffled": (lambda tf, d: d.shuffle(24), "shuffled anew"),
    "endless": (lambda tf, d: d.repeat(), "one without end"),
    "endless batches": (lambda tf, d: d.batch(3).repeat(), "one without end"),
    "batched": (lambda tf, d: d.batch(3), "take batches apart"),
    "whole batches": (lambda tf, d: d.batch(3, drop_remainder=True), "must be class ids"),
    "whole batches of one-hot": (
        lambda tf, d: d.map(lambda x, y: (x, tf.one_hot(y, 3))).batch(3, drop_remainder=True),
        "take batches apart",
    ),
    "dict": (lambda tf, d: d.map(lambda x, y: {"image": x, "label": y}), "a dict of"),
    "alone": (lambda tf, d: d.map(lambda x, y: y), "single examples"),
    "several labels": (lambda tf, d: d.map(lambda x, y: (x, {"a": y})), "labels of one output"),
    "ids from 1": (lambda tf, d: d.map(lambda x, y: (x, y + 1)), "do your ids start at 1"),
    "text": (lambda tf, d: d.map(lambda x, y: (x, tf.as_string(y))), "LabelEncoder"),
}


@pytest.mark.parametrize("name", FORMS)
def test_long_tail_of_tf_data(name):
    tail = datasets.long_tail(tail_of(FORMS[name]), imbalance_ratio=4)
    labels = [np.argmax(e[1]) if name == "one-hot" else e[1] for e in tail.as_numpy_iterator()]
    expected = datasets.long_tail_counts(3, 16 if name == "repeated twice" else 8, 4)
    assert np.bincount(labels).tolist() == expected.tolist()
    assert int(tail.cardinality()) == expected.sum()


@pytest.mark.parametrize("name", BAD_FORMS)
def test_long_tail_refuses(name):
    make, message = BAD_FORMS[name]
    with pytest.raises(ValueError, match=message):
        datasets.long_tail(tail_of(make), imbalance_ratio=4)
