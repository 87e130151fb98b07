"""The recipes of custom training loops, each on its backend."""

import keras
import numpy as np
from pages import run_blocks, sections
from sklearn.metrics import balanced_accuracy_score

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def test_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = sections("docs/recipes.md")
    loop = f"A custom loop on {BACKENDS[keras.backend.backend()]}"
    found = run_blocks(recipes[""], recipes[loop])
    losses = [float(loss) for loss in found["losses"]]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    assert balanced_accuracy_score(found["y_test"], found["classes"]) > 0.75
