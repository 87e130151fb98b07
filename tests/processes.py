"""Python in processes of their own, and the one limit on waiting for them.

A test waits for a state, however long that takes on a slow and busy machine. `HANG` only ends what
would never end.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
HANG = 1800  # Seconds.


def start(*arguments, **environment):
    """Starts `python *arguments` in the root of the repository, on the CPU."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    """Returns the exit code and the output of each; kills all if one never ends."""
    deadline = time.monotonic() + HANG
    try:
        return [
            (process.wait(deadline - time.monotonic()), output)
            for process in processes
            for output in process.communicate(timeout=deadline - time.monotonic())[:1]
        ]
    finally:
        kill(*processes)


def kill(*processes):
    """Kills processes, which may have ended, and waits until they are gone."""
    for process in processes:
        process.kill()  # TensorFlow catches SIGTERM and waits.
        process.wait()
        process.stdout.close()


def run(*arguments, **environment):
    """Returns the output of `python *arguments`, which must succeed."""
    ((code, output),) = finish(start(*arguments, **environment))
    assert code == 0, output
    return output


def wait_for(condition, *processes):
    """Waits until `condition()` holds, while `processes` run."""
    deadline = time.monotonic() + HANG
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def free_addresses(number):
    """Returns `number` addresses of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses
