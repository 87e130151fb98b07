"""Searches small enough for a test, also as a program of its own, which dies where it is told to.

python tests/searches.py kill DIRECTORY KIND: runs a search, and kills itself in the third training.
python tests/searches.py work DIRECTORY ID: is one of KerasTuner's workers, or their chief. Each
worker waits in each training for the file `ID.go`.
"""

import gc
import os
import pathlib
import sys

import keras
import keras_tuner
import numpy as np
from processes import wait_for

from keras_balanced import tuning

PRIORS = [100, 30, 1]
# Each kind of search with the number of its trainings.
TRAININGS = {"random": 4, "grid": 6, "folds": 6}


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def examples(count=60):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    return (rng.normal(size=(count, 4)) + 2 * np.eye(3, 4)[y]).astype("float32"), y


class Log(keras.callbacks.Callback):
    """Writes down the loss of each training that starts."""

    def __init__(self, path, then=lambda: None):
        super().__init__()
        self.path, self.then = path, then

    def on_train_begin(self, logs=None):
        with self.path.open("a") as file:
            file.write(f"{self.model.loss.get_config()}\n")
        self.then()


class Die(keras.callbacks.Callback):
    """Kills the process in the middle of its third training."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def on_epoch_begin(self, epoch, logs=None):
        if epoch and len(self.log.read_text().splitlines()) == 3:
            os.kill(os.getpid(), 9)


def search(directory, kind, *callbacks):
    def build_with(hp):
        units = hp.Choice("units", [2, 4]) if kind == "random" else 4
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dense(3)]
        )

    hypermodel = tuning.BalancedHyperModel(
        build_with,
        PRIORS,
        q=[0.0, 0.1],
        tau=[None],
        seed=0,
        # In so few steps compiling would take the most time.
        compile_kwargs={"optimizer": keras.optimizers.SGD(0.5), "run_eagerly": True},
    )
    kwargs = {"directory": directory, "project_name": kind}
    if kind == "random":
        tuner = keras_tuner.RandomSearch(
            hypermodel, hypermodel.objective, max_trials=4, seed=3, **kwargs
        )
    elif kind == "grid":
        tuner = tuning.GridSearch(hypermodel, hypermodel.objective, **kwargs)
    else:
        oracle = keras_tuner.oracles.GridSearchOracle(hypermodel.objective, max_trials=2)
        tuner = tuning.CrossValidation(oracle, hypermodel, folds=3, **kwargs)
    x, y = examples(90)
    held_out = {} if kind == "folds" else {"validation_data": (x[1::2], y[1::2])}
    callbacks = [Log(directory / f"{kind}.log"), *callbacks]
    if kind == "folds":  # Where a list of callbacks that write files is refused.
        held_out["callbacks"] = lambda directory: callbacks
    tuner.search(x, y, **{"callbacks": callbacks, **held_out}, epochs=2, batch_size=90, verbose=0)


def work(directory, worker):
    hypermodel = tuning.BalancedHyperModel(
        build,
        PRIORS,
        losses=["gla"],
        q=[0.0, 0.1, 0.2, 0.3, 0.4],
        tau=[None],
        seed=0,
        compile_kwargs={"run_eagerly": True},
    )
    tuner = tuning.GridSearch(
        hypermodel, hypermodel.objective, directory=directory, project_name="p"
    )
    go = directory / f"{worker}.go"
    log = Log(directory / f"{worker}.log", then=lambda: wait_for(go.exists))
    x, y = examples()
    tuner.search(x, y, validation_data=(x, y), epochs=1, callbacks=[log], verbose=0)


if __name__ == "__main__":
    gc.freeze()  # As in conftest.py.
    command, directory, name = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    if command == "kill":
        search(directory, name, Die(directory / f"{name}.log"))
    else:
        work(directory, name)
