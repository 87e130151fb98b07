"""Long-tailed subsets of any labelled data, and loaders of digits and CIFAR."""

from __future__ import annotations

import hashlib
from typing import Literal

import keras
import numpy as np

from keras_balanced import validation
from keras_balanced.tails import (
    PROFILES as PROFILES,
)
from keras_balanced.tails import (
    Profile,
    check_imbalance,
    long_tail,
    long_tail_counts,
    stratified_split,
)

__all__ = ["load", "long_tail", "long_tail_counts", "stratified_split"]


def __dir__() -> list[str]:
    return __all__


# The size of each class in the official train set, from which a long tail starts.
_CIFAR_MAX_COUNT = {"cifar10": 5000, "cifar100": 500}
NAMES = ("digits", *_CIFAR_MAX_COUNT)
_DIGITS_TEST_COUNT = 50


def load(
    name: Literal["digits", "cifar10", "cifar100"],
    imbalance_ratio: float = 100,
    profile: Profile = "exponential",
    seed: int = 0,
    validation_split: float = 0.0,
    max_count: int | None = None,
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Loads a long-tailed train set of images and its balanced test set.

    Args:
        name: `"digits"` (1,797 real 8x8 images that come with scikit-learn), `"cifar10"` or
            `"cifar100"` (through TensorFlow Datasets: downloaded on first use, or read from the
            directory in the environment variable `TFDS_DATA_DIR`; where that is not installed,
            through `keras.datasets`, with the same arrays).
        imbalance_ratio: Number of at least 1: the largest class over the smallest.
        profile: `"exponential"` or `"step"`, as in `long_tail_counts`.
        seed: Seed of the choice of images. The test set does not depend on it.
        validation_split: Fraction of the long tail held out by `stratified_split`, to choose
            with. 0 (default) holds out nothing.
        max_count: Images that class 0 keeps. `None` is the size of the smallest class: 124 of
            digits, 5,000 of CIFAR-10, 500 of CIFAR-100.

    Returns:
        `(x_train, y_train), (x_test, y_test)`, or with a `validation_split`
        `(x_train, y_train), (x_val, y_val), (x_test, y_test)`. Images are uint8 in `[0, 255]`,
        `(N, 8, 8, 1)` for digits and `(N, 32, 32, 3)` for CIFAR; labels int64 `(N,)`.

    Raises:
        ValueError: for unknown names and settings that the data cannot serve.
        ImportError: where the optional packages are missing.
        RuntimeError: if CIFAR cannot be had.

    Example:

    >>> (x_train, y_train), (x_test, y_test) = load("digits", imbalance_ratio=10)
    >>> print(x_train.shape, np.bincount(y_test))
    (503, 8, 8, 1) [50 50 50 50 50 50 50 50 50 50]
    """
    if name not in NAMES:
        raise ValueError(f"`name` must be one of {NAMES}. Received: name={validation.show(name)}")
    check_imbalance(imbalance_ratio, profile)
    if validation_split != 0 and not 0 < validation_split < 1:
        raise ValueError(
            "`validation_split` must be in [0, 1). "
            f"Received: validation_split={validation.show(validation_split)}"
        )
    (x, y), test = _load_digits() if name == "digits" else _load_cifar(name)
    max_count = _CIFAR_MAX_COUNT.get(name) if max_count is None else max_count
    x, y = long_tail(x, y, imbalance_ratio, profile, max_count, seed)
    if validation_split == 0:
        return (x, y), test
    fit, held_out = stratified_split(y, validation_split, seed)
    return (x[fit], y[fit]), (x[held_out], y[held_out]), test


def _load_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The digits come with scikit-learn: pip install "keras-balanced[data]"'
        ) from error
    data = load_digits()
    x = np.round(data.images * (255 / 16)).astype("uint8")[..., None]
    y = data.target.astype("int64")
    # The last images of each class are by other writers than the first.
    test = np.zeros(len(y), bool)
    for k in range(10):
        test[np.flatnonzero(y == k)[-_DIGITS_TEST_COUNT:]] = True
    return (x[~test], y[~test]), (x[test], y[test])


def _load_cifar(name):
    try:
        import tensorflow  # noqa: F401  # TensorFlow Datasets needs it, and says so late.
        import tensorflow_datasets as tfds
    except ImportError:
        return _load_cifar_of_keras(name)
    builder = tfds.builder(name)
    try:
        builder.download_and_prepare()
        splits = builder.as_dataset(
            split=["train", "test"], batch_size=-1, as_supervised=True, shuffle_files=False
        )
    except Exception as error:
        raise RuntimeError(
            f"{name} could not be downloaded to or read from {builder.data_dir}. Download it "
            f'once where there is a network, with `tensorflow_datasets.load("{name}")`, and set '
            "the environment variable TFDS_DATA_DIR to the directory that holds it."
        ) from error
    return [(x.numpy(), y.numpy()) for x, y in splits]


def _load_cifar_of_keras(name):
    try:
        parts = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise RuntimeError(
            f"{name} could not be downloaded by Keras. Download it once where there is a network, "
            f"with `keras.datasets.{name}.load_data()`, or install TensorFlow Datasets: "
            'pip install "keras-balanced[data,tensorflow]"'
        ) from error
    return [
        _as_tfds(split, np.asarray(x), np.asarray(y))
        for split, (x, y) in zip(("train", "test"), parts, strict=True)
    ]


def _as_tfds(split, x, y):
    """Returns what TensorFlow Datasets gives: it orders examples by a hash of split and index."""
    if keras.config.image_data_format() == "channels_first":
        x = x.transpose(0, 2, 3, 1)

    def key(i):
        return hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()

    order = sorted(range(len(y)), key=key)
    return x[order], y.reshape(-1)[order].astype("int64")
