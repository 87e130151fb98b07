"""The distinct losses of a search, and the models that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import keras
import numpy as np

from keras_balanced.backends import probability_layer
from keras_balanced.losses import BalancedLoss, GCALoss, GLALoss
from keras_balanced.surrogates import Surrogate
from keras_balanced.validation import check_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["OPTION", "Q", "check_model", "loss_grid"]

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
        "gca": {_margins_label(i, value): {"margins": value} for i, value in enumerate(margins)},
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


def _margins_label(i, margins):
    if margins is None:
        return "equal"
    return margins if isinstance(margins, str) else f"margins[{i}]"


def _identity(surrogate):
    """Returns what two surrogates share if, and only if, they are the same loss."""
    parts = [surrogate.shift, surrogate.margins, surrogate.weights]
    return (surrogate.q, *np.concatenate(parts).round(9) + 0.0)
