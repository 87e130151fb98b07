"""The numbers in the documentation are those that the committed results give."""

import json
import re

import long_tailed_cifar
from processes import ROOT

from benchmarks import questions
from benchmarks.questions import consistency, labels

RESULTS = ROOT / "benchmarks" / "results"
REPORTS = {
    name: (ROOT / "benchmarks" / "reports" / f"{name}.md").read_text() for name in questions.names()
}
EVIDENCE = (ROOT / "docs" / "evidence.md").read_text()
METHOD = (ROOT / "docs" / "method.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
WITH_ERROR = r"[\d.]+ ± [\d.]+\d"


def test_demo():
    args = long_tailed_cifar.parse_arguments(["--output", "/dev/null"])
    runs = [json.loads(line) for line in (RESULTS / "demo.jsonl").read_text().splitlines()]
    assert len(runs) == 9
    results = {}
    for run in runs:
        results.setdefault(run["settings"]["loss"], []).append(run["result"])
    ways = long_tailed_cifar.recalls_by_way(results, args)
    assert long_tailed_cifar.table(ways, runs[0]["result"]["class_counts"]) in EVIDENCE


def test_labels():
    rows = re.findall(r"(?m)^\| .*\w.* \|(?: [\d.]+ \|)+$", REPORTS["labels"])
    assert len(rows) == 14
    assert set(rows) <= set(EVIDENCE.splitlines())
    found = labels.smoothing(num_classes=2, distance=3.0, seed=0, steps=60)
    assert found["uniform, priors of the labels"]["majority class"] < 0.5
    assert found[f"`label_smoothing={labels.SMOOTHING}`"]["majority class"] > 0.9


def test_accuracy():
    quoted = re.findall(r"(?m)^\| (?:ce|logit_adjusted|weighted|focal|gca)[^`\n]*$", EVIDENCE)
    assert len(quoted) == 7
    assert set(quoted) <= set(REPORTS["accuracy"].splitlines())
    measured = set(re.findall(WITH_ERROR, "".join(REPORTS.values())))
    for page in (EVIDENCE, METHOD):
        assert re.findall(WITH_ERROR, page)
        assert set(re.findall(WITH_ERROR, page)) <= measured


def cells(table):
    """Returns the cells of each row of a Markdown table by the first cell and the header."""
    header, _, *rows = (
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    )
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_margins():
    setting = "digits, exponential, ratio 50, 60 epochs"
    sections = dict(part.split("\n", 1) for part in REPORTS["accuracy"].split("\n## ")[1:])
    measured, differences = cells(sections[setting]), cells(sections["Differences"])
    quoted = re.findall(r"(?m)^\| .*\(`(\w+)`\) \| (?:yes|no)? ?\| (.*) \|$", METHOD)
    assert len(quoted) == 5
    for name, found in quoted:
        row = [measured[name]["logits"], measured[name]["posterior"]]
        difference = differences.get(f"{name} - weighted", {}).get(setting, "")
        assert " | ".join([*row, difference]).strip() == found.strip()


def test_consistency():
    quoted = re.findall(r"(?m)^\| .*(?: \| \d+\.\d){3} \|$", METHOD)
    assert len(quoted) == 8
    assert set(quoted) <= set(REPORTS["consistency"].splitlines())
    for consistent in (False, True):
        found = consistency.counterexample(consistent)
        assert f"({found[0]:.3f}, {found[1]:.3f})" in REPORTS["consistency"]
        assert found.argmax() == consistent


def test_answers_quote_their_reports():
    """Each number with a decimal point is in a report that its section links to."""
    first, *sections = BENCHMARKS.split("\n## ")
    assert len(BENCHMARKS.splitlines()) <= 150
    assert "reports/" not in first
    linked = set()
    for section in sections:
        names = re.findall(r"\(reports/(\w+)\.md[#)]", section)
        linked |= set(names)
        measured = re.findall(r"\d+\.\d+", "".join(REPORTS[name] for name in names))
        # Not those of settings: in code, of q.
        prose = re.sub(r"`[^`]*`|q = [\d.]*\d|\]\([^)]*\)", "", section)
        assert set(re.findall(r"\d+\.\d+", prose)) <= set(measured), section.splitlines()[0]
    assert linked == set(questions.names())
