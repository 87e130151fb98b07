"""The balanced losses as Keras `Loss` classes: validate, delegate, serialise."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, formula, surrogates, targets, validation
from keras_balanced.surrogates import Surrogate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from keras_balanced.backends import Tensor
    from keras_balanced.validation import ClassMix

__all__ = ["BalancedLoss", "BinaryGCALoss", "BinaryGLALoss", "GCALoss", "GLALoss"]

TEMPERATURES = (0.01, 100.0)  # The least, and what all must be below.


@keras.saving.register_keras_serializable(package="keras_balanced")
class BalancedLoss(keras.losses.Loss):
    """Computes the loss of any `Surrogate`, under the whole contract of a Keras loss.

    `GLALoss` and `GCALoss` are built on it. Build a custom loss on it in one of two ways:
    give it the constants of the loss as a `Surrogate`, or subclass it and override `logits`
    (what is done to the predictions first) or `call`. Masks, sample weights, `ignore_class`,
    probabilities, reductions and `posterior` come with it. A subclass needs no `get_config` if its
    `__init__` keeps each of its own arguments in an attribute of the same name, and hands
    `**kwargs` on. An argument that is a Keras object, such as a `ClassPrior` for a loss that needs
    counts, is one again in a loaded loss. Two losses are equal if they are of one class and all of
    their arguments are equal.

    Formula:

    ```
    s    = softmax(y_pred / margins[y] + shift)[y]
    loss = weights[y] * (1 - s^q) / q               # -weights[y] * log(s) at q = 0
    ```

    Args:
        surrogate: A `Surrogate`: the constants of the loss.
        from_logits: Whether `y_pred` is logits (default) or probabilities. Logits are better: a
            model that ends in a softmax is refused under `True` where Keras marks its output:
            on TensorFlow and PyTorch, unless another layer or a cast follows. On JAX it cannot be
            seen.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, whose
            positions take no part in value, gradient or denominator. For integer `y_true` only.
        reduction: As in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` integer classes `(...)` or `(..., 1)`, or one-hot or soft targets
    `(..., K)`; `y_pred` `(..., K)`; `sample_weight` of any leading axes of the target. With a
    binary surrogate as in `BinaryGLALoss`.

    Raises:
        ValueError: for arguments out of their range, before anything trains.

    Example:

    Cross-entropy weighted by the effective number of examples:

    >>> import numpy as np
    >>> counts = np.array([900, 100])
    >>> weights = (1 - 0.99) / (1 - 0.99**counts)
    >>> loss = BalancedLoss(Surrogate(counts, weights=weights / weights.mean()))
    >>> logits = np.array([[2.0, 0.0], [2.0, 0.0]], "float32")
    >>> print(f"{float(loss(np.array([0, 1]), logits)):.3f}")
    1.351

    References:
        - [Cui et al., 2019](https://arxiv.org/abs/1901.05555) (the weights of the example)
    """

    def __init__(
        self,
        surrogate: Surrogate,
        *,
        from_logits: bool = True,
        ignore_class: int | Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "balanced_loss",
        dtype: str | None = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype or backends.full_precision())
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "`dtype` of a loss must be float32 or float64: half precision corrupts class ids "
                "above 256. Models under mixed precision need no setting here. "
                f"Received: dtype={self.dtype}"
            )
        if not isinstance(surrogate, Surrogate):
            raise ValueError(
                "`surrogate` must be a `Surrogate`. "
                f"Received: surrogate={validation.show(surrogate)}"
            )
        self.surrogate = surrogate
        self.from_logits = bool(from_logits)
        self.ignore_class = validation.check_ignore_class(ignore_class)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        backends.refuse_tf_keras()
        y_true = targets.as_tensor("y_true", y_true)
        y_pred = targets.as_tensor("y_pred", y_pred)
        if self.from_logits:
            # Keras will cast `y_pred`, which loses the mark that a softmax leaves on it.
            backends.refuse_probabilities(y_pred)
        mask = backends.get_mask(y_pred)
        if mask is None and sample_weight is None:
            return super().__call__(y_true, y_pred)
        is_list_of_one = isinstance(sample_weight, (list, tuple)) and len(sample_weight) == 1
        if is_list_of_one and ops.is_tensor(sample_weight[0]):
            (sample_weight,) = sample_weight  # As Keras hands on `fit(x, [y], sample_weight=[w])`.
        shape = targets.shape_of_losses(y_pred, self.surrogate.binary)
        counted = ops.ones((), self.dtype)
        if mask is not None:
            if len(mask.shape) < len(shape):
                # The mask `(...)` of predictions `(..., L)` covers all of their labels.
                mask = targets.match_weights(mask, shape)
                y_pred = backends.set_mask(y_pred, mask)
            counted = ops.cast(mask, self.dtype)
        if sample_weight is not None:
            # Keras would match (B,) to (B, T) from the right, or refuse it.
            sample_weight = targets.as_tensor("sample_weight", sample_weight)
            sample_weight = ops.cast(sample_weight, self.dtype)
            # A copy: on PyTorch Keras multiplies a mask into it in place.
            sample_weight = ops.copy(targets.match_weights(sample_weight, shape))
            counted = counted * sample_weight
        y_true = targets.blank_labels(y_true, counted, self.surrogate.occurs, self.ignore_class)
        return super().__call__(y_true, y_pred, sample_weight)

    def logits(self, y_pred: Any) -> Any:
        """Returns the predictions as the logits `(..., K)` of the formula."""
        return formula.as_logits(y_pred, self.surrogate.binary, self.from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        logits = self.logits(y_pred)
        losses = formula.surrogate_loss(y_true, logits, self.surrogate, self.ignore_class)
        if self.ignore_class is None:
            return losses
        y_true = targets.as_tensor("y_true", y_true)
        kept = targets.is_kept(y_true, ops.shape(losses), self.ignore_class)
        return backends.set_mask(losses, kept)

    def log_posterior(self, logits: Any, *, priors: ClassMix | None = None) -> Any:
        """Returns the natural logarithm of what `posterior` gives.

        Args:
            logits: `(..., K)`, as the method `logits` gives them; of binary losses `(...)`.
            priors: As in `posterior`.

        Returns:
            `(..., K)`; of binary losses `(..., 2)`, for label 0 and label 1.

        Raises:
            ValueError: for shapes or priors that do not fit, or if only `call` is overridden.
        """
        check_posterior(self)
        surrogate = self.surrogate
        mix = surrogate.target_priors
        if priors is not None:
            mix = surrogate.check_mix("priors", priors)
        logits = formula.as_full_precision(targets.as_tensor("logits", logits))
        if not surrogate.binary:
            targets.check_classes(logits, len(surrogate.priors))
        return formula.log_posterior(logits, surrogate, mix)

    def posterior(
        self, y_pred: Any, *, priors: ClassMix | None = None, temperature: float = 1.0
    ) -> Any:
        """Returns the probability of each class that a model trained with this loss predicts.

        The softmax of the logits is *not* that: the loss has shifted or scaled them. Exact where
        the logits minimise the loss; with unequal margins and `q > 0` the loss may have no
        minimum (see the class). To decide, see `Decision`: where it asks for another class mix
        than `priors`, its class is not the most probable one.

        Of the outputs of a functional model it is the output of a layer, which is saved and
        exported with the model: `keras.Model(inputs, loss.posterior(model(inputs)))`.

        Args:
            y_pred: Predictions `(..., K)` as the loss takes them: logits, or probabilities if
                `from_logits=False`. Binary losses: `(...)`, `(..., 1)` or `(..., L)`.
            priors: Class mix in which the probabilities should hold: that of the data that are
                met, in the forms of the loss's `priors`. `None` is the mix that the loss trains
                for, its `target_priors`; the training priors give the training mix.
            temperature: Positive number by which the log-posterior in the loss's own target is
                divided, before the mix changes: what `serving.calibrate` finds, as in an export.

        Returns:
            Probabilities `(..., K)` that sum to 1; of binary losses the probability of each
            positive label, in the shape of `y_pred`; of a NumPy array as one.

        Raises:
            ValueError: for shapes or priors that do not fit.
        """
        if isinstance(y_pred, keras.KerasTensor):
            return _Posterior(self, priors, temperature)(y_pred)
        temperature = validation.check_number("temperature", temperature, *TEMPERATURES)
        surrogate = self.surrogate
        own = mix = surrogate.target_priors
        if priors is not None:
            mix = surrogate.check_mix("priors", priors)

        def of_logits(logits):
            log_p = self.log_posterior(logits)
            if temperature != 1.0 or mix is not own:
                log_p = formula.change_mix(log_p / temperature, surrogate, own, mix)
            probabilities = ops.exp(log_p)
            return probabilities[..., 1] if surrogate.binary else probabilities

        return of_predictions(self, of_logits, y_pred)

    def get_config(self) -> dict[str, Any]:
        names = [
            *("from_logits", "dtype"),
            *(
                p.name
                for p in inspect.signature(type(self)).parameters.values()
                if p.kind != p.VAR_KEYWORD
            ),
        ]
        config = {
            **super().get_config(),
            **{name: _serialized(getattr(self, name)) for name in names},
        }
        return {**config, "ignore_class": self.ignore_class}  # Integers stay integers.

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BalancedLoss:
        """Returns the loss of a config, of which `get_config` serialised the Keras objects."""
        return cls(**{name: _deserialized(value) for name, value in config.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BalancedLoss):
            return NotImplemented
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), self.surrogate))

    def __repr__(self) -> str:
        return validation.describe(self)


def of_predictions(loss: BalancedLoss, function: Callable[[Tensor], Tensor], y_pred: Any) -> Any:
    """Applies a function to the logits that a loss reads from predictions; NumPy in, NumPy out."""
    if isinstance(y_pred, np.ndarray):
        y_pred = targets.as_numpy("`y_pred`", y_pred)
        check_predictions(loss, y_pred)
    else:
        check = functools.partial(check_predictions, loss)
        y_pred = targets.as_predictions("y_pred", y_pred, check)

    def of_tensor(y_pred):
        return function(loss.logits(y_pred))

    return backends.of_rows(of_tensor, y_pred, loss.surrogate.axes)


def check_predictions(loss: BalancedLoss, y_pred: np.ndarray, least: int = 10) -> None:
    """Raises as `targets.check_predictions` does, unless the loss reads predictions its own way."""
    if type(loss).logits is BalancedLoss.logits:
        targets.check_predictions(y_pred, loss.from_logits, loss.surrogate.binary, least)


def has_posterior(loss: BalancedLoss) -> bool:
    """Returns whether the posterior fits the loss: not if a class overrides `call` alone."""
    by_call, by_posterior = (
        next(i for i, base in enumerate(type(loss).__mro__) if method in vars(base))
        for method in ("call", "log_posterior")
    )
    return by_posterior <= by_call


def check_posterior(loss: BalancedLoss) -> None:
    """Raises for a loss that overrides `call` without its posterior."""
    if not has_posterior(loss):
        owner = next(base for base in type(loss).__mro__ if "call" in vars(base))
        whose = "" if owner is type(loss) else f", whose `call` is that of {owner.__name__}"
        raise ValueError(
            "`loss` must override `log_posterior` too where it overrides `call`, or say "
            "`log_posterior = BalancedLoss.log_posterior` in its class, where that is right. "
            f"Received: {validation.kind_of(loss)}{whose}"
        )


@keras.saving.register_keras_serializable(package="keras_balanced")
class _Posterior(keras.layers.Layer):
    """The posterior of a loss, as the end of a functional model."""

    def __init__(self, loss, priors=None, temperature=1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        check_posterior(self.loss)
        surrogate = self.loss.surrogate
        surrogate.check_mix("priors", priors)
        self.priors = validation.as_json(priors, surrogate.binary)
        self.temperature = validation.check_number("temperature", temperature, *TEMPERATURES)

    def call(self, y_pred):
        return self.loss.posterior(y_pred, priors=self.priors, temperature=self.temperature)

    def compute_output_spec(self, y_pred):
        if not self.loss.surrogate.binary:
            targets.check_classes(y_pred, len(self.loss.surrogate.priors))
        dtype = "float64" if y_pred.dtype == "float64" else "float32"
        return keras.KerasTensor(y_pred.shape, dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "priors": self.priors,
            "temperature": self.temperature,
        }


def _serialized(value):
    """Returns an argument as JSON keeps it."""
    if hasattr(value, "get_config"):
        return keras.saving.serialize_keras_object(value)
    return validation.as_json(value)


def _deserialized(value):
    """Returns an argument as it was before `_serialized`."""
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


@keras.saving.register_keras_serializable(package="keras_balanced")
class GLALoss(BalancedLoss):
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

    With `tau = 1` the minimiser decides for the mix `priors^q * target_priors^(1 - q)`, which leans
    towards the frequent classes. On tables with wrong labels this lean explains most of the gain of
    `q = 0.3`: `target_priors` of `priors^0.3` at `q = 0` gain nearly as much. A large `q` can pay
    where labels of images are wrong uniformly and the network would memorise them: 0.7 or 0.9 with
    `tau=1`, chosen on held-out data. Then decide by the argmax of the logits: `posterior` is right
    at the minimum, and such a training stays far from it.

    Args:
        priors: Class mix of the data that the model sees, after any resampling: `K` counts or
            probabilities (1-D, positive), a dict or pandas Series of them by class id, or an
            adapted `ClassPrior`. 0 for a class that never occurs, which needs 0 in
            `target_priors` too.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        tau: Strength of the logit adjustment, a finite number. `None` is `1 / (1 - q)`; 0 gives
            the (generalized) cross-entropy.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        label_smoothing: Float in `[0, 1)`: how much of each target goes to all classes, in
            proportion to `priors / target_priors`: for balanced accuracy the class mix itself, for
            plain accuracy uniform, as in Keras. So smoothed, the best decision stays what it is
            for any number of classes, which under uniform smoothing it does not; `posterior` takes
            the mass away again.
        from_logits: Whether `y_pred` is logits (default) or probabilities. Logits are better: a
            model that ends in a softmax is refused under `True` where Keras marks its output:
            on TensorFlow and PyTorch, unless another layer or a cast follows. On JAX it cannot be
            seen.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, whose
            positions take no part in value, gradient or denominator. For integer `y_true` only.
        reduction: As in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` integer classes `(...)` or `(..., 1)`, or one-hot or soft targets
    `(..., K)`; `y_pred` `(..., K)`; `sample_weight` of any leading axes of the target. A label
    outside `[0, K)` raises an error that names it on TensorFlow (without XLA) and PyTorch, and
    makes the loss NaN elsewhere, as NaN logits do; a target that is masked or has weight 0 may be
    anything. Soft targets need not sum to 1.

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

    _binary = False

    def __init__(
        self,
        priors: ClassMix,
        q: float = 0.0,
        tau: float | None = None,
        *,
        target_priors: ClassMix | None = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        ignore_class: int | Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "gla_loss",
        dtype: str | None = None,
    ):
        surrogate = surrogates.gla_surrogate(
            priors,
            q,
            tau,
            target_priors=target_priors,
            label_smoothing=label_smoothing,
            binary=self._binary,
        )
        super().__init__(
            surrogate,
            from_logits=from_logits,
            ignore_class=ignore_class,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.priors = validation.as_json(priors, self._binary)
        self.q = surrogate.q
        self.tau = None if tau is None else float(tau)
        self.target_priors = validation.as_json(target_priors, self._binary)
        self.label_smoothing = surrogate.label_smoothing


@keras.saving.register_keras_serializable(package="keras_balanced")
class GCALoss(BalancedLoss):
    """Computes the generalized class-aware weighted (GCA) loss between labels and logits.

    It trains for balanced accuracy with a weight and a confidence margin for each class. At
    inference the decision is the argmax of `posterior`, or of the logits where the loss is
    Bayes-consistent.

    Formula:

    ```
    s    = softmax(y_pred / margins[y_true])[y_true]
    w    = target_priors[y_true] / priors[y_true]   # times margins[y_true] if consistent
    loss = w * (1 - s^q) / q                        # -w * log(s) at q = 0
    ```

    Without margins the loss is Bayes-consistent for every `q`; with margins and `consistent` it
    is at `q = 0`. With margins alone, the default, it is not, though `posterior` is right where
    the logits minimise the loss; in our benchmarks it trained better, since its weights are less
    extreme. With margins and `q > 0` there is no proof, and the minimum may lie at infinity, for
    two classes once `q * margins[i] > margins[j]`: keep to `q < min(margins) / max(margins)`.

    Args:
        priors: Class mix of the data that the model sees, after any resampling: `K` counts or
            probabilities (1-D, positive), a dict or pandas Series of them by class id, or an
            adapted `ClassPrior`. 0 for a class that never occurs, which needs 0 in
            `target_priors` too.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        margins: Confidence margin of each class, normalised to mean 1. `"cube_root"` (default) is
            `(target_priors^2 / priors)^(1/3)`: for balanced accuracy a rare class gets a larger
            one. More than 64 different ones are rounded to levels 5% apart, at most 64 of them,
            for the sake of `posterior` and soft targets. `None` is equal margins: the
            class-weighted (generalized) cross-entropy. Or `K` positive numbers.
        consistent: Whether to multiply the weights by the margins too.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        label_smoothing: Float in `[0, 1)`: how much of each target goes to all classes, in
            proportion to `priors / target_priors`: for balanced accuracy the class mix itself, for
            plain accuracy uniform, as in Keras. So smoothed, the best decision stays what it is
            for any number of classes, which under uniform smoothing it does not; `posterior` takes
            the mass away again.
        from_logits: Whether `y_pred` is logits (default) or probabilities. Logits are better: a
            model that ends in a softmax is refused under `True` where Keras marks its output:
            on TensorFlow and PyTorch, unless another layer or a cast follows. On JAX it cannot be
            seen.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, whose
            positions take no part in value, gradient or denominator. For integer `y_true` only.
        reduction: As in every Keras loss. Defaults to `"sum_over_batch_size"`.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` integer classes `(...)` or `(..., 1)`, or one-hot or soft targets
    `(..., K)`; `y_pred` `(..., K)`; `sample_weight` of any leading axes of the target. A label
    outside `[0, K)` raises an error that names it on TensorFlow (without XLA) and PyTorch, and
    makes the loss NaN elsewhere, as NaN logits do; a target that is masked or has weight 0 may be
    anything. Soft targets need not sum to 1.
    With margins, one-hot and soft targets take time and memory of `(..., G, K)` for `G` different
    margins: at most 64 by default.

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

    _binary = False

    def __init__(
        self,
        priors: ClassMix,
        q: float = 0.0,
        margins: Literal["cube_root"] | ArrayLike | None = "cube_root",
        consistent: bool = False,
        *,
        target_priors: ClassMix | None = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        ignore_class: int | Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "gca_loss",
        dtype: str | None = None,
    ):
        surrogate = surrogates.gca_surrogate(
            priors,
            q,
            margins,
            consistent,
            target_priors=target_priors,
            label_smoothing=label_smoothing,
            binary=self._binary,
        )
        super().__init__(
            surrogate,
            from_logits=from_logits,
            ignore_class=ignore_class,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.priors = validation.as_json(priors, self._binary)
        self.q = surrogate.q
        self.margins = validation.as_json(margins)
        self.consistent = bool(consistent)
        self.target_priors = validation.as_json(target_priors, self._binary)
        self.label_smoothing = surrogate.label_smoothing


@keras.saving.register_keras_serializable(package="keras_balanced")
class BinaryGLALoss(GLALoss):
    """Computes the GLA loss of one logit per example, or of independent labels.

    It is `GLALoss` with two classes and the logits `(0, y_pred)`, for each label by itself.

    Formula:

    ```
    s    = sigmoid(y_pred + tau * (logit(priors) - logit(target_priors)))   # 1 - s for label 0
    loss = (1 - s^q) / q                                                    # -log(s) at q = 0
    ```

    What is proved for two classes holds for the balanced loss of each label; the paper leaves
    multi-label problems open, and nothing is proved about labels together.

    Args:
        priors: Positive rate in `(0, 1)` of the data that the model sees: a number, or the two
            priors of a `ClassPrior(2)` or a dict or Series by label; for `L` labels a vector of
            `L` rates, or a `ClassPrior` adapted with `multi_label=True`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        tau: Strength of the logit adjustment, a finite number. `None` is `1 / (1 - q)`.
        target_priors: Positive rate to be good at, one for all or for each label. `None` is 0.5:
            balanced accuracy.
        label_smoothing: Float in `[0, 1)`: how much of each target goes to both labels, in
            proportion to prior over target prior, as in `GLALoss`.
        from_logits: Whether `y_pred` is logits (default) or probabilities. A model that ends in a
            sigmoid is refused under `True` where Keras marks its output, as in `GLALoss`.
        ignore_class: Integer label (-1, 255), or a list of several, whose positions take no part
            in value, gradient or denominator: labels that are not known.
        reduction: As in every Keras loss; `None` gives one value per label.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` and `y_pred` `(...)` or `(..., 1)` for one rate, `(..., L)` for a
    vector of them; labels 0, 1 or soft in between (others give NaN); `sample_weight` of any
    leading axes of the target.

    Raises:
        ValueError: for arguments out of their range, before anything trains.

    Example:

    >>> import numpy as np
    >>> loss = BinaryGLALoss(priors=0.1)
    >>> print(f"{float(loss(np.array([0, 1]), np.array([-2.0, -2.0], 'float32'))):.3f}")
    2.114

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
    """

    _binary = True

    def __init__(
        self,
        priors: ClassMix,
        q: float = 0.0,
        tau: float | None = None,
        *,
        target_priors: ClassMix | None = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        ignore_class: int | Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_gla_loss",
        dtype: str | None = None,
    ):
        super().__init__(
            priors,
            q,
            tau,
            target_priors=target_priors,
            label_smoothing=label_smoothing,
            from_logits=from_logits,
            ignore_class=ignore_class,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )


@keras.saving.register_keras_serializable(package="keras_balanced")
class BinaryGCALoss(GCALoss):
    """Computes the GCA loss of one logit per example, or of independent labels.

    It is `GCALoss` with two classes and the logits `(0, y_pred)`, for each label by itself.

    Formula:

    ```
    s    = sigmoid(y_pred / margins[1])             # sigmoid(-y_pred / margins[0]) for label 0
    w    = target_priors / priors                   # (1 - target_priors) / (1 - priors) for 0
    loss = w * (1 - s^q) / q                        # -w * log(s) at q = 0
    ```

    With `consistent`, `w` is multiplied by the label's margin. What is proved for two classes
    holds for the balanced loss of each label; the paper leaves multi-label problems open, and
    nothing is proved about labels together. With margins and `q > 0` see `GCALoss`.

    Args:
        priors: Positive rate in `(0, 1)` of the data that the model sees: a number, or the two
            priors of a `ClassPrior(2)` or a dict or Series by label; for `L` labels a vector of
            `L` rates, or a `ClassPrior` adapted with `multi_label=True`.
        q: Float in `[0, 1)`. 0 is the cross-entropy, towards 1 the mean absolute error.
        margins: `"cube_root"` (default) for the rule of `GCALoss` in each label, `None` for equal
            margins, or two positive numbers for label 0 and label 1. Normalised to mean 1.
        consistent: Whether to multiply the weights by the margins too.
        target_priors: Positive rate to be good at, one for all or for each label. `None` is 0.5:
            balanced accuracy.
        label_smoothing: Float in `[0, 1)`: how much of each target goes to both labels, in
            proportion to prior over target prior, as in `GLALoss`.
        from_logits: Whether `y_pred` is logits (default) or probabilities. A model that ends in a
            sigmoid is refused under `True` where Keras marks its output, as in `GCALoss`.
        ignore_class: Integer label (-1, 255), or a list of several, whose positions take no part
            in value, gradient or denominator: labels that are not known.
        reduction: As in every Keras loss; `None` gives one value per label.
        name: Optional name of the loss.
        dtype: `"float32"` (default) or `"float64"`.

    Call arguments: `y_true` and `y_pred` `(...)` or `(..., 1)` for one rate, `(..., L)` for a
    vector of them; labels 0, 1 or soft in between (others give NaN); `sample_weight` of any
    leading axes of the target.

    Raises:
        ValueError: for arguments out of their range, before anything trains.

    Example:

    >>> import numpy as np
    >>> loss = BinaryGCALoss(priors=0.1, margins=None)
    >>> print(f"{float(loss(np.array([0, 1]), np.array([-2.0, -2.0], 'float32'))):.3f}")
    5.353

    References:
        - [Cortes et al., 2025](https://arxiv.org/abs/2512.23947)
    """

    _binary = True

    def __init__(
        self,
        priors: ClassMix,
        q: float = 0.0,
        margins: Literal["cube_root"] | ArrayLike | None = "cube_root",
        consistent: bool = False,
        *,
        target_priors: ClassMix | None = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        ignore_class: int | Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_gca_loss",
        dtype: str | None = None,
    ):
        super().__init__(
            priors,
            q,
            margins,
            consistent,
            target_priors=target_priors,
            label_smoothing=label_smoothing,
            from_logits=from_logits,
            ignore_class=ignore_class,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )


# By the names under which searches know them, as in `surrogates.FAMILIES`.
LOSSES: dict[str, Callable[..., BalancedLoss]] = {"gla": GLALoss, "gca": GCALoss}
