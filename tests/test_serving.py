"""What is exported answers with the posterior."""

import json
import pathlib
import threading

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from keras_balanced import (
    BinaryGCALoss,
    BinaryGLALoss,
    Decision,
    GCALoss,
    GLALoss,
    serving,
)

exports = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras does not export from the PyTorch backend"
)
PRIORS = [0.7, 0.2, 0.1]
THREE = GLALoss(PRIORS)
LOSSES = {
    "gla": lambda: GLALoss(PRIORS, q=0.3, tau=None),
    "gca": lambda: GCALoss(PRIORS, margins="cube_root", consistent=False, target_priors=[1, 2, 3]),
    "weighted": lambda: GCALoss(PRIORS, q=0.2, margins=None, consistent=False),
}
MIXES = {"target of the loss": None, "training": PRIORS, "counts": [10, 30, 60]}


def linear_model(num_classes=3, **kwargs):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(num_classes, **kwargs)])


def load(version):
    import tensorflow as tf

    served = tf.saved_model.load(str(version))

    def ask(signature, **inputs):
        inputs = {name: tf.constant(values) for name, values in inputs.items()}
        outputs = served.signatures[signature](**inputs)
        return {name: value.numpy() for name, value in outputs.items()}

    ask.served = served
    return ask


def numpy_posterior(loss, logits, target=None):
    return ops.convert_to_numpy(loss.posterior(logits, priors=target))


@exports
@pytest.mark.parametrize("name", LOSSES)
def test_signatures_answer_with_the_posterior(name, tmp_path, rng):
    loss, model = LOSSES[name](), linear_model()
    x = rng.normal(size=(9, 4)).astype("float32")
    logits = model.predict(x, verbose=0)
    names = ["head", "body", "täil"]
    for mix in MIXES.values():
        ask = load(serving.export(model, tmp_path, loss, class_names=names, priors=mix))
        answer = ask("serving_default", inputs=x)
        expected = numpy_posterior(loss, logits, mix)
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=2e-5)
        np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(answer["class_id"], Decision(loss)(logits))
        assert answer["class_name"].tolist() == [names[k].encode() for k in answer["class_id"]]
    assert set(ask.served.signatures) == {"serving_default", "with_priors", "raw"}
    raw = ask("raw", inputs=x)
    assert set(raw) == {"logits"}
    np.testing.assert_array_equal(raw["logits"], answer["logits"])

    mixes = rng.dirichlet(np.ones(3), 9).astype("float32")
    mixes[0] = [0.0, 0.5, 0.5]
    answer = ask("with_priors", inputs=x, priors=mixes)
    np.testing.assert_array_equal(answer["probabilities"][0, 0], 0.0)
    for i in range(1, 9):
        expected = numpy_posterior(loss, logits[i : i + 1], mixes[i])
        np.testing.assert_allclose(answer["probabilities"][i : i + 1], expected, rtol=2e-5)
    one = ask("with_priors", inputs=x, priors=np.array([[10, 30, 60]], "float32"))
    np.testing.assert_allclose(
        one["probabilities"], ask("serving_default", inputs=x)["probabilities"], rtol=1e-5
    )

    for batch in (1, 128):
        x = rng.normal(size=(batch, 4)).astype("float32")
        np.testing.assert_allclose(
            ask("serving_default", inputs=x)["probabilities"],
            numpy_posterior(loss, model.predict(x, verbose=0), mix),
            rtol=2e-4,
        )


