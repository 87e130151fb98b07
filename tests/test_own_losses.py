"""A loss of one's own goes where GLA and GCA go: searches, heads, export, calibration."""

import keras
import numpy as np
import pytest

from keras_balanced import BalancedLoss, GLALoss, Surrogate, tuning

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
        tuning.grid.loss_grid([1, 2], ["gla", weighted()], [0.0], [None], [None])
    with pytest.raises(ValueError, match="and a `name` of its own"):
        tuning.grid.loss_grid(PRIORS, [weighted(), weighted()], [0.0], [None], [None])
    with pytest.raises(ValueError, match=r"or a `BalancedLoss`. Received: losses=\['mse'\]"):
        tuning.grid.loss_grid(PRIORS, ["mse"], [0.0], [None], [None])


def test_heads_take_a_surrogate_and_refuse_what_they_cannot_stack(rng):
    x, y = examples(rng)
    model = build()
    found = tuning.search_last_layer(model, (x, y), (x, y), PRIORS, losses=[weighted()], steps=3)
    assert [(row["loss"], row["q"]) for row in found.table] == [("weighted", 0.2)]
    with pytest.raises(ValueError, match="Received: Doubled, which overrides `logits` or `call`"):
        tuning.search_last_layer(model, (x, y), (x, y), PRIORS, losses=[Doubled()], steps=3)


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
