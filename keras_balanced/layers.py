"""Keras layers for class priors: estimated from data, applied after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, formula, surrogates, targets, validation
from keras_balanced.counting import LabelCounter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["ClassPrior", "LogitAdjustment"]


@keras.saving.register_keras_serializable(package="keras_balanced")
class ClassPrior(keras.layers.Layer):
    """Estimates the class priors from data with `adapt()`.

    Pass the adapted layer as `priors` to a loss, or call it on labels to map each to its prior,
    for instance in `dataset.map` (TensorFlow backend).

    Formula:

    ```
    priors = (counts + smoothing) / sum(counts + smoothing)
    priors = (positives + smoothing) / (examples + 2 smoothing)      # of each label: multi_label
    ```

    Counts are exact up to 2**53 examples per class, on every backend, and saved bit for bit. Like
    `adapt`, `load_weights` does not change functions that were traced before: inside a model that
    has predicted, call `model.make_predict_function(force=True)` after it.

    Args:
        num_classes: Number of classes `K`, at least 2; with `multi_label` of labels, at least 1.
        smoothing: Examples added to the count of every class. 0 (default) takes the data as it
            is; above 0 a class that is rare, with no example in these data, gets a prior that a
            loss can use. A class that never occurs (ids that start at 1, a reserved id) must not
            get one: it would win. Give the loss 0 for it in `target_priors` instead.
        output_mode: What `call` gives for a label `y`: `"prior"` (`priors[y]`), `"log_prior"`
            (its natural logarithm) or `"weight"` (`1 / (K * priors[y])`, the balanced weight).
        multi_label: Whether the labels are `(..., K)` of independent zeros and ones (or `(...)`
            when `K` is 1), and the priors their positive rates, for the binary losses. `call`
            then gives the prior of each zero or one, with `K = 2` in the weight.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. `call` gives it 0.
        counts: Counts that come from elsewhere (a database, Beam, Spark), in place of `adapt`:
            `(K,)`, or with `multi_label` `(K, 2)` of zeros and ones.
        **kwargs: `name` and `dtype` of the layer.

    Call arguments: integer labels of any shape. Returns the same shape in the layer's dtype, NaN
    for an invalid label and for an unseen class, which is not counted in the `K` of the weight
    either.

    Raises:
        ValueError: for bad arguments or labels, or if used before `adapt()`.

    Example:

    >>> import numpy as np
    >>> prior = ClassPrior(num_classes=2)
    >>> prior.adapt(np.array([0, 0, 0, 1]))
    >>> print(prior.counts, prior.priors)
    [3. 1.] [0.75 0.25]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        smoothing: float = 0.0,
        output_mode: Literal["prior", "log_prior", "weight"] = "prior",
        multi_label: bool = False,
        ignore_class: int | Sequence[int] | None = None,
        counts: ArrayLike | None = None,
        **kwargs: Any,
    ):
        # Labels are ids: a cast to a half-precision compute dtype would corrupt them.
        super().__init__(autocast=False, **kwargs)
        self.num_classes = validation.check_integer(
            "num_classes", num_classes, low=1 if multi_label else 2
        )
        self.smoothing = validation.check_number("smoothing", smoothing, low=0.0)
        if output_mode not in ("prior", "log_prior", "weight"):
            raise ValueError(
                '`output_mode` must be "prior", "log_prior" or "weight". '
                f"Received: output_mode={validation.show(output_mode)}"
            )
        self.output_mode = output_mode
        self.multi_label = multi_label
        self.ignore_class = validation.check_ignore_class(ignore_class)
        if counts is None:
            counts = np.zeros(self._counter.shape)
        self._counts = validation.check_counts("counts", counts, self._counter.shape)

    @property
    def _counter(self):
        return LabelCounter(self.num_classes, self.multi_label, self.ignore_class)

    def adapt(self, data: Any, sample_weight: Any = None, steps: int | None = None) -> None:
        """Counts the classes in `data`, in one pass, in place of any former counts.

        Adapt before the layer is used: a loss takes the priors when it is made, and a compiled
        function or `dataset.map` when it is traced.

        Args:
            data: Labels as an array, tensor or list, or whatever `fit` takes batches from: a
                `tf.data.Dataset`, `keras.utils.PyDataset`, PyTorch or grain loader or generator,
                whose elements are labels, `(x, labels)` or `(x, labels, weights)`. Labels are
                integers in `[0, K)` of any shape, or one-hot or soft targets `(..., K)` that sum to
                1, in batches; which of them is decided when all have been seen. With
                `multi_label` they are numbers in `[0, 1]`.
            sample_weight: Weights of the labels `(...)`, or of fewer leading axes; `None` counts
                every label once. With batches the weights are those in them, as in `fit`; `True`
                refuses batches without weights, and `False` counts every label once.
            steps: How many batches to read, at most; needed where `data` has no end.

        Raises:
            ValueError: for invalid labels, no labels at all, or data without end; the former
                counts stay.
        """
        counts = self._counter.count(data, sample_weight, steps, is_whole=True)
        if not counts.any():
            raise ValueError("`adapt` expected at least one label. Received: data with none")
        self._counts = counts

    def update_state(self, data: Any, sample_weight: Any = None, steps: int | None = None) -> None:
        """Adds labels to the counts. The arguments are those of `adapt`.

        It does not see the rest of the labels. So it refuses those that can be one-hot targets as
        well as class ids; ids of shape `(N, 1)` are clear.
        """
        counts = self._counter.count(data, sample_weight, steps, is_whole=False)
        self._counts = self._counts + counts

    def merge_state(self, layers: ClassPrior | Iterable[ClassPrior]) -> None:
        """Adds the counts of one or several other `ClassPrior` layers, as of other shards."""
        layers = [layers] if isinstance(layers, ClassPrior) else list(layers)
        for layer in layers:
            if not isinstance(layer, ClassPrior):
                raise ValueError(
                    "`merge_state` expected `ClassPrior` layers. Received: "
                    f"{validation.show(layer)}; labels go to `update_state`"
                )
            if layer._counts.shape != self._counts.shape:
                raise ValueError(
                    "`merge_state` expected layers of the same classes. "
                    f"Received: counts of shape {layer._counts.shape} for {self._counts.shape}"
                )
        self._counts = sum((layer._counts for layer in layers), start=self._counts)

    def reset_state(self) -> None:
        """Clears the counts."""
        # NumPy, not a variable: float64 is exact up to 2**53 examples on every backend.
        self._counts = np.zeros(self._counter.shape)

    @property
    def counts(self) -> np.ndarray:
        """Examples of each class, `(K,)` float64; with `multi_label` zeros and ones, `(K, 2)`."""
        return self._counts.copy()

    @property
    def priors(self) -> np.ndarray:
        """Probability of each class or positive label, `(K,)` float64; raises before `adapt()`."""
        priors = self._all_priors()
        return priors[:, 1] if self.multi_label else priors

    def _all_priors(self):
        if not self._counts.any():
            raise ValueError(
                f"The `ClassPrior` layer {self.name!r} has not counted any labels. "
                "Call its `adapt(data)` first."
            )
        smoothed = self._counts + self.smoothing
        return smoothed / smoothed.sum(axis=-1, keepdims=True)

    def __call__(self, labels, **kwargs):
        if backends.is_tf_symbol(labels) and backends.backend_name() != "tensorflow":
            raise ValueError(
                "`ClassPrior` runs in `dataset.map` on the TensorFlow backend only. Use "
                "`tf.gather(prior.priors, labels)` there. "
                f"Received: a tensor of `tf.data` on the {backends.backend_name()} backend"
            )
        return super().__call__(targets.as_tensor("labels", labels), **kwargs)

    def call(self, labels):
        priors = self._all_priors()
        occurs = priors > 0
        # An unseen label is treated as one out of range.
        priors = np.where(occurs, priors, np.nan)
        values = {
            "prior": priors,
            "log_prior": np.log(priors),
            "weight": 1.0 / (occurs.sum(axis=-1, keepdims=True) * priors),
        }[self.output_mode]
        table = ops.convert_to_tensor(values, dtype=self.compute_dtype)
        labels = targets.as_signed(labels)
        known, valid = targets.valid_ids(labels, table.shape[-1])
        if self.multi_label:
            outputs = ops.where(ops.equal(known, 1), table[:, 1], table[:, 0])
        else:
            outputs = ops.take(table, known)
        outputs = ops.where(valid, outputs, ops.full_like(outputs, np.nan))
        if self.ignore_class is None:
            return outputs
        ignored = targets.is_ignored(labels, self.ignore_class)
        return ops.where(ignored, ops.zeros_like(outputs), outputs)

    def compute_output_spec(self, labels):
        # Says the shape without calling: a loaded layer is built before its counts are there.
        return keras.KerasTensor(labels.shape, dtype=self.compute_dtype)

    def save_own_variables(self, store):
        store["counts"] = self._counts

    def load_own_variables(self, store):
        counts = np.array(store["counts"])
        self._counts = validation.check_counts("counts", counts, self._counts.shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "smoothing": self.smoothing,
            "output_mode": self.output_mode,
            "multi_label": self.multi_label,
            "ignore_class": self.ignore_class,
            "counts": self._counts.tolist() if self._counts.any() else None,
        }

    def __repr__(self) -> str:
        return validation.describe(self)


