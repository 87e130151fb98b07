"""A search rerun with a change ends with exactly the points wanted, or is refused in one line."""

import json
import pathlib
import sys

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
from processes import HANG, finish, kill, start
from searches import PRIORS, build, examples

from keras_balanced import BalancedAccuracy, callbacks, tuning
from keras_balanced.tuning import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

EAGER = {"run_eagerly": True}  # In so few steps compiling would take longest.
SMALL = {"losses": ["gla"], "q": [0.0], "tau": [None]}


def hypermodel_of(priors=PRIORS, **grid):
    return tuning.BalancedHyperModel(build, priors, compile_kwargs=EAGER, **{**SMALL, **grid})


class Stop(keras.callbacks.Callback):
    """Ends the process, as far as the search can see, before a training."""

    def __init__(self, after):
        super().__init__()
        self.left = [after]

    def __deepcopy__(self, memo):  # A search copies callbacks; all count together.
        return self

    def on_train_begin(self, logs=None):
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt


class Scored(tuning.BalancedHyperModel):
    """Trains nothing, and counts which points of a grid it is given."""

    def build(self, hp):
        self.loss(hp)
        return keras.Sequential([keras.layers.Dense(3)])

    def fit(self, hp, model, *args, callbacks, **kwargs):
        next(c for c in callbacks if isinstance(c, Stop)).on_train_begin()
        return {"val_balanced_accuracy": self.loss(hp).q}


def grid_search(directory, hypermodel, stop_after=99, **fit_kwargs):
    x, y = examples(12)
    tuner = tuning.GridSearch(hypermodel, hypermodel.objective, directory=directory)
    arguments = {"validation_data": (x, y), "batch_size": 12, "verbose": 0, **fit_kwargs}
    try:
        tuner.search(x, y, callbacks=[Stop(stop_after)], **arguments)
    except KeyboardInterrupt:
        return None
    return tuner


def points(tuner, status="COMPLETED"):
    """The losses of the trials that ended."""
    trials = [trial for trial in tuner.oracle.trials.values() if trial.status == status]
    losses = [repr(tuner.hypermodel.loss(trial.hyperparameters)) for trial in trials]
    assert len(set(losses)) == len(losses)  # None was trained twice.
    return set(losses)


def wanted(hypermodel):
    return {repr(loss) for loss in hypermodel.grid.values()}


