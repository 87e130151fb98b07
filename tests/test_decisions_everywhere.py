"""One rule, stated once, decides alike in Python, metrics, reports, searches, files and servers."""

import importlib
import re
import types
import warnings

import keras
import keras_tuner
import numpy as np
import pytest

from keras_balanced import (
    BinaryGCALoss,
    BinaryGLALoss,
    Decision,
    GCALoss,
    GLALoss,
    callbacks,
    metrics,
    serving,
    tuning,
)

if keras.backend.backend() != "tensorflow":
    pytest.skip("exports and searches with TensorFlow", allow_module_level=True)

NUMBER = 10_000
PRIORS, RATES = [90, 9, 1], [0.1, 0.3, 0.01]
COSTS = [[0, 1, 2], [5, 0, 2], [50, 20, 0]]
RULES = {
    "default": Decision(GCALoss(PRIORS)),
    "mix": Decision(GLALoss(PRIORS, q=0.3), target_priors=[3, 2, 1]),
    "mix, margins": Decision(GCALoss(PRIORS), target_priors=[3, 2, 1], temperature=1.7),
    "mix, smoothed": Decision(GCALoss(PRIORS, label_smoothing=0.1), target_priors=[3, 2, 1]),
    "costs": Decision(GCALoss(PRIORS, q=0.2), costs=COSTS, priors=PRIORS, temperature=0.8),
    "mix, tau": Decision(GLALoss(PRIORS, q=0.5, tau=1.0), target_priors=[3, 2, 1]),
    "logits": Decision(GLALoss(PRIORS, q=0.7, tau=1.0), by="logits"),
    "two classes": Decision(GLALoss([9, 1]), threshold=0.3, priors=[9, 1]),
    "one logit": Decision(BinaryGCALoss(0.1), threshold=0.2, priors=0.05),
    "labels": Decision(BinaryGLALoss(RATES), threshold=[0.2, 0.4, 0.05], priors=RATES),
    "labels, costs": Decision(BinaryGLALoss(RATES), costs=[[0, 1], [9, 0]], priors=RATES),
}


def outputs_of(surrogate):
    return 1 if not surrogate.axes else surrogate.num_labels or len(surrogate.priors)


# Others of the same kind are quick.
SLOW = {"mix", "mix, smoothed", "mix, tau", "logits", "labels, costs"}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RULES]
)
def case(request):
    """A rule, a model that gives its inputs as logits, and what is decided away from ties."""
    decision = RULES[request.param]
    surrogate = decision.loss.surrogate
    size = outputs_of(surrogate)
    x = (2 * np.random.default_rng(0).normal(size=(NUMBER, size))).astype("float32")
    scores = np.sort(decision.scores(x), axis=-1)
    apart = (scores[..., -1] - scores[..., -2] > 1e-3).reshape(NUMBER, -1).all(axis=-1)
    assert apart.mean() > 0.9
    x = x[apart]
    expected = np.asarray(decision(x))
    assert len(np.unique(expected)) == (2 if surrogate.binary else len(surrogate.priors))
    inputs = keras.Input((size,))
    identity = keras.layers.Dense(size, use_bias=False, kernel_initializer="identity")
    model = keras.Model(inputs, identity(inputs))
    return types.SimpleNamespace(decision=decision, size=size, x=x, expected=expected, model=model)


def balanced_accuracy(case, decision):
    """The metric that finds every recall 1 where the labels are what is decided."""
    surrogate = case.decision.loss.surrogate
    if surrogate.binary:
        return metrics.BinaryBalancedAccuracy(
            num_labels=surrogate.num_labels, decision=decision, name="right"
        )
    return metrics.BalancedAccuracy(len(surrogate.priors), decision=decision, name="right")


def test_metric_and_report(case, capsys):
    case.model.compile(
        keras.optimizers.SGD(0.0),
        case.decision.loss,
        metrics=[balanced_accuracy(case, case.decision)],
    )
    report = callbacks.PerClassReport((case.x, case.expected), decision=case.decision)
    data = case.x, case.expected
    history = case.model.fit(
        *data, 4096, epochs=1, verbose=0, validation_data=data, callbacks=[report]
    ).history
    assert history["val_right"] == [1.0]
    (worst,) = [name for name in history if name.startswith("val_worst")]
    assert history[worst] == [1.0]
    assert str(case.decision) in capsys.readouterr().out
    # And not whatever the rule.
    if len(case.decision.loss.surrogate.priors) == 3 and not case.decision.loss.surrogate.binary:
        others = balanced_accuracy(case, GLALoss(PRIORS, tau=0))
        others.update_state(case.expected, case.x)
        assert float(others.result()) < 0.99


