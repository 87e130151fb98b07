"""What does an exported model cost?

A ResNet-8 on 32x32 images, called through TensorFlow's C library in a process without Python's
TensorFlow, against its bare export by Keras, without this package; signatures in turns, medians of
the calls and quartiles of the ratio in a round. `raw` gives the logits; the others also
probabilities, class and name. With margins (GCA) the posterior is a small loop per example.
"""

import pathlib
import tempfile

import numpy as np

from benchmarks import stats, timing

CLASSES = 10


def cases():
    for batch in (1, 128):
        yield {"batch": batch, "rounds": 500}


def measure(batch, rounds):
    with tempfile.TemporaryDirectory() as folder:
        timing.apart(export, folder, KERAS_BACKEND="tensorflow")
        return timing.apart(time_signatures, folder, batch, rounds)


def export(folder):
    """Writes the bare model and the two servables."""
    import keras

    from keras_balanced import GCALoss, GLALoss, models, serving

    folder = pathlib.Path(folder)
    keras.utils.set_random_seed(0)
    model = models.resnet((32, 32, 3), CLASSES, depth=8)
    model.export(folder / "bare", verbose=False)
    priors = np.geomspace(100, 1, CLASSES)
    serving.export(model, folder / "gla", GLALoss(priors, q=0.0, tau=None))
    gca = GCALoss(priors, q=0.0, margins="cube_root", consistent=False)
    serving.export(model, folder / "gca", gca)


def time_signatures(folder, batch, rounds):
    import sys

    from examples import c_loader

    folder = pathlib.Path(folder)
    bare = c_loader.SavedModel(folder / "bare")
    gla = c_loader.SavedModel(folder / "gla" / "1")
    gca = c_loader.SavedModel(folder / "gca" / "1")
    mix = {"priors": np.full((1, CLASSES), 1 / CLASSES, "float32")}
    (bare_input,) = bare.signatures["serving_default"]["inputs"]
    x = np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype("float32")
    calls = {
        "bare export": lambda: bare.run("serving_default", **{bare_input: x}),
        "raw": lambda: gla.run("raw", inputs=x),
        "serving_default, GLA": lambda: gla.run("serving_default", inputs=x),
        "with_priors, GLA": lambda: gla.run("with_priors", inputs=x, **mix),
        "serving_default, GCA": lambda: gca.run("serving_default", inputs=x),
    }
    for call in 5 * list(calls.values()):
        call()
    times = timing.in_turns(calls, rounds)
    assert "tensorflow" not in sys.modules
    base = times["bare export"]
    found = {}
    for name, of in times.items():
        values = np.median(of) * 1e3, np.median(of) / np.median(base)
        quartiles = np.quantile(of / base, [0.25, 0.75])
        ms, ratio, low, high = (round(float(value), 4) for value in (*values, *quartiles))
        found[name] = {"milliseconds": ms, "ratio": ratio, "quartiles": [low, high]}
    return found


def report(runs):
    rows = []
    for run in runs:
        for name, of in run["result"].items():
            times = f"{of['milliseconds']:.3f}", f"{of['ratio']:.3f}"
            quartiles = "{:.3f} to {:.3f}".format(*of["quartiles"])
            rows.append([run["settings"]["batch"], name, *times, quartiles])
    return stats.table(["batch", "signature", "ms per call", "ratio to bare", "quartiles"], rows)
