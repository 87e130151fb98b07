"""A custom loss goes where GLA and GCA go: searches, export, calibration."""

import json

import keras
import numpy as np
import pytest

from benchmarks import baselines
from keras_balanced import (
    BalancedLoss,
    BinaryGLALoss,
    ClassPrior,
    Decision,
    GLALoss,
    MacroF1,
    Surrogate,
    serving,
    tuning,
)

PRIORS = [6, 3, 1]


class Doubled(BalancedLoss):
    """Of twice the logits."""

    def __init__(self, **kwargs):
        super().__init__(Surrogate(PRIORS, shift=np.log(PRIORS)), **kwargs)

    def logits(self, y_pred):
        return 2.0 * super().logits(y_pred)


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def weighted(name="weighted"):
    return BalancedLoss(Surrogate(PRIORS, q=0.2, weights=[0.5, 1, 2]), name=name)


def examples(rng):
    y = np.arange(60) % 3
    return (rng.normal(size=(60, 4)) + np.eye(3, 4)[y]).astype("float32"), y


def test_the_search_takes_it_beside_the_others(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    own = [weighted(), Doubled(name="doubled")]
    hypermodel = tuning.BalancedHyperModel(
        build, PRIORS, losses=["gla", *own], q=[0.0, 0.1], tau=[None]
    )
    tuner = tuning.GridSearch(hypermodel, hypermodel.objective, directory=tmp_path)
    losses = []

    def run_trial(trial, *args, **kwargs):
        losses.append(hypermodel.build(trial.hyperparameters).loss)
        return {"val_balanced_accuracy": 0.5}

    tuner.run_trial = run_trial
    tuner.search(verbose=0)
    assert sorted(loss.name for loss in losses) == ["doubled", "gla_loss", "gla_loss", "weighted"]
    assert {id(loss) for loss in own} <= {id(loss) for loss in losses}
    assert isinstance(tuner.oracle, keras_tuner.Oracle)


def test_bad_losses_of_ones_own_are_refused():
    with pytest.raises(ValueError, match=r"must have the 2 classes of `priors`.*named 'weighted'"):
        tuning.loss_grid([1, 2], ["gla", weighted()], [0.0])
    with pytest.raises(ValueError, match=r"must have the 2 classes of `priors`"):
        tuning.loss_grid([1, 2], ["gla", BinaryGLALoss(0.5)], [0.0])
    with pytest.raises(ValueError, match="and a `name` that no other has"):
        tuning.loss_grid(PRIORS, [weighted(), weighted()], [0.0])
    with pytest.raises(ValueError, match=r"or a `BalancedLoss`. Received: losses=\['mse'\]"):
        tuning.loss_grid(PRIORS, ["mse"], [0.0])


def test_surrogates_are_equal_by_value():
    surrogate = Surrogate(PRIORS, q=0.2, weights=[0.5, 1, 2])
    assert surrogate == Surrogate([0.6, 0.3, 0.1], q=0.2, weights=[0.5, 1, 2])
    assert hash(surrogate) == hash(Surrogate([0.6, 0.3, 0.1], q=0.2, weights=[0.5, 1, 2]))
    assert surrogate != Surrogate(PRIORS, q=0.2, weights=[0.5, 1, 2.0000001])
    assert surrogate != Surrogate(PRIORS, q=0.2, weights=[0.5, 1, 2], label_smoothing=0.1)
    assert surrogate != "surrogate"
    assert Surrogate(0.5, binary=True) != Surrogate([1, 1])
    assert weighted() == weighted() != weighted("another")
    assert GLALoss([1] * 9 + [2]) != GLALoss([1] * 9 + [3])  # Their `repr` cuts it off.
    assert GLALoss(PRIORS) == GLALoss(np.array(PRIORS))
    assert len({GLALoss(PRIORS), GLALoss(PRIORS), BalancedLoss(GLALoss(PRIORS).surrogate)}) == 2


def test_surrogates_cannot_be_changed(rng):
    mix = np.array([0.6, 0.3, 0.1])
    surrogate = Surrogate(mix, shift=mix)
    arrays = {k: v for k, v in vars(surrogate).items() if isinstance(v, np.ndarray)}
    assert len(arrays) > 8
    for array in arrays.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    mix[0] = 0.7  # It is the caller's.
    assert surrogate.priors[0] == surrogate.shift[0] == 0.6


def test_a_surrogate_is_registered():
    surrogate = Surrogate(
        [3, 1],
        target_priors=[0.2, 0.8],
        q=0.3,
        shift=[1, 2],
        margins=[1, 3],
        weights=[2, 1],
        label_smoothing=0.1,
    )
    config = keras.saving.serialize_keras_object(surrogate)
    assert config["registered_name"] == "keras_balanced>Surrogate"
    assert keras.saving.deserialize_keras_object(json.loads(json.dumps(config))) == surrogate


class EffectiveNumber(BalancedLoss):
    """Weights by the effective number of examples, for which priors are not enough."""

    def __init__(self, counts, beta=0.99, **kwargs):
        self.counts, self.beta = counts, beta
        numbers = np.asarray(getattr(counts, "counts", counts), "float64")
        super().__init__(Surrogate(counts, weights=(1 - beta) / (1 - beta**numbers)), **kwargs)


def test_a_loss_that_needs_counts_keeps_them(tmp_path):
    prior = ClassPrior(num_classes=3)
    prior.adapt(np.repeat([0, 1, 2], [600, 300, 100]))
    for counts in (prior, prior.counts, [600, 300, 100]):
        loss = EffectiveNumber(counts, beta=0.9, name="effective")
        config = json.loads(json.dumps(loss.get_config()))
        again = EffectiveNumber.from_config(config)
        assert again == loss
        assert again.surrogate == loss.surrogate != EffectiveNumber([6, 3, 1], 0.9).surrogate
        model = build()
        model.compile("sgd", loss)
        model.save(tmp_path / "model.keras")
        custom = {"EffectiveNumber": EffectiveNumber}
        loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom)
        assert loaded.loss == loss


