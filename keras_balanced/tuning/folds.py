"""Search by stratified cross-validation."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import keras_tuner
import numpy as np

from keras_balanced import reading, targets
from keras_balanced.tuning.fingerprint import content, write_atomically
from keras_balanced.tuning.hypermodel import (
    check_measured,
    check_objective,
    objective_names,
)
from keras_balanced.tuning.oracle import Tuner, resumable
from keras_balanced.validation import check_integer, kind_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["CrossValidation", "assign_folds"]

_SHUFFLE_BUFFER = 10_000


class CrossValidation(Tuner):
    """Searches by stratified k-fold cross-validation.

    The score of a trial is the mean over the folds of the objective on the fold held out, after
    the last epoch of training on the others; its standard error stands beside it in the trial's
    metrics. Of several objectives it is KerasTuner's: the sum of those to minimize less those to
    maximize. Each fold is written to a file in the trial's directory as it ends, and a rerun
    starts at the first fold that is missing.

    `get_best_models()` trains the best configurations on all the data given to `search`, for as
    many epochs as the folds took on average, and keeps them as `refitted.keras` in the trial's
    directory.

    Args:
        oracle: What proposes the trials: a `keras_tuner.oracles.RandomSearchOracle`,
            `GridSearchOracle` or `BayesianOptimizationOracle`, but not Hyperband, which trains
            its trials in pieces. It is made to save atomically; KerasTuner's `GridSearchOracle`
            is replaced by ours, with the same settings.
        hypermodel: A `BalancedHyperModel`, or any other hypermodel that compiles the objective
            among its metrics.
        folds: Number of folds, at least 2.
        seed: Seed of the assignment to folds.
        **kwargs: Further arguments of `keras_tuner.Tuner`: `directory`, `project_name`,
            `overwrite`...

    Raises:
        ValueError: for bad arguments; in `search`, for a class with fewer examples than folds.

    Example:

    >>> from keras_balanced.tuning import BalancedHyperModel
    >>> def build():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> hypermodel = BalancedHyperModel(build, priors=[90, 10])
    >>> oracle = keras_tuner.oracles.GridSearchOracle(objective=hypermodel.objective)
    >>> tuner = CrossValidation(oracle, hypermodel, folds=3, directory=getfixture("tmp_path"))
    >>> print(tuner.folds)
    3
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: keras_tuner.HyperModel | Callable[..., keras.Model],
        folds: int = 5,
        seed: int = 0,
        **kwargs: Any,
    ):
        if isinstance(oracle, keras_tuner.oracles.HyperbandOracle):
            raise ValueError(
                "`oracle` must be that of a random, grid or Bayesian search. "
                "Received: a `HyperbandOracle`, which trains its trials in pieces"
            )
        check_objective(oracle.objective)
        of_training = [n for n in objective_names(oracle.objective) if not n.startswith("val_")]
        if of_training:
            raise ValueError(
                "The objective must be a metric on held-out data, `val_...`. "
                f"Received: {of_training[0]!r}"
            )
        if kwargs.get("executions_per_trial", 1) != 1:
            raise ValueError(
                "`executions_per_trial` must be left out: the folds are what repeats a trial; "
                f"raise `folds`. Received: {kwargs['executions_per_trial']}"
            )
        for name in ("optimizer", "loss", "metrics"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` must be left to the hypermodel, in its `build` or `compile_kwargs`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        self.folds = check_integer("folds", folds, low=2)
        self.seed = check_integer("seed", seed)
        self._examples: Any = None  # Those of `search`.
        super().__init__(resumable(oracle), hypermodel, **kwargs)

    def search(self, x: Any, y: ArrayLike | None = None, **fit_kwargs: Any) -> None:
        """Searches. The arguments are those of `model.fit`.

        Args:
            x: Inputs: an array, or a tuple or dict of arrays; or a `tf.data.Dataset` of single
                examples `(x, y)` or `(x, y, sample_weight)`, not batched, that come in the same
                order each time. They are shuffled and batched here.
            y: Labels: integers `(N,)` or one-hot `(N, K)`. `None` for a dataset.
            **fit_kwargs: `epochs`, `batch_size`, `callbacks`, `sample_weight`... Callbacks see the
                fold held out as validation data; where they stop early, the refitted model stops
                after as many epochs as the folds took, and those that monitor `val_...` are left
                out of it. For callbacks that write files pass a function of a directory that
                returns them: each training calls it with its own `pathlib.Path`.

        Raises:
            ValueError: for a class with fewer examples than folds, data of another form, and
                callbacks that would write to one file in all trainings.
        """
        for name in ("validation_data", "validation_split"):
            if fit_kwargs.get(name) is not None:
                raise ValueError(
                    f"`search` must not have a `{name}`: cross-validation holds out its own. "
                    f"Received: `{name}`"
                )
        _refuse_shared_files(fit_kwargs.get("callbacks"))
        if reading.is_dataset(x):
            examples: _Arrays | _Dataset = _Dataset(x, y, fit_kwargs.pop("batch_size", None) or 32)
        else:
            examples = _Arrays(x, y, fit_kwargs.pop("sample_weight", None))
        counts = np.bincount(examples.labels, minlength=getattr(self.hypermodel, "num_classes", 0))
        num_classes = getattr(self.hypermodel, "num_classes", len(counts))
        expected = getattr(self.hypermodel, "class_ids", np.arange(num_classes))
        bad = np.setdiff1d(examples.labels, expected)
        if bad.size:
            raise ValueError(
                f"The labels must be class ids of `priors`, {num_classes} in all. "
                f"Received: labels {bad[:10].tolist()}"
            )
        short = expected[counts[expected] < self.folds]
        if short.size:
            raise ValueError(
                f"Every class must have an example for each of the {self.folds} folds. Received: "
                f"{counts[short].tolist()} examples of the class ids {short.tolist()}"
            )
        self._examples, self._fit_kwargs = examples, fit_kwargs
        self._fold_of = assign_folds(examples.labels, self.folds, self.seed)
        super().search(x, y, **fit_kwargs)

    def settings(self):
        return {
            **super().settings(),
            "folds": self.folds,
            "seed of folds": self.seed,
            "labels": content(self._examples.labels),
            **self._examples.settings,
        }

    def run_trial(self, trial, *args, **kwargs):
        results = [self._run_fold(trial, fold) for fold in range(self.folds)]
        metrics = {}
        for name in results[0]["metrics"]:
            values = [result["metrics"][name] for result in results]
            error = np.std(values, ddof=1) / np.sqrt(self.folds)
            metrics[f"val_{name}"] = float(np.mean(values))
            metrics[f"val_{name}_standard_error"] = float(error)
        objective = self.oracle.objective
        return {objective.name: float(objective.get_value(metrics)), **metrics}

    def load_model(self, trial: keras_tuner.engine.trial.Trial) -> keras.Model:
        path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / "refitted.keras"
        if not path.exists():
            if self._examples is None:
                raise RuntimeError("To refit a model call `search` with the data first.")
            results = [self._run_fold(trial, fold) for fold in range(self.folds)]
            model, _ = self._fit(
                trial,
                "refitted",
                np.ones(len(self._fold_of), bool),
                epochs=round(np.mean([result["epochs"] for result in results])),
            )
            part = path.with_name("part.keras")
            model.save(part)
            os.replace(part, path)
        return keras.saving.load_model(path)

    def _run_fold(self, trial, fold):
        """Returns the result of a fold: the one written before, or that of a training now."""
        settings = {
            "fold": fold,
            "folds": self.folds,
            "seed": self.seed,
            "hyperparameters": trial.hyperparameters.values,
        }
        path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / f"fold_{fold}.json"
        if path.exists():
            done = json.loads(path.read_text())
            if done["settings"] == settings:
                return done
        held_out = self._examples.of(self._fold_of == fold)
        model, epochs = self._fit(
            trial,
            f"fold_{fold}",
            self._fold_of != fold,
            validation_data=held_out["x"] if len(held_out) == 1 else tuple(held_out.values()),
        )
        metrics = model.evaluate(**held_out, verbose=0, return_dict=True)
        result = {
            "settings": settings,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "epochs": epochs,
        }
        write_atomically(path, json.dumps(result))
        return result

    def _callbacks(self, trial, part):
        """Returns the callbacks of one training, which share no file with those of another."""
        given = self._fit_kwargs.get("callbacks")
        if callable(given):
            directory = pathlib.Path(self.get_trial_dir(trial.trial_id), part)
            directory.mkdir(parents=True, exist_ok=True)
            return keras.tree.flatten(given(directory))
        callbacks = copy.deepcopy(keras.tree.flatten(given or []))
        for callback in callbacks:
            if isinstance(callback, keras.callbacks.TensorBoard):  # As KerasTuner does.
                callback.log_dir = os.path.join(callback.log_dir, trial.trial_id, part)
        return callbacks

    def _fit(self, trial, part, chosen, **overrides):
        """Returns a model trained on the chosen examples, and how many epochs made it."""
        hp = trial.hyperparameters
        model = self.build(hp)
        check_measured(self.oracle.objective, model)
        fit_kwargs = {**self._fit_kwargs, **overrides}
        callbacks = self._callbacks(trial, part)
        if "validation_data" not in fit_kwargs:
            callbacks = [c for c in callbacks if not _monitors_held_out(c)]
        fit_kwargs.pop("callbacks", None)
        fit_kwargs = {**fit_kwargs, **self._examples.of(chosen, shuffle=True)}
        self.hypermodel.fit(hp, model, **fit_kwargs, callbacks=callbacks)
        history = model.history
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            stops = isinstance(callback, keras.callbacks.EarlyStopping)
            if stops and history.epoch and monitor not in history.history:
                raise keras_tuner.errors.FatalValueError(
                    "`EarlyStopping` must monitor what `fit` reports. Received: "
                    f"monitor={monitor!r}, and reports of {sorted(history.history)}"
                )
            # With `start_from_epoch` after the last epoch it has restored nothing.
            if stops and callback.restore_best_weights and callback.best is not None:
                return model, callback.best_epoch + 1
        # A training resumed from a backup reports only the epochs since then.
        return model, history.epoch[-1] + 1 if history.epoch else fit_kwargs.get("epochs", 1)


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the fold `(N,)` of each example: every class is spread evenly over the folds."""
    rng = np.random.default_rng(seed)
    fold_of = np.empty(len(labels), "int64")
    start = 0
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        # To start where the last class ended keeps the folds equally large.
        fold_of[members] = np.arange(start, start + len(members)) % folds
        start += len(members)
    return fold_of


def _monitors_held_out(callback):
    return str(getattr(callback, "monitor", None)).startswith("val_")


def _refuse_shared_files(callbacks):
    """Raises for a callback that names a file, which every training would write to."""
    if callable(callbacks):
        return  # It gets a directory for each.
    for callback in keras.tree.flatten(callbacks or []):
        if isinstance(callback, keras.callbacks.TensorBoard):
            continue
        kinds = [k for k in type(callback).__mro__ if not k.__module__.startswith("keras.")]
        for name, value in [item for held in (callback, *kinds) for item in vars(held).items()]:
            is_nested = isinstance(value, (dict, list, tuple))
            parts = keras.tree.flatten(value) if is_nested else []
            _refuse_shared_files([c for c in parts if isinstance(c, keras.callbacks.Callback)])
            if _is_path(name, value) or any(map(_is_full_path, parts)):
                raise ValueError(
                    "`callbacks` that write files must come from a function of a directory, which "
                    "each training calls with its own: `callbacks=lambda directory: "
                    "[keras.callbacks.CSVLogger(directory / 'log.csv')]`. In one place the folds "
                    "would overwrite, or start from, what the others left there. "
                    f"Received: {kind_of(callback)} with {name}={str(value)[:100]!r}"
                )