def test_search(case):
    loss = case.decision.loss
    if loss.surrogate.binary:
        pytest.skip("searches are of classes")
    found = tuning.BalancedHyperModel(
        lambda: keras.models.clone_model(case.model),
        loss.surrogate.priors,
        losses=[loss],
        decision=lambda _: case.decision,
    ).build(keras_tuner.HyperParameters())
    scores = found.evaluate(case.x, case.expected, 4096, verbose=0, return_dict=True)
    assert scores["balanced_accuracy"] == 1.0


def test_keras_file(case, tmp_path):
    decided = keras.Model(case.model.input, case.decision(case.model.output))
    decided.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(case.x, 4096, verbose=0), case.expected)


def test_served(case, tmp_path):
    version = serving.export(case.model, tmp_path, case.decision)
    served = importlib.import_module("c_loader").SavedModel(version)
    answer = served.run("serving_default", inputs=case.x)
    np.testing.assert_array_equal(answer["class_id"], case.expected)

    # Under a mix that is sent: costs and thresholds move with it, other rules do not.
    surrogate, decision = case.decision.loss.surrogate, case.decision
    if surrogate.num_labels:
        mix = [0.2, 0.05, 0.5]
    else:
        mix = 0.3 if surrogate.binary else [0.2, 0.3, 0.5][-len(surrogate.priors) :]
    if decision.priors is not None:
        rule = {"costs": decision.costs, "threshold": decision.threshold}
        decision = Decision(decision.loss, priors=mix, temperature=decision.temperature, **rule)
    wanted = [1 - mix, mix] if np.ndim(mix) == 0 else mix
    answer = served.run("with_priors", inputs=case.x, priors=np.array([wanted], "float32"))
    scores = np.sort(decision.scores(case.x), axis=-1)
    apart = scores[..., -1] - scores[..., -2] > 1e-3
    assert apart.mean() > 0.9
    np.testing.assert_array_equal(answer["class_id"][apart], decision(case.x)[apart])


def test_a_metric_that_predicts_otherwise_is_said(rng):
    z, y = rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
    loss, inputs = GCALoss(PRIORS), keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile(
        keras.optimizers.SGD(0.0),
        loss,
        metrics=[metrics.BalancedAccuracy(3), metrics.ClassRecall(3, 0, decision=loss)],
    )
    report = callbacks.PerClassReport((z, y), verbose=0)
    with pytest.warns(UserWarning, match=r"metrics \['balanced_accuracy'\] predict other classes"):
        model.fit(z, y, callbacks=[report], verbose=0)
    model.fit(z, y, callbacks=[report], verbose=0)  # Once.
    # The argmax of the logits is the default decision of GLA.
    model.compile(keras.optimizers.SGD(0.0), GLALoss(PRIORS), metrics=[metrics.BalancedAccuracy(3)])
    model.fit(z, y, callbacks=[callbacks.PerClassReport((z, y), verbose=0)], verbose=0)


def compiled(loss, kind="metrics", given=None, wrap=None, num_classes=3):
    """A model of logits, compiled with a metric of recalls that has a decision or none."""
    inputs = keras.Input((num_classes,))
    model = keras.Model(inputs, keras.layers.Identity(name="out")(inputs))
    ours = metrics.BalancedAccuracy(num_classes, decision=given)
    model.compile("sgd", loss, **{kind: {"out": [ours]} if wrap else [ours]})
    return model


def warned(function, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments)
    return [str(w.message) for w in caught if "predict other classes" in str(w.message)]


GLA, GCA = GLALoss(PRIORS), GCALoss(PRIORS)
BY_COSTS = Decision(GLA, costs=COSTS, priors=PRIORS)
EVEN_COSTS = Decision(GLA, costs=COSTS, priors=[1, 1, 1])
PLAIN = Decision(GLA, target_priors=PRIORS)


