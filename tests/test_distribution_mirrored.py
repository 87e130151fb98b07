"""Training under `tf.distribute.MirroredStrategy` equals training on one device.

Logical CPUs are set before TensorFlow starts, and a process keeps to one number of replicas. So
this file runs itself as a program, once for two replicas and once for four. The model has many
branches, one for each loss, that share nothing but their inputs.
"""

import json
import sys

import keras
import numpy as np
import pytest
from processes import finish, start

import keras_balanced
from keras_balanced import (
    BinaryGCALoss,
    BinaryGLALoss,
    ClassPrior,
    GCALoss,
    GLALoss,
    LogitAdjustment,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="runs with KERAS_BACKEND=tensorflow"
    ),
]
COUNTS = [40, 20, 10, 6, 4]
K = len(COUNTS)
STEPS, FEATURES = 4, 6  # of a sequence
CROSS_ENTROPY = (lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True), "sparse")
LOSSES = {
    "post_hoc": CROSS_ENTROPY,
    "gla": (lambda: GLALoss(COUNTS, q=0.4, tau=1.0), "sparse"),
    "gla_ignore": (lambda: GLALoss(COUNTS, ignore_class=-1), "ignore"),
    "gca": (lambda: GCALoss(COUNTS, q=0.2, margins="cube_root", consistent=True), "sparse"),
    "gca_soft": (lambda: GCALoss(COUNTS, margins="cube_root", consistent=False), "soft"),
    "binary_gla": (lambda: BinaryGLALoss(0.2, q=0.3), "binary"),
    "binary_gca": (lambda: BinaryGCALoss(0.2), "binary"),
}
# On four replicas.
FEW = {name: LOSSES[name] for name in ("gla", "gca_soft", "binary_gla")}
UNEVEN = {
    "ce": CROSS_ENTROPY,
    "gla": LOSSES["gla"],
    "gla_weighted_mean": (lambda: GLALoss(COUNTS, reduction="mean_with_sample_weight"), "sparse"),
    "gla_sum": (lambda: GLALoss(COUNTS, reduction="sum"), "sparse"),
}
UNEVEN_CASES = {
    "59": ((59, 30), {"evaluate": True}),
    "31": ((31, 30), {}),
    "59, repeated": ((59, 30), {"repeat": True}),
    "uneven masks": ((60, 30), {"even_masks": False}),
}
# Of each loss the cross-entropy with the same class weights, which it is given as sample weights.
REFERENCES = {"gla": "ce", "gca": "ce_reweighted", "gca_soft": "ce_reweighted"}
HALF_PRECISION = {name: LOSSES[name] for name in REFERENCES} | {
    "ce": CROSS_ENTROPY,
    "ce_reweighted": CROSS_ENTROPY,
}


def metrics():
    arguments = {"num_classes": K, "counts": [4 * n for n in COUNTS], "group": "few"}
    made = []
    for name in keras_balanced.__all__:
        export = getattr(keras_balanced, name)
        if isinstance(export, type) and issubclass(export, keras.metrics.Metric):
            needs = export.__init__.__code__.co_varnames
            made.append(export(**{k: v for k, v in arguments.items() if k in needs}))
    return [m for m in made if "binary" not in m.name], [m for m in made if "binary" in m.name]


def build(losses, seed=0):
    inputs = keras.Input((STEPS, FEATURES))
    masked = keras.layers.Masking()(inputs)
    outputs = {}
    for name in losses:
        keras.utils.set_random_seed(seed)  # The same start for each branch.
        units = 1 if "binary" in name else K
        x = keras.layers.Dense(8, "tanh", name=f"{name}_hidden")(masked)
        x = keras.layers.Dense(units, name=f"{name}_logits", dtype="float32")(x)
        if name == "post_hoc":
            x = LogitAdjustment(COUNTS)(x)
        outputs[name] = keras.layers.Identity(name=name, dtype="float32")(x)
    return keras.Model(inputs, outputs)