VECTORS = [[1, 2, 3], [3, 2, 1]]
SIX = {"losses": ["gla", "gca"], "q": [0.0, 0.1], "tau": [None, 1.0], "margins": [None, VECTORS[0]]}
CHANGES = {
    "q added": {"q": [0.0, 0.05, 0.1]},
    "q removed": {"q": [0.0]},
    "loss removed": {"losses": ["gla"]},
    "tau added": {"tau": [None, 1.0, 0.5]},
    "tau removed": {"tau": [None]},
    "margins added": {"margins": [None, *VECTORS]},
    "margins before": {"margins": [VECTORS[1], None, VECTORS[0]]},
    "margins removed": {"margins": [None]},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("after", [1, 2, 4, 99])
def test_a_grid_that_changes(change, after, tmp_path):
    before, then = Scored(build, PRIORS, **SIX), Scored(build, PRIORS, **{**SIX, **CHANGES[change]})
    assert len(before.grid) == 7
    grid_search(tmp_path, before, after)
    tuner = grid_search(tmp_path, then)
    ended = wanted(then)
    found = {
        repr(then.loss(trial.hyperparameters))
        for trial in tuner.oracle.trials.values()
        if trial.status == "COMPLETED" and _is_of(then, trial.hyperparameters.values)
    }
    assert ended <= found


def _is_of(hypermodel, values):
    """Whether the values of a trial are of the grid."""
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    try:
        hypermodel.loss(hp)
    except (KeyError, keras_tuner.errors.FatalValueError):
        return False
    return True


OTHERS = {
    "priors": ({"priors": [9, 3, 1]}, {}, "loss gla, q=0.0, 1/"),
    "target_priors": ({"target_priors": [3, 2, 1]}, {}, "loss gla"),
    "seed": ({"seed": 1}, {}, "seed: None -> 1"),
    "epochs": ({}, {"epochs": 2}, "epochs: None -> 2"),
    "batch size": ({}, {"batch_size": 6}, "batch_size: 12 -> 6"),
    "labels": ({}, {"validation_data": (examples(12)[0], np.zeros(12))}, "validation_data"),
    "inputs": ({}, {"validation_data": (examples(12)[0] / 2, examples(12)[1])}, "validation_data"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_another_search_is_refused(change, tmp_path):
    grid, fit_kwargs, message = OTHERS[change]
    grid_search(tmp_path, hypermodel_of())
    with pytest.raises(ValueError, match="must be of one search.* Received: " + message) as caught:
        grid_search(tmp_path, hypermodel_of(**grid), **fit_kwargs)
    assert "\n" not in str(caught.value)


def test_another_objective_is_refused(tmp_path):
    grid_search(tmp_path, hypermodel_of())
    x, y = examples(12)
    hypermodel = hypermodel_of()
    hypermodel.compile_kwargs["metrics"] = ["accuracy"]
    objective = keras_tuner.Objective("val_accuracy", "max")
    tuner = tuning.GridSearch(hypermodel, objective, directory=tmp_path)
    with pytest.raises(ValueError, match="objective: max val_balanced_accuracy -> max val_accu"):
        tuner.search(x, y, validation_data=(x, y), batch_size=12, verbose=0)


def search_with(directory, compile_kwargs=None, objective=None, **tuner_kwargs):
    x, y = examples(12)
    compile_kwargs = {**EAGER, "metrics": ["accuracy"], **(compile_kwargs or {})}
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, compile_kwargs=compile_kwargs, **SMALL)
    objective = objective or hypermodel.objective
    tuner = tuning.GridSearch(hypermodel, objective, directory=directory, **tuner_kwargs)
    tuner.search(x, y, validation_data=(x, y), batch_size=12, verbose=0)


def adam(**kwargs):
    return {"optimizer": keras.optimizers.Adam(**kwargs)}


def decay(steps):
    return adam(learning_rate=keras.optimizers.schedules.CosineDecay(0.1, steps))


def scaled(rate):
    return {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate))}


BALANCED, ACCURACY, LOSS_OF_TRAINING = (
    keras_tuner.Objective(name, "max")
    for name in ("val_balanced_accuracy", "val_accuracy", "accuracy")
)
CONTENTS = {
    "objectives": (
        {"objective": [BALANCED, ACCURACY]},
        {"objective": [BALANCED, LOSS_OF_TRAINING]},
        r"objective: \['max val_accuracy', 'max val_balanced_accuracy'\] -> \['max accuracy'",
    ),
    "executions": ({}, {"executions_per_trial": 2}, "executions_per_trial: 1 -> 2"),
    "optimizer": (
        {"compile_kwargs": {"optimizer": "sgd"}},
        {"compile_kwargs": {"optimizer": "adam"}},
        "compile_kwargs.optimizer: sgd -> adam",
    ),
    "setting": (
        {"compile_kwargs": adam(beta_1=0.9)},
        {"compile_kwargs": adam(beta_1=0.8)},
        "compile_kwargs.optimizer.beta_1: 0.9 -> 0.8",
    ),
    "schedule": (
        {"compile_kwargs": decay(10)},
        {"compile_kwargs": decay(20)},
        "compile_kwargs.optimizer.learning_rate.config.decay_steps: 10 -> 20",
    ),
    "within another": (
        {"compile_kwargs": scaled(0.1)},
        {"compile_kwargs": scaled(0.2)},
        "inner_optimizer.config.learning_rate: 0.1",
    ),
    "metrics": (
        {"compile_kwargs": {"metrics": ["accuracy", BalancedAccuracy(3)]}},
        {"compile_kwargs": {"metrics": ["accuracy", BalancedAccuracy(3, ignore_class=0)]}},
        "compile_kwargs.metrics.1.ignore_class: None -> 0",
    ),
    "of the tuner": ({}, {"optimizer": "adam"}, "optimizer: None -> adam"),
    "training": ({"compile_kwargs": {"loss_weights": 1.0}}, {}, "compile_kwargs.loss_weights"),
}


@pytest.mark.parametrize("change", CONTENTS)
def test_another_content_is_refused(change, tmp_path):
    before, now, message = CONTENTS[change]
    search_with(tmp_path, **before)
    search_with(tmp_path, **before)  # The same again goes on.
    with pytest.raises(
        ValueError, match="must be of one search.* Received: .*" + message
    ) as caught:
        search_with(tmp_path, **now)
    assert len(str(caught.value)) <= 600


def test_what_changes_no_result_goes_on(tmp_path):
    search_with(tmp_path, {"optimizer": "sgd"})
    search_with(tmp_path, {"optimizer": "sgd", "run_eagerly": False, "steps_per_execution": 2})


def test_a_worker_deletes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    with pytest.raises(ValueError, match="`overwrite` must be left out where several workers"):
        tuning.GridSearch(hypermodel_of(), BALANCED, directory=tmp_path, overwrite=True)


def cross_validation(directory, hypermodel=None, folds=2, seed=0, objective=None, **kwargs):
    hypermodel = hypermodel or hypermodel_of()
    oracle = keras_tuner.oracles.GridSearchOracle(objective or hypermodel.objective)
    return tuning.CrossValidation(oracle, hypermodel, folds, seed, directory=directory, **kwargs)


@pytest.mark.parametrize(
    ("change", "fit_kwargs", "message"),
    [
        ({"folds": 3}, {}, "folds: 2 -> 3"),
        ({"seed": 1}, {}, "seed of folds: 0 -> 1"),
        ({}, {"epochs": 2}, "epochs: None -> 2"),
        ({}, {"y": np.roll(examples()[1], 1)}, "labels: "),
    ],
)
def test_other_folds_are_refused(change, fit_kwargs, message, tmp_path):
    x, y = examples()
    cross_validation(tmp_path).search(x, y, verbose=0)
    with pytest.raises(ValueError, match="must be of one search.* Received: " + message):
        cross_validation(tmp_path, **change).search(**{"x": x, "y": y, "verbose": 0, **fit_kwargs})


@pytest.mark.parametrize("start_from_epoch", [0, 5])
def test_early_stopping_that_never_began_does_not_shorten_the_refit(start_from_epoch, tmp_path):
    x, y = examples()
    stop = keras.callbacks.EarlyStopping(
        "val_balanced_accuracy",
        patience=9,
        restore_best_weights=True,
        start_from_epoch=start_from_epoch,
    )
    tuner = cross_validation(tmp_path)
    tuner.search(x, y, epochs=3, callbacks=[stop], verbose=0)
    (trial,) = tuner.oracle.trials.values()
    path = tuner.get_trial_dir(trial.trial_id)
    epochs = [
        json.loads(pathlib.Path(path, f"fold_{fold}.json").read_text())["epochs"]
        for fold in range(2)
    ]
    if start_from_epoch:
        assert epochs == [3, 3]
    assert keras.saving.load_model(_refitted(tuner, trial)).built


def _refitted(tuner, trial):
    tuner.load_model(trial)
    return f"{tuner.get_trial_dir(trial.trial_id)}/refitted.keras"


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric:UserWarning")
def test_early_stopping_on_what_is_not_there_is_refused(tmp_path):
    x, y = examples()
    stop = keras.callbacks.EarlyStopping("val_balanced_acc", mode="max", patience=1)
    with pytest.raises(ValueError, match="Received: monitor='val_balanced_acc'"):
        cross_validation(tmp_path).search(x, y, callbacks=[stop], verbose=0)


def test_a_callback_without_a_monitor(tmp_path):
    class Quiet(keras.callbacks.Callback):
        monitor = None

    x, y = examples()
    tuner = cross_validation(tmp_path)
    tuner.search(x, y, callbacks=[Quiet()], verbose=0)
    assert tuner.get_best_models()[0].built


def test_what_a_tuner_is_told_is_honoured_or_refused(tmp_path):
    with pytest.raises(ValueError, match="`executions_per_trial` must be left out"):
        cross_validation(tmp_path, executions_per_trial=2)
    x, y = examples()
    tuner = cross_validation(tmp_path / "size", max_model_size=3)
    tuner.search(x, y, verbose=0)
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"FAILED"}
    for given in ({"loss": "mse"}, {"optimizer": "sgd"}, {"metrics": ["accuracy"]}):
        with pytest.raises(ValueError, match="must be left to the hypermodel"):
            cross_validation(tmp_path / "compiled", **given)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorBoard needs TensorFlow")
def test_tensorboard_has_a_directory_for_each_training(tmp_path):
    x, y = examples()
    tuner = cross_validation(tmp_path)
    board = keras.callbacks.TensorBoard(tmp_path / "board")
    tuner.search(x, y, callbacks=[board], verbose=0)
    tuner.get_best_models()
    found = {path.name for path in (tmp_path / "board").glob("*/*")}
    assert found == {"fold_0", "fold_1", "refitted"}


@pytest.mark.parametrize("make", [keras_tuner.RandomSearch, tuning.GridSearch])
@pytest.mark.parametrize(
    ("objective", "held_out", "tuner_kwargs", "message"),
    [
        ("val_accuracy", True, {}, "'val_accuracy', and the metrics .'balanced_accuracy'"),
        ("val_balanced_accuracy", False, {}, "needs `validation_data` in `search`"),
        ("val_balanced_accuracy", True, {"loss": "mse"}, "must leave the loss to the hypermodel"),
        ("val_balanced_accuracy", True, {"metrics": ["accuracy"]}, "the metrics .'accuracy'"),
    ],
)
def test_an_objective_that_nothing_measures(
    make, objective, held_out, tuner_kwargs, message, tmp_path
):
    x, y = examples(12)
    tuner = make(
        hypermodel_of(),
        keras_tuner.Objective(objective, "max"),
        directory=tmp_path,
        max_trials=1,
        **tuner_kwargs,
    )
    trained = []
    # One of Keras's own: those of others may write an objective.
    callback = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: trained.append(logs))
    with pytest.raises(ValueError, match=message):
        tuner.search(
            x, y, validation_data=(x, y) if held_out else None, callbacks=[callback], verbose=0
        )
    assert not trained  # Refused before the first step.


def test_a_renamed_metric_is_refused_and_those_of_build_are_kept(tmp_path):
    def compiled():
        model = build()
        model.compile("sgd", "mse", metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2)])
        return model

    hypermodel = tuning.BalancedHyperModel(compiled, PRIORS, compile_kwargs=EAGER, **SMALL)
    x, y = examples(12)
    one_hot = np.eye(3)[y]
    model = hypermodel.build(keras_tuner.HyperParameters())
    history = model.fit(x, one_hot, validation_data=(x, one_hot), verbose=0).history
    assert {"accuracy", "top_k_categorical_accuracy", "balanced_accuracy"} <= set(history)

    renamed = [BalancedAccuracy(3, name="balanced")]
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, compile_kwargs={**EAGER, "metrics": renamed}, **SMALL
    )
    tuner = tuning.GridSearch(hypermodel, hypermodel.objective, directory=tmp_path)
    with pytest.raises(ValueError, match=r"and the metrics .'balanced'"):
        tuner.search(x, y, validation_data=(x, y), verbose=0)


def test_an_objective_that_a_report_writes(tmp_path):
    x, y = examples(12)
    objective = keras_tuner.Objective("val_worst_class_recall", "max")
    tuner = tuning.GridSearch(hypermodel_of(), objective, directory=tmp_path)
    report = callbacks.PerClassReport((x, y))
    tuner.search(x, y, validation_data=(x, y), callbacks=[report], verbose=0)
    (trial,) = tuner.oracle.trials.values()
    assert trial.score is not None


def mean_prediction(y_true, y_pred):
    return keras.ops.mean(y_pred)


def test_metrics_that_are_not_registered(tmp_path):
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, compile_kwargs={**EAGER, "metrics": [mean_prediction]}, **SMALL
    )
    assert points(grid_search(tmp_path, hypermodel)) == wanted(hypermodel)


