"""The queue of long trainings: killed, ended, paused, and the first phase that its rows share."""

import json
import os
import pathlib
import signal

import keras
import numpy as np
import processes
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("trains with TensorFlow", allow_module_level=True)

from benchmarks import backups, fused, long_trainings, methods, quiet, store, training

# Every process, a worker too, runs it. A training waits as long as there is a file of its epoch.
QUEUE = """
import pathlib, sys, time
from benchmarks import backups, long_trainings
backups.SECONDS_BETWEEN_BACKUPS = 0
long_trainings.RECIPE = long_trainings.RECIPE._replace(
    size=8, depth=8, epochs=10, warmup_epochs=1, batch_size=64, augment=False
)
long_trainings.RATIO = 50.0
rows = map(long_trainings.Row, ("ce", "logit_adjusted", "ce_drw", "logit_adjusted_deferred"))
long_trainings.ROWS = tuple(row._replace(dataset="digits", dtype=None) for row in rows)
save = backups.Backup.save_if_due
def save_and_wait(backup, epoch):
    save(backup, epoch)
    name = f"{backup.title.split()[-1]}-{epoch}"
    while (pathlib.Path(__file__).parent / name).exists() and not backups.STOP.is_set():
        time.sleep(0.05)
backups.Backup.save_if_due = save_and_wait
if __name__ == "__main__":
    long_trainings.main()
"""


def start(folder):
    script = folder / "long_queue.py"
    script.write_text(QUEUE)
    arguments = ["--folder", folder, "--output", folder / "runs.jsonl", "--workers", "2"]
    return processes.start(script, *arguments, PYTHONPATH=str(processes.ROOT))


def read_until(process, *wanted):
    """Returns the lines of a process up to the last of those wanted, in any order."""
    wanted, lines = set(wanted), []
    while wanted:
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
        wanted -= {part for part in wanted if part in lines[-1]}
    return lines


def states(folder):
    """Returns the arrays of each file that the trainings left, except how long they took."""
    found = {}
    for path in sorted((folder / "states").glob("*.npz")):
        with np.load(path) as file:
            found[path.name] = {name: file[name] for name in file.files if name != "seconds"}
    return found


def scores(folder):
    """Returns the results by their losses, except how long the trainings took."""
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len({run["settings"]["loss"] for run in runs}) == len(runs)
    for run in runs:
        del run["result"]["seconds"], run["result"]["images_per_second"]
    return {run["settings"]["loss"]: run for run in runs}


def are_stopped(pids):
    """Returns a command that succeeds once all these processes stand still."""
    stopped = " && ".join(f"grep -q 'State:.T' /proc/{pid}/status" for pid in pids)
    # A process that has no turn of a busy machine takes the signal at its next.
    return f"for i in $(seq 300); do {stopped} && exit 0; sleep 0.2; done; exit 1"


@pytest.mark.slow
def test_the_queue_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    ((code, printed),) = processes.finish(start(whole))
    assert code == 0, printed
    assert "0 rows done before, 4 to do, at 400 images/s (not yet measured)" in printed

    # Killed in the first phase of one training and in the second of another.
    waits = [cut / name for name in ("ce-2", "logit_adjusted-9")]
    for wait in waits:
        wait.touch()
    process = start(cut)
    try:
        read_until(process, "ce: 2 of 10 epochs", "logit_adjusted: 9 of 10 epochs")
        with pytest.raises(SystemExit, match="runs in"), long_trainings.only_queue(cut):
            pass
        pids = quiet.processes_of(cut)
        assert len(pids) == 3
        assert quiet.main(cut, are_stopped(pids)) == 0
        for pid in pids[1:]:
            if (group := pathlib.Path(f"/proc/{pid}/autogroup")).exists():
                assert "nice 19" in group.read_text()
        process.kill()
        process.communicate(timeout=processes.HANG)  # The workers hold the other end.
    finally:
        processes.kill(process)
    assert quiet.processes_of(cut) == []
    for wait in waits:
        wait.unlink()

    # Ended in the second phase of those that go on from cross-entropy.
    wait = cut / "ce_drw-9"
    wait.touch()
    process = start(cut)
    try:
        printed = read_until(process, "ce_drw: 9 of 10 epochs")
        os.kill(process.pid, signal.SIGTERM)
        ((code, rest),) = processes.finish(process)
    finally:
        processes.kill(process)
    printed = "".join([*printed, rest])
    assert code == 0, printed
    assert "ce: 3 of 10 epochs" in printed
    assert "ce: 2 of 10 epochs" not in printed
    assert "logit_adjusted: 9 of 10 epochs" not in printed
    assert "ce_drw: 8 of 10 epochs" not in printed
    assert "ce_drw" not in scores(cut)
    wait.unlink()

    ((code, printed),) = processes.finish(start(cut))
    assert code == 0, printed
    assert "ce_drw: 9 of 10 epochs" not in printed
    assert scores(cut) == scores(whole)
    wanted, found = states(whole), states(cut)
    assert found.keys() == wanted.keys()
    for name, arrays in wanted.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[name][key], array, err_msg=f"{name} {key}")
    assert not list((cut / "states" / "unfinished").iterdir())
    ((code, printed),) = processes.finish(start(cut))
    assert code == 0, printed
    assert "4 rows done before, 0 to do" in printed
    assert "epochs" not in printed


class CutOffError(Exception):
    pass


RECIPE = training.DIGITS._replace(epochs=5, warmup_epochs=1, batch_size=64)
(SETTINGS,) = training.grid(
    RECIPE, ("ce_drw",), (0,), dataset="digits", ratio=50.0, held_out=training.HELD_OUT
)