@pytest.mark.parametrize(
    "make",
    [
        baselines.effective_number,
        baselines.LDAMLoss,
        lambda counts: baselines.VSLoss(counts, gamma=0.1, tau=1.0),
    ],
)
def test_losses_of_other_papers_take_a_class_prior_for_counts(make):
    prior = ClassPrior(num_classes=3)
    prior.adapt(np.repeat([0, 1, 2], [600, 300, 100]))
    loss = make(prior)
    assert loss == make([600, 300, 100])
    assert type(loss).from_config(json.loads(json.dumps(loss.get_config()))) == loss


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras does not export there")
def test_export_and_calibration_take_it(rng, tmp_path):
    tf = pytest.importorskip("tensorflow")
    from keras_balanced import serving

    x, y = examples(rng)
    model, loss = build(), Doubled()
    served = tf.saved_model.load(str(serving.export(model, tmp_path, loss)))
    answer = served.signatures["serving_default"](inputs=tf.constant(x))
    z = model.predict(x, verbose=0)
    np.testing.assert_allclose(answer["logits"], 2 * z, rtol=1e-5)
    # Twice the logits, under logit adjustment: their softmax with the shift left on.
    expected = GLALoss(PRIORS).posterior(2 * z)
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss.posterior(z), expected, rtol=1e-5, atol=1e-7)
    twice = keras.Sequential([model, keras.layers.Rescaling(2.0)])
    ours = serving.calibrate(model, loss, (x, y)).temperature
    assert ours == pytest.approx(serving.calibrate(twice, GLALoss(PRIORS), (x, y)).temperature)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


OF_LOGITS = Decision(GLALoss(PRIORS, tau=0))


@pytest.mark.parametrize(
    "read",
    [
        OF_LOGITS,
        OF_LOGITS.scores,
        OF_LOGITS.loss.posterior,
        lambda z: MacroF1(3, decision=OF_LOGITS)(np.arange(len(z)) % 3, z),
        lambda z: serving.find_decision(z, np.arange(len(z)) % 3, OF_LOGITS.loss),
    ],
    ids=["decision", "scores", "posterior", "metric", "find_decision"],
)
def test_arrays_of_probabilities_are_refused_where_logits_are_expected(read, rng):
    z = rng.normal(size=(30, 3)).astype("float32")
    with pytest.raises(
        ValueError, match="sum to 1 for every example; pass logits, or `from_logits=False`"
    ):
        read(softmax(z))
    with pytest.raises(ValueError, match="sum to 1 for every example"):
        read(softmax(z).tolist())
    read(z)
    read(np.full((30, 3), 1 / 3 + 0.01, "float32"))  # Logits need not sum to 1.


class OfLogarithms(GLALoss):
    """Reads predictions its own way."""

    def logits(self, y_pred):
        return keras.ops.log(y_pred)


def test_what_a_loss_reads_its_own_way_may_sum_to_1(rng):
    z = rng.normal(size=(30, 3)).astype("float32")
    expected = np.asarray(Decision(GLALoss(PRIORS, tau=0))(z))
    np.testing.assert_array_equal(Decision(OfLogarithms(PRIORS, tau=0))(softmax(z)), expected)


def test_a_few_logits_may_sum_to_1():
    decision = Decision(GLALoss(PRIORS))
    np.testing.assert_array_equal(decision(np.eye(3, dtype="float32")), [0, 1, 2])


class OnlyCall(BalancedLoss):
    def __init__(self, **kwargs):
        super().__init__(Surrogate(PRIORS), **kwargs)

    def call(self, y_true, y_pred):
        return 2 * super().call(y_true, y_pred)


class Both(OnlyCall):
    """Twice a loss has the same posterior."""

    log_posterior = BalancedLoss.log_posterior


class Sharper(OnlyCall):
    def __init__(self, power, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def log_posterior(self, logits, *, priors=None):
        return self.power * super().log_posterior(logits, priors=priors)


def test_a_posterior_of_another_call_is_refused(rng):
    z = rng.normal(size=(5, 3)).astype("float32")
    for refused in (OnlyCall().posterior, OnlyCall().log_posterior, lambda _: Decision(OnlyCall())):
        with pytest.raises(ValueError, match=r"must override `log_posterior` too .*OnlyCall"):
            refused(z)
    expected = np.asarray(BalancedLoss(Surrogate(PRIORS)).posterior(z))
    np.testing.assert_array_equal(Both().posterior(z), expected)
    np.testing.assert_allclose(Sharper(1.0).posterior(z), expected, rtol=1e-6)


def vs(gamma):
    return baselines.VSLoss([90, 9, 1], gamma, 1.0)


@pytest.mark.parametrize("kind", [vs, Sharper])
def test_two_decide_alike_only_with_the_same_arguments(kind):
    decision = Decision(kind(0.1))
    assert decision.decides_as(Decision(kind(0.1)))
    other = kind(0.1)
    other.name = "another"
    assert decision.decides_as(Decision(other))
    assert not decision.decides_as(Decision(kind(0.9)))
    assert not decision.decides_as(Decision(GLALoss([90, 9, 1])))
