"""A long training on disk: what it goes on from after it was cut off, and how far it is."""

import contextlib
import os
import threading
import time
import zipfile

import keras
import numpy as np

SECONDS_BETWEEN_BACKUPS = 60
STOP = threading.Event()  # Once set, a training writes a backup after its epoch and ends.


def parts_of(model, optimizer):
    """Returns the variables: trained, not trained, and the optimizer's."""
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return model.trainable_variables, model.non_trainable_variables, optimizer.variables


def write(path, *values, **named):
    """Writes an .npz file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        np.savez(file, *values, **named)
    os.replace(part, path)


class Backup:
    """The state of a training in a file, read at the start and written about once a minute.

    Args:
        title: The training, as a line of progress has it.
        model, optimizer: What is saved and restored.
        epochs: Epochs of the whole training.
        images: Images of an epoch.
        path: The file; `None`: nothing is saved.
        milestone: `(epoch, path)`: the state after that epoch is saved there, and a training
            without a backup starts there if the file exists.
    """

    def __init__(self, title, model, optimizer, epochs, images, path=None, milestone=None):
        self.title, self.epochs, self.images = title, epochs, images
        self.path, self.milestone = path, milestone
        self.variables = [variable for part in parts_of(model, optimizer) for variable in part]
        self.epoch, earlier = 0, 0.0
        for file in filter(None, (path, milestone and milestone[1])):
            # A file truncated by a full disk counts as missing.
            with contextlib.suppress(FileNotFoundError, EOFError, zipfile.BadZipFile):
                self.epoch, earlier = self._restore(file)
                break
        self.saved = time.perf_counter()
        self.start = self.saved - earlier
        self.told = self.epoch, self.saved

    def _restore(self, path):
        with path.open("rb") as opened, np.load(opened) as file:
            values = [file[f"arr_{i}"] for i in range(len(self.variables))]
            epoch, seconds = int(file["epoch"]), float(file["seconds"])
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        return epoch, seconds

    def left(self, epochs):
        """Returns those of a range of epochs that are not in the backup."""
        return range(max(epochs.start, self.epoch), epochs.stop)

    def seconds(self):
        """Returns how long the training has taken in all its runs, without what was lost."""
        return time.perf_counter() - self.start

    def save_if_due(self, epoch):
        """Writes the state after so many epochs, if the last backup is old or this is the end.

        Raises:
            SystemExit: once `STOP` is set.
        """
        stop = STOP.is_set()
        if self.milestone and epoch == self.milestone[0]:
            self._write(self.milestone[1], epoch)
        if self.path and (stop or time.perf_counter() - self.saved >= SECONDS_BETWEEN_BACKUPS):
            self._write(self.path, epoch)
            self.saved = time.perf_counter()
            print(self._progress(epoch), flush=True)
        if stop:
            raise SystemExit(0)

    def _write(self, path, epoch):
        values = map(keras.ops.convert_to_numpy, self.variables)
        write(path, *values, epoch=epoch, seconds=self.seconds())

    def _progress(self, epoch):
        before, then = self.told
        self.told = epoch, time.perf_counter()
        speed = self.images * (epoch - before) / (self.told[1] - then)
        hours = self.images * (self.epochs - epoch) / speed / 3600
        return (
            f"{self.title}: {epoch} of {self.epochs} epochs, {speed:.0f} images/s, "
            f"{hours:.1f} hours left"
        )
