"""Every quirk of a backend, and every private name of Keras."""

import functools

import keras
import numpy as np
from keras import ops

# Up to here TensorFlow's own cross-entropy is as fast or faster, beyond it is slower.
_NATIVE_CLASSES = 128


def name():
    """Returns the backend in use: `"tensorflow"`, `"jax"` or `"torch"`."""
    return keras.backend.backend()


def sparse_cross_entropy(labels, logits, num_classes, scale=None, shift=None):
    """Returns `-log softmax(logits * scale + shift)[labels]`, `(...)`, for integer labels.

    `logits` are `(..., K)`, `scale` is `(...)` and `shift` `(K,)`; `None` is 1 and 0. A label
    outside `[0, K)` raises an error that names it on PyTorch, and on TensorFlow on a CPU without
    XLA. Elsewhere its value is NaN.
    """
    adjusted = logits if scale is None else logits * scale[..., None]
    adjusted = adjusted if shift is None else adjusted + shift
    if name() == "tensorflow" and num_classes <= _NATIVE_CLASSES:
        return ops.sparse_categorical_crossentropy(labels, adjusted, from_logits=True)
    valid = ops.logical_and(labels >= 0, labels < num_classes)
    if name() == "torch" and not ops.all(valid):
        bad = np.unique(ops.convert_to_numpy(labels)[~ops.convert_to_numpy(valid)])
        raise ValueError(
            f"`y_true` must be in [0, {num_classes}). Received: labels {bad[:10].tolist()}"
        )
    if name() == "tensorflow":
        # An operation that refuses them: a scatter, of zeros, whose sum changes nothing.
        flat = ops.reshape(labels, (-1,))
        zeros = ops.scatter(flat[:, None], ops.zeros_like(flat), (num_classes,))
        labels = labels + ops.sum(zeros)
    # Under XLA this takes less time than Keras's own; and outside it, with the true logit from the
    # unadjusted ones, TensorFlow needs one array less.
    is_class = ops.equal(labels[..., None], ops.arange(num_classes, dtype=labels.dtype))
    zero = ops.convert_to_tensor(0.0, dtype=logits.dtype)
    true = ops.sum(ops.where(is_class, logits, zero), axis=-1)
    true = true if scale is None else true * scale
    true = true if shift is None else true + ops.take(shift, ops.where(valid, labels, 0))
    largest = ops.stop_gradient(ops.max(adjusted, axis=-1))
    normalizer = ops.log(ops.sum(ops.exp(adjusted - largest[..., None]), axis=-1))
    losses = normalizer - (true - largest)
    return ops.where(valid, losses, ops.full_like(losses, np.nan))


def is_tf_symbol(tensor):
    """Returns whether a tensor belongs to a graph of `tf.data`."""
    return type(tensor).__name__ == "SymbolicTensor"


def tf_function(function, shape):
    """Returns `function`, of logits of a static shape, as a function that TensorFlow traces."""
    if name() != "jax":
        return function
    from jax.experimental import jax2tf

    free = ", ".join(f"d{i}" if size is None else str(size) for i, size in enumerate(shape))
    return jax2tf.convert(function, polymorphic_shapes=[f"({free})"])


def get_mask(tensor):
    """Returns the Keras mask of a tensor, `(...)`, or `None`."""
    if name() != "jax":
        return getattr(tensor, "_keras_mask", None)
    # There it is no attribute: a layer sees it.
    mask = _read_mask()(tensor)
    return mask if len(mask.shape) else None


def set_mask(tensor, mask):
    """Returns the tensor with a Keras mask `(...)`, and leaves that of the argument as it is."""
    return _set_mask()([tensor, mask])


class _ReadMask(keras.layers.Layer):
    """Gives the mask of its input, and a scalar where there is none."""

    supports_masking = True

    def __init__(self):
        # No cast of the input: it would lose the mask.
        super().__init__(name="read_mask", dtype="float32", autocast=False)

    def call(self, inputs, mask=None):
        return ops.ones((), "bool") if mask is None else mask


class _SetMask(keras.layers.Layer):
    """Gives the first of its inputs with the second as its mask."""

    supports_masking = True

    def __init__(self):
        super().__init__(name="set_mask", dtype="float32", autocast=False)

    def call(self, inputs):
        return ops.copy(inputs[0])

    def compute_mask(self, inputs, previous_mask):
        return inputs[1]


# One for all: they have no state, and a layer takes long to make.
_read_mask = functools.cache(_ReadMask)
_set_mask = functools.cache(_SetMask)


def logits_of(y_pred):
    """Returns the logits that Keras keeps on the output of a softmax or sigmoid, or `None`."""
    return getattr(y_pred, "_keras_logits", None)


def refuse_probabilities(y_pred):
    """Raises if `y_pred` comes out of a softmax or sigmoid, which Keras marks with its logits."""
    if logits_of(y_pred) is not None:
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
    """Returns whether a layer ends in a softmax or sigmoid; also on JAX, where no mark is left."""
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )
