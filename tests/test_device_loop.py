"""The loop on JAX of the accuracy benchmark, where JAX, Keras and NumPy are all that is needed."""

import json
import time

import keras
import numpy as np
import processes
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("runs with KERAS_BACKEND=jax", allow_module_level=True)

import accuracy
import backups
import device_loop
import jax

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
    recipe = accuracy.PROTOCOLS["quick"]
    settings = {"seed": 0, "dataset": "digits", "profile": "step", "ratio": 2.0, "loss": "ce"}
    settings |= {"l2": 1e-4, "held_out": 0.0}
    cases = [(settings, recipe)]
    cases += [
        (settings | {name: value}, recipe)
        for name, value in (("seed", 1), ("loss", "gca"), ("l2", 2e-4), ("held_out", 0.2))
    ]
    cases += [(settings, recipe._replace(epochs=61)), (settings, recipe._replace(dtype="half"))]
    paths = {accuracy.backup_path(*case, tmp_path) for case in cases}
    assert len(paths) == len(cases)
    assert {path.parent for path in paths} == {tmp_path}
    assert accuracy.backup_path(dict(settings), recipe, tmp_path) in paths
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "commit", lambda: "another")
        assert accuracy.backup_path(settings, recipe, tmp_path) in paths
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "SOURCES", "others")
        assert accuracy.backup_path(settings, recipe, tmp_path) not in paths
    monkeypatch.setattr(accuracy, "versions", lambda: {"keras": "another"})
    assert accuracy.backup_path(settings, recipe, tmp_path) not in paths


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


@pytest.fixture
def images(tmp_path, rng):
    """Returns a file of images of three classes."""
    y = np.repeat(np.arange(3), 20)
    x = (60 * y[:, None, None, None] + rng.integers(0, 60, (60, 8, 8, 1))).astype("uint8")
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path / "digits.npz"


# Every process, a worker too, runs it.
EAGER_BACKUPS = """
import os, time
import backups
backups.SECONDS_BETWEEN_BACKUPS = 0
save = backups.Backup.save_if_due
def save_and_wait(backup, epoch):
    save(backup, epoch)
    if str(epoch) == os.environ.get("WAIT_AFTER"):
        time.sleep(3600)
backups.Backup.save_if_due = save_and_wait
import accuracy
if __name__ == "__main__":
    accuracy.main()
"""


@pytest.mark.slow
def test_a_kill_ends_the_workers_and_loses_no_training(tmp_path, images):
    script, output = tmp_path / "eager.py", tmp_path / "runs.jsonl"
    script.write_text(EAGER_BACKUPS)
    arguments = [script, "--data", images, "--ratios", "2", "--epochs", "30", "--seeds", "0"]
    arguments += ["--losses", "ldam_drw", "--workers", "1", "--output", output]
    path = {"PYTHONPATH": f"{processes.ROOT}/benchmarks:{processes.ROOT}", "KERAS_BACKEND": "jax"}
    # In the second phase.
    process = processes.start(*arguments, WAIT_AFTER="26", **path)
    try:
        while "ldam_drw: 26 of 30 epochs" not in (line := process.stdout.readline()):
            assert line, "the training ended"
        process.kill()
        # The worker, which waits, holds the other end.
        process.communicate(timeout=processes.HANG)
    finally:
        processes.kill(process)
    assert not output.exists() or not output.read_text()
    (backup,) = tmp_path.glob("runs.jsonl.unfinished/*")
    printed = processes.run(*arguments, **path)
    assert "ldam_drw: 27 of 30 epochs" in printed
    assert "ldam_drw: 26 of 30 epochs" not in printed
    assert not backup.parent.exists()
    (line,) = output.read_text().splitlines()
    assert np.mean(json.loads(line)["result"]["recalls"]) > 0.6


@pytest.mark.slow
def test_trains_and_resumes_without_tensorflow(tmp_path, images):
    for name in ("tensorflow", "tensorflow_datasets", "sklearn", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")
    output = tmp_path / "runs.jsonl"
    arguments = ["benchmarks/accuracy.py", "--data", images, "--ratios", "2"]
    arguments += ["--epochs", "5", "--losses", "logit_adjusted", "ldam_drw", "--workers", "1"]
    arguments += ["--output", output, "--seeds"]
    path = {"PYTHONPATH": f"{tmp_path}:{processes.ROOT}", "KERAS_BACKEND": "jax"}
    processes.run(*arguments, "0", **path)
    with output.open("a") as file:
        file.write('{"settings": {"lo')  # What a kill leaves.
    printed = processes.run(*arguments, "0", "1", "--dtype", "mixed_bfloat16", **path)
    assert "0 trainings done before, 4 to do" in printed
    printed = processes.run(*arguments, "0", **path)
    assert "2 trainings done before, 0 to do" in printed
    lines = output.read_text().splitlines()
    runs = [json.loads(line) for line in lines if line.endswith("}")]
    assert [run["recipe"].get("dtype") for run in runs] == [None] * 2 + ["mixed_bfloat16"] * 4
    assert {run["versions"]["backend"] for run in runs} == {"jax"}
    assert {run["settings"]["dataset"] for run in runs} == {"digits"}
    assert runs[0]["result"]["class_counts"] == [20, 14, 10]
    assert np.mean(runs[0]["result"]["recalls"]) > 0.6
