"""Searches with real tuners: what they try, and what a kill leaves of them."""

import inspect
import json
import pickle
import resource
import signal

import keras
import keras_tuner
import numpy as np
import pytest
import searches
from processes import finish, free_addresses, kill, start, wait_for
from searches import PRIORS, TRAININGS, build, examples

from keras_balanced import BalancedAccuracy, BalancedLoss, GLALoss, Surrogate, plots, tuning
from keras_balanced.losses import LOSSES
from keras_balanced.surrogates import FAMILIES, Family

# KerasTuner's Gaussian process on a handful of trials.
pytestmark = pytest.mark.filterwarnings("ignore:The optimal value found for dimension")


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
    assert losses["gca", 0.4, "[1, 2, 2]"][1].margins == [1.0, 2.0, 2.0]
    assert all(q == point[1] for point, (q, _) in losses.items())


def test_values_that_are_nearly_one_are_two():
    grid = tuning.loss_grid(
        PRIORS, ["gla", "gca"], [0.0], tau=[1.0, 1.0000001], margins=[[1, 2, 2], [1, 2, 2.0000001]]
    )
    assert len(grid) == 4
    # Rounding alone makes no second loss.
    assert len(tuning.loss_grid(PRIORS, ["gla"], [0.9], tau=[None, 10.0])) == 1


def test_families_are_those_that_have_a_class():
    assert FAMILIES.keys() == LOSSES.keys()
    for name, family in FAMILIES.items():
        assert family.option in inspect.signature(LOSSES[name]).parameters
        grid = tuning.loss_grid(PRIORS, [name], [0.0, 0.1], **{family.option: [family.values[0]]})
        assert {(point[0], type(loss)) for point, loss in grid.items()} == {(name, LOSSES[name])}


def test_a_new_family_is_a_row_in_two_tables(monkeypatch):
    class Scaled(BalancedLoss):
        def __init__(self, priors, q=0.0, gamma=0.0, target_priors=None, **kwargs):
            self.priors, self.q, self.gamma, self.target_priors = priors, q, gamma, target_priors
            super().__init__(Surrogate(priors, target_priors=target_priors, q=q), **kwargs)

        def logits(self, y_pred):
            return self.gamma * super().logits(y_pred)

    monkeypatch.setitem(FAMILIES, "scaled", Family("gamma", (1.0, 2.0), none=""))
    monkeypatch.setitem(LOSSES, "scaled", Scaled)
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, ["scaled", "gla"], [0.0, 0.1], gamma=[2.0, 3.0], tau=[None]
    )
    gammas = [(loss.q, loss.gamma) for loss in hypermodel.grid.values() if type(loss) is Scaled]
    assert gammas == [(0.0, 2.0), (0.0, 3.0), (0.1, 2.0), (0.1, 3.0)]
    hp = keras_tuner.HyperParameters()
    assert hypermodel.build(hp).loss.gamma == 2.0
    assert hp.values == {"loss": "scaled", "q": 0.0, "gamma": "2"}
    row = {"loss": "scaled", "q": 0.0, "gamma": "2", "balanced_accuracy": 0.5}
    (text,) = plots.accuracy_against_q([row]).get_legend().get_texts()
    assert text.get_text() == "scaled, gamma 2"


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


def compiled_as(**arguments):
    def compiled():
        model = build()
        model.compile(**{"optimizer": keras.optimizers.SGD(0.25), "loss": "mse", **arguments})
        return model

    return compiled


def built(build, **kwargs):
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, **kwargs)
    return hypermodel.build(keras_tuner.HyperParameters())


def mean_logit(y_true, y_pred):  # Not registered with Keras.
    return keras.ops.mean(y_pred, axis=-1)


