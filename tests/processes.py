"""Python in processes of their own, which no test waits for without a limit."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


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


def finish(*processes, seconds=150):
    """Returns the exit code and the output of each; kills all if one takes longer."""
    deadline = time.monotonic() + seconds
    try:
        return [
            (process.wait(deadline - time.monotonic()), output)
            for process in processes
            for output in process.communicate(timeout=deadline - time.monotonic())[:1]
        ]
    finally:
        for process in processes:
            process.kill()  # TensorFlow catches SIGTERM and waits.
            process.wait()
            process.stdout.close()


def run(*arguments, **environment):
    """Returns the output of `python *arguments`, which must succeed."""
    ((code, output),) = finish(start(*arguments, **environment))
    assert code == 0, output
    return output


def free_addresses(number):
    """Returns `number` addresses of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses
