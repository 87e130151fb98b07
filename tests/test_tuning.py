"""Searches with real tuners: what they try, and what a kill leaves of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_balanced import GLALoss, formula, tuning

keras_tuner = pytest.importorskip("keras_tuner")

# KerasTuner's Gaussian process on a handful of trials.
pytestmark = pytest.mark.filterwarnings("ignore:The optimal value found for dimension")
PRIORS = [100, 30, 1]


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def examples(count=60):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    return (rng.normal(size=(count, 4)) + 2 * np.eye(3, 4)[y]).astype("float32"), y


def names(tuner):
    return [hp.name for hp in tuner.oracle.get_space().space]


def visited(tuner):
    """Runs a search that trains nothing, and returns the losses that it came by."""
    losses = []

    def run_trial(trial, *args, **kwargs):
        losses.append(tuner.hypermodel.loss(trial.hyperparameters))
        return {"val_balanced_accuracy": 0.5}

    tuner.run_trial = run_trial
    tuner.search(verbose=0)
    return losses


def identity(loss):
    config = loss.get_config()
    del config["name"]
    if isinstance(loss, GLALoss) and loss.tau is None:
        config["tau"] = 1 / (1 - loss.q)
    return type(loss).__name__, json.dumps(config, sort_keys=True)


GRIDS = [
    ({"tau": [None], "margins": [None]}, 20),  # the paper's, for both losses
    ({}, 19 + 10 + 3),  # at q = 0 both tau are 1; margins up to q = 0.2
    ({"margins": ["cube_root"]}, 19 + 3),
    ({"tau": [None, 1.25, 1.0]}, 28 + 10 + 3),  # at q = 0.2 two are 1.25
    ({"losses": ["gca"], "margins": ["cube_root", [1, 2, 3], None]}, 3 + 4 + 10),
    ({"losses": ["gla"], "q": [0.3], "tau": [None]}, 1),
]


@pytest.mark.parametrize(("grid", "size"), GRIDS)
@pytest.mark.parametrize("tuner_class", [tuning.GridSearch, keras_tuner.GridSearch])
def test_grid_search_runs_each_distinct_loss_once(tuner_class, grid, size, tmp_path):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, **grid)
    tuner = tuner_class(hypermodel, objective=hypermodel.objective, directory=tmp_path)
    losses = visited(tuner)
    assert len(losses) == len({identity(loss) for loss in losses}) == size
    for loss in losses:
        rho = loss.surrogate.margins
        assert rho is None or loss.q < rho.min() / rho.max()


def test_random_search_runs_each_distinct_loss_at_most_once(tmp_path):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, q=[0.0, 0.1])
    tuner = keras_tuner.RandomSearch(
        hypermodel, objective=hypermodel.objective, max_trials=50, seed=1, directory=tmp_path
    )
    losses = visited(tuner)
    assert len(losses) == len({identity(loss) for loss in losses}) > 4


def test_uniform_priors_leave_one_loss_for_each_q(tmp_path):
    # Without shift, margins and weights GLA and GCA are the same.
    hypermodel = tuning.BalancedHyperModel(build, [1, 1, 1])
    assert len(hypermodel.grid) == 10


def test_hyperparameters_are_conditional_and_the_users_own_stay(tmp_path):
    def build_with(hp):
        units = hp.Int("units", 4, 8, step=4)
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(3)]
        )

    hypermodel = tuning.BalancedHyperModel(build_with, PRIORS)
    tuner = keras_tuner.RandomSearch(hypermodel, hypermodel.objective, directory=tmp_path)
    assert names(tuner) == ["units", "loss", "q", "tau", "margins"]
    for values, present in [
        ({"loss": "gla", "q": 0.5}, {"units", "loss", "q", "tau"}),
        ({"loss": "gla", "q": 0.0}, {"units", "loss", "q"}),
        ({"loss": "gca", "q": 0.2}, {"units", "loss", "q", "margins"}),
        ({"loss": "gca", "q": 0.3}, {"units", "loss", "q"}),
    ]:
        hp = tuner.oracle.get_space()
        hp.values = {"units": 8, **values}
        hp.ensure_active_values()
        assert set(hp.values) == present
        model = hypermodel.build(hp)
        assert model.layers[0].units == 8
        assert (model.loss.name, model.loss.q) == (f"{values['loss']}_loss", values["q"])


def test_values_reach_the_loss():
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, margins=["cube_root", [1, 2, 2]])
    losses = {point: (loss.q, loss) for point, loss in hypermodel.grid.items()}
    assert losses["gla", 0.4, "1"][1].tau == 1.0
    assert losses["gla", 0.4, "1/(1-q)"][1].tau is None
    assert losses["gca", 0.1, "cube_root"][1].margins == "cube_root"
    assert losses["gca", 0.4, "margins[1]"][1].margins == [1.0, 2.0, 2.0]
    assert all(q == point[1] for point, (q, _) in losses.items())


def test_compile_arguments_belong_to_one_model_each():
    optimizer = keras.optimizers.SGD(0.5)
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        compile_kwargs={"optimizer": optimizer, "metrics": ["accuracy"], "jit_compile": False},
    )
    models = [hypermodel.build(keras_tuner.HyperParameters()) for _ in range(2)]
    assert all(float(model.optimizer.learning_rate) == 0.5 for model in models)
    assert len({id(model.optimizer) for model in models} | {id(optimizer)}) == 3
    x, y = examples()
    for model in models:
        history = model.fit(x, y, validation_data=(x, y), verbose=0).history
        assert {"val_accuracy", "val_balanced_accuracy"} <= set(history)


def test_an_optimizer_that_build_compiles_stays():
    def compiled():
        model = build()
        model.compile(keras.optimizers.SGD(0.25), loss="mse")
        return model

    model = tuning.BalancedHyperModel(compiled, PRIORS).build(keras_tuner.HyperParameters())
    assert float(model.optimizer.learning_rate) == 0.25
    assert isinstance(model.loss, GLALoss)


TUNERS = {
    "random": lambda *args, **kwargs: keras_tuner.RandomSearch(*args, max_trials=3, **kwargs),
    "grid": lambda *args, **kwargs: tuning.GridSearch(*args, max_trials=3, **kwargs),
    "hyperband": lambda *args, **kwargs: keras_tuner.Hyperband(
        *args, max_epochs=2, factor=2, **kwargs
    ),
    "bayesian": lambda *args, **kwargs: keras_tuner.BayesianOptimization(
        *args, max_trials=4, num_initial_points=2, **kwargs
    ),
}


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_searches_and_reloads(name, tmp_path, capsys):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, q=[0.0, 0.1], seed=0)
    tuner = TUNERS[name](hypermodel, hypermodel.objective, seed=0, directory=tmp_path)
    tuner.search(x, y, validation_data=(x, y), epochs=2, verbose=0)
    best = tuner.oracle.get_best_trials(1)[0]
    model = tuner.get_best_models()[0]
    # The weights are those of the best epoch, and the loss that of the trial.
    metrics = model.evaluate(x, y, verbose=0, return_dict=True)
    assert metrics["balanced_accuracy"] == pytest.approx(best.score)
    assert identity(model.loss) == identity(hypermodel.loss(best.hyperparameters))
    model.save(tmp_path / "best.keras")
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    tuner.results_summary()
    assert "val_balanced_accuracy" in capsys.readouterr().out


def softmax_at_the_end():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])


def softmax_as_a_layer():
    return keras.Sequential([build(), keras.layers.Softmax()])


def two_outputs():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (softmax_at_the_end, "ends in logits"),
        (softmax_as_a_layer, "ends in logits"),
        (two_outputs, r"each of the 3 classes of `priors`. Received: outputs of shape \(None, 2\)"),
        (lambda: None, r"must return a `keras.Model`. Received: None"),
    ],
)
def test_unfit_models_are_refused_when_the_tuner_is_made(build, message, tmp_path):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS)
    with pytest.raises(ValueError, match=message):
        keras_tuner.RandomSearch(hypermodel, hypermodel.objective, directory=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": []}, r"`q` must be a list of at least one value. Received: q=\[\]"),
        ({"q": 0.5}, "`q` must be a list of at least one value. Received: q=0.5"),
        ({"q": [0.5, 1.0]}, r"`q` must be in \[0, 1\). Received: q=1.0"),
        ({"q": [-0.1]}, r"`q` must be in \[0, 1\). Received: q=-0.1"),
        ({"losses": []}, "`losses` must be a list of at least one"),
        ({"losses": "gla"}, "`losses` must be a list"),
        ({"losses": ["focal"]}, r"must be of \['gla', 'gca'\]. Received: losses=\['focal'\]"),
        ({"tau": []}, "`tau` must be a list"),
        ({"tau": ["1"]}, "`tau` must be a finite number. Received: tau='1'"),
        ({"margins": ["wide"]}, "`margins` must be"),
        ({"margins": [[1, 2]]}, "each of the 3 classes"),
        ({"losses": ["gca"], "q": [0.5], "margins": ["cube_root"]}, "No loss is left to search"),
        ({"priors": [1, 0, 1]}, "`priors` must be positive"),
        ({"build": 3}, "`build` must be a function"),
        ({"compile_kwargs": {"loss": "mse"}}, "must not have a `loss`"),
    ],
)
def test_bad_arguments_of_the_hypermodel(arguments, message):
    with pytest.raises(ValueError, match=message):
        tuning.BalancedHyperModel(**{"build": build, "priors": PRIORS, **arguments})


def test_a_hyperparameter_of_build_must_have_another_name(tmp_path):
    def build_with(hp):
        hp.Choice("loss", ["mse", "mae"])
        return build()

    hypermodel = tuning.BalancedHyperModel(build_with, PRIORS)
    with pytest.raises(ValueError, match="'loss' must be left to the hypermodel"):
        keras_tuner.RandomSearch(hypermodel, hypermodel.objective, directory=tmp_path)


@pytest.mark.parametrize("objective", ["val_loss", ["val_loss", "val_accuracy"]])
def test_an_objective_on_a_loss_is_refused_before_training(objective, tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(build, PRIORS)
    tuner = keras_tuner.RandomSearch(hypermodel, objective, directory=tmp_path)
    with pytest.raises(ValueError, match="must not be a loss, whose scale moves with `q`"):
        tuner.search(x, y, validation_data=(x, y), verbose=0)
    oracle = keras_tuner.oracles.RandomSearchOracle(objective)
    with pytest.raises(ValueError, match="must not be a loss"):
        tuning.CrossValidation(oracle, hypermodel, directory=tmp_path / "cv")


SEARCH = """
import os, pathlib, sys
import keras, keras_tuner
import numpy as np
from keras_balanced import tuning