def test_an_objective_that_a_callback_writes(tmp_path):
    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_own"] = 0.5

    x, y = examples(12)
    objective = keras_tuner.Objective("val_own", "max")
    tuner = tuning.GridSearch(hypermodel_of(), objective, directory=tmp_path)
    tuner.search(x, y, validation_data=(x, y), callbacks=[Log()], verbose=0)
    assert [trial.score for trial in tuner.oracle.trials.values()] == [0.5]


def test_other_weights_are_refused(tmp_path):
    x, y = examples()
    cross_validation(tmp_path).search(x, y, sample_weight=np.ones(60), verbose=0)
    with pytest.raises(ValueError, match=r"must be of one search.*weights: "):
        cross_validation(tmp_path).search(x, y, sample_weight=np.arange(60.0), verbose=0)


def test_other_batches_of_a_dataset_are_refused(tmp_path):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(examples())
    cross_validation(tmp_path).search(data, batch_size=30, verbose=0)
    with pytest.raises(ValueError, match="size of batches: 30 -> 15"):
        cross_validation(tmp_path).search(data, batch_size=15, verbose=0)


def test_fingerprints_of_any_data():
    import pandas as pd

    x, y = examples(6)
    made = [
        fingerprint.fingerprint(None, None, (x, labels), {"batch_size": np.int64(size)})
        for size in (3, 6)
        for labels in (y, y[::-1], [y, y], np.array(list("abcabc"), object), pd.Series(y))
    ]
    assert made[0]["batch_size"] == 3
    assert len({json.dumps(what, sort_keys=True) for what in made}) == 8  # Series as arrays.
    frame = fingerprint.fingerprint(None, None, (pd.DataFrame(x), y), {})
    assert "(6, 4)" in frame["x"]


def text_of(x=None, **kwargs):
    return json.dumps(fingerprint.fingerprint(None, None, (x, np.arange(6)), kwargs))


def test_fingerprints_of_inputs():
    import pandas as pd

    x = examples(6)[0]
    tall = np.repeat(x, 1000, axis=0)
    others = [x, x / 2, x.astype("float64"), [x, x], {"a": x}, {"a": x / 2}, tall, tall / 2]
    assert len({text_of(other) for other in others}) == len(others)
    same = [x, x.copy(), np.asfortranarray(x), keras.ops.convert_to_tensor(x)]
    assert len({text_of(other).replace("<dtype: 'float32'>", "float32") for other in same}) == 1
    assert text_of(pd.DataFrame(x)) != text_of(pd.DataFrame(x / 2))


def test_fingerprints_of_callbacks():
    stop, rate = keras.callbacks.EarlyStopping, keras.callbacks.LearningRateScheduler

    def falling(epoch):
        return 0.1 / (1 + epoch)

    def constant(epoch):
        return 0.1

    others = [
        [],
        [stop(patience=3)],
        [stop(patience=5)],
        [stop("val_accuracy", patience=3)],
        [rate(falling)],
        [rate(constant)],
        [keras.callbacks.ReduceLROnPlateau(factor=0.5)],
        [keras.callbacks.ReduceLROnPlateau(factor=0.2)],
    ]
    assert len({text_of(callbacks=callbacks) for callbacks in others}) == len(others)
    # What only looks on does not matter.
    silent = [keras.callbacks.TerminateOnNaN(), Stop(3)]
    assert text_of(callbacks=silent) == text_of(callbacks=[]) == text_of()
    assert text_of(callbacks=[stop(verbose=1)]) == text_of(callbacks=[stop()])


# Optuna

POINTS = {"q": [0.0, 0.1, 0.2], "tau": [None, 1.0], "margins": [None]}


def store(path):
    return optuna.storages.RDBStorage(
        f"sqlite:///{path}",
        heartbeat_interval=1,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )


