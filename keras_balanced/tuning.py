"""Searches for the loss, its q, tau and margins: with KerasTuner, or on one trained model."""

import copy
import functools
import inspect
import json
import os
import pathlib
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced.functional import gives_probabilities, last_layer
from keras_balanced.losses import GCALoss, GLALoss
from keras_balanced.metrics import BalancedAccuracy
from keras_balanced.validation import check_integer, check_mix, check_number

try:
    import keras_tuner
except ImportError as error:
    raise ImportError('Tuning needs KerasTuner: pip install "keras-balanced[tuner]"') from error


def _save(self, fname):
    """Saves the state of an oracle, trial or tuner in one piece."""
    if "://" in str(fname):  # Not a local file.
        return _save_in_place(self, fname)
    part = f"{fname}.part"
    text = json.dumps(self.get_state())
    pathlib.Path(part).write_text(text)
    os.replace(part, fname)
    return text


# KerasTuner empties a file before it writes it: a kill in between loses the whole search. This is
# where all of its tuners do so.
_Stateful = keras_tuner.Oracle.__base__
_save_in_place = _Stateful.save
_Stateful.save = _save

_LOSSES = {"gla": GLALoss, "gca": GCALoss}
# What each loss has to choose beside q.
_OPTION = {"gla": "tau", "gca": "margins"}
# The grid of Cortes et al. (2025).
_Q = tuple(i / 10 for i in range(10))
_SHUFFLE_BUFFER = 10_000


class BalancedHyperModel(keras_tuner.HyperModel):
    """Adds the choice of a balanced loss to a function that builds a model.

    The hyperparameters are `loss` (`"gla"` or `"gca"`), `q`, `tau` under GLA (`"1/(1-q)"` is the
    default of the loss) and `margins` under GCA. Each distinct loss comes up once: a
    hyperparameter is there only where it has a choice, so at `q = 0`, where `1 / (1 - q)` is 1,
    `tau` does not offer both. Unequal margins come only with `q < min(margins) / max(margins)`,
    beyond which the loss can have no minimum. If this leaves GCA with other values of `q` than
    GLA, the two have `gla_q` and `gca_q`.

    Args:
        build: Function `build(hp)` or `build()` that returns a `keras.Model` from inputs to
            logits `(B, K)`. It may use hyperparameters of its own, and compile the model to choose
            the optimizer: loss and metrics are replaced.
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`.
        losses: The losses to search: `"gla"`, `"gca"` or both.
        q: The values of `q` to search, each in `[0, 1)`.
        tau: The values of `tau` to search under GLA. `None` is `1 / (1 - q)`.
        margins: The values of `margins` to search under GCA: `"cube_root"`, `None` (equal) or
            vectors of `K` positive numbers.
        compile_kwargs: Optional dict of arguments of `model.compile`: `optimizer`, `metrics` to
            have beside the balanced accuracy, `jit_compile`...
        seed: Seed set before each build: all configurations start alike, and a resumed search
            trains as an uninterrupted one would. `None` (default) sets none; keep to it with
            `executions_per_trial` above 1, whose executions would be copies.

    Raises:
        ValueError: for an empty grid and values out of their range; when it builds, for a model
            that ends in a softmax or does not fit `priors`; when it trains, for an objective on a
            loss.

    Example:

    >>> def build():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> hypermodel = BalancedHyperModel(build, priors=[90, 10])
    >>> hp = keras_tuner.HyperParameters()
    >>> model = hypermodel.build(hp)
    >>> print(model.loss.name, hp.values)
    gla_loss {'loss': 'gla', 'q': 0.0}

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
    """

    def __init__(
        self,
        build,
        priors,
        losses=("gla", "gca"),
        q=_Q,
        tau=(None, 1.0),
        margins=("cube_root", None),
        compile_kwargs=None,
        seed=None,
    ):
        if not callable(build):
            raise ValueError(
                f"`build` must be a function that returns a model. Received: build={build!r}"
            )
        self.compile_kwargs = dict(compile_kwargs or {})
        if "loss" in self.compile_kwargs:
            raise ValueError(
                "`compile_kwargs` must not have a `loss`, which the search chooses. "
                f"Received: loss={self.compile_kwargs['loss']!r}"
            )
        self.grid = _loss_grid(priors, losses, q, tau, margins)
        self.num_classes = len(check_mix("priors", priors))
        self.seed = seed
        self._user_build = build if inspect.signature(build).parameters else lambda hp: build()
        super().__init__()

    @property
    def objective(self):
        """The `keras_tuner.Objective` for every tuner: the largest `val_balanced_accuracy`."""
        return keras_tuner.Objective("val_balanced_accuracy", "max")

    def loss(self, hp):
        """Returns the loss that hyperparameters choose, and adds to `hp` those that it lacks.

        Args:
            hp: `keras_tuner.HyperParameters`, such as those of a trial.

        Returns:
            A `GLALoss` or `GCALoss`.
        """
        options = {}
        for name, q, option in self.grid:
            options.setdefault(name, {}).setdefault(q, []).append(option)
        q_is_shared = len({tuple(of_q) for of_q in options.values()}) == 1
        chosen = _choose(hp, "loss", list(options))
        for name, of_q in options.items():
            under_loss = [("loss", [name])] if len(options) > 1 else []
            q_name = "q" if q_is_shared else f"{name}_q"
            q = _choose(hp, q_name, list(of_q), [] if q_is_shared else under_loss)
            # One hyperparameter for all q that have the same options.
            qs_of = {}
            for value, choices in of_q.items():
                qs_of.setdefault(tuple(choices), []).append(value)
            label = _OPTION[name]
            for choices, qs in sorted(qs_of.items(), key=lambda group: -len(group[0])):
                under_q = [(q_name, qs)] if len(qs) < len(of_q) else []
                option = _choose(hp, label, list(choices), under_loss + under_q)
                label += "_"  # KerasTuner's grid search wants one name for each list of values.
                if name == chosen and q in qs:
                    point = (name, q, option)
        return self.grid[point]

    def build(self, hp):
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        model = self._user_build(hp)
        _check_model(model, self.num_classes)
        arguments = keras.tree.map_structure(_fresh, self.compile_kwargs)
        if model.compiled:
            arguments.setdefault("optimizer", model.optimizer)
        metrics = arguments.pop("metrics", None) or []
        metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
        if not any(isinstance(metric, BalancedAccuracy) for metric in metrics):
            metrics.append(BalancedAccuracy(self.num_classes))
        model.compile(**arguments, loss=self.loss(hp), metrics=metrics)
        if model.built:  # So that a checkpoint finds the optimizer's variables.
            model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, hp, model, *args, **kwargs):
        for callback in kwargs.get("callbacks") or []:
            # KerasTuner's own, which saves the best epoch: the only sight of the objective here.
            _check_objective(getattr(callback, "objective", None))
        return model.fit(*args, **kwargs)


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
        _mend(self)
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


