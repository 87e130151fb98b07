"""House rules that hold for every export and every module."""

import ast
import inspect
import pathlib
import re
import sys

import keras
import pytest
import rooms
from processes import run
from rooms import PATHS

import keras_balanced
from keras_balanced import callbacks, datasets, metrics, models, plots, serving, tuning

# Each floor may import those below it, and nothing beside it.
FLOORS = [
    {"validation", "backends"},
    {"surrogates", "targets", "scores", "models"},
    {"stationary", "reading", "thresholds"},
    {"formula", "counting", "tails"},
    {"functional", "losses", "datasets"},
    {"decisions"},
    {"layers", "sums", "plots", "tuning.fingerprint"},
    {"metrics", "tuning.grid", "tuning.oracle"},
    {"callbacks", "calibration"},
    {"finding", "tuning.hypermodel"},
    {"serving"},
    {"tuning.folds"},
    {"tuning"},
]
# Where an optional library is imported, at any depth.
OPTIONAL = {
    "tensorflow": {"backends", "serving", "reading", "datasets", "tuning.folds"},
    "jax": {"backends"},
    "scipy": {"calibration"},
    "sklearn": {"datasets"},
    "tensorflow_datasets": {"datasets"},
    "matplotlib": {"plots"},
    "keras_tuner": {"tuning", "tuning.folds", "tuning.hypermodel", "tuning.oracle"},
}
# Where names that their owner keeps for itself may be used.
PRIVATE_ROOMS = {"backends", "tuning.oracle"}
EXPORTS = {name: getattr(keras_balanced, name) for name in keras_balanced.__all__}
CLASSES = {
    name: export
    for name, export in EXPORTS.items()
    if inspect.isclass(export) and name != "Surrogate"
}
ON_DEMAND = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (callbacks, datasets, metrics, models, plots, serving, tuning)
    for name in module.__all__
    if callable(getattr(module, name))
}


def signature_of(export):
    has_init = inspect.isclass(export) and not issubclass(export, tuple)
    return inspect.signature(export.__init__ if has_init else export)


@pytest.mark.parametrize("name", [*EXPORTS, *ON_DEMAND])
def test_docstring_is_whole(name):
    export = {**EXPORTS, **ON_DEMAND}[name]
    doc = inspect.getdoc(export)
    assert doc.splitlines()[0].endswith(".")
    is_tuple = inspect.isclass(export) and issubclass(export, tuple)
    for part in ("Attributes:",) if is_tuple else ("Args:", "Raises:"):
        assert part in doc
    assert ">>> " in doc[doc.index("Example:") :]
    signature = signature_of(export)
    for argument in signature.parameters:
        assert argument == "self" or f"{argument}: " in doc, argument


@pytest.mark.parametrize("name", [*EXPORTS, *ON_DEMAND])
def test_signature_is_annotated(name):
    export = {**EXPORTS, **ON_DEMAND}[name]
    signature = signature_of(export)
    for argument in signature.parameters.values():
        assert argument.name in ("self", "kwargs") or argument.annotation is not argument.empty
    assert inspect.isclass(export) or signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", CLASSES)
def test_config_names_every_argument(name):
    export = CLASSES[name]
    required = {
        "priors": 0.5 if "Binary" in name else [1, 2],
        "num_classes": 2,
        "counts": [200, 5],
        "group": "few",
        "surrogate": keras_balanced.Surrogate([1, 2]),
    }
    if name == "Decision":
        required = {"loss": keras_balanced.GLALoss([1, 2])}
    if name == "ClassCalibrationError":
        del required["priors"]  # Those of a loss.
    parameters = inspect.signature(export.__init__).parameters
    wanted = {
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and key != "self"
    }
    missing = wanted - required.keys()
    assert not missing, f"`required` in test_house.py needs a value for {missing} of {name}"
    config = export(**{k: v for k, v in required.items() if k in parameters}).get_config()
    assert set(config) >= {p for p in parameters if p not in ("self", "kwargs")}


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_of_python_names_the_class(name):
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) "):
        CLASSES[name](no_such_argument=1)


@pytest.mark.parametrize("name", CLASSES)
def test_registered_under_the_package(name):
    registered = keras.saving.get_registered_name(CLASSES[name])
    decorator = '@keras.saving.register_keras_serializable(package="keras_balanced")'
    assert registered == f"keras_balanced>{name}", f"{name} needs {decorator}"


def test_every_module_has_its_floor():
    assert {name for floor in FLOORS for name in floor} == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_imports_keep_to_their_floor(name):
    (level,) = (i for i, floor in enumerate(FLOORS) if name in floor)
    below = {f"keras_balanced.{room}" for floor in FLOORS[:level] for room in floor}
    text = PATHS[name].read_text()
    for module in rooms.imports(ast.parse(text)):
        top = module.split(".")[0]
        if top == "keras_balanced":
            assert module in below, module
        elif top in OPTIONAL:
            assert name in OPTIONAL[top], module
        else:
            assert top in {"keras", "numpy", *sys.stdlib_module_names}, module
    assert "keras.src" not in text
    if name == "validation":
        assert "keras" not in rooms.imports(ast.parse(text))


def test_optional_libraries_are_imported_where_this_page_says():
    found = {library: set() for library in OPTIONAL}
    for name, path in PATHS.items():
        for module in rooms.imports(ast.parse(path.read_text())):
            found.get(module.split(".")[0], set()).add(name)
    assert found == OPTIONAL


