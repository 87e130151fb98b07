"""What the benchmark of times compares computes the same."""

import importlib

import keras
import pytest


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow is what it times")
def test_twins_agree():
    step_time = importlib.import_module("step_time")
    assert len(step_time.TWINS) == 5
    batch = step_time.random_batch((16, 5))
    functions = {
        name: step_time.value_and_gradient(name, batch, jit=False) for name in step_time.LOSSES
    }
    step_time.assert_twins_agree(functions)
    functions["textbook GCA"] = functions["GCA, q = 0.3"]
    with pytest.raises(AssertionError, match="textbook GCA"):
        step_time.assert_twins_agree(functions)
