"""Keras callbacks that look at every class."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_balanced import backends, losses, metrics, reading, targets, validation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PerClassReport"]


# Beyond, Keras's progress bar would print them all.
_MAX_LOGGED = 100
_BINARY = (
    *(keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy),
    *(keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy),
)


class PerClassReport(keras.callbacks.Callback):
    """Reports the recall of every class at the end of each epoch.

    It prints the classes with the worst recalls, and adds `val_worst_class_recall` to the logs, and
    where there are at most 100 classes `val_recall_<class name>` of each that has examples.
    `History`, and those that come after it in the list of callbacks, see them: `CSVLogger`,
    `TensorBoard`, `EarlyStopping` with `mode="max"`.

    A model of one logit has the classes 0 and 1. Of independent labels, told by a binary loss, each
    has its balanced accuracy in place of the recall: `val_balanced_accuracy_<class name>`.

    Args:
        validation_data: `(x, y)` or `(x, y, sample_weight)` arrays, or their batches: a
            `tf.data.Dataset`, `keras.utils.PyDataset`, PyTorch or grain loader that can be read
            again each epoch.
        class_names: Name of each class, `K` of them in order, or a dict of names and ids, such as
            the `class_indices` of Keras's generators; for one logit also that of label 1 alone.
            `None` is their numbers.
        num_classes_shown: How many classes to print, at least 1. Defaults to 5.
        ignore_class: Integer label that is not counted.
        output_name: Name of the output to report on, of a model with several in a dict; the labels
            are then a dict of the same names. `None` is the only output.
        loss: The loss that the model is trained with, to decide by its `posterior`, as an exported
            model does. `None` (default) is by the outputs as they are.
        threshold: Number that the prediction of label 1 exceeds, of one logit or of labels.
            `None` is 0.5 for probabilities, also those of `loss`, and 0 for logits.
        steps: How many batches to read each epoch, at most; needed where these have no end.

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
    >>> history = model.fit(x, np.eye(2)[y], callbacks=[report], verbose=0)
    Epoch 1: mean recall 0.500, the worst of 2 classes
      recall 0.000  ill
      recall 1.000  healthy
    >>> print(history.history["val_recall_ill"])
    [0.0]
    """

    def __init__(
        self,
        validation_data: Any,
        class_names: Sequence[str] | Mapping | None = None,
        num_classes_shown: int = 5,
        ignore_class: int | None = None,
        output_name: str | None = None,
        loss: losses.BalancedLoss | None = None,
        threshold: float | None = None,
        steps: int | None = None,
    ):
        super().__init__()
        reading.check(validation_data, steps)
        if hasattr(validation_data, "__next__"):
            raise ValueError(
                "`validation_data` must be a tuple of arrays, or batches that can be read each "
                f"epoch. Received: a {type(validation_data).__name__}"
            )
        self.validation_data = validation_data
        self.class_names = class_names
        self.num_classes_shown = validation.check_integer(
            "num_classes_shown", num_classes_shown, low=1
        )
        self.ignore_class = ignore_class
        self.output_name = output_name
        self.loss = loss
        self.threshold = threshold
        self.steps = steps

    def __deepcopy__(self, memo):
        # KerasTuner copies callbacks for each trial; the data need not be, and `tf.data` cannot.
        return copy.copy(self)

    def on_train_begin(self, logs=None):
        # So that what does not fit is found before an epoch has passed.
        compiled = self._of_output(getattr(self.model, "loss", None))
        for x, _, _ in self._batches():
            shape = self._outputs(x).shape
            num_outputs = shape[-1] if len(shape) > 1 else 1
            break
        else:
            raise ValueError("`validation_data` expected at least one batch. Received: none")
        if isinstance(compiled, losses.BalancedLoss) and compiled.from_logits:
            # On JAX the loss cannot see it.
            backends.refuse_probability_layer(self.model, self.output_name)
        self._metric = self._make_metric(num_outputs, compiled)
        self._score, names = "recall", max(num_outputs, 2)
        if isinstance(self._metric, metrics.BinaryBalancedAccuracy) and num_outputs > 1:
            self._score = "balanced_accuracy"
        self._names = validation.check_class_names(self.class_names, names, num_outputs == 1)

    def on_epoch_end(self, epoch, logs=None):
        self._metric.reset_state()
        batch = None
        for batch in self._batches():
            # Not `predict`, which loses the masks.
            self._metric.update_state(batch.y, self._outputs(batch.x), batch.sample_weight)
        if batch is None:
            raise ValueError(
                "`validation_data` must be batches that can be read again each epoch. Received: "
                f"none in epoch {epoch + 1}"
            )
        recalls, totals = (
            keras.ops.convert_to_numpy(values)
            for values in (self._metric.recalls(), self._metric.total)
        )
        if np.isnan(recalls).any():
            raise ValueError(
                f"`validation_data` must have labels in [0, {self._metric.num_classes}), or "
                "`ignore_class`. Received: others, or NaN weights"
            )
        if recalls.ndim == 2:  # Of 0 and 1 of each label.
            scores = keras.ops.convert_to_numpy(self._metric.balanced_accuracies())
            present = np.flatnonzero(totals.any(axis=-1))
        else:
            scores, present = recalls, np.flatnonzero(totals)
        worst = present[np.argsort(scores[present], kind="stable")]
        word, what = self._score.replace("_", " "), "labels" if recalls.ndim == 2 else "classes"
        mean = scores[present].mean() if present.size else 0.0
        print(f"Epoch {epoch + 1}: mean {word} {mean:.3f}, the worst of {len(present)} {what}")
        for class_id in worst[: self.num_classes_shown]:
            print(f"  {word} {scores[class_id]:.3f}  {self._names[class_id]}")
        hidden = np.count_nonzero(scores[worst[self.num_classes_shown :]] == 0)
        if hidden:
            print(f"  {word} 0.000  {hidden} more {what}")
        if logs is not None:
            if len(scores) <= _MAX_LOGGED:
                for class_id in present:
                    logs[f"val_{self._score}_{self._names[class_id]}"] = float(scores[class_id])
            least = float(scores[worst[0]]) if worst.size else 0.0
            logs[f"val_worst_{'label' if recalls.ndim == 2 else 'class'}_{self._score}"] = least

    def _make_metric(self, num_outputs, compiled):
        """Returns the metric that counts, for classes, one logit or independent labels."""
        loss = compiled if self.loss is None else self.loss
        if isinstance(loss, losses.BalancedLoss):
            binary, probabilities = loss.surrogate.binary, not loss.from_logits
        else:
            binary = _is_binary(loss)
            probabilities = binary and not getattr(loss, "from_logits", False)
        if num_outputs > 1 and not binary:
            return metrics.ClassRecall(num_outputs, ignore_class=self.ignore_class, loss=self.loss)
        threshold = self.threshold
        if threshold is None and self.loss is None:
            probabilities |= backends.probability_layer(self.model, self.output_name) is not None
            threshold = 0.5 if probabilities else 0.0
        return metrics.BinaryBalancedAccuracy(
            threshold,
            self.ignore_class,
            num_labels=num_outputs if num_outputs > 1 else None,
            loss=self.loss,
        )

    def _outputs(self, x):
        outputs = self.model(x, training=False)
        if self.output_name is not None and not isinstance(outputs, (dict, list, tuple)):
            raise ValueError(
                "`output_name` must be left out for a model of one output. Received: "
                f"output_name={self.output_name!r}"
            )
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

    def _batches(self):
        for x, y, weights in reading.read(
            self.validation_data, self.steps, output_name=self.output_name, batch_size=256
        ):
            # JAX takes no tensors of other libraries.
            x = keras.tree.map_structure(backends.own_tensor, x)
            y, weights = (
                None if part is None else targets.as_numpy("`validation_data`", part)
                for part in (y, weights)
            )
            yield reading.Batch(x, y, weights)


def _is_binary(loss):
    """Returns whether a loss of Keras, in any form of `compile`, is of independent labels."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        (loss,) = loss
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    return loss in _BINARY or type(loss) in _BINARY
