"""The table of losses as data: each is a choice of shift, margins, weights and q.

NumPy only: `formula` computes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from keras_balanced import validation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["Surrogate", "gca_surrogate", "gla_surrogate"]


class Surrogate:
    """Holds the constants of a loss: one row of the table of losses.

    Formula:

    ```
    s    = softmax(y_pred / margins[y] + shift)[y]
    loss = weights[y] * (1 - s^q) / q               # -weights[y] * log(s) at q = 0
    ```

    Give one to `BalancedLoss` for a loss of your own. The attributes, named as the arguments, are
    float64 arrays `(K,)`; with `binary` they are `(2,)` for one rate and `(L, 2)` for `L` rates,
    label 0 before label 1.

    Args:
        priors: Class mix of the training data: `K` counts or probabilities, or an adapted
            `ClassPrior`. With `binary` the positive rate in `(0, 1)`, or a vector of `L`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        shift: What is added to the logit of each class, `(K,)`, or one number for all.
        margins: Positive margin of each true class, `(K,)`, or one number for all. Not normalised.
        weights: Positive weight of each true class, `(K,)`, or one number for all.
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
        target_priors: ClassMix | None = None,
        q: float = 0.0,
        shift: ArrayLike = 0.0,
        margins: ArrayLike = 1.0,
        weights: ArrayLike = 1.0,
        binary: bool = False,
    ):
        self.binary = bool(binary)
        self.priors = validation.check_class_priors("priors", priors, self.binary)
        self.target_priors = self.check_target(target_priors)
        self.q = validation.check_number("q", q, low=0.0, high=1.0)
        shape = self.priors.shape
        self.shift = validation.check_per_class("shift", shift, shape)
        self.margins = validation.check_per_class("margins", margins, shape, positive=True)
        self.weights = validation.check_per_class("weights", weights, shape, positive=True)
        # The distinct margins `(G,)`, and which of them each class has: what costs a row of logits
        # per class costs one per level.
        self.levels, self.level_of = np.unique(self.margins, return_inverse=True)

    @property
    def num_labels(self) -> int | None:
        """Number `L` of labels with a rate each; `None` for one rate, and for classes."""
        return len(self.priors) if self.priors.ndim > 1 else None

    def check_target(self, target_priors: ClassMix | None) -> np.ndarray:
        """Returns a target mix as probabilities in the shape of `priors`; uniform for `None`."""
        if target_priors is None:
            return np.full_like(self.priors, 1.0 / self.priors.shape[-1])
        return validation.check_target(target_priors, self.priors, self.binary)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as plain numbers and lists."""
        mixes = {"priors": self.priors, "target_priors": self.target_priors}
        if self.binary:
            mixes = {name: mix[..., 1] for name, mix in mixes.items()}
        per_class = {name: getattr(self, name) for name in ("shift", "margins", "weights")}
        arrays = {name: array.tolist() for name, array in {**mixes, **per_class}.items()}
        return {**arrays, "q": self.q, "binary": self.binary}

    def __repr__(self) -> str:
        return validation.describe(self)


def gla_surrogate(
    priors: ClassMix,
    q: float = 0.0,
    tau: float | None = None,
    target_priors: ClassMix | None = None,
    binary: bool = False,
) -> Surrogate:
    """Returns the `Surrogate` of GLA; arguments as in `gla_loss`, `binary` with positive rates."""
    plain = Surrogate(priors, target_priors, q, binary=binary)
    tau = 1.0 / (1.0 - plain.q) if tau is None else validation.check_number("tau", tau)
    shift = tau * (np.log(plain.priors) - np.log(plain.target_priors))
    return Surrogate(priors, target_priors, q, shift=shift, binary=binary)


def gca_surrogate(
    priors: ClassMix,
    q: float = 0.0,
    margins: Literal["cube_root"] | ArrayLike | None = "cube_root",
    consistent: bool = False,
    target_priors: ClassMix | None = None,
    binary: bool = False,
) -> Surrogate:
    """Returns the `Surrogate` of GCA; arguments as in `gca_loss`, `binary` with positive rates."""
    plain = Surrogate(priors, target_priors, q, binary=binary)
    weights = plain.target_priors / plain.priors
    if margins is None:
        rho = plain.margins
    elif not isinstance(margins, str):
        rho = validation.check_positive_vector("margins", margins, length=plain.priors.shape[-1])
    elif margins == "cube_root":
        rho = np.cbrt(plain.target_priors**2 / plain.priors)
        rho = rho if binary else _round_to_levels(rho)
    else:
        raise ValueError(
            '`margins` must be "cube_root", None or a 1-D vector of positive numbers. '
            f"Received: margins={margins!r}"
        )
    rho = rho / rho.mean(axis=-1, keepdims=True)
    if consistent:
        weights = weights * rho
    return Surrogate(priors, target_priors, q, margins=rho, weights=weights, binary=binary)


def _round_to_levels(margins, step=1.05, most=64):
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
