"""A hypermodel that chooses the loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import keras_tuner
import numpy as np

from keras_balanced.backends import compile_arguments, compiled_metrics
from keras_balanced.decisions import Decision, decision_of
from keras_balanced.layers import refuse_adjusted_twice
from keras_balanced.losses import BalancedLoss
from keras_balanced.metrics import BalancedAccuracy, warn_of_other_decisions
from keras_balanced.surrogates import FAMILIES
from keras_balanced.tuning.grid import Q, check_model, loss_grid, suggest
from keras_balanced.tuning.oracle import choose

if TYPE_CHECKING:
    from keras_balanced.validation import ClassMix

__all__ = ["BalancedHyperModel", "check_measured", "check_objective", "objective_names"]


class BalancedHyperModel(keras_tuner.HyperModel):
    """Adds the choice of a balanced loss to a function that builds a model.

    The hyperparameters are `loss` (`"gla"` or `"gca"`), `q`, `tau` under GLA (`"1/(1-q)"` is the
    default of the loss) and `margins` under GCA. Each distinct loss appears once: a
    hyperparameter is there only where it has a choice (see `loss_grid`). If the losses have
    different values of `q`, the hyperparameters are `gla_q` and `gca_q`. A hypermodel can be
    pickled if `build` can.

    Args:
        build: Function `build(hp)` or `build()` that returns a `keras.Model` from inputs to
            logits `(B, K)`. It may use further hyperparameters, and compile the model: all that
            it compiles is kept, except the loss. Where a metric and a weighted metric have one
            name, the weighted one keeps it and is the objective; the other becomes
            `unweighted_...`.
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`.
        losses: The losses to search: `"gla"`, `"gca"`, and any `BalancedLoss` as it is, under its
            name.
        q: The values of `q` to search, each in `[0, 1)`.
        target_priors: Class mix to be good at, as `priors`, for all losses. `None` is uniform.
        decision: Function `loss -> Decision`, by which the metrics of recalls of a trial predict;
            `None` (default) is the default decision of its loss. Metrics that have one keep it.
        compile_kwargs: Optional dict of arguments of `model.compile`: `optimizer`, `metrics` to
            have beside the balanced accuracy, `jit_compile`... They go before those of `build`.
        seed: Seed set before each build: all configurations start alike, and a resumed search
            trains as an uninterrupted one would. `None` (default) sets none: leave it so with
            `executions_per_trial` above 1, whose executions would otherwise be copies.
        options: Lists of further values to search, as in `loss_grid`: `tau` under GLA, `margins`
            under GCA.

    Raises:
        ValueError: for an empty grid and values out of their range; when it builds, for a model
            that ends in a softmax or does not fit `priors`; when it trains, for an objective on a
            loss or that no metric measures, and a loss that the tuner was given.

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
        build: Callable[..., keras.Model],
        priors: ClassMix,
        losses: Sequence[str | BalancedLoss] = tuple(FAMILIES),
        q: Sequence[float] = Q,
        *,
        target_priors: ClassMix | None = None,
        decision: Callable[[BalancedLoss], Decision | BalancedLoss] | None = None,
        compile_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        **options: Sequence[Any],
    ):
        if not callable(build):
            raise ValueError(
                f"`build` must be a function that returns a model. Received: build={build!r}"
            )
        self.compile_kwargs = dict(compile_kwargs or {})
        self.decide = decision_of(decision)
        self._has_warned = False
        if "loss" in self.compile_kwargs:
            raise ValueError(
                "`compile_kwargs` must not have a `loss`, which the search chooses. "
                f"Received: loss={self.compile_kwargs['loss']!r}"
            )
        self.grid = loss_grid(priors, losses, q, target_priors=target_priors, **options)
        surrogate = next(iter(self.grid.values())).surrogate
        self.num_classes = len(surrogate.priors)
        # Classes that occur: each needs examples.
        self.class_ids = np.flatnonzero(surrogate.occurs)
        self.seed = seed
        self._user_build = build
        super().__init__()

    @property
    def objective(self) -> keras_tuner.Objective:
        """The `keras_tuner.Objective` for every tuner: the largest `val_balanced_accuracy`."""
        return keras_tuner.Objective("val_balanced_accuracy", "max")

    def loss(self, hp: keras_tuner.HyperParameters) -> BalancedLoss:
        """Returns the loss that hyperparameters choose, and adds to `hp` those that it lacks.

        Args:
            hp: `keras_tuner.HyperParameters`, such as those of a trial.

        Returns:
            A loss of the grid.
        """
        return suggest(self.grid, functools.partial(choose, hp))

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        model = self._user_build(hp) if _takes_argument(self._user_build) else self._user_build()
        loss = self.loss(hp)
        try:
            check_model(model, self.num_classes)
            refuse_adjusted_twice(model, loss)
        except ValueError as error:
            # KerasTuner does not count this error as a failed trial.
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        arguments = self._compile_arguments(model, loss)
        # What the `compile` of a subclass has stored stays.
        compile_ = keras.Model.compile if model.compiled else type(model).compile
        compile_(model, **arguments, loss=loss)
        if not self._has_warned and (decision := self.decide(loss)) is not None:
            warn_of_other_decisions(model, decision)
        self._has_warned = True
        if model.built:  # So that a checkpoint finds the optimizer's variables.
            model.optimizer.build(model.trainable_variables)
        return model

    def _compile_arguments(self, model, loss):
        """Returns what `compile` is to get beside the loss."""
        kept = compile_arguments(model)
        given = keras.tree.map_structure(_copy, self.compile_kwargs)
        arguments = {**kept, **given}
        for name in ("metrics", "weighted_metrics"):
            first = _as_list(given.get(name))
            names = {_name(metric) for metric in first}
            metrics = first + [m for m in _as_list(kept.get(name)) if _name(m) not in names]
            arguments[name] = [self._with_decision(metric, loss) for metric in metrics]
        weighted = {_name(metric) for metric in arguments["weighted_metrics"]}
        metrics = [m for metric in arguments["metrics"] if (m := _beside(metric, weighted))]
        every = metrics + arguments["weighted_metrics"]
        if not any(isinstance(metric, BalancedAccuracy) for metric in every):
            ours = BalancedAccuracy(self.num_classes, ignore_class=loss.ignore_class)
            metrics.append(self._with_decision(ours, loss))
        arguments["metrics"] = metrics
        return {name: value for name, value in arguments.items() if value != []}

    def _with_decision(self, metric, loss):
        """Returns a metric; of ours one that decides, and looks at the posterior, as the trial."""
        if type(metric).__module__ != BalancedAccuracy.__module__:
            return metric
        config = metric.get_config()
        if "decision" in config and config["decision"] is None:
            return type(metric).from_config({**config, "decision": self.decide(loss)})
        if config.get("loss", loss) is None and not config["from_logits"]:
            return type(metric).from_config({**config, "loss": loss})
        return metric

    def fit(self, hp, model, *args, **kwargs):
        if model.loss != self.loss(hp):
            raise keras_tuner.errors.FatalValueError(
                "The tuner must leave the loss to the hypermodel. Received: a model compiled with "
                f"loss={model.loss!r} in place of {self.loss(hp)!r}"
            )
        callbacks = kwargs.get("callbacks") or []
        # Callbacks of other packages may write the objective into the logs.
        writes_logs = any(
            type(callback).__module__.partition(".")[0] not in ("keras", "keras_tuner")
            for callback in callbacks
        )
        held_out = [kwargs.get(name) for name in ("validation_data", "validation_split")]
        for callback in callbacks:
            # Only the callback with which KerasTuner saves the best epoch knows the objective.
            objective = getattr(callback, "objective", None)
            check_objective(objective)
            if objective is not None and not writes_logs:
                has_held_out = len(args) > 2 or any(part is not None for part in held_out)
                check_measured(objective, model, has_held_out)
        return model.fit(*args, **kwargs)


def check_objective(objective: Any) -> None:
    """Raises if an objective (or one of several) is a loss."""
    losses = [name for name in objective_names(objective) if name.endswith("loss")]
    if losses:
        raise keras_tuner.errors.FatalValueError(
            "The objective must not be a loss, whose scale moves with `q`: the largest `q` would "
            f"win. Take `hypermodel.objective`. Received: {losses[0]!r}"
        )


def check_measured(objective: Any, model: keras.Model, has_held_out: bool = True) -> None:
    """Raises unless a compiled model measures an objective, or all of several."""
    measured = sorted(map(_name, compiled_metrics(model)))
    for name in objective_names(objective):
        of_held_out = name.startswith("val_")
        if of_held_out and not has_held_out:
            raise keras_tuner.errors.FatalValueError(
                f"The objective {name!r} needs `validation_data` in `search`. Received: none"
            )
        if name.removeprefix("val_") not in measured:
            raise keras_tuner.errors.FatalValueError(
                "The objective must be a metric of the model, with `val_` before it on held-out "
                f"data: take `hypermodel.objective`. Received: {name!r}, and the metrics {measured}"
            )


def objective_names(objective: Any) -> list[str]:
    """Returns the name of an objective, or those of several."""
    if objective is None:
        return []
    names = getattr(objective, "name_to_direction", [getattr(objective, "name", "")])
    return [name for name in names if name != "multi_objective"]


def _takes_argument(build):
    """Returns whether a function takes hyperparameters: one argument that has no default."""
    first = next(iter(inspect.signature(build).parameters.values()), None)
    return first is not None and (first.default is first.empty or first.name == "hp")


def _as_list(metrics):
    """Returns metrics as `compile` takes them as a list."""
    return [metric for metric in keras.tree.flatten(metrics) if metric is not None]


def _name(metric):
    if isinstance(metric, str):
        return metric
    return getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__)


def _copy(value):
    """Returns a copy of an optimizer or metric, which belong to one model each."""
    is_of_model = isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric))
    return type(value).from_config(value.get_config()) if is_of_model else value


def _beside(metric, weighted):
    """Returns a metric under another name than the weighted ones, `None` if it cannot have one."""
    if _name(metric) not in weighted:
        return metric
    if not isinstance(metric, keras.metrics.Metric):
        return None  # A function or a name: weighted it is measured.
    return type(metric).from_config({**metric.get_config(), "name": f"unweighted_{metric.name}"})
