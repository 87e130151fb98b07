"""The table of losses as data: each is a choice of shift, margins, weights and q."""

from typing import NamedTuple

import numpy as np

from keras_balanced.validation import check_mixes, check_number, check_positive_vector


class Surrogate(NamedTuple):
    """One row of the table of losses.

    Every array is float64 and has the classes on its last axis: `(K,)`, or for `L` binary labels
    `(L, 2)`. `None` is "the same for all".
    """

    priors: np.ndarray
    target_priors: np.ndarray
    q: float
    shift: np.ndarray | None = None
    margins: np.ndarray | None = None
    weights: np.ndarray | None = None


def gla_surrogate(priors, q=0.0, tau=None, target_priors=None, binary=False):
    """Returns the `Surrogate` of GLA; arguments as in `gla_loss`, `binary` with positive rates."""
    priors, target_priors = check_mixes(priors, target_priors, binary)
    q = check_number("q", q, low=0.0, high=1.0)
    tau = 1.0 / (1.0 - q) if tau is None else check_number("tau", tau)
    shift = tau * (np.log(priors) - np.log(target_priors))
    return Surrogate(priors, target_priors, q, shift=shift)


def gca_surrogate(
    priors, q=0.0, margins="cube_root", consistent=False, target_priors=None, binary=False
):
    """Returns the `Surrogate` of GCA; arguments as in `gca_loss`, `binary` with positive rates."""
    priors, target_priors = check_mixes(priors, target_priors, binary)
    q = check_number("q", q, low=0.0, high=1.0)
    weights = target_priors / priors
    if isinstance(margins, str) and margins == "cube_root":
        margins = np.cbrt(target_priors**2 / priors)
    elif margins is not None:
        if isinstance(margins, str):
            raise ValueError(
                '`margins` must be "cube_root", None or a 1-D vector of positive numbers. '
                f"Received: margins={margins!r}"
            )
        margins = check_positive_vector("margins", margins, length=priors.shape[-1])
    if margins is not None:
        margins = margins / margins.mean(axis=-1, keepdims=True)
        if consistent:
            weights = weights * margins
    return Surrogate(priors, target_priors, q, margins=margins, weights=weights)
