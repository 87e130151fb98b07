"""Streaming metrics that count every class the same.

Each keeps two sums a class, the weight of its examples and of those predicted right, and reads
its result off their ratio: nothing is averaged over batches, and replicas merge by addition.
"""

import keras
from keras import ops

from keras_balanced import functional, validation


class _ClassRecalls(keras.metrics.Metric):
    """Per-class sums; subclasses say what to read off them in `result`."""

    def __init__(self, num_classes, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.num_classes = validation.check_integer("num_classes", num_classes, low=2)
        self.correct = self.add_variable((self.num_classes,), "zeros", self.dtype, name="correct")
        self.total = self.add_variable((self.num_classes,), "zeros", self.dtype, name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets
                `(..., K)`, which count as fractions of examples.
            y_pred: Logits or probabilities `(..., K)`.
            sample_weight: Optional weights `(...)`, or of fewer leading axes.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        y_true, sparse = functional.match_shapes(
            ops.convert_to_tensor(y_true), y_pred, self.num_classes
        )
        predicted = ops.reshape(ops.argmax(y_pred, axis=-1), (-1,))
        shape = ops.shape(y_pred)[:-1]
        if sample_weight is None:
            weights = ops.ones(shape, self.dtype)
        else:
            weights = functional.match_weights(ops.cast(sample_weight, self.dtype), shape)
        weights = ops.reshape(weights, (-1,))
        if sparse:
            labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
            hits = weights * ops.cast(ops.equal(labels, predicted), self.dtype)
            self.total.assign_add(ops.segment_sum(weights, labels, self.num_classes))
            self.correct.assign_add(ops.segment_sum(hits, labels, self.num_classes))
        else:
            targets = ops.cast(ops.reshape(y_true, (-1, self.num_classes)), self.dtype)
            targets *= weights[:, None]
            hits = ops.take_along_axis(targets, predicted[:, None], axis=-1)[:, 0]
            self.total.assign_add(ops.sum(targets, axis=0))
            self.correct.assign_add(ops.segment_sum(hits, predicted, self.num_classes))

    def recalls(self):
        """Returns the recall of each class, `(K,)`; 0 for a class that has not come up."""
        return ops.divide_no_nan(self.correct, self.total)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="keras_balanced")
class BalancedAccuracy(_ClassRecalls):
    """Computes the balanced accuracy: the mean recall over the classes.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    result    = mean of recall over the classes that have come up
    ```

    As in `sklearn.metrics.balanced_accuracy_score`, classes without an example are left out. With
    no example at all the result is 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples a class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = BalancedAccuracy(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], "float32")
    >>> print(float(metric(np.array([0, 0, 0, 1]), logits)))
    0.5
    """

    def __init__(self, num_classes, name="balanced_accuracy", dtype=None):
        super().__init__(num_classes, name, dtype)

    def result(self):
        present = ops.cast(ops.greater(self.total, 0), self.dtype)
        return ops.divide_no_nan(ops.sum(self.recalls()), ops.sum(present))


@keras.saving.register_keras_serializable(package="keras_balanced")
class ClassRecall(_ClassRecalls):
    """Computes the recall of one class, or of every class.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    ```

    As in `sklearn.metrics.recall_score`, a class without an example has recall 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        class_id: The class whose recall is wanted. `None` (default) gives all, as `(K,)`.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples a class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`, or an unknown class.

    Example:

    >>> import numpy as np
    >>> metric = ClassRecall(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], "float32")
    >>> print(keras.ops.convert_to_numpy(metric(np.array([0, 0, 0, 1]), logits)).round(2))
    [0.67 0.  ]
    """

    def __init__(self, num_classes, class_id=None, name="class_recall", dtype=None):
        super().__init__(num_classes, name, dtype)
        if class_id is not None and class_id not in range(num_classes):
            raise ValueError(
                f"`class_id` must be None or an integer in [0, {num_classes}). "
                f"Received: class_id={class_id!r}"
            )
        self.class_id = class_id

    def result(self):
        recalls = self.recalls()
        return recalls if self.class_id is None else recalls[self.class_id]

    def get_config(self):
        return {**super().get_config(), "class_id": self.class_id}
