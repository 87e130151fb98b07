"""The loop on JAX of the accuracy benchmark, where JAX, Keras and NumPy are all that is needed."""

import json
import time

import keras
import numpy as np
import processes
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("runs with KERAS_BACKEND=jax", allow_module_level=True)

import jax

from benchmarks import backups, device_loop, store, training
from keras_balanced import GLALoss

COUNTS = [8, 4]


def build(size=8, l2=0.1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((size, size, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(l2)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    return model, keras.optimizers.SGD(0.1, momentum=0.9)


def test_a_full_batch_trains_as_fit_does(rng):
    x = rng.integers(0, 256, (12, 8, 8, 1), "uint8")
    y = np.repeat([0, 1], COUNTS)
    rates = [0.1, 0.01, 0.001]
    ours, optimizer = build()
    loop = device_loop.Loop(ours, optimizer, GLALoss(COUNTS), (x, y), 12, augment=False)
    loop.run(range(3), rates.__getitem__)
    theirs, optimizer = build()
    theirs.compile(optimizer, GLALoss(COUNTS))
    schedule = keras.callbacks.LearningRateScheduler(rates.__getitem__)
    theirs.fit(x, y, batch_size=12, epochs=3, verbose=0, callbacks=[schedule])
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-5, err_msg=a.path)


class CutOffError(Exception):
    pass


def test_a_training_that_was_cut_off_goes_on_the_same(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.setattr(backups, "SECONDS_BETWEEN_BACKUPS", 0)
    x, y = rng.integers(0, 256, (12, 8, 8, 1), "uint8"), np.repeat([0, 1], COUNTS)
    phases = (GLALoss(COUNTS), range(4)), (GLALoss(COUNTS, q=0.3), range(4, 6))

    def train(path, cut_off=None):
        model, optimizer = build()
        backup = backups.Backup("a training", model, optimizer, 6, len(y), path)
        seen = []

        def rate(epoch):
            if epoch == cut_off:
                raise CutOffError
            seen.append(epoch)
            return 0.1 / (1 + epoch)

        for loss, epochs in phases:
            device_loop.Loop(model, optimizer, loss, (x, y), 5, augment=True).run(
                backup.left(epochs), rate, backup
            )
        return seen, [weight.numpy() for weight in model.weights], backup

    seen, wanted, _ = train(tmp_path / "whole.npz")
    assert seen == [0, 1, 2, 3, 4, 5]
    path = tmp_path / "backups" / "cut.npz"
    for cut_off in (2, 5):  # In either phase.
        with pytest.raises(CutOffError):
            train(path, cut_off)
    before = time.perf_counter()
    seen, found, backup = train(path)
    assert seen == [5]
    assert backup.seconds() > time.perf_counter() - before
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "a training: 6 of 6 epochs" in capsys.readouterr().out
    assert list(path.parent.iterdir()) == [path]


def test_no_training_goes_on_from_another(tmp_path, monkeypatch):
    (settings,) = training.grid(training.DIGITS, ("ce",), (0,), dataset="digits", ratio=2.0)
    changes = ({}, {"seed": 1}, {"loss": "gca"}, {"l2": 2e-4}, {"held_out": 0.2})
    changes += ({"epochs": 61}, {"dtype": "mixed_bfloat16"})
    paths = {training.backup_path(settings | changed, tmp_path) for changed in changes}
    assert len(paths) == len(changes)
    assert {path.parent for path in paths} == {tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", lambda: "another")
        assert training.backup_path(dict(settings), tmp_path) in paths
    with monkeypatch.context() as patch:
        patch.setattr(training, "SOURCES", "others")
        assert training.backup_path(settings, tmp_path) not in paths
    monkeypatch.setattr(store, "versions", lambda: {"keras": "another"})
    assert training.backup_path(settings, tmp_path) not in paths


def order_of(count, batch_size, odds=None):
    """Returns the images that each step of an epoch saw."""

    def step(state, images, labels):
        seen, at = state
        return jax.lax.dynamic_update_index_in_dim(seen, labels, at, 0), at + 1

    steps = -(-count // batch_size)
    y = np.arange(count)
    x = np.zeros((count, 8, 8, 1), "uint8")
    state = (np.zeros((steps, batch_size), y.astype("int32").dtype), 0)
    epoch = device_loop.epoch_of(step, batch_size, 8, augment=False)
    return np.asarray(epoch(state, x, y, odds, jax.random.key(0))[0])


def test_an_epoch_sees_every_image_in_whole_batches():
    seen = order_of(10, 4).reshape(-1)
    assert sorted(seen[:10]) == list(range(10))
    np.testing.assert_array_equal(seen[10:], seen[:2])
    odds = np.array([0.5, 0, 0, 0.5])
    assert set(order_of(4, 4, odds).reshape(-1)) <= {0, 3}


def test_crops_are_parts_of_the_padded_images(rng):
    x = np.pad(rng.integers(1, 256, (3, 8, 8, 2), "uint8"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    chosen = np.arange(60) % 3
    crops = np.asarray(device_loop.crop(jax.random.key(0), x, chosen, 8))
    parts = np.lib.stride_tricks.sliding_window_view(x, (8, 8), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    found = set()
    for image, i in zip(crops, chosen, strict=True):
        matches = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            if (image[:, ::-1] if flip else image).tobytes() == parts[i, top, left].tobytes()
        ]
        assert len(matches) == 1
        found.update(matches)
    assert {flip for *_, flip in found} == {False, True}
    assert {top for top, *_ in found} == {left for _, left, _ in found} == {0, 1, 2}


# A question of one training; every process, a worker too, runs it.
TRY = """
import os, time
from benchmarks import backups, training
backups.SECONDS_BETWEEN_BACKUPS = 0
save = backups.Backup.save_if_due
def save_and_wait(backup, epoch):
    save(backup, epoch)
    if str(epoch) == os.environ.get("WAIT_AFTER"):
        time.sleep(3600)
backups.Backup.save_if_due = save_and_wait
def cases():
    recipe = training.DIGITS._replace(epochs=6)
    yield from training.grid(recipe, ("ldam_drw",), (0,), dataset="digits", ratio=10.0)
def measure(**settings):
    return training.measure(**settings)
"""
RUN = """
import pathlib, sys
from benchmarks import __main__, questions, store
store.ROOT = questions.FOLDER = pathlib.Path(sys.argv[1])
questions.__path__.append(sys.argv[1])
if __name__ == "__main__":
    __main__.main(["run", "attempt", "--workers", "1", "--output", sys.argv[2]])
"""


@pytest.mark.slow
def test_a_kill_ends_the_workers_and_loses_no_training(tmp_path):
    (tmp_path / "attempt.py").write_text(TRY)
    script, output = tmp_path / "run.py", tmp_path / "runs" / "runs.jsonl"
    script.write_text(RUN)
    environment = {"PYTHONPATH": str(processes.ROOT), "KERAS_BACKEND": "jax"}
    # In the second phase.
    process = processes.start(script, tmp_path, output, WAIT_AFTER="5", **environment)
    try:
        while "ldam_drw: 5 of 6 epochs" not in (line := process.stdout.readline()):
            assert line, "the training ended"
        process.kill()
        # The worker, which waits, holds the other end.
        process.communicate(timeout=processes.HANG)
    finally:
        processes.kill(process)
    assert not output.exists()
    (backup,) = (tmp_path / "results" / "unfinished").iterdir()
    printed = processes.run(script, tmp_path, output, **environment)
    assert "ldam_drw: 6 of 6 epochs" in printed
    assert "ldam_drw: 5 of 6 epochs" not in printed
    assert not backup.exists()
    (line,) = output.read_text().splitlines()
    assert json.loads(line)["versions"]["backend"] == "jax"
    assert np.mean(json.loads(line)["result"]["recalls"]) > 0.3
