"""Training under `keras.distribution` on JAX equals training on one device.

JAX takes its number of devices when it starts: this file runs itself as a program, with four
virtual devices in one process, and with one in each of two.
"""

import json
import sys

import keras
import numpy as np
import pytest
from processes import finish, free_addresses, start

from keras_balanced import BalancedAccuracy, BinaryGCALoss, GCALoss, GLALoss

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="runs with KERAS_BACKEND=jax"
)
COUNTS = np.arange(12, 0, -1) * 3
K, FEATURES, EXAMPLES, BATCH = len(COUNTS), 6, 96, 24
LOSSES = {
    "ce": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "gla": lambda: GLALoss(COUNTS, q=0.3, tau=None),
    "gla_ignore": lambda: GLALoss(COUNTS, ignore_class=-1),
    "gca": lambda: GCALoss(COUNTS, margins="cube_root", consistent=False),
    "gca_soft": lambda: GCALoss(COUNTS, q=0.2, margins="cube_root", consistent=False),
    "binary_gca": lambda: BinaryGCALoss(np.full(K, 0.2)),
}


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES, FEATURES)).astype("float32")
    y = rng.choice(K, EXAMPLES, p=COUNTS / COUNTS.sum()).astype("int32")
    return x, y, rng.uniform(0.5, 2.0, EXAMPLES).astype("float32")


def build():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, "tanh", name="body"),
            keras.layers.Dense(K, name="head"),
        ]
    )


def train(name, part=0, parts=1):
    """Returns the weights after 12 steps and the logs, from one of the parts of each batch."""
    arrays = data()
    arrays = [a.reshape(-1, parts, BATCH // parts, *a.shape[1:])[:, part] for a in arrays]
    x, y, w = (a.reshape(-1, *a.shape[2:]) for a in arrays)
    if name in ("gca_soft", "binary_gca"):
        y = np.eye(K, dtype="float32")[y]
    if name == "gla_ignore":
        y = np.where(np.arange(len(y)) % BATCH < 4, -1, y)  # All on one device.
    model = build()
    ignored = None if y.ndim > 1 else -1  # One-hot targets have no ids to ignore.
    metrics = [] if name == "binary_gca" else [BalancedAccuracy(K, ignore_class=ignored)]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSSES[name](), weighted_metrics=metrics)
    logs = model.fit(
        x, y, BATCH // parts, sample_weight=w, epochs=3, shuffle=False, verbose=0
    ).history
    return model, logs


def compare(one, many):
    """How far the weights moved, how far two runs are apart, and their logs."""
    start = build().get_weights()
    (model, logs), (other, other_logs) = one, many
    weights, others = model.get_weights(), other.get_weights()
    return {
        "moved": float(max(np.abs(a - b).max() for a, b in zip(weights, start, strict=True))),
        "off": float(max(np.abs(a - b).max() for a, b in zip(weights, others, strict=True))),
        "logs": float(max(np.abs(np.subtract(logs[k], other_logs[k])).max() for k in logs)),
    }


def four_devices():
    alone = {name: train(name) for name in LOSSES}
    found = {"data": {}, "model": {}}
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    for name in LOSSES:
        found["data"][name] = compare(alone[name], train(name))
    x, y, _ = data()
    try:
        train("gla")[0].fit(x[:30], y[:30], batch_size=30, verbose=0)
    except ValueError as error:
        found["refusal"] = str(error)

    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*head/kernel"] = (None, "model")
    layout[".*head/bias"] = ("model",)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )
    for name in LOSSES:
        run = train(name)
        found["model"][name] = compare(alone[name], run)
    found["shards"] = {
        variable.path.split("/", 1)[1]: variable.value.sharding.shard_shape(variable.shape)
        for variable in [*run[0].weights, *run[0].optimizer.variables]
        if "head" in variable.path
    }
    import jax

    z = np.random.default_rng(0).standard_normal((4, K)).astype("float32")
    devices = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("batch", "model"))
    by_class = jax.sharding.PartitionSpec(None, "model")
    split = jax.device_put(z, jax.sharding.NamedSharding(devices, by_class))
    posterior = jax.jit(LOSSES["gca"]().posterior)
    found["posterior"] = {
        "off": float(np.abs(posterior(split) - posterior(z)).max()),
        "shard": posterior(split).sharding.shard_shape(z.shape),
        "gathers": posterior.lower(split).compile().as_text().count("all-gather("),
    }
    return found


def one_of_two(address, index):
    """The two losses in one of two processes, and their sums of weights; in one also alone."""
    keras.distribution.initialize(f"{address},{address}", 2, index)
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    runs = {name: train(name, index, 2) for name in ("gla", "gca")}
    found = {"weights": [w.tolist() for run, _ in runs.values() for w in run.get_weights()]}
    if index == 0:
        keras.distribution.set_distribution(None)
        found |= {name: compare(train(name), run) for name, run in runs.items()}
    return found


def main(role, *arguments):
    found = four_devices() if role == "four" else one_of_two(arguments[0], int(arguments[1]))
    print("\n" + json.dumps(found))


def found_by(*programs):
    environment = {"KERAS_BACKEND": "jax", "JAX_NUM_CPU_DEVICES": "1"}
    started = [start(__file__, *arguments, **{**environment, **e}) for *arguments, e in programs]
    found = []
    for code, output in finish(*started):
        assert code == 0, output
        found.append(json.loads(output.splitlines()[-1]))
    return found


@pytest.fixture(scope="module")
def four():
    return found_by(("four", {"JAX_NUM_CPU_DEVICES": "4"}))[0]


@pytest.fixture(scope="module")
def two():
    (address,) = free_addresses(1)
    return found_by(*(("two", address, index, {}) for index in range(2)))


@pytest.mark.parametrize("kind", ["data", "model"])
@pytest.mark.parametrize("loss", LOSSES)
def test_four_devices_are_exact(four, kind, loss):
    case = four[kind][loss]
    assert case["moved"] > 0.1
    assert case["off"] < 1e-6
    assert case["logs"] < 1e-6


def test_the_head_is_split_over_classes_with_its_momentum(four):
    shards = {tuple(shape) for shape in four["shards"].values()}
    assert len(four["shards"]) == 4
    assert shards == {(8, K // 2), (K // 2,)}


def test_the_posterior_of_a_split_head_stays_split(four):
    assert four["posterior"]["off"] < 1e-6
    assert four["posterior"]["shard"] == [4, K // 2]
    assert four["posterior"]["gathers"] == 0


def test_a_batch_that_the_devices_do_not_divide_is_refused(four):
    assert "should evenly divide the shape" in four["refusal"]


@pytest.mark.parametrize("loss", ["gla", "gca"])
def test_two_processes_are_exact(two, loss):
    assert two[0][loss]["moved"] > 0.1
    assert two[0][loss]["off"] < 1e-6
    assert two[0][loss]["logs"] < 1e-6
    assert two[0]["weights"] == two[1]["weights"]


if __name__ == "__main__":
    main(*sys.argv[1:])
