"""The grid without memory, whole files, and a KerasTuner left as it is."""

import itertools
import json
import pathlib
import random
import subprocess
import sys
import threading

import keras
import pytest

keras_tuner = pytest.importorskip("keras_tuner")

from keras_balanced import tuning  # noqa: E402
from keras_balanced.tuning import oracle as oracle_module  # noqa: E402

OBJECTIVE = keras_tuner.Objective("val_score", "max")
PRIORS = [100, 30, 1]


class Space(keras_tuner.HyperModel):
    """A hypermodel of hyperparameters only."""

    def __init__(self, declare):
        super().__init__()
        self.declare = declare

    def build(self, hp):
        return self.declare(hp)


class Search(tuning.GridSearch):
    """A grid search that trains nothing, and keeps what it would have trained."""

    def __init__(self, hypermodel, directory, objective=OBJECTIVE, stop_after=None, **kwargs):
        if not isinstance(hypermodel, keras_tuner.HyperModel):
            hypermodel = Space(hypermodel)
        self.trained, self.stop_after = [], stop_after
        super().__init__(hypermodel, objective, directory=directory, project_name="p", **kwargs)

    def run_trial(self, trial, *args, **kwargs):
        if len(self.trained) == self.stop_after:
            raise KeyboardInterrupt
        self.trained.append(self.hypermodel.build(trial.hyperparameters))
        assert len(self.trained) < 1000
        return {self.oracle.objective.name: 0.5}

    def run(self):
        try:
            self.search(verbose=0)
        except KeyboardInterrupt:
            assert self.stop_after is not None
        return self.trained


def layers(hp):
    """KerasTuner's standard kind of a space that grows with its values."""
    count = hp.Choice("num_layers", [1, 2, 3])
    return tuple(hp.Choice(f"units_{i}", [4, 8]) for i in range(count))


LAYERS = {point for n in (1, 2, 3) for point in itertools.product([4, 8], repeat=n)}


def scopes(hp):
    kind = hp.Choice("kind", ["a", "b", "c"])
    rate = hp.Float("rate", 0.0, 1.0, step=0.5)
    fixed = hp.Fixed("fixed", 7)
    with hp.conditional_scope("kind", ["a", "b"]):
        units = hp.Int("units", 2, 4)
        with hp.conditional_scope("units", [3, 4]):
            deep = hp.Boolean("deep")
    with hp.conditional_scope("kind", ["c"]):
        size = hp.Int("size", 1, 8, step=2, sampling="log")
    return kind, rate, fixed, units, deep, size


SCOPES = {
    (kind, rate, 7, units, deep, size)
    for kind, rate, units, deep, size in itertools.product(
        "abc", [0.0, 0.5, 1.0], [None, 2, 3, 4], [None, False, True], [None, 1, 2, 4, 8]
    )
    if (units is not None) == (kind in "ab")
    and (deep is not None) == (units in (3, 4))
    and (size is not None) == (kind == "c")
}


def one_name(hp):
    kind = hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        of_a = hp.Choice("units", [1, 2])
    with hp.conditional_scope("kind", ["b"]):
        of_b = hp.Choice("units", [3, 4, 5], default=4)
    return kind, of_a or of_b


ONE_NAME = {("a", 1), ("a", 2), ("b", 3), ("b", 4), ("b", 5)}


def no_step(hp):
    return hp.Float("rate", 1e-3, 1.0, sampling="log"), hp.Int("units", 2, 9, sampling="log")


def no_step_points():
    hp = keras_tuner.HyperParameters()
    no_step(hp)
    # KerasTuner picks ten values, and the default is none of them.
    values = [[p.default, *map(type(p.default), p.values)] for p in hp.space]
    return set(itertools.product(*values))


def rate_and_layers(hp):
    return hp.Choice("rate", [0.1, 0.2]), layers(hp), hp.Boolean("last")


SPACES = {
    "layers": (layers, LAYERS),
    "rate and layers": (
        rate_and_layers,
        set(itertools.product([0.1, 0.2], LAYERS, [False, True])),
    ),
    "scopes": (scopes, SCOPES),
    "one name": (one_name, ONE_NAME),
    "no step": (no_step, no_step_points()),
    "empty": (lambda hp: "only", {"only"}),
}


def is_each_once(trained, points):
    assert len(trained) == len(set(trained))
    assert set(trained) == points
    for point in trained:  # Integers, also those of a logarithmic grid.
        expected = next(other for other in points if other == point)
        assert [type(value) for value in point] == [type(value) for value in expected]


