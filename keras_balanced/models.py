"""The residual network for small images of He et al. (2016)."""

from __future__ import annotations

import keras
from keras import layers, ops

from keras_balanced import validation

__all__ = ["resnet"]


def __dir__() -> list[str]:
    return __all__


def resnet(
    input_shape: tuple[int, int, int], num_classes: int, depth: int = 32, l2: float = 1e-4
) -> keras.Model:
    """Builds the CIFAR ResNet of He et al. (2016), section 4.2, with logits as output.

    A 3x3 convolution and three stages of `(depth - 2) / 6` blocks of two 3x3 convolutions, with
    16, 32 and 64 filters and a stride of 2 between stages, batch normalisation, shortcuts without
    parameters, global average pooling and one dense layer.

    Args:
        input_shape: `(height, width, channels)`, height and width at least 8.
        num_classes: Number of classes `K`, at least 2: the size of the last axis of the logits.
        depth: Layers with weights, `6 n + 2`: 8, 14, 20, 32, 44, 56, 110...
        l2: L2 penalty on the kernels (half of what PyTorch calls weight decay).

    Returns:
        A `keras.Model` from images `(B, *input_shape)` to logits `(B, K)`. It does not normalise
        its input: put a `keras.layers.Normalization` before it.

    Raises:
        ValueError: if `depth` is not of the form `6 n + 2` or the input is too small.

    Example:

    >>> model = resnet((32, 32, 3), num_classes=10, depth=32)
    >>> print(model.output_shape, model.count_params())
    (None, 10) 466426

    References:
        - [He et al., 2016](https://arxiv.org/abs/1512.03385)
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"`depth` must be 6 n + 2: 8, 14, 20, 32... Received: depth={validation.show(depth)}"
        )
    if len(input_shape) != 3 or min(input_shape[:2]) < 8:
        raise ValueError(
            "`input_shape` must be (height, width, channels) of at least 8 by 8. "
            f"Received: input_shape={validation.show(input_shape)}"
        )
    num_classes = validation.check_integer("num_classes", num_classes, low=2)
    regularizer = keras.regularizers.L2(l2) if l2 else None

    def conv(x, filters, strides=1):
        x = layers.Conv2D(
            filters,
            3,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=regularizer,
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    inputs = keras.Input(input_shape)
    x = layers.ReLU()(conv(inputs, 16))
    for filters in (16, 32, 64):
        for block in range((depth - 2) // 6):
            widen = filters > 16 and block == 0
            shortcut = x
            if widen:
                # Every second pixel, and zeros for the new channels.
                shortcut = layers.MaxPooling2D(1, strides=2, padding="same")(x)
                shortcut = ops.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, filters // 2)))
            x = layers.ReLU()(conv(x, filters, strides=2 if widen else 1))
            x = layers.ReLU()(layers.Add()([conv(x, filters), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(
        num_classes,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer,
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")
