"""Keras masks read and set by layers, which is the public way."""

import keras
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