@pytest.mark.parametrize("name", SPACES)
def test_each_active_combination_comes_once(name, tmp_path):
    declare, points = SPACES[name]
    tuner = Search(declare, tmp_path)
    is_each_once(tuner.run(), points)
    # Again in the same process, and in another.
    assert tuner.run() == tuner.trained
    assert len(tuner.trained) == len(points)
    assert Search(declare, tmp_path).run() == []


@pytest.mark.parametrize("stop_after", [0, 1, 2, 5, 11])
@pytest.mark.parametrize("name", ["layers", "scopes"])
def test_a_search_that_stopped_goes_on(name, stop_after, tmp_path):
    declare, points = SPACES[name]
    first = Search(declare, tmp_path, stop_after=stop_after).run()
    assert len(first) == stop_after
    is_each_once(first + Search(declare, tmp_path).run(), points)


def test_default_values_come_first(tmp_path):
    def declare(hp):
        return hp.Choice("a", [1, 2, 3], default=2), hp.Boolean("b", default=True)

    assert Search(declare, tmp_path).run()[0] == (2, True)


@pytest.mark.parametrize("stop_after", [1, 2, None])
def test_a_grid_that_grew_runs_what_is_missing(stop_after, tmp_path):
    def search(q, stop_after=None):
        hypermodel = tuning.BalancedHyperModel(lambda: None, PRIORS, q=q)
        hypermodel.build = lambda hp: json.dumps(hypermodel.loss(hp).get_config())
        return Search(hypermodel, tmp_path, hypermodel.objective, stop_after), hypermodel.grid

    tuner, _ = search([0.0, 0.1], stop_after)
    before = tuner.run()
    tuner, grid = search([0.0, 0.05, 0.1, 0.15])
    after = tuner.run()
    assert after
    points = {json.dumps(loss.get_config()) for loss in grid.values()}
    assert sorted(before + after) == sorted(points)
    assert search([0.0, 0.05, 0.1, 0.15])[0].run() == []


def test_a_new_hyperparameter_makes_new_points(tmp_path):
    def grown(hp):
        return hp.Choice("a", [1, 2]), hp.Choice("b", [1, 2])

    Search(lambda hp: hp.Choice("a", [1, 2]), tmp_path).run()
    is_each_once(Search(grown, tmp_path).run(), {(1, 1), (1, 2), (2, 1), (2, 2)})
    # Without it the old trials hold.
    assert Search(lambda hp: hp.Choice("a", [1, 2]), tmp_path).run() == []


def test_a_renamed_hyperparameter_does_not_stay_in_the_grid(tmp_path):
    Search(lambda hp: hp.Choice("a", [1, 2]), tmp_path).run()
    for trained in ([1, 2, 3], []):
        assert Search(lambda hp: hp.Choice("b", [1, 2, 3]), tmp_path).run() == trained


def test_a_dynamic_grid_that_grew(tmp_path):
    def more(hp):
        count = hp.Choice("num_layers", [1, 2, 3, 4])
        return tuple(hp.Choice(f"units_{i}", [4, 8]) for i in range(count))

    before = Search(layers, tmp_path).run()
    after = Search(more, tmp_path).run()
    is_each_once(before + after, LAYERS | set(itertools.product([4, 8], repeat=4)))


def test_hyperparameters_that_only_trials_know_outlive_the_process(tmp_path):
    class Late(Space):
        def fit(self, hp):
            return hp.Choice("batch_size", [16, 32])

    class LateSearch(Search):
        def run_trial(self, trial, *args, **kwargs):
            results = super().run_trial(trial, *args, **kwargs)
            self.trained[-1] = (self.trained[-1], self.hypermodel.fit(trial.hyperparameters))
            return results

    hypermodel = Late(lambda hp: hp.Choice("a", [1, 2]))
    before = LateSearch(hypermodel, tmp_path, stop_after=2).run()
    tuner = LateSearch(hypermodel, tmp_path)
    tuner.reload()  # Twice is as once.
    is_each_once(before + tuner.run(), {(1, 16), (1, 32), (2, 16), (2, 32)})
    assert LateSearch(hypermodel, tmp_path).run() == []


def test_settings_of_the_oracle_hold(tmp_path):
    assert len(Search(layers, tmp_path / "few", max_trials=3).run()) == 3
    assert Search(layers, tmp_path / "few", max_trials=3).run() == []
    assert len(Search(layers, tmp_path / "few", max_trials=5).run()) == 2

    given = keras_tuner.HyperParameters()
    given.Choice("num_layers", [2])
    given.Fixed("units_0", 16)
    kwargs = {"hyperparameters": given, "tune_new_entries": False}
    # `units_1` is new, and keeps its default.
    assert Search(layers, tmp_path / "fixed", **kwargs).run() == [(16, 4)]
    assert Search(layers, tmp_path / "fixed", **kwargs).run() == []


