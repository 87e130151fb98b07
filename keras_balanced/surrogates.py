"""The table of losses as data: each is a choice of shift, margins, weights and q.

NumPy, and of Keras the register of classes: `formula` computes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import numpy as np

from keras_balanced import validation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["FAMILIES", "Family", "Surrogate", "gca_surrogate", "gla_surrogate"]


class Family(NamedTuple):
    """What a search can vary in a family of losses beside `q`: one of its arguments."""

    option: str  # The name of the argument.
    values: tuple[Any, ...]  # What a search tries unless it is told.
    none: str  # What `None` stands for, in words.


# By the names under which searches know them; the classes are in `losses.LOSSES`.
FAMILIES = {
    "gla": Family("tau", (None, 1.0), none="1/(1-q)"),
    "gca": Family("margins", ("cube_root", None), none="equal"),
}


@keras.saving.register_keras_serializable(package="keras_balanced")
class Surrogate:
    """Holds the constants of a loss: one row of the table of losses.

    Formula:

    ```
    s    = softmax(y_pred / margins[y] + shift)[y]
    loss = weights[y] * (1 - s^q) / q               # -weights[y] * log(s) at q = 0
    ```

    Give one to `BalancedLoss` for a custom loss. The attributes, named as the arguments, are
    read-only float64 arrays `(K,)`; with `binary` they are `(2,)` for one rate and `(L, 2)` for `L`
    rates, label 0 before label 1. Two are equal if all of their arguments are. A class with 0 in
    both mixes never occurs: what the formula says of it is without effect, except for its shift.

    Args:
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`. With `binary` the positive rate in `(0, 1)`, or a vector of `L`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        shift: What is added to the logit of each class, `(K,)`, or one number for all.
        margins: Positive margin of each true class, `(K,)`, or one number for all. Not normalised.
        weights: Positive weight of each true class, `(K,)`, or one number for all.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        label_smoothing: Float in `[0, 1)`, as in `GLALoss`.
        binary: Whether the loss is of one logit, or of `L` independent labels.

    Raises:
        ValueError: for arguments out of their range, or that do not fit each other.

    Example:

    >>> surrogate = Surrogate(priors=[90, 10], weights=[0.5, 4.5])
    >>> print(surrogate.priors, surrogate.shift, surrogate.weights)
    [0.9 0.1] [0. 0.] [0.5 4.5]
    """

    def __init__(
        self,
        priors: ClassMix,
        q: float = 0.0,
        shift: ArrayLike = 0.0,
        margins: ArrayLike = 1.0,
        weights: ArrayLike = 1.0,
        *,
        target_priors: ClassMix | None = None,
        label_smoothing: float = 0.0,
        binary: bool = False,
    ):
        self.binary = bool(binary)
        zeros = target_priors is not None
        self.priors = validation.check_class_priors("priors", priors, self.binary, zeros)
        self.occurs = self.priors > 0
        self.target_priors = self.check_mix("target_priors", target_priors)
        self.target_to_prior = np.divide(
            self.target_priors, self.priors, where=self.occurs, out=np.ones_like(self.priors)
        )
        self.q = validation.check_number("q", q, low=0.0, high=1.0)
        shape = self.priors.shape
        self.shift = validation.check_per_class("shift", shift, shape)
        self.margins = validation.check_per_class("margins", margins, shape, positive=True)
        self.weights = validation.check_per_class("weights", weights, shape, positive=True)
        # The distinct margins `(G,)`, and which of them each class has: work per class becomes work
        # per level. The level of a class that does not occur is never looked up by a label.
        self.levels = np.unique(self.margins[self.occurs])
        self.level_of = np.searchsorted(self.levels, self.margins).clip(max=len(self.levels) - 1)

        self.label_smoothing = validation.check_number(
            "label_smoothing", label_smoothing, low=0.0, high=1.0
        )
        # What smoothing mixes into the targets. In proportion to prior over target, it adds the
        # same to the posterior of each class in the target mix, and so keeps their order.
        mix = self.occurs / self.target_to_prior
        self.smoothing_mass = self.label_smoothing * mix / mix.sum(axis=-1, keepdims=True)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, _read_only(value))

    @property
    def num_labels(self) -> int | None:
        """Number `L` of labels with a rate each; `None` for one rate, and for classes."""
        return len(self.priors) if self.priors.ndim > 1 else None

    @property
    def axes(self) -> int:
        """Number of axes of the logits of one example: none for one logit."""
        return 0 if self.priors.shape == (2,) and self.binary else 1

    def check_mix(self, name: str, mix: ClassMix | None) -> np.ndarray:
        """Returns a class mix, an argument of this name, as probabilities shaped as `priors`.

        `None` is uniform over the classes that occur.
        """
        if mix is None:
            return self.occurs / self.occurs.sum(axis=-1, keepdims=True)
        return validation.check_mix_like(name, mix, self.priors, self.binary)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as plain numbers and lists."""
        mixes = {"priors": self.priors, "target_priors": self.target_priors}
        if self.binary:
            mixes = {name: mix[..., 1] for name, mix in mixes.items()}
        per_class = {name: getattr(self, name) for name in ("shift", "margins", "weights")}
        arrays = {name: array.tolist() for name, array in {**mixes, **per_class}.items()}
        numbers = {"q": self.q, "label_smoothing": self.label_smoothing}
        return {**arrays, **numbers, "binary": self.binary}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Surrogate:
        """Returns the `Surrogate` of a config."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Surrogate):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self.q, *self.priors.ravel().tolist()))

    def __repr__(self) -> str:
        return validation.describe(self)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Returns a copy, since the array may be the caller's."""
    array = array.copy()
    array.setflags(write=False)
    return array


def gla_surrogate(
    priors: ClassMix,
    q: float = 0.0,
    tau: float | None = None,
    *,
    target_priors: ClassMix | None = None,
    label_smoothing: float = 0.0,
    binary: bool = False,
) -> Surrogate:
    """Returns the `Surrogate` of GLA; arguments as in `gla_loss`, `binary` with positive rates."""
    base = Surrogate(priors, q, target_priors=target_priors, binary=binary)
    tau = 1.0 / (1.0 - base.q) if tau is None else validation.check_tau(tau)
    shift = -tau * np.log(base.target_to_prior)
    # A class that does not occur gets the largest, so that training pushes its logit down.
    shift = np.where(base.occurs, shift, shift[base.occurs].max())
    return Surrogate(
        priors,
        q,
        shift,
        target_priors=target_priors,
        label_smoothing=label_smoothing,
        binary=binary,
    )


def gca_surrogate(
    priors: ClassMix,
    q: float = 0.0,
    margins: Literal["cube_root"] | ArrayLike | None = "cube_root",
    consistent: bool = False,
    *,
    target_priors: ClassMix | None = None,
    label_smoothing: float = 0.0,
    binary: bool = False,
) -> Surrogate:
    """Returns the `Surrogate` of GCA; arguments as in `gca_loss`, `binary` with positive rates."""
    base = Surrogate(priors, q, target_priors=target_priors, binary=binary)
    rho = np.broadcast_to(_check_margins(margins, base), base.occurs.shape)
    mean = rho.mean(axis=-1, keepdims=True, where=base.occurs)
    rho = np.where(base.occurs, rho / mean, 1.0)
    weights = base.target_to_prior * rho if consistent else base.target_to_prior
    return Surrogate(
        priors,
        q,
        margins=rho,
        weights=weights,
        target_priors=target_priors,
        label_smoothing=label_smoothing,
        binary=binary,
    )


def _check_margins(margins: Any, base: Surrogate) -> np.ndarray:
    """Returns the margins of GCA, not yet normalised, for the class mixes of a `Surrogate`."""
    if margins is None:
        return base.margins
    if not isinstance(margins, str):
        if not base.binary:  # A number for a class that does not occur is without effect.
            values = validation.as_array("margins", margins, "positive numbers")
            fits = values.shape == base.occurs.shape
            margins = np.where(base.occurs, values, 1.0) if fits else values
        return validation.check_positive_vector("margins", margins, length=base.priors.shape[-1])
    if margins != "cube_root":
        raise ValueError(
            '`margins` must be "cube_root", None or a 1-D vector of positive numbers. '
            f"Received: margins={validation.show(margins)}"
        )
    rho = np.cbrt(base.target_to_prior * base.target_priors)
    if not base.binary:
        rho[base.occurs] = _round_to_levels(rho[base.occurs])
    return rho


def _round_to_levels(margins: np.ndarray, step: float = 1.05, most: int = 64) -> np.ndarray:
    """Returns margins `(K,)`; more than `most` different ones rounded to fewer levels.

    The levels have equal steps of their logarithm. With steps of 5% no margin moves by more than
    2.5%, up to a ratio of 10,000 between the priors; beyond, `most` levels have larger steps.
    """
    if len(np.unique(margins)) <= most:
        return margins
    low, high = np.log(margins.min()), np.log(margins.max())
    count = min(most, 2 + int((high - low) / np.log(step)))
    levels = np.exp(np.linspace(low, high, count))
    return levels[np.rint((np.log(margins) - low) / (high - low) * (count - 1)).astype("int64")]
