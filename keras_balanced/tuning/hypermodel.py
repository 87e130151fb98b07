"""A hypermodel that chooses the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import keras_tuner
import numpy as np

from keras_balanced.losses import BalancedLoss
from keras_balanced.metrics import BalancedAccuracy
from keras_balanced.tuning.grid import OPTION, Q, check_model, loss_grid
from keras_balanced.tuning.oracle import choose

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.losses import GCALoss, GLALoss
    from keras_balanced.validation import ClassMix

__all__ = ["BalancedHyperModel", "check_objective"]


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
        options: dict[str, dict[float, list[str]]] = {}
        for name, q, option in self.grid:
            options.setdefault(name, {}).setdefault(q, []).append(option)
        q_is_shared = len({tuple(of_q) for of_q in options.values()}) == 1
        chosen = choose(hp, "loss", list(options))
        for name, of_q in options.items():
            under_loss = [("loss", [name])] if len(options) > 1 else []
            q_name = "q" if q_is_shared else f"{name}_q"
            q = choose(hp, q_name, list(of_q), [] if q_is_shared else under_loss)
            # One hyperparameter for all q that have the same options.
            qs_of: dict[tuple, list] = {}
            for value, offered in of_q.items():
                qs_of.setdefault(tuple(offered), []).append(value)
            label = OPTION.get(name, name)
            for shared, qs in sorted(qs_of.items(), key=lambda group: -len(group[0])):
                under_q = [(q_name, qs)] if len(qs) < len(of_q) else []
                option = choose(hp, label, list(shared), under_loss + under_q)
                label += "_"  # KerasTuner's grid search wants one name for each list of values.
                if name == chosen and q in qs:
                    point = (name, q, option)
        return self.grid[point]

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
        if not any(isinstance(metric, BalancedAccuracy) for metric in metrics):
            metrics.append(BalancedAccuracy(self.num_classes, loss=loss))
        model.compile(**arguments, loss=loss, metrics=metrics)
        if model.built:  # So that a checkpoint finds the optimizer's variables.
            model.optimizer.build(model.trainable_variables)
        return model

    def fit(self, hp, model, *args, **kwargs):
        for callback in kwargs.get("callbacks") or []:
            # KerasTuner's own, which saves the best epoch: the only sight of the objective here.
            check_objective(getattr(callback, "objective", None))
        return model.fit(*args, **kwargs)


def check_objective(objective: Any) -> None:
    """Raises if an objective (or one of several) is a loss."""
    names = getattr(objective, "name_to_direction", [getattr(objective, "name", "")])
    losses = [name for name in names if name.endswith("loss")]
    if losses:
        raise keras_tuner.errors.FatalValueError(
            "The objective must not be a loss, whose scale moves with `q`: the largest `q` would "
            f"win. Take `hypermodel.objective`. Received: {losses[0]!r}"
        )


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
