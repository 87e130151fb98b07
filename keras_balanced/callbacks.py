"""Keras callbacks that look at every class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_balanced import backends, losses, metrics, reading, targets, validation
from keras_balanced.decisions import Decision, check_decision
from keras_balanced.layers import refuse_adjusted_twice

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PerClassReport"]


def __dir__() -> list[str]:
    return __all__


# Keras's progress bar prints every log: more would flood it.
_MAX_LOGGED = 100
_BINARY = (
    *(keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy),
    *(keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy),
)


class PerClassReport(keras.callbacks.Callback):
    """Reports the recall of every class at the end of each epoch.

    It prints the classes with the worst recalls, and adds `val_worst_class_recall` to the logs, and
    where there are at most 100 classes `val_recall_<class name>` of each: NaN of one without an
    example. `History`, and those that come after it in the list of callbacks, see them:
    `CSVLogger`, `TensorBoard`, `EarlyStopping` with `mode="max"`.

    In an epoch at whose end `fit` validates, it looks at the model as `fit` does: a callback that
    swaps the weights for their averages, as `SwapEMAWeights`, does so for both. In any other epoch
    it looks at the weights that the model has at its end.

    A model of one logit, or of one at each position, has the classes 0 and 1. Of independent
    labels each has its balanced accuracy in place of the recall:
    `val_balanced_accuracy_<class name>`. A binary loss of ours tells labels from positions by its
    rates, one or a vector; under a binary loss of Keras outputs `(B, L)` are those of labels,
    unless a `loss` of one rate is given, and `(B, T, 1)` positions.

    Args:
        validation_data: `(x, y)` or `(x, y, sample_weight)` arrays, or their batches: a
            `tf.data.Dataset`, `keras.utils.PyDataset`, PyTorch or grain loader that can be read
            again each epoch.
        class_names: Name of each class, `K` of them in order, or a dict of names and ids, such as
            the `class_indices` of Keras's generators; for one logit also that of label 1 alone.
            `None` is their numbers.
        num_classes_shown: How many classes to print, at least 1. Defaults to 5.
        ignore_class: Integer label, or a list of several, that is not counted.
        output_name: Name of the output to report on, of a model with several in a dict; the labels
            are then a dict of the same names. `None` is the only output.
        decision: `Decision` by which to predict, or a loss, which stands for its default one.
            `None` (default) is that of the compiled loss, if it is one of ours; otherwise the
            largest output, or one above 0, or 0.5 if it is a probability.
        steps: How many batches to read each epoch, at most; needed where these have no end.
        verbose: 1 (default) prints the report, 0 only adds it to the logs.

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
    Epoch 1: mean recall 0.500, all 2 classes, by the largest output
      recall 0.000  ill
      recall 1.000  healthy
    >>> print(history.history["val_recall_ill"])
    [0.0]
    """

    def __init__(
        self,
        validation_data: Any,
        *,
        class_names: Sequence[str] | Mapping | None = None,
        decision: Decision | losses.BalancedLoss | None = None,
        num_classes_shown: int = 5,
        ignore_class: int | Sequence[int] | None = None,
        output_name: str | None = None,
        steps: int | None = None,
        verbose: int = 1,
    ):
        super().__init__()
        if isinstance(class_names, (list, tuple, np.ndarray)):
            _check_names(class_names)
        reading.check(validation_data, steps)
        if hasattr(validation_data, "__next__"):
            raise ValueError(
                "`validation_data` must be a tuple of arrays, or batches that can be read each "
                f"epoch. Received: {validation.kind_of(validation_data)}"
            )
        if isinstance(validation_data, tuple):
            _check_numbers(validation_data[1:])
        self.validation_data = validation_data
        self.class_names = class_names
        self.num_classes_shown = validation.check_integer(
            "num_classes_shown", num_classes_shown, low=1
        )
        self.ignore_class = validation.check_ignore_class(ignore_class)
        self.output_name = output_name
        self.decision = check_decision("decision", decision)
        self._has_warned = False
        self.steps = steps
        self.verbose = validation.check_integer("verbose", verbose, low=0)
        self._counted = True  # Until an epoch begins.

    def __deepcopy__(self, memo):
        # KerasTuner copies callbacks for each trial; the data need not be, and `tf.data` cannot.
        return copy.copy(self)

    def on_train_begin(self, logs=None):
        # Data that do not fit should be found before an epoch has passed.
        compiled = self._of_output(getattr(self.model, "loss", None))
        first = next(self._batches(), None)
        if first is None:
            raise ValueError("`validation_data` expected at least one batch. Received: none")
        shape = self._outputs(first[0]).shape
        if isinstance(compiled, losses.BalancedLoss) and compiled.from_logits:
            # On JAX the loss cannot see it.
            backends.refuse_probability_layer(self.model, self.output_name)
        self._metric = self._make_metric(shape, compiled)
        num_labels = getattr(self._metric, "num_labels", None)
        one_logit = isinstance(self._metric, metrics.BinaryBalancedAccuracy) and not num_labels
        self._score = "balanced_accuracy" if num_labels else "recall"
        names = num_labels or self._metric.num_classes
        self._names = validation.check_class_names(self.class_names, names, one_logit)
        self._count([first])

    def on_epoch_begin(self, epoch, logs=None):
        self._counted = False

    def on_test_batch_begin(self, batch, logs=None):
        # Every callback has begun the validation, and none has ended it: the model has the weights
        # that `val_*` describe. On JAX it loses them with the first batch.
        if not self._counted:
            self._count(self._batches())

    def on_epoch_end(self, epoch, logs=None):
        if not self._counted:
            self._count(self._batches())
        recalls, totals = (
            keras.ops.convert_to_numpy(values)
            for values in (self._metric.recalls(), self._metric.total)
        )
        scores, present = recalls, totals != 0
        if recalls.ndim == 2:  # Of 0 and 1 of each label.
            scores = keras.ops.convert_to_numpy(self._metric.balanced_accuracies())
            present = present.any(axis=-1)
        places = np.flatnonzero(present)
        worst = places[np.argsort(scores[places], kind="stable")]
        what = ("labels", "label") if recalls.ndim == 2 else ("classes", "class")
        if self.verbose:
            self._print(epoch, scores, worst, what[0])
        if logs is not None:
            if len(scores) <= _MAX_LOGGED:
                for name, score in zip(self._names, np.where(present, scores, np.nan), strict=True):
                    logs[f"val_{self._score}_{name}"] = float(score)
            least = float(scores[worst[0]]) if worst.size else 0.0
            logs[f"val_worst_{what[1]}_{self._score}"] = least

    def on_train_end(self, logs=None):
        self._counted = True

    def _print(self, epoch, scores, worst, what):
        """Prints the scores of the worst classes; `worst` are those with examples, in order."""
        word, number = self._score.replace("_", " "), self.num_classes_shown
        mean = scores[worst].mean() if worst.size else 0.0
        shown = "the worst of" if len(worst) > number else "all"
        found = f"mean {word} {mean:.3f}, {shown} {len(worst)} {what}"
        print(f"Epoch {epoch + 1}: {found}, by {self._rule}")
        for class_id in worst[:number]:
            print(f"  {word} {scores[class_id]:.3f}  {self._names[class_id]}")
        hidden = np.count_nonzero(scores[worst[number:]] == 0)
        if hidden:
            print(f"  {word} 0.000  {hidden} more {what}")

    def _count(self, data):
        """Counts the examples and correct predictions of each class, with the current weights."""
        self._counted = True
        self._metric.reset_state()
        batch = None
        for batch in data:
            # `predict` would lose the masks.
            self._metric.update_state(batch.y, self._outputs(batch.x), batch.sample_weight)
        if batch is None:
            raise ValueError(
                "`validation_data` must be batches that can be read again each epoch. Received: "
                "none the second time"
            )
        if np.isnan(keras.ops.convert_to_numpy(self._metric.total)).any():
            raise ValueError(
                f"`validation_data` must have labels in [0, {self._metric.num_classes}), or "
                "`ignore_class`. Received: others, or NaN weights"
            )

    def _decide(self, compiled):
        """Returns the decision: that given, or that of the compiled loss if it is one of ours."""
        decision, is_ours = self.decision, isinstance(compiled, losses.BalancedLoss)
        if decision is None and is_ours and losses.has_posterior(compiled):
            decision = Decision(compiled)
        if decision is not None:
            refuse_adjusted_twice(self.model, decision.loss, self.output_name)
            if not self._has_warned:
                metrics.warn_of_other_decisions(self.model, decision, self.output_name)
            self._has_warned = True
        return decision

    def _make_metric(self, shape, compiled):
        """Returns the metric that counts, for classes, one logit or independent labels."""
        decision = self._decide(compiled)
        num_outputs = shape[-1] if len(shape) > 1 else 1
        num_labels = num_outputs if num_outputs > 1 else None
        loss = compiled if decision is None else decision.loss
        if isinstance(loss, losses.BalancedLoss):
            binary, num_labels = loss.surrogate.binary, loss.surrogate.num_labels
        else:
            binary = _is_binary(loss)
        if num_outputs > 1 and not binary:
            self._rule = "the largest output" if decision is None else str(decision)
            return metrics.ClassRecall(
                num_outputs, decision=decision, ignore_class=self.ignore_class
            )
        if num_labels and len(shape) > 2 and not isinstance(loss, losses.BalancedLoss):
            raise ValueError(
                "`decision` must say what outputs of more than two axes are: positions of one "
                "label, as `decision=BinaryGLALoss(rate)` says (or outputs of one more axis, of "
                f"1), or labels, as one of a vector of rates says. Received: outputs of shape "
                f"{shape} and a loss of Keras"
            )
        if decision is None:
            probabilities = binary and not getattr(loss, "from_logits", False)
            probabilities |= backends.probability_layer(self.model, self.output_name) is not None
            of_half = losses.BinaryGLALoss(0.5, from_logits=not probabilities)
            decision = Decision(of_half, by="logits")
            self._rule = "an output above 0.5" if probabilities else "an output above 0"
        else:
            self._rule = str(decision)
        return metrics.BinaryBalancedAccuracy(
            num_labels, decision=decision, ignore_class=self.ignore_class
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


def _check_numbers(parts):
    """Raises unless the labels and weights of validation data are numbers."""
    for part in parts:
        if isinstance(part, list):
            part = np.asarray(part)
        for values in keras.tree.flatten(dict(part) if isinstance(part, Mapping) else part):
            if values is not None:
                targets.as_numpy("`validation_data`", values)


def _check_names(names):
    """Raises for names that are not strings: most likely they are labels."""
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            "`class_names` must be strings, one for each class. Received: "
            f"{validation.show(names)}. Labels belong to the data, as in "
            "`PerClassReport((x_val, y_val))`"
        )


def _is_binary(loss):
    """Returns whether a loss of Keras, in any form of `compile`, is of independent labels."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        (loss,) = loss
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    return loss in _BINARY or type(loss) in _BINARY
