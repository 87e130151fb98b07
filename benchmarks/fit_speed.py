"""Does the accuracy benchmark's `fit` keep up with its train step?

    python benchmarks/fit_speed.py --output benchmarks/results/fit_speed.json

Images per second of the train step alone, which is a `fit` on one cached batch, and of the whole
`fit` with its shuffling, cropping and flipping; some epochs of each in turns, in one process with
one thread, as each worker of `accuracy.py` has on two cores. On TensorFlow.
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
import tensorflow as tf

CASES = {"quick": ("digits", 50), "cpu": ("cifar10", 100)}


def measure(name, rounds, images_a_turn):
    recipe = accuracy.PROTOCOLS[name]
    dataset, ratio = CASES[name]
    (x, y), *_ = accuracy.load(dataset, ratio, "exponential", 0, 0.0, recipe.size)
    method = accuracy.METHODS["ce"]

    model = accuracy.build(method, x, y, recipe.l2[0], recipe)
    batches = accuracy.long_tailed_cifar.Batches(x, y, recipe.batch_size, recipe.augment, seed=0)
    steps_per_epoch = len(batches)
    model.compile(
        keras.optimizers.SGD(recipe.learning_rate, momentum=0.9),
        method.loss([1] * 10),
        steps_per_execution=steps_per_epoch,
    )
    stream = accuracy.stream(batches)
    batch = accuracy.without_autotuning(tf.data.Dataset.from_tensors(batches[0]).cache().repeat())
    epochs = max(1, round(images_a_turn / len(y)))

    def images_of(data, images_per_epoch):
        model.fit(data, steps_per_epoch=steps_per_epoch, epochs=epochs, shuffle=False, verbose=0)
        return epochs * images_per_epoch

    speeds = {"step": [], "fit": []}
    for turn in range(rounds + 1):
        for key, data, images_per_epoch in (
            ("step", batch, steps_per_epoch * recipe.batch_size),
            ("fit", stream, len(y)),
        ):
            start = time.perf_counter()
            images = images_of(data, images_per_epoch)
            if turn:  # The first compiles.
                speeds[key].append(images / (time.perf_counter() - start))
    return {
        "protocol": name,
        "images_per_second": speeds,
        "ratio": [fit / step for fit, step in zip(speeds["fit"], speeds["step"], strict=True)],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocols", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=5000, help="about so many a turn")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    cases = [measure(name, args.rounds, args.images) for name in args.protocols]
    versions = {"keras": keras.__version__, "backend": keras.backend.backend()}
    result = {"versions": versions, "python": platform.python_version(), "cases": cases}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print_table(cases)


def print_table(cases):
    print("| protocol | step, images/s | fit, images/s | fit / step | range |")
    print("|---|---|---|---|---|")
    for case in cases:
        step, fit = (statistics.median(case["images_per_second"][key]) for key in ("step", "fit"))
        ratio = case["ratio"]
        print(
            f"| {case['protocol']} | {step:.0f} | {fit:.0f} | {statistics.median(ratio):.2f} "
            f"| {min(ratio):.2f} to {max(ratio):.2f} |"
        )


if __name__ == "__main__":
    main()
