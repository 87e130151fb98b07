"""What do the losses cost, next to Keras's cross-entropy and to the textbook implementation?

    python benchmarks/step_time.py --output benchmarks/results/step_time.json

Times value and gradient on TensorFlow, as a graph and under XLA, then a whole train step of a
ResNet, then the peak memory. All losses take turns in every round, in random order; a ratio is
the median over the rounds of the time over cross-entropy's in the same round, with its 95%
bootstrap interval. Prints Markdown tables.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_balanced import GCALoss, GLALoss, models

SHAPES = [(128, 10), (128, 100), (1024, 1000), (256, 21841)]
MEMORY_SHAPE = (1024, 40_000)
Q = 0.3


def textbook_gla(priors, q):
    """Softmax, gather, power, as the formula reads."""
    shift = np.log(priors) / (1.0 - q) - np.log(1.0 / len(priors)) / (1.0 - q)
    return textbook(shift, np.ones(len(priors)), np.ones(len(priors)), q)


def textbook_gca(priors, q):
    # Which rounds those of many classes to a few levels.
    margins = GCALoss(priors, margins="cube_root").surrogate.margins
    return textbook(np.zeros(len(priors)), margins, 1.0 / (len(priors) * priors), q)


def textbook(shift, margins, weights, q):
    shift, margins, weights = (tf.constant(v, "float32") for v in (shift, margins, weights))

    def loss(y, z):
        s = tf.nn.softmax(z / tf.gather(margins, y)[:, None] + shift)
        s = tf.gather(s, y, batch_dims=1)
        psi = (1.0 - s**q) / q if q else -tf.math.log(s)
        return tf.reduce_mean(tf.gather(weights, y) * psi)

    return loss


LOSSES = {
    "cross-entropy": lambda p: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "GLA": lambda p: GLALoss(p, q=0.0, tau=None),
    "GLA, q = 0.3": lambda p: GLALoss(p, q=Q, tau=None),
    "GCA": lambda p: GCALoss(p, q=0.0, margins="cube_root", consistent=False),
    "GCA, q = 0.3": lambda p: GCALoss(p, q=Q, margins="cube_root", consistent=False),
    "GLA, one-hot": lambda p: GLALoss(p, q=0.0, tau=None),
    "textbook GLA": lambda p: textbook_gla(p, 0.0),
    "textbook GLA, q = 0.3": lambda p: textbook_gla(p, Q),
    "textbook GCA": lambda p: textbook_gca(p, 0.0),
    "textbook GCA, q = 0.3": lambda p: textbook_gca(p, Q),
}
# Those that must compute the same, or comparing their times says nothing.
TWINS = {name: name.removeprefix("textbook ") for name in LOSSES if name.startswith("textbook ")}
TWINS["GLA, one-hot"] = "GLA"


def priors_of(num_classes):
    priors = 100.0 ** -np.linspace(0.0, 1.0, num_classes)
    return priors / priors.sum()


def random_batch(shape):
    rng = np.random.default_rng(0)
    z = tf.constant(rng.standard_normal(shape), "float32")
    return tf.constant(rng.integers(0, shape[1], shape[0]), "int32"), z


def value_and_gradient(name, batch, jit):
    """Returns a function without arguments that computes both for a batch of labels and logits."""
    y, z = batch
    loss = LOSSES[name](priors_of(z.shape[1]))
    if "one-hot" in name:
        y = tf.one_hot(y, z.shape[1])

    @tf.function(jit_compile=jit)
    def step(y, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(y, z)
        return value, tape.gradient(value, z)

    return lambda: step(y, z)


def assert_twins_agree(functions):
    """Raises if two losses that should be the same differ in value or gradient."""
    for name, twin in TWINS.items():
        for part, ours in zip(functions[name](), functions[twin](), strict=True):
            scale = np.abs(ours).max()
            np.testing.assert_allclose(part, ours, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def train_step(name):
    """Returns a function without arguments that trains a ResNet-32 on one batch."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, 32)
    model = models.resnet((32, 32, 3), 10, depth=32)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    model.compile(optimizer, LOSSES[name](priors_of(10)))
    return lambda: model.train_on_batch(x, y)


