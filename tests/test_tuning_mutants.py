"""What a search keeps: folds of other settings, the best epoch, sizes of folds, honest scores."""

import json

import keras
import numpy as np
import pytest
from searches import PRIORS, build, examples

from keras_balanced import tuning

keras_tuner = pytest.importorskip("keras_tuner")


def cross_validation(tmp_path, **kwargs):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=["gla"], q=[0.0], tau=[None])
    oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
    return tuning.CrossValidation(oracle, hypermodel, directory=tmp_path, **kwargs)


def test_a_fold_of_other_settings_is_trained_again(tmp_path):
    x, y = examples()
    tuner = cross_validation(tmp_path, folds=2)
    tuner.search(x, y, epochs=1, verbose=0)
    trial = tuner.oracle.get_best_trials()[0]
    [path] = tmp_path.glob(f"*/trial_{trial.trial_id}/fold_0.json")
    right = json.loads(path.read_text())
    kept = {**right, "metrics": {"balanced_accuracy": 7.0}}
    path.write_text(json.dumps(kept))
    assert tuner._run_fold(trial, 0) == kept
    for name, other in (("folds", 3), ("seed", 1), ("hyperparameters", {"q": 0.5})):
        path.write_text(json.dumps({**kept, "settings": {**right["settings"], name: other}}))
        assert tuner._run_fold(trial, 0)["metrics"]["balanced_accuracy"] <= 1.0, name
        assert json.loads(path.read_text())["settings"] == right["settings"]


def test_the_best_epoch_counts_from_one(tmp_path):
    """The refitted model trains for as many epochs as made the weights that a fold restored."""
    x, y = examples()
    epochs = []

    class Count(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            epochs.append(len(self.model.history.epoch))

    tuner = cross_validation(tmp_path, folds=2)
    # No epoch is better than the first by so much.
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=3, min_delta=1e9, restore_best_weights=True
    )
    tuner.search(x, y, epochs=9, callbacks=[stop, Count()], verbose=0)
    tuner.get_best_models()
    assert epochs == [4, 4, 1]


def test_a_model_that_was_not_written_whole_is_not_loaded(tmp_path, monkeypatch):
    x, y = examples()
    tuner = cross_validation(tmp_path, folds=2)
    tuner.search(x, y, epochs=1, verbose=0)
    save = keras.Model.save

    def stop_halfway(model, path, *args, **kwargs):
        save(model, path, *args, **kwargs)
        with open(path, "r+b") as file:
            file.truncate(100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            tuner.get_best_models()
    assert tuner.get_best_models()[0].predict(x, verbose=0).shape == (60, 3)


def test_folds_have_one_size_over_all_and_in_each_class():
    labels = np.repeat(np.arange(7), 3)  # Three of each class, in two folds and in five.
    for folds in (2, 5):
        fold_of = tuning.heads.assign_folds(labels, folds, seed=0)
        assert np.ptp(np.bincount(fold_of, minlength=folds)) <= 1
        for k in range(7):
            assert np.ptp(np.bincount(fold_of[labels == k], minlength=folds)) <= 1


def test_labels_without_meaning_score_as_chance():
    """One-hot features of each example of its own: a head that has seen it knows its label."""
    count = 60
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(count) % 2)
    x = 10 * np.eye(count, dtype="float32")
    model = keras.Sequential([keras.Input((count,)), keras.layers.Dense(2)])
    unrelated = np.zeros((2, count), "float32")
    found = tuning.fast_search(
        model, (unrelated, [0, 1]), (x, y), [1, 1], losses=["gla"], q=[0.0], tau=[None],
        steps=60, batch_size=16, learning_rate=0.1,
    )  # fmt: skip
    # The heads of the other folds, and the last, get every one right.
    [row] = found.table
    assert row["balanced_accuracy"] < 0.8