class CrossValidation(keras_tuner.Tuner):
    """Searches by stratified k-fold cross-validation.

    The score of a trial is the mean over the folds of the objective on the fold held out, after
    the last epoch of training on the others; its standard error stands beside it in the trial's
    metrics. Each fold is written to a file in the trial's directory as it ends, and a rerun
    starts at the first fold that is missing.

    `get_best_models()` trains the best configurations on all the data given to `search`, for as
    many epochs as the folds took on average, and keeps them as `refitted.keras` in the trial's
    directory.

    Args:
        oracle: What proposes the trials: a `keras_tuner.oracles.RandomSearchOracle`,
            `GridSearchOracle` or `BayesianOptimizationOracle` (Hyperband trains its trials in
            pieces, and cannot be had here).
        hypermodel: A `BalancedHyperModel`, or any other hypermodel that compiles the objective
            among its metrics.
        folds: Number of folds, at least 2.
        seed: Seed of the assignment to folds.
        **kwargs: Further arguments of `keras_tuner.Tuner`: `directory`, `project_name`,
            `overwrite`...

    Raises:
        ValueError: for bad arguments; in `search`, for a class with fewer examples than folds.

    Example:

    >>> def build():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> hypermodel = BalancedHyperModel(build, priors=[90, 10])
    >>> oracle = keras_tuner.oracles.GridSearchOracle(objective=hypermodel.objective)
    >>> tuner = CrossValidation(oracle, hypermodel, folds=3, directory=getfixture("tmp_path"))
    >>> print(tuner.folds)
    3
    """

    def __init__(self, oracle, hypermodel, folds=5, seed=0, **kwargs):
        if isinstance(oracle, keras_tuner.oracles.HyperbandOracle):
            raise ValueError(
                "`oracle` must be that of a random, grid or Bayesian search. "
                "Received: a `HyperbandOracle`, whose trials are no whole trainings"
            )
        _check_objective(oracle.objective)
        if not oracle.objective.name.startswith("val_"):
            raise ValueError(
                "The objective must be a metric on held-out data, `val_...`. "
                f"Received: {oracle.objective.name!r}"
            )
        self.folds = check_integer("folds", folds, low=2)
        self.seed = check_integer("seed", seed)
        self._examples = None
        if type(oracle) is keras_tuner.oracles.GridSearchOracle:
            oracle.__class__ = GridSearchOracle  # Which only mends it.
        super().__init__(oracle, hypermodel, **kwargs)

    def reload(self):
        super().reload()
        if not self._is_worker():
            _mend(self.oracle)

    def search(self, x, y=None, **fit_kwargs):
        """Searches. The arguments are those of `model.fit`.

        Args:
            x: Inputs: an array, or a tuple or dict of arrays; or a `tf.data.Dataset` of single
                examples `(x, y)` or `(x, y, sample_weight)`, not batched, that come in the same
                order each time. They are shuffled and batched here.
            y: Labels: integers `(N,)` or one-hot `(N, K)`. `None` for a dataset.
            **fit_kwargs: `epochs`, `batch_size`, `callbacks`, `sample_weight`... Callbacks see the
                fold held out as validation data; where they stop early, the refitted model stops
                after as many epochs as the folds took, and those that monitor `val_...` are left
                out of it.

        Raises:
            ValueError: for a class with fewer examples than folds, and data of another form.
        """
        for name in ("validation_data", "validation_split"):
            if fit_kwargs.get(name) is not None:
                raise ValueError(
                    f"`search` must not have a `{name}`: cross-validation holds out its own. "
                    f"Received: `{name}`"
                )
        if hasattr(x, "element_spec"):
            examples = _Dataset(x, fit_kwargs.pop("batch_size", 32))
        else:
            examples = _Arrays(x, y, fit_kwargs.pop("sample_weight", None))
        counts = np.bincount(examples.labels, minlength=getattr(self.hypermodel, "num_classes", 0))
        short = np.flatnonzero(counts < self.folds)
        if short.size:
            raise ValueError(
                f"Every class must have an example for each of the {self.folds} folds. Received: "
                f"{counts[short].tolist()} examples of the class ids {short.tolist()}"
            )
        self._examples, self._fit_kwargs = examples, fit_kwargs
        self._fold_of = _assign_folds(examples.labels, self.folds, self.seed)
        super().search(x, y, **fit_kwargs)

    def run_trial(self, trial, *args, **kwargs):
        results = [self._run_fold(trial, fold) for fold in range(self.folds)]
        metrics = {}
        for name in results[0]["metrics"]:
            values = [result["metrics"][name] for result in results]
            error = np.std(values, ddof=1) / np.sqrt(self.folds)
            metrics[f"val_{name}"] = float(np.mean(values))
            metrics[f"val_{name}_standard_error"] = float(error)
        return metrics

    def load_model(self, trial):
        path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / "refitted.keras"
        if not path.exists():
            if self._examples is None:
                raise RuntimeError("To refit a model call `search` with the data first.")
            results = [self._run_fold(trial, fold) for fold in range(self.folds)]
            model, _ = self._fit(
                trial.hyperparameters,
                np.ones(len(self._fold_of), bool),
                epochs=round(np.mean([result["epochs"] for result in results])),
                callbacks=[
                    callback
                    for callback in self._fit_kwargs.get("callbacks") or []
                    if not getattr(callback, "monitor", "").startswith("val_")
                ],
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
            trial.hyperparameters,
            self._fold_of != fold,
            validation_data=held_out["x"] if len(held_out) == 1 else tuple(held_out.values()),
        )
        metrics = model.evaluate(**held_out, verbose=0, return_dict=True)
        result = {
            "settings": settings,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "epochs": epochs,
        }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        os.replace(part, path)
        return result

    def _fit(self, hp, chosen, **overrides):
        """Returns a model trained on the chosen examples, and how many epochs made it."""
        keras.utils.clear_session()
        model = self.hypermodel.build(hp)
        fit_kwargs = {**self._fit_kwargs, **overrides}
        callbacks = copy.deepcopy(fit_kwargs.pop("callbacks", None) or [])
        fit_kwargs = {**fit_kwargs, **self._examples.of(chosen, shuffle=True)}
        self.hypermodel.fit(hp, model, **fit_kwargs, callbacks=callbacks)
        for callback in callbacks:
            if getattr(callback, "restore_best_weights", False):
                return model, callback.best_epoch + 1
        return model, len(model.history.epoch)


