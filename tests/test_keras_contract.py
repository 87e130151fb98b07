"""Where a loss is Keras's own cross-entropy, it does all that Keras's own does.

The cases are those of Keras's tests of losses, apart from `axis`, half precision and clipping.
"""

import pickle

import keras
import numpy as np
import pytest
from keras import ops

from keras_balanced import BinaryGCALoss, BinaryGLALoss, GCALoss, GLALoss, backends

REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None]
SPARSE = keras.losses.SparseCategoricalCrossentropy
ONE_HOT = keras.losses.CategoricalCrossentropy
BINARY = keras.losses.BinaryCrossentropy
WEIGHTS = {
    "none": lambda shape, rng: None,
    "scalar": lambda shape, rng: 2.3,
    "array": lambda shape, rng: rng.uniform(size=shape),
    "column": lambda shape, rng: rng.uniform(size=(*shape, 1)),
    "integers": lambda shape, rng: rng.integers(0, 3, shape),
    "booleans": lambda shape, rng: rng.integers(0, 2, shape) == 1,
    "zeros": lambda shape, rng: np.zeros(shape),
}

# Not "mean_with_sample_weight" of a scalar, which in Keras is the sum.
CASES = [
    (reduction, weights)
    for reduction in REDUCTIONS
    for weights in WEIGHTS
    if (reduction, weights) != ("mean_with_sample_weight", "scalar")
]


def both(ours, theirs, *arguments):
    ours, theirs = (ops.convert_to_numpy(loss(*arguments)) for loss in (ours, theirs))
    # Of column weights Keras's own gives a column.
    theirs = theirs[..., 0] if theirs.ndim == ours.ndim + 1 else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("reduction", "weights"), CASES)
@pytest.mark.parametrize("cls", [GLALoss, GCALoss])
def test_integer_and_one_hot_classes(cls, reduction, weights, rng):
    ours = cls(np.ones(3), reduction=reduction)
    for shape in [(6,), (2, 4)]:
        z, y = rng.normal(size=(*shape, 3)).astype("float32"), rng.integers(0, 3, shape)
        w = WEIGHTS[weights](shape, rng)
        if len(shape) > 1 and weights == "column":
            continue  # Keras gives (2, 4, 4) for it.
        both(ours, SPARSE(from_logits=True, reduction=reduction), y, z, w)
        both(ours, ONE_HOT(from_logits=True, reduction=reduction), np.eye(3)[y], z, w)


@pytest.mark.parametrize(("reduction", "weights"), CASES)
@pytest.mark.parametrize("cls", [BinaryGLALoss, BinaryGCALoss])
def test_labels_of_one_logit(cls, reduction, weights, rng):
    z, y = rng.normal(size=(6, 1)).astype("float32"), rng.integers(0, 2, (6, 1))
    w = WEIGHTS[weights]((6,), rng)
    both(cls(0.5, reduction=reduction), BINARY(from_logits=True, reduction=reduction), y, z, w)


@pytest.mark.parametrize("cls", [GLALoss, GCALoss])
def test_probabilities(cls, rng):
    p, y = rng.dirichlet(np.ones(3), 6).astype("float32"), rng.integers(0, 3, 6)
    both(cls(np.ones(3), from_logits=False), SPARSE(), y, p)
    both(cls(np.ones(3), from_logits=False), ONE_HOT(), np.eye(3)[y], p)
    both(BinaryGLALoss(0.5, from_logits=False), BINARY(), y[:, None] > 1, p[:, :1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("cls", [GLALoss, GCALoss])
def test_label_smoothing(cls, smoothing, rng):
    z, y = rng.normal(size=(6, 3)).astype("float32"), np.eye(3)[rng.integers(0, 3, 6)]
    ours = cls(np.ones(3), label_smoothing=smoothing)
    both(ours, ONE_HOT(from_logits=True, label_smoothing=smoothing), y, z)


@pytest.mark.parametrize("ignored", [-1, 255, 0, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignore_class(reduction, ignored, rng):
    z, y = rng.normal(size=(2, 5, 3)).astype("float32"), rng.integers(0, 3, (2, 5))
    y[0, :2] = ignored
    ours = GLALoss(np.ones(3), ignore_class=ignored, reduction=reduction)
    both(ours, SPARSE(from_logits=True, ignore_class=ignored, reduction=reduction), y, z)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masks(reduction, weighted, rng):
    for shape in [(6,), (2, 4)]:
        z, y = rng.normal(size=(*shape, 3)).astype("float32"), rng.integers(0, 3, shape)
        mask = rng.integers(0, 2, shape) == 1
        w = rng.uniform(size=shape).astype("float32") if weighted else None

        def masked(z=z, mask=mask):
            return backends.set_mask(ops.convert_to_tensor(z), ops.convert_to_tensor(mask))

        ours = ops.convert_to_numpy(GLALoss(np.ones(3), reduction=reduction)(y, masked(), w))
        keras_own = SPARSE(from_logits=True, reduction=reduction)
        theirs = ops.convert_to_numpy(keras_own(y, masked(), w))
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("in_lists", ["labels", "weights", "labels and weights", "outputs"])
def test_a_list_of_one_output_trains_alike(in_lists, rng):
    x, y, w = rng.normal(size=(16, 3)), rng.integers(0, 2, (16, 1)), rng.uniform(size=16)
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1)(inputs)
    model = keras.Model(inputs, [outputs] if in_lists == "outputs" else outputs)
    model.compile(loss=BinaryGLALoss(0.2))
    logits = model.predict(x, verbose=0)
    expected = float(BinaryGLALoss(0.2)(y, logits, w))
    labels = [y] if "labels" in in_lists else y
    weights = [w] if "weights" in in_lists else w
    history = model.fit(x, labels, sample_weight=weights, batch_size=16, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_a_list_of_weights_is_an_array(rng):
    y, z, w = np.array([0, 1]), rng.normal(size=(2, 2)).astype("float32"), [1.0, 2.0]
    loss = GLALoss([3, 1])
    expected = float(loss(y, z, np.array(w)))
    assert float(loss(y, z, w)) == pytest.approx(expected)
    assert float(loss(y, z, [*map(ops.convert_to_tensor, w)])) == pytest.approx(expected)
    with pytest.raises(
        ValueError, match=r"`sample_weight` must have.* sample_weight of shape \(0,\)"
    ):
        loss(y, z, [])


@pytest.mark.parametrize("cls", [GLALoss, GCALoss, BinaryGLALoss, BinaryGCALoss])
def test_reductions_names_and_pickles(cls):
    priors = 0.2 if "Binary" in cls.__name__ else [2, 1]
    with pytest.raises(ValueError, match="Invalid value for argument `reduction`"):
        cls(priors, reduction="median")
    loss = cls(priors, reduction="sum", name="own")
    again = pickle.loads(pickle.dumps(loss))
    assert again.get_config() == loss.get_config()
    assert keras.losses.get(loss) is loss
    assert keras.losses.deserialize(keras.losses.serialize(loss)).name == "own"
