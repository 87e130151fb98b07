"""The ResNet is that of the paper."""

import keras
import numpy as np
import pytest

from keras_balanced import models


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85)])
def test_parameter_counts_of_the_paper(depth, millions):
    model = models.resnet((32, 32, 3), 10, depth)
    parameters = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert round(parameters / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [8, 32])
def test_depth_is_the_number_of_layers_with_weights(depth):
    layers = models.resnet((32, 32, 3), 10, depth).layers
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    assert sum(isinstance(layer, kinds) for layer in layers) == depth


@pytest.mark.parametrize("size", [8, 9, 32])
def test_any_size_and_round_trip(size, rng, tmp_path):
    model = models.resnet((size, size, 1), 7, depth=8)
    x = rng.standard_normal((2, size, size, 1)).astype("float32")
    logits = model.predict(x, verbose=0)
    assert logits.shape == (2, 7)
    assert not np.allclose(logits.sum(axis=-1), 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), logits, rtol=1e-6)


def test_l2_is_on_every_kernel_and_nothing_else():
    model = models.resnet((8, 8, 1), 10, depth=8, l2=0.01)
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    expected = 0.01 * sum(np.square(keras.ops.convert_to_numpy(w)).sum() for w in kernels)
    penalty = sum(keras.ops.convert_to_numpy(loss) for loss in model.losses)
    assert penalty == pytest.approx(expected, rel=1e-5)
    assert not models.resnet((8, 8, 1), 10, depth=8, l2=0).losses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, r"`depth` must be 6 n \+ 2.*Received: depth=18"),
        ({"depth": 2}, "`depth` must be"),
        ({"input_shape": (7, 8, 1)}, "at least 8 by 8. Received: input_shape="),
        ({"input_shape": (8, 8)}, "`input_shape` must be"),
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.resnet(**{"input_shape": (8, 8, 1), "num_classes": 10, **arguments})