def test_all_that_build_compiles_stays_except_the_loss():
    kept = {"steps_per_execution": 3, "jit_compile": False, "loss_weights": 2.0}
    build_ = compiled_as(**kept, weighted_metrics=["accuracy"], metrics=[mean_logit])
    model = built(build_)
    assert isinstance(model.loss, GLALoss)
    assert (model.steps_per_execution, model.jit_compile) == (3, False)
    x, y = examples()
    weight = (y == 0).astype("float32")
    found = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    logits = model.predict(x, verbose=0)
    assert found["accuracy"] == pytest.approx((logits.argmax(axis=-1) == 0)[y == 0].mean())
    assert found["mean_logit"] == pytest.approx(logits.mean(), abs=1e-5)
    loss = float(model.loss(y, logits, sample_weight=weight))
    assert found["loss"] == pytest.approx(2.0 * loss, rel=1e-5)
    # What the hypermodel is given goes before.
    model = built(build_, compile_kwargs={"run_eagerly": True, "steps_per_execution": 1})
    assert (model.run_eagerly, model.steps_per_execution) == (True, 1)
    assert float(model.optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("scale", [True, False])
def test_a_build_that_does_not_scale_the_loss(scale):
    with_policy = compiled_as(auto_scale_loss=scale)

    def half():
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_float16")
        try:
            return with_policy()
        finally:
            keras.config.set_dtype_policy(before)

    for kwargs in ({}, {"compile_kwargs": {"optimizer": keras.optimizers.SGD(0.5)}}):
        model = built(half, **kwargs)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scale


def test_what_a_compile_of_a_subclass_keeps_stays():
    class Own(keras.Sequential):
        def compile(self, *args, alpha=1.0, **kwargs):
            self.alpha = alpha
            super().compile(*args, **kwargs)

    def own():
        model = Own([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse", alpha=0.5)
        return model

    model = built(own)
    assert (model.alpha, type(model.loss)) == (0.5, GLALoss)


@pytest.mark.parametrize("named", [BalancedAccuracy(3), "accuracy"])
def test_of_two_metrics_of_one_name_the_weighted_one_is_the_objective(named, tmp_path):
    x, y = examples()
    weight = np.where(np.arange(60) % 2, 1.0, 0.0)
    y = np.where(weight > 0, y, (y + 1) % 3)  # Wrong labels, which do not count.
    name = named if isinstance(named, str) else named.name

    def both():
        metrics = [named if isinstance(named, str) else BalancedAccuracy(3)]
        again = [named if isinstance(named, str) else BalancedAccuracy(3)]
        return compiled_as(metrics=metrics, weighted_metrics=again, run_eagerly=True)()

    hypermodel = tuning.BalancedHyperModel(both, PRIORS, losses=["gla"], q=[0.0])
    objective = keras_tuner.Objective(f"val_{name}", "max")
    tuner = tuning.GridSearch(hypermodel, objective, directory=tmp_path)
    fit_kwargs = {"epochs": 5, "verbose": 0, "sample_weight": weight}
    tuner.search(x, y, validation_data=(x, y, weight), **fit_kwargs)
    (trial,) = tuner.oracle.trials.values()
    counts, model = weight > 0, tuner.get_best_models()[0]
    right = model.loss.posterior(model.predict(x, verbose=0)).argmax(axis=-1) == y
    expected = np.mean([right[counts & (y == k)].mean() for k in range(3)])
    assert trial.score == pytest.approx(expected if name != "accuracy" else right[counts].mean())
    assert trial.score > right.mean() + 0.2


def test_a_hypermodel_can_be_pickled():
    kwargs = {"compile_kwargs": {"optimizer": keras.optimizers.SGD(0.5), "metrics": ["accuracy"]}}
    own = BalancedLoss(Surrogate(PRIORS, weights=[1, 2, 3]), name="own")
    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=["gla", "gca", own], **kwargs)
    again = pickle.loads(pickle.dumps(hypermodel))
    assert again.grid == hypermodel.grid
    model = again.build(keras_tuner.HyperParameters())
    assert float(model.optimizer.learning_rate) == 0.5
    assert model.loss == hypermodel.build(keras_tuner.HyperParameters()).loss


@pytest.mark.parametrize(
    "build_of",
    [lambda hp: build(), lambda units=3: build(), lambda: build(), lambda hp=None: build()],
)
def test_a_build_with_and_without_hyperparameters(build_of):
    assert built(build_of).output_shape == (None, 3)


def test_other_priors_of_a_rare_class_are_not_the_loss_of_the_hypermodel(tmp_path):
    """What a `repr` cuts off counts."""

    def wide():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(9)])

    hypermodel = tuning.BalancedHyperModel(wide, [9] * 8 + [1], losses=["gla"], q=[0.0])
    loss = GLALoss([9] * 8 + [2])
    assert repr(loss) == repr(next(iter(hypermodel.grid.values())))
    tuner = keras_tuner.RandomSearch(
        hypermodel, hypermodel.objective, loss=loss, directory=tmp_path, max_trials=1
    )
    x, y = examples()
    with pytest.raises(ValueError, match="must leave the loss to the hypermodel"):
        tuner.search(x, y, validation_data=(x, y), verbose=0)


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
    # In so few steps compiling would take the most time: one of the searches shows that it works.
    compile_kwargs = {"run_eagerly": name != "random"}
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, q=[0.0, 0.1], seed=0, compile_kwargs=compile_kwargs
    )
    tuner = TUNERS[name](hypermodel, hypermodel.objective, seed=0, directory=tmp_path)
    tuner.search(x, y, validation_data=(x, y), epochs=2, batch_size=60, verbose=0)
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
        ({"losses": ["focal"]}, r"or a `BalancedLoss`. Received: losses=\['focal'\]"),
        ({"tau": []}, "`tau` must be a list"),
        ({"tau": ["1"]}, "`tau` must be a finite number. Received: tau='1'"),
        ({"margins": ["wide"]}, "`margins` must be"),
        ({"margins": [[1, 2]]}, "each of the 3 classes"),
        ({"losses": ["gca"], "q": [0.5], "margins": ["cube_root"]}, "No loss is left to search"),
        ({"priors": [1, 0, 1]}, "`priors` must be positive"),
        ({"build": 3}, "`build` must be a function"),
        ({"consistent": [True]}, r"are \['tau', 'margins'\]. Received: consistent=\[True\]"),
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


