"""What a release and the public CI rest on."""

import re
import subprocess
import sys
import tomllib

import pytest
from processes import ROOT
from ruamel.yaml import YAML

import keras_balanced

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path):
    return YAML(typ="safe").load(path)


def jobs():
    return [job for path in WORKFLOWS for job in read(path)["jobs"].values()]


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("github-workflows", WORKFLOWS),
        ("dependabot", [GITHUB / "dependabot.yml"]),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        (
            "github-issue-forms",
            [GITHUB / "ISSUE_TEMPLATE" / "bug.yml", GITHUB / "ISSUE_TEMPLATE" / "feature.yml"],
        ),
        ("readthedocs", [ROOT / ".readthedocs.yaml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_schema(schema, paths):
    command = [sys.executable, "-m", "check_jsonschema", "--default-filetype", "yaml"]
    checked = subprocess.run(
        [*command, "--builtin-schema", f"vendor.{schema}", *paths], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_workflows_call_make():
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    called = {
        name
        for job in jobs()
        for step in job.get("steps", [])
        for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
    }
    assert called <= set(targets)
    assert {name for name in targets if name.startswith("test")} <= called


def test_workflows_may_do_little():
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}
    assert [job["permissions"] for job in jobs() if "permissions" in job] == [{"id-token": "write"}]


def test_pythons():
    tests = read(GITHUB / "workflows" / "tests.yml")
    pythons = tests["jobs"]["test"]["strategy"]["matrix"]["python"]
    stated = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert pythons == stated
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_version():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == keras_balanced.__version__
    released = re.search(r"(?m)^## (\d\S*) - (\S+)$", (ROOT / "CHANGELOG.md").read_text())
    assert released.groups() == (citation["version"], citation["date-released"])


def test_readme_stands_alone():
    """The package index shows it without the repository around it."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(\s*([^)\s]+)", text)
    links += re.findall(r"(?m)^\[[^\]]+\]:\s*(\S+)", text)
    links += re.findall(r"""(?:href|src|srcset)=["']([^"']+)""", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
