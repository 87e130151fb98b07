"""What the benchmark of times compares computes the same."""

import keras
import pytest

from benchmarks.questions import step_time


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow is what it times")
def test_twins_agree():
    assert len(step_time.TWINS) == 5
    batch = step_time.random_batch((16, 5))
    functions = {name: step_time.step_of_labels(name, batch, "graph") for name in step_time.LOSSES}
    step_time.assert_twins_agree(functions)
    functions["textbook GCA"] = functions["GCA, q = 0.3"]
    with pytest.raises(AssertionError, match="textbook GCA"):
        step_time.assert_twins_agree(functions)
