"""The recipe of the literature on the cores of one machine: a queue that goes on by itself.

    make long                     # takes the rows below in order, a training of one thread per core
    make quiet CMD="..."          # the queue stands still while a command is timed

ResNet-32 on 32x32 images, 200 epochs, a long tail of ratio 100. Each result is appended to
`--output` as it ends. The queue can be cut off and started again at any time: it does nothing
twice, and loses at most an epoch of each training. SIGTERM and Ctrl-C end it after the epochs under
way. In `--folder` are the backups, and of each training the state at epoch 160 and the final
weights with the logits of the test set (and of the hold-out, if there is one).
"""

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import signal
from multiprocessing import connection
from typing import NamedTuple

import numpy as np

import keras_balanced
from benchmarks import backups, methods, store, training, workers
from keras_balanced import datasets

RECIPE = training.PAPER._replace(threads=1)
RATIO, L2 = 100.0, 1e-4
NOMINAL_SPEED = 400  # Images a second, until one has been measured.
SIZES = {"digits": (10, 124), "cifar10": (10, 5000), "cifar100": (100, 500)}  # K, n_max.


class Row(NamedTuple):
    """One training of the queue."""

    loss: str
    seed: int = 0
    dataset: str = "cifar10"
    held_out: bool = False
    dtype: str | None = "mixed_bfloat16"

    def settings(self):
        held_out = training.HELD_OUT if self.held_out else 0.0
        recipe = RECIPE._replace(dtype=self.dtype)
        data = {"dataset": self.dataset, "ratio": RATIO}
        grid = training.grid(recipe, (self.loss,), (self.seed,), **data, l2=L2, held_out=held_out)
        return next(iter(grid))

    def title(self):
        held_out = ["held out"] * self.held_out
        title = training.title(self.settings())
        return " ".join([title, *held_out, self.dtype or "float32"])


ROWS = (
    Row("ce"),
    Row("logit_adjusted"),
    # From epoch 160 of cross-entropy.
    *map(Row, ("gca_deferred", "gca_consistent_deferred", "ce_drw", "logit_adjusted_deferred")),
    *map(Row, ("ldam_drw", "vs", "gca", "gla_q0.2", "weighted")),
    *(Row(loss, seed) for seed in (1, 2) for loss in ("ce", "logit_adjusted", "gca_deferred")),
    *(Row(loss, held_out=True) for loss in ("ce", "logit_adjusted")),
    Row("ce", dtype=None),
    *(Row(loss, dataset="cifar100") for loss in ("ce", "logit_adjusted", "gca_deferred")),
)


@contextlib.contextmanager
def only_queue(folder):
    """Gives a function that writes the ids of this queue's processes to `<folder>/processes`.

    The file is locked as long as the queue runs, and names processes only then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "processes").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SystemExit(f"A queue runs in {folder} already.") from error

        def write(ids):
            file.truncate(0)
            file.write(" ".join(map(str, ids)))
            file.flush()

        write([os.getpid()])
        yield write


def donor_of(row):
    """Returns the row that trains as this one does until the second phase."""
    return row._replace(loss=methods.first_phase(row.loss))


def ready(row, unfinished, states):
    """Returns whether no unfinished row would save this one its first phase."""
    donor = donor_of(row)
    path = training.first_phase_path(row.settings(), states)
    return donor == row or donor not in unfinished or path.exists()


def hours(row, speed, states=None):
    """Returns how long a row takes from its donor's state, or its backup in `states`, if any."""
    settings = row.settings()
    images = sum(datasets.long_tail_counts(*SIZES[row.dataset], settings["ratio"]))
    images *= 1 - settings["held_out"]
    start = 0
    unfinished = states and training.backup_path(settings, states / "unfinished")
    if unfinished and unfinished.exists():
        with np.load(unfinished) as file:
            start = int(file["epoch"])
    elif (donor := donor_of(row)) != row and donor in ROWS:
        start = int(training.SECOND_PHASE * RECIPE.epochs)
    return images * (RECIPE.epochs - start) / speed / 3600


def print_plan(left, done, states):
    speeds = [run["result"]["images_per_second"] for run in done.values()]
    speed, source = (speeds[-1], "as the last") if speeds else (NOMINAL_SPEED, "not yet measured")
    print(f"{len(done)} rows done before, {len(left)} to do, at {speed} images/s ({source}):")
    for row in left:
        print(f"  {hours(row, speed, states):5.1f} hours  {row.title()}")
    print(end="", flush=True)


def yield_to_other_sessions():
    """Makes `nice` count against other terminals too.

    Linux can share the cores evenly among sessions, whatever the priorities in each.
    """
    os.setsid()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/autogroup").write_text("19")


def train(row, output, states):
    """Trains a row in a process of its own and writes its result."""
    workers.end_with_parent()
    yield_to_other_sessions()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: backups.STOP.set())
    settings, unfinished = row.settings(), states / "unfinished"
    result = training.train(settings, unfinished, keep=states)
    store.append(output, settings, result)
    training.backup_path(settings, unfinished).unlink(missing_ok=True)
    of = [100 * np.mean(result[key]) for key in ("recalls", "recalls_of_posterior")]
    print(f"{row.title()}: {of[0]:.1f}, by posterior {of[1]:.1f}", flush=True)


def run_queue(rows, output, folder, limit):
    """Trains what has no result yet, `limit` at a time; returns the rows that failed."""
    states = folder / "states"
    found = {store.key(run["settings"]): run for run in store.read(output)}
    done = {row: found[key] for row in rows if (key := store.key(row.settings())) in found}
    left = [row for row in rows if row not in done]
    print_plan(left, done, states)
    workers.share_cores(limit, RECIPE.threads)
    running, failed = {}, []

    def stop(*_):
        backups.STOP.set()
        for process in running.values():
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with only_queue(folder) as write_ids:
        while True:
            start_ready(left, running, limit, output, states)
            write_ids([os.getpid(), *(process.pid for process in running.values())])
            if not running:
                return failed
            connection.wait([process.sentinel for process in running.values()])
            failed += remove_ended(running)


def start_ready(left, running, limit, output, states):
    """Starts rows, while there is room, and moves them from those left to those running."""
    spawn = multiprocessing.get_context("spawn")
    for row in list(left):
        free = len(running) < limit and not backups.STOP.is_set()
        if free and ready(row, [*left, *running], states):
            left.remove(row)
            running[row] = spawn.Process(target=train, args=(row, output, states))
            running[row].start()


def remove_ended(running):
    """Returns those of the rows that have ended that failed, and not because they were stopped."""
    ended = {row: process for row, process in running.items() if process.exitcode is not None}
    for row in ended:
        del running[row]
    return [row for row, of in ended.items() if of.exitcode and not backups.STOP.is_set()]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--folder", type=pathlib.Path, default=".long")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at a time")
    args = parser.parse_args(argv)
    if not pathlib.Path(keras_balanced.__file__).is_relative_to(store.ROOT):
        parser.error(f"keras_balanced comes from {keras_balanced.__file__}, not {store.ROOT}")
    if failed := run_queue(ROWS, args.output, args.folder, args.workers):
        parser.exit(1, "Failed: " + "; ".join(row.title() for row in failed) + "\n")


if __name__ == "__main__":
    main()
