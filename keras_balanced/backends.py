"""Every quirk of a backend, and every private name of Keras."""

import keras
import numpy as np
from keras import ops


class ReadMask(keras.layers.Layer):
    """Gives the mask of its input as weights `(...)` of 0 and 1; a scalar 1 where it has none."""

    supports_masking = True

    def __init__(self, dtype):
        # No cast of the input: it would lose the mask.
        super().__init__(name="read_mask", dtype=dtype, autocast=False)

    def call(self, inputs, mask=None):
        return ops.ones((), self.dtype) if mask is None else ops.cast(mask, self.dtype)


class SetMask(keras.layers.Layer):
    """Gives the first of its inputs with the second as mask."""

    supports_masking = True

    def __init__(self, dtype):
        super().__init__(name="set_mask", dtype=dtype, autocast=False)

    def call(self, inputs):
        return ops.copy(inputs[0])  # Not to change the mask of the input.

    def compute_mask(self, inputs, previous_mask):
        return inputs[1]


def refuse_probabilities(y_pred):
    """Raises if `y_pred` comes out of a softmax or sigmoid, which Keras marks with its logits."""
    if getattr(y_pred, "_keras_logits", None) is not None:
        raise ValueError(
            "Expected logits in `y_pred` since `from_logits=True`, but it is the output of a "
            "softmax or sigmoid. Remove that activation from the model's last layer, or pass "
            "`from_logits=False`."
        )


def last_layer(model):
    """Returns the layer that gives the model's output."""
    layer = model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    return layer


def gives_probabilities(layer):
    """Says whether a layer ends in a softmax or sigmoid; also on JAX, where no mark is left."""
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )


def check_labels(labels, num_classes):
    """Returns labels with 0 for those out of range, and which were in range.

    Raises an error that names them on PyTorch, and on TensorFlow on a CPU without XLA.
    """
    valid = ops.logical_and(labels >= 0, labels < num_classes)
    if keras.backend.backend() == "torch" and not ops.all(valid):
        bad = np.unique(ops.convert_to_numpy(labels)[~ops.convert_to_numpy(valid)])
        raise ValueError(
            f"`y_true` must be in [0, {num_classes}). Received: labels {bad[:10].tolist()}"
        )
    if keras.backend.backend() == "tensorflow":
        # An operation that refuses them: a scatter, of zeros, whose sum changes nothing.
        flat = ops.reshape(labels, (-1,))
        zeros = ops.scatter(flat[:, None], ops.zeros_like(flat), (num_classes,))
        labels = labels + ops.sum(zeros)
    return ops.where(valid, labels, 0), valid