class FastSearch(NamedTuple):
    """What `fast_search` found: the `table`, best first, the best `loss` and the `model`."""

    table: list
    loss: keras.losses.Loss
    model: keras.Model | None


def fast_search(
    model,
    train,
    validation,
    priors,
    losses=("gla", "gca"),
    q=_Q,
    tau=(None, 1.0),
    margins=("cube_root", None),
    folds=5,
    steps=500,
    batch_size=1024,
    learning_rate=0.01,
    refit=False,
    seed=0,
):
    """Ranks losses by refitting only the last layer of one trained model, for all of them at once.

    The features, which the model hands to its last layer, are computed once and frozen. Heads for
    every loss and fold train side by side in one program: on the training examples and all folds
    of the validation examples but one, on which they are scored. So no head is scored on an
    example that the features or the head have seen.

    It is a search for a last layer, not for the loss to train with: on long-tailed digits the
    ranking did not agree with that of full trainings (rank correlations of 0.0 to 0.2; benchmarks).

    Args:
        model: Trained `keras.Model`, functional or sequential, whose last layer is a `Dense` that
            gives the logits `(B, K)`.
        train: Examples that the model was trained on: `(x, y)` arrays, or batches `(x, y)` in a
            `tf.data.Dataset` or `PyDataset`. Labels are integers or one-hot.
        validation: Examples that it was not trained on, in the same form.
        priors: Class mix of `train`: `K` counts or probabilities, or an adapted `ClassPrior`.
        losses: As in `BalancedHyperModel`, like the next three.
        q: The values of `q`.
        tau: The values of `tau` under GLA.
        margins: The values of `margins` under GCA.
        folds: Number of folds of the validation examples, at least 2.
        steps: Number of training steps (Adam, cosine decay) of the heads.
        batch_size: Examples a step. Memory grows with it, the grid, `folds` and `K`.
        learning_rate: First learning rate.
        refit: Whether to return a copy of the model with the best loss's head, fitted on all
            examples (decoupled training, Kang et al., 2020), compiled with that loss.
        seed: Seed of folds and batches.

    Returns:
        A `FastSearch`. Its table has a dict for each loss: `loss`, `q`, `tau` and `margins`
        (`None` where the loss has none), `balanced_accuracy` over the classes in `validation`,
        and its binomial `standard_error`.

    Raises:
        ValueError: for bad arguments, and a model or data that do not fit.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], [80, 20])
    >>> x = rng.normal(size=(100, 2)) + y[:, None]
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
    ... )
    >>> found = fast_search(model, (x, y), (x[::2], y[::2]), [80, 20], q=[0.0, 0.5], steps=5)
    >>> print(len(found.table), sorted(found.table[0]))
    7 ['balanced_accuracy', 'loss', 'margins', 'q', 'standard_error', 'tau']

    References:
        - [Kang et al., 2020](https://arxiv.org/abs/1910.09217)
    """
    folds = check_integer("folds", folds, low=2)
    steps = check_integer("steps", steps, low=1)
    grid = _loss_grid(priors, losses, q, tau, margins)
    num_classes = len(next(iter(grid.values())).surrogate.priors)
    _check_model(model, num_classes)
    head = last_layer(model)
    if not isinstance(head, keras.layers.Dense) or not hasattr(model, "inputs"):
        raise ValueError(
            "`model` must be functional or sequential and end in a `Dense` layer. "
            f"Received: {type(model).__name__} {model.name!r}, which ends in {head!r}"
        )
    if refit and not head.use_bias:
        raise ValueError("`refit` needs a last layer with a bias. Received: use_bias=False")
    extractor = keras.models.clone_model(
        model,
        clone_function=lambda layer: keras.layers.Identity() if layer is head else layer,
        recursive=True,
    )
    x, y = _features(extractor, train, num_classes, "train")
    x_val, y_val = _features(extractor, validation, num_classes, "validation")
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3

    # Heads for each loss: one for each fold left out, and one that leaves out none.
    fold_of = _assign_folds(y_val, folds, seed)
    heads = _Heads(list(grid.values()), folds, x.shape[-1])
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(x.shape[1:])
    outputs = heads(inputs)
    trainer = keras.Model(inputs, outputs)
    trainer.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        loss=heads.losses_of,
    )
    count = len(y) + len(y_val)
    batch_size = min(batch_size, count)
    epochs = -(-steps // -(-count // batch_size))
    trainer.fit(
        (np.concatenate([x, x_val]) - mean) / scale,
        np.stack(
            [np.concatenate([y, y_val]), np.concatenate([np.full(len(y), folds), fold_of])], axis=-1
        ),
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
    )
    predicted = keras.Model(inputs, ops.argmax(outputs, axis=-1)).predict(
        (x_val - mean) / scale, batch_size=batch_size, verbose=0
    )
    predicted = predicted.reshape(len(y_val), len(grid), folds + 1)
    hits = predicted[np.arange(len(y_val)), :, fold_of] == y_val[:, None]
    present = np.unique(y_val)
    sizes = np.array([(y_val == k).sum() for k in present])[:, None]
    recalls = np.stack([hits[y_val == k].mean(axis=0) for k in present])
    scores = recalls.mean(axis=0)
    errors = np.sqrt((recalls * (1 - recalls) / sizes).sum(axis=0)) / len(present)
    table = [
        {
            "loss": name,
            "q": value,
            "tau": option if name == "gla" else None,
            "margins": option if name == "gca" else None,
            "balanced_accuracy": float(score),
            "standard_error": float(error),
        }
        for (name, value, option), score, error in zip(grid, scores, errors, strict=True)
    ]
    best = int(np.argmax(scores))
    loss = list(grid.values())[best]
    refitted = None
    if refit:
        kernel, bias = heads.head(best)
        kernel = kernel / scale[:, None]
        refitted = keras.models.clone_model(model)
        refitted.set_weights(model.get_weights())
        last_layer(refitted).set_weights([kernel, bias - mean @ kernel])
        refitted.compile(loss=loss, metrics=[BalancedAccuracy(num_classes)])
        refitted.optimizer.build(refitted.trainable_variables)  # For saving it.
    return FastSearch(sorted(table, key=lambda row: -row["balanced_accuracy"]), loss, refitted)


class _Heads(keras.layers.Layer):
    """Classifier heads for many losses, side by side: `(B, D)` to logits `(B, H, K)`.

    A loss has `folds + 1` heads in a row; the j-th does not learn from fold j, the last from all.
    """

    def __init__(self, losses, folds, num_features):
        super().__init__()
        surrogates = [loss.surrogate for loss in losses for _ in range(folds + 1)]
        num_classes = len(surrogates[0].priors)
        self.folds, self.num_classes = folds, num_classes

        def stacked(name, default):
            arrays = [getattr(surrogate, name) for surrogate in surrogates]
            default = np.full(num_classes, default)
            return np.stack([default if a is None else a for a in arrays]).astype("float32")

        self.shift = stacked("shift", 0.0)
        self.inverse_margins = 1.0 / stacked("margins", 1.0).T
        self.class_weights = stacked("weights", 1.0).T
        self.q = np.array([surrogate.q for surrogate in surrogates], "float32")
        left_out = np.arange(len(surrogates)) % (folds + 1)
        self.learns = (np.arange(folds)[:, None] != left_out).astype("float32")
        # The training examples are in no fold.
        self.learns = np.concatenate([self.learns, np.ones((1, len(surrogates)), "float32")])
        size = len(surrogates) * num_classes
        self.kernel = self.add_weight((num_features, size), "zeros", name="kernel")
        self.bias = self.add_weight((size,), "zeros", name="bias")
        self.built = True

    def call(self, x):
        return ops.reshape(
            ops.matmul(x, self.kernel) + self.bias, (-1, len(self.q), self.num_classes)
        )

    def losses_of(self, y_true, logits):
        """Returns the sum over the heads `(B,)` of `functional`'s formula, with one q a head."""
        labels, fold = ops.cast(y_true[:, 0], "int32"), ops.cast(y_true[:, 1], "int32")
        inverse = ops.take(ops.convert_to_tensor(self.inverse_margins), labels, axis=0)
        z = logits * inverse[..., None] + self.shift
        true = ops.one_hot(labels, self.num_classes, dtype=z.dtype)[:, None, :]
        cross_entropy = ops.logsumexp(z, axis=-1) - ops.sum(z * true, axis=-1)
        psi = -ops.expm1(-self.q * cross_entropy) / np.where(self.q > 0, self.q, 1.0)
        psi = ops.where(self.q > 0, psi, cross_entropy)
        weights = ops.take(ops.convert_to_tensor(self.class_weights), labels, axis=0)
        return ops.sum(psi * weights * ops.take(self.learns, fold, axis=0), axis=-1)

    def head(self, index):
        """Returns kernel and bias of a loss's head that learned from all."""
        h = (index + 1) * (self.folds + 1) - 1
        chosen = slice(h * self.num_classes, (h + 1) * self.num_classes)
        kernel, bias = (ops.convert_to_numpy(w) for w in (self.kernel, self.bias))
        return kernel[:, chosen], bias[chosen]


def _features(extractor, data, num_classes, name):
    """Returns features `(N, D)` and class ids `(N,)`."""
    if isinstance(data, (tuple, list)):
        x, y = extractor.predict(data[0], verbose=0), np.asarray(data[1])
    else:
        batches = [
            (extractor.predict_on_batch(batch[0]), ops.convert_to_numpy(batch[1])) for batch in data
        ]
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    y = _class_ids(y)
    if x.ndim != 2 or len(x) != len(y) or not len(y) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"`{name}` must give features (N, D) and labels (N,) in [0, {num_classes}). "
            f"Received: features of shape {x.shape} and labels of shape {y.shape}"
            + (f" in [{y.min()}, {y.max()}]" if len(y) else "")
        )
    return x.astype("float32"), y


