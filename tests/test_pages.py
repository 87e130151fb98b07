"""The code of each page runs as written, by itself; the reference has every public name."""

import importlib
import re

import keras
import matplotlib as mpl
import pictures
import pytest
from pages import code_blocks, run_blocks
from processes import ROOT

import keras_balanced

mpl.use("Agg")
README = (ROOT / "README.md").read_text()
# Tested elsewhere: test_distribution_guide.py, test_recipes.py.
PAGES = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")}
PAGES -= {ROOT / "docs" / name for name in ("devices.md", "recipes.md")}
PAGES = sorted(page for page in PAGES if code_blocks(page.read_text()))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[] if p.stem == "README" else pytest.mark.slow) for p in PAGES],
    ids=lambda page: page.stem,
)
def test_code_runs_as_written(page, tmp_path, monkeypatch, capsys):
    text = page.read_text()
    if keras.backend.backend() == "torch" and "export(" in text:
        pytest.skip("Keras does not export from PyTorch")
    monkeypatch.chdir(tmp_path)
    found = run_blocks(text)
    if page.name == "README.md":
        assert found["classes"].shape == (3000,)
        printed = capsys.readouterr().out.split()
        training, _ = code_blocks(text)
        cross_entropy = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
        run_blocks(f"```python\n{training.replace('GLALoss(prior)', cross_entropy)}```")
        printed.insert(1, capsys.readouterr().out)
        # What it says that it prints.
        said = re.search(r"# (0\.\d); with cross-entropy (0\.\d)\n", text).groups()
        said += re.search(r"# (0\.\d), then (0\.\d)\n", text).groups()
        assert list(map(float, printed)) == pytest.approx(list(map(float, said)), abs=0.05)


def test_first_page_is_short():
    lines = README.splitlines()
    assert len(lines) <= 100
    assert next(i for i, line in enumerate(lines) if "find_decision(" in line) < 40
    assert all(len(block.splitlines()) <= 20 for block in code_blocks(README))


def test_reference_has_every_public_name():
    documented = {}
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in re.findall(r"(?m)^::: ([\w.]+)$", page.read_text()):
            module, name = path.rsplit(".", 1)
            documented[path] = getattr(importlib.import_module(module), name)
    modules = [keras_balanced, *(getattr(keras_balanced, name) for name in dir(keras_balanced))]
    for module in modules:
        for name in getattr(module, "__all__", []):
            line = f"::: {module.__name__}.{name}"
            is_documented = getattr(module, name) in documented.values()
            assert is_documented, f"a page of docs/api needs the line `{line}`"


def test_pictures_of_the_results_can_be_drawn_again(tmp_path):
    pictures.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    folder = ROOT / "docs" / "img"
    page = (ROOT / "docs" / "results.md").read_text()
    for name in drawn | {"demo.png"}:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"](img/{name})" in page
    # A sentence above each picture, and its limit below.
    assert len(re.findall(r"(?m)^\*\*.*\*\*\n\n!\[.*\n\n\*Limit:\* ", page)) == page.count("![")


def test_every_page_is_on_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.py")]
    for page in pages:
        name = page.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        assert f": {name}\n" in navigation
