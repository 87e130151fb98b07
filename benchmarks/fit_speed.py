"""Does the accuracy benchmark's `fit` keep up with its train step?

    python benchmarks/fit_speed.py --output benchmarks/results/fit_speed.json

Images per second of the train step alone, on one batch that stays, and of the whole training with
its shuffling, cropping and flipping; some epochs of each in turns, in one process, on TensorFlow or
JAX; on a CPU with one thread, as each worker of `accuracy.py` has on two cores. The images are
noise: nothing but their number and size matters.

With `--networks`, on JAX, also of the step of so many networks in one program: it makes more where
the device is not busy with one.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

import accuracy
import keras
import numpy as np

from keras_balanced import datasets

# Images of the largest class, ratio, channels.
CASES = {"quick": (124, 50, 1), "cpu": (5000, 100, 3), "paper": (5000, 100, 3)}


def measure(name, rounds, images_a_turn, dtype, networks=None):
    recipe = accuracy.PROTOCOLS[name]
    max_count, ratio, channels = CASES[name]
    y = np.repeat(np.arange(10), datasets.long_tail_counts(10, max_count, ratio))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (len(y), recipe.size, recipe.size, channels), "uint8")
    keras.config.set_dtype_policy(dtype)
    method = accuracy.METHODS["ce"]
    model = accuracy.build(method, x, y, recipe.l2[0], recipe)
    optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
    epochs = max(1, round(images_a_turn / len(y)))
    steps = -(-len(y) // recipe.batch_size)
    training = (model, optimizer, method.loss([1] * 10), x, y, recipe, steps, epochs)
    if keras.backend.backend() == "jax":
        turns = on_jax(*training, networks)
    else:
        turns = on_tensorflow(*training)
    speeds = {key: [] for key in turns}
    for turn in range(rounds + 1):
        for key, (images, train) in turns.items():
            start = time.perf_counter()
            train()
            if turn:  # The first compiles.
                speeds[key].append(images / (time.perf_counter() - start))
    case = {
        "protocol": name,
        "dtype": dtype,
        "images_per_second": speeds,
        "ratio": [fit / step for fit, step in zip(speeds["fit"], speeds["step"], strict=True)],
    }
    return case if networks is None else {**case, "networks": networks}


def on_tensorflow(model, optimizer, loss, x, y, recipe, steps, epochs):
    """Returns what trains for as many steps on one batch, and for some epochs, and the images."""
    import tensorflow as tf

    batches = accuracy.long_tailed_cifar.Batches(x, y, recipe.batch_size, recipe.augment, seed=0)
    model.compile(optimizer, loss, steps_per_execution=steps)
    stream = accuracy.stream(batches)
    batch = accuracy.without_autotuning(tf.data.Dataset.from_tensors(batches[0]).cache().repeat())

    def fit(data):
        model.fit(data, steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0)

    return {
        "step": (epochs * steps * recipe.batch_size, lambda: fit(batch)),
        "fit": (epochs * len(y), lambda: fit(stream)),
    }


def on_jax(model, optimizer, loss, x, y, recipe, steps, epochs, networks=None):
    """Returns what trains for as many steps on one batch, and for some epochs, and the images.

    And, with `networks`, what trains so many at once for as many steps on a batch of each.
    """
    import device_loop
    import jax

    loop = device_loop.Loop(model, optimizer, loss, (x, y), recipe.batch_size, recipe.augment)
    batch = tuple(jax.numpy.asarray(part[: recipe.batch_size]) for part in (x, y))

    def copies(tree):
        return jax.tree.map(lambda value: jax.numpy.stack([value] * networks), tree)

    def on_one_batch(step, state, batch):
        @jax.jit
        def epoch(state, batch):
            return jax.lax.fori_loop(0, steps, lambda _, state: step(state, *batch), state)

        def train():
            trained = state
            for _ in range(epochs):
                trained = epoch(trained, batch)
            return jax.block_until_ready(trained)

        return train

    images = epochs * steps * recipe.batch_size
    turns = {
        "step": (images, on_one_batch(loop.step, loop.state(), batch)),
        "fit": (
            epochs * len(y),
            lambda: loop.run(range(epochs), lambda epoch: recipe.learning_rate),
        ),
    }
    if networks is not None:
        several = on_one_batch(jax.vmap(loop.step), copies(loop.state()), copies(batch))
        turns["networks"] = (networks * images, several)
    return turns


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocols", nargs="+", choices=CASES, default=["quick", "cpu"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=5000, help="about so many a turn")
    parser.add_argument("--dtype", choices=["float32", "mixed_bfloat16"], default="float32")
    parser.add_argument("--networks", type=int, help="also the step of so many at once, on JAX")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if args.networks is not None and (args.networks < 1 or keras.backend.backend() != "jax"):
        received = f"networks={args.networks} on {keras.backend.backend()}"
        parser.error(f"`networks` must be at least 1, on JAX. Received: {received}")
    options = (args.rounds, args.images, args.dtype, args.networks)
    cases = [measure(name, *options) for name in args.protocols]
    versions = {"keras": keras.__version__, "backend": keras.backend.backend()}
    devices = keras.distribution.list_devices()
    result = {"versions": versions, "python": platform.python_version()}
    result |= {"devices": devices, "cases": cases}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print_table(cases)


def print_table(cases):
    networks = cases[0].get("networks")
    several = f" step of {networks} networks, images/s |" if networks else ""
    print(f"| protocol | step, images/s | fit, images/s | fit / step | range |{several}")
    print("|---|---|---|---|---|" + bool(several) * "---|")
    for case in cases:
        speeds = {key: statistics.median(of) for key, of in case["images_per_second"].items()}
        ratio = case["ratio"]
        print(
            f"| {case['protocol']} | {speeds['step']:.0f} | {speeds['fit']:.0f} "
            f"| {statistics.median(ratio):.2f} | {min(ratio):.2f} to {max(ratio):.2f} |"
            + (f" {speeds['networks']:.0f} |" if several else "")
        )


if __name__ == "__main__":
    main()
