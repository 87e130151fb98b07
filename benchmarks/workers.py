"""Runs in processes of their own, some at a time."""

import multiprocessing
import os
import threading
from concurrent import futures

RUNS_OF_A_PROCESS = 50


def run_all(measure, cases, workers):
    """Yields settings and the future of each run, as they end.

    Each portion has new processes: TensorFlow keeps memory of every training, and a pool that
    replaces its processes (`max_tasks_per_child`) can wait for ever
    (https://github.com/python/cpython/issues/115634).
    """
    share_cores(workers)
    spawn = multiprocessing.get_context("spawn")
    portion = workers * RUNS_OF_A_PROCESS
    for first in range(0, len(cases), portion):
        with futures.ProcessPoolExecutor(workers, spawn, end_with_parent) as pool:
            work = {pool.submit(measure, **of): of for of in cases[first : first + portion]}
            for job in futures.as_completed(work):
                yield work[job], job


def end_with_parent():
    """Ends this process when the one that started it is gone, killed too."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def share_cores(workers, threads=None):
    """Sets the threads of the processes that are started from here on."""
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        if threads:
            os.environ[name] = str(threads)
        else:
            os.environ.setdefault(name, str(max(os.cpu_count() // workers, 1)))
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    # On an accelerator, whose memory they share.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
