"""A model that ends in a `LogitAdjustment`, and a loss that would adjust its logits once more."""

import keras
import keras_tuner
import pytest
from keras import ops

from keras_balanced import (
    BinaryGLALoss,
    GCALoss,
    GLALoss,
    LogitAdjustment,
    backends,
    callbacks,
    serving,
    tuning,
)
from keras_balanced.layers import refuse_adjusted_twice

PRIORS, RATES = [90, 9, 1], [0.1, 0.3, 0.01]
TWICE = "`loss` must be that of the adjusted logits.*adjusted twice"
PLAIN = {
    "cross-entropy": GLALoss(PRIORS, tau=0),
    "smoothed": GLALoss(PRIORS, tau=0, label_smoothing=0.1),
    "with q": GLALoss(PRIORS, q=0.3, tau=0),
    "towards the training mix": GLALoss(PRIORS, target_priors=PRIORS),
    "weighted": GCALoss(PRIORS, margins=None),
}
ADJUSTED = {"default": GLALoss(PRIORS), "smoothed": GLALoss(PRIORS, label_smoothing=0.1)}


class Doubled(keras.layers.Layer):
    def call(self, z):
        return 2 * z


class Unknown(keras.Model):
    def call(self, z):
        return 2 * z


def stack(*layers):
    return lambda z: keras.Sequential(layers)(z)


def adjust():
    return LogitAdjustment(PRIORS)


ENDS = {
    "adjusted": lambda z: adjust()(z),
    "identity": lambda z: keras.layers.Identity()(adjust()(z)),
    "reshape": lambda z: keras.layers.Reshape((3,))(adjust()(z)),
    "dropout": lambda z: keras.layers.Dropout(0.5)(adjust()(z)),
    "linear": lambda z: keras.layers.Activation("linear")(adjust()(z)),
    "float32": lambda z: ops.cast(adjust()(z), "float32"),
    "transposed": lambda z: ops.transpose(ops.transpose(adjust()(z))),
    "no gradient": lambda z: ops.stop_gradient(adjust()(z)),
    "nested": stack(keras.layers.Dense(3), adjust()),
    "a copy": lambda z: keras.models.clone_model(keras.Sequential([keras.Input((3,)), adjust()]))(
        z
    ),
}
OTHERS = {
    "no adjustment": lambda z: keras.layers.Dense(3)(z),
    "of strength 0": lambda z: LogitAdjustment(PRIORS, tau=0)(z),
    "to the training mix": lambda z: LogitAdjustment(PRIORS, target_priors=PRIORS)(z),
    "not at the end": lambda z: keras.layers.Dense(3)(adjust()(z)),
    "changed after it": lambda z: Doubled()(adjust()(z)),
    "a model that says nothing": lambda z: Unknown()(adjust()(z)),
}


