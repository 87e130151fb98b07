"""The code of each page runs as written, by itself; the reference has every public name."""

import importlib
import re

import keras
import matplotlib as mpl
import pytest
from processes import ROOT

import keras_balanced

mpl.use("Agg")
README = (ROOT / "README.md").read_text()
# Tested where they need more than one process or a library more: test_distribution_guide.py,
# test_recipes.py.
ELSEWHERE = {"devices.md", "recipes.md"}
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in ELSEWHERE),
]


def code(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run(page):
    """Runs the code of a page, and returns the names that it leaves."""
    blocks = code(page)
    if keras.backend.backend() == "torch":  # It has no export.
        blocks = [block for block in blocks if "export(" not in block]
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    return namespace


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if code(p)], ids=lambda page: page.stem)
def test_code_runs_as_written(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = run(page)
    if page.name == "README.md":
        assert namespace["probabilities"].shape == (3000, 3)
        assert namespace["alerts"].any()
        # What it says that it prints.
        printed = re.findall(r"(?m)^\w+ (0\.\d+)$", capsys.readouterr().out)
        said = re.search(r"# (0\.\d+), then (0\.\d+)\n", README).groups()
        assert list(map(float, printed)) == pytest.approx(list(map(float, said)), abs=0.1)


def test_first_page_is_short_and_readable_anywhere():
    assert len(README.splitlines()) <= 100
    assert all(len(block.splitlines()) <= 20 for block in code(ROOT / "README.md"))
    links = re.findall(r"\]\((.*?)\)", README)
    assert len(links) > 10
    assert all(link.startswith("https://") for link in links)


def test_reference_has_every_public_name():
    documented = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in re.findall(r"(?m)^::: ([\w.]+)$", page.read_text()):
            module, name = path.rsplit(".", 1)
            documented[path] = getattr(importlib.import_module(module), name)
    modules = [keras_balanced, *(getattr(keras_balanced, name) for name in dir(keras_balanced))]
    for module in modules:
        for name in getattr(module, "__all__", []):
            assert getattr(module, name) in documented.values(), f"{module.__name__}.{name}"


def test_every_page_is_on_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation
