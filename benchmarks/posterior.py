"""What do GCA's decisions and soft targets cost, at any number of classes?

    python benchmarks/posterior.py --output benchmarks/results/posterior.json

Part 1: `posterior` of GCA beside that of GLA, on TensorFlow, eager, as a graph and under XLA; the
peak memory of a block of examples, in arrays of (block, levels, classes), 128 MiB each; and the
largest error of the logarithm against the same in float64, where the posterior exceeds 1e-12.
Part 2: value and gradient of soft targets, beside GLA and beside a plain logsumexp over (examples,
levels, classes). Part 3: what `BalancedAccuracy` takes by the logits and by the posterior of a
loss. Each is the median of its times, in turns. Prints Markdown tables.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf
from step_time import compare, kilobytes, priors_of

from keras_balanced import BalancedAccuracy, BalancedLoss, GCALoss, GLALoss

SHAPES = [(32, 10), (32, 100), (32, 1000), (1, 8142), (32, 8142), (1, 21841)]
SOFT = [(64, 100), (64, 1000)]
METRIC = [(128, 10), (128, 100), (128, 1000)]
BLOCK = 2**25  # Numbers in the largest array of a posterior.
MODES = {"eager": None, "graph": False, "XLA": True}


def gca(num_classes):
    return GCALoss(priors_of(num_classes), q=0.0, margins="cube_root", consistent=False)


def logits_of(shape):
    return tf.constant(np.random.default_rng(0).normal(0, 3, shape), "float32")


def in_mode(function, mode):
    return function if mode == "eager" else tf.function(function, jit_compile=MODES[mode])


def latency(shape, rounds):
    z, ours = logits_of(shape), gca(shape[1])
    theirs = GLALoss(priors_of(shape[1]))
    found = {}
    for mode in MODES:
        functions = [in_mode(loss.posterior, mode) for loss in (theirs, ours)]
        functions = {str(i): lambda f=f: f(z) for i, f in enumerate(functions)}
        times = np.median(compare(functions, rounds, 0.05), axis=0)
        found[mode] = {"GLA": 1e3 * times[0], "GCA": 1e3 * times[1]}
    return found


def error(shape):
    """Returns the largest error of the logarithm, where the posterior exceeds 1e-12."""
    ours = gca(shape[1])
    exact = BalancedLoss(ours.surrogate, dtype="float64")
    z = logits_of(shape)
    expected = exact.log_posterior(tf.cast(z, "float64")).numpy()
    return float(np.abs(ours.log_posterior(z).numpy() - expected)[expected > np.log(1e-12)].max())


def peak_memory(num_classes):
    """Returns the peak of a graph's posterior of one block, in arrays of that size."""
    loss = gca(num_classes)
    rows = BLOCK // (len(loss.surrogate.levels) * num_classes)
    z = logits_of((rows, num_classes))
    function = tf.function(loss.posterior)
    function(logits_of((1, num_classes)))  # What TensorFlow needs to start.
    function.get_concrete_function(z)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmHWM")
    function(z)
    return 1024 * (kilobytes("VmHWM") - before) / (4 * BLOCK)


def soft_targets(shape, rounds):
    rng = np.random.default_rng(0)
    y = tf.constant(rng.dirichlet(np.ones(shape[1]), shape[0]), "float32")
    z, loss = logits_of(shape), gca(shape[1])
    inverse = tf.constant(1.0 / loss.surrogate.levels[:, None], "float32")
    values = {
        "GLA": GLALoss(priors_of(shape[1])),
        "GCA": loss,
        "logsumexp": lambda y, z: tf.reduce_sum(
            tf.reduce_logsumexp(z[:, None, :] * inverse, axis=-1)
        ),
    }

    def step_of(value, mode):
        def step(y, z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                result = value(y, z)
            return result, tape.gradient(result, z)

        compiled = in_mode(step, mode)
        return lambda: compiled(y, z)

    found = {}
    for mode in ("graph", "XLA"):
        functions = {name: step_of(value, mode) for name, value in values.items()}
        times = np.median(compare(functions, rounds, 0.1), axis=0)
        found[mode] = dict(zip(functions, 1e3 * times, strict=True))
    return found


def metric(shape, rounds):
    """Returns the milliseconds that a metric adds to a step."""
    y = tf.constant(np.random.default_rng(0).integers(0, shape[1], shape[0]))
    z = logits_of(shape)
    losses = {"logits": None, "GLA": GLALoss(priors_of(shape[1])), "GCA": gca(shape[1])}
    found = {}
    for mode in ("graph", "XLA"):
        metrics = [BalancedAccuracy(shape[1], decision=loss) for loss in losses.values()]
        updates = [in_mode(m.update_state, mode) for m in metrics]
        functions = {str(i): lambda f=f: f(y, z) for i, f in enumerate(updates)}
        times = np.median(compare(functions, rounds, 0.05), axis=0)
        found[mode] = dict(zip(losses, 1e3 * times, strict=True))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--peak-memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak_memory:
        print(peak_memory(args.peak_memory))
        return
    results = {"posterior": [], "soft targets": [], "metric": []}
    print(
        "| examples x classes | levels | GLA, graph / XLA (ms) | GCA, eager / graph / XLA (ms) |",
        end="",
    )
    print(" memory | error |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        command = [sys.executable, __file__, "--peak-memory", str(shape[1])]
        memory = float(subprocess.run(command, capture_output=True, check=True).stdout.split()[-1])
        row = {
            "shape": shape,
            "levels": len(gca(shape[1]).surrogate.levels),
            "milliseconds": latency(shape, args.rounds),
            "memory": memory,
            "error": error(shape),
        }
        results["posterior"].append(row)
        ms = row["milliseconds"]
        of_gla = " / ".join(f"{ms[mode]['GLA']:.2f}" for mode in ("graph", "XLA"))
        of_gca = " / ".join(f"{ms[mode]['GCA']:.2f}" for mode in MODES)
        print(
            f"| {shape[0]} x {shape[1]} | {row['levels']} | {of_gla} | {of_gca} | {memory:.1f} | "
            f"{row['error']:.1e} |",
            flush=True,
        )
    print("\n| examples x classes | mode | GLA (ms) | GCA (ms) | of GLA | of a logsumexp |")
    print("|---|---|---|---|---|---|")
    for shape in SOFT:
        for mode, ms in soft_targets(shape, args.rounds).items():
            results["soft targets"].append({"shape": shape, "mode": mode, "milliseconds": ms})
            print(
                f"| {shape[0]} x {shape[1]} | {mode} | {ms['GLA']:.2f} | {ms['GCA']:.2f} | "
                f"{ms['GCA'] / ms['GLA']:.1f} | {ms['GCA'] / ms['logsumexp']:.2f} |",
                flush=True,
            )
    print("\n| examples x classes | mode | by the logits (ms) | posterior of GLA | of GCA |")
    print("|---|---|---|---|---|")
    for shape in METRIC:
        for mode, ms in metric(shape, args.rounds).items():
            results["metric"].append({"shape": shape, "mode": mode, "milliseconds": ms})
            cells = " | ".join(f"{value:.2f}" for value in ms.values())
            print(f"| {shape[0]} x {shape[1]} | {mode} | {cells} |", flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
