"""Every export: saved by one process, loaded by another, trained on as if nothing had happened.

Keras saves an array in a config, or a class that is not registered, without a word, and then
fails to load it. Here no argument is at its default, and vectors come as NumPy arrays.
"""

import inspect
import json

import keras
import numpy as np
import pytest
from processes import run

import keras_balanced

CLASSES = {
    name: getattr(keras_balanced, name)
    for name in keras_balanced.__all__
    # A decision cannot have all of its arguments: test_decisions.py.
    if inspect.isclass(getattr(keras_balanced, name)) and name not in ("Decision", "Surrogate")
}
# By the name of the parameter: a new one needs a line here.
VALUES = {
    "binary": False,
    "class_id": 1,
    "consistent": True,
    "counts": np.array([200, 50, 5]),
    "decision": keras_balanced.Decision(
        keras_balanced.GCALoss([60, 30, 10], from_logits=False), target_priors=[3, 2, 1]
    ),
    "dtype": "float32",
    "from_logits": False,
    "group": "medium",
    "ignore_class": [255, -1],
    "label_id": 1,
    "label_smoothing": 0.1,
    "loss": keras_balanced.GCALoss([60, 30, 10], from_logits=False),
    "margins": np.array([1.0, 1.5, 2.0]),
    "multi_label": True,
    "num_bins": 7,
    "num_classes": 3,
    "num_labels": 3,
    "output_mode": "weight",
    "priors": np.array([60, 30, 10]),
    "q": 0.2,
    "reduction": "sum",
    "smoothing": 2.0,
    "surrogate": keras_balanced.Surrogate(
        [60, 30, 10],
        target_priors=[0.2, 0.3, 0.5],
        q=0.2,
        shift=[0.1, 0.2, 0.3],
        margins=[1.0, 1.5, 2.0],
        weights=[3.0, 2.0, 1.0],
    ),
    "target_priors": np.array([0.2, 0.3, 0.5]),
    "tau": 0.8,
    "temperature": 1.5,
    "thresholds": np.array([100, 20]),
}
OF_BINARY = {"priors": np.array(0.2), "target_priors": np.array(0.4), "margins": np.array([1, 2])}
OF_BINARY_METRIC = {
    "decision": keras_balanced.Decision(
        keras_balanced.BinaryGCALoss(0.2, from_logits=False), by="logits"
    )
}
OF_MULTI_LABEL = {"counts": np.array([[70, 30], [90, 10], [50, 50]])}


def parameters(name):
    own = dict(inspect.signature(CLASSES[name]).parameters)
    if own.pop("kwargs", None) and issubclass(CLASSES[name], keras_balanced.BalancedLoss):
        handed_on = dict(inspect.signature(keras_balanced.BalancedLoss).parameters)
        own |= {key: p for key, p in handed_on.items() if key != "surrogate"}
    if name == "ClassCalibrationError":  # It has one of the two: test_metrics.py.
        del own["from_logits"]
    return list(own.values())


def arguments(name):
    values = {**VALUES, "name": f"own_{name.lower()}"}
    values |= OF_BINARY if "Binary" in name else {}
    values |= OF_BINARY_METRIC if name == "BinaryBalancedAccuracy" else {}
    values |= OF_MULTI_LABEL if name == "ClassPrior" else {}
    missing = [p.name for p in parameters(name) if p.name not in values]
    assert not missing, f"`VALUES` in test_round_trips.py needs a value for {missing} of {name}"
    return {p.name: values[p.name] for p in parameters(name)}


@pytest.mark.parametrize("name", CLASSES)
def test_config_is_whole_and_only_json(name):
    export, given = CLASSES[name], arguments(name)
    for parameter in parameters(name):
        assert given[parameter.name] is not parameter.default
    config = export(**given).get_config()
    written = json.dumps(config)
    for key, value in given.items():
        is_object = key in ("surrogate", "loss", "decision")
        value = keras.saving.serialize_keras_object(value) if is_object else value
        np.testing.assert_array_equal(config[key], value, err_msg=key)
    again = export.from_config(json.loads(written))
    assert json.dumps(again.get_config()) == written