def work(path, role):
    """Runs trials until every loss of the grid is there; in the role of a worker that hangs."""
    import time

    study = optuna.create_study(
        study_name="losses",
        storage=store(path),
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.BruteForceSampler(),
    )
    grid = tuning.BalancedHyperModel(build, PRIORS, **POINTS).grid
    every = {repr(loss) for loss in grid.values()}

    def objective(trial):
        loss = tuning.suggest_loss(trial, PRIORS, **POINTS)
        trial.set_user_attr("loss", repr(loss))
        while role == "hangs":
            print("hangs", trial.number, repr(loss), flush=True)
            time.sleep(HANG)
        return loss.q

    while True:
        trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        if every <= {trial.user_attrs["loss"] for trial in trials}:
            break
        study.optimize(objective, n_trials=1)
    print("done")


@pytest.mark.slow
def test_three_workers_of_optuna_one_of_them_killed(tmp_path):
    path = tmp_path / "study.db"
    store(path)  # Makes the tables.
    lost = start(__file__, path, "hangs")
    try:
        number = next(line.split()[1] for line in lost.stdout if line.startswith("hangs"))
    finally:
        kill(lost)
    workers = [start(__file__, path, "works") for _ in range(2)]
    for code, output in finish(*workers):
        assert code == 0, output
    study = optuna.load_study(study_name="losses", storage=f"sqlite:///{path}")
    assert study.trials[int(number)].state == optuna.trial.TrialState.FAIL
    ended = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    grid = tuning.BalancedHyperModel(build, PRIORS, **POINTS).grid
    assert {trial.user_attrs["loss"] for trial in ended} == {repr(x) for x in grid.values()}
    assert study.best_trial.value == 0.2


def test_suggested_losses_are_those_of_the_grid():
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler())
    found = []
    arguments = {**SIX, "target_priors": [3, 2, 1]}
    study.optimize(lambda t: found.append(tuning.suggest_loss(t, PRIORS, **arguments)) or 0.0)
    grid = tuning.BalancedHyperModel(build, PRIORS, **arguments).grid
    assert sorted(map(repr, found)) == sorted(map(repr, grid.values()))
    for sampler in (optuna.samplers.TPESampler(seed=0), optuna.samplers.RandomSampler(seed=0)):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda t: tuning.suggest_loss(t, PRIORS, **arguments).q, n_trials=20)
        assert study.best_value == 0.0


SAMPLERS = {
    "brute force": optuna.samplers.BruteForceSampler,
    "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=2, seed=0),
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "grid": lambda: optuna.samplers.GridSampler({"q": [0.0, 0.1]}),
}
ONE = {"losses": ["gla"], "q": [0.0], "tau": [None]}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("priors", "grid"),
    [(PRIORS, {"q": [0.0, 0.1]}), (PRIORS, {"losses": ["gla", "gca"]}), ([3, 2, 1], {})],
)
def test_a_study_has_one_grid(name, priors, grid):
    study = optuna.create_study(sampler=SAMPLERS[name]())
    for _ in range(2):
        study.optimize(lambda trial: tuning.suggest_loss(trial, PRIORS, **ONE).q, n_trials=1)
    with pytest.raises(ValueError, match="must have one grid of losses: take another `study_na"):
        study.optimize(
            lambda trial: tuning.suggest_loss(trial, priors, **{**ONE, **grid}).q, n_trials=1
        )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("q", [[0.0], [0.0, 0.1]])
def test_a_study_that_refused_goes_on_with_its_own_grid(name, q, tmp_path):
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/study.db", direction="maximize", sampler=SAMPLERS[name]()
    )
    grid = {**ONE, "q": q}
    study.optimize(lambda trial: tuning.suggest_loss(trial, PRIORS, **grid).q, n_trials=1)
    grown = {**ONE, "q": [*q, 0.2]}
    with pytest.raises(ValueError, match=r"loss gla, q=0.2, .*: None -> \w+$"):
        study.optimize(lambda trial: tuning.suggest_loss(trial, PRIORS, **grown).q, n_trials=1)
    study.optimize(lambda trial: tuning.suggest_loss(trial, PRIORS, **grid).q, n_trials=3)
    ended = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert {trial.value for trial in ended} <= set(q)
    if name == "brute force":  # It takes all of them.
        assert {trial.value for trial in ended} == set(q)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(*sys.argv[1:])