def _is_path(name, value):
    """Returns whether an attribute holds a path: by its type, its name or its form."""
    if isinstance(value, os.PathLike):
        return True
    if not isinstance(value, str) or not value or name.startswith("__"):
        return False
    is_named = name.lower().endswith(("path", "file", "filename", "dir", "directory", "folder"))
    return is_named or "/" in value or os.sep in value or bool(re.search(r"\w\.\w{1,8}$", value))


def _is_full_path(value):
    """Returns whether a part of a list or dict is a path: text there can be a name of anything."""
    return isinstance(value, os.PathLike) or (isinstance(value, str) and os.path.isabs(value))


class _Arrays:
    """Examples in arrays, of which `of` takes some for `fit` and `evaluate`."""

    def __init__(self, x, y, sample_weight):
        examples = reading.examples(x, y, sample_weight)
        self.arrays = {"x": examples.x, "y": examples.y}
        if sample_weight is not None:
            self.arrays["sample_weight"] = examples.sample_weight
        self.settings = {"weights": content(sample_weight)}
        self.labels = targets.class_ids("y", y)

    def of(self, chosen, shuffle=False):
        # `fit` shuffles arrays.
        return reading.choose(self.arrays, chosen)


class _Dataset:
    """Examples in a `tf.data.Dataset`, of which `of` takes some by their index."""

    def __init__(self, dataset, y, batch_size):
        self.dataset, self.batch_size = dataset, batch_size
        self.settings = {"size of batches": int(batch_size)}
        self.labels = targets.class_ids("y", reading.labels_of_examples(dataset, y, "x"))

    def of(self, chosen, shuffle=False):
        import tensorflow as tf

        examples = reading.choose_examples(self.dataset, chosen)
        if shuffle:
            examples = examples.shuffle(_SHUFFLE_BUFFER)
        taken = {"x": examples.batch(self.batch_size).prefetch(tf.data.AUTOTUNE)}
        # By default Keras would shuffle, and warn that it cannot.
        return {**taken, "shuffle": False} if shuffle else taken