class _Arrays:
    """Examples in arrays, of which `of` takes some for `fit` and `evaluate`."""

    def __init__(self, x, y, sample_weight):
        self.arrays = {"x": x, "y": y, "sample_weight": sample_weight}
        self.arrays = {
            name: keras.tree.map_structure(np.asarray, value)
            for name, value in self.arrays.items()
            if value is not None
        }
        if y is None:
            raise ValueError("`search` needs labels `y` with arrays. Received: y=None")
        self.labels = _class_ids(self.arrays["y"])
        sizes = {len(array) for array in keras.tree.flatten(self.arrays)}
        if len(sizes) > 1:
            raise ValueError(f"All arrays must have one length. Received: lengths {sorted(sizes)}")

    def of(self, chosen, shuffle=False):
        # `fit` shuffles arrays.
        return keras.tree.map_structure(lambda array: array[chosen], self.arrays)


class _Dataset:
    """Examples in a `tf.data.Dataset`, of which `of` takes some by their index."""

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size = dataset, batch_size
        first, second = (
            np.array([example[1] for example in dataset.as_numpy_iterator()]) for _ in range(2)
        )
        if first.ndim > 2 or not np.array_equal(first, second):
            raise ValueError(
                "The dataset must give single examples in the same order each time: neither "
                "batched nor shuffled anew. Received: labels of shape "
                f"{first.shape} that {'repeat' if first.ndim > 2 else 'do not repeat'}"
            )
        self.labels = _class_ids(first)

    def of(self, chosen, shuffle=False):
        import tensorflow as tf

        keep = tf.constant(chosen)
        examples = self.dataset.enumerate().filter(lambda i, _: keep[i])
        examples = examples.map(lambda _, example: example)
        # A filter hides how many there are, and Keras warns where they end.
        examples = examples.apply(tf.data.experimental.assert_cardinality(int(chosen.sum())))
        if shuffle:
            examples = examples.shuffle(_SHUFFLE_BUFFER)
        taken = {"x": examples.batch(self.batch_size).prefetch(tf.data.AUTOTUNE)}
        # Keras warns of its own default where it cannot shuffle.
        return {**taken, "shuffle": False} if shuffle else taken


