"""Models that version 0.1.0 saved (`fixtures/write_saved_models.py`) load and say the same."""

import json

import keras
import numpy as np
import pytest
from fixtures import write_saved_models as saved

import keras_balanced  # noqa: F401  # Registers what the files name.

EXPECTED = json.loads((saved.DIRECTORY / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_loads_and_says_the_same(name):
    model = keras.saving.load_model(saved.DIRECTORY / f"{name}.keras")
    found = saved.results(model, name)
    assert found.keys() == EXPECTED[name].keys()
    for key, value in EXPECTED[name]["evaluation"].items():
        assert found["evaluation"][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    for key in found.keys() - {"evaluation"}:
        np.testing.assert_allclose(found[key], EXPECTED[name][key], 1e-5, 1e-6, err_msg=key)


def test_every_model_has_its_expectation():
    files = {path.stem for path in saved.DIRECTORY.glob("*.keras")}
    assert files == set(EXPECTED) == set(saved.MODELS)
