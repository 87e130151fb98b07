"""House rules that hold for every export and every module."""

import ast
import inspect
import pathlib
import sys

import keras
import pytest
from processes import run

import keras_balanced
from keras_balanced import callbacks, datasets, metrics, models, plots, serving, tuning

PACKAGE = pathlib.Path(keras_balanced.__file__).parent
# What each module may import: its floor and those below.
FLOORS = {
    "validation": {"numpy"},
    "masks": {"keras"},
    "functional": {"keras", "numpy", "keras_balanced.validation"},
    **{
        name: {
            "keras",
            "numpy",
            *(f"keras_balanced.{n}" for n in ("functional", "masks", "validation")),
        }
        for name in ("losses", "layers", "metrics", "datasets", "models", "plots")
    },
    "tuning": {
        *("keras", "numpy", "keras_tuner"),
        *(f"keras_balanced.{name}" for name in ("functional", "losses", "metrics", "validation")),
    },
}
FLOORS["callbacks"] = {"keras", "numpy", *(f"keras_balanced.{name}" for name in FLOORS)}
FLOORS["serving"] = FLOORS["callbacks"]
OPTIONAL = ("tensorflow_datasets", "keras_tuner", "matplotlib", "sklearn")
EXPORTS = {name: getattr(keras_balanced, name) for name in keras_balanced.__all__}
CLASSES = {name: export for name, export in EXPORTS.items() if inspect.isclass(export)}
FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in (callbacks, datasets, metrics, models, plots, serving, tuning)
    for name, function in inspect.getmembers(module, callable)
    if function.__module__ == module.__name__
    and not name.startswith(("_", "check_"))
    and name != "FastSearch"
}


@pytest.mark.parametrize("name", [*EXPORTS, *FUNCTIONS])
def test_docstring_is_whole(name):
    export = {**EXPORTS, **FUNCTIONS}[name]
    doc = inspect.getdoc(export)
    assert doc.splitlines()[0].endswith(".")
    for part in ("Args:", "Raises:", "Example:", ">>> "):
        assert part in doc
    signature = inspect.signature(export.__init__ if inspect.isclass(export) else export)
    for argument in signature.parameters:
        assert argument == "self" or f"{argument}: " in doc, argument


@pytest.mark.parametrize("name", CLASSES)
def test_config_names_every_argument(name):
    export = CLASSES[name]
    required = {
        "priors": 0.5 if "Binary" in name else [1, 2],
        "num_classes": 2,
        "counts": [200, 5],
        "group": "few",
    }
    parameters = inspect.signature(export.__init__).parameters
    config = export(**{k: v for k, v in required.items() if k in parameters}).get_config()
    assert set(config) >= {p for p in parameters if p not in ("self", "kwargs")}


@pytest.mark.parametrize("name", CLASSES)
def test_registered_under_the_package(name):
    registered = keras.saving.get_registered_name(CLASSES[name])
    assert registered == f"keras_balanced>{name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_keep_to_their_floor(path):
    if path.stem == "__init__":
        return
    tree = ast.parse(path.read_text())
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "keras_balanced":
            imported |= {f"keras_balanced.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    imported = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert imported <= FLOORS[path.stem]
    assert "keras.src" not in path.read_text()


def test_import_brings_in_no_optional_library():
    # Keras itself imports matplotlib and scikit-learn where they are installed.
    code = f"""
import sys, keras
before = set(sys.modules)
import keras_balanced, keras_balanced.datasets, keras_balanced.models, keras_balanced.plots
after = set(sys.modules) - before
print("keras_balanced" in after, [name for name in {OPTIONAL} if name in after])
"""
    assert run("-c", code).splitlines()[-1] == "True []"


def test_modules_on_demand():
    assert keras_balanced.datasets is datasets
    assert set(dir(keras_balanced)) >= {"GLALoss", "callbacks", "datasets", "models", "plots"}
    with pytest.raises(AttributeError, match="no attribute 'dataset'"):
        keras_balanced.dataset  # noqa: B018
