"""Keras layers for class priors: estimated from data, applied after training."""

import numbers

import keras
import numpy as np
from keras import ops

from keras_balanced import functional, validation


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

    Args:
        num_classes: Number of classes `K`, at least 2; with `multi_label` of labels, at least 1.
        smoothing: Examples added to the count of every class. 0 (default) takes the data as it
            is; above 0 a class with no example gets a prior that a loss can use.
        output_mode: What `call` gives for a label `y`: `"prior"` (`priors[y]`), `"log_prior"`
            (its natural logarithm) or `"weight"` (`1 / (K * priors[y])`, the balanced weight).
        multi_label: Whether the labels are `(..., K)` of independent zeros and ones (or `(...)`
            when `K` is 1), and the priors their positive rates, for the binary losses. `call`
            then gives the prior of each zero or one, with `K = 2` in the weight.
        **kwargs: `name` and `dtype` of the layer.

    Call arguments: integer labels of any shape. Returns the same shape in the layer's dtype.

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
        self, num_classes, smoothing=0.0, output_mode="prior", multi_label=False, **kwargs
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
                f"Received: output_mode={output_mode!r}"
            )
        self.output_mode = output_mode
        self.multi_label = multi_label
        # NumPy, not a variable: float64 is exact up to 2**53 examples on every backend. Of labels
        # the counts of zeros and ones.
        self._counts = np.zeros((self.num_classes, 2) if multi_label else self.num_classes)
        self.built = True

    def adapt(self, data):
        """Counts the classes in `data`, in place of any former counts.

        Args:
            data: Labels as an array, tensor or list, or batches: a `tf.data.Dataset` or any other
                iterable whose elements are labels, `(x, labels)` or `(x, labels, weights)`.
                Labels are integers in `[0, K)` of any shape, or one-hot or soft targets
                `(..., K)` that sum to 1; with `multi_label` numbers in `[0, 1]`. Weights are not
                counted.

        Raises:
            ValueError: for labels that are none, or no labels at all; the former counts stay.
        """
        count = self._count_labels if self.multi_label else self._count_classes
        counts = np.zeros_like(self._counts)
        for labels in _batches_of_labels(data):
            counts += count(ops.convert_to_numpy(labels))
        if not counts.any():
            raise ValueError("`adapt` expected at least one label. Received: data with none")
        self._counts = counts

    @property
    def counts(self):
        """Examples of each class (with `multi_label`, positives of each label), `(K,)` float64."""
        return (self._counts[:, 1] if self.multi_label else self._counts).copy()

    @property
    def priors(self):
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

    def call(self, labels):
        priors = self._all_priors()
        if not priors.all():
            raise ValueError(
                f"Every class needs an example, or `smoothing`. Received: priors={priors.tolist()}"
            )
        values = {
            "prior": priors,
            "log_prior": np.log(priors),
            "weight": 1.0 / (priors.shape[-1] * priors),
        }[self.output_mode]
        table = ops.convert_to_tensor(values, dtype=self.compute_dtype)
        labels = ops.cast(labels, "int32")
        if self.multi_label:
            return ops.where(ops.equal(labels, 1), table[:, 1], table[:, 0])
        return ops.take(table, labels)

    def compute_output_spec(self, labels):
        # Says the shape without calling: a loaded layer is built before its counts are there.
        return keras.KerasTensor(labels.shape, dtype=self.compute_dtype)

    def save_own_variables(self, store):
        store["counts"] = self._counts

    def load_own_variables(self, store):
        self._counts = np.array(store["counts"])

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "smoothing": self.smoothing,
            "output_mode": self.output_mode,
            "multi_label": self.multi_label,
        }

    def _count_labels(self, labels):
        if self.num_classes == 1 and labels.shape[-1:] != (1,):
            labels = labels[..., None]
        in_range = labels.dtype.kind in "biuf" and ((labels >= 0) & (labels <= 1)).all()
        if labels.shape[-1:] != (self.num_classes,) or not in_range:
            raise ValueError(
                f"Labels must be numbers in [0, 1] of shape (..., {self.num_classes}). "
                f"Received: labels of dtype {labels.dtype} and shape {labels.shape}"
            )
        labels = labels.reshape(-1, self.num_classes).astype("float64")
        return np.stack([(1.0 - labels).sum(axis=0), labels.sum(axis=0)], axis=-1)

    def _count_classes(self, labels):
        num_classes = self.num_classes
        if labels.ndim > 1 and labels.shape[-1] == num_classes:
            targets = labels.reshape(-1, num_classes).astype("float64")
            if not np.allclose(targets.sum(axis=-1), 1.0, atol=1e-3) or (targets < 0).any():
                raise ValueError(
                    f"Labels of shape (..., {num_classes}) are read as one-hot or soft targets, "
                    "whose last axis must be non-negative and sum to 1. Flatten them if they are "
                    f"integer classes. Received: labels of shape {labels.shape}"
                )
            return targets.sum(axis=0)
        classes = labels.ravel()
        if classes.dtype.kind not in "biuf" or (classes != np.floor(classes)).any():
            raise ValueError(
                "Labels must be integer classes. "
                f"Received: labels of dtype {classes.dtype}, {classes[:5]}"
            )
        bad = np.unique(classes[(classes < 0) | (classes >= num_classes)])
        if bad.size:
            raise ValueError(
                f"Labels must be in [0, {num_classes}). Received: labels {bad[:10].tolist()}"
            )
        return np.bincount(classes.astype("int64"), minlength=num_classes)