def seconds(function, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def compare(functions, rounds, seconds_a_turn):
    """Times the functions in turns, `(rounds, functions)` seconds."""
    repeats = []
    for function in functions.values():
        function()  # Traces and compiles.
        repeats.append(max(1, int(seconds_a_turn / seconds(function, 3))))
    rng = np.random.default_rng(0)
    times = np.empty((rounds, len(functions)))
    for row in times:
        for i in rng.permutation(len(functions)):
            row[i] = seconds(list(functions.values())[i], repeats[i])
    return times


def ratios(times):
    """Yields for each column the median ratio to the first, and its 95% interval."""
    rng = np.random.default_rng(0)
    for column in (times / times[:, :1]).T:
        resampled = np.median(rng.choice(column, (2000, len(column))), axis=1)
        yield np.median(column), *np.quantile(resampled, [0.025, 0.975])


def measure(case, functions, rounds, seconds_a_turn):
    """Returns the rows of one case and prints them."""
    times = compare(functions, rounds, seconds_a_turn)
    rows = []
    for name, column, ratio in zip(functions, times.T, ratios(times), strict=True):
        row = {
            **case,
            "loss": name,
            "milliseconds": round(1e3 * np.median(column), 4),
            "ratio": round(ratio[0], 4),
            "interval": [round(ratio[1], 4), round(ratio[2], 4)],
        }
        rows.append(row)
        print(
            f"| {' | '.join(map(str, case.values()))} | {name} | {row['milliseconds']:.3f} | "
            f"{ratio[0]:.3f} | {ratio[1]:.3f} to {ratio[2]:.3f} |",
            flush=True,
        )
    return rows


def summarise(rows):
    """Returns the geometric mean over the grid of each loss's ratio, by mode."""
    print("\n| loss | graph | XLA |\n|---|---|---|")
    summary = {}
    for name in LOSSES:
        means = [
            np.exp(np.mean([np.log(r["ratio"]) for r in rows if (r["loss"], r["mode"]) == key]))
            for key in ((name, "graph"), (name, "XLA"))
        ]
        summary[name] = [round(mean, 4) for mean in means]
        print(f"| {name} | {means[0]:.3f} | {means[1]:.3f} |")
    return summary


def peak_memory(name, jit):
    """Returns the peak memory of value and gradient, in arrays of the size of the logits."""
    step = value_and_gradient(name, random_batch(MEMORY_SHAPE), jit)
    value_and_gradient(name, random_batch((2, 3)), jit)()  # What TensorFlow needs to start.
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak is now what stands here.
    before = kilobytes("VmHWM")
    step()
    return 1024 * (kilobytes("VmHWM") - before) / (4 * MEMORY_SHAPE[0] * MEMORY_SHAPE[1])


def kilobytes(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--peak-memory", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--jit", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak_memory:  # In a process of its own: a peak is the whole process's.
        print(peak_memory(args.peak_memory, args.jit))
        return
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2. Received: {args.rounds}")
    results = {"keras": keras.__version__, "tensorflow": tf.__version__, "rounds": args.rounds}

    print("| shape | mode | loss | ms | ratio | 95% |\n|---|---|---|---|---|---|")
    rows = []
    for shape in SHAPES:
        batch = random_batch(shape)
        for jit in (False, True):
            functions = {name: value_and_gradient(name, batch, jit) for name in LOSSES}
            assert_twins_agree(functions)
            case = {"shape": f"{shape[0]} x {shape[1]}", "mode": "XLA" if jit else "graph"}
            rows += measure(case, functions, args.rounds, seconds_a_turn=0.02)
    results["value and gradient"] = rows
    results["geometric mean"] = summarise(rows)

    print("\n| step | loss | ms | ratio | 95% |\n|---|---|---|---|---|")
    functions = {name: train_step(name) for name in ("cross-entropy", "GLA", "GCA")}
    results["train step"] = measure({"step": "ResNet-32"}, functions, args.rounds, 0.0)

    print("\n| peak memory, in arrays (B, K) | graph | XLA |\n|---|---|---|")
    results["peak memory"] = {}
    for name in LOSSES:
        peaks = []
        for jit in ([], ["--jit"]):
            command = [sys.executable, __file__, "--peak-memory", name, *jit]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(round(float(run.stdout), 2))
        results["peak memory"][name] = peaks
        print(f"| {name} | {peaks[0]:.2f} | {peaks[1]:.2f} |", flush=True)

    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
