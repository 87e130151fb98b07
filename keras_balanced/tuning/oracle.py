"""Everything that depends on how KerasTuner works inside."""

import functools
import json
import os
import pathlib

import keras_tuner


def _save(self, fname):
    """Saves the state of an oracle, trial or tuner in one piece."""
    if "://" in str(fname):  # Not a local file.
        return _save_in_place(self, fname)
    part = f"{fname}.part"
    text = json.dumps(self.get_state())
    pathlib.Path(part).write_text(text)
    os.replace(part, fname)
    return text


_Stateful = keras_tuner.Oracle.__base__
_save_in_place = _Stateful.save
_Stateful.save = _save


class GridSearchOracle(keras_tuner.oracles.GridSearchOracle):
    """`keras_tuner.oracles.GridSearchOracle` that can be stopped, and loses no worker's grid.

    KerasTuner's own forgets where in the grid it was: rerun after a stop it fails or ends early
    ([keras-tuner #1055](https://github.com/keras-team/keras-tuner/issues/1055)). And where a worker
    is lost, it lets the others wait for its trial.

    Args:
        objective: A `keras_tuner.Objective`, as `BalancedHyperModel.objective`.
        max_trials: The largest number of trials. `None` is the whole grid.
        seed: Seed of what KerasTuner draws; the grid has no chance in it.
        hyperparameters: Optional `keras_tuner.HyperParameters` to override or fix some.
        tune_new_entries: Whether to search hyperparameters that `hyperparameters` lacks.
        allow_new_entries: Whether a hypermodel may ask for such.
        max_retries_per_trial: How often to train a trial again that failed.
        max_consecutive_failed_trials: Failures in a row that end the search.

    Raises:
        ValueError: for arguments that KerasTuner refuses.

    Example:

    >>> oracle = GridSearchOracle(keras_tuner.Objective("val_balanced_accuracy", "max"))
    >>> print(oracle.objective.direction)
    max
    """

    def populate_space(self, trial_id):
        response = super().populate_space(trial_id)
        if response["status"] == "IDLE":
            # Go on behind the trials under way: their workers may be gone.
            self._populate_next = [trial.trial_id for trial in self.ongoing_trials.values()]
            response = super().populate_space(trial_id)
        return response

    def reload(self):
        super().reload()
        mend(self)
        # It saves neither its trials in the order of the grid nor those to go on from.
        in_order = functools.cmp_to_key(
            lambda a, b: self._compare(
                self.trials[a].hyperparameters.values, self.trials[b].hyperparameters.values
            )
        )
        self._ordered_ids = type(self._ordered_ids)()
        for trial_id in sorted(self.trials, key=in_order):
            self._ordered_ids.insert(trial_id)
        self._populate_next = list(self.start_order)


class GridSearch(keras_tuner.Tuner):
    """Searches a whole grid: `keras_tuner.GridSearch` with the mended `GridSearchOracle`.

    Args:
        hypermodel: A `BalancedHyperModel`.
        objective: A `keras_tuner.Objective`, as `BalancedHyperModel.objective`.
        max_trials: The largest number of trials. `None` is the whole grid.
        seed: Seed of what KerasTuner draws; the grid has no chance in it.
        hyperparameters: Optional `keras_tuner.HyperParameters` to override or fix some.
        tune_new_entries: Whether to search hyperparameters that `hyperparameters` lacks.
        allow_new_entries: Whether a hypermodel may ask for such.
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
        hypermodel=None,
        objective=None,
        max_trials=None,
        seed=None,
        hyperparameters=None,
        tune_new_entries=True,
        allow_new_entries=True,
        max_retries_per_trial=0,
        max_consecutive_failed_trials=3,
        **kwargs,
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


def mend(oracle):
    """Brings an oracle that was read back into agreement with its trials.

    A trial is written just before the oracle is, and a chief writes a trial that ended as still
    under way: what the trials' own files say holds.
    """
    for trial_id, trial in sorted(oracle.trials.items()):
        ended = trial.status in ("COMPLETED", "FAILED")
        if trial_id not in oracle.start_order:
            oracle.start_order.append(trial_id)
        if ended and trial_id not in oracle.end_order:
            oracle.end_order.append(trial_id)
        if ended:
            oracle._retry_queue = [other for other in oracle._retry_queue if other != trial_id]
        elif trial_id not in oracle._retry_queue:
            oracle._retry_queue.append(trial_id)
