"""Searches by cross-validation."""

import json
import pathlib
import re

import keras
import keras_tuner
import numpy as np
import pytest
from searches import PRIORS, build, examples

from keras_balanced import callbacks, tuning
from keras_balanced.tuning import folds

# KerasTuner's Gaussian process on a handful of trials.
pytestmark = pytest.mark.filterwarnings("ignore:The optimal value found for dimension")

ORACLES = {
    "random": lambda objective: keras_tuner.oracles.RandomSearchOracle(objective, 3, seed=0),
    "grid": lambda objective: keras_tuner.oracles.GridSearchOracle(objective),
    "bayesian": lambda objective: keras_tuner.oracles.BayesianOptimizationOracle(
        objective, 3, num_initial_points=2, seed=0
    ),
}


def search_of_one_loss(directory, folds=2, build=build, priors=PRIORS, **kwargs):
    """A `CrossValidation` of one trial, eager: in so few steps compiling would take longest."""
    hypermodel = tuning.BalancedHyperModel(
        build,
        priors,
        losses=["gla"],
        q=[0.0],
        tau=[None],
        compile_kwargs={"run_eagerly": True},
        **kwargs,
    )
    oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
    return tuning.CrossValidation(oracle, hypermodel, folds, directory=directory)


class CountEpochs(keras.callbacks.Callback):
    """Writes down how many epochs each training takes."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_train_end(self, logs=None):
        self.epochs.append(len(self.model.history.epoch))

    def __deepcopy__(self, memo):  # A search copies callbacks; all write to one list.
        return CountEpochs(self.epochs)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (i > 0)) for i, n in enumerate(ORACLES)],
)
def test_cross_validation_scores_are_the_means_of_the_folds(name, tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        losses=["gla"],
        q=[0.0, 0.1, 0.2],
        tau=[None],
        seed=0,
        compile_kwargs={"run_eagerly": True},  # In so few steps compiling would take the most time.
    )
    tuner = tuning.CrossValidation(
        ORACLES[name](hypermodel.objective), hypermodel, folds=3, directory=tmp_path
    )
    tuner.search(x, y, epochs=2, batch_size=60, verbose=0)
    trials = tuner.oracle.get_best_trials(3)
    assert len(trials) == 3
    for trial in trials:
        paths = sorted(tmp_path.glob(f"*/trial_{trial.trial_id}/fold_*.json"))
        scores = [json.loads(p.read_text())["metrics"]["balanced_accuracy"] for p in paths]
        assert len(scores) == 3
        assert trial.score == pytest.approx(np.mean(scores))
        error = trial.metrics.get_last_value("val_balanced_accuracy_standard_error")
        assert error == pytest.approx(np.std(scores, ddof=1) / 3**0.5)
    model = tuner.get_best_models()[0]
    # Refitted on all: as a training by hand.
    by_hand = hypermodel.build(trials[0].hyperparameters)
    by_hand.fit(x, y, epochs=2, batch_size=60, verbose=0)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), by_hand.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )
    again = tuner.get_best_models()[0]
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_fold_is_scored_by_a_model_that_has_not_seen_it(tmp_path):
    """With arrays and with a dataset: the same examples train, and the others score."""
    tf = pytest.importorskip("tensorflow")
    x, y = examples(30)
    x[:, 0] = np.arange(30)
    seen = []

    class Spy(tuning.BalancedHyperModel):
        def fit(self, hp, model, x, y=None, validation_data=None, **kwargs):
            parts = []
            for part in (x, validation_data):
                if hasattr(part, "element_spec"):
                    part = np.concatenate([batch for batch, _ in part.as_numpy_iterator()])
                elif isinstance(part, tuple):
                    part = part[0]
                parts.append(set(part[:, 0].astype(int)))
            seen.append(parts)
            return super().fit(hp, model, x, y, validation_data=validation_data, **kwargs)

    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    for name, data in (("arrays", (x, y)), ("dataset", (dataset,))):
        hypermodel = Spy(
            build,
            PRIORS,
            losses=["gla"],
            q=[0.0],
            tau=[None],
            compile_kwargs={"run_eagerly": True},
        )
        oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
        tuner = tuning.CrossValidation(oracle, hypermodel, folds=5, directory=tmp_path / name)
        tuner.search(*data, epochs=1, batch_size=30, verbose=0)
    arrays, datasets = seen[:5], seen[5:]
    assert arrays == datasets
    assert sorted(i for _, held_out in arrays for i in held_out) == list(range(30))
    for fitted, held_out in arrays:
        assert fitted | held_out == set(range(30))
        assert not fitted & held_out
        assert np.bincount(y[sorted(held_out)]).tolist() == [2, 2, 2]


def test_early_stopping_decides_how_long_the_refitted_model_trains(tmp_path):
    x, y = examples()
    epochs = []

    tuner = search_of_one_loss(tmp_path)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    tuner.search(x, y, epochs=9, callbacks=[stop, CountEpochs(epochs)], verbose=0)
    tuner.get_best_models()
    assert epochs == [2, 2, 2]


def test_inputs_weights_and_one_hot_labels_follow_their_examples(tmp_path):
    x, y = examples()

    def build_of_dict():
        inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((1,), name="b")}
        joined = keras.layers.Concatenate()(list(inputs.values()))
        return keras.Model(inputs, keras.layers.Dense(3)(joined))

    tuner = search_of_one_loss(tmp_path, build=build_of_dict)
    weight = (y > 0).astype("float32")
    inputs = {"a": x, "b": y[:, None].astype("float32")}
    tuner.search(inputs, np.eye(3)[y], sample_weight=weight, epochs=1, verbose=0)
    held_out = tuner._fold_of == 0
    part = tuner._examples.of(held_out)
    np.testing.assert_array_equal(part["x"]["a"], x[held_out])
    np.testing.assert_array_equal(part["x"]["b"][:, 0], part["y"].argmax(axis=-1))
    np.testing.assert_array_equal(part["sample_weight"], part["y"].argmax(axis=-1) > 0)


def no_training(tuner):
    tuner.run_trial = lambda trial, *args, **kwargs: {"val_balanced_accuracy": 0.5}
    return tuner


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_and_their_classes_are_of_one_size(folds, tmp_path):
    y = np.repeat(np.arange(7), [5, 6, 7, 8, 9, 11, 13])

    def build():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(7)])

    tuner = no_training(search_of_one_loss(tmp_path, folds, build, np.ones(7)))
    tuner.search(np.zeros((59, 4)), y, verbose=0)
    assert np.ptp(np.bincount(tuner._fold_of, minlength=folds)) <= 1
    for k in range(7):
        assert np.ptp(np.bincount(tuner._fold_of[y == k], minlength=folds)) <= 1


@pytest.mark.parametrize("change", ["hyperparameters", None])
def test_a_fold_of_other_settings_is_trained_again(change, tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        losses=["gla"],
        q=[0.0, 0.1],
        tau=[None],
        compile_kwargs={"run_eagerly": True},
    )
    trained = []

    class Count(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            trained.append(self.model.loss.q)

    def tuner_of():
        oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective, max_trials=1)
        return tuning.CrossValidation(oracle, hypermodel, folds=2, directory=tmp_path)

    tuner_of().search(x, y, epochs=1, callbacks=[Count()], verbose=0)
    assert trained == [0.0, 0.0]
    trained.clear()
    tuner = tuner_of()
    (trial,) = tuner.oracle.trials.values()
    if change == "hyperparameters":
        trial.hyperparameters.values["q"] = 0.1
    # Refits the best model, for which it reads the folds.
    no_training(tuner).search(x, y, epochs=1, callbacks=[Count()], verbose=0)
    tuner.load_model(trial)
    assert trained == ([0.1] * 3 if change == "hyperparameters" else [0.0])


def test_the_refitted_model_trains_for_as_many_epochs_as_the_best_ones(tmp_path):
    x, y = examples()
    epochs = []

    class Restore(keras.callbacks.EarlyStopping):
        """That finds its best epoch to be the third."""

        def get_monitor_value(self, logs):
            return abs(len(self.model.history.epoch) - 2)

    tuner = search_of_one_loss(tmp_path)
    stop = Restore("val_loss", patience=2, restore_best_weights=True)
    tuner.search(x, y, epochs=9, batch_size=60, callbacks=[stop, CountEpochs(epochs)], verbose=0)
    tuner.get_best_models()
    assert epochs[:2] == [5, 5]
    assert epochs[2] == 3


def test_the_refitted_model_trains_as_long_as_the_folds_on_average(tmp_path):
    x, y = examples()
    epochs = []

    class StopAfter(keras.callbacks.Callback):
        def __init__(self, last):
            super().__init__()
            self.last = last

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch + 1 == self.last

    def of_training(directory):
        last = {"fold_0": 1, "fold_1": 1, "fold_2": 4}.get(directory.name)
        return [StopAfter(last), CountEpochs(epochs)]

    tuner = search_of_one_loss(tmp_path, folds=3)
    tuner.search(x, y, epochs=9, callbacks=of_training, verbose=0)
    tuner.get_best_models()
    assert epochs == [1, 1, 4, 2]


def test_a_model_that_was_not_written_whole_is_not_loaded(tmp_path, monkeypatch):
    x, y = examples()
    tuner = search_of_one_loss(tmp_path)
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


class Writes(keras.callbacks.Callback):
    def __init__(self, place):
        super().__init__()
        self.place = place

    def on_train_end(self, logs=None):
        np.save(self.place, self.model.get_weights()[0])


class WritesThere(keras.callbacks.Callback):
    place = "results/weights.npy"


SHARED = {
    "BackupAndRestore with backup_dir": lambda path: keras.callbacks.BackupAndRestore(path),
    "ModelCheckpoint with filepath": lambda path: keras.callbacks.ModelCheckpoint(f"{path}.keras"),
    "CSVLogger with filename": lambda path: keras.callbacks.CSVLogger("log"),
    "Writes with place": lambda path: Writes(pathlib.Path("weights")),
    "Writes with place='weights.npy'": lambda path: Writes("weights.npy"),
    "WritesThere with place": lambda path: WritesThere(),
    "Writes with place=\"['": lambda path: Writes([str(path)]),
    "Writes with place=\"{'": lambda path: Writes({"log": path}),
    "BackupAndRestore": lambda path: keras.callbacks.CallbackList(
        [keras.callbacks.BackupAndRestore(path)]
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_callbacks_that_would_share_a_file_are_refused(name, tmp_path):
    x, y = examples()
    tuner = no_training(search_of_one_loss(tmp_path / "search"))
    callback = SHARED[name](tmp_path / "shared")
    for given in (callback, [CountEpochs([]), callback]):
        with pytest.raises(ValueError, match=f"function of a directory.*{re.escape(name)}"):
            tuner.search(x, y, callbacks=given, verbose=0)


def test_callbacks_that_share_no_file_are_taken(tmp_path):
    x, y = examples()
    taken = [
        keras.callbacks.EarlyStopping("val_balanced_accuracy", mode="max"),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        keras.callbacks.TerminateOnNaN(),
        callbacks.PerClassReport((x, y), class_names=["a/b", "c.d", "e"]),
    ]
    search_of_one_loss(tmp_path).search(x, y, callbacks=taken, verbose=0)


def test_each_training_has_a_directory(tmp_path):
    x, y = examples()
    seen = []

    def of_training(directory):
        seen.append(directory)
        assert directory.is_dir()
        return [Writes(directory / "weights.npy"), keras.callbacks.CSVLogger(directory / "log.csv")]

    tuner = search_of_one_loss(tmp_path, folds=3)
    tuner.search(x, y, epochs=2, callbacks=of_training, verbose=0)
    tuner.get_best_models()
    assert [path.name for path in seen] == ["fold_0", "fold_1", "fold_2", "refitted"]
    assert len({np.load(path / "weights.npy").tobytes() for path in seen}) == 4
    assert all(len((path / "log.csv").read_text().splitlines()) == 3 for path in seen)


def test_a_fold_that_was_stopped_goes_on_from_its_own_backup(tmp_path):
    x, y = examples()
    stopped, epochs = [], []

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append(epoch)
            if len(epochs) == 4 and not stopped:
                stopped.append(epoch)
                raise KeyboardInterrupt

    def backup(directory):
        return [keras.callbacks.BackupAndRestore(directory / "backup"), Stop()]

    with pytest.raises(KeyboardInterrupt):
        search_of_one_loss(tmp_path).search(x, y, epochs=2, callbacks=backup, verbose=0)
    tuner = search_of_one_loss(tmp_path)
    tuner.search(x, y, epochs=2, callbacks=backup, verbose=0)
    tuner.get_best_models()
    # The second fold from its second epoch; the refitted model for as many as the folds.
    assert epochs == [0, 1, 0, 1, 1, 0, 1]
    results = sorted(tmp_path.glob("*/trial_*/fold_*.json"))
    assert [json.loads(path.read_text())["epochs"] for path in results] == [2, 2]


def test_several_objectives(tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        losses=["gla"],
        q=[0.0, 0.1],
        tau=[None],
        compile_kwargs={"run_eagerly": True, "metrics": ["accuracy"]},
    )
    objectives = [hypermodel.objective, keras_tuner.Objective("val_accuracy", "max")]
    oracle = tuning.GridSearchOracle(objectives)
    tuner = tuning.CrossValidation(oracle, hypermodel, folds=2, directory=tmp_path)
    tuner.search(x, y, verbose=0)
    trials = tuner.oracle.get_best_trials(2)
    for trial in trials:
        names = ("val_balanced_accuracy", "val_accuracy")
        values = [trial.metrics.get_last_value(name) for name in names]
        assert trial.score == pytest.approx(-sum(values))
    assert trials[0].score <= trials[1].score
    assert tuner.get_best_models()[0].built
    of_training = keras_tuner.Objective("accuracy", "max")
    oracle = tuning.GridSearchOracle([hypermodel.objective, of_training])
    with pytest.raises(ValueError, match=r"on held-out data.* Received: 'accuracy'"):
        tuning.CrossValidation(oracle, hypermodel)


def test_folds_have_one_size_over_all_and_in_each_class():
    labels = np.repeat(np.arange(7), 3)  # Three of each class, in two folds and in five.
    for count in (2, 5):
        fold_of = folds.assign_folds(labels, count, seed=0)
        assert np.ptp(np.bincount(fold_of, minlength=count)) <= 1
        for k in range(7):
            assert np.ptp(np.bincount(fold_of[labels == k], minlength=count)) <= 1


def cross_validation(tmp_path, folds=3):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS)
    oracle = keras_tuner.oracles.RandomSearchOracle(hypermodel.objective)
    return tuning.CrossValidation(oracle, hypermodel, folds, directory=tmp_path)


def test_bad_input_of_cross_validation(tmp_path):
    x, y = examples()
    tuner = cross_validation(tmp_path)
    rare = np.where(np.arange(60) < 2, 2, y % 2)
    with pytest.raises(ValueError, match=r"Received: \[2\] examples of the class ids \[2\]"):
        tuner.search(x, rare)
    with pytest.raises(ValueError, match=r"Received: \[0\] examples of the class ids \[2\]"):
        tuner.search(x, y % 2)
    with pytest.raises(ValueError, match="must not have a `validation_data`"):
        tuner.search(x, y, validation_data=(x, y))
    with pytest.raises(ValueError, match="Received: y=None"):
        tuner.search(x)
    with pytest.raises(ValueError, match=r"one length. Received: lengths \[59, 60\]"):
        tuner.search(x, y[1:])
    with pytest.raises(RuntimeError, match="call `search` with the data first"):
        cross_validation(tmp_path).load_model(keras_tuner.engine.trial.Trial(None, "0"))
    with pytest.raises(ValueError, match="`folds` must be an integer of at least 2"):
        cross_validation(tmp_path, folds=1)
    objective = keras_tuner.Objective("val_balanced_accuracy", "max")
    with pytest.raises(ValueError, match="Received: a `HyperbandOracle`"):
        tuning.CrossValidation(keras_tuner.oracles.HyperbandOracle(objective), build)
    objective = keras_tuner.Objective("balanced_accuracy", "max")
    with pytest.raises(ValueError, match="must be a metric on held-out data"):
        tuning.CrossValidation(keras_tuner.oracles.RandomSearchOracle(objective), build)


def test_labels_that_are_no_classes_are_refused_and_one_may_never_occur(tmp_path):
    x, y = examples()
    with pytest.raises(
        ValueError, match=r"class ids of `priors`, 3 in all. Received: labels \[3\]"
    ):
        cross_validation(tmp_path).search(x, y + 1)

    def build():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])

    tuner = search_of_one_loss(tmp_path / "own", 2, build, [0, *PRIORS], target_priors=[0, 1, 1, 1])
    no_training(tuner)
    tuner.search(x, y + 1, verbose=0)
    with pytest.raises(ValueError, match=r"Received: labels \[0\]"):
        tuner.search(x, y)


def test_a_dataset_must_repeat_its_order(tmp_path):
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(examples())
    with pytest.raises(ValueError, match="shuffled anew"):
        cross_validation(tmp_path).search(dataset.shuffle(60))
    one_hot = dataset.map(lambda x, y: (x, tf.one_hot(y, 3)))
    with pytest.raises(ValueError, match="take batches apart"):
        cross_validation(tmp_path).search(one_hot.batch(10))