def ending(end, shape=(3,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, end(inputs))


@pytest.mark.parametrize("end", ENDS)
def test_ends(end):
    model = ending(ENDS[end])
    for loss in PLAIN.values():
        with pytest.raises(ValueError, match=TWICE) as error:
            refuse_adjusted_twice(model, loss)
        assert "logit_adjustment" in str(error.value)
        assert len(str(error.value)) < 600
    for loss in ADJUSTED.values():
        refuse_adjusted_twice(model, loss)


@pytest.mark.parametrize("end", OTHERS)
def test_what_adjusts_nothing(end):
    for loss in PLAIN.values():
        refuse_adjusted_twice(ending(OTHERS[end]), loss)


def test_probabilities_of_adjusted_logits():
    loss = GLALoss(PRIORS, tau=0, from_logits=False)
    for softmax in (keras.layers.Softmax(), keras.layers.Activation("softmax"), ops.softmax):
        with pytest.raises(ValueError, match=TWICE):
            refuse_adjusted_twice(ending(lambda z, f=softmax: f(adjust()(z))), loss)
        refuse_adjusted_twice(ending(lambda z, f=softmax: f(keras.layers.Dense(3)(z))), loss)
    of_probabilities = LogitAdjustment(PRIORS, from_logits=False)
    model = ending(lambda z: of_probabilities(keras.layers.Softmax()(z)))
    assert backends.probability_layer(model) is of_probabilities
    with pytest.raises(ValueError, match=TWICE):
        refuse_adjusted_twice(model, loss)
    refuse_adjusted_twice(model, GLALoss(PRIORS, from_logits=False))
    # What a layer adds beside its softmax stands between.
    dense = keras.layers.Dense(3, activation="softmax")
    refuse_adjusted_twice(ending(lambda z: dense(adjust()(z))), loss)


def test_steps_and_labels():
    within = keras.Sequential([keras.layers.Dense(3), adjust()])
    for layer in (adjust(), within):
        model = ending(keras.layers.TimeDistributed(layer), (5, 3))
        with pytest.raises(ValueError, match=TWICE):
            refuse_adjusted_twice(model, PLAIN["cross-entropy"])
    for rates, size in ((0.1, 1), (RATES, 3), ([0.1, 0.1], 2)):
        model = ending(LogitAdjustment(rates, binary=True), (size,))
        with pytest.raises(ValueError, match=TWICE):
            refuse_adjusted_twice(model, BinaryGLALoss(rates, tau=0))
        refuse_adjusted_twice(model, BinaryGLALoss(rates))


def test_models_that_are_not_built():
    model = keras.Sequential([keras.layers.Dense(3), adjust()])
    outer = keras.Sequential([model, keras.layers.Identity()])
    for sequential in (model, outer):
        assert not sequential.built
        with pytest.raises(ValueError, match=TWICE):
            refuse_adjusted_twice(sequential, PLAIN["cross-entropy"])
        refuse_adjusted_twice(sequential, ADJUSTED["default"])
    refuse_adjusted_twice(keras.Sequential([*model.layers, Doubled()]), PLAIN["cross-entropy"])
    refuse_adjusted_twice(keras.Sequential(), PLAIN["cross-entropy"])


@pytest.fixture
def data(rng):
    return rng.normal(size=(60, 3)).astype("float32"), rng.integers(0, 3, 60)


@pytest.mark.parametrize("how", ["compiled", "given"])
@pytest.mark.parametrize("loss", ["cross-entropy", "smoothed"])
def test_report_calibrate_export(loss, how, data, tmp_path):
    loss, model = PLAIN[loss], ending(ENDS["identity"])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss if how == "compiled" else cross_entropy)
    given = loss if how == "given" else None
    report = callbacks.PerClassReport(data, decision=given, verbose=0)
    with pytest.raises(ValueError, match=TWICE):
        model.fit(*data, callbacks=[report], verbose=0)
    with pytest.raises(ValueError, match=TWICE):
        serving.calibrate(model, given, data)
    with pytest.raises(ValueError, match=TWICE):
        serving.export(model, tmp_path, given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", ["cross-entropy", "smoothed"])
@pytest.mark.parametrize("built", [True, False])
def test_search(loss, built):
    def build():
        first = [keras.Input((3,))] if built else []
        return keras.Sequential([*first, keras.layers.Dense(3), adjust()])

    hypermodel = tuning.BalancedHyperModel(build, PRIORS, losses=[PLAIN[loss]])
    with pytest.raises(keras_tuner.errors.FatalValueError, match=TWICE):
        hypermodel.build(keras_tuner.HyperParameters())


@pytest.mark.parametrize("names", [("left", "right"), ("right", "left")])
def test_several_outputs(names, data):
    """The keys of outputs need not be the names of their layers."""
    x, y = data
    inputs = keras.Input((3,))
    outputs = {"left": adjust()(inputs), "right": keras.layers.Dense(3)(inputs)}
    model = keras.Model(inputs, {name: outputs[name] for name in names})
    loss = PLAIN["cross-entropy"]
    model.compile("sgd", dict.fromkeys(names, loss))
    labels = dict.fromkeys(names, y)
    report = callbacks.PerClassReport((x, labels), output_name="left", verbose=0)
    with pytest.raises(ValueError, match=TWICE):
        model.fit(x, labels, callbacks=[report], verbose=0)
    report = callbacks.PerClassReport((x, labels), output_name="right", verbose=0)
    model.fit(x, labels, callbacks=[report], verbose=0)


@pytest.mark.parametrize("names", [("left", "right"), ("right", "left")])
def test_a_softmax_is_seen_at_the_output_that_has_it(names, data):
    x, y = data
    inputs = keras.Input((3,))
    outputs = {"left": keras.layers.Softmax()(inputs), "right": keras.layers.Dense(3)(inputs)}
    model = keras.Model(inputs, {name: outputs[name] for name in names})
    of_probabilities = GLALoss(PRIORS, from_logits=False)
    model.compile("sgd", {"left": of_probabilities, "right": GLALoss(PRIORS)})
    labels = dict.fromkeys(names, y)
    for name in names:
        report = callbacks.PerClassReport((x, labels), output_name=name, verbose=0)
        model.fit(x, labels, callbacks=[report], verbose=0)
