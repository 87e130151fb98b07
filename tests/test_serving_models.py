"""Exports of all kinds of models answer what the model answers, or are refused."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_balanced import BinaryGCALoss, GCALoss, GLALoss, serving

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras does not export from PyTorch"
)
tf = pytest.importorskip("tensorflow")
TENSORFLOW = keras.backend.backend() == "tensorflow"
LOSS = GLALoss([5, 3, 2])


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def integers(*shape, high=6):
    return np.random.default_rng(0).integers(0, high, shape).astype("int32")


def functional():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3)(layers.Dense(5, "relu")(x))), floats(7, 4)


def sequential():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(3)])
    return model, floats(7, 4)


def never_called():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)]), floats(7, 4)


def within():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5, "relu"), layers.Dense(3)])
    x = keras.Input((4,))
    return keras.Model(x, inner(x)), floats(7, 4)


def two_inputs():
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([b, a], layers.Dense(3)(layers.Concatenate()([a, 2 * b])))
    return model, [floats(7, 2), 3 * floats(7, 2)]


def dict_inputs():
    a, b = keras.Input((2,), name="z"), keras.Input((2,), name="b")
    model = keras.Model({"z": a, "b": b}, layers.Dense(3)(layers.Concatenate()([a, 2 * b])))
    return model, {"z": floats(7, 2), "b": 3 * floats(7, 2)}


def other_keys():
    a, b = keras.Input((2,), name="first"), keras.Input((2,), name="second")
    model = keras.Model({"y": a, "x": b}, layers.Dense(3)(layers.Concatenate()([a, 2 * b])))
    return model, {"y": floats(7, 2), "x": 3 * floats(7, 2)}


def nested_inputs():
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    outputs = layers.Dense(3)(layers.Concatenate()([a, 2 * b, 3 * c]))
    model = keras.Model({"u": [a, b], "t": c}, outputs)
    return model, {"u": [floats(7, 2), 2 * floats(7, 2)], "t": -floats(7, 2)}


def dict_of_one_output():
    x = keras.Input((4,))
    return keras.Model(x, {"label": layers.Dense(3)(x)}), floats(7, 4)


def strings():
    x = keras.Input((1,), dtype="string")
    ids = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="one_hot")(x)
    return keras.Model(x, layers.Dense(3)(ids)), np.array([["a"], ["c"], ["other"]], object)


def ids():
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(layers.Embedding(6, 4)(x)))), integers(
        7, 5
    )


def pixels():
    x = keras.Input((8, 8, 3), dtype="uint8")
    hidden = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(x))
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))
    return model, integers(7, 8, 8, 3, high=256).astype("uint8")


def any_size():
    x = keras.Input((None, None, 3))
    hidden = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))
    return model, floats(2, 19, 23, 3)


def segmentation():
    x = keras.Input((8, 8, 3))
    return keras.Model(x, layers.Conv2D(3, 1)(layers.Conv2D(4, 3, padding="same")(x))), floats(
        2, 8, 8, 3
    )


def masked():
    x = keras.Input((None,), dtype="int32")
    hidden = layers.LSTM(4)(layers.Embedding(6, 4, mask_zero=True)(x))
    return keras.Model(x, layers.Dense(3)(hidden)), integers(7, 9)


def tagging():
    x = keras.Input((None,), dtype="int32")
    hidden = layers.Bidirectional(layers.GRU(3, return_sequences=True))(layers.Embedding(6, 4)(x))
    return keras.Model(x, layers.Dense(3)(hidden)), integers(7, 9)


def in_time():
    x = keras.Input((6, 4))
    hidden = layers.TimeDistributed(layers.Dense(5, "relu"))(x)
    return keras.Model(x, layers.Dense(3)(hidden)), floats(7, 6, 4)


def attention():
    x = keras.Input((6, 4))
    hidden = layers.MultiHeadAttention(2, 4)(x, x)
    hidden = layers.LayerNormalization()(layers.Dropout(0.5)(hidden))
    return keras.Model(x, layers.Dense(3)(layers.GlobalMaxPooling1D()(hidden))), floats(7, 6, 4)


def fixed_batch():
    x = keras.Input(batch_shape=(2, 5, 4))
    return keras.Model(x, layers.Dense(3)(layers.GRU(4)(x))), floats(2, 5, 4)


def normalized():
    scale = layers.Normalization()
    scale.adapt(floats(50, 4) * 3 + 1)
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3)(scale(x))), floats(7, 4)


def mixed():
    policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    x = keras.Input((4,))
    hidden = layers.Dense(5, "relu", dtype=policy)(x)
    return keras.Model(x, layers.Dense(3, dtype="float32")(hidden)), floats(7, 4)


def quantized():
    x = keras.Input((16,))
    model = keras.Model(x, layers.Dense(3)(layers.Dense(16, "relu")(x)))
    model.quantize("int8")
    return model, floats(7, 16)


MODELS = [
    *(functional, sequential, never_called, within, two_inputs, dict_inputs, other_keys),
    *(nested_inputs, dict_of_one_output, strings, ids, pixels, any_size, segmentation),
    *(masked, tagging, fixed_batch, in_time, attention, normalized, mixed, quantized),
]


def logits_of(model, x):
    (outputs,) = keras.tree.flatten(
        model(keras.tree.map_structure(ops.convert_to_tensor, x), training=False)
    )
    return ops.convert_to_numpy(outputs)


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict, all keys:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize(
    ("build", "loss"),
    [
        pytest.param(build, loss, id=f"{build.__name__}-{name}", marks=[pytest.mark.slow] * slow)
        for i, build in enumerate(MODELS)
        # Each model with one of the two, the other pairs among the slow tests.
        for loss, name, slow in ((LOSS, "gla", i % 2), (GCALoss([5, 3, 2]), "gca", 1 - i % 2))
    ],
)
def test_the_served_answer_is_the_models(build, loss, tmp_path):
    if build is strings and not TENSORFLOW:
        pytest.skip("text is TensorFlow's")
    model, x = build()
    expected = logits_of(model, x)
    version = serving.export(model, tmp_path, loss)
    flat = keras.tree.flatten(x)
    names = ["inputs"] if len(flat) == 1 else [tensor.name for tensor in model.inputs]
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    tolerance = 1e-3 if build is mixed else 1e-5
    scale = max(1.0, float(abs(expected).max()))
    for rows in (slice(None), slice(0, 1)):
        inputs = {name: tf.constant(part[rows]) for name, part in zip(names, flat, strict=True)}
        answer = signature(**inputs)
        np.testing.assert_allclose(answer["logits"], expected[rows], atol=tolerance * scale)
        posterior = ops.convert_to_numpy(loss.posterior(expected[rows]))
        np.testing.assert_allclose(answer["probabilities"], posterior, atol=tolerance)


def named(*names):
    inputs = [keras.Input((2,), name=name) for name in names]
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(inputs)))


def of_softmax(*forms):
    x = keras.Input((4,))
    outputs = layers.Dense(3, "softmax")(x)
    for form in forms:
        outputs = form(outputs)
    return keras.Model(x, outputs)


def stateful():
    x = keras.Input(batch_shape=(2, 5, 4))
    return keras.Model(x, layers.Dense(3)(layers.GRU(4, stateful=True, name="gru")(x)))


def added_to_batch():
    x = keras.Input(batch_shape=(2, 4), name="pairs")
    return keras.Model(x, layers.Dense(3)(x) + np.ones((2, 1), "float32"))


def time_distributed():
    x = keras.Input((None, 4))
    return keras.Model(x, layers.Dense(3)(layers.TimeDistributed(layers.Dense(6))(x)))


REFUSED = {
    "stateful": (stateful, "the layer 'gru' with `stateful=True`"),
    "fixed batch": (added_to_batch, "its input 'pairs' has a fixed batch size"),
    "space": (lambda: named("my age", "b"), "Name each of several inputs"),
    "percent": (lambda: named("50%", "b"), "Name each of several inputs"),
    "umlaut": (lambda: named("größe", "b"), "Name each of several inputs"),
    "case": (lambda: named("Age", "age"), "different also in lower case"),
    "dash": (lambda: named("a-b", "c"), "Name each of several inputs"),
    "digit": (lambda: named("1st", "c"), "Name each of several inputs"),
    "reshaped": (lambda: of_softmax(layers.Reshape((3, 1)), layers.Flatten()), "must give logits"),
    "scaled": (lambda: of_softmax(lambda p: p * 1.0), "as a softmax gives them"),
    "cast": (lambda: of_softmax(lambda p: ops.cast(ops.cast(p, "float64"), "float32")), "logits"),
}
# On JAX the export of such a layer is right, and in Keras 3.10.
if TENSORFLOW and not keras.__version__.startswith("3.10."):
    REFUSED["time"] = (time_distributed, "`model` must be exported as it is")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name, tmp_path):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        serving.export(build(), tmp_path / "model", LOSS)
    assert list(tmp_path.iterdir()) == []


def test_home_and_remote_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    copied, copy = [], tf.io.gfile.copy

    def watched(source, target, *args, **kwargs):
        copied.append(target)
        return copy(source, target, *args, **kwargs)

    monkeypatch.setattr(tf.io.gfile, "copy", watched)
    model, x = functional()
    version = serving.export(model, "~/models/digits", LOSS)
    assert version == tmp_path / "models" / "digits" / "1"
    versions = [serving.export(model, "ram://bucket/digits", LOSS) for _ in range(2)]
    assert versions == ["ram://bucket/digits/1", "ram://bucket/digits/2"]
    # Whoever looks for new versions sees a directory as one by this file.
    assert copied[-1] == f"{versions[1]}/saved_model.pb"
    with tf.io.gfile.GFile("ram://bucket/digits/2/assets.extra/classes.json") as file:
        assert json.loads(file.read())["class_names"] == ["0", "1", "2"]
    signature = tf.saved_model.load(versions[1]).signatures["raw"]
    answer = signature(inputs=tf.constant(x))["logits"]
    np.testing.assert_allclose(answer, logits_of(model, x), atol=1e-5)


def test_a_file_system_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("nowhere://bucket/digits", "hdfs://bucket/digits"):
        with pytest.raises(ValueError, match="`path` must be a directory that can be written"):
            serving.export(functional()[0], path, LOSS)
    assert list(pathlib.Path().iterdir()) == []


def test_calibrate_takes_dicts_of_one_output_and_batches_in_lists(rng):
    model, _ = dict_of_one_output()
    x, y = floats(90, 4), rng.integers(0, 3, 90)
    x += 2 * np.eye(3, 4, dtype="float32")[y]
    kernel = np.eye(4, 3, dtype="float32")
    model.layers[-1].set_weights([kernel, np.zeros(3, "float32")])
    expected = serving.calibrate(model, LOSS, (x, y)).temperature
    for data in [
        (x, {"label": y}),
        [(x[:40], y[:40]), (x[40:], y[40:])],
        iter([(x[:40], y[:40]), (x[40:], {"label": y[40:]})]),
    ]:
        found = serving.calibrate(model, LOSS, data).temperature
        assert found == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="must be a tuple of arrays"):
        serving.calibrate(model, LOSS, [x, y])


@pytest.mark.skipif(not TENSORFLOW, reason="a strategy of TensorFlow")
def test_calibrate_under_a_strategy(rng):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model, _ = functional()
    x, y = floats(60, 4), rng.integers(0, 3, 60)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    expected = serving.calibrate(model, LOSS, (x, y)).temperature
    assert serving.calibrate(model, LOSS, data).temperature == pytest.approx(expected, rel=1e-3)


def test_one_logit_from_a_dict_of_one_output(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, {"fraud": layers.Dense(1)(x)})
    loss = BinaryGCALoss(0.1)
    version = serving.export(model, tmp_path, loss, class_names=["fraud"])
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    answer = signature(inputs=tf.constant(floats(5, 4)))["probabilities"][:, 1]
    expected = ops.convert_to_numpy(loss.posterior(logits_of(model, floats(5, 4))))[:, 0]
    np.testing.assert_allclose(answer, expected, atol=1e-5)