def _class_ids(labels):
    return (labels.argmax(axis=-1) if labels.shape[1:] > (1,) else labels.ravel()).astype("int64")


def _assign_folds(labels, folds, seed):
    """Returns the fold `(N,)` of each example: every class is spread evenly over the folds."""
    rng = np.random.default_rng(seed)
    fold_of = np.empty(len(labels), "int64")
    start = 0
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        # Going on where the last class ended keeps the folds of one size.
        fold_of[members] = np.arange(start, start + len(members)) % folds
        start += len(members)
    return fold_of


def _loss_grid(priors, losses, q, tau, margins):
    """Returns a dict of `(loss, q, option)` to the loss: each distinct one, once."""
    for name, values in (("losses", losses), ("q", q), ("tau", tau), ("margins", margins)):
        if isinstance(values, str) or not np.iterable(values) or not len(values):
            raise ValueError(
                f"`{name}` must be a list of at least one value. Received: {name}={values!r}"
            )
    unknown = [name for name in losses if name not in _LOSSES]
    if unknown:
        raise ValueError(f"`losses` must be of {list(_LOSSES)}. Received: losses={losses!r}")
    options = {
        "gla": {_tau_label(value): {"tau": value} for value in tau},
        "gca": {_margins_label(i, value): {"margins": value} for i, value in enumerate(margins)},
    }
    q = sorted({check_number("q", value, low=0.0, high=1.0) for value in q})
    grid, seen = {}, set()
    for name in dict.fromkeys(losses):
        for value in q:
            for option, arguments in options[name].items():
                loss = _LOSSES[name](priors, q=value, **arguments)
                rho = loss.surrogate.margins
                if rho is not None and value >= rho.min() / rho.max() and rho.min() < rho.max():
                    continue
                key = _identity(loss.surrogate)
                if key not in seen:
                    seen.add(key)
                    grid[name, value, option] = loss
    if not grid:
        raise ValueError(
            "No loss is left to search: with unequal margins `q` must be less than "
            f"min(margins) / max(margins). Received: q={q}, margins={margins!r}"
        )
    return grid


