"""The fast search of a last layer."""

import keras
import numpy as np
import pytest
from searches import PRIORS, examples

from keras_balanced import GLALoss, formula, tuning


def trained(x, y):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    )
    model.compile("adam", loss=GLALoss(PRIORS))
    model.fit(x, y, epochs=5, verbose=0)
    return model


def test_heads_train_with_the_formula_of_each_loss(rng):
    grid = tuning.grid.loss_grid(
        PRIORS, ["gla", "gca"], [0.0, 0.2, 0.7], [None, 1.0], ["cube_root", None]
    )
    heads = tuning.heads._Heads(list(grid.values()), folds=2, num_features=4)
    heads.kernel.assign(rng.normal(size=heads.kernel.shape))
    x, y = examples(12)
    logits = heads(x)
    assert tuple(logits.shape) == (12, 3 * len(grid), 3)
    fold = np.arange(12) % 3  # 2: a training example, which every head learns from
    expected = np.zeros(12)
    for i, loss in enumerate(grid.values()):
        for j in range(3):
            values = formula.surrogate_loss(y, logits[:, 3 * i + j], loss.surrogate)
            expected += np.where((fold == j) & (j < 2), 0.0, keras.ops.convert_to_numpy(values))
    got = heads.losses_of(keras.ops.convert_to_tensor(np.stack([y, fold], axis=-1)), logits)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), expected, rtol=1e-4)


def test_fast_search_refits_the_head_of_the_best_loss():
    x, y = examples(300)
    model = trained(x, y)
    before = model.get_weights()
    found = tuning.search_last_layer(
        model, (x[:200], y[:200]), (x[200:], y[200:]), PRIORS, q=[0.0, 0.1], refit=True, steps=200
    )
    assert len(found.table) == 3 + 4
    scores = [row["balanced_accuracy"] for row in found.table]
    assert scores == sorted(scores, reverse=True)
    assert found.table[0]["q"] == found.loss.q
    assert found.table[0]["loss"] == found.loss.name.removesuffix("_loss")
    assert all(0 <= row["standard_error"] < 0.1 for row in found.table)
    # The features are those of the model, which is left as it was; the head is another.
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.model.get_weights()[0], before[0])
    assert not np.allclose(found.model.get_weights()[2], before[2])
    metrics = found.model.evaluate(x, y, verbose=0, return_dict=True)
    assert metrics["balanced_accuracy"] == pytest.approx(scores[0], abs=0.1)
    assert metrics["balanced_accuracy"] > 0.6


def test_fast_search_takes_batches_and_nested_models():
    x, y = examples(90)
    inner = trained(x, y)
    nested = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1.0), inner])
    arguments = {"priors": PRIORS, "losses": ["gla"], "q": [0.0], "tau": [None], "steps": 20}
    of_arrays = tuning.search_last_layer(inner, (x, y), (x[::2], y[::2]), refit=True, **arguments)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 9

        def __getitem__(self, i):
            return x[i::9], np.eye(3)[y[i::9]]

    of_batches = tuning.search_last_layer(
        nested, Batches(), (x[::2], y[::2]), refit=True, **{**arguments, "batch_size": 200}
    )
    np.testing.assert_allclose(
        of_batches.model.predict(x, verbose=0),
        of_arrays.model.predict(x, verbose=0),
        rtol=1e-3,
        atol=1e-3,
    )


def test_no_score_is_on_what_the_head_has_seen():
    """Labels that are chance, and features enough to learn each by heart."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 100)).astype("float32"), np.arange(400) % 2
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(2)])
    seen, held_out = (x[:200], y[:200]), (x[200:], y[200:])
    grid = {"priors": [1, 1], "losses": ["gla"], "q": [0.0, 0.3], "tau": [None]}
    found = tuning.search_last_layer(model, seen, held_out, **grid, steps=100, batch_size=100)
    for row in found.table:
        assert 0.35 < row["balanced_accuracy"] < 0.65
        # That of the mean of two recalls of about 1/2, each over 100 examples.
        assert row["standard_error"] == pytest.approx(0.5 / 200**0.5, rel=0.1)
    # With the same examples in both parts each head has seen a copy of those that it is scored on.
    twice = tuning.search_last_layer(model, held_out, held_out, **grid, steps=300, batch_size=100)
    assert min(row["balanced_accuracy"] for row in twice.table) > 0.7


def test_bad_input_of_fast_search():
    x, y = examples(30)
    model = trained(x, y)
    data = ((x, y), (x, y))
    for arguments, message in [
        (([*data, [1, 2]]), "each of the 2 classes of `priors`"),
        (
            ([(x, y + 1), data[1], PRIORS]),
            r"`train` must give .* labels of shape \(30,\) in \[1, 3",
        ),
        (([data[0], (x, y[1:]), PRIORS]), "`validation` must give features"),
    ]:
        with pytest.raises(ValueError, match=message):
            tuning.search_last_layer(model, *arguments)
    with pytest.raises(ValueError, match="`folds` must be an integer of at least 2"):
        tuning.search_last_layer(model, *data, PRIORS, folds=1)
    softmax = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    with pytest.raises(ValueError, match="ends in logits"):
        tuning.search_last_layer(softmax, *data, PRIORS)
    odd = keras.Sequential([model, keras.layers.LayerNormalization()])
    with pytest.raises(ValueError, match="end in a `Dense` layer"):
        tuning.search_last_layer(odd, *data, PRIORS)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    with pytest.raises(ValueError, match="needs a last layer with a bias"):
        tuning.search_last_layer(plain, *data, PRIORS, refit=True)


def test_weights_are_refused():
    x, y = examples(30)
    with pytest.raises(ValueError, match=r"`train` must be \(x, y\), without weights"):
        tuning.search_last_layer(trained(x, y), (x, y, np.ones(30)), (x, y), PRIORS, steps=1)


def test_a_class_that_never_occurs():
    x, y = examples(30)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    found = tuning.search_last_layer(
        model,
        (x, y + 1),
        (x, y + 1),
        [0, *PRIORS],
        q=[0.0],
        steps=20,
        target_priors=[0, 1, 1, 1],
    )
    assert found.loss.surrogate.target_priors[0] == 0.0
    assert found.table[0]["balanced_accuracy"] > 0.5


def test_labels_without_meaning_score_as_chance():
    """One-hot features of each example of its own: a head that has seen it knows its label."""
    count = 60
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(count) % 2)
    x = 10 * np.eye(count, dtype="float32")
    model = keras.Sequential([keras.Input((count,)), keras.layers.Dense(2)])
    unrelated = np.zeros((2, count), "float32")
    found = tuning.search_last_layer(
        model, (unrelated, [0, 1]), (x, y), [1, 1], losses=["gla"], q=[0.0], tau=[None],
        steps=60, batch_size=16, learning_rate=0.1,
    )  # fmt: skip
    # The heads of the other folds, and the last, get every one right.
    [row] = found.table
    assert row["balanced_accuracy"] < 0.8