def test_a_trial_that_failed_is_retried_and_not_proposed_again(tmp_path):
    class Failing(Search):
        def run_trial(self, trial, *args, **kwargs):
            results = super().run_trial(trial, *args, **kwargs)
            if self.trained[-1] == 2:
                raise RuntimeError("out of memory")
            return results

    def declare(hp):
        return hp.Choice("a", [1, 2, 3])

    tuner = Failing(declare, tmp_path, max_retries_per_trial=2)
    assert tuner.run() == [1, 2, 2, 2, 3]
    assert Search(declare, tmp_path).run() == []


def test_trials_under_way_are_taken_up_in_their_order(tmp_path):
    under_way = {}

    class Saving(Search):
        def run_trial(self, trial, *args, **kwargs):
            path = pathlib.Path(self.get_trial_dir(trial.trial_id), "trial.json")
            under_way[path] = path.read_text()
            return super().run_trial(trial, *args, **kwargs)

    def declare(hp):
        return hp.Choice("a", [1, 2, 3, 4])

    assert Saving(declare, tmp_path, max_trials=3).run() == [1, 2, 3]
    for path, text in list(under_way.items())[1:]:
        path.write_text(text)
    assert Search(declare, tmp_path).run() == [2, 3, 4]


def test_a_retry_keeps_values_that_the_trial_had_not_asked_for(tmp_path):
    class Failing(Search):
        failed = False

        def run_trial(self, trial, *args, **kwargs):
            if trial.hyperparameters.values.get("units_1") == 8 and not self.failed:
                self.failed = True
                raise RuntimeError("before it is built")
            return super().run_trial(trial, *args, **kwargs)

    tuner = Failing(layers, tmp_path, max_retries_per_trial=1)
    is_each_once(tuner.run(), LAYERS)
    assert tuner.failed


def test_what_a_trial_revealed_holds_where_only_the_oracle_was_not_written(tmp_path):
    states = []

    class Saving(Search):
        def run_trial(self, trial, *args, **kwargs):
            states.append((tmp_path / "p" / "oracle.json").read_text())
            return super().run_trial(trial, *args, **kwargs)

    before = Saving(layers, tmp_path, max_trials=3).run()
    assert before[-1] == (4, 4)  # The first to reveal `units_1`.
    (tmp_path / "p" / "oracle.json").write_text(states[-1])
    after = Search(layers, tmp_path, max_trials=4).run()
    assert after == [(4, 8)]


def test_children_that_come_before_their_parents():
    """As through gRPC, which sorts a space by type."""
    hp = keras_tuner.HyperParameters()
    scopes(hp)
    forward = [tuple(sorted(v.items())) for v in oracle_module._combinations(hp.space)]
    backward = [tuple(sorted(v.items())) for v in oracle_module._combinations(hp.space[::-1])]
    assert len(forward) == len(set(forward)) == len(SCOPES)
    assert sorted(map(str, forward)) == sorted(map(str, backward))


def test_values_of_inactive_hyperparameters_that_a_worker_sends(tmp_path):
    """`HyperParameters.from_proto` leaves the defaults of what the trial's values switch off."""
    tuner = Search(scopes, tmp_path)
    points = []
    tuner.save()
    while (trial := tuner.oracle.create_trial("worker0")).status == "RUNNING":
        assert len(points) < len(SCOPES)
        sent = keras_tuner.engine.trial.Trial.from_proto(trial.to_proto())
        points.append(tuner.hypermodel.build(sent.hyperparameters))
        tuner.oracle.update_trial(sent.trial_id, {"val_score": 0.5})
        sent.status = "COMPLETED"
        tuner.oracle.end_trial(keras_tuner.engine.trial.Trial.from_proto(sent.to_proto()))
    assert trial.status == "STOPPED"
    is_each_once(points, SCOPES)
    assert Search(scopes, tmp_path).run() == []


@pytest.mark.parametrize("name", ["layers", "rate and layers"])
def test_workers_get_different_points_of_a_space_that_grows(name, tmp_path):
    declare, expected = SPACES[name]
    tuner, points = Search(declare, tmp_path), []
    while True:
        trials = [tuner.oracle.create_trial(f"tuner{i}") for i in range(4)]
        trials = [trial for trial in trials if trial.status == "RUNNING"]
        if not trials:
            break
        for trial in trials:
            points.append(tuner.hypermodel.build(trial.hyperparameters))
            tuner.oracle.update_trial(trial.trial_id, {"val_score": 0.5})
            trial.status = "COMPLETED"
            tuner.oracle.end_trial(trial)
    is_each_once(points, expected)


