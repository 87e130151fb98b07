"""Keras layers for class priors."""

import numbers

import keras
import numpy as np
from keras import ops

from keras_balanced import functional


@keras.saving.register_keras_serializable(package="keras_balanced")
class ClassPrior(keras.layers.Layer):
    """Estimates the class priors from data with `adapt()`.

    Pass the adapted layer as `priors` to a loss, or call it on labels to map each to its prior,
    for instance in `dataset.map` (TensorFlow backend).

    Formula:

    ```
    priors = (counts + smoothing) / sum(counts + smoothing)
    ```

    Args:
        num_classes: Number of classes `K`, at least 2.
        smoothing: Examples added to the count of every class. 0 (default) takes the data as it
            is; above 0 a class with no example gets a prior that a loss can use.
        output_mode: What `call` gives for a label `y`: `"prior"` (`priors[y]`), `"log_prior"`
            (its natural logarithm) or `"weight"` (`1 / (K * priors[y])`, the balanced weight).
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

    def __init__(self, num_classes, smoothing=0.0, output_mode="prior", **kwargs):
        # Labels are ids: a cast to a half-precision compute dtype would corrupt them.
        super().__init__(autocast=False, **kwargs)
        self.num_classes = functional.check_num_classes(num_classes)
        self.smoothing = functional.check_number("smoothing", smoothing, low=0.0)
        if output_mode not in ("prior", "log_prior", "weight"):
            raise ValueError(
                '`output_mode` must be "prior", "log_prior" or "weight". '
                f"Received: output_mode={output_mode!r}"
            )
        self.output_mode = output_mode
        # NumPy, not a variable: float64 is exact up to 2**53 examples on every backend.
        self._counts = np.zeros(self.num_classes)
        self.built = True

    def adapt(self, data):
        """Counts the classes in `data`, in place of any former counts.

        Args:
            data: Labels as an array, tensor or list, or batches: a `tf.data.Dataset` or any other
                iterable whose elements are labels, `(x, labels)` or `(x, labels, weights)`.
                Labels are integers in `[0, K)` of any shape, or one-hot or soft targets
                `(..., K)` that sum to 1. Weights are not counted.

        Raises:
            ValueError: for labels that are none, or no labels at all; the former counts stay.
        """
        counts = np.zeros(self.num_classes)
        for labels in _batches_of_labels(data):
            counts += self._count(labels)
        if not counts.any():
            raise ValueError("`adapt` expected at least one label. Received: data with none")
        self._counts = counts

    @property
    def counts(self):
        """Examples of each class, `(K,)` float64."""
        return self._counts.copy()

    @property
    def priors(self):
        """Probability of each class, `(K,)` float64; raises before `adapt()`."""
        if not self._counts.any():
            raise ValueError(
                f"The `ClassPrior` layer {self.name!r} has not counted any labels. "
                "Call its `adapt(data)` first."
            )
        smoothed = self._counts + self.smoothing
        return smoothed / smoothed.sum()

    def call(self, labels):
        priors = functional.check_positive_vector("priors", self.priors)
        values = {
            "prior": priors,
            "log_prior": np.log(priors),
            "weight": 1.0 / (self.num_classes * priors),
        }[self.output_mode]
        table = ops.convert_to_tensor(values, dtype=self.compute_dtype)
        return ops.take(table, ops.cast(labels, "int32"))

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
        }

    def _count(self, labels):
        labels = ops.convert_to_numpy(labels)
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
