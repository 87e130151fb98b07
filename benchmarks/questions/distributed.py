"""What do the losses cost on several devices?

Two Dense layers of 512 units and 100 classes, a global batch of 256, on logical CPU devices,
against Keras's cross-entropy on the same devices; the losses in turns, medians of the rounds with
their 95% interval. The last column counts the collective operations of the compiled train step.
"JAX, head" has the classes split over two devices. Each setting runs in a process of its own.
"""

import collections
import re

from benchmarks import stats, timing

# "JAX, TPU" is only compiled, for a test: four chips of a TPU v5e, which takes `libtpu` but no TPU.
BACKENDS = {"TensorFlow": "tensorflow", "JAX": "jax", "JAX, head": "jax", "JAX, TPU": "jax"}
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


def cases():
    for setting, numbers in (("TensorFlow", (1, 2, 4)), ("JAX", (1, 2, 4)), ("JAX, head", (4,))):
        for replicas in numbers:
            case = {"setting": setting, "replicas": replicas, "batch_size": 256}
            yield case | {"rounds": 30, "steps": 20}


def measure(setting, replicas, batch_size, rounds, steps):
    environment = {
        "KERAS_BACKEND": BACKENDS[setting],
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(replicas),
        "CUDA_VISIBLE_DEVICES": "-1",
        # Without these `libtpu` looks for the chips of this machine.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    return timing.apart(measure_here, setting, replicas, batch_size, rounds, steps, **environment)


def measure_here(setting, replicas, batch_size, rounds, steps):
    """Returns the operations of each loss, and its speed if there are rounds."""
    if setting == "TensorFlow":
        made = tensorflow_steps(replicas, batch_size)
    else:
        made = jax_steps(replicas, batch_size, setting)
    found = {name: {"operations": counts} for name, (_, _, counts) in made.items()}
    if not rounds:
        return found

    def turn(run, wait):
        for _ in range(steps):
            run()
        wait()

    turns = {
        name: lambda run=run, wait=wait: turn(run, wait) for name, (run, wait, _) in made.items()
    }
    times = timing.in_turns(turns, rounds)
    for name, of in times.items():
        speed = round(float(steps / sorted(of)[rounds // 2]), 3)
        ratio = timing.ratio_and_interval(of, times["cross-entropy"])
        found[name] |= {"steps_per_second": speed, "ratio": ratio}
    return found


def report(runs):
    rows = []
    for run in runs:
        for name, of in run["result"].items():
            operations = ", ".join(f"{n} {op}" for op, n in of["operations"].items()) or "none"
            timed = "ratio" in of
            row = [run["settings"]["setting"], run["settings"]["replicas"], name]
            row.append(f"{of['steps_per_second']:.0f}" if timed else "-")
            row.append("{:.2f} ({:.2f} to {:.2f})".format(*of["ratio"]) if timed else "-")
            rows.append([*row, operations])
    columns = ["devices", "replicas", "loss", "steps/s", "time to cross-entropy (95%)"]
    return stats.table([*columns, "operations"], rows)
