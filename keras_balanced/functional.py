"""`gla_loss` and `gca_loss`: the losses as functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from keras_balanced.formula import as_logits, surrogate_loss
from keras_balanced.surrogates import gca_surrogate, gla_surrogate
from keras_balanced.validation import check_ignore_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["gca_loss", "gla_loss"]


def gla_loss(
    y_true: Any,
    y_pred: Any,
    priors: ClassMix,
    q: float = 0.0,
    tau: float | None = None,
    *,
    target_priors: ClassMix | None = None,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    ignore_class: int | Sequence[int] | None = None,
) -> Any:
    """Computes the generalized logit-adjusted loss of each example.

    Formula:

    ```
    s    = softmax(y_pred + tau * (log(priors) - log(target_priors)))[y_true]
    loss = (1 - s^q) / q                     # -log(s) at q = 0
    ```

    Args:
        y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets `(..., K)`,
            whose loss is `sum_k y_true[k] * loss(class k)`.
        y_pred: Logits `(..., K)`, float32 or float64 (half precision is computed in float32).
        priors: Class mix of the data that the model sees: `K` counts or probabilities, or an
            adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        tau: Strength of the logit adjustment. `None` is `1 / (1 - q)`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        label_smoothing: Float in `[0, 1)`, as in the loss class.
        from_logits: Whether `y_pred` is logits (default) or probabilities.
        ignore_class: Integer label, in `[0, K)` or outside, or a list of several, whose positions
            get the loss 0.

    Returns:
        The losses, `(...)`, in the dtype of `y_pred`. A label outside `[0, K)` raises
        an error that names it on TensorFlow (without XLA) and PyTorch, and gives NaN elsewhere.

    Raises:
        ValueError: for arguments or shapes that do not fit each other.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> losses = gla_loss(np.array([0, 1]), logits, priors=[90, 10])
    >>> print(keras.ops.convert_to_numpy(losses).round(3))
    [0.015 4.212]

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
        - [Menon et al., 2021](https://arxiv.org/abs/2007.07314) (q = 0)
    """
    surrogate = gla_surrogate(
        priors, q, tau, target_priors=target_priors, label_smoothing=label_smoothing
    )
    ignored = check_ignore_class(ignore_class)
    logits = as_logits(y_pred, surrogate.binary, from_logits)
    return surrogate_loss(y_true, logits, surrogate, ignored)


def gca_loss(
    y_true: Any,
    y_pred: Any,
    priors: ClassMix,
    q: float = 0.0,
    margins: Literal["cube_root"] | ArrayLike | None = "cube_root",
    consistent: bool = False,
    *,
    target_priors: ClassMix | None = None,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    ignore_class: int | Sequence[int] | None = None,
) -> Any:
    """Computes the generalized class-aware weighted loss of each example.

    Formula:

    ```
    s    = softmax(y_pred / margins[y_true])[y_true]
    w    = target_priors[y_true] / priors[y_true]   # times margins[y_true] if consistent
    loss = w * (1 - s^q) / q                        # -w * log(s) at q = 0
    ```

    Args:
        y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets `(..., K)`,
            whose loss is `sum_k y_true[k] * loss(class k)`. With margins such targets take a pass
            over the logits for each different margin.
        y_pred: Logits `(..., K)`, float32 or float64 (half precision is computed in float32).
        priors: Class mix of the data that the model sees: `K` counts or probabilities, or an
            adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        margins: Confidence margin of each class: `"cube_root"` for
            `(target_priors^2 / priors)^(1/3)`, `None` for equal margins, or `K` positive numbers.
            Always normalised to mean 1.
        consistent: Whether to multiply the weights by the margins too, which makes the argmax of
            the logits Bayes-consistent at `q = 0`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        label_smoothing: Float in `[0, 1)`, as in the loss class.
        from_logits: Whether `y_pred` is logits (default) or probabilities.
        ignore_class: Integer label, in `[0, K)` or outside, or a list of several, whose positions
            get the loss 0.

    Returns:
        The losses, `(...)`, in the dtype of `y_pred`. A label outside `[0, K)` raises
        an error that names it on TensorFlow (without XLA) and PyTorch, and gives NaN elsewhere.

    Raises:
        ValueError: for arguments or shapes that do not fit each other.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> losses = gca_loss(np.array([0, 1]), logits, priors=[90, 10], margins=None)
    >>> print(keras.ops.convert_to_numpy(losses).round(3))
    [ 0.071 10.635]

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
    """
    surrogate = gca_surrogate(
        priors,
        q,
        margins,
        consistent,
        target_priors=target_priors,
        label_smoothing=label_smoothing,
    )
    ignored = check_ignore_class(ignore_class)
    logits = as_logits(y_pred, surrogate.binary, from_logits)
    return surrogate_loss(y_true, logits, surrogate, ignored)
