"""A hypermodel that chooses the loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import keras_tuner
import numpy as np

from keras_balanced.losses import BalancedLoss
from keras_balanced.metrics import BalancedAccuracy
from keras_balanced.tuning.grid import Q, check_model, loss_grid, suggest
from keras_balanced.tuning.oracle import choose

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import GCALoss, GLALoss
    from keras_balanced.validation import ClassMix

__all__ = ["BalancedHyperModel", "check_measured", "check_objective"]


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
            the optimizer and metrics of its own: the loss is replaced.
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`.
        losses: The losses to search: `"gla"`, `"gca"`, and any `BalancedLoss` as it is, under its
            name.
        q: The values of `q` to search, each in `[0, 1)`.
        tau: The values of `tau` to search under GLA. `None` is `1 / (1 - q)`.
        margins: The values of `margins` to search under GCA: `"cube_root"`, `None` (equal) or
            vectors of `K` positive numbers.
        compile_kwargs: Optional dict of arguments of `model.compile`: `optimizer`, `metrics` to
            have beside the balanced accuracy, `jit_compile`...
        seed: Seed set before each build: all configurations start alike, and a resumed search
            trains as an uninterrupted one would. `None` (default) sets none; keep to it with
            `executions_per_trial` above 1, whose executions would be copies.
        target_priors: Class mix to be good at, as `priors`, for all losses. `None` is uniform.

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
        losses: Sequence[Literal["gla", "gca"] | BalancedLoss] = ("gla", "gca"),
        q: Sequence[float] = Q,
        tau: Sequence[float | None] = (None, 1.0),
        margins: Sequence[Literal["cube_root"] | ArrayLike | None] = ("cube_root", None),
        compile_kwargs: dict[str, Any] | None = None,
        seed: int | None = None,
        target_priors: ClassMix | None = None,
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
        self.grid = loss_grid(priors, losses, q, tau, margins, target_priors)
        surrogate = next(iter(self.grid.values())).surrogate
        self.num_classes = len(surrogate.priors)
        # Classes that occur: each needs examples.
        self.class_ids = np.flatnonzero(surrogate.occurs)
        self.seed = seed
        self._user_build = build if inspect.signature(build).parameters else lambda hp: build()
        super().__init__()

    @property
    def objective(self) -> keras_tuner.Objective:
        """The `keras_tuner.Objective` for every tuner: the largest `val_balanced_accuracy`."""
        return keras_tuner.Objective("val_balanced_accuracy", "max")

    def loss(self, hp: keras_tuner.HyperParameters) -> GLALoss | GCALoss:
        """Returns the loss that hyperparameters choose, and adds to `hp` those that it lacks.

        Args:
            hp: `keras_tuner.HyperParameters`, such as those of a trial.

        Returns:
            A `GLALoss` or `GCALoss`.
        """
        return suggest(self.grid, functools.partial(choose, hp))

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        model = self._user_build(hp)
        try:
            check_model(model, self.num_classes)
        except ValueError as error:
            # Which KerasTuner does not take for a failed trial.
            raise keras_tuner.errors.FatalValueError(str(error)) from error
        loss = self.loss(hp)
        arguments = keras.tree.map_structure(lambda value: _fresh(value, loss), self.compile_kwargs)
        if model.compiled:
            arguments.setdefault("optimizer", model.optimizer)
        metrics = arguments.pop("metrics", None) or []
        metrics = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
        names = {_name(metric) for metric in metrics}
        metrics += [_fresh(m, loss) for m in _compiled_metrics(model) if _name(m) not in names]
        if not any(isinstance(metric, BalancedAccuracy) for metric in metrics):
            metrics.append(BalancedAccuracy(self.num_classes, loss.ignore_class, loss=loss))
        model.compile(**arguments, loss=loss, metrics=metrics)
        if model.built:  # So that a checkpoint finds the optimizer's variables.
            model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, hp, model, *args, **kwargs):
        if repr(model.loss) != repr(self.loss(hp)):
            raise keras_tuner.errors.FatalValueError(
                "The tuner must leave the loss to the hypermodel. Received: a model compiled with "
                f"loss={model.loss!r} in place of {self.loss(hp)!r}"
            )
        callbacks = kwargs.get("callbacks") or []
        # Those of others may write the objective into the logs.
        writes_logs = any(
            type(callback).__module__.partition(".")[0] not in ("keras", "keras_tuner")
            for callback in callbacks
        )
        held_out = [kwargs.get(name) for name in ("validation_data", "validation_split")]
        for callback in callbacks:
            # KerasTuner's own, which saves the best epoch: the only sight of the objective here.
            objective = getattr(callback, "objective", None)
            check_objective(objective)
            if objective is not None and not writes_logs:
                has_held_out = len(args) > 2 or any(part is not None for part in held_out)
                check_measured(objective, model, has_held_out)
        return model.fit(*args, **kwargs)


def check_objective(objective: Any) -> None:
    """Raises if an objective (or one of several) is a loss."""
    losses = [name for name in _names_of(objective) if name.endswith("loss")]
    if losses:
        raise keras_tuner.errors.FatalValueError(
            "The objective must not be a loss, whose scale moves with `q`: the largest `q` would "
            f"win. Take `hypermodel.objective`. Received: {losses[0]!r}"
        )


def check_measured(objective: Any, model: keras.Model, has_held_out: bool = True) -> None:
    """Raises unless a compiled model measures an objective, or all of several."""
    try:
        measured = sorted({_name(metric) for metric in _compiled_metrics(model)})
    except ValueError:  # Not registered: then nobody can tell.
        return
    for name in _names_of(objective):
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


def _names_of(objective):
    if objective is None:
        return []
    names = getattr(objective, "name_to_direction", [getattr(objective, "name", "")])
    return [name for name in names if name != "multi_objective"]


def _compiled_metrics(model):
    """Returns copies of the metrics with which a model was compiled."""
    if not model.compiled:
        return []
    config = model.get_compile_config() or {}
    found = []
    for name in ("metrics", "weighted_metrics"):
        try:
            found += keras.tree.flatten(keras.saving.deserialize_keras_object(config.get(name)))
        except (TypeError, ValueError) as error:
            raise keras_tuner.errors.FatalValueError(
                "The metrics of a model must be registered with Keras, as "
                "`keras.saving.register_keras_serializable` does, or be in `compile_kwargs`. "
                f"Received: {error}"
            ) from error
    return [metric for metric in found if metric is not None]


def _name(metric):
    if isinstance(metric, str):
        return metric
    return getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__)


def _fresh(value, loss):
    """Returns a copy of an optimizer or metric, which belong to one model each.

    A metric of ours decides by the posterior of the trial's loss, as the model will be served.
    """
    if not isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return value
    config = value.get_config()
    if type(value).__module__ == BalancedAccuracy.__module__ and not config["loss"]:
        from_logits = config.get("from_logits", False)
        config["loss"] = None if from_logits else keras.saving.serialize_keras_object(loss)
    return type(value).from_config(config)