def batches(losses, examples, batch, even_masks=True, repeat=False):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, STEPS, FEATURES)).astype("float32")
    y = rng.choice(K, (examples, STEPS), p=np.divide(COUNTS, sum(COUNTS))).astype("int32")
    weights = rng.uniform(0.5, 2.0, (examples, STEPS)).astype("float32")
    length = np.full(examples, 3) if even_masks else np.arange(examples) % 10 // 5 * 2 + 1
    x[np.arange(STEPS) >= length[:, None]] = 0
    prior = ClassPrior(K, output_mode="weight", dtype="float32")
    prior.adapt(tf.data.Dataset.from_tensor_slices(y).batch(7))

    def targets(x, y, w):
        labels = {
            "sparse": y,
            "soft": tf.one_hot(y, K),
            "ignore": tf.where(tf.range(STEPS) == 1, -1, y),
            "binary": tf.cast(y > 1, tf.float32)[..., None],
        }
        w = w * prior(y)
        scales = {
            # Of a sum, what makes it a part of the mean over the global batch.
            "gla_sum": 1.0 / (batch * STEPS),
            "ce_reweighted": tf.gather(np.float32(sum(COUNTS) / np.multiply(K, COUNTS)), y),
        }
        scaled = {name: w * scales.get(name, 1.0) for name in losses}
        return x, {name: labels[kind] for name, (_, kind) in losses.items()}, scaled

    dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).map(targets)
    return (dataset.repeat() if repeat else dataset).batch(batch)