def of_kind(kind, binary=False):
    return [n for n, c in CLASSES.items() if issubclass(c, kind) and ("Binary" in n) == binary]


def loss_model(name):
    """A small model trained with this loss, under all metrics that go with it."""
    binary = "Binary" in name
    x = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(8, "relu")(x)  # No dropout: Keras saves no generator's state.
    last = keras.layers.Dense(1, "sigmoid") if binary else keras.layers.Dense(3, "softmax")
    model = keras.Model({"x": x}, last(hidden))
    of_labels = ("num_labels", "label_id")
    metrics = [
        CLASSES[n](**{k: v for k, v in arguments(n).items() if k not in of_labels})
        for n in of_kind(keras.metrics.Metric, binary)
    ]
    model.compile(keras.optimizers.Adam(0.01), CLASSES[name](**arguments(name)), metrics=metrics)
    return model


def class_prior_model():
    """Priors of labels among its features."""
    inputs = {
        "x": keras.Input((4,), name="x"),
        "labels": keras.Input((3,), name="labels", dtype="int32"),
    }
    weights = keras_balanced.ClassPrior(**arguments("ClassPrior"))(inputs["labels"])
    features = keras.layers.Concatenate()([inputs["x"], weights])
    model = keras.Model(inputs, keras.layers.Dense(3)(features))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras_balanced.GLALoss([6, 3, 1]))
    return model


def logit_adjustment_model():
    x = keras.Input((4,), name="x")
    adjustment = keras_balanced.LogitAdjustment(**arguments("LogitAdjustment"))
    model = keras.Model({"x": x}, adjustment(keras.layers.Dense(3)(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


MODELS = {
    **{
        name: lambda name=name: loss_model(name)
        for binary in (False, True)
        for name in of_kind(keras.losses.Loss, binary)
    },
    "ClassPrior": class_prior_model,
    "LogitAdjustment": logit_adjustment_model,
}
# Both processes run this; the one that loads imports nothing else of ours.
TRAIN = """
import keras
import keras_balanced
import numpy as np


def train_on(model, data):
    x, y = {name: data[name] for name in data if name != "y"}, data["y"]
    history = model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history
    weights = {f"weight {i}": weight for i, weight in enumerate(model.get_weights())}
    variables = {f"optimizer {i}": v for i, v in enumerate(model.optimizer.variables)}
    results = {**weights, **variables, **history}
    return {name: keras.ops.convert_to_numpy(value) for name, value in results.items()}
"""
LOAD = """
import pathlib
import sys

for file in pathlib.Path(sys.argv[1]).glob("*.keras"):
    model = keras.saving.load_model(file)
    with np.load(file.with_suffix(".npz")) as data:
        results = train_on(model, dict(data))
    np.savez(file.with_suffix(".loaded.npz"), **results)
"""


@pytest.mark.slow
def test_training_continues_in_another_process(tmp_path):
    namespace = {}
    exec(TRAIN, namespace)
    rng = np.random.default_rng(0)
    expected = {}
    for name, build in MODELS.items():
        keras.utils.set_random_seed(0)
        model = build()
        data = {"x": rng.normal(size=(40, 4)).astype("float32"), "y": rng.integers(0, 3, 40)}
        if "Binary" in name:
            data["y"] = data["y"].clip(0, 1)[:, None]
        if name == "ClassPrior":
            data["labels"] = rng.integers(0, 2, (40, 3)).astype("int32")
        namespace["train_on"](model, data)
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", **data)
        expected[name] = namespace["train_on"](model, data)
    run("-c", TRAIN + LOAD, tmp_path)
    for name, without in expected.items():
        with np.load(tmp_path / f"{name}.loaded.npz") as loaded:
            assert set(loaded) == set(without)
            for key, value in without.items():
                message = f"{name}: {key}"
                np.testing.assert_allclose(loaded[key], value, 1e-5, 1e-6, err_msg=message)
        assert any(key.startswith("optimizer") and np.ndim(without[key]) > 1 for key in without)


def test_no_export_is_left_out():
    metrics = of_kind(keras.metrics.Metric) + of_kind(keras.metrics.Metric, binary=True)
    assert {*MODELS, *metrics} == set(CLASSES)
