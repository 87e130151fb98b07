"""What the losses cost under distribution, against Keras's cross-entropy on the same devices.

    python benchmarks/distributed.py --output benchmarks/results/distributed.json

For one, two and four replicas, on TensorFlow and on JAX where it is installed, it counts the
collective operations in the compiled training step and times the losses in turn. "JAX, head" has
the classes split over two devices, and "JAX, TPU" is compiled for four chips of a TPU v5e, which
takes `libtpu` but no TPU. Each runs in a process of its own. Prints a Markdown table, with the
median of the ratio to cross-entropy over the rounds and its 95% interval.
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

SETTINGS = {
    "TensorFlow": ("tensorflow", (1, 2, 4)),
    "JAX": ("jax", (1, 2, 4)),
    "JAX, head": ("jax", (4,)),
    "JAX, TPU": ("jax", (4,)),
}
NEEDS = {"TensorFlow": "tensorflow", "JAX": "jax", "JAX, head": "jax", "JAX, TPU": "libtpu"}
NUM_CLASSES, FEATURES, UNITS = 100, 256, 512
# In a compiled step: what goes between devices, what calls back to the host.
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
HOST = ("infeed", "outfeed", "send", "recv")


def losses():
    import keras
    import numpy as np

    from keras_balanced import GCALoss, GLALoss

    counts = np.geomspace(1000, 10, NUM_CLASSES)
    gca = {"margins": "cube_root", "consistent": False}
    return {
        "cross-entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "GLA": GLALoss(counts, q=0.0, tau=None),
        "GCA": GCALoss(counts, q=0.0, **gca),
        "GLA, q = 0.2": GLALoss(counts, q=0.2, tau=None),
        "GCA, q = 0.2": GCALoss(counts, q=0.2, **gca),
    }


def build():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(UNITS, "relu"),
            keras.layers.Dense(UNITS, "relu"),
            keras.layers.Dense(NUM_CLASSES, name="head"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def batch(size):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, FEATURES)).astype("float32")
    return x, rng.integers(0, NUM_CLASSES, size).astype("int32")


def tensorflow_steps(replicas, batch_size):
    """Returns a step and its collectives for each loss, under `MirroredStrategy`."""
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    data = tf.data.Dataset.from_tensors(batch(batch_size))
    (data,) = strategy.experimental_distribute_dataset(data.unbatch().batch(batch_size))

    def make(loss):
        with strategy.scope():
            model, optimizer = build()

        def replica_step(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(value, weights), weights)
            return value

        step = tf.function(lambda batch: strategy.run(replica_step, args=batch))
        graph = step.get_concrete_function(data).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        operations = collections.Counter(node.op for node in nodes)
        counts = {op: n for op, n in operations.items() if op.startswith("Collective")}
        counts |= {op: n for op, n in operations.items() if "PyFunc" in op}
        return (lambda: step(data)), model.trainable_variables[0].numpy, counts

    return {name: make(loss) for name, loss in losses().items()}


def jax_steps(replicas, batch_size, setting):
    """Returns a step and its collectives for each loss, with arrays split over devices."""
    import jax
    import keras
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.devices()
    if setting == "JAX, TPU":
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
        keras.config.set_dtype_policy("mixed_bfloat16")
    shape = (2, 2) if setting == "JAX, head" else (replicas, 1)
    mesh = jax.sharding.Mesh(np.array(devices[:replicas]).reshape(shape), ("batch", "model"))

    def place(array, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        if setting == "JAX, TPU":
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        return jax.device_put(array, sharding)

    def make(loss):
        model, optimizer = build()

        def place_variable(variable):
            is_head = setting == "JAX, head" and variable.shape[-1:] == (NUM_CLASSES,)
            axes = [None] * (len(variable.shape) - 1) + ["model"] if is_head else []
            return place(variable.value, *axes)

        def step(state, x, y):
            weights, slots = state

            def loss_of(weights):
                return loss(y, model.stateless_call(weights, [], x, training=True)[0])

            value, gradients = jax.value_and_grad(loss_of)(weights)
            return value, optimizer.stateless_apply(slots, gradients, weights)

        state = tuple(
            [place_variable(v) for v in variables]
            for variables in (model.trainable_variables, optimizer.variables)
        )
        x, y = batch(batch_size)
        data = place(x, "batch"), place(y, "batch")
        shardings = jax.tree.map(lambda array: array.sharding, state)
        # The value too, as `fit` does: without it the compiler drops what only the value needs.
        compiled = jax.jit(step, out_shardings=(None, shardings)).lower(state, *data).compile()
        text = compiled.as_text()
        counts = {op: len(re.findall(rf" {op}(?:-start)?\(", text)) for op in COLLECTIVES + HOST}
        counts["dynamic shapes"] = len(re.findall(r"\[<=", text))

        def run():
            nonlocal state
            _, state = compiled(state, *data)

        return run, lambda: jax.block_until_ready(state), {k: n for k, n in counts.items() if n}

    return {name: make(loss) for name, loss in losses().items()}


def measure(steps, rounds, steps_a_round):
    """Seconds a step of each loss, `(rounds,)`, with the losses in turn in every round."""
    import numpy as np

    rng = np.random.default_rng(0)
    seconds = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name in rng.permutation(list(steps)):
            run, wait, _ = steps[name]
            start = time.perf_counter()
            for _ in range(steps_a_round):
                run()
            wait()
            seconds[str(name)].append((time.perf_counter() - start) / steps_a_round)
    return {name: np.array(values[1:]) for name, values in seconds.items()}  # The first warms up.


def interval(ratios):
    """The median and its 95% interval, by resampling the rounds."""
    import numpy as np

    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=-1)
    return [float(v) for v in (np.median(ratios), *np.percentile(medians, [2.5, 97.5]))]


def child(args):
    setting, replicas = args.child, args.replicas
    if setting == "TensorFlow":
        steps = tensorflow_steps(replicas, args.batch_size)
    else:
        steps = jax_steps(replicas, args.batch_size, setting)
    rounds = 0 if setting == "JAX, TPU" else args.rounds
    seconds = measure(steps, rounds, args.steps) if rounds else {}
    rows = []
    for name, (_, _, counts) in steps.items():
        row = {"setting": setting, "replicas": replicas, "loss": name, "operations": counts}
        if rounds:
            row["steps_per_second"] = float(1 / sorted(seconds[name])[rounds // 2])
            row["ratio"] = interval(seconds[name] / seconds["cross-entropy"])
        rows.append(row)
    print("\n" + json.dumps(rows))


def run_child(setting, replicas, args):
    """Runs one setting in a process of its own; returns its rows."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": SETTINGS[setting][0],
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(replicas),
        "CUDA_VISIBLE_DEVICES": "-1",
        # Without these `libtpu` looks for the chips of this machine.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    command = [sys.executable, __file__, "--child", setting, "--replicas", str(replicas)]
    for name in ("batch_size", "rounds", "steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(
        command, env=environment, timeout=1800, check=True, text=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256, help="of all replicas together")
    parser.add_argument("--rounds", type=int, default=30, help="0 counts operations only")
    parser.add_argument("--steps", type=int, default=20, help="in a round, of each loss")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--child", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--replicas", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.batch_size < 4 or args.batch_size % 4 or args.rounds < 0 or args.steps < 1:
        parser.error(
            "`batch_size` must be a multiple of 4, `rounds` at least 0, `steps` at least 1"
        )
    if args.child:
        child(args)
        return
    rows = []
    print("| devices | replicas | loss | steps/s | time to cross-entropy (95%) | operations |")
    print("|---|---|---|---|---|---|")
    for setting, (_, replica_counts) in SETTINGS.items():
        if importlib.util.find_spec(NEEDS[setting]) is None:
            print(f"| {setting} | - | skipped: {NEEDS[setting]} is not installed | | | |")
            continue
        for replicas in replica_counts:
            for row in run_child(setting, replicas, args):
                rows.append(row)
                speed = f"{row['steps_per_second']:.0f}" if "ratio" in row else "-"
                ratio = "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]) if "ratio" in row else "-"
                counts = ", ".join(f"{n} {op}" for op, n in row["operations"].items()) or "none"
                print(
                    f"| {setting} | {replicas} | {row['loss']} | {speed} | {ratio} | {counts} |",
                    flush=True,
                )
            if args.output:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
