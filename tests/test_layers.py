"""ClassPrior: whatever holds the labels, the counts are the same."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_balanced import BinaryGLALoss, ClassPrior, GLALoss, LogitAdjustment, counting

LABELS = np.array([0, 2, 1, 0, 0, 2, 0])
COUNTS = [4, 1, 2]
X = np.zeros((7, 2))
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tf.data is TensorFlow's"
)


class Sequence(keras.utils.PyDataset):
    """Batches of 3, which `fit` reads by their index; without end where it has no length."""

    def __init__(self, *arrays, endless=False):
        super().__init__()
        self.arrays, self.endless = arrays, endless

    @property
    def num_batches(self):
        return None if self.endless else 3

    def __getitem__(self, i):
        return tuple(array[3 * (i % 3) : 3 * (i % 3) + 3] for array in self.arrays)


def data_loader(*arrays):
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(*map(torch.as_tensor, arrays))
    return torch.utils.data.DataLoader(tensors, batch_size=3)


def dataset(*tensors):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(tensors if len(tensors) > 1 else tensors[0])


SOURCES = {
    "array": lambda: LABELS,
    "column": lambda: LABELS[:, None],
    "uint8": lambda: LABELS.astype("uint8"),
    "whole floats": lambda: LABELS.astype("float32"),
    "list": lambda: LABELS.tolist(),
    "tensor": lambda: ops.convert_to_tensor(LABELS),
    "one-hot": lambda: np.eye(3)[LABELS],
    "nested list of one-hot": lambda: np.eye(3, dtype=int)[LABELS].tolist(),
    "list of batches": lambda: [LABELS[:3], LABELS[3:]],
    "generator of (x, y)": lambda: ((X[i : i + 3], LABELS[i : i + 3]) for i in range(0, 7, 3)),
    "generator of (x, y, w)": lambda: ((X[i], LABELS[i], 1.0) for i in range(7)),
    "PyDataset": lambda: Sequence(X, LABELS),
    "DataLoader": lambda: data_loader(X, LABELS),
    "DataLoader of weights": lambda: data_loader(X, LABELS, 1.0 + X[:, 0]),
}
TF_DATA = {
    "labels": lambda: dataset(LABELS).batch(3),
    "unbatched labels": lambda: dataset(LABELS),
    "(x, y)": lambda: dataset(X, LABELS).batch(3),
    "(x, y, w)": lambda: dataset(X, LABELS, np.ones(7)).batch(3),
}


@pytest.mark.parametrize("source", SOURCES)
def test_adapt(source):
    prior = ClassPrior(3)
    prior.adapt(SOURCES[source]())
    np.testing.assert_array_equal(prior.counts, COUNTS)
    np.testing.assert_allclose(prior.priors, np.array(COUNTS) / 7)


@needs_tensorflow
@pytest.mark.parametrize("source", TF_DATA)
def test_adapt_on_tf_data(source):
    prior = ClassPrior(3)
    prior.adapt(TF_DATA[source]())
    np.testing.assert_array_equal(prior.counts, COUNTS)


WEIGHTS = np.array([0.5, 1.0, 2.0, 0.25, 0.0, 1.0, 1.0])
WEIGHTED = [1.75, 2.0, 2.0]


@pytest.mark.parametrize(
    ("data", "sample_weight"),
    [
        (lambda: LABELS, WEIGHTS),
        (lambda: LABELS[:, None], WEIGHTS),
        (lambda: LABELS, WEIGHTS[:, None]),
        (lambda: np.eye(3)[LABELS], WEIGHTS),
        (lambda: Sequence(X, LABELS, WEIGHTS), True),
        (lambda: data_loader(X, LABELS, WEIGHTS), True),
        (lambda: zip(X, LABELS, WEIGHTS, strict=True), True),
        pytest.param(lambda: dataset(X, LABELS, WEIGHTS).batch(2), True, marks=needs_tensorflow),
    ],
)
def test_weights_are_counted_when_asked(data, sample_weight):
    prior = ClassPrior(3)
    prior.adapt(data(), sample_weight=sample_weight)
    np.testing.assert_allclose(prior.counts, WEIGHTED)


def test_weights_of_fewer_axes():
    prior = ClassPrior(3)
    prior.adapt(np.array([[0, 1], [2, 2]]), sample_weight=np.array([1.0, 0.5]))
    np.testing.assert_array_equal(prior.counts, [1, 1, 1])


@pytest.mark.parametrize("ignore_class", [255, -1, 2])
@pytest.mark.parametrize("weights", [None, np.full(9, 2.0)])
def test_ignore_class(ignore_class, weights):
    prior = ClassPrior(3, ignore_class=ignore_class, output_mode="weight")
    labels = np.concatenate([LABELS, [ignore_class, ignore_class]])
    prior.adapt(labels, sample_weight=weights)
    counts = np.array(COUNTS) * (np.arange(3) != ignore_class) * (1 if weights is None else 2)
    np.testing.assert_array_equal(prior.counts, counts)
    if ignore_class != 2:
        expected = np.append(prior.priors.sum() / (3 * prior.priors), 0.0)[labels.clip(-1, 3)]
        np.testing.assert_allclose(ops.convert_to_numpy(prior(labels)), expected, rtol=1e-6)


def test_steps_end_endless_data():
    def forever():
        while True:
            yield LABELS

    prior = ClassPrior(3)
    for data, steps in ((forever(), 2), (Sequence(X, LABELS, endless=True), 6)):
        prior.adapt(data, steps=steps)
        np.testing.assert_array_equal(prior.counts, 2 * np.array(COUNTS))


@pytest.mark.parametrize(
    "data",
    [
        lambda: Sequence(X, LABELS, endless=True),
        pytest.param(lambda: dataset(LABELS).repeat().batch(2), marks=needs_tensorflow),
    ],
)
def test_endless_data_needs_steps(data):
    with pytest.raises(ValueError, match="`steps` is needed for data without end"):
        ClassPrior(3).adapt(data())


@pytest.mark.parametrize("batch_size", [1, 7, 100_000, 300_001])
def test_batches_of_any_size_count_the_same(batch_size, rng):
    labels = rng.integers(0, 50, 300_001)
    whole, batched = ClassPrior(50), ClassPrior(50)
    whole.adapt(labels)
    labels = labels[: 20 * batch_size]
    batched.adapt(labels[i : i + batch_size] for i in range(0, len(labels), batch_size))
    np.testing.assert_array_equal(batched.counts, np.bincount(labels, minlength=50))
    assert whole.counts.sum() == 300_001


def test_states_accumulate_merge_and_clear():
    prior, *shards = (ClassPrior(3) for _ in range(3))
    prior.update_state(LABELS[:2])
    for shard, labels in zip(shards, (LABELS[2:3], LABELS[3:]), strict=True):
        shard.update_state(labels[:1])
        shard.update_state(labels[1:])
    prior.merge_state(shards)
    np.testing.assert_array_equal(prior.counts, COUNTS)
    prior.reset_state()
    np.testing.assert_array_equal(prior.counts, [0, 0, 0])
    prior.merge_state(shards[1])
    np.testing.assert_array_equal(prior.counts, shards[1].counts)
    with pytest.raises(ValueError, match="layers of the same classes"):
        prior.merge_state([ClassPrior(4)])
    with pytest.raises(ValueError, match=r"`ClassPrior` layers. Received: 0; labels go"):
        prior.merge_state(LABELS.tolist())


def test_loaded_counts_in_a_model_that_has_predicted(tmp_path):
    """As its docstring says: what has been traced keeps the former priors until it is made anew."""
    labels = np.array([0, 1])

    def model_of(counts):
        inputs = keras.Input((), dtype="int32")
        return keras.Model(inputs, ClassPrior(2, counts=counts, name="prior")(inputs))

    model_of([1, 3]).save_weights(tmp_path / "counts.weights.h5")
    model = model_of([1, 1])
    np.testing.assert_allclose(model.predict(labels, verbose=0), [0.5, 0.5])
    model.load_weights(tmp_path / "counts.weights.h5")
    model.make_predict_function(force=True)
    np.testing.assert_allclose(model.predict(labels, verbose=0), [0.25, 0.75])


@pytest.mark.parametrize(
    ("multi_label", "counts"),
    [(False, [2**53 - 1, 0, 2**31 + 1]), (True, [[2**53 - 1, 5], [7, 2**31 + 1], [1, 1]])],
)
def test_counts_from_elsewhere(multi_label, counts, tmp_path):
    prior = ClassPrior(3, counts=counts, multi_label=multi_label)
    np.testing.assert_array_equal(prior.counts, counts)
    config = json.loads(json.dumps(prior.get_config()))
    np.testing.assert_array_equal(ClassPrior.from_config(config).counts, counts)
    keras.Sequential([keras.Input((), dtype="int32"), prior]).save_weights(
        tmp_path / "counts.weights.h5"
    )
    other = ClassPrior(3, multi_label=multi_label)
    keras.Sequential([keras.Input((), dtype="int32"), other]).load_weights(
        tmp_path / "counts.weights.h5"
    )
    np.testing.assert_array_equal(other.counts, counts)


def test_counts_are_exact_beyond_float32():
    prior = ClassPrior(2, counts=[2**24, 2**31])
    prior.update_state(np.array([0, 1, 1]))
    np.testing.assert_array_equal(prior.counts, [2**24 + 1, 2**31 + 2])


def test_weights_of_other_classes_are_refused(tmp_path):
    path = tmp_path / "counts.weights.h5"
    inputs = keras.Input((), dtype="int32")
    keras.Sequential([inputs, ClassPrior(3, counts=COUNTS)]).save_weights(path)
    with pytest.raises(ValueError, match=r"`counts` must be .*\(5,\)"):
        keras.Sequential([inputs, ClassPrior(5)]).load_weights(path)


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, -1], [1, 2, np.inf], [[1, 2, 3]], "many"])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match=r"`counts` must be .*\(3,\).*Received: counts="):
        ClassPrior(3, counts=counts)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="there it works")
@needs_tensorflow
def test_dataset_map_on_other_backends_says_what_to_do():
    prior = ClassPrior(3, counts=COUNTS)
    with pytest.raises(ValueError, match=r"TensorFlow backend only. Use `tf.gather"):
        dataset(LABELS).map(prior)


def test_soft_targets_count_as_fractions():
    prior = ClassPrior(2)
    prior.adapt(np.array([[0.25, 0.75], [1.0, 0.0]]))
    np.testing.assert_allclose(prior.counts, [1.25, 0.75])


def test_adapting_again_replaces():
    prior = ClassPrior(3)
    prior.adapt(LABELS)
    prior.adapt(np.array([1, 1]))
    np.testing.assert_array_equal(prior.counts, [0, 2, 0])


def test_smoothing():
    prior = ClassPrior(3, smoothing=1.0)
    prior.adapt(np.array([0, 0, 2]))
    np.testing.assert_allclose(prior.priors, np.array([3, 1, 2]) / 6)
    assert np.isfinite(float(GLALoss(prior)(np.array([1]), np.zeros((1, 3), "float32"))))


@pytest.mark.parametrize(
    ("output_mode", "expected"),
    [
        ("prior", np.array(COUNTS) / 7),
        ("log_prior", np.log(np.array(COUNTS) / 7)),
        ("weight", 7 / (3 * np.array(COUNTS))),
    ],
)
def test_call(output_mode, expected):
    prior = ClassPrior(3, output_mode=output_mode)
    prior.adapt(LABELS)
    for labels in (LABELS, LABELS[:, None], LABELS.astype("float32")):
        output = ops.convert_to_numpy(prior(labels))
        np.testing.assert_allclose(output, expected[labels.astype(int)], rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_call_on_a_label_that_is_none_gives_nan(label):
    outputs = ops.convert_to_numpy(ClassPrior(3, counts=COUNTS)(np.array([0, label])))
    np.testing.assert_array_equal(np.isnan(outputs), [False, True])
    outputs = ClassPrior(2, multi_label=True, counts=[[1, 2], [2, 1]])(np.array([[0, label]]))
    np.testing.assert_array_equal(np.isnan(ops.convert_to_numpy(outputs)), [[False, True]])


def test_balanced_weights_average_to_one():
    prior = ClassPrior(3, output_mode="weight")
    prior.adapt(LABELS)
    assert ops.convert_to_numpy(prior(LABELS)).mean() == pytest.approx(1.0)


def test_class_ids_survive_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    # Neighbours differ by more than bfloat16 rounds, which holds no odd number above 256.
    counts = np.tile([1, 3], 500)
    prior = ClassPrior(1000)
    prior.adapt(np.repeat(np.arange(1000), counts))
    output = ops.convert_to_numpy(ops.cast(prior(np.array([256.0, 257.0, 999.0])), "float32"))
    np.testing.assert_allclose(output, np.array([1, 3, 3]) / 2000, rtol=1e-2)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="dataset.map is TensorFlow's")
def test_in_dataset_map():
    prior = ClassPrior(3, output_mode="weight")
    prior.adapt(LABELS)
    weighted = dataset(X, LABELS).batch(3).map(lambda x, y: (x, y, prior(y)))
    weights = np.concatenate([w for _, _, w in weighted.as_numpy_iterator()])
    np.testing.assert_allclose(weights, 7 / (3 * np.array(COUNTS))[LABELS], rtol=1e-6)


def test_counts_are_saved_with_the_model(tmp_path):
    counts = np.array([2**53 - 1, 2**31 + 1, 2**24 + 1], "float64")
    prior = ClassPrior(3, smoothing=0.5, output_mode="log_prior", counts=counts, name="prior")
    inputs = keras.Input((), dtype="int32")
    model = keras.Model(inputs, prior(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("prior")
    assert loaded.get_config() == prior.get_config()
    np.testing.assert_array_equal(loaded.counts, counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2.*=1"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer"),
        ({"smoothing": -1.0}, r"`smoothing` must be in \[0, inf\). Received: smoothing=-1.0"),
        ({"output_mode": "count"}, "`output_mode` must be.*output_mode='count'"),
        ({"ignore_class": 0.5}, "`ignore_class` must be an integer.*=0.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassPrior(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([0, 3]), r"Labels must be in \[0, 3\). Received: labels \[3\]"),
        (np.array([0, -1]), r"Labels must be in \[0, 3\). Received: labels \[-1\]"),
        (np.array([0.5]), r"Labels must be integer classes.*float64"),
        (np.array([np.nan]), r"Labels must be integer classes"),
        (np.array(["cat"]), r"Labels must be integer classes"),
        (np.array([[1, 1, 0]]), r"read as one-hot or soft targets.*\(1, 3\)"),
        (np.array([], "int64"), r"expected at least one label"),
        ([], r"expected at least one label"),
        (iter([]), r"expected at least one label"),
        ((X, LABELS), r"Received: a tuple; pass only its labels"),
        ([(X, LABELS, LABELS, LABELS)], r"Received: a tuple of 4"),
        ([LABELS[:2], LABELS + 2], r"Labels must be in \[0, 3\)"),
        (list(np.eye(3, dtype=int)[LABELS]), r"look like one one-hot vector; batch them"),
        (iter(zip(X, np.eye(3)[LABELS], strict=True)), "look like one one-hot vector"),
    ],
)
def test_bad_data_keeps_the_former_counts(data, message):
    prior = ClassPrior(3)
    prior.adapt(LABELS)
    with pytest.raises(ValueError, match=message):
        prior.adapt(data)
    np.testing.assert_array_equal(prior.counts, COUNTS)


@pytest.mark.parametrize(
    ("data", "sample_weight", "message"),
    [
        (LABELS, np.ones(6), r"leading axes of the targets.*\(6,\).*\(7,\)"),
        (LABELS, np.ones((7, 2)), "leading axes of the targets"),
        (LABELS, -np.ones(7), "`sample_weight` must be finite and not negative"),
        (LABELS, np.full(7, np.nan), "`sample_weight` must be finite"),
        ([LABELS], np.ones(7), "With batches `sample_weight` must be None, or True"),
        ([(X, LABELS)], True, "`sample_weight=True` needs batches"),
    ],
)
def test_bad_weights(data, sample_weight, message):
    with pytest.raises(ValueError, match=message):
        ClassPrior(3).adapt(data, sample_weight=sample_weight)


def test_unadapted_is_refused():
    with pytest.raises(ValueError, match="has not counted any labels"):
        ClassPrior(3)(LABELS)


# --------------------------------------------------------------------------------- multi-label

MULTI = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])


@pytest.mark.parametrize("data", [MULTI, MULTI.astype("float32"), [MULTI[:1], MULTI[1:]]])
def test_multi_label_rates(data):
    prior = ClassPrior(2, multi_label=True)
    prior.adapt(data)
    np.testing.assert_array_equal(prior.counts, [[1, 3], [3, 1]])
    np.testing.assert_array_equal(prior.priors, [0.75, 0.25])
    assert BinaryGLALoss(prior).priors == [0.75, 0.25]


def test_multi_label_weights_and_unknown_labels():
    prior = ClassPrior(2, multi_label=True, ignore_class=-1)
    labels = np.array([[1, -1], [1, 0], [1, 1], [0, 0]])
    prior.adapt(labels, sample_weight=np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(prior.counts, [[4, 6], [6, 3]])
    prior.adapt(labels)
    np.testing.assert_array_equal(prior.counts, [[1, 3], [2, 1]])


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_rate_of_one_label(shape):
    prior = ClassPrior(1, multi_label=True, smoothing=1.0)
    prior.adapt(np.array([1, 0, 0, 0]).reshape(shape))
    np.testing.assert_allclose(prior.priors, [2 / 6])
    y, z = np.array([0, 1]), np.zeros((2, 1), "float32")
    assert float(BinaryGLALoss(prior)(y, z)) == float(BinaryGLALoss(2 / 6)(y, z))


def test_call_of_multi_label():
    prior = ClassPrior(2, multi_label=True, output_mode="weight")
    prior.adapt(MULTI)
    expected = np.where(MULTI == 1, 1 / (2 * prior.priors), 1 / (2 * (1 - prior.priors)))
    np.testing.assert_allclose(ops.convert_to_numpy(prior(MULTI)), expected, rtol=1e-6)


@pytest.mark.parametrize("data", [np.arange(3) % 2, MULTI - 1, 2 * MULTI, MULTI.astype(str)])
def test_bad_multi_label_data(data):
    with pytest.raises(ValueError, match=r"Labels must be numbers in \[0, 1\] of shape \(..., 2\)"):
        ClassPrior(2, multi_label=True).adapt(data)


def test_priors_of_the_other_kind_are_refused():
    multi_label, multi_class = ClassPrior(2, multi_label=True), ClassPrior(3)
    multi_label.adapt(MULTI)
    multi_class.adapt(np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"`priors` must be a class mix.*multi-label"):
        GLALoss(multi_label)
    with pytest.raises(ValueError, match=r"`priors` must be the positive rate.*multi_label=True"):
        BinaryGLALoss(multi_class)


# --------------------------------------------------------------------------- logit adjustment


def test_logit_adjustment_round_trip(rng, tmp_path):
    layer = LogitAdjustment([6.0, 3.0, 1.0], target_priors=[1.0, 1.0, 2.0], tau=0.5, name="last")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])
    x = rng.standard_normal((5, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("last").get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("priors", "binary", "size"),
    [
        *(([6.0, 3.0, 1.0], None, 3), ([9, 1], None, 2), ([9, 1], None, 1)),
        *((0.1, None, 1), ([0.1, 0.4], True, 2)),
    ],
)
def test_of_probabilities_it_gives_those_of_the_adjusted_logits(
    priors, binary, size, rng, tmp_path
):
    activation = "sigmoid" if binary or size == 1 else "softmax"
    ends = [
        [keras.layers.Dense(size), LogitAdjustment(priors, binary=binary)],
        [
            keras.layers.Dense(size, activation),
            LogitAdjustment(priors, binary=binary, from_logits=False),
        ],
    ]
    logits, adjusted = (keras.Sequential([keras.Input((4,)), *end]) for end in ends)
    adjusted.set_weights(logits.get_weights())
    x = (5 * rng.standard_normal((9, 4))).astype("float32")
    expected = ops.convert_to_tensor(logits.predict(x, verbose=0))
    expected = ops.convert_to_numpy(keras.activations.get(activation)(expected))
    np.testing.assert_allclose(adjusted.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-6)
    # Of an array too, which bears no mark of a softmax.
    given = ops.convert_to_numpy(adjusted.layers[0](x))
    of_array = ops.convert_to_numpy(adjusted.layers[1](given))
    np.testing.assert_allclose(of_array, expected, rtol=1e-4, atol=1e-6)
    # The identity in training.
    trained = ops.convert_to_numpy(adjusted(x, training=True))
    np.testing.assert_allclose(trained, given, rtol=1e-6)
    adjusted.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), adjusted.predict(x, verbose=0))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras leaves no mark on JAX")
def test_logit_adjustment_refuses_a_softmax():
    with pytest.raises(ValueError, match="output of a softmax"):
        LogitAdjustment([6, 3, 1])(keras.layers.Softmax()(np.zeros((1, 3), "float32")))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_logit_adjustment_refuses_a_model_with_a_softmax(policy):
    head = keras.layers.Dense(3, "softmax", dtype="float32")
    of_softmax = keras.layers.Reshape((3,), dtype="float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, dtype=policy), head])
    for end in ([], [of_softmax]):
        with pytest.raises(ValueError, match="output of a softmax"):
            keras.Sequential([model, *end, LogitAdjustment([6, 3, 1], dtype=policy)])
        keras.Sequential([model, *end, LogitAdjustment([6, 3, 1], from_logits=False, dtype=policy)])


def test_logit_adjustment_of_arrays_that_are_something_else(rng):
    z = rng.standard_normal((20, 3)).astype("float32")
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    for wrong in (p, p.tolist(), p + 0.003):  # As of bfloat16.
        with pytest.raises(ValueError, match="sum to 1 for every example"):
            LogitAdjustment([6, 3, 1])(wrong)
    for wrong in (z, z.tolist()):
        with pytest.raises(ValueError, match="must be probabilities, since `from_logits=False`"):
            LogitAdjustment([6, 3, 1], from_logits=False)(wrong)


def test_logit_adjustment_keeps_the_digits_of_a_float32_head(rng):
    z = 5 * rng.standard_normal((50, 3)).astype("float32")
    expected = ops.convert_to_numpy(LogitAdjustment([6, 3, 1])(z))
    answer = LogitAdjustment([6, 3, 1], dtype="mixed_bfloat16")(ops.convert_to_tensor(z))
    assert keras.backend.standardize_dtype(answer.dtype) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(answer), expected)
    model = keras.Sequential(
        [keras.Input((3,)), LogitAdjustment([6, 3, 1], dtype="mixed_bfloat16")]
    )
    assert model.outputs[0].dtype == "float32"


def test_logit_adjustment_leaves_training_alone(rng):
    x, y = rng.standard_normal((32, 4)).astype("float32"), rng.integers(0, 3, 32)
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    adjusted = keras.Sequential([*plain.layers, LogitAdjustment([6, 3, 1])])
    weights = plain.get_weights()
    trained = []
    for model in (plain, adjusted):
        model.set_weights(weights)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, shuffle=False, verbose=0)
        trained.append(model.get_weights()[0])
    np.testing.assert_array_equal(*trained)
    shift = adjusted.predict(x, verbose=0) - plain.predict(x, verbose=0)
    expected = -np.log(3 * np.array([0.6, 0.3, 0.1]))
    np.testing.assert_allclose(shift, np.tile(expected, (32, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": [1, 0]}, "`priors` must be positive"),
        ({"target_priors": [1, 2, 3]}, "`target_priors` must have one number for each of the 2"),
        ({"tau": "1"}, "`tau` must be a finite number"),
    ],
)
def test_bad_logit_adjustment(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogitAdjustment(**{"priors": [1, 2], **arguments})


def test_logit_adjustment_of_the_wrong_width():
    with pytest.raises(ValueError, match="last axis of `y_pred` must have the 3 classes"):
        LogitAdjustment([1, 2, 3])(np.zeros((2, 4)))


def test_weights_stay_with_their_labels():
    """Past ignored labels, and in more labels than are counted at once."""
    prior = ClassPrior(2, ignore_class=9)
    prior.adapt(np.array([9, 0, 1]), sample_weight=np.array([5.0, 1.0, 2.0]))
    np.testing.assert_array_equal(prior.counts, [1.0, 2.0])
    count = 2 * counting._CHUNK
    labels = np.arange(count) // counting._CHUNK
    prior.adapt(labels, sample_weight=1.0 + labels)
    np.testing.assert_array_equal(prior.counts, [count / 2, count])
