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
    stopped = processes_of(folder)[:1]
    try:
        for queue in stopped:
            os.kill(queue, signal.SIGSTOP)  # It starts no training from here on.
            for training in processes_of(folder)[1:]:
                os.kill(training, signal.SIGSTOP)
                stopped.append(training)
        return subprocess.run(command, shell=True).returncode
    finally:
        for process in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), " ".join(sys.argv[2:])))
