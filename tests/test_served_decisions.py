"""One decision, the same class wherever it is made: on 10,000 examples, in every format."""

import importlib
import warnings

import keras
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score
from test_decisions import COSTS, PRIORS, away_from_ties

from keras_balanced import (
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    BinaryGCALoss,
    ClassRecall,
    Decision,
    GCALoss,
    GLALoss,
    callbacks,
    serving,
    tuning,
)

N = 10_000
SENT = np.array([0.2, 0.5, 0.3], "float32")
# How a decision of a loss is made; where `priors` is left out it does not depend on the mix met.
RULES = {
    "default": lambda loss, priors: Decision(loss, temperature=1.5),
    "mix": lambda loss, priors: Decision(loss, target_priors=[5, 3, 2], temperature=0.7),
    "costs": lambda loss, priors: Decision(loss, costs=COSTS, priors=priors, temperature=1.5),
    "logits": lambda loss, priors: Decision(loss, by="logits"),
}
BINARY_RULES = {
    "default": lambda loss, priors: Decision(loss),
    "mix": lambda loss, priors: Decision(loss, target_priors=0.3, temperature=2.0),
    "costs": lambda loss, priors: Decision(loss, costs=[[0, 1], [25, 0]], priors=priors),
    "threshold": lambda loss, priors: Decision(loss, threshold=0.04, priors=priors),
    "logits": lambda loss, priors: Decision(loss, by="logits"),
}
CASES = {
    **{("gla_tau", rule): (GLALoss(PRIORS, 0.5, 1.0), RULES[rule]) for rule in RULES},
    **{("gca", rule): (GCALoss(PRIORS), RULES[rule]) for rule in RULES},
    **{("one", rule): (BinaryGCALoss(0.1), BINARY_RULES[rule]) for rule in BINARY_RULES},
}
exports = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras does not export from PyTorch"
)


@pytest.fixture(params=CASES, ids=" ".join)
def case(request, rng):
    loss, rule = CASES[request.param]
    binary = loss.surrogate.binary
    z = (2 * rng.normal(size=(N, 1 if binary else 3))).astype("float32")
    decision = rule(loss, 0.1 if binary else PRIORS)
    under = rule(loss, 0.5 if binary else SENT)  # The same rule where another mix is met.
    return decision, under, z


def logits_model(z):
    inputs = keras.Input(z.shape[1:], name="x")
    same = keras.layers.Dense(z.shape[1], kernel_initializer="identity", use_bias=False)
    return keras.Model(inputs, same(inputs))


def same(found, decision, z):
    kept = away_from_ties(decision.scores(z), least=1e-4)
    np.testing.assert_array_equal(np.reshape(found, N)[kept], decision(z)[kept])


def test_metrics_reports_and_searches(case, rng):
    decision, _, z = case
    y, binary = rng.integers(0, 2 if z.shape[1] == 1 else 3, N), z.shape[1] == 1
    expected = balanced_accuracy_score(y, decision(z))
    metric = BinaryBalancedAccuracy if binary else BalancedAccuracy
    metric = metric(*(() if binary else (3,)), decision=decision)
    metric.update_state(y, z)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)

    model = logits_model(z)
    model.compile(keras.optimizers.SGD(0.0), decision.loss, metrics=[metric])
    report = callbacks.PerClassReport((z, y), decision=decision, verbose=0)
    history = model.fit(z[:10], y[:10, None], callbacks=[report], verbose=0).history
    recalls = recall_score(y, decision(z), average=None)
    found = [history[f"val_recall_{k}"][0] for k in range(len(recalls))]
    np.testing.assert_allclose(found, recalls, atol=1e-6)

    if not binary:
        hypermodel = tuning.BalancedHyperModel(
            lambda: logits_model(z),
            PRIORS,
            losses=[decision.loss],
            decision=lambda loss: Decision.from_config({**decision.get_config(), "loss": loss}),
        )
        trial = hypermodel.build(hypermodel_parameters())
        scores = trial.evaluate(z, y, verbose=0, return_dict=True)
        assert scores["balanced_accuracy"] == pytest.approx(expected, abs=1e-6)


def hypermodel_parameters():
    return pytest.importorskip("keras_tuner").HyperParameters()


def test_keras_file(case, tmp_path):
    decision, _, z = case
    inputs = keras.Input(z.shape[1:])
    keras.Model(inputs, decision(logits_model(z)(inputs))).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    same(loaded.predict(z, batch_size=1000, verbose=0), decision, z)


@exports
def test_saved_model_by_the_c_library(case, tmp_path):
    pytest.importorskip("tensorflow")
    decision, under, z = case
    model = importlib.import_module("c_loader").SavedModel(
        serving.export(logits_model(z), tmp_path, decision)
    )
    same(model.run("serving_default", inputs=z)["class_id"], decision, z)
    mix = SENT.copy() if z.shape[1] > 1 else np.array([0.5, 0.5], "float32")
    for sent in (mix[None], np.tile(mix, (N, 1)), 7 * mix[None]):
        answer = model.run("with_priors", inputs=z, priors=sent)
        same(answer["class_id"], under, z)
    mix[0] = 0  # A class that does not come up.
    answer = model.run("with_priors", inputs=z, priors=mix[None])
    assert 0 not in answer["class_id"]
    assert not answer["probabilities"][:, 0].any()


@exports
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # tf2onnx
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports from TensorFlow")
def test_litert_and_onnx(case, tmp_path):
    tf = pytest.importorskip("tensorflow")
    decision, _, z = case
    inputs = keras.Input(z.shape[1:])
    ended = keras.Model(inputs, decision(logits_model(z)(inputs)))
    ended.predict(z[:2], verbose=0)
    ended.export(tmp_path / "model.tflite", format="litert", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], z.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], z)
    interpreter.invoke()
    same(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), decision, z)

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    ended.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: z})
    same(answer, decision, z)


def test_a_metric_that_predicts_otherwise_is_said(rng):
    z, y = rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
    loss, model = GCALoss(PRIORS), logits_model(rng.normal(size=(1, 3)))
    model.compile(
        keras.optimizers.SGD(0.0),
        loss,
        metrics=[BalancedAccuracy(3), ClassRecall(3, 0, decision=loss)],
    )
    report = callbacks.PerClassReport((z, y), verbose=0)
    with pytest.warns(UserWarning, match=r"metrics \['balanced_accuracy'\] predict other classes"):
        model.fit(z, y, callbacks=[report], verbose=0)
    model.fit(z, y, callbacks=[report], verbose=0)  # Once.
    # The argmax of the logits is the default decision of GLA.
    model.compile(keras.optimizers.SGD(0.0), GLALoss(PRIORS), metrics=[BalancedAccuracy(3)])
    model.fit(z, y, callbacks=[callbacks.PerClassReport((z, y), verbose=0)], verbose=0)
