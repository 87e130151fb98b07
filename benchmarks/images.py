"""Long-tailed images: loaded, shrunk, with wrong labels, and in batches."""

import functools
from typing import NamedTuple

import keras
import numpy as np

from keras_balanced import datasets


class Data(NamedTuple):
    """`(x, y)` to train on, to evaluate on, to test on, and the true labels of the first."""

    train: tuple
    evaluation: tuple
    test: tuple
    true: np.ndarray


@functools.lru_cache(maxsize=1)
def load(dataset, ratio, profile, seed, held_out, size, label_noise=None, n_max=None):
    """Returns the `Data` of a training, images of `size` pixels a side.

    What is evaluated is the hold-out, if there is one, and the test set if not. A hold-out has
    noisy labels too, as a user's would.
    """
    (x, true), (x_test, y_test) = datasets.load(dataset, ratio, profile, seed, max_count=n_max)
    y = true if label_noise is None else with_noise(true, label_noise, seed)
    evaluation = test = shrink(x_test, size), y_test
    if held_out:
        fit, rest = datasets.stratified_split(y, held_out, seed)
        evaluation = shrink(x[rest], size), y[rest]
        x, y, true = x[fit], y[fit], true[fit]
    return Data((shrink(x, size), y), evaluation, test, true)


def with_noise(y, noise, seed):
    """Returns the labels with wrong ones; what leaves a class without a label is drawn anew."""
    counts = np.bincount(y)
    rng = np.random.default_rng([seed, 1])
    while True:
        noisy = draw_noise(y, noise, counts, rng)
        if np.bincount(noisy, minlength=len(counts)).all():
            return noisy


def draw_noise(y, noise, counts, rng):
    """Returns the labels, each wrong with the probability in `noise`.

    A wrong label is one of the other classes, all as likely (`uniform:RATE`), or the next class,
    after the last the first (`pair:RATE`). Of the more frequent half of the classes by `counts`
    alone the labels are wrong with `to_tail:RATE`, and become one of the rarer half; with
    `to_head:RATE` it is the other way round.
    """
    kind, rate = noise.split(":")
    wrong = rng.random(len(y)) < float(rate)
    if kind in ("to_tail", "to_head"):
        halves = np.split(np.argsort(-counts, kind="stable"), [len(counts) // 2])
        source, target = halves if kind == "to_tail" else halves[::-1]
        return np.where(wrong & np.isin(y, source), rng.choice(target, len(y)), y)
    steps = rng.integers(1, len(counts), len(y)) if kind == "uniform" else 1
    return np.where(wrong, (y + steps) % len(counts), y)


def shrink(images, size):
    """Averages squares of pixels."""
    factor = images.shape[1] // size
    if factor == 1:
        return images
    squares = images.reshape(len(images), size, factor, size, factor, images.shape[-1])
    return np.round(squares.mean(axis=(2, 4))).astype("uint8")


class Batches(keras.utils.PyDataset):
    """Shuffled batches; with `augment`, padded by an eighth, cropped and flipped at random.

    All that is random in an epoch follows from the seed and the epoch, so that a training can go on
    from any epoch.
    """

    def __init__(self, x, y, batch_size, augment, seed, epoch=0):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size
        self.seed, self.epoch = seed, epoch
        self.shuffle()
        self.crops = None
        if augment:
            margin = x.shape[1] // 8
            padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
            self.crops = np.lib.stride_tricks.sliding_window_view(padded, x.shape[1:3], (1, 2))

    def __len__(self):
        return -(-len(self.y) // self.batch_size)

    def __getitem__(self, index):
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        if self.crops is None:
            return self.x[chosen], self.y[chosen]
        top, left = self.rng.integers(0, self.crops.shape[1], (2, len(chosen)))
        images = np.moveaxis(self.crops[chosen, top, left], 1, -1)
        flip = self.rng.random(len(chosen)) < 0.5
        images[flip] = images[flip, :, ::-1]
        return images, self.y[chosen]

    def on_epoch_end(self):
        self.epoch += 1
        self.shuffle()

    def shuffle(self):
        self.rng = np.random.default_rng([self.seed, self.epoch])
        self.order = self.draw()

    def draw(self):
        """Returns the indices of an epoch's images."""
        return self.rng.permutation(len(self.y))


class BalancedBatches(Batches):
    """An epoch of as many images as there are, each class drawn as often."""

    def draw(self):
        p = 1 / np.bincount(self.y)[self.y]
        return self.rng.choice(len(self.y), len(self.y), p=p / p.sum())


def forever(batches):
    """Yields batches without an end: to start an epoch anew would cost a small model its speed."""
    while True:
        for i in range(len(batches)):
            yield batches[i]
        batches.on_epoch_end()


def stream(batches):
    """Returns `forever(batches)` as `fit` takes it fastest."""
    import tensorflow as tf

    signature = tuple(
        tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (batches.x, batches.y)
    )
    dataset = tf.data.Dataset.from_generator(lambda: forever(batches), output_signature=signature)
    return without_autotuning(dataset.prefetch(8))


def without_autotuning(dataset):
    """Autotuning, which Keras's own data set of a generator has, can hold up the end of `fit`."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