def test_a_training_goes_on_from_its_backup_and_from_the_first_phase(tmp_path, monkeypatch):
    monkeypatch.setattr(backups, "SECONDS_BETWEEN_BACKUPS", 0)
    kept, saved, cuts = tmp_path / "kept", [], {2}
    save = backups.Backup.save_if_due

    def save_and_cut_off(backup, epoch):
        save(backup, epoch)
        saved.append(epoch)
        if epoch in cuts:
            raise CutOffError

    monkeypatch.setattr(backups.Backup, "save_if_due", save_and_cut_off)
    with pytest.raises(CutOffError):
        training.train(SETTINGS, tmp_path / "cut", kept)
    cuts.clear()
    found = training.train(SETTINGS, tmp_path / "cut", kept)
    assert saved == [1, 2, 3, 4, 5]
    whole = training.train(SETTINGS, None, tmp_path / "whole")
    saved.clear()
    from_first = training.train(SETTINGS, None, kept)
    assert saved == [5]
    for result in (found, from_first):
        assert result["recalls"] == whole["recalls"]
        assert result["train_recalls"] == whole["train_recalls"]
    names = {path.name for path in kept.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    final, first = sorted(names, key=lambda name: "first" in name)
    assert training.first_phase_path(SETTINGS | {"loss": "ce"}, kept).name == first
    with np.load(kept / final) as a, np.load(tmp_path / "whole" / final) as b:
        assert set(a.files) > {"logits", "labels", "test_logits", "test_labels"}
        assert len(a["test_labels"]) == 500
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_file_that_was_cut_short_is_none(tmp_path, capsys):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    path = tmp_path / "some" / "backup.npz"

    def backup():
        return backups.Backup("a training", model, keras.optimizers.SGD(), 4, 100, path)

    backup().save_if_due(3)
    assert not path.parent.exists()  # The last one is not old.
    backups.STOP.set()
    try:
        with pytest.raises(SystemExit):
            backup().save_if_due(3)
    finally:
        backups.STOP.clear()
    assert "a training: 3 of 4 epochs" in capsys.readouterr().out
    assert list(path.parent.iterdir()) == [path]
    assert backup().epoch == 3
    assert backup().left(range(2, 9)) == range(3, 9)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert backup().epoch == 0


def test_rows_are_different_trainings_and_wait_for_their_first_phase(tmp_path):
    keys = {store.key(row.settings()) for row in long_trainings.ROWS}
    assert len(keys) == len(long_trainings.ROWS)
    assert all(row.settings()["threads"] == 1 for row in long_trainings.ROWS)
    wanted = {"gca_deferred": "ce", "logit_adjusted_deferred": "ce", "ce_drw": "ce"}
    wanted |= {name: name for name in ("ce", "logit_adjusted", "vs", "oversampled", "effective")}
    wanted["ldam_drw"] = "ldam"
    assert {name: methods.first_phase(name) for name in wanted} == wanted
    ce, deferred = long_trainings.Row("ce"), long_trainings.Row("gca_deferred")
    assert not long_trainings.ready(deferred, [ce, deferred], tmp_path)
    assert long_trainings.ready(deferred, [ce._replace(seed=1), deferred], tmp_path)
    training.first_phase_path(deferred.settings(), tmp_path).touch()
    assert long_trainings.ready(deferred, [ce, deferred], tmp_path)
    whole, last_fifth = (long_trainings.hours(row, 400, tmp_path) for row in (ce, deferred))
    assert whole == pytest.approx(12406 * 200 / 400 / 3600)
    assert last_fifth == pytest.approx(whole / 5)
    held_out = long_trainings.Row("ce", held_out=True)
    assert long_trainings.hours(held_out, 400, tmp_path) == pytest.approx(0.8 * whole)
    backups.write(
        training.backup_path(ce.settings(), tmp_path / "unfinished"), epoch=150, seconds=1.0
    )
    assert long_trainings.hours(ce, 400, tmp_path) == pytest.approx(whole / 4)


@pytest.mark.parametrize("shape", [(4, 6, 6, 3), (1, 5, 3, 2)])
def test_fused_normalization_is_keras_own(shape, rng):
    layers = keras.layers.BatchNormalization(momentum=0.7), None
    layers = layers[0], fused.FusedBatchNormalization.from_config(layers[0].get_config())
    x = keras.ops.convert_to_tensor(rng.normal(1.0, 2.0, shape).astype("float32"))
    target = keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
    import tensorflow as tf

    def outcome(layer):
        layer.build(shape)
        layer.gamma.assign(np.linspace(0.5, 2.0, shape[-1]))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * target)
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        moving = layer.moving_mean, layer.moving_variance
        return [np.asarray(value) for value in (y, *gradients, *moving, layer(x))]

    for ours, keras_own in zip(*map(outcome, layers[::-1]), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-4, atol=2e-5)


def test_the_model_of_a_training_has_fused_normalization():
    x, y = np.zeros((4, 8, 8, 1), "uint8"), np.arange(4)
    resnet = training.build(methods.METHODS["ldam"], x, y, 1e-4, RECIPE).layers[-1]
    kinds = {type(layer) for layer in resnet.layers}
    assert fused.FusedBatchNormalization in kinds
    assert keras.layers.BatchNormalization not in kinds


def test_a_command_runs_where_no_queue_does(tmp_path):
    assert quiet.main(tmp_path, "exit 3") == 3
    (tmp_path / "processes").write_text(str(os.getpid()))  # What a kill leaves: not locked.
    assert quiet.processes_of(tmp_path) == []