@exports
def test_bad_mix_is_an_error_of_the_request(tmp_path):
    import tensorflow as tf

    ask = load(serving.export(linear_model(), tmp_path, GLALoss(PRIORS)))
    x = np.zeros((1, 4), "float32")
    for mix in ([-1, 1, 1], [0, 0, 0], [np.nan, 1, 1], [np.inf, 1, 1]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be a class mix"):
            ask("with_priors", inputs=x, priors=np.array([mix], "float32"))


@exports
@pytest.mark.parametrize("name", ["gla", "gca"])
def test_a_class_that_never_occurs_is_never_the_answer(name, tmp_path, rng):
    import tensorflow as tf

    cls = {"gla": GLALoss, "gca": GCALoss}[name]
    loss, narrow = cls([60, 0, 30, 10], target_priors=[1, 0, 1, 1]), cls([60, 30, 10])
    bias = keras.initializers.Constant([0.0, 100.0, 0.0, 0.0])
    model = linear_model(4, bias_initializer=bias)
    x = rng.normal(size=(5, 4)).astype("float32")
    logits = model.predict(x, verbose=0)
    assert (logits.argmax(axis=-1) == 1).all()
    ask = load(serving.export(model, tmp_path, loss))
    answers = ask("serving_default", inputs=x)
    expected = numpy_posterior(narrow, logits[:, [0, 2, 3]])
    np.testing.assert_allclose(answers["probabilities"][:, [0, 2, 3]], expected, rtol=2e-5)
    np.testing.assert_array_equal(answers["probabilities"][:, 1], 0.0)
    mix = np.array([[6, 0, 0, 4]], "float32")
    answers = ask("with_priors", inputs=x, priors=mix)
    np.testing.assert_array_equal(answers["probabilities"][:, [1, 2]], 0.0)
    np.testing.assert_allclose(answers["probabilities"].sum(axis=-1), 1.0, rtol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="0 for classes that never occur"):
        ask("with_priors", inputs=x, priors=np.ones((1, 4), "float32"))


@exports
def test_temperature_divides_the_log_posterior_before_the_mix_changes(tmp_path, rng):
    loss, model = GLALoss(PRIORS, q=0.3), linear_model()
    x = rng.normal(size=(9, 4)).astype("float32")
    ask = load(serving.export(model, tmp_path, Decision(loss, temperature=2.5), priors=[1, 2, 3]))
    expected = numpy_posterior(loss, model.predict(x, verbose=0)) ** (1 / 2.5) * [1, 2, 3]
    expected /= expected.sum(axis=-1, keepdims=True)
    answer = ask("serving_default", inputs=x)
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5)
    assert answer["class_name"].tolist() == [str(k).encode() for k in answer["class_id"]]


@exports
@pytest.mark.parametrize("loss", [BinaryGLALoss(0.1, q=0.2), BinaryGCALoss(0.1)])
def test_one_logit_has_two_classes(loss, tmp_path, rng):
    model = linear_model(1)
    x = rng.normal(size=(9, 4)).astype("float32")
    ask = load(serving.export(model, tmp_path, loss, class_names=["no", "yes"], priors=0.3))
    logits = model.predict(x, verbose=0)
    answer = ask("serving_default", inputs=x)
    positive = numpy_posterior(loss, logits, 0.3)
    np.testing.assert_allclose(answer["probabilities"][:, 1:], positive, rtol=1e-4)
    np.testing.assert_allclose(answer["probabilities"].sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(answer["class_id"], Decision(loss)(logits))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-6)
    moved = ask("with_priors", inputs=x, priors=np.array([[0.7, 0.3]], "float32"))
    np.testing.assert_allclose(moved["probabilities"], answer["probabilities"], rtol=1e-4)


@exports
def test_sequences_of_any_length(tmp_path, rng):
    model = keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(3)])
    loss = GCALoss(PRIORS)
    ask = load(serving.export(model, tmp_path, loss))
    for shape in [(2, 5, 4), (3, 7, 4)]:
        x = rng.normal(size=shape).astype("float32")
        mixes = rng.dirichlet(np.ones(3), len(x)).astype("float32")
        answer = ask("with_priors", inputs=x, priors=mixes)
        assert answer["class_name"].shape == shape[:2]
        for i, mix in enumerate(mixes):
            expected = numpy_posterior(loss, model.predict(x, verbose=0)[i], mix)
            np.testing.assert_allclose(answer["probabilities"][i], expected, rtol=1e-4)


@exports
def test_half_precision_answers_in_float32(tmp_path):
    model = linear_model(dtype="mixed_bfloat16")
    answer = load(serving.export(model, tmp_path, GLALoss(PRIORS)))(
        "serving_default", inputs=np.ones((2, 4), "float32")
    )
    assert answer["probabilities"].dtype == answer["logits"].dtype == np.float32


@exports
@pytest.mark.parametrize("structure", [list, dict])
def test_several_inputs_go_by_name_and_preprocessing_stays(structure, tmp_path, rng):
    amount = keras.Input((1,), name="amount")
    inputs = [amount, keras.Input((3,), name="code", dtype="int32")]
    normalization = keras.layers.Normalization()
    normalization.adapt(rng.normal(5.0, 3.0, (50, 1)))
    codes = keras.layers.Flatten()(keras.layers.Embedding(10, 2)(inputs[1]))
    features = [normalization(amount), codes]
    x = {
        "amount": rng.normal(size=(6, 1)).astype("float32"),
        "code": rng.integers(0, 10, (6, 3)).astype("int32"),
    }
    if keras.backend.backend() == "tensorflow":  # The only backend with string tensors.
        inputs.append(keras.Input((1,), name="country", dtype="string"))
        lookup = keras.layers.StringLookup(vocabulary=["no", "se"], output_mode="one_hot")
        features.append(lookup(inputs[2]))
        x["country"] = np.array([["no"], ["se"], ["dk"]] * 2)
    outputs = keras.layers.Dense(3)(keras.layers.Concatenate()(features))
    if structure is dict:
        inputs = {tensor.name: tensor for tensor in inputs}
    model = keras.Model(inputs, outputs)
    ask = load(serving.export(model, tmp_path, GLALoss(PRIORS)))
    answer = ask("serving_default", **x)
    given = {name: ops.convert_to_tensor(values) for name, values in x.items()}
    logits = ops.convert_to_numpy(model(given))
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        answer["probabilities"], numpy_posterior(GLALoss(PRIORS), logits), rtol=1e-4
    )


@exports
def test_compiled_loss_of_a_loaded_model(tmp_path, rng):
    """Nothing but the file: no `Input`, the loss compiled in, and a fixed batch before."""
    x = rng.normal(size=(32, 2, 2)).astype("float32")
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", loss=GLALoss(PRIORS, q=0.3))
    model.fit(x, rng.integers(0, 3, 32), verbose=0)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    answer = load(serving.export(model, tmp_path / "served"))("serving_default", inputs=x[:5])
    expected = numpy_posterior(GLALoss(PRIORS, q=0.3), model.predict(x[:5], verbose=0))
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4)


@exports
def test_probabilities_go_through_their_logarithm(tmp_path, rng):
    model = linear_model(activation="softmax")
    loss = GLALoss(PRIORS, from_logits=False)
    x = rng.normal(size=(9, 4)).astype("float32")
    answer = load(serving.export(model, tmp_path, loss))("serving_default", inputs=x)
    probabilities = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        answer["probabilities"], numpy_posterior(loss, probabilities), rtol=1e-4
    )
    np.testing.assert_allclose(special.softmax(answer["logits"], -1), probabilities, rtol=1e-4)


@exports
def test_versions(tmp_path):
    model, path = linear_model(), tmp_path / "new" / "model"
    first = serving.export(
        model,
        path,
        Decision(GLALoss(PRIORS), temperature=1.5),
        class_names=list("abc"),
        priors=[1, 1, 2],
    )
    assert first == path / "1"
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    classes = json.loads((first / "assets.extra" / "classes.json").read_text())
    assert classes["class_names"] == ["a", "b", "c"]
    assert classes["training_priors"] == pytest.approx(PRIORS)
    assert classes["priors"] == [0.25, 0.25, 0.5]
    decision = keras.saving.deserialize_keras_object(classes["decision"])
    assert decision == Decision(GLALoss(PRIORS), temperature=1.5)
    assert classes["rule"] == str(decision)

    for name in ("007", "notes", ".hidden"):
        (path / name).mkdir()
    assert serving.export(model, path, GLALoss(PRIORS)).name == "8"
    assert {file: file.read_bytes() for file in before} == before
    assert {child.name for child in path.iterdir()} == {"1", "8", "007", "notes", ".hidden"}


def test_a_version_that_another_export_took_is_left_alone(tmp_path, monkeypatch):
    for name in ("1", "2", "saved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_text(name)
    with monkeypatch.context() as patch:
        # As if the others had come after the look at what is there.
        patch.setattr(pathlib.Path, "iterdir", lambda self: iter(()))
        version = serving._rename_to_next_version(tmp_path / "saved", tmp_path)
    assert version.name == "3"
    assert [(tmp_path / name / "saved_model.pb").read_text() for name in "123"] == [
        "1",
        "2",
        "saved",
    ]


@exports
def test_a_reader_never_sees_half_a_model(tmp_path):
    seen, stop = [], threading.Event()

    def read():
        last = False
        while not last:
            last = stop.is_set()  # It reads once more, should it only now have its turn.
            for version in tmp_path.glob("[0-9]*"):
                seen.append({file.name for file in version.rglob("*")})

    reader = threading.Thread(target=read)
    reader.start()
    try:
        serving.export(linear_model(), tmp_path, GLALoss(PRIORS))
        serving.export(linear_model(), tmp_path, GLALoss(PRIORS))
    finally:
        stop.set()
        reader.join()
    assert seen
    assert all({"saved_model.pb", "variables.index", "classes.json"} <= files for files in seen)


@exports
def test_a_failed_export_leaves_nothing(tmp_path):
    class Refuses(keras.layers.Layer):
        def call(self, inputs, training=None):
            if training is False:
                raise RuntimeError("not today")
            return inputs

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Refuses()(inputs))
    with pytest.raises(RuntimeError, match="not today"):
        serving.export(model, tmp_path / "new" / "model", GLALoss(PRIORS))
    assert list(tmp_path.iterdir()) == []


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def two_inputs(*names):
    inputs = [keras.Input((3,), name=name) for name in names]
    return keras.Model(inputs, keras.layers.Add()(inputs))


def two_outputs():
    inputs = keras.Input((3,))
    return keras.Model(inputs, [inputs + 1, inputs + 2])


def soft_end(layer):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), layer])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": keras.Sequential([keras.layers.Dense(3)])},
            "`model` must be a built Functional",
        ),
        ({"model": Subclassed()}, "`model` must be a built Functional or Sequential model"),
        ({"model": two_outputs()}, "`model` must have one output, the logits. Received: 2"),
        ({"model": two_inputs("a", None)}, "Name each of several inputs"),
        ({"model": two_inputs("a", "priors")}, "and none `priors`"),
        ({"model": linear_model(2)}, "last axis of `y_pred` must have the 3 classes"),
        ({"model": linear_model(activation="softmax")}, "`model` must give logits"),
        ({"model": soft_end(keras.layers.Softmax())}, "`model` must give logits"),
        ({"model": soft_end(keras.layers.Activation("sigmoid"))}, "`model` must give logits"),
        ({"model": soft_end(keras.Sequential([keras.layers.Softmax()]))}, "must give logits"),
        (
            {"decision": None},
            "`decision` must be a `Decision`, or the loss of keras_balanced .* compiled loss=None",
        ),
        ({"decision": "mse"}, "`decision` must be a `Decision`, or a loss of keras_balanced"),
        ({"decision": BinaryGLALoss([0.1, 0.2])}, "last axis of `y_pred` must have the 2 classes"),
        ({"class_names": ["a", "b"]}, "`class_names` must be 3 different strings.* Received: 2"),
        ({"class_names": ["a", "b", 3]}, "`class_names` must be 3 different strings"),
        (
            {"decision": BinaryGLALoss(0.1), "class_names": ["cat", "dog", "owl"]},
            r"must be 2 different strings.*3 names.*positions.*BinaryGLALoss\(\[0.1\] \* 3\)",
        ),
        (
            {"decision": BinaryGLALoss(0.1), "priors": [0.1, 0.2, 0.3]},
            "`priors` must be one positive rate, as the loss has.*3 rates for a loss of one rate",
        ),
        (
            {"decision": BinaryGLALoss([0.1] * 3), "priors": [0.1, 0.2]},
            "one positive rate, or one for each label,.*2 rates for a loss of 3 labels",
        ),
        (
            {"class_names": ["a", "b", "a"]},
            r"must be 3 different strings.*Received: \['a'\] repeated",
        ),
        ({"priors": [1, 2]}, "`priors` must have one number for each of the 3"),
        ({"priors": [1, 2, -3]}, "`priors` must be positive"),
        (
            {"decision": Decision(THREE, costs=1 - np.eye(3), priors=PRIORS), "priors": [1, 1, 1]},
            "`priors` must be left out, or be that of the decision",
        ),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    defaults = {"model": linear_model(), "path": tmp_path / "model", "decision": GLALoss(PRIORS)}
    with pytest.raises(ValueError, match=message):
        serving.export(**{**defaults, **arguments})
    assert list(tmp_path.iterdir()) == []


@exports
@pytest.mark.parametrize("path", ["file", "file/model", "/dev/null/model", "/proc/model"])
def test_bad_path(path, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(ValueError, match="`path` must be a directory that can be written"):
        serving.export(linear_model(), tmp_path / path, GLALoss(PRIORS))
    assert (tmp_path / "file").read_text() == "here"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="TensorFlow and JAX do export")
def test_torch_is_refused(tmp_path):
    with pytest.raises(
        RuntimeError, match=r"cannot export a SavedModel .* KERAS_BACKEND=tensorflow"
    ):
        serving.export(linear_model(), tmp_path / "model", GLALoss(PRIORS))
    assert list(tmp_path.iterdir()) == []
