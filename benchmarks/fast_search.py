"""Does the fast search on frozen features rank losses as full trainings do?

    python benchmarks/fast_search.py --output benchmarks/results/fast_search.jsonl

On long-tailed digits, for each imbalance ratio and seed: trains a small network with every loss of
the grid, runs `tuning.search_last_layer` on the one trained with `GLALoss(prior)`, and compares.
Every training is written as a line of JSON as it ends, and a rerun goes on from there. Prints a
Markdown table of means over the seeds.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np

from keras_balanced import BalancedAccuracy, ClassPrior, datasets, tuning

BASE = ("gla", 0.0, "1/(1-q)")


def train(x, y, loss, seed, epochs):
    """Returns a small convolutional network trained with a loss, and the seconds it took."""
    start = time.perf_counter()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(keras.optimizers.Adam(2e-3), loss=loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model, time.perf_counter() - start


def score(model, x, y):
    metric = BalancedAccuracy(10)
    metric.update_state(y, model.predict(x, verbose=0))
    return float(metric.result())


def runs(ratio, seed, epochs, done):
    """Yields the runs of one data set that are not in `done`, as they end."""
    (x, y), (x_val, y_val), (x_test, y_test) = datasets.load(
        "digits", ratio, seed=seed, validation_split=0.2
    )
    x, x_val, x_test = (images.astype("float32") for images in (x, x_val, x_test))
    prior = ClassPrior(10)
    prior.adapt(y)
    grid = tuning.BalancedHyperModel(lambda: None, prior).grid
    x_all, y_all = np.concatenate([x, x_val]), np.concatenate([y, y_val])

    def missing(kind, point):
        return (ratio, seed, kind, *point) not in done

    def record(kind, point, **values):
        key = dict(zip(("loss", "q", "option"), point, strict=True))
        run = {"ratio": ratio, "seed": seed, "kind": kind, **key, **values}
        done[ratio, seed, kind, *point] = run
        return run

    for point, loss in grid.items():
        if missing("full", point):
            model, seconds = train(x, y, loss, seed, epochs)
            scores = {
                "validation": score(model, x_val, y_val),
                "test": score(model, x_test, y_test),
            }
            yield record("full", point, **scores, seconds=seconds)
    # What the full search would hand over: its choice, trained on all.
    best = max(grid, key=lambda point: done[ratio, seed, "full", *point]["validation"])
    if missing("full, refitted", best):
        model, seconds = train(x_all, y_all, grid[best], seed, epochs)
        yield record("full, refitted", best, test=score(model, x_test, y_test), seconds=seconds)
    if missing("fast", BASE):
        model, _ = train(x, y, grid[BASE], seed, epochs)
        start = time.perf_counter()
        found = tuning.search_last_layer(
            model, (x, y), (x_val, y_val), prior, seed=seed, refit=True
        )
        seconds = time.perf_counter() - start
        test = score(found.model, x_test, y_test)
        yield record("fast", BASE, test=test, seconds=seconds, table=found.table)


def ranks(values):
    """Returns ranks, of ties their mean."""
    values = np.asarray(values).round(9)
    return (values[:, None] > values).sum(axis=1) + (values[:, None] == values).sum(axis=1) / 2


def spearman(a, b):
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def of_best(scores, full):
    """Returns the test score of the best point; of several that tie their mean."""
    best = max(scores.values()) - 1e-6
    return np.mean([full[point]["test"] for point, value in scores.items() if value > best])


def compare(of):
    """Returns the numbers of one data set from its runs."""
    full = {(r["loss"], r["q"], r["option"]): r for r in of if r["kind"] == "full"}
    (fast,) = (r for r in of if r["kind"] == "fast")
    (refitted,) = (r for r in of if r["kind"] == "full, refitted")
    fast_scores = {
        (row["loss"], row["q"], row["tau"] or row["margins"]): row["balanced_accuracy"]
        for row in fast["table"]
    }
    tests = [run["test"] for run in full.values()]
    by_validation = of_best({point: run["validation"] for point, run in full.items()}, full)
    by_fast = of_best(fast_scores, full)
    seconds = sum(run["seconds"] for run in full.values())
    base = full[BASE]
    return {
        "Spearman, fast search": spearman([fast_scores[point] for point in full], tests),
        "Spearman, validation": spearman([run["validation"] for run in full.values()], tests),
        "base": 100 * base["test"],
        "full search": 100 * by_validation,
        "fast search, trained": 100 * by_fast,
        "lost": 100 * (by_validation - by_fast),
        "full search, refitted": 100 * refitted["test"],
        "fast search, head": 100 * fast["test"],
        "cost ratio": seconds / (base["seconds"] + fast["seconds"]),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[10, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    for line in args.output.read_text().splitlines() if args.output.exists() else ():
        run = json.loads(line)
        key = (run["ratio"], run["seed"], run["kind"], run["loss"], run["q"], run["option"])
        done[key] = run
    for seed in range(args.seeds):
        for ratio in args.ratios:
            for run in runs(ratio, seed, args.epochs, done):
                with args.output.open("a") as file:
                    file.write(json.dumps(run) + "\n")
    rows = {
        ratio: [
            compare([run for key, run in done.items() if key[:2] == (ratio, seed)])
            for seed in range(args.seeds)
        ]
        for ratio in args.ratios
    }
    columns = list(next(iter(rows.values()))[0])
    print("| ratio | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for ratio, of_seeds in rows.items():
        cells = []
        for column in columns:
            values = [row[column] for row in of_seeds]
            digits = 2 if "Spearman" in column else 1
            cells.append(
                f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to "
                f"{max(values):.{digits}f})"
            )
        print(f"| {ratio:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