def test_contributing_names_the_rooms_on_their_floors():
    rows = re.findall(r"^\| (\d+) \| (`[^|]+`) \|", rooms.PAGE.read_text(), re.MULTILINE)
    floors = [set() for _ in FLOORS]
    for floor, names in rows:
        floors[int(floor) - 1].update(re.findall("`([^`]+)`", names))
    assert floors == FLOORS


def test_contributing_names_the_tests_of_every_room():
    text = rooms.PAGE.read_text()
    table = text[text.index("### Tests by room") : text.index("## Where a change goes")]
    rows = re.findall(r"^\| (`[^|]+`) \| (`[^|]+`) \|", table, re.MULTILINE)
    names, files = (set(re.findall("`([^`]+)`", " ".join(of))) for of in zip(*rows, strict=True))
    assert names == set(PATHS)
    here = pathlib.Path(__file__).parent
    assert all((here / f"test_{file}.py").exists() for file in files)


@pytest.mark.parametrize("name", sorted(PATHS.keys() - PRIVATE_ROOMS))
def test_no_module_uses_what_others_keep_for_themselves(name):
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[1] != "_":
            owner = ast.unparse(node.value)
            assert owner in ("self", "layer", "other", "super()"), ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("_keras"), node.value


@pytest.mark.parametrize("name", sorted(PATHS.keys() - {"backends"}))
def test_the_backend_is_asked_in_one_room(name):
    assert "backend.backend()" not in PATHS[name].read_text()


@pytest.mark.parametrize("name", PATHS)
def test_no_module_is_too_long(name):
    tree = ast.parse(PATHS[name].read_text())
    lines = PATHS[name].read_text().splitlines()
    nodes = (ast.FunctionDef, ast.ClassDef, ast.Module)
    for node in ast.walk(tree):
        if isinstance(node, nodes) and ast.get_docstring(node):
            doc = node.body[0]
            lines[doc.lineno - 1 : doc.end_lineno] = [None] * (doc.end_lineno - doc.lineno + 1)
    assert sum(line is not None for line in lines) <= 450


@pytest.mark.parametrize("name", PATHS)
def test_no_function_is_too_long(name):
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0] if ast.get_docstring(node) else None
            of_doc = 0 if doc is None else doc.end_lineno - doc.lineno + 1
            assert node.end_lineno - node.lineno + 1 - of_doc <= 60, node.name


def test_picture_of_the_house_is_that_of_the_code():
    page = rooms.PAGE.read_text()
    assert rooms.graph() in page
    assert rooms.with_graph(page) == page
    assert "surrogates --> validation" in rooms.graph()
    # What comes by way of another room is left out.
    assert "losses --> validation" not in rooms.graph()


def test_import_changes_no_other_package():
    code = """
import importlib, sys
import keras, keras_tuner, numpy, tensorflow

def attributes():
    # Of each module and class of the others: what its names stand for.
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("keras", "keras_tuner", "numpy"):
            for key, value in list(vars(module).items()):
                found[name, key] = id(value)
                if isinstance(value, type):
                    found |= {(name, key, k): id(v) for k, v in list(vars(value).items())}
    return found

before = attributes()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = attributes()
volatile = ("__abstractmethods__", "_abc_impl", "__weakref__", "__dict__", "__annotations__")
changed = [k for k in before if after.get(k) != before[k] and k[-1] not in volatile]
print("changed:", [k for k in changed if "global_state" not in k[0]])
"""
    modules = [f"keras_balanced.{name}" for name in PATHS]
    assert run("-c", code, *modules).splitlines()[-1] == "changed: []"


def test_import_brings_in_no_optional_library():
    # Keras itself imports matplotlib and scikit-learn where they are installed.
    code = f"""
import sys, keras
before = set(sys.modules)
import keras_balanced, keras_balanced.datasets, keras_balanced.models, keras_balanced.plots
import keras_balanced.tuning
after = set(sys.modules) - before
print("keras_balanced" in after, [name for name in {sorted(OPTIONAL)} if name in after])
"""
    assert run("-c", code).splitlines()[-1] == "True []"


def test_modules_on_demand():
    assert keras_balanced.datasets is datasets
    assert set(dir(keras_balanced)) >= {"GLALoss", "callbacks", "datasets", "models", "plots"}
    for module in (callbacks, datasets, metrics, models, plots, serving, tuning):
        assert dir(module) == sorted(module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'dataset'"):
        keras_balanced.dataset  # noqa: B018


def test_every_script_starts_by_itself():
    """Tests have the scripts' folders on their path; a user has that of the script alone."""
    output = run(
        "-c",
        """
import contextlib, io, pathlib, runpy, sys

path = sys.path[1:]
folders = ["examples", "tools"]
scripts = {p.stem: p for folder in folders for p in sorted(pathlib.Path(folder).glob("*.py"))}
for script in scripts.values():
    text = script.read_text()
    if "__main__" not in text or "parse_args" not in text:
        continue
    for name in scripts:
        sys.modules.pop(name, None)
    sys.path[:] = [str(script.parent.resolve()), *path]
    sys.argv = [str(script), "--help"]
    usage = io.StringIO()
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(usage):
            runpy.run_path(str(script), run_name="__main__")
    except ImportError as error:
        if error.name in scripts:
            raise
        continue  # An optional library.
    print(script, "starts" if "usage: " in usage.getvalue() else "does not say how to use it")
""",
    )
    folders = ("examples", "tools")
    lines = [line for line in output.splitlines() if line.startswith(folders)]
    assert len(lines) > 5
    assert all(line.endswith(".py starts") for line in lines), lines