directory, *kinds = sys.argv[1:]
kill_after = int(os.environ.get("KILL_AFTER", 0))
rng = np.random.default_rng(0)
y = np.arange(90) % 3
x = (rng.normal(size=(90, 4)) + np.eye(3, 4)[y]).astype("float32")


class Log(keras.callbacks.Callback):
    # Writes each training that starts, and dies in the middle of one.
    def on_epoch_begin(self, epoch, logs=None):
        path = pathlib.Path(directory, f"{kind}.log")
        if epoch == 0:
            with path.open("a") as file:
                file.write(f"{self.model.loss.get_config()}\\n")
        elif kill_after and len(path.read_text().splitlines()) > kill_after:
            os.kill(os.getpid(), 9)


for kind in kinds:

    def build(hp):
        units = hp.Choice("units", [2, 4]) if kind == "random" else 4
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        )

    hypermodel = tuning.BalancedHyperModel(
        build, [100, 30, 1], q=[0.0, 0.1], tau=[None], seed=0,
        compile_kwargs={"optimizer": "adam", "run_eagerly": False},
    )
    kwargs = {"directory": directory, "project_name": kind}
    if kind == "random":
        tuner = keras_tuner.RandomSearch(
            hypermodel, hypermodel.objective, max_trials=4, seed=3, **kwargs
        )
    elif kind == "grid":
        tuner = tuning.GridSearch(hypermodel, hypermodel.objective, **kwargs)
    else:
        oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective, max_trials=2)
        tuner = tuning.CrossValidation(oracle, hypermodel, folds=3, **kwargs)
    held_out = {} if kind == "folds" else {"validation_data": (x[1::2], y[1::2])}
    tuner.search(x, y, **held_out, epochs=3, batch_size=10, callbacks=[Log()], verbose=0)