@keras.saving.register_keras_serializable(package="keras_balanced")
class LogitAdjustment(keras.layers.Layer):
    """Adjusts the logits of a model trained with plain cross-entropy to another class mix.

    Put it at the end of such a model: the argmax of its output is then the decision for the
    target mix. It is the identity in training. A model trained with a balanced loss needs none.

    Formula:

    ```
    outputs = logits - tau * (log(priors) - log(target_priors))
    ```

    Args:
        priors: Class mix of the data that the model was trained on: `K` counts or probabilities
            (1-D, positive), or an adapted `ClassPrior`.
        target_priors: Class mix to be good at, as `priors`. `None` is uniform: balanced accuracy.
        tau: Strength of the adjustment, a finite number.
        **kwargs: `name` and `dtype` of the layer.

    Call arguments: logits `(..., K)` and `training`. Returns `(..., K)`.

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

    def __init__(self, priors, target_priors=None, tau=1.0, **kwargs):
        super().__init__(**kwargs)
        self.surrogate = functional.gla_surrogate(priors, 0.0, tau, target_priors)
        self.priors = validation.plain(priors)
        self.target_priors = validation.plain(target_priors)
        self.tau = float(tau)
        self.built = True

    def call(self, logits, training=False):
        functional.check_classes(logits, len(self.surrogate.priors))
        if training:
            return logits
        return logits - ops.convert_to_tensor(self.surrogate.shift, dtype=logits.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "priors": self.priors,
            "target_priors": self.target_priors,
            "tau": self.tau,
        }


def _batches_of_labels(data):
    """Yields the label arrays in `data`: itself, or those of its batches."""
    if isinstance(data, tuple):
        raise ValueError(
            "`adapt` expected labels or batches. Received: a tuple; pass only its labels, "
            "as in `adapt(y_train)`"
        )
    is_list_of_labels = isinstance(data, list) and data and isinstance(data[0], numbers.Number)
    if hasattr(data, "shape") or is_list_of_labels:
        yield data
        return
    for batch in data:
        if isinstance(batch, tuple):
            if len(batch) not in (2, 3):
                raise ValueError(
                    "`adapt` expected batches of labels, (x, labels) or (x, labels, weights). "
                    f"Received: a tuple of {len(batch)}"
                )
            batch = batch[1]
        yield batch
