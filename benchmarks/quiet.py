"""Runs a command while the long trainings stand still: `python quiet.py FOLDER COMMAND`."""

import contextlib
import fcntl
import os
import pathlib
import signal
import subprocess
import sys


def processes_of(folder):
    """Returns the processes of the queue that runs in a folder, the queue itself first."""
    with contextlib.suppress(FileNotFoundError), (folder / "processes").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # It holds the lock as long as it runs.
            return [int(number) for number in file.read().split()]
    return []


def main(folder, command):
    stopped = []
    try:
        # First the queue, which then starts no other training.
        for part in (slice(1), slice(1, None)):
            for process in processes_of(folder)[part]:
                os.kill(process, signal.SIGSTOP)
                stopped.append(process)
        return subprocess.run(command, shell=True).returncode
    finally:
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), " ".join(sys.argv[2:])))
