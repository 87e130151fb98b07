"""Several processes under `MultiWorkerMirroredStrategy`, started as a cluster starts them."""

import importlib
import json
import re
import signal

import keras
import numpy as np
import pytest
from processes import HANG, finish, free_addresses, run, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="runs with KERAS_BACKEND=tensorflow"
    ),
]
PROGRAM = "examples/multi_worker.py"
STEPS = 120
# A worker that is killed, for sure, between the 20th step and the next.
KILLED = """
import builtins, os, runpy, sys
say = print

def say_and_die(*args, **kwargs):
    say(*args, **kwargs)
    if "step 20," in args[0]:
        os.kill(os.getpid(), 9)

builtins.print = say_and_die
sys.argv[0] = "examples/multi_worker.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("multi_worker")  # It needs TensorFlow.


@pytest.fixture(scope="module")
def shards(program, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    program.main(["--data", str(directory), "--write-shards", "6"])
    return directory


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """One process: its output, and its model."""
    path = tmp_path_factory.mktemp("alone") / "model.keras"
    output = run(PROGRAM, *arguments(shards, path), KERAS_BACKEND="tensorflow")
    return output, path


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory):
    """Two undisturbed workers: their outputs, and their model."""
    path = tmp_path_factory.mktemp("two") / "model.keras"
    return outputs_of(start_workers(2, *arguments(shards, path))), path


def arguments(shards, path, save_every=60):
    return (
        *("--data", shards, "--output", path, "--steps", STEPS, "--save-every", save_every),
        *("--time-limit", HANG),
    )


def start_workers(number, *command, program=(PROGRAM,), missing=(), last=None):
    """Starts the workers of a cluster except the missing ones; the last may run its own program."""
    addresses = free_addresses(number)
    cluster = {"worker": addresses}
    return [
        start(
            *(last if last and index == number - 1 else program),
            *command,
            KERAS_BACKEND="tensorflow",
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(number)
        if index not in missing
    ]


def outputs_of(workers):
    ended = finish(*workers)
    assert [code for code, _ in ended] == [0] * len(workers), ended
    return [output for _, output in ended]


def digests(outputs):
    return {re.search("weights ([0-9a-f]{16})", output)[1] for output in outputs}


def weights(path):
    return keras.models.load_model(path).get_weights()


def assert_same(path, other):
    for a, b in zip(weights(path), weights(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0)


def test_two_workers_train_as_one_process(alone, two):
    outputs, path = two
    assert len(digests(outputs)) == 1
    assert_same(path, alone[1])


def test_three_workers_train_as_one_process(alone, shards, tmp_path):
    path = tmp_path / "model.keras"
    outputs = outputs_of(start_workers(3, *arguments(shards, path)))
    assert len(digests(outputs)) == 1
    assert_same(path, alone[1])


def test_priors_are_merged_and_the_model_is_good(program, alone, two, shards):
    labels = np.concatenate([np.load(path)["y"] for path in shards.glob("train-*.npz")])
    counts = np.bincount(labels, minlength=10).tolist()
    for output in [alone[0], *two[0]]:
        assert f"counts {counts}" in output
    loss = keras.models.load_model(two[1]).loss
    np.testing.assert_allclose(loss.priors, np.array(counts) / len(labels))
    assert float(re.search("test set: ([0-9.]+)", two[0][0])[1]) > 0.8


def test_a_killed_worker_ends_the_job_and_a_restart_resumes_it(two, shards, tmp_path):
    path = tmp_path / "model.keras"
    command = arguments(shards, path, save_every=10)
    workers = start_workers(2, *command, last=("-c", KILLED))
    (code, output), (code_of_killed, _) = finish(*workers)
    assert (code, code_of_killed) == (1, -signal.SIGKILL)
    assert "Worker 0: lost another worker" in output
    assert "weights" not in output

    outputs = outputs_of(start_workers(2, *command))
    assert re.search(r"starts at step (\d+)", outputs[0])[1] == "20"
    assert digests(outputs) == digests(two[0])


def test_a_worker_that_never_joins_ends_the_job(shards, tmp_path):
    command = arguments(shards, tmp_path / "model.keras")
    workers = start_workers(2, *command, "--time-limit", 6, missing=[1])
    ((code, output),) = finish(*workers)
    assert code == 1
    assert "Worker 0 of 2. It ends if the others do not join" in output
    assert "Timeout (0:00:06)!" in output


def test_fit_does_not_work_there():
    # keras-team/keras#20585. If this fails, `fit` is mended, and the guide and example can go
    code = """
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras, numpy as np, os
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
try:
    model.fit(tf.data.Dataset.from_tensors((np.zeros((8, 4)), np.zeros(8))).repeat(4), verbose=0)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("fit worked")
os._exit(0)
"""
    for _, output in finish(*start_workers(2, program=("-c", code))):
        assert "ValueError" in output
        assert "PerReplica" in output


@pytest.mark.parametrize(
    ("changes", "num_workers", "message"),
    [
        ([], 4, "multiple of the 4 workers. Received: 6 files train-"),
        (["--batch-size", "50"], 3, "multiple of the 3 replicas: uneven parts"),
        (["--batch-size", "9"], 3, "multiple of the 6 shards"),
    ],
)
def test_parts_that_do_not_fit(program, shards, changes, num_workers, message):
    args = program.parse_arguments(["--data", str(shards), *changes])
    with pytest.raises(SystemExit, match=message):
        program.shards_of_worker(args, 0, num_workers, num_workers)


def test_bad_arguments(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--data", "x", "--save-every", "0"])
    assert "`save_every` must be at least 1. Received: 0" in capsys.readouterr().err


def test_batches_are_the_same_for_any_number_of_workers(program, shards):
    paths = sorted(shards.glob("train-*.npz"))

    def labels(paths, step):
        data = program.batches(paths, each=10, per_replica=10, seed=0, step=step)
        return [y.numpy() for _, y in data.take(12)]

    every = labels(paths, 0)
    halves = labels(paths[::2], 0), labels(paths[1::2], 0)
    for global_step in range(2):
        whole = np.concatenate(every[6 * global_step : 6 * global_step + 6])
        parts = [half[3 * global_step : 3 * global_step + 3] for half in halves]
        np.testing.assert_array_equal(
            np.sort(whole), np.sort(np.concatenate([*parts[0], *parts[1]]))
        )
    np.testing.assert_array_equal(labels(paths, 1)[:6], every[6:])
