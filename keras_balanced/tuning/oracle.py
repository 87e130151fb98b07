"""Everything that depends on how KerasTuner works inside."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner

from keras_balanced.tuning.fingerprint import (
    as_json,
    check_same_search,
    fingerprint,
    write_atomically,
)
from keras_balanced.validation import kind_of

__all__ = [
    "GridSearch",
    "GridSearchOracle",
    "Tuner",
    "choose",
    "reconcile_with_trials",
    "resumable",
    "save_atomically",
]

_Stateful: Any = keras_tuner.Oracle.__base__
_ENDED = ("COMPLETED", "FAILED")


def _write(stateful, fname):
    """Writes the state of a tuner, oracle or trial atomically, as `Stateful.save` does in place."""
    if "://" in str(fname):  # Not a local file.
        _Stateful.save(stateful, fname)
    else:
        write_atomically(pathlib.Path(fname), json.dumps(stateful.get_state()))


# The methods of KerasTuner that write files, with `_write` in place of `Stateful.save`.


@keras_tuner.synchronized  # Tuners that share an oracle all save it.
def _save_oracle(oracle):
    _write(oracle, oracle._get_oracle_fname())


def _save_trial_of_oracle(oracle, trial):
    _write(trial, os.path.join(oracle._get_trial_dir(trial.trial_id), "trial.json"))


def _save_tuner(tuner):
    if not tuner._is_worker():
        tuner.oracle.save()
    _write(tuner, tuner._get_tuner_fname())


class GridSearchOracle(keras_tuner.Oracle):
    """Grid search that can be stopped and go on, and loses no worker's part of the grid.

    It proposes the first combination of active hyperparameters that no trial has had, so that it
    needs to remember nothing but its trials. `keras_tuner.oracles.GridSearchOracle` forgets where
    in the grid it was: rerun after a stop it fails or ends early
    ([keras-tuner #1055](https://github.com/keras-team/keras-tuner/issues/1055)).

    A hyperparameter may appear in some trials only, as `units_1` does for `num_layers` above 1: a
    trial that ended without asking for it counts for all of its values. While a trial is under
    way, a combination that differs from it in such values only waits.

    Args:
        objective: A `keras_tuner.Objective`, as `BalancedHyperModel.objective`.
        max_trials: The largest number of trials. `None` is the whole grid.
        seed: Seed of what KerasTuner draws at random; the grid itself is not random.
        hyperparameters: Optional `keras_tuner.HyperParameters` to override or fix some.
        allow_new_entries: Whether a hypermodel may ask for hyperparameters that
            `hyperparameters` lacks.
        tune_new_entries: Whether to search these too.
        max_retries_per_trial: How often to train a trial again that failed.
        max_consecutive_failed_trials: Failures in a row that end the search.

    Raises:
        ValueError: for arguments that KerasTuner refuses.

    Example:

    >>> oracle = GridSearchOracle(keras_tuner.Objective("val_balanced_accuracy", "max"))
    >>> print(oracle.objective.direction)
    max
    """

    save, _save_trial = _save_oracle, _save_trial_of_oracle

    def __init__(
        self,
        objective: str | keras_tuner.Objective | Sequence | None = None,
        max_trials: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        allow_new_entries: bool = True,
        tune_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
    ):
        super().__init__(
            objective=objective,
            max_trials=max_trials,
            seed=seed,
            hyperparameters=hyperparameters,
            allow_new_entries=allow_new_entries,
            tune_new_entries=tune_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        self._given = self.get_space()
        # Names of the hyperparameters that only trials made known.
        self._revealed: set[str] = set()

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        searched = self._names()
        tried: dict[frozenset, set] = {}  # The values of the trials, by the names that these have.
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            names = frozenset(values if self.tune_new_entries else searched & values.keys())
            if trial.status not in _ENDED:
                names -= self._revealed  # It may not use them.
            tried.setdefault(names, set()).add(_row(values, names))
        for values in _combinations(self.hyperparameters.space):
            needed = values.keys() - self._revealed
            if not any(
                needed <= names <= values.keys() and _row(values, names) in rows
                for names, rows in tried.items()
            ):
                return {"status": "RUNNING", "values": values}
        # A trial under way may yet reveal a hyperparameter.
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED", "values": None}

    def update_space(self, hyperparameters: keras_tuner.HyperParameters) -> None:
        before = self._names()
        super().update_space(hyperparameters)
        if self.trials:
            self._revealed |= self._names() - before

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "revealed": sorted(self._revealed)}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        # The state of KerasTuner's own oracle has no such entry.
        self._revealed = set(state.get("revealed", self._names()))

    def reload(self) -> None:
        super().reload()
        reconcile_with_trials(self)

    def ask(self, populate):
        """Returns the space that the script asks for now, and not that of its first run."""
        self.hyperparameters = self._given.copy()
        populate()
        return self.get_space()

    def renew_space(self, asked):
        """Takes the space asked for, and beside it what only trials have revealed."""
        self._revealed -= {hp.name for hp in asked.space}
        asked.merge([hp for hp in self.hyperparameters.space if hp.name in self._revealed])
        self.hyperparameters = asked

    def _names(self):
        return {hp.name for hp in self.hyperparameters.space}

    def _record_values(self, trial):
        hp = trial.hyperparameters
        names = {p.name for p in hp.space}
        if trial.status == "RUNNING":
            # Without what was revealed, so that the trial shows whether it asks for it.
            trial.hyperparameters = keras_tuner.HyperParameters()
            trial.hyperparameters.merge([p for p in hp.space if p.name not in self._revealed])
            trial.hyperparameters.values = hp.values
            return
        # Not `ensure_active_values`, which loses the value of a name that two hyperparameters
        # have. The trial of a worker also has values of inactive hyperparameters.
        kept = set() if trial.status == "COMPLETED" else hp.values.keys() - names
        while unused := [n for n in hp.values if n not in kept and not hp.is_active(n)]:
            for name in unused:
                del hp.values[name]


class Tuner(keras_tuner.Tuner):
    """`keras_tuner.Tuner` that brings its oracle up to date when it goes on.

    It knows what it searched, too: rerun with another problem in the same directory, it refuses.
    """

    save = _save_tuner

    def __init__(self, oracle: keras_tuner.Oracle, hypermodel: Any = None, **kwargs: Any):
        if kwargs.get("overwrite") and "KERASTUNER_ORACLE_IP" in os.environ:
            raise ValueError(
                "`overwrite` must be left out where several workers search: each that starts would "
                "delete what the others have done. Received: overwrite=True in the process "
                f"{os.environ.get('KERASTUNER_TUNER_ID')!r}"
            )
        super().__init__(oracle, hypermodel, **kwargs)

    def search(self, *args: Any, **kwargs: Any) -> None:
        is_local = "://" not in str(self.project_dir)
        if is_local and (args or "x" in kwargs):  # Without data it only looks at what is there.
            what = fingerprint(self.hypermodel, self.oracle, args, kwargs) | self.settings()
            check_same_search(pathlib.Path(self.project_dir, "fingerprint.json"), what)
        super().search(*args, **kwargs)

    def settings(self):
        """Returns what else the results of a search depend on, for its fingerprint."""
        names = ("optimizer", "loss", "metrics", "executions_per_trial")
        return {name: as_json(getattr(self, name)) for name in names}

    def build(self, hp):
        """Returns a model as KerasTuner builds it: under its strategy, at most of its size."""
        return self._try_build(hp)

    def reload(self):
        if self._is_worker():
            return super().reload()
        if not isinstance(self.oracle, GridSearchOracle):
            super().reload()
            return reconcile_with_trials(self.oracle)
        # KerasTuner looks at the hypermodel in the first run only.
        asked = self.oracle.ask(self._populate_initial_space)
        super().reload()
        self.oracle.renew_space(asked)


class GridSearch(Tuner):
    """Searches a whole grid: `keras_tuner.GridSearch` with our `GridSearchOracle`.

    Rerun in the same directory, it runs what is missing, also of a grid that has grown.

    Args:
        hypermodel: A `BalancedHyperModel`, or any other.
        objective: A `keras_tuner.Objective`, as `BalancedHyperModel.objective`.
        max_trials: The largest number of trials. `None` is the whole grid.
        seed: Seed of what KerasTuner draws at random; the grid itself is not random.
        hyperparameters: Optional `keras_tuner.HyperParameters` to override or fix some.
        tune_new_entries: Whether to search hyperparameters that `hyperparameters` lacks.
        allow_new_entries: Whether a hypermodel may ask for these.
        max_retries_per_trial: How often to train a trial again that failed.
        max_consecutive_failed_trials: Failures in a row that end the search.
        **kwargs: Further arguments of `keras_tuner.Tuner`: `directory`, `project_name`,
            `overwrite`...

    Raises:
        ValueError: for arguments that KerasTuner refuses.

    Example:

    >>> import keras
    >>> from keras_balanced.tuning import BalancedHyperModel
    >>> def build():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> hypermodel = BalancedHyperModel(build, priors=[90, 10])
    >>> tuner = GridSearch(hypermodel, hypermodel.objective, directory=getfixture("tmp_path"))
    >>> print(tuner.oracle.objective.name)
    val_balanced_accuracy
    """

    def __init__(
        self,
        hypermodel: keras_tuner.HyperModel | Callable | None = None,
        objective: str | keras_tuner.Objective | Sequence | None = None,
        max_trials: int | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        tune_new_entries: bool = True,
        allow_new_entries: bool = True,
        max_retries_per_trial: int = 0,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ):
        oracle = GridSearchOracle(
            objective=objective,
            max_trials=max_trials,
            seed=seed,
            hyperparameters=hyperparameters,
            tune_new_entries=tune_new_entries,
            allow_new_entries=allow_new_entries,
            max_retries_per_trial=max_retries_per_trial,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        super().__init__(oracle, hypermodel, **kwargs)


def save_atomically(
    tuner_or_oracle: BaseTuner | keras_tuner.Oracle,
) -> BaseTuner | keras_tuner.Oracle:
    """Makes a tuner or oracle of KerasTuner write its files atomically.

    KerasTuner writes them in place, and a kill meanwhile loses the search. The tuners and the
    oracle of this package need no call; no other tuner or oracle changes.

    Args:
        tuner_or_oracle: A `keras_tuner.Tuner`, whose oracle it takes with it, or an oracle.

    Returns:
        The same tuner or oracle.

    Raises:
        ValueError: for anything else, and for a `save` that is not KerasTuner's.

    Example:

    >>> objective = keras_tuner.Objective("val_balanced_accuracy", "max")
    >>> oracle = save_atomically(keras_tuner.oracles.RandomSearchOracle(objective))
    >>> print(isinstance(oracle, keras_tuner.oracles.RandomSearchOracle))
    True
    """
    if not isinstance(tuner_or_oracle, (keras_tuner.Oracle, BaseTuner)):
        raise ValueError(
            f"`tuner_or_oracle` must be a tuner or an oracle. Received: {tuner_or_oracle!r}"
        )
    kind = type(tuner_or_oracle)
    if kind.save in (keras_tuner.Oracle.save, BaseTuner.save):
        # Methods of this object: KerasTuner's class belongs to others as well.
        if isinstance(tuner_or_oracle, keras_tuner.Oracle):
            methods = {"save": _save_oracle, "_save_trial": _save_trial_of_oracle}
        else:
            methods = {"save": _save_tuner}
        for name, method in methods.items():
            setattr(tuner_or_oracle, name, functools.partial(method, tuner_or_oracle))
    elif kind.save not in (_save_oracle, _save_tuner):
        raise ValueError(
            "`tuner_or_oracle` must have the `save` of KerasTuner, in whose place an atomic one "
            f"comes. Received: {kind_of(tuner_or_oracle)} with another"
        )
    if isinstance(getattr(tuner_or_oracle, "oracle", None), keras_tuner.Oracle):
        save_atomically(tuner_or_oracle.oracle)  # A worker has a client in its place.
    return tuner_or_oracle


def resumable(oracle):
    """Returns an oracle that a kill leaves whole: the same, or ours for KerasTuner's grid."""
    if type(oracle) is not keras_tuner.oracles.GridSearchOracle:
        return save_atomically(oracle)
    settings = (
        *("objective", "max_trials", "seed", "hyperparameters"),
        *("allow_new_entries", "tune_new_entries"),
        *("max_retries_per_trial", "max_consecutive_failed_trials"),
    )
    return GridSearchOracle(**{name: getattr(oracle, name) for name in settings})


def choose(hp, name, values, conditions=()):
    """Returns the value of a hyperparameter under conditions, `None` where they do not hold."""
    if len(values) == 1:
        return values[0]
    # Not `conditional_scope`, in which a parent must have the conditions of its scope itself.
    choice = keras_tuner.engine.hyperparameters.Choice.from_config(
        {
            "name": name,
            "values": values,
            "ordered": None,
            "default": None,
            "conditions": [
                {"class_name": "Parent", "config": {"name": parent, "values": parent_values}}
                for parent, parent_values in conditions
            ],
        }
    )
    hp.merge([choice], overwrite=False)
    value = hp.get(name) if hp.is_active(choice) else None
    if value is not None and value not in values:
        raise keras_tuner.errors.FatalValueError(
            f"The hyperparameter {name!r} must be left to the hypermodel: give that of `build` "
            f"another name. Received: {name}={value!r}"
        )
    return value


def reconcile_with_trials(oracle):
    """Brings an oracle that was read back into agreement with its trials.

    A trial is written just before the oracle is, and a chief writes a trial that ended as still
    under way: what the trials' own files say holds.
    """
    under_way = []
    for trial_id, trial in sorted(oracle.trials.items()):
        if trial_id not in oracle.start_order:
            oracle.start_order.append(trial_id)
        if trial.status not in _ENDED:
            under_way.append(trial_id)
        elif trial_id not in oracle.end_order:
            oracle.end_order.append(trial_id)
            oracle.update_space(trial.hyperparameters)
    oracle._retry_queue = under_way[::-1]  # It is taken from the end.


def _combinations(space, values=None) -> Iterator[dict[str, Any]]:
    """Yields the values of each combination of active hyperparameters, in a fixed order."""
    values = values or {}
    for hp in space:
        # A hyperparameter becomes active once its parents have values, in whatever order.
        if hp.name not in values and all(parent.is_active(values) for parent in hp.conditions):
            for value in _values(hp):
                yield from _combinations(space, {**values, hp.name: value})
            return
    yield values


def _row(values, names):
    return tuple(values[name] for name in sorted(names))


def _values(hp):
    """Returns the values of a hyperparameter, its default first."""
    values = list(hp.values)
    if isinstance(hp, keras_tuner.engine.hyperparameters.Int):
        values = [int(value) for value in values]  # With `sampling="log"` they are floats.
    if getattr(hp, "step", 0) is None:
        values.sort()  # They come from a set.
    return list(dict.fromkeys([hp.default, *values]))
