"""The distinct losses of a search, and the models that fit them."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_balanced.backends import probability_layer
from keras_balanced.decisions import decision_of
from keras_balanced.losses import LOSSES, BalancedLoss
from keras_balanced.surrogates import FAMILIES, Surrogate
from keras_balanced.tuning.fingerprint import checksums, differences
from keras_balanced.validation import as_array, check_number

if TYPE_CHECKING:
    from keras_balanced.decisions import Decision
    from keras_balanced.validation import ClassMix

__all__ = ["Q", "check_model", "loss_grid", "suggest", "suggest_loss"]

# The grid of Cortes et al. (2025).
Q = tuple(i / 10 for i in range(10))
# Where an Optuna study keeps what its grid is.
_ATTRIBUTE = "keras_balanced: losses"


def loss_grid(
    priors: ClassMix,
    losses: Sequence[str | BalancedLoss] = tuple(FAMILIES),
    q: Sequence[float] = Q,
    *,
    target_priors: ClassMix | None = None,
    **options: Sequence[Any],
) -> dict[tuple[str, float, str], BalancedLoss]:
    """Returns the distinct losses of a grid, each once.

    At `q = 0`, where `1 / (1 - q)` is 1, GLA with `tau=None` and with `tau=1` is one loss. Unequal
    margins come only with `q < min(margins) / max(margins)`, beyond which the loss can have no
    minimum.

    Args:
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`.
        losses: `"gla"`, `"gca"`, and any `BalancedLoss` as it is, under its name.
        q: Values of `q`, each in `[0, 1)`.
        target_priors: Class mix to be good at, as `priors`, for all losses. `None` is uniform.
        options: Lists of further values: `tau` of GLA (by default `None`, which is `1 / (1 - q)`,
            and 1), `margins` of GCA (by default `"cube_root"` and `None`; or `K` positive numbers).

    Returns:
        A dict of `(name, q, option)` to the loss; `option` is the value of `tau` or `margins` in
        words, `"as given"` for a loss that was given.

    Raises:
        ValueError: for an empty grid and values out of their range.

    Example:

    >>> for point, loss in loss_grid([90, 10], ["gla"], [0.0, 0.5]).items():
    ...     print(point, loss)
    ('gla', 0.0, '1/(1-q)') GLALoss(priors=[90.0, 10.0])
    ('gla', 0.5, '1/(1-q)') GLALoss(priors=[90.0, 10.0], q=0.5)
    ('gla', 0.5, '1') GLALoss(priors=[90.0, 10.0], q=0.5, tau=1.0)
    """
    for name, values in (("losses", losses), ("q", q), *options.items()):
        if isinstance(values, str) or not np.iterable(values) or not len(values):
            raise ValueError(
                f"`{name}` must be a list of at least one value. Received: {name}={values!r}"
            )
    _check_options(options)
    own = [loss for loss in losses if isinstance(loss, BalancedLoss)]
    names = [loss for loss in losses if not isinstance(loss, BalancedLoss)]
    if not all(name in FAMILIES for name in names):
        raise ValueError(
            f"`losses` must be of {list(FAMILIES)}, or a `BalancedLoss`. "
            f"Received: losses={losses!r}"
        )
    q = sorted({check_number("q", value, low=0.0, high=1.0) for value in q})
    grid: dict[tuple[str, float, str], BalancedLoss] = {}
    for name in dict.fromkeys(names):
        family = FAMILIES[name]
        for value, option in itertools.product(q, options.get(family.option, family.values)):
            arguments = {"q": value, "target_priors": target_priors, family.option: option}
            loss = LOSSES[name](priors, **arguments)
            if _has_minimum(loss) and not any(_are_one(loss, other) for other in grid.values()):
                grid[name, value, _in_words(family, option)] = loss
    num_classes = len(Surrogate(priors, target_priors=target_priors).priors)
    for loss in own:
        _check_own(loss, num_classes, grid)
        grid[loss.name, loss.surrogate.q, "as given"] = loss
    if not grid:
        raise ValueError(
            "No loss is left to search: with unequal margins `q` must be less than "
            f"min(margins) / max(margins). Received: q={q}, {options}"
        )
    return grid


def _check_options(options):
    known = [family.option for family in FAMILIES.values()]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(
            f"The options of the losses are {known}. Received: {unknown[0]}={options[unknown[0]]!r}"
        )


def _check_own(loss, num_classes, grid):
    surrogate = loss.surrogate
    fits = not surrogate.binary and len(surrogate.priors) == num_classes
    if not fits or (loss.name, surrogate.q) in {point[:2] for point in grid}:
        raise ValueError(
            f"A loss among `losses` must have the {num_classes} classes of `priors`, and a "
            f"`name` that no other has. Received: {loss!r} named {loss.name!r}"
        )


def _has_minimum(loss):
    rho = loss.surrogate.margins
    return rho.min() == rho.max() or loss.q < rho.min() / rho.max()


def _are_one(loss, other):
    """Returns whether two losses of one class mix differ in nothing but rounding."""
    for kind in (type(loss), type(other)):
        if kind.logits is not BalancedLoss.logits or kind.call is not BalancedLoss.call:
            return False  # They are more than a surrogate.
    a, b = loss.surrogate, other.surrogate
    return a.q == b.q and all(
        np.allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-12)
        for name in ("shift", "margins", "weights")
    )


def _in_words(family, value):
    """Returns what a value of an option is, in words that no other value has."""
    if value is None or isinstance(value, str):
        return value or family.none
    values = as_array(family.option, value, "numbers").ravel()
    if np.ndim(value) == 0:
        return np.format_float_positional(values[0], trim="-")
    if len(values) <= 5:
        shown = [np.format_float_positional(number, trim="-") for number in values]
        return f"[{', '.join(shown)}]"
    return f"[{values[0]:.6g}, ..., {values[-1]:.6g}] {zlib.crc32(values.tobytes()):08x}"


def suggest(grid: dict[tuple[str, float, str], Any], choose: Callable[..., Any]) -> Any:
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
        label = FAMILIES[name].option if name in FAMILIES else name
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
    losses: Sequence[str | BalancedLoss] = tuple(FAMILIES),
    q: Sequence[float] = Q,
    *,
    target_priors: ClassMix | None = None,
    decision: Callable[[BalancedLoss], Decision | BalancedLoss] | None = None,
    **options: Sequence[Any],
) -> BalancedLoss | tuple[BalancedLoss, Decision | None]:
    """Suggests a loss to an Optuna trial: each distinct one of a grid is one set of parameters.

    The parameters are those of `BalancedHyperModel`: `loss`, `q`, `tau` and `margins`, each only
    where it has a choice. Any sampler of Optuna works; `BruteForceSampler` takes the whole grid.
    Optuna cannot change what a parameter offers: a study has one grid, and refuses another.

    Args:
        trial: `optuna.Trial` of a study that maximises the balanced accuracy on held-out data.
        priors: As in `loss_grid`, like all that follow.
        losses: The losses to search.
        q: The values of `q`.
        target_priors: Class mix to be good at. `None` is uniform.
        decision: Function `loss -> Decision`, to have the decision of the loss with it.
        options: Lists of values of `tau` and of `margins`.

    Returns:
        The loss to train with; with `decision` a pair of it and its decision.

    Raises:
        ValueError: for an empty grid and values out of their range, and for another grid than
            that of the study's first trial.

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
    grid = loss_grid(priors, losses, q, target_priors=target_priors, **options)
    if (study := getattr(trial, "study", None)) is not None:
        _check_study(study, trial, grid)
    loss = suggest(grid, _chooser(trial))
    return loss if decision is None else (loss, decision_of(decision)(loss))


def _chooser(trial):
    """Returns a function that chooses as `suggest` asks for it, by the parameters of a trial."""
    chosen: dict[str, Any] = {}

    def choose(name, values, conditions):
        if any(chosen.get(parent) not in allowed for parent, allowed in conditions):
            return None
        if name not in chosen:
            is_choice = len(values) > 1
            chosen[name] = trial.suggest_categorical(name, values) if is_choice else values[0]
        return chosen[name]

    return choose


def _check_study(study, trial, grid):
    """Raises if a study is of another grid, and else writes down this one."""
    now: dict[str, Any] = {
        "points": [list(point) for point in grid],
        "checksums": checksums(grid),
    }
    before = study.user_attrs.get(_ATTRIBUTE)
    if before is None:
        study.set_user_attr(_ATTRIBUTE, now)
    elif before["checksums"] != now["checksums"]:
        # A failed trial without parameters would spoil the study for `BruteForceSampler`. So it
        # gets those of a point of the study's own grid, which another trial will train.
        suggest({tuple(point): None for point in before["points"]}, _chooser(trial))
        study.enqueue_trial(trial.params)
        raise ValueError(
            "An Optuna study must have one grid of losses: take another `study_name`, or "
            "`tuning.GridSearch`, whose grid may grow. Received, before -> now: "
            f"{differences(before['checksums'], now['checksums'])}"
        )


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
