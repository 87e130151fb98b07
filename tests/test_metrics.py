"""Metrics equal scikit-learn's and imbalanced-learn's on the whole data, however it is batched."""

import itertools
import json

import keras
import numpy as np
import pytest
from imblearn.metrics import geometric_mean_score
from keras import ops
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from keras_balanced import (
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    BinaryGLALoss,
    ClassCalibrationError,
    ClassPrior,
    ClassRecall,
    Decision,
    GeometricMeanRecall,
    GLALoss,
    MacroF1,
    ShotRecall,
    WorstClassRecall,
)
from keras_balanced.metrics import shot_groups

K = 5
COUNTS = [500, 101, 100, 20, 19]
pytestmark = pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")


def recalls(y, z, w=None):
    """scikit-learn's recalls of the classes in `y`."""
    return recall_score(y, z.argmax(-1), labels=np.unique(y), average=None, sample_weight=w)


def calibration_error(y, p, w=None, num_bins=15):
    """The class-wise calibration error as its papers write it, bin by bin."""
    w = np.ones(len(y)) if w is None else w
    total = 0.0
    for k in range(K):
        bins = np.minimum((p[:, k] * num_bins).astype(int), num_bins - 1)
        for b in np.unique(bins):
            here = bins == b
            accuracy = np.average(y[here] == k, weights=w[here])
            confidence = np.average(p[here, k], weights=w[here])
            total += w[here].sum() / w.sum() * abs(accuracy - confidence) / K
    return total


def softmax(z):
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


# Each metric with its oracle; class 3 is absent.
METRICS = {
    "balanced accuracy": (
        lambda: BalancedAccuracy(K),
        lambda y, z, w: balanced_accuracy_score(y, z.argmax(-1), sample_weight=w),
    ),
    "recall of a class": (
        lambda: ClassRecall(K, class_id=2),
        lambda y, z, w: recalls(y, z, w)[2],
    ),
    "recalls": (
        lambda: ClassRecall(K),
        lambda y, z, w: np.insert(recalls(y, z, w), 3, 0.0),
    ),
    "worst class": (lambda: WorstClassRecall(K), lambda y, z, w: recalls(y, z, w).min()),
    "geometric mean": (
        lambda: GeometricMeanRecall(K),
        lambda y, z, w: geometric_mean_score(y, z.argmax(-1), labels=np.unique(y), sample_weight=w),
    ),
    "macro-F1": (
        lambda: MacroF1(K),
        lambda y, z, w: f1_score(y, z.argmax(-1), average="macro", sample_weight=w),
    ),
    "many": (lambda: ShotRecall(COUNTS, "many"), lambda y, z, w: recalls(y, z, w)[:2].mean()),
    "medium": (lambda: ShotRecall(COUNTS, "medium"), lambda y, z, w: recalls(y, z, w)[2]),
    "few": (lambda: ShotRecall(COUNTS, "few"), lambda y, z, w: recalls(y, z, w)[3]),
    "other thresholds": (
        lambda: ShotRecall(COUNTS, "few", thresholds=(1000, 101)),
        lambda y, z, w: recalls(y, z, w)[2:].mean(),
    ),
    "calibration of logits": (
        lambda: ClassCalibrationError(K, from_logits=True),
        lambda y, z, w: calibration_error(y, softmax(z), w),
    ),
    "calibration in 4 bins": (
        lambda: ClassCalibrationError(K, num_bins=4, from_logits=True),
        lambda y, z, w: calibration_error(y, softmax(z), w, num_bins=4),
    ),
}


@pytest.fixture
def batches(rng):
    """Labels (class 3 is absent), logits and weights in uneven batches."""
    y = rng.choice([0, 1, 2, 4], 201)
    z = rng.standard_normal((201, K)).astype("float32") + 0.5 * np.eye(K, dtype="float32")[y]
    w = rng.random(201).astype("float32")
    cuts = [0, 1, 40, 41, 200, 201]
    return y, z, w, [slice(a, b) for a, b in itertools.pairwise(cuts)]


