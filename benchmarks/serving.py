"""What do the signatures of `serving.export` cost, next to Keras's bare export of the model?

    python benchmarks/serving.py --output benchmarks/results/serving.json

Exports a ResNet-8 for CIFAR-10 both ways, with GLA and with GCA (whose posterior under unequal
margins is the stationary distribution of a 10 x 10 matrix), and times TensorFlow's C loader in a
process without Python's TensorFlow. They are called in turn, so that what else the machine does
meets all alike. Prints a Markdown table of the median times, their ratio to that of the bare
export, and the quartiles of the ratio in each round.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import c_loader

BATCHES = (1, 128)
CLASSES = 10


def export(directory):
    """Writes the bare model and the two servables."""
    import keras

    from keras_balanced import GCALoss, GLALoss, models, serving

    keras.utils.set_random_seed(0)
    model = models.resnet((32, 32, 3), CLASSES, depth=8)
    model.export(directory / "bare", verbose=False)
    priors = np.geomspace(100, 1, CLASSES)
    serving.export(model, directory / "gla", GLALoss(priors, q=0.0, tau=None))
    gca = GCALoss(priors, q=0.0, margins="cube_root", consistent=False)
    serving.export(model, directory / "gca", gca)


def measure(directory, rounds):
    """Yields the milliseconds of each call of each signature, `(rounds,)`, at each batch size."""
    bare = c_loader.SavedModel(directory / "bare")
    gla = c_loader.SavedModel(directory / "gla" / "1")
    gca = c_loader.SavedModel(directory / "gca" / "1")
    mix = {"priors": np.full((1, CLASSES), 1 / CLASSES, "float32")}
    (bare_input,) = bare.signatures["serving_default"]["inputs"]
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        x = rng.normal(size=(batch, 32, 32, 3)).astype("float32")
        runs = {
            "bare export": lambda x=x: bare.run("serving_default", **{bare_input: x}),
            "raw": lambda x=x: gla.run("raw", inputs=x),
            "serving_default, GLA": lambda x=x: gla.run("serving_default", inputs=x),
            "with_priors, GLA": lambda x=x: gla.run("with_priors", inputs=x, **mix),
            "serving_default, GCA": lambda x=x: gca.run("serving_default", inputs=x),
        }
        for run in 5 * list(runs.values()):
            run()
        times = {name: [] for name in runs}
        for index in range(rounds):
            # Another first one each round: the place in the round must not matter.
            names = list(runs)
            for name in names[index % len(names) :] + names[: index % len(names)]:
                start = time.perf_counter()
                runs[name]()
                times[name].append(1000 * (time.perf_counter() - start))
        yield batch, {name: np.array(values) for name, values in times.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500, help="calls of each signature")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--export", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2. Received: {args.rounds}")
    if args.export:
        export(args.export)
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        # In another process: the one that measures must be free of Python's TensorFlow.
        subprocess.run([sys.executable, __file__, "--export", directory], check=True)
        print("| batch | signature | ms a call | ratio to bare | quartiles |")
        print("|---|---|---|---|---|")
        for batch, times in measure(pathlib.Path(directory), args.rounds):
            for name, values in times.items():
                bare = times["bare export"]
                ratio = np.median(values) / np.median(bare)
                low, high = np.quantile(values / bare, [0.25, 0.75])
                rows.append(
                    {
                        "batch": batch,
                        "signature": name,
                        "milliseconds": float(np.median(values)),
                        "ratio": float(ratio),
                        "quartiles": [float(low), float(high)],
                        "rounds": args.rounds,
                    }
                )
                print(
                    f"| {batch} | {name} | {np.median(values):.3f} | {ratio:.3f} | "
                    f"{low:.3f} to {high:.3f} |",
                    flush=True,
                )
    assert "tensorflow" not in sys.modules
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