def test_workers_get_different_points_and_wait_for_what_may_be_revealed(tmp_path):
    oracle = Search(layers, tmp_path).oracle
    hypermodel = Space(layers)

    def end(trial):
        point = hypermodel.build(trial.hyperparameters)
        oracle.update_trial(trial.trial_id, {"val_score": 0.5})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        return point

    trials = [oracle.create_trial(f"tuner{i}") for i in range(6)]
    assert [trial.status for trial in trials] == ["RUNNING"] * 6
    waiting = oracle.create_trial("tuner6")
    assert waiting.status == "IDLE"
    # The trial of tuner5 is lost; the others go on without it.
    points = [end(trial) for trial in trials[:5]]
    while (trial := oracle.create_trial("tuner0")).status == "RUNNING":
        points.append(end(trial))
    assert trial.status == "IDLE"
    is_each_once(points, {point for point in LAYERS if len(point) < 3 or point[0] == 4})
    # Its tuner takes it up again.
    assert oracle.create_trial("tuner5").trial_id == trials[5].trial_id
    points.append(end(trials[5]))
    while (trial := oracle.create_trial("tuner0")).status == "RUNNING":
        points.append(end(trial))
    assert trial.status == "STOPPED"
    is_each_once(points, LAYERS)


def test_tuners_that_share_an_oracle(tmp_path):
    first = Search(scopes, tmp_path)
    tuners = [first]
    for i in range(1, 4):
        tuner = Search(scopes, tmp_path / str(i))
        tuner.oracle, tuner.tuner_id = first.oracle, f"tuner{i}"
        tuners.append(tuner)
    first.oracle._set_project_dir(first.directory, first.project_name)
    threads = [threading.Thread(target=tuner.run) for tuner in tuners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_each_once([point for tuner in tuners for point in tuner.trained], SCOPES)


def test_thousands_of_points():
    oracle = tuning.GridSearchOracle(OBJECTIVE)
    hp = keras_tuner.HyperParameters()
    names = "abcdefghijkl"
    for name in names:
        hp.Int(name, 0, 1)
    oracle.update_space(hp)
    chance = random.Random(0)
    for i, values in enumerate(oracle_module._combinations(hp.space)):
        trial = keras_tuner.HyperParameters()
        # Names in any order, as they come through gRPC.
        trial.values = dict(chance.sample(list(values.items()), len(values)))
        oracle.trials[str(i)] = keras_tuner.engine.trial.Trial(trial, str(i), "COMPLETED")
    assert len(oracle.trials) == 2**12
    assert oracle.populate_space("new")["status"] == "STOPPED"
    del oracle.trials["4000"]
    expected = dict(zip(names, map(int, f"{4000:012b}"), strict=True))
    assert oracle.populate_space("new")["values"] == expected


def test_cross_validation_takes_the_settings_of_the_grid_oracle_of_keras_tuner(tmp_path):
    given = keras_tuner.HyperParameters()
    stock = keras_tuner.oracles.GridSearchOracle(
        OBJECTIVE, 7, 3, given, max_retries_per_trial=2, max_consecutive_failed_trials=5
    )
    tuner = tuning.CrossValidation(stock, Space(layers), directory=tmp_path)
    assert type(stock) is keras_tuner.oracles.GridSearchOracle
    assert type(tuner.oracle) is tuning.GridSearchOracle
    for name, value in vars(stock).items():
        if not name.startswith("_") and name not in ("directory", "project_name"):
            assert getattr(tuner.oracle, name) == value, name


def stock_search(directory):
    oracle = keras_tuner.oracles.RandomSearchOracle(OBJECTIVE, max_trials=4, seed=0)
    return tuning.save_atomically(
        keras_tuner.Tuner(oracle, Space(layers), directory=directory, project_name="p")
    )


@pytest.mark.parametrize("make", [lambda path: Search(layers, path), stock_search])
@pytest.mark.parametrize("failure", ["state", "replace"])
def test_a_save_that_fails_leaves_the_old_files_whole(make, failure, tmp_path, monkeypatch):
    tuner = make(tmp_path)
    trial = tuner.oracle.create_trial("tuner0")
    tuner.save()
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    names = {path.name for path in old}
    assert names == {"oracle.json", "tuner0.json", "trial.json"}

    def fail(*args):
        raise OSError("no space")

    if failure == "state":
        # `json` finds this out after it has written the rest.
        for part in (tuner.oracle, trial, tuner):
            monkeypatch.setattr(part, "get_state", lambda: {"a": 1, "b": object()})
    else:
        monkeypatch.setattr("os.replace", fail)
    trial.score = 0.7
    for save in (
        tuner.oracle.save,
        lambda: tuner.oracle.update_trial(trial.trial_id, {"val_score": 0.5}),
    ):
        with pytest.raises((OSError, TypeError)):
            save()
    monkeypatch.setattr(tuner.oracle, "save", lambda: None)
    with pytest.raises((OSError, TypeError)):
        tuner.save()
    assert old == {path: path.read_bytes() for path in old}


def test_save_atomically_changes_one_tuner_and_its_oracle_only(tmp_path):
    tuner, other = stock_search(tmp_path), keras_tuner.oracles.RandomSearchOracle(OBJECTIVE)
    assert type(tuner) is keras_tuner.Tuner
    assert type(tuner.oracle) is type(other)
    assert tuning.save_atomically(tuner) is tuner
    assert {"save", "_save_trial"} <= vars(tuner.oracle).keys()
    assert not {"save", "_save_trial"} & (vars(other).keys() | vars(type(other)).keys())
    assert keras_tuner.Oracle.save.__module__.startswith("keras_tuner.")
    ours = tuning.GridSearchOracle(OBJECTIVE)
    assert type(tuning.save_atomically(ours)) is tuning.GridSearchOracle
    with pytest.raises(ValueError, match=r"must be a tuner or an oracle\. Received: 3"):
        tuning.save_atomically(3)

    class Saving(keras_tuner.oracles.RandomSearchOracle):
        def save(self):
            super().save()

    with pytest.raises(ValueError, match=r"must have the `save` of KerasTuner.*a Saving with"):
        tuning.save_atomically(Saving(OBJECTIVE))


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_import_leaves_keras_tuner_as_it_is():
    modules = [path.stem for path in pathlib.Path(tuning.__file__).parent.glob("[!_]*.py")]
    assert {"grid", "folds", "hypermodel", "oracle"} <= set(modules)
    code = f"""
import importlib, sys
import keras_tuner, keras_tuner.engine.base_tuner

def state():
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "keras_tuner"]
    objects = {{id(o): o for m in modules for o in [m, *vars(m).values()]}}
    classes = [c for o in list(objects.values()) if isinstance(o, type) for c in o.__mro__]
    objects |= {{id(c): c for c in classes if c.__module__.startswith("keras_tuner")}}
    return {{
        (key, name): id(value)
        for key, o in objects.items()
        if getattr(o, "__module__", getattr(o, "__name__", "")).startswith("keras_tuner")
        for name, value in getattr(o, "__dict__", {{}}).items()
        if not name.startswith(("_abc_", "__"))
    }}

before = state()
assert (id(keras_tuner.Oracle.__base__), "save") in before
import keras_balanced.tuning
for name in {modules}:
    importlib.import_module("keras_balanced.tuning." + name)
for name in keras_balanced.tuning.__all__:
    getattr(keras_balanced.tuning, name)
after = state()
print([key for key in before if after.get(key) != before[key]])
"""
    assert run(code) == "[]"


def test_the_grid_needs_no_keras_tuner():
    code = """
import sys
sys.modules["keras_tuner"] = None
from keras_balanced import tuning
from keras_balanced.tuning import loss_grid, suggest_loss
assert callable(loss_grid) and callable(suggest_loss)
assert set(tuning.__all__) <= set(dir(tuning))
for name in tuning.__all__:
    if name not in ("loss_grid", "suggest_loss"):
        try:
            getattr(tuning, name)
        except ImportError as error:
            assert 'pip install "keras-balanced[tuner]"' in str(error), error
        else:
            raise AssertionError(name)
print("imported")
"""
    assert run(code) == "imported"


def test_names_of_the_package():
    assert set(dir(tuning)) >= set(tuning.__all__)
    assert all(getattr(tuning, name) for name in tuning.__all__)
    with pytest.raises(AttributeError, match="no attribute 'grid_search'"):
        tuning.grid_search  # noqa: B018


def test_an_unfit_model_ends_the_search_at_once(tmp_path):
    def build(hp):
        # Fit at first, and not once it trains.
        units = 3 if hp.Choice("units", [3, 2]) == 3 else 2
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])

    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=["gla"], q=[0.0], tau=[None])
    tuner = Search(hypermodel, tmp_path, hypermodel.objective)
    with pytest.raises(keras_tuner.errors.FatalValueError, match="one logit for each of the 3"):
        tuner.search(verbose=0)
    assert len(tuner.trained) == 1