def result(metric):
    return ops.convert_to_numpy(metric.result())


@pytest.mark.parametrize("labels", ["sparse", "column", "one_hot", "ignored", "sequences"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", METRICS)
def test_equals_the_oracle(name, labels, weighted, batches):
    make, oracle = METRICS[name]
    y, z, w, slices = batches
    expected = oracle(y, z, w if weighted else None)
    metric = make()
    if labels == "ignored":
        metric = type(metric).from_config({**metric.get_config(), "ignore_class": 255})
        y, z = np.append(y, [255] * 9), np.concatenate([z, z[:9]])
        w = np.append(w, np.ones(9))
        slices = [*slices, slice(201, 210)]
    if labels == "sequences":
        y, z, w, slices = y.reshape(3, 67), z.reshape(3, 67, K), w.reshape(3, 67), [slice(0, 3)]
    y = {"column": y[..., None], "one_hot": np.eye(K)[np.minimum(y, K - 1)]}.get(labels, y)
    for s in slices:
        metric.update_state(y[s], z[s], w[s] if weighted else None)
    np.testing.assert_allclose(result(metric), expected, atol=1e-6)


def test_a_real_class_can_be_ignored(batches):
    y, z, _, _ = batches
    metric = BalancedAccuracy(K, ignore_class=1)
    metric.update_state(y, z)
    expected = np.delete(recalls(y, z), 1).mean()
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_of_other_targets_and_decisions(batches):
    y, z, w, _ = batches
    metric = MacroF1(K, ignore_class=[1])
    metric.update_state(y, z)
    kept, others = y != 1, [0, 2, 3, 4]
    expected = f1_score(y[kept], z.argmax(-1)[kept], labels=others, average="macro")
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    # A soft target counts as fractions of examples, one of zeros not at all.
    soft = 0.75 * np.eye(K)[y] + 0.25 * np.eye(K)[0]
    metric = MacroF1(K)
    metric.update_state(np.concatenate([soft, np.zeros((9, K))]), np.concatenate([z, z[:9]]))
    labels = np.concatenate([y, np.zeros_like(y)])
    fractions = np.repeat([0.75, 0.25], len(y))
    expected = f1_score(labels, np.tile(z.argmax(-1), 2), average="macro", sample_weight=fractions)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    decision = Decision(GLALoss(np.ones(K)), target_priors=[1, 2, 3, 4, 5])
    metric = MacroF1(K, decision=decision)
    metric.update_state(y, z, w)
    expected = f1_score(y, decision(z), average="macro", sample_weight=w)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.update_state(np.array([K]), z[:1])  # No label.
    assert np.isnan(result(metric))


class Mask(keras.layers.Layer):
    """Passes its input on, with a mask where the first feature is positive."""

    supports_masking = True

    def call(self, inputs):
        return inputs * 1.0

    def compute_mask(self, inputs, previous_mask=None):
        return inputs[..., 0] > 0


@pytest.mark.parametrize("name", METRICS)
def test_masked_positions_do_not_count(name, batches):
    make, oracle = METRICS[name]
    y, z, w, _ = batches
    kept = z[:, 0] > 0
    metric = make()
    metric.update_state(np.where(kept, y, -7), Mask()(z), w)
    np.testing.assert_allclose(result(metric), oracle(y[kept], z[kept], w[kept]), atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("label", [-1, K])
def test_a_label_out_of_range_is_not_silent(name, label, batches):
    y, z, _, _ = batches
    metric = METRICS[name][0]()
    metric.update_state(np.where(np.arange(201) == 7, label, y), z)
    assert np.isnan(result(metric)).any()


@pytest.mark.parametrize("name", METRICS)
def test_nothing_seen_is_zero_and_reset_forgets(name, batches):
    y, z, _, _ = batches
    metric = METRICS[name][0]()
    assert (result(metric) == 0.0).all()
    metric.update_state(y, z)
    assert (result(metric) > 0.0).any()
    metric.reset_state()
    assert (result(metric) == 0.0).all()


@pytest.mark.parametrize("shape", [(120,), (120, 1), (12, 10)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_binary(shape, weighted, ignored, rng):
    y, z = rng.integers(0, 2, 120), rng.standard_normal(120)
    w = rng.random(120) if weighted else np.ones(120)
    kept = np.arange(120) >= (20 if ignored else 0)
    expected = balanced_accuracy_score(y, z > 0.3, sample_weight=w * kept)
    above = Decision(BinaryGLALoss(0.5), threshold=1 / (1 + np.exp(-0.3)), priors=0.5)
    metric = BinaryBalancedAccuracy(decision=above, ignore_class=-1 if ignored else None)
    y = np.where(kept, y, -1).reshape(shape)
    metric.update_state(y, z.reshape(shape), w.reshape(shape) if weighted else None)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_binary_of_probabilities_bad_labels_and_masks(rng):
    y, z = rng.integers(0, 2, 50), rng.standard_normal((50, 1)).astype("float32")
    of_half = Decision(BinaryGLALoss(0.1, from_logits=False), by="logits")
    logits, probabilities = BinaryBalancedAccuracy(), BinaryBalancedAccuracy(decision=of_half)
    logits.update_state(y, z)
    probabilities.update_state(y, 1 / (1 + np.exp(-z)))
    assert float(logits.result()) == float(probabilities.result()) > 0
    masked, kept = BinaryBalancedAccuracy(), z[:, 0] > 0
    masked.update_state(np.where(kept, y, 9), Mask()(z))
    assert float(masked.result()) == pytest.approx(balanced_accuracy_score(y[kept], z[kept, 0] > 0))
    logits.update_state(np.array([2]), z[:1])
    assert np.isnan(float(logits.result()))


def test_a_batch_of_more_pixels_than_float32_counts():
    size = 2**24 + 2**20
    y_pred = np.zeros((size, 2), "int8")
    y_pred[: size // 4, 1] = 1
    metric = ClassRecall(2, class_id=0)
    metric.update_state(np.zeros(size, "int8"), y_pred)
    assert float(metric.total[0]) == size
    assert float(metric.result()) == 0.75


def test_logits_are_no_probabilities():
    metric = ClassCalibrationError(2)
    metric.update_state(np.array([0, 1]), np.array([[3.0, -1.0], [0.5, 0.5]]))
    assert np.isnan(result(metric))


def test_soft_targets_count_as_fractions():
    metric = ClassRecall(2)
    metric.update_state(np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(metric.result()), [0.0, 1.0])
    metric.update_state(np.array([[0.75, 0.25]]), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(metric.result()), [0.375, 0.75])
    calibration = ClassCalibrationError(2)
    calibration.update_state(np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]]))
    assert float(calibration.result()) == pytest.approx(0.25)


def test_shot_groups():
    groups = shot_groups(ClassPrior(5, counts=COUNTS))
    assert {name: group.tolist() for name, group in groups.items()} == {
        "many": [True, True, False, False, False],
        "medium": [False, False, True, True, False],
        "few": [False, False, False, False, True],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "tail"}, "`group` must be"),
        ({"counts": [200, 50]}, r"The group 'few' must have a class. Received: counts=\[200"),
        ({"counts": [200, -5]}, "`counts` must be a 1-D vector"),
        ({"counts": [[200, 5]]}, "`counts` must be a 1-D vector"),
        ({"thresholds": (20, 100)}, "`thresholds` must have the larger first"),
    ],
)
def test_bad_shots(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShotRecall(**{"counts": [200, 5], "group": "few", **arguments})


def test_weights_of_fewer_axes_broadcast(rng):
    y = rng.integers(0, K, (6, 7))
    z = rng.standard_normal((6, 7, K))
    w = rng.random(6)
    metric = ClassRecall(K)
    metric.update_state(y, z, w)
    flat = ClassRecall(K)
    flat.update_state(y.ravel(), z.reshape(-1, K), np.repeat(w, 7))
    np.testing.assert_allclose(
        ops.convert_to_numpy(metric.result()), ops.convert_to_numpy(flat.result()), rtol=1e-6
    )


def test_in_fit_and_evaluate(batches):
    y, z, _, _ = batches
    model = keras.Sequential([keras.Input((K,)), keras.layers.Dense(K)])
    model.compile(
        "sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[BalancedAccuracy(K), ClassRecall(K), ClassRecall(K, class_id=1, name="first")],
    )
    history = model.fit(z, y, validation_data=(z, y), batch_size=32, verbose=2).history
    predicted = model.predict(z, verbose=0).argmax(-1)
    expected = recall_score(y, predicted, labels=range(K), average=None, zero_division=0)
    assert history["val_balanced_accuracy"][-1] == pytest.approx(expected[[0, 1, 2, 4]].mean())
    assert history["val_first"][-1] == pytest.approx(expected[1])
    np.testing.assert_allclose(history["val_class_recall"][-1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("metric_class", "arguments"),
    [
        (BalancedAccuracy, {"num_classes": 3}),
        (ClassRecall, {"num_classes": 3, "class_id": 2}),
        (WorstClassRecall, {"num_classes": 3}),
        (GeometricMeanRecall, {"num_classes": 3}),
        (MacroF1, {"num_classes": 3}),
        (ShotRecall, {"counts": [9.0, 5.0], "group": "few", "thresholds": [7.0, 6.0]}),
        (ClassCalibrationError, {"num_classes": 3, "num_bins": 4, "from_logits": True}),
        (BinaryBalancedAccuracy, {"num_labels": 3, "label_id": 1}),
    ],
)
def test_config_round_trip(metric_class, arguments):
    # JAX has no float64 unless it is switched on.
    dtype = "bfloat16" if keras.backend.backend() == "jax" else "float64"
    arguments = {"name": "other", "dtype": dtype, "ignore_class": -1, **arguments}
    config = json.loads(json.dumps(metric_class(**arguments).get_config()))
    none = {"decision": None}
    if metric_class is ClassCalibrationError:
        none = {"loss": None, "priors": None, "temperature": 1.0}
    assert config == {**arguments, **none}
    assert metric_class.from_config(config).get_config() == config


@pytest.mark.parametrize("class_id", [5, -1, 1.5, "cat"])
def test_unknown_class_id(class_id):
    with pytest.raises(ValueError, match=r"`class_id` must be an integer in \[0, 5\)"):
        ClassRecall(K, class_id=class_id)


@pytest.mark.parametrize(
    ("y", "w", "message"),
    [
        (np.zeros(3), None, "`y_true` must hold integer classes"),
        (np.zeros(4), np.zeros((4, 2)), "`sample_weight` must have the leading axes"),
    ],
)
def test_bad_shapes(y, w, message):
    with pytest.raises(ValueError, match=message):
        BalancedAccuracy(K).update_state(y, np.zeros((4, K)), w)


def test_a_probability_of_one_stays_in_the_last_bin_of_its_class():
    metric = ClassCalibrationError(2)
    metric.update_state(np.array([1]), np.array([[1.0, 0.0]], "float32"))
    assert float(metric.result()) == 1.0


def test_a_probability_above_one_is_none():
    metric = ClassCalibrationError(2)
    metric.update_state(np.array([0]), np.array([[1.5, 0.5]], "float32"))
    assert np.isnan(float(metric.result()))


def test_hits_of_soft_targets_belong_to_the_class_predicted():
    metric = ClassRecall(2)
    metric.update_state(np.array([[0.25, 0.75]], "float32"), np.array([[1.0, 0.0]], "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(metric.result()), [1.0, 0.0])
