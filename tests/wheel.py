"""Checks the distributions in `dist`, and runs README's code with the installed wheel.

`make test-wheel` calls it, in an environment of TensorFlow and the wheel alone. It needs no pytest.
"""

import os
import pathlib
import re
import runpy
import tarfile
import tempfile
import zipfile
from importlib.metadata import version

ROOT = pathlib.Path(__file__).parents[1]


def check_wheel(path):
    names = zipfile.ZipFile(path).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"keras_balanced", path.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    modules = {str(module.relative_to(ROOT)) for module in ROOT.glob("keras_balanced/**/*.py")}
    assert modules | {"keras_balanced/py.typed"} == {
        name for name in names if name.startswith("keras_balanced/")
    }


def check_sdist(path):
    top = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.removeprefix(f"{top}/") for name in sdist.getnames()}
    assert {
        "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "keras_balanced/py.typed",
        "pyproject.toml", "tests/wheel.py",
    } <= names  # fmt: skip
    assert not any(re.match(r"\.venv|dist|results|site|.*__pycache__", name) for name in names)


def run_quickstart():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        script = pathlib.Path("quickstart.py")
        script.write_text("".join(blocks))
        runpy.run_path(str(script))

    import keras_balanced

    assert "site-packages" in keras_balanced.__file__
    assert keras_balanced.__version__ == version("keras-balanced")


if __name__ == "__main__":
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    run_quickstart()
    print(f"README's quickstart runs with {wheel.name}, TensorFlow {version('tensorflow')} alone.")