"""
# Each kind of search with the number of its trainings.
TRAININGS = {"random": 4, "grid": 6, "folds": 6}


def search(directory, *kinds, **environment):
    directory.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", SEARCH, str(directory), *kinds],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def ranking(directory):
    trials = [json.loads(path.read_text()) for path in directory.glob("trial_*/trial.json")]
    assert all(trial["status"] == "COMPLETED" for trial in trials)
    return sorted(
        (trial["trial_id"], trial["score"], str(trial["hyperparameters"]["values"]))
        for trial in trials
    )


def test_kill_9_loses_the_training_under_way_only(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = search(whole, *TRAININGS)
    assert run.returncode == 0, run.stderr
    for kind in TRAININGS:
        assert search(parts, kind, KILL_AFTER="2").returncode == -signal.SIGKILL
    run = search(parts, *TRAININGS)
    assert run.returncode == 0, run.stderr

    for kind, trainings in TRAININGS.items():
        assert ranking(parts / kind) == ranking(whole / kind)
        expected = (whole / f"{kind}.log").read_text().splitlines()
        started = (parts / f"{kind}.log").read_text().splitlines()
        assert len(expected) == trainings
        # Two had ended; the third was killed and starts again, and no other does.
        assert started[2] == started[3]
        assert started[:3] + started[4:] == expected


def test_a_trial_that_ended_is_not_repeated_where_only_the_oracle_was_not_written(tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, q=[0.0, 0.1, 0.2], tau=[None], seed=0)

    def grid_search(directory):
        return tuning.GridSearch(
            hypermodel, hypermodel.objective, directory=directory, project_name="p"
        )

    states = []

    class Stop(tuning.GridSearch):
        def on_trial_begin(self, trial):
            states.append((tmp_path / "p" / "oracle.json").read_text())
            if len(states) == 3:
                raise KeyboardInterrupt

    tuner = Stop(hypermodel, hypermodel.objective, directory=tmp_path, project_name="p")
    with pytest.raises(KeyboardInterrupt):
        tuner.search(x, y, validation_data=(x, y), verbose=0)
    # Trial 1 ended and trial 2 was made after the oracle was last written.
    (tmp_path / "p" / "oracle.json").write_text(states[1])
    tuner = grid_search(tmp_path)
    tried = visited(tuner)
    assert len(tried) == len(hypermodel.grid) - 2
    assert len(tuner.oracle.trials) == len(hypermodel.grid)
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"COMPLETED"}


ORACLES = {
    "random": lambda objective: keras_tuner.oracles.RandomSearchOracle(objective, 3, seed=0),
    "grid": lambda objective: keras_tuner.oracles.GridSearchOracle(objective),
    "bayesian": lambda objective: keras_tuner.oracles.BayesianOptimizationOracle(
        objective, 3, num_initial_points=2, seed=0
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_cross_validation_scores_are_the_means_of_the_folds(name, tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, losses=["gla"], q=[0.0, 0.1, 0.2], tau=[None], seed=0
    )
    tuner = tuning.CrossValidation(
        ORACLES[name](hypermodel.objective), hypermodel, folds=3, directory=tmp_path
    )
    tuner.search(x, y, epochs=2, batch_size=20, verbose=0)
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
    by_hand.fit(x, y, epochs=2, batch_size=20, verbose=0)
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
        hypermodel = Spy(build, PRIORS, losses=["gla"], q=[0.0], tau=[None])
        oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
        tuner = tuning.CrossValidation(oracle, hypermodel, folds=5, directory=tmp_path / name)
        tuner.search(*data, epochs=1, batch_size=8, verbose=0)
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

    class Count(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            epochs.append(len(self.model.history.epoch))

    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=["gla"], q=[0.0], tau=[None])
    oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
    tuner = tuning.CrossValidation(oracle, hypermodel, folds=2, directory=tmp_path)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    tuner.search(x, y, epochs=9, callbacks=[stop, Count()], verbose=0)
    tuner.get_best_models()
    assert epochs == [2, 2, 2]


def test_sample_weights_and_one_hot_labels_follow_their_examples(tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=["gla"], q=[0.0], tau=[None])
    oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective)
    tuner = tuning.CrossValidation(oracle, hypermodel, folds=2, directory=tmp_path)
    weight = (y > 0).astype("float32")
    tuner.search({"a": x}["a"], np.eye(3)[y], sample_weight=weight, epochs=1, verbose=0)
    part = tuner._examples.of(tuner._fold_of == 0)
    np.testing.assert_array_equal(part["sample_weight"], part["y"].argmax(axis=-1) > 0)


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


def test_a_dataset_must_repeat_its_order(tmp_path):
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(examples())
    with pytest.raises(ValueError, match="that do not repeat"):
        cross_validation(tmp_path).search(dataset.shuffle(60))
    one_hot = dataset.map(lambda x, y: (x, tf.one_hot(y, 3)))
    with pytest.raises(ValueError, match="neither batched nor shuffled anew"):
        cross_validation(tmp_path).search(one_hot.batch(10))


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
    found = tuning.fast_search(
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
    of_arrays = tuning.fast_search(inner, (x, y), (x[::2], y[::2]), refit=True, **arguments)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 9

        def __getitem__(self, i):
            return x[i::9], np.eye(3)[y[i::9]]

    order = np.concatenate([np.arange(i, 90, 9) for i in range(9)])
    of_batches = tuning.fast_search(
        nested, Batches(), (x[::2], y[::2]), refit=True, **{**arguments, "batch_size": 200}
    )
    assert len(order) == 90
    np.testing.assert_allclose(
        of_batches.model.predict(x, verbose=0),
        of_arrays.model.predict(x, verbose=0),
        rtol=1e-3,
        atol=1e-3,
    )


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
            tuning.fast_search(model, *arguments)
    with pytest.raises(ValueError, match="`folds` must be an integer of at least 2"):
        tuning.fast_search(model, *data, PRIORS, folds=1)
    with pytest.raises(ValueError, match="ends in logits"):
        tuning.fast_search(softmax_at_the_end(), *data, PRIORS)
    odd = keras.Sequential([model, keras.layers.LayerNormalization()])
    with pytest.raises(ValueError, match="end in a `Dense` layer"):
        tuning.fast_search(odd, *data, PRIORS)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    with pytest.raises(ValueError, match="needs a last layer with a bias"):
        tuning.fast_search(plain, *data, PRIORS, refit=True)


WORKER = """
import pathlib, sys, time
import keras, keras_tuner
import numpy as np
from keras_balanced import tuning

