"""How fast does `ClassPrior.adapt` count, next to `np.bincount` and to the pipeline alone?

    python benchmarks/adapt.py --output benchmarks/results/adapt.json

Each way takes turns with its yardstick; a ratio above 1 is faster than it. Prints a Markdown
table.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import tensorflow as tf

from keras_balanced import ClassPrior


def arrays(size):
    """Yields a name, a way to adapt and its yardstick: NumPy's own counting."""
    rng = np.random.default_rng(0)
    for num_classes in (10, 1000, 100_000):
        for dtype in ("int64", "int32", "uint8")[: 3 if num_classes < 256 else 2]:
            labels = rng.integers(0, num_classes, size).astype(dtype)
            prior = ClassPrior(num_classes)
            yield (
                f"{size:,} labels of {num_classes:,} classes, {dtype}, against `np.bincount`",
                lambda prior=prior, labels=labels: prior.adapt(labels),
                lambda labels=labels, k=num_classes: np.bincount(labels, minlength=k),
            )


def pipelines(size):
    """The same for `tf.data`: the yardstick is a loop over the batches that does nothing."""
    labels = np.random.default_rng(0).integers(0, 1000, size)
    x = np.zeros((size, 8), "float32")
    for batch_size in (1, 128, 1024):
        count = size if batch_size > 1 else size // 50
        data = tf.data.Dataset.from_tensor_slices((x[:count], labels[:count])).batch(batch_size)
        data = data.prefetch(tf.data.AUTOTUNE)
        prior = ClassPrior(1000)

        def read(data=data):
            for _ in data:
                pass

        yield (
            f"`tf.data`, {count:,} examples in batches of {batch_size}, against an empty loop",
            lambda prior=prior, data=data: prior.adapt(data),
            read,
        )


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=100_000_000)
    parser.add_argument("--examples", type=int, default=500_000, help="in the pipelines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args(argv)
    for name in ("labels", "examples", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1. Received: {getattr(args, name)}")
    rows = []
    print("| data | seconds | speed against the yardstick | range |\n|---|---|---|---|")
    for case in (arrays(args.labels), pipelines(args.examples)):
        for name, adapt, yardstick in case:
            times = np.array([(seconds(adapt), seconds(yardstick)) for _ in range(args.rounds)])
            speeds = times[:, 1] / times[:, 0]
            row = {
                "data": name,
                "seconds": round(np.median(times[:, 0]), 3),
                "speed": round(np.median(speeds), 3),
                "range": [round(speeds.min(), 3), round(speeds.max(), 3)],
            }
            rows.append(row)
            low, high = row["range"]
            print(
                f"| {name} | {row['seconds']:.2f} | {row['speed']:.2f} | {low:.2f} to {high:.2f} |",
                flush=True,
            )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
