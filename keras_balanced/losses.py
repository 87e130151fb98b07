"""The balanced losses as Keras `Loss` classes: validate, delegate, serialise."""

import keras
import numpy as np

from keras_balanced import functional


class _BalancedLoss(keras.losses.Loss):
    """A `functional.Surrogate` under the contract of a Keras loss."""

    def __init__(self, surrogate, from_logits, reduction, name, dtype):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "`dtype` of a loss must be float32 or float64: half precision corrupts class ids "
                "above 256. Models under mixed precision need no setting here. "
                f"Received: dtype={self.dtype}"
            )
        self.surrogate = surrogate
        self.from_logits = from_logits

    def __call__(self, y_true, y_pred, sample_weight=None):
        if self.from_logits:
            # Before Keras casts `y_pred`, which loses the mark that a softmax leaves on it.
            functional.refuse_probabilities(y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        return functional.surrogate_loss(y_true, y_pred, self.surrogate, self.from_logits)

    def get_config(self):
        # Keras leaves out `dtype`.
        return {**super().get_config(), "from_logits": self.from_logits, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="keras_balanced")
class GLALoss(_BalancedLoss):
    """Computes the generalized logit-adjusted (GLA) loss between labels and logits.

    At its defaults this is the logit-adjusted loss, also known as balanced softmax: it trains for
    balanced accuracy, and at inference the argmax of the logits is the decision.

    Formula:

    ```
    s    = softmax(y_pred + tau * (log(priors) - log(target_priors)))[y_true]
    loss = (1 - s^q) / q                     # -log(s) at q = 0
    ```

    With `tau = 1 / (1 - q)`, the default, the loss is Bayes-consistent for every `q`: its
    minimiser decides as the best classifier of the target mix. With `tau = 1` and `q > 0` it is
    not. But a gradient in the tail carries `s^q`, and the shift starts `s` near 0 there: trained
    from scratch, `q >= 0.5` can lose the rare classes, and `tau = 1` loses fewer.

    Args:
        priors: Class mix of the data that the model sees, after any resampling: `K` counts or
            probabilities (1-D, positive), or an adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        tau: Strength of the logit adjustment, a finite number. `None` is `1 / (1 - q)`; 0 gives
            the (generalized) cross-entropy.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        from_logits: Whether `y_pred` is logits (default) or probabilities. Logits are better: a
            model that ends in a softmax is refused under `True` where Keras marks its output
            (eager and TensorFlow graphs; a mark is lost when a layer or a cast follows).
        reduction: As in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` integer classes `(...)` or `(..., 1)`, or one-hot or soft targets
    `(..., K)`; `y_pred` `(..., K)`; `sample_weight` as in every Keras loss.

    Raises:
        ValueError: for arguments out of their range, before anything trains.

    Example:

    >>> import numpy as np
    >>> loss = GLALoss(priors=[90, 10])
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> print(f"{float(loss(np.array([0, 1]), logits)):.3f}")
    2.114

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
        - [Menon et al., 2021](https://arxiv.org/abs/2007.07314) (q = 0)
    """

    def __init__(
        self,
        priors,
        q=0.0,
        tau=None,
        target_priors=None,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="gla_loss",
        dtype=None,
    ):
        surrogate = functional.gla_surrogate(priors, q, tau, target_priors)
        super().__init__(surrogate, from_logits, reduction, name, dtype)
        self.priors = _plain(priors)
        self.q = surrogate.q
        self.tau = tau
        self.target_priors = _plain(target_priors)

    def get_config(self):
        return {
            **super().get_config(),
            "priors": self.priors,
            "q": self.q,
            "tau": self.tau,
            "target_priors": self.target_priors,
        }


@keras.saving.register_keras_serializable(package="keras_balanced")
class GCALoss(_BalancedLoss):
    """Computes the generalized class-aware weighted (GCA) loss between labels and logits.

    It trains for balanced accuracy with a weight and a confidence margin for each class; at
    inference the argmax of the logits is the decision.

    Formula:

    ```
    s    = softmax(y_pred / margins[y_true])[y_true]
    w    = target_priors[y_true] / priors[y_true]   # times margins[y_true] if consistent
    loss = w * (1 - s^q) / q                        # -w * log(s) at q = 0
    ```

    Without margins the loss is Bayes-consistent for every `q`; with margins and `consistent` it
    is at `q = 0`. With margins and `q > 0` there is no proof, and for two classes the minimum
    lies at infinity once `q * margins[i] > margins[j]`: keep to
    `q < min(margins) / max(margins)`.

    Args:
        priors: Class mix of the data that the model sees, after any resampling: `K` counts or
            probabilities (1-D, positive), or an adapted `ClassPrior`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        margins: Confidence margin of each class, normalised to mean 1. `"cube_root"` (default) is
            `(target_priors^2 / priors)^(1/3)`: for balanced accuracy a rare class gets a larger
            one. `None` is equal margins: the class-weighted (generalized) cross-entropy. Or `K`
            positive numbers.
        consistent: Whether to multiply the weights by the margins.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        from_logits: Whether `y_pred` is logits (default) or probabilities. Logits are better: a
            model that ends in a softmax is refused under `True` where Keras marks its output
            (eager and TensorFlow graphs; a mark is lost when a layer or a cast follows).
        reduction: As in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` integer classes `(...)` or `(..., 1)`, or one-hot or soft targets
    `(..., K)` (with margins these take `K` times the time of integers); `y_pred` `(..., K)`;
    `sample_weight` as in every Keras loss.

    Raises:
        ValueError: for arguments out of their range, before anything trains.

    Example:

    >>> import numpy as np
    >>> loss = GCALoss(priors=[90, 10], margins=None)
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> print(f"{float(loss(np.array([0, 1]), logits)):.3f}")
    5.353

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
        - [Cortes et al., 2025 (IMMAX)](https://arxiv.org/abs/2502.10381) (margins)
    """

    def __init__(
        self,
        priors,
        q=0.0,
        margins="cube_root",
        consistent=True,
        target_priors=None,
        from_logits=True,
        reduction="sum_over_batch_size",
        name="gca_loss",
        dtype=None,
    ):
        surrogate = functional.gca_surrogate(priors, q, margins, consistent, target_priors)
        super().__init__(surrogate, from_logits, reduction, name, dtype)
        self.priors = _plain(priors)
        self.q = surrogate.q
        self.margins = _plain(margins)
        self.consistent = consistent
        self.target_priors = _plain(target_priors)

    def get_config(self):
        return {
            **super().get_config(),
            "priors": self.priors,
            "q": self.q,
            "margins": self.margins,
            "consistent": self.consistent,
            "target_priors": self.target_priors,
        }


def _plain(vector):
    """Returns a vector as the plain floats that JSON keeps; `None` and names stay."""
    if vector is None or isinstance(vector, str):
        return vector
    return np.asarray(getattr(vector, "priors", vector), dtype="float64").tolist()