def ranking(directory):
    trials = [json.loads(path.read_text()) for path in directory.glob("trial_*/trial.json")]
    assert all(trial["status"] == "COMPLETED" for trial in trials)
    return sorted(
        (trial["trial_id"], trial["score"], str(trial["hyperparameters"]["values"]))
        for trial in trials
    )


@pytest.mark.slow
def test_kill_9_loses_the_training_under_way_only(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    killed = [start(searches.__file__, "kill", parts, kind) for kind in TRAININGS]
    for kind in TRAININGS:
        searches.search(whole, kind)
    for code, output in finish(*killed):
        assert code == -signal.SIGKILL, output
    for kind, trainings in TRAININGS.items():
        searches.search(parts, kind)
        assert ranking(parts / kind) == ranking(whole / kind)
        expected = (whole / f"{kind}.log").read_text().splitlines()
        started = (parts / f"{kind}.log").read_text().splitlines()
        assert len(expected) == trainings
        # Two had ended; the third was killed and starts again, and no other does.
        assert started[2] == started[3]
        assert started[:3] + started[4:] == expected


def test_a_trial_that_ended_is_not_repeated_where_only_the_oracle_was_not_written(tmp_path):
    x, y = examples()
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        q=[0.0, 0.1, 0.2],
        tau=[None],
        seed=0,
        compile_kwargs={"run_eagerly": True},
    )

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


def test_a_save_that_fails_midway_leaves_the_last_one(tmp_path):
    """As a kill would: the system lets a file grow to 10 bytes."""
    tf = pytest.importorskip("tensorflow")
    hypermodel = tuning.BalancedHyperModel(build, PRIORS)
    tuner = tuning.GridSearch(hypermodel, hypermodel.objective, directory=tmp_path)
    oracle = tuner.oracle
    trial = oracle.create_trial("tuner0")
    of_trial = tmp_path / "untitled_project" / f"trial_{trial.trial_id}" / "trial.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for path, save in (
        (tmp_path / "untitled_project" / "oracle.json", oracle.save),
        (of_trial, lambda: oracle._save_trial(trial)),
    ):
        save()
        before = path.read_text()
        assert json.loads(before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            # Of Python, or of TensorFlow, which KerasTuner writes with.
            with pytest.raises((OSError, tf.errors.OpError)):
                save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_text() == before


@pytest.mark.slow
def test_a_chief_and_two_workers_of_which_one_is_killed(tmp_path):
    ids = ("chief", "worker0", "worker1")
    (address,) = free_addresses(1)
    host, port = address.split(":")

    def start_all():
        return {
            name: start(
                *(searches.__file__, "work", tmp_path, name),
                KERASTUNER_TUNER_ID=name,
                KERASTUNER_ORACLE_IP=host,
                KERASTUNER_ORACLE_PORT=port,
            )
            for name in ids
        }

    def log(worker):
        path = tmp_path / f"{worker}.log"
        return path.read_text().splitlines() if path.exists() else []

    def ended():
        oracle = tmp_path / "p" / "oracle.json"
        return json.loads(oracle.read_text())["end_order"] if oracle.exists() else []

    processes = start_all()
    try:
        wait_for(lambda: log("worker0") and log("worker1"), *processes.values())
        # Killed in the middle of a trial.
        kill(processes.pop("worker0"))
        (lost,) = log("worker0")
        # The other goes on to the end of the grid, except for the trial that is lost.
        (tmp_path / "worker1.go").touch()
        wait_for(lambda: len(ended()) + 1 == 5, *processes.values())
        assert lost not in log("worker1")
    finally:
        # The chief waits for it: end all, and start all again with the same ids.
        kill(*processes.values())
    (tmp_path / "worker0.go").touch()
    chief, *workers = finish(*start_all().values())
    for code, output in (chief, *workers):
        # KerasTuner's chief ends when the grid has, also before a slow worker has asked it.
        assert code == 0 or ("UNAVAILABLE" in output and output != chief[1]), output
    assert any(code == 0 for code, _ in workers)

    trained = log("worker0") + log("worker1")
    assert len(trained) == 6
    assert len(set(trained)) == 5
    assert trained.count(lost) == 2
    trials = [json.loads(path.read_text()) for path in (tmp_path / "p").glob("trial_*/trial.json")]
    assert [trial["status"] for trial in trials] == ["COMPLETED"] * 5
    values = [trial["hyperparameters"]["values"] for trial in trials]
    assert sorted(value["q"] for value in values) == [0.0, 0.1, 0.2, 0.3, 0.4]
