"""The recipes, each by itself: `make test-docs`. Custom training loops: `test_loops.py`."""

from collections import Counter

import keras
import numpy as np
import pytest
from pages import code_blocks, run_blocks, sections
from scipy import optimize, special
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import cross_val_predict
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import keras_balanced
from keras_balanced import serving

pytestmark = pytest.mark.docs
RECIPES = sections("docs/recipes.md")


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Returns `follow(heading)`: runs a recipe; `replace` are edits that a reader would make."""
    monkeypatch.chdir(tmp_path)

    def follow(heading, *replace, **variables):
        text = RECIPES[heading]
        for old, new in replace:
            assert old in text
            text = text.replace(old, new)
        return run_blocks(RECIPES[""], text, **variables)

    return follow


def score(found):
    return balanced_accuracy_score(found["y_test"], found["classes"])


@pytest.mark.parametrize("heading", RECIPES)
def test_recipes_are_short(heading):
    for block in code_blocks(RECIPES[heading]):
        assert sum(bool(line.strip()) for line in block.splitlines()) <= 26


# The optimizer of KerasHub's own compilation, which the recipe replaces.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")
def test_keras_hub(follow):
    pytest.importorskip("keras_hub")
    again = "loaded.compile("
    found = follow("KerasHub: an image classifier", (again, f"first = loaded.loss\n{again}"))
    assert not isinstance(found["first"], keras_balanced.GLALoss)  # Hence: compile again.
    assert found["loaded"].loss.get_config() == found["model"].loss.get_config()
    scores = [
        model.evaluate(found["x_test"] / 255, found["y_test"], verbose=0)
        for model in (found["model"], found["loaded"])
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_scikit_learn(follow):
    found = follow("scikit-learn and imbalanced-learn")
    assert found["scores"].shape == (3,)
    assert found["scores"].min() > 0.5  # It trained more than the one epoch of Keras's default.
    # The prior of the pipeline's model is that of what the sampler gave it.
    _, resampled = found["resample"].fit_resample(found["flat"], found["y"])
    counts = np.bincount(resampled)
    assert counts.min() == 30 > np.bincount(found["y"]).min()
    loss = found["pipeline"][-1].model_.loss
    np.testing.assert_allclose(loss.get_config()["priors"], counts / counts.sum())
    assert score(found) > 0.5
    # Why the recipe gives the epochs to `cross_val_score`.
    wrapper = keras.wrappers.SKLearnClassifier(found["build_compiled"], fit_kwargs={"epochs": 3})
    assert not clone(wrapper).fit_kwargs


def test_any_model(follow):
    heading = "Any model: cross_val_predict and scikit-learn"
    found = follow(heading)
    pixels = found["x_test"].reshape(-1, 64) / 255
    y_test, by_argmax = found["y_test"], found["classifier"].predict(pixels)
    assert score(found) > balanced_accuracy_score(y_test, by_argmax) + 0.02
    macro_f1 = f1_score(y_test, found["classes"], average="macro")
    assert macro_f1 > f1_score(y_test, by_argmax, average="macro") + 0.02
    # With class weights the probabilities are of a balanced mix.
    again = follow(
        heading,
        ("(max_iter=1000)", '(max_iter=1000, class_weight="balanced")'),
        ("np.bincount(y)", "np.ones(10)"),
    )
    balanced = keras_balanced.Decision(again["loss"])(again["held_out"])
    np.testing.assert_array_equal(balanced, again["held_out"].argmax(axis=-1))
    # Text labels, in another order than the digits.
    names = np.array(list("jihgfedcba"))
    classifier = clone(found["classifier"]).fit(found["flat"], names[found["y"]])
    positions = np.searchsorted(classifier.classes_, names[found["y"]])
    held_out = cross_val_predict(classifier, found["flat"], positions, cv=3, method="predict_proba")
    loss = keras_balanced.GLALoss(np.bincount(positions), tau=0, from_logits=False)
    decision = serving.find_decision(held_out, positions, loss, priors=np.ones(10) / 10).decision
    answers = classifier.classes_[decision(classifier.predict_proba(pixels))]
    assert abs(balanced_accuracy_score(names[y_test], answers) - score(found)) < 0.05


def test_tensorboard(follow, tmp_path):
    follow("TensorBoard: the recall of each class")
    (events,) = (tmp_path / "results/board/validation").glob("events.*")
    steps = Counter(
        value.tag for event in EventFileLoader(str(events)).Load() for value in event.summary.value
    )
    assert [steps[f"epoch_recall_digit {k}"] for k in range(10)] == [2] * 10


def test_callbacks_of_keras_stop_at_a_vector(tmp_path):
    x, y = np.eye(3, dtype="float32"), np.arange(3)
    model = keras.Sequential([keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[keras_balanced.ClassRecall(3)])
    with pytest.raises(ValueError, match="Expected scalar shape"):
        model.fit(x, y, callbacks=[keras.callbacks.TensorBoard(tmp_path)], verbose=0)
    stop = keras.callbacks.EarlyStopping("class_recall", mode="max")
    with pytest.raises(ValueError, match="truth value of an array"):
        model.fit(x, y, epochs=2, callbacks=[stop], verbose=0)


@pytest.mark.parametrize("layer", ["MixUp(alpha=0.2, seed=0)", "CutMix(seed=0)"])
def test_mixing(follow, layer):
    found = follow("MixUp and CutMix", ("MixUp(alpha=0.2, seed=0)", layer))
    targets = np.concatenate([targets for _ in range(50) for _, targets in found["data"]])
    assert (np.count_nonzero(targets, axis=-1) == 2).mean() > 0.3  # Soft.
    mix = targets.mean(axis=0)
    np.testing.assert_allclose(mix, found["prior"].priors, rtol=0.1)
    found["classes"] = found["model"].predict(found["x_test"], verbose=0).argmax(axis=-1)
    assert score(found) > 0.6


def test_resuming(follow):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    heading = "Resuming a training"
    stop = ("callbacks=[backup]", "callbacks=[backup, interrupt]")
    with pytest.raises(KeyboardInterrupt):
        follow(heading, stop, interrupt=Interrupt())
    found = follow(heading)
    assert found["history"].epoch == [3, 4]
    assert found["loaded"].loss.get_config() == found["model"].loss.get_config()
    assert found["loaded"].loss.get_config()["q"] == 0.1


def test_two_phases(follow):
    found = follow("Two phases: cross-entropy, then GCA")
    first = follow(
        "Two phases: cross-entropy, then GCA",
        ("GCALoss(prior)", "GLALoss(prior, tau=0)"),
        ("Decision(loss)", 'Decision(loss, by="logits")'),
    )
    assert score(found) > score(first)


def test_many_items(follow):
    """Of queries that are an item in half of the cases, that item comes out as the likeliest."""
    found = follow("Many items: a softmax over the items of a batch")
    losses = found["history"].history["loss"]
    assert losses[-1] < losses[0]
    assert (found["scores"].argmax(axis=-1) == np.arange(200))[:100].mean() > 0.5


def stationary_probabilities(loss_class, chances, eta):
    """Returns the probabilities at the minimum of the expected loss, of sets and their chances."""
    sets = np.array(list(chances), "float32")
    weights = np.array([eta @ chance for chance in chances.values()])
    loss = loss_class(np.ones(len(eta)), reduction=None)

    def expected(free):
        logits = np.tile(np.append(free, 0.0), (len(sets), 1)).astype("float32")
        return float(weights @ keras.ops.convert_to_numpy(loss(sets, logits)))

    free = optimize.minimize(expected, np.zeros(len(eta) - 1), method="Nelder-Mead").x
    return special.softmax(np.append(free, 0.0))


def test_label_sets(follow):
    found = follow("Labels that are sets of classes")
    counts = np.bincount(found["y"])
    np.testing.assert_allclose(found["mix"], counts / counts.sum(), atol=0.03)
    assert found["sets"].sum(axis=-1).max() == 5
    assert score(found) > 0.6

    loss_class, rng = found["SetLoss"], np.random.default_rng(0)
    priors, logits = [60, 30, 10], rng.normal(size=(5, 3)).astype("float32")
    loss = loss_class(priors, reduction=None)
    sets = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]], "float32")
    p = special.softmax(logits.astype("float64") + np.log(priors), axis=-1)
    values = keras.ops.convert_to_numpy(loss(sets, logits))
    np.testing.assert_allclose(values, -np.log((sets * p).sum(axis=-1)), rtol=1e-5, atol=1e-6)
    gla = keras_balanced.GLALoss(priors, reduction=None)
    np.testing.assert_allclose(values[:2], gla(np.array([0, 2]), logits[:2]), rtol=1e-5)
    np.testing.assert_allclose(loss.posterior(logits), gla.posterior(logits), rtol=1e-5)
    # What has weight 0 may be anything, and a loaded loss is the same.
    weighted = loss(0 * sets, logits, sample_weight=np.zeros(5))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weighted), 0.0)
    assert loss_class.from_config(loss.get_config()) == loss

    eta = np.array([0.5, 0.3, 0.2])
    for chance, expected in ((np.array([0.5, 0.5, 0]), eta), (np.array([0.2, 0.8, 0]), None)):
        chances = {(1, 1, 0): chance}
        chances |= {tuple(row): row * (1 - chance) for row in np.eye(3)}
        result = stationary_probabilities(loss_class, chances, eta)
        expected = [0.696, 0.104, 0.2] if expected is None else expected
        np.testing.assert_allclose(result, expected, atol=0.003)
