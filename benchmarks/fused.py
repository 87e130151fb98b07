"""Batch normalization as one operation of TensorFlow, forwards and backwards.

Keras computes it from means and products, each of which is a pass over the images. On a CPU the
fused operation makes the step of a ResNet-32 about twice as fast in bfloat16. The results agree up
to rounding; the parameters and the moving averages are Keras's.
"""

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer for images `(B, H, W, C)`, with a fused operation in training."""

    def call(self, inputs, training=None, mask=None):
        if not training:
            return super().call(inputs, training=training)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.cast(self.gamma, "float32"),
            tf.cast(self.beta, "float32"),
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation divides by one less than the number of pixels, Keras by their number.
        pixels = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), "float32")
        variance *= (pixels - 1) / pixels
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def with_fused_normalization(model):
    """Returns an untrained copy of a functional model whose batch normalizations are fused."""

    def copy(layer):
        kind = type(layer)
        if kind is keras.layers.BatchNormalization:
            kind = FusedBatchNormalization
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=copy)
