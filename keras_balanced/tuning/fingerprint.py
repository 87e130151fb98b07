"""What a search is of: so that a rerun in its directory does not mix two of them."""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from typing import Any

import keras
import numpy as np

__all__ = ["agree", "content", "fingerprint", "write_atomically"]

# What does not change a result.
_SILENT = ("verbose", "callbacks")


def fingerprint(hypermodel: Any, oracle: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Returns what a search is of, as JSON keeps it.

    Losses, data and training, and not the space: a grid may grow.
    """
    x, y = (*args, None, None)[:2]
    what: dict[str, Any] = {"objective": _plain(getattr(oracle, "objective", None))}
    if getattr(hypermodel, "seed", None) is not None:
        what["seed"] = hypermodel.seed
    for (name, q, option), loss in getattr(hypermodel, "grid", {}).items():
        config = {key: value for key, value in loss.get_config().items() if key != "name"}
        what[f"loss {name}, q={q:g}, {option}"] = _checksum(json.dumps(config, sort_keys=True))
    what["x"], what["y"] = _shape(kwargs.get("x", x)), content(kwargs.get("y", y))
    for name, value in kwargs.items():
        if name in ("validation_data", "sample_weight"):
            parts = value if isinstance(value, tuple) else (value,)
            what[name] = [_shape(parts[0]), *(content(part) for part in parts[1:])]
        elif name not in (*_SILENT, "x", "y"):
            what[name] = _plain(value)
    return what


def agree(path: pathlib.Path, what: dict[str, Any]) -> None:
    """Raises if another search left its fingerprint in `path`, and else leaves this one."""
    if path.exists():
        before = json.loads(path.read_text())
        names = sorted(
            name
            for name in before.keys() | what.keys()
            if before.get(name) != what.get(name)
            # A loss may come or go: what is missing runs.
            and not (name.startswith("loss ") and (name not in before or name not in what))
        )
        if names:
            changes = ", ".join(f"{n}: {before.get(n)} -> {what.get(n)}" for n in names[:5])
            raise ValueError(
                f"The directory {str(path.parent)!r} must be of one search: take another "
                f"`directory` or `project_name`, or `overwrite=True`. Received: {changes}"
            )
        what = {**before, **what}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(what, indent=1, sort_keys=True))


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all; of several processes that do, one wins."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def _plain(value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "name") and hasattr(value, "direction"):
        return f"{value.direction} {value.name}"
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__


def _shape(data):
    """Returns shapes and dtypes of arrays, the specification of a dataset, or a type."""
    if hasattr(data, "element_spec"):
        return repr(data.element_spec)
    if isinstance(data, (dict, list, tuple)):
        return repr(keras.tree.map_structure(_shape, data))
    if getattr(data, "shape", None) is None:
        return type(data).__name__
    return f"{getattr(data, 'dtype', type(data).__name__)} {tuple(data.shape)}"


def content(labels):
    """Returns the checksum of labels as well, and how often each of them comes up."""
    if labels is None:
        return None
    if isinstance(labels, dict):
        return {str(key): content(part) for key, part in labels.items()}
    if isinstance(labels, (list, tuple)) and hasattr(next(iter(labels), None), "shape"):
        return [content(part) for part in labels]
    if hasattr(labels, "element_spec"):
        return _shape(labels)
    is_tensor = keras.ops.is_tensor(labels)
    array = keras.ops.convert_to_numpy(labels) if is_tensor else np.asarray(labels)
    if array.dtype == object:
        return f"{array.shape}, checksum {_checksum(repr(array.tolist()))}"
    found = f"{array.shape}, checksum {_checksum(np.ascontiguousarray(array).tobytes())}"
    values, counts = np.unique(array, return_counts=True)
    if len(values) > 20:
        return found
    return f"{found}, counts {dict(zip(values.tolist(), counts.tolist(), strict=True))}"


def _checksum(text):
    return f"{zlib.crc32(text.encode() if isinstance(text, str) else text):08x}"
