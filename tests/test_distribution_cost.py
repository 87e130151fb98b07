"""The losses add no communication to a training step, and compile for a TPU."""

import importlib.util

import keras
import numpy as np
import pytest

from benchmarks.questions import distributed
from keras_balanced import BalancedAccuracy, BinaryGCALoss, GCALoss, GLALoss

COUNTS = np.arange(300, 0, -1)  # Class ids that bfloat16 does not hold.
LOSSES = {
    "gla": lambda: GLALoss(COUNTS, q=0.3, tau=None),
    "gca": lambda: GCALoss(COUNTS, margins="cube_root", consistent=False),
    "gca_soft": lambda: GCALoss(COUNTS, margins="cube_root", consistent=False),
    "binary_gca": lambda: BinaryGCALoss(np.full(len(COUNTS), 0.2)),
}


@pytest.mark.parametrize(
    ("setting", "library"),
    [
        ("TensorFlow", "tensorflow"),
        ("JAX", "jax"),
        ("JAX, head", "jax"),
        ("JAX, TPU", "libtpu"),
    ],
)
def test_same_collectives_as_cross_entropy(setting, library):
    if keras.backend.backend() != ("tensorflow" if setting == "TensorFlow" else "jax"):
        pytest.skip("runs with another KERAS_BACKEND")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    replicas = 2 if setting == "TensorFlow" else 4
    found = distributed.measure(setting, replicas, batch_size=64, rounds=0, steps=1)
    operations = {loss: of["operations"] for loss, of in found.items()}
    expected = operations.pop("cross-entropy")
    assert sum(expected.values()) > 0
    assert not set(expected) - {"CollectiveReduceV2", "all-reduce"}
    for loss, found in operations.items():
        assert sum(found.values()) <= sum(expected.values()), loss
        assert set(found) == set(expected)


@pytest.fixture
def data(rng):
    x = rng.standard_normal((64, 8)).astype("float32")
    return x, rng.integers(0, len(COUNTS), 64).astype("int32")


def targets(name, y):
    return np.eye(len(COUNTS), dtype="float32")[y] if name in ("gca_soft", "binary_gca") else y


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs TensorFlow")
def test_xla_program_has_static_shapes_and_no_callbacks(name, data):
    import tensorflow as tf

    x, y = data
    logits = tf.Variable(np.tile(x, (1, 38))[:, : len(COUNTS)])
    loss = LOSSES[name]()

    @tf.function(jit_compile=True)
    def step(y):
        with tf.GradientTape() as tape:
            value = loss(y, tf.cast(logits, tf.bfloat16))
        return value, tape.gradient(value, logits)

    y = tf.constant(targets(name, y))
    program = step.experimental_get_compiler_ir(y)(stage="hlo")
    assert "exponential" in program
    for word in ("[<=", "custom-call", "infeed", "outfeed", "send(", "recv("):
        assert word not in program
    value, gradient = step(y)
    assert np.isfinite(value.numpy())
    assert np.abs(gradient.numpy()).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="needs XLA")
def test_fit_under_xla_is_fit(name, policy, data):
    x, y = data
    keras.config.set_dtype_policy(policy)
    weights = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(len(COUNTS))])
        model.compile(
            "sgd",
            LOSSES[name](),
            metrics=[] if name == "binary_gca" else [BalancedAccuracy(len(COUNTS))],
            jit_compile=jit_compile,
        )
        model.fit(x, targets(name, y), batch_size=32, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights()[0])
    np.testing.assert_allclose(*weights, atol=1e-6 if policy == "float32" else 2e-3)
