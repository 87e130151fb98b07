"""The queue of long trainings: killed, ended, stopped, and the first phase that rows share."""

import json
import os
import signal
import types

import keras
import numpy as np
import processes
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("trains with TensorFlow", allow_module_level=True)

import accuracy
import backups
import fused
import long_trainings
import quiet

EPOCHS = 10  # The second phase starts at 8.
# Every process, a worker too, runs it. A training waits after an epoch for as long as a file is there.
QUEUE = """
import pathlib, time
import backups, long_trainings
backups.SECONDS_BETWEEN_BACKUPS = 0
long_trainings.RECIPE = long_trainings.RECIPE._replace(
    size=8, depth=8, epochs=10, ratios=(50,), batch_size=64, augment=False
)
rows = map(long_trainings.Row, {losses!r})
long_trainings.ROWS = tuple(row._replace(dataset="digits", dtype=None) for row in rows)
save = backups.Backup.save_if_due
def save_and_wait(backup, epoch):
    save(backup, epoch)
    while pathlib.Path(f"wait-{{epoch}}").exists() or pathlib.Path(f"once-{{epoch}}").exists():
        pathlib.Path(f"once-{{epoch}}").unlink(missing_ok=True)
        time.sleep(0.05)
backups.Backup.save_if_due = save_and_wait
if __name__ == "__main__":
    long_trainings.main()
"""