class Trainer:
    """A compiled model, and its weights and logs after some steps on some data.

    What takes the time is that TensorFlow traces and compiles the step of many branches: all data
    of the same losses go through one model, which starts anew for each.
    """

    def __init__(self, strategy, losses, with_metrics=True):
        self.losses = losses
        with strategy.scope():
            self.model = build(losses)
            of_classes, binary = metrics() if with_metrics else ([], [])
            self.model.compile(
                keras.optimizers.SGD(0.05, momentum=0.9),
                jit_compile=False,  # Compiling takes longer than it saves.
                loss={name: loss() for name, (loss, _) in losses.items()},
                weighted_metrics={"gla": of_classes, "binary_gla": binary}
                if "binary_gla" in losses
                else {"gla": of_classes},
            )
            self.model.optimizer.build(self.model.trainable_variables)
        self.variables = self.model.weights + self.model.optimizer.variables
        self.first = [variable.numpy() for variable in self.variables]

    def weights(self):
        return {
            name: np.concatenate(
                [w.numpy().ravel() for w in self.model.trainable_weights if w.path.startswith(own)]
            ).tolist()
            for name in self.losses
            for own in [(f"{name}_hidden/", f"{name}_logits/")]
        }

    def train(self, examples, batch, evaluate=False, **arguments):
        """Returns the weights of each branch, before and after 12 steps or so, and the logs."""
        for variable, value in zip(self.variables, self.first, strict=True):
            variable.assign(value)
        data = batches(self.losses, examples, batch, **arguments)
        before, logs = self.weights(), {}
        if evaluate:
            logs["evaluate"] = self.model.evaluate(data, verbose=0, return_dict=True)
        steps = -(-examples // batch)
        history = self.model.fit(data, epochs=12 // steps, steps_per_epoch=steps, verbose=0).history
        return {"before": before, "after": self.weights(), "logs": {**logs, "fit": history}}


def compare(alone, many):
    """How far the replicas end up from one device: weights of each branch, logs."""
    before, one, two = (
        {name: np.array(of_branches[name]) for name in many["after"]}
        for of_branches in (alone["before"], alone["after"], many["after"])
    )
    return {
        "moved": {name: np.abs(one[name] - before[name]).max() for name in one},
        "off": {name: np.abs(one[name] - two[name]).max() for name in one},
        "off_on_average": {
            name: np.abs(one[name] - two[name]).mean() / np.abs(one[name] - before[name]).mean()
            for name in one
        },
        "logs": {
            f"{kind} {name}": np.abs(np.subtract(values, many["logs"][kind][name])).max()
            / max(np.abs(values).max(), 1e-3)  # The recall of a class can be 0.
            for kind in alone["logs"]
            for name, values in alone["logs"][kind].items()
            # The loss of all branches is of others where there are fewer.
            if name in many["logs"][kind] and (name != "loss" or len(one) == len(alone["after"]))
        },
    }


def refusal(strategy):
    """The error of a batch that the replicas do not divide."""
    with strategy.scope():
        model = build({"ce": CROSS_ENTROPY})
        model.compile("sgd", loss={"ce": CROSS_ENTROPY[0]()})
    try:
        model.fit(batches({"ce": CROSS_ENTROPY}, 31, 31), verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def late_strategy(strategy):
    """The error of a model that is older than its strategy."""
    model = build({"ce": CROSS_ENTROPY})
    try:
        with strategy.scope():
            model.compile("sgd", loss={"ce": CROSS_ENTROPY[0]()})
            model.fit(batches({"ce": CROSS_ENTROPY}, 30, 30), verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(replicas):
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    # One for all: a second one in the process mixes its collectives up with those of the first.
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    losses = LOSSES if replicas == 2 else FEW
    found = {"even": Trainer(strategy, losses).train(96, 32, evaluate=True)}
    if replicas == 2:
        one = tf.distribute.get_strategy()
        found["even, alone"] = Trainer(one, LOSSES).train(96, 32, evaluate=True)
        of_one, of_two = Trainer(one, UNEVEN), Trainer(strategy, UNEVEN)
        for name, (arguments, options) in UNEVEN_CASES.items():
            found[f"{name}, alone"] = of_one.train(*arguments, **options)
            found[name] = of_two.train(*arguments, **options)
        keras.config.set_dtype_policy("mixed_bfloat16")
        for name, its_strategy in (("mixed_bfloat16, alone", one), ("mixed_bfloat16", strategy)):
            found[name] = Trainer(its_strategy, HALF_PRECISION, with_metrics=False).train(96, 32)
        keras.config.set_dtype_policy("float32")
        found["late"] = late_strategy(strategy)
        found["refusal"] = refusal(strategy)
    print("\n" + json.dumps(found, default=np.ndarray.tolist))


@pytest.fixture(scope="module")
def found():
    programs = [start(__file__, n, KERAS_BACKEND="tensorflow") for n in (2, 4)]
    found = {}
    for replicas, (code, output) in zip((2, 4), finish(*programs), strict=True):
        assert code == 0, output
        found[replicas] = json.loads(output.splitlines()[-1])
    return {
        replicas: {
            name: compare(found[2][f"{name}, alone"], run) if f"{name}, alone" in found[2] else run
            for name, run in runs.items()
        }
        for replicas, runs in found.items()
    }


@pytest.mark.parametrize(
    ("replicas", "loss"), [*((2, name) for name in LOSSES), *((4, name) for name in FEW)]
)
def test_even_batches_are_exact(found, replicas, loss):
    case = found[replicas]["even"]
    assert case["moved"][loss] > 0.1
    assert case["off"][loss] < 1e-6


@pytest.mark.parametrize("replicas", [2, 4])
def test_logs_of_epochs_are_exact(found, replicas):
    logs = found[replicas]["even"]["logs"]
    assert {"evaluate gla_balanced_accuracy", "fit gla_class_recall", "fit gla_loss"} <= set(logs)
    losses = LOSSES if replicas == 2 else FEW
    assert len([name for name in logs if name.startswith("fit")]) >= len(losses) + 7
    assert max(logs.values()) < 1e-6


def test_metrics_are_exact_on_uneven_batches(found):
    logs = found[2]["59"]["logs"]
    metrics = [name for name in logs if name.startswith("evaluate") and "loss" not in name]
    assert len(metrics) >= 6
    assert max(logs[name] for name in metrics) < 1e-6


@pytest.mark.parametrize(("case", "least"), [("59", 1e-3), ("31", 0.05), ("uneven masks", 1e-2)])
def test_uneven_parts_need_a_sum(found, case, least):
    # If the first fails, Keras has mended it: the guide can drop the warning.
    off = found[2][case]["off"]
    assert min(off["ce"], off["gla"], off["gla_weighted_mean"]) > least
    assert off["gla_sum"] < 1e-6


def test_repeated_data_is_exact(found):
    off = found[2]["59, repeated"]["off"]
    assert max(off["ce"], off["gla"], off["gla_sum"]) < 1e-6
    assert off["gla_weighted_mean"] > 1e-3  # A replica divides by its own weights.


@pytest.mark.parametrize("loss", REFERENCES)
def test_half_precision_rounds_as_cross_entropy_does(found, loss):
    off = found[2]["mixed_bfloat16"]["off_on_average"]
    reference = off[REFERENCES[loss]]
    assert reference > 1e-5
    assert off[loss] < 2 * reference  # Twice: how it rounds is chance.


def test_refusals_of_the_framework(found):
    assert "must have the same size and shape" in found[2]["refusal"]
    assert found[2]["late"].startswith("AssertionError")


if __name__ == "__main__":
    main(int(sys.argv[1]))
