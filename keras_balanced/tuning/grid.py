"""The distinct losses of a search, and the models that fit them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from keras_balanced.backends import probability_layer
from keras_balanced.losses import BalancedLoss, GCALoss, GLALoss
from keras_balanced.surrogates import Surrogate
from keras_balanced.validation import check_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["OPTION", "Q", "check_model", "loss_grid", "suggest", "suggest_loss"]

_LOSSES = {"gla": GLALoss, "gca": GCALoss}
# What each loss has to choose beside q.
OPTION = {"gla": "tau", "gca": "margins"}
# The grid of Cortes et al. (2025).
Q = tuple(i / 10 for i in range(10))


def loss_grid(
    priors: ClassMix,
    losses: Sequence[Literal["gla", "gca"] | BalancedLoss],
    q: Sequence[float],
    tau: Sequence[float | None],
    margins: Sequence[Literal["cube_root"] | ArrayLike | None],
    target_priors: ClassMix | None = None,
) -> dict[tuple[str, float, str], BalancedLoss]:
    """Returns a dict of `(loss, q, option)` to the loss: each distinct one, once."""
    for name, values in (("losses", losses), ("q", q), ("tau", tau), ("margins", margins)):
        if isinstance(values, str) or not np.iterable(values) or not len(values):
            raise ValueError(
                f"`{name}` must be a list of at least one value. Received: {name}={values!r}"
            )
    own = [loss for loss in losses if isinstance(loss, BalancedLoss)]
    names = [loss for loss in losses if not isinstance(loss, BalancedLoss)]
    if not all(name in _LOSSES for name in names):
        raise ValueError(
            f"`losses` must be of {list(_LOSSES)}, or a `BalancedLoss`. Received: losses={losses!r}"
        )
    options: dict[str, dict[str, dict]] = {
        "gla": {_tau_label(value): {"tau": value} for value in tau},
        "gca": {_margins_label(value): {"margins": value} for value in margins},
    }
    q = sorted({check_number("q", value, low=0.0, high=1.0) for value in q})
    grid: dict[tuple[str, float, str], BalancedLoss] = {}
    seen = set()
    for name in dict.fromkeys(names):
        for value in q:
            for option, arguments in options[name].items():
                loss = _LOSSES[name](priors, q=value, target_priors=target_priors, **arguments)
                rho = loss.surrogate.margins
                if value >= rho.min() / rho.max() and rho.min() < rho.max():
                    continue
                key = _identity(loss.surrogate)
                if key not in seen:
                    seen.add(key)
                    grid[name, value, option] = loss
    num_classes = len(Surrogate(priors, target_priors).priors)
    for loss in own:
        if loss.surrogate.priors.shape != (num_classes,) or (loss.name, loss.surrogate.q) in {
            key[:2] for key in grid
        }:
            raise ValueError(
                f"A loss among `losses` must have the {num_classes} classes of `priors`, and a "
                f"`name` of its own. Received: {loss!r} named {loss.name!r}"
            )
        grid[loss.name, loss.surrogate.q, "as given"] = loss
    if not grid:
        raise ValueError(
            "No loss is left to search: with unequal margins `q` must be less than "
            f"min(margins) / max(margins). Received: q={q}, margins={margins!r}"
        )
    return grid


def suggest(
    grid: dict[tuple[str, float, str], BalancedLoss], choose: Callable[..., Any]
) -> BalancedLoss:
    """Returns the loss of a grid that a search chooses, one hyperparameter after the other.

    `choose(name, values, conditions)` returns one of `values`, or `None` where the conditions, of
    `(name, values)` of hyperparameters before, do not hold.
    """
    options: dict[str, dict[float, list[str]]] = {}
    for name, q, option in grid:
        options.setdefault(name, {}).setdefault(q, []).append(option)
    q_is_shared = len({tuple(of_q) for of_q in options.values()}) == 1
    chosen = choose("loss", list(options), [])
    for name, of_q in options.items():
        under_loss = [("loss", [name])] if len(options) > 1 else []
        q_name = "q" if q_is_shared else f"{name}_q"
        q = choose(q_name, list(of_q), [] if q_is_shared else under_loss)
        # One hyperparameter for all q that have the same options.
        qs_of: dict[tuple, list] = {}
        for value, offered in of_q.items():
            qs_of.setdefault(tuple(offered), []).append(value)
        label = OPTION.get(name, name)
        for shared, qs in sorted(qs_of.items(), key=lambda group: -len(group[0])):
            under_q = [(q_name, qs)] if len(qs) < len(of_q) else []
            option = choose(label, list(shared), under_loss + under_q)
            label += "_"  # KerasTuner's grid search wants one name for each list of values.
            if name == chosen and q in qs:
                point = (name, q, option)
    return grid[point]


def suggest_loss(
    trial: Any,
    priors: ClassMix,
    losses: Sequence[Literal["gla", "gca"] | BalancedLoss] = ("gla", "gca"),
    q: Sequence[float] = Q,
    tau: Sequence[float | None] = (None, 1.0),
    margins: Sequence[Literal["cube_root"] | ArrayLike | None] = ("cube_root", None),
    target_priors: ClassMix | None = None,
) -> BalancedLoss:
    """Suggests a loss to an Optuna trial: each distinct one of a grid is one set of parameters.

    The parameters are those of `BalancedHyperModel`: `loss`, `q`, `tau` and `margins`, each only
    where it has a choice. Any sampler of Optuna works; `BruteForceSampler` takes the whole grid.

    Args:
        trial: `optuna.Trial` of a study that maximises the balanced accuracy on held-out data.
        priors: As in `BalancedHyperModel`, like all that follow.
        losses: The losses to search.
        q: The values of `q`.
        tau: The values of `tau` under GLA.
        margins: The values of `margins` under GCA.
        target_priors: Class mix to be good at. `None` is uniform.

    Returns:
        The loss to train with.

    Raises:
        ValueError: for an empty grid and values out of their range.

    Example:

    >>> class Trial:  # In its place: that of `study.optimize`.
    ...     def suggest_categorical(self, name, choices):
    ...         print(name, choices)
    ...         return choices[-1]
    >>> loss = suggest_loss(Trial(), [90, 10], q=[0.0, 0.2], tau=[None], margins=[None])
    loss ['gla', 'gca']
    q [0.0, 0.2]
    >>> print(loss.name, loss.q)
    gca_loss 0.2
    """
    chosen: dict[str, Any] = {}

    def choose(name, values, conditions):
        if any(chosen.get(parent) not in allowed for parent, allowed in conditions):
            return None
        if name not in chosen:
            is_choice = len(values) > 1
            chosen[name] = trial.suggest_categorical(name, values) if is_choice else values[0]
        return chosen[name]

    return suggest(loss_grid(priors, losses, q, tau, margins, target_priors), choose)


def check_model(model: keras.Model, num_classes: int) -> None:
    """Raises `ValueError` for a model that does not give the logits of the classes."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`build` must return a `keras.Model`. Received: {model!r}")
    if (layer := probability_layer(model)) is not None:
        raise ValueError(
            "`build` must return a model that ends in logits: remove the activation of its last "
            f"layer. Received: a model that ends in {layer.name!r}, with a softmax or sigmoid"
        )
    if model.built:
        shape = model.output_shape
        if not isinstance(shape, tuple) or shape[-1] != num_classes:
            raise ValueError(
                f"`build` must return a model with one logit for each of the {num_classes} "
                f"classes of `priors`. Received: outputs of shape {shape}"
            )


def _tau_label(tau):
    return "1/(1-q)" if tau is None else f"{check_number('tau', tau):g}"


def _margins_label(margins):
    """Returns a label of what the margins are, so that no others ever have it."""
    if margins is None or isinstance(margins, str):
        return margins or "equal"
    values = np.asarray(margins, "float64").ravel()
    if len(values) <= 5:
        return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"
    return f"[{values[0]:.6g}, ..., {values[-1]:.6g}] {zlib.crc32(values.tobytes()):08x}"


def _identity(surrogate):
    """Returns what two surrogates share if, and only if, they are the same loss."""
    parts = [surrogate.shift, surrogate.margins, surrogate.weights]
    return (surrogate.q, *np.concatenate(parts).round(9) + 0.0)