def _tau_label(tau):
    return "1/(1-q)" if tau is None else f"{check_number('tau', tau):g}"


def _margins_label(i, margins):
    if margins is None:
        return "equal"
    return margins if isinstance(margins, str) else f"margins[{i}]"


def _identity(surrogate):
    """Returns what two surrogates share if, and only if, they are the same loss."""
    ones = np.ones(len(surrogate.priors))
    parts = [
        default if array is None else array
        for array, default in (
            (surrogate.shift, 0 * ones),
            (surrogate.margins, ones),
            (surrogate.weights, ones),
        )
    ]
    return (surrogate.q, *np.concatenate(parts).round(9) + 0.0)


def _choose(hp, name, values, conditions=()):
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


def _check_model(model, num_classes):
    if not isinstance(model, keras.Model):
        raise keras_tuner.errors.FatalValueError(
            f"`build` must return a `keras.Model`. Received: {model!r}"
        )
    layer = last_layer(model)
    if gives_probabilities(layer):
        raise keras_tuner.errors.FatalValueError(
            "`build` must return a model that ends in logits: remove the activation of its last "
            f"layer. Received: a model that ends in {layer.name!r}, with a softmax or sigmoid"
        )
    if model.built:
        shape = model.output_shape
        if not isinstance(shape, tuple) or shape[-1] != num_classes:
            raise keras_tuner.errors.FatalValueError(
                f"`build` must return a model with one logit for each of the {num_classes} "
                f"classes of `priors`. Received: outputs of shape {shape}"
            )


def _check_objective(objective):
    """Raises if an objective (or one of several) is a loss."""
    names = getattr(objective, "name_to_direction", [getattr(objective, "name", "")])
    losses = [name for name in names if name.endswith("loss")]
    if losses:
        raise keras_tuner.errors.FatalValueError(
            "The objective must not be a loss, whose scale moves with `q`: the largest `q` would "
            f"win. Take `hypermodel.objective`. Received: {losses[0]!r}"
        )


def _fresh(value):
    """Returns a copy of an optimizer or metric, which belong to one model each."""
    if isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return type(value).from_config(value.get_config())
    return value


def _mend(oracle):
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
