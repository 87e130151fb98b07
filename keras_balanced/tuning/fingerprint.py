"""What a search is of: so that a rerun in its directory does not mix two of them."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import zlib
from typing import Any

import keras
import numpy as np

__all__ = [
    "as_json",
    "check_same_search",
    "checksums",
    "content",
    "differences",
    "fingerprint",
    "write_atomically",
]

# Arguments that change no result, or are looked at by themselves.
_SILENT = ("verbose", "callbacks", "run_eagerly", "jit_compile", "steps_per_execution")
# Callbacks that change a training by themselves.
_TRAINING_CALLBACKS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.SwapEMAWeights,
)


def fingerprint(hypermodel: Any, oracle: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Returns what a search is of, as JSON keeps it.

    Losses, data and training, and not the space: a grid may grow.
    """
    x, y = (*args, None, None)[:2]
    what = {
        "objective": as_json(getattr(oracle, "objective", None)),
        "compile_kwargs": as_json(getattr(hypermodel, "compile_kwargs", {})),
        "x": _shape(kwargs.get("x", x)),
        "y": content(kwargs.get("y", y)),
        "callbacks": _of_callbacks(kwargs.get("callbacks")),
    }
    if getattr(hypermodel, "seed", None) is not None:
        what["seed"] = hypermodel.seed
    if hasattr(hypermodel, "decide"):
        # Of the first loss only, since a grid may grow.
        decision = hypermodel.decide(next(iter(hypermodel.grid.values())))
        config = decision.get_config() if decision else {}
        what["decision"] = as_json({name: part for name, part in config.items() if name != "loss"})
    what |= checksums(getattr(hypermodel, "grid", {}))
    for name, value in kwargs.items():
        if name in ("validation_data", "sample_weight"):
            parts = value if isinstance(value, tuple) else (value,)
            what[name] = [_shape(parts[0]), *(content(part) for part in parts[1:])]
        elif name not in (*_SILENT, "x", "y"):
            what[name] = as_json(value)
    return what


def checksums(grid: dict[tuple[str, float, str], Any]) -> dict[str, str]:
    """Returns a checksum of each loss of a grid: its class and arguments, without its name."""
    found = {}
    for (name, q, option), loss in grid.items():
        config = {key: value for key, value in loss.get_config().items() if key != "name"}
        kind = keras.saving.get_registered_name(type(loss))
        found[f"loss {name}, q={q!r}, {option}"] = _checksum(
            json.dumps([kind, config], sort_keys=True)
        )
    return found


def check_same_search(path: pathlib.Path, what: dict[str, Any]) -> None:
    """Raises if another search left its fingerprint in `path`, and else leaves this one."""
    what = _flat(what)
    if path.exists():
        before = json.loads(path.read_text())
        # Losses may be added or removed: a rerun trains what is missing.
        may_change = {n for n in before.keys() ^ what.keys() if n.startswith("loss ")}
        if changes := differences(before, what, may_change):
            raise ValueError(
                f"The directory {str(path.parent)!r} must be of one search: take another "
                f"`directory` or `project_name`, or delete this one. Received: {changes}"
            )
        what = {**before, **what}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(what, indent=1, sort_keys=True))


def differences(before: dict[str, Any], now: dict[str, Any], but: Any = ()) -> str:
    """Returns in words where two dicts differ, `""` where they do not."""
    names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    shown = [f"{n}: {_cut(before.get(n))} -> {_cut(now.get(n))}" for n in names if n not in but]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _cut(value, most=70):
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all; of several processes that do, one wins."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def as_json(value: Any) -> Any:
    """Returns what a setting is, as JSON keeps it: of a Keras object its class and config."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(name): as_json(part) for name, part in value.items() if name not in _SILENT}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    if hasattr(value, "objectives"):  # Several of KerasTuner's as one.
        return sorted(map(as_json, value.objectives))
    if hasattr(value, "direction") and hasattr(value, "name"):
        return f"{value.direction} {value.name}"
    if hasattr(value, "get_config"):
        return {"class": type(value).__name__, **as_json(value.get_config())}
    if isinstance(value, functools.partial):
        return [as_json(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        return content(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _flat(value, name=""):
    """Returns what dicts within dicts hold as one dict, by names such as `optimizer.momentum`."""
    if isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def _of_callbacks(callbacks):
    """Returns the settings of those of Keras's callbacks that change a training."""
    if callable(callbacks):  # A function of a directory.
        return as_json(callbacks)
    return [
        as_json({"class": type(callback).__name__} | _settings(vars(callback)))
        for callback in keras.tree.flatten(callbacks or [])
        if isinstance(callback, _TRAINING_CALLBACKS)
    ]


def _settings(attributes):
    """Returns the public attributes that are numbers, texts or functions."""
    return {
        name: value
        for name, value in attributes.items()
        if not name.startswith("_") and (isinstance(value, (int, float, str)) or callable(value))
    }


def _shape(data):
    """Returns what inputs are: of an array also a checksum of at most some 1,000 of its rows.

    Of a dataset that is its specification, of anything else its type.
    """
    if hasattr(data, "element_spec"):
        return f"{data.element_spec!r}, {int(data.cardinality())} in all"
    if isinstance(data, (dict, list, tuple)):
        return repr(keras.tree.map_structure(_shape, data))
    if getattr(data, "shape", None) is None:
        size = f" of {len(data)}" if hasattr(data, "__len__") else ""
        return type(data).__name__ + size
    found = f"{getattr(data, 'dtype', type(data).__name__)} {tuple(data.shape)}"
    if not hasattr(data, "__array__") or not data.shape or not data.shape[0]:
        return found
    rows = data[:: -(-data.shape[0] // 1000)]
    return f"{found}, checksum {_checksum(_bytes(rows))}"


def content(labels):
    """Returns the shape of labels, their checksum, and how often each of them occurs."""
    if labels is None:
        return None
    if isinstance(labels, dict):
        return {str(key): content(part) for key, part in labels.items()}
    if isinstance(labels, (list, tuple)) and hasattr(next(iter(labels), None), "shape"):
        return [content(part) for part in labels]
    if hasattr(labels, "element_spec"):
        return _shape(labels)
    array = _as_numpy(labels)
    found = f"{array.shape}, checksum {_checksum(_bytes(array))}"
    if array.dtype == object:
        return found
    values, counts = np.unique(array, return_counts=True)
    if len(values) > 20:
        return found
    return f"{found}, counts {dict(zip(values.tolist(), counts.tolist(), strict=True))}"


def _as_numpy(values):
    is_tensor = keras.ops.is_tensor(values)
    return keras.ops.convert_to_numpy(values) if is_tensor else np.asarray(values)


def _bytes(values):
    array = _as_numpy(values)
    is_object = array.dtype == object
    return repr(array.tolist()) if is_object else np.ascontiguousarray(array).tobytes()


def _checksum(text):
    return f"{zlib.crc32(text.encode() if isinstance(text, str) else text):08x}"
