import gc

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def _freeze():
    """Spares `keras.utils.clear_session`, of every training of a search, what others left."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if keras.backend.backend() == "torch":
        for item in items:
            if item.name == "keras_balanced.serving.export":  # Its doctest.
                item.add_marker(pytest.mark.skip(reason="Keras does not export from PyTorch"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def gradient():
    """Returns `gradient(f, x)`: the gradient of the sum of `f(x)`, on the backend in use."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]


def _tensorflow(f, x):
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(f(x))
    return tape.gradient(total, x).numpy()


def _jax(f, x):
    import jax

    return np.asarray(jax.grad(lambda x: f(x).sum())(jax.numpy.asarray(x)))


def _torch(f, x):
    import torch

    x = torch.tensor(x, requires_grad=True)
    f(x).sum().backward()
    return x.grad.numpy()