@keras.saving.register_keras_serializable(package="keras_balanced")
class LogitAdjustment(keras.layers.Layer):
    """Adjusts the logits of a model trained with plain cross-entropy to another class mix.

    Put it at the end of such a model: the argmax of its output is then the decision for the
    target mix. It is the identity in training. A model trained with a balanced loss needs none.

    Formula:

    ```
    outputs = logits - tau * (log(priors) - log(target_priors))
    outputs = logits - tau * (logit(priors) - logit(target_priors))   # one logit: rates
    ```

    With `from_logits=False` inputs and outputs are probabilities; the formula is of their logits.

    Args:
        priors: Class mix of the data that the model was trained on: `K` counts or probabilities
            (1-D, positive), a dict or pandas Series of them by class id, or an adapted
            `ClassPrior`. For one logit per example the positive rate, or a mix of two classes; for
            independent labels a `ClassPrior` adapted with `multi_label=True`.
        tau: Strength of the adjustment, a finite number.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        binary: Whether `priors` and `target_priors` are positive rates, of one logit or a vector
            of `L` for `L` labels. `None` (default) is what they look like: a number is a rate, a
            vector a class mix.
        from_logits: Whether the model gives logits (default), or probabilities, as one that ends
            in a softmax or sigmoid does.
        **kwargs: `name` and `dtype` of the layer.

    Call arguments: predictions `(..., K)` and `training`; for a rate or two classes also
    `(..., 1)`, for a rate `(...)`, for rates `(..., L)`. Returns their shape.

    Raises:
        ValueError: for arguments or shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = LogitAdjustment(priors=[90, 10])
    >>> logits = np.array([[1.0, 0.0]], "float32")
    >>> print(keras.ops.convert_to_numpy(layer(logits)).round(2))
    [[0.41 1.61]]

    References:
        - [Menon et al., 2021](https://arxiv.org/abs/2007.07314)
    """

    supports_masking = True

    def __init__(
        self,
        priors: ClassMix,
        tau: float = 1.0,
        *,
        target_priors: ClassMix | None = None,
        binary: bool | None = None,
        from_logits: bool = True,
        **kwargs: Any,
    ):
        # A cast would drop the mark that a softmax leaves on its output, and precision.
        super().__init__(autocast=False, **kwargs)
        if binary is None:
            binary = validation.is_number(priors) or getattr(priors, "multi_label", False)
        self.binary = bool(binary)
        self.surrogate = surrogates.gla_surrogate(
            priors, 0.0, tau, target_priors=target_priors, binary=self.binary
        )
        self.priors = validation.as_json(priors, self.binary)
        self.target_priors = validation.as_json(target_priors, self.binary)
        self.tau = float(tau)
        self.from_logits = bool(from_logits)
        if not from_logits:
            # An attribute, as of `Dense`, by which a softmax at the end of a model is found.
            self.activation = keras.activations.get("sigmoid" if self.binary else "softmax")

    def __call__(self, y_pred, **kwargs):
        def check(array):
            targets.check_predictions(array, self.from_logits, self.binary)

        return super().__call__(targets.as_predictions("logits", y_pred, check), **kwargs)

    def call(self, y_pred, training=False):
        if self.from_logits:
            backends.refuse_probabilities(y_pred)
        shift = self.surrogate.shift
        one_logit = self.binary or (len(shift) == 2 and y_pred.shape[-1:] == (1,))
        if one_logit:
            shift = shift[..., 1] - shift[..., 0]
        if self.surrogate.num_labels:
            targets.check_classes(y_pred, self.surrogate.num_labels)
        elif shift.ndim:
            targets.check_classes(y_pred, len(shift), binary="the positive rate as `priors`")
        if training:
            return y_pred
        dtype = self._dtype_of(y_pred)
        if self.from_logits:
            return self._adjusted(ops.cast(y_pred, dtype), shift)
        logits = self._adjusted(formula.as_logits(y_pred, one_logit, from_logits=False), shift)
        activation = keras.activations.sigmoid if one_logit else keras.activations.softmax
        return ops.cast(activation(logits), dtype)

    def _adjusted(self, logits, shift):
        return formula.mask_absent(logits - backends.like(logits, shift), self.surrogate)

    def _dtype_of(self, y_pred):
        dtype = keras.backend.standardize_dtype(y_pred.dtype)
        return dtype if keras.backend.is_float_dtype(dtype) else self.compute_dtype

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, y_pred, training=False):
        if self.from_logits:
            backends.refuse_symbolic_probabilities(y_pred)
        super().compute_output_spec(y_pred, training=training)  # Raises for shapes.
        return keras.KerasTensor(y_pred.shape, self._dtype_of(y_pred))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "priors": self.priors,
            "target_priors": self.target_priors,
            "tau": self.tau,
            "binary": self.binary,
            "from_logits": self.from_logits,
        }

    def __repr__(self) -> str:
        return validation.describe(self)


def refuse_adjusted_twice(
    model: keras.Model, loss: BalancedLoss, output_name: str | None = None
) -> None:
    """Raises if a model ends in a `LogitAdjustment`, and its loss takes the logits for others."""
    at_end = backends.layers_from_the_end(model, output_name)
    # A model whose loss takes probabilities ends in a softmax: what counts comes before it.
    layer = next((layer for layer in at_end if not backends.is_softmax(layer)), None)
    if not isinstance(layer, LogitAdjustment) or np.ptp(layer.surrogate.shift) == 0:
        return
    if np.ptp(loss.surrogate.shift[loss.surrogate.occurs]) < 1e-9:
        raise ValueError(
            "`loss` must be that of the adjusted logits where the model ends in a "
            "`LogitAdjustment`, such as `GLALoss(priors)` with its default `tau`; otherwise they "
            f"are adjusted twice. Received: the layer {layer.name!r} and {loss!r}"
        )