directory, log = sys.argv[1:]
y = np.arange(60) % 3
x = (np.random.default_rng(0).normal(size=(60, 4)) + np.eye(3, 4)[y]).astype("float32")


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


class Slow(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        with pathlib.Path(log).open("a") as file:
            file.write(f"{self.model.loss.q}\\n")
        time.sleep(0.5)


hypermodel = tuning.BalancedHyperModel(
    build, [100, 30, 1], losses=["gla"], q=[0.0, 0.1, 0.2, 0.3, 0.4], tau=[None], seed=0
)
tuner = tuning.GridSearch(hypermodel, hypermodel.objective, directory=directory, project_name="p")
tuner.search(x, y, validation_data=(x, y), epochs=1, callbacks=[Slow()], verbose=0)
"""


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def test_a_chief_and_two_workers_of_which_one_is_killed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = {}

    def log(worker):
        path = tmp_path / f"{worker}.log"
        return path.read_text().splitlines() if path.exists() else []

    def start(tuner_id):
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(tmp_path / f"{tuner_id}.log")]
        environment = {
            "KERASTUNER_TUNER_ID": tuner_id,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": port,
        }
        processes[tuner_id] = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ended():
        oracle = tmp_path / "p" / "oracle.json"
        return json.loads(oracle.read_text())["end_order"] if oracle.exists() else []

    try:
        for tuner_id in ("chief", "worker0", "worker1"):
            start(tuner_id)
        wait_for(lambda: log("worker0") and log("worker1"))
        # Killed in the middle of a trial.
        processes["worker0"].kill()
        processes["worker0"].wait()
        lost = log("worker0")[-1]
        # The other goes on to the end of the grid, but for the trial that is lost.
        wait_for(lambda: len(ended()) + 1 == 5)
        assert lost not in log("worker1")

        # The chief waits for it: end all, and start all again with the same ids.
        for process in processes.values():
            process.kill()
            process.wait()
        for tuner_id in ("chief", "worker0", "worker1"):
            start(tuner_id)
        for process in processes.values():
            assert process.wait(timeout=120) == 0
    finally:
        for process in processes.values():
            process.kill()
            process.wait()

    trained = log("worker0") + log("worker1")
    assert sorted(trained) == sorted(["0.0", "0.1", "0.2", "0.3", "0.4", lost])
    trials = [json.loads(path.read_text()) for path in (tmp_path / "p").glob("trial_*/trial.json")]
    assert [trial["status"] for trial in trials] == ["COMPLETED"] * 5
    values = [trial["hyperparameters"]["values"] for trial in trials]
    assert sorted(value["q"] for value in values) == [0.0, 0.1, 0.2, 0.3, 0.4]