@pytest.mark.parametrize(("kind", "wrap"), [("metrics", False), ("weighted_metrics", True)])
@pytest.mark.parametrize(
    ("loss", "of_metric", "exported", "words"),
    [
        (GLA, None, None, None),
        (GLA, GLA, None, None),
        (GLA, PLAIN, PLAIN, None),
        (GLA, PLAIN, None, "every class is equally frequent"),  # Forgotten in the export.
        (GLA, BY_COSTS, None, "every class is equally frequent"),
        (GLA, GLALoss(PRIORS, from_logits=False), None, "every class is equally frequent"),
        (GLA, EVEN_COSTS, None, "every class is equally frequent"),
        (GLA, None, PLAIN, r"class mix \[0.9, 0.09, 0.01\]"),  # The rule that is served.
        (GLA, GLA, PLAIN, None),  # Both are stated.
        (GCA, None, None, "every class is equally frequent"),
        (GCA, None, GCA, "every class is equally frequent"),
        (GCA, GCA, None, None),
        (GCA, None, Decision(GCA, by="logits"), None),
    ],
)
def test_an_export_says_what_was_measured_otherwise(
    loss, of_metric, exported, words, kind, wrap, tmp_path
):
    file = tmp_path / "file"
    file.touch()

    def export():  # Stops before it writes.
        with pytest.raises(ValueError, match="`path` must be a directory"):
            serving.export(compiled(loss, kind, of_metric, wrap), file, exported)

    said = warned(export)
    assert len(said) == (words is not None)
    assert words is None or re.search(words, said[0])


def test_what_is_no_decision_is_refused_in_a_line(rng, tmp_path):
    z, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    found = serving.find_decision(z, y, GLA)
    decides = [
        lambda: metrics.MacroF1(3, decision=found),
        lambda: callbacks.PerClassReport((z, y), decision=found),
        lambda: serving.export(compiled(GLA), tmp_path, found),
    ]
    for function in decides:
        with pytest.raises(
            ValueError, match=r"`decision` must be.*; pass its `decision`$"
        ) as error:
            function()
        assert len(str(error.value)) < 400


def test_logits_are_not_taken_for_probabilities(rng):
    p = rng.dirichlet(np.ones(3), 20)
    decision = Decision(GLALoss(PRIORS, from_logits=False))
    assert decision(p).shape == (20,)
    for read in (decision, decision.scores):
        with pytest.raises(ValueError, match=r"`y_pred` must be probabilities.*from_logits=False"):
            read(np.log(p))


def test_calibrate_says_it_only_of_the_loss_that_was_trained_with(rng):
    data = rng.normal(size=(60, 3)).astype("float32"), rng.integers(0, 3, 60)
    data[0][np.arange(60), data[1]] += 0.5
    for loss, number in ((GCA, 1), (GLA, 0)):
        assert len(warned(serving.calibrate, compiled(loss), loss, data)) == number
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = compiled(cross_entropy)
    assert not warned(serving.calibrate, model, GLALoss(PRIORS, tau=0), data)


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_report_looks_at_the_metrics_of_its_output(as_dict, rng):
    z, y = rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(3, name=name)(inputs) for name in ("left", "right")}
    model = keras.Model(inputs, outputs)
    of_left = metrics.BalancedAccuracy(3, name="of_left")
    by_output = {"left": [of_left], "right": [metrics.BalancedAccuracy(3, decision=GCA)]}
    model.compile(
        keras.optimizers.SGD(0.0),
        {"left": GCA, "right": GCA},
        metrics=by_output if as_dict else [by_output[name] for name in model.output_names],
    )
    labels = {"left": y, "right": y}
    for name, number in (("left", 1), ("right", 0)):
        report = callbacks.PerClassReport((z, labels), output_name=name, verbose=0)
        said = warned(lambda report=report: model.fit(z, labels, callbacks=[report], verbose=0))
        assert len(said) == number
        assert all("['of_left']" in text for text in said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # tf2onnx
def test_elsewhere(case, tmp_path):
    """LiteRT and ONNX, of the model that ends with the decision."""
    decided = keras.Model(case.model.input, case.decision(case.model.output))
    decided(case.x[:2])
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    decided.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: case.x})
    np.testing.assert_array_equal(answer, case.expected)

    pytest.importorskip("keras", minversion="3.13", reason="Older Keras exports no LiteRT.")
    import tensorflow as tf

    decided.export(tmp_path / "model.tflite", format="litert", verbose=False)
    runner = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (name,) = runner.get_input_details()
    answers = [next(iter(runner(**{name: row[None]}).values())) for row in case.x]
    np.testing.assert_array_equal(np.concatenate(answers), case.expected)
