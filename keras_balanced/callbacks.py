"""Keras callbacks that look at every class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_balanced import backends, batches, losses, metrics, targets, validation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PerClassReport"]


class PerClassReport(keras.callbacks.Callback):
    """Prints the classes with the worst recalls at the end of each epoch.

    Args:
        validation_data: `(x, y)` or `(x, y, sample_weight)` arrays, or their batches: a
            `tf.data.Dataset`, `keras.utils.PyDataset` or PyTorch `DataLoader` that can be read
            again each epoch.
        class_names: Name of each class, `K` of them. `None` is their numbers.
        num_classes_shown: How many classes to print, at least 1. Defaults to 5.
        ignore_class: Integer label that is not counted.
        output_name: Name of the output to report on, of a model with several in a dict; the labels
            are then a dict of the same names. `None` is the only output.

    Raises:
        ValueError: for bad arguments, or names that do not fit the model's outputs.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="identity")]
    ... )
    >>> model.compile(keras.optimizers.SGD(1e-3), "mse")
    >>> x, y = np.array([[3.0, 1.0], [2.0, 0.0]], "float32"), np.array([0, 1])
    >>> report = PerClassReport((x, y), class_names=["healthy", "ill"])
    >>> _ = model.fit(x, np.eye(2)[y], callbacks=[report], verbose=0)
    Epoch 1: the worst of 2 classes
      recall 0.000  ill
      recall 1.000  healthy
    """

    def __init__(
        self,
        validation_data: Any,
        class_names: Sequence[str] | None = None,
        num_classes_shown: int = 5,
        ignore_class: int | None = None,
        output_name: str | None = None,
    ):
        super().__init__()
        arrays_in_a_list = isinstance(validation_data, list) and hasattr(
            next(iter(validation_data), None), "shape"
        )
        if arrays_in_a_list or iter(validation_data) is validation_data:
            raise ValueError(
                "`validation_data` must be a tuple of arrays, or batches that can be read each "
                f"epoch. Received: a {type(validation_data).__name__}"
            )
        self.validation_data = validation_data
        self.class_names = None if class_names is None else list(class_names)
        self.num_classes_shown = validation.check_integer(
            "num_classes_shown", num_classes_shown, low=1
        )
        self.ignore_class = ignore_class
        self.output_name = output_name

    def on_train_begin(self, logs=None):
        # So that what does not fit is found before an epoch has passed.
        loss = self._of_output(getattr(self.model, "loss", None))
        if isinstance(loss, losses.BalancedLoss) and loss.from_logits:
            # On JAX the loss cannot see it.
            backends.refuse_probability_layer(self.model, self.output_name)
        for x, _, _ in self._batches():
            num_classes = self._logits(x).shape[-1]
            break
        else:
            raise ValueError("`validation_data` expected at least one batch. Received: none")
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(
                f"`class_names` must have a name for each of the {num_classes} classes. "
                f"Received: {len(self.class_names)} names"
            )
        if num_classes < 2:
            raise ValueError(
                "`PerClassReport` needs a model with an output for each class. "
                "Received: a model with one output per example"
            )
        self._recall = metrics.ClassRecall(num_classes, ignore_class=self.ignore_class)

    def on_epoch_end(self, epoch, logs=None):
        self._recall.reset_state()
        for x, y, weights in self._batches():
            # Not `predict`, which loses the masks.
            y, weights = (self._of_output(part) for part in (y, weights))
            self._recall.update_state(y, self._logits(x), weights)
        recalls = keras.ops.convert_to_numpy(self._recall.result())
        if np.isnan(recalls).any():
            raise ValueError(
                f"`validation_data` must have labels in [0, {len(recalls)}), or `ignore_class`. "
                "Received: others, or NaN weights"
            )
        present = np.flatnonzero(keras.ops.convert_to_numpy(self._recall.total))
        worst = present[np.argsort(recalls[present], kind="stable")][: self.num_classes_shown]
        print(f"Epoch {epoch + 1}: the worst of {len(present)} classes")
        for class_id in worst:
            name = class_id if self.class_names is None else self.class_names[class_id]
            print(f"  recall {recalls[class_id]:.3f}  {name}")

    def _logits(self, x):
        outputs = self.model(x, training=False)
        if isinstance(outputs, (dict, list, tuple)) and (
            not isinstance(outputs, dict) or self.output_name not in outputs
        ):
            names = list(outputs) if isinstance(outputs, dict) else "without names"
            raise ValueError(
                "`output_name` must be one of the outputs of the model, in a dict. Received: "
                f"output_name={self.output_name!r} and outputs {names}"
            )
        return self._of_output(outputs)

    def _of_output(self, values):
        return values.get(self.output_name) if isinstance(values, dict) else values

    def _batches(self, batch_size=256):
        data = self.validation_data
        if isinstance(data, tuple):
            # A list of inputs is several; one of labels or weights is an array.
            x, *rest = data
            rest = [np.asarray(part) if isinstance(part, list) else part for part in rest]
            rest = [
                keras.tree.map_structure(lambda a: targets.as_numpy("`validation_data`", a), part)
                for part in rest
                if part is not None
            ]
            arrays = (keras.tree.map_structure(np.asarray, x), *rest)
            data = (
                keras.tree.map_structure(lambda a, i=i: a[i : i + batch_size], arrays)
                for i in range(0, len(keras.tree.flatten(arrays[1])[0]), batch_size)
            )
        for batch in batches.iterate_batches(data):
            # As arrays: JAX takes no tensors of other libraries.
            batch = keras.tree.map_structure(keras.ops.convert_to_numpy, batch)
            yield keras.utils.unpack_x_y_sample_weight(batch)
