"""The tables in the documentation are those that the committed results give."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import accuracy_report  # noqa: E402
import long_tailed_cifar  # noqa: E402

README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()


def test_demo():
    runs = list(long_tailed_cifar.read_results(RESULTS / "demo.jsonl"))
    assert len(runs) == 4
    for run in runs:
        row = long_tailed_cifar.table_row(run["result"])
        name = {"gla": "`gla` (q = 0.2)"}.get(
            run["settings"]["loss"], f"`{run['settings']['loss']}`"
        )
        columns = ("balanced", "by posterior", "worst class", "many", "medium", "few")
        assert " | ".join([f"| {name}", *(row[column] for column in columns)]) + " |" in README


def test_accuracy(capsys):
    accuracy_report.report([RESULTS / f"accuracy_{name}.jsonl" for name in ("digits", "cifar10")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("|", "###"))]
    assert len(rows) > 100
    missing = [row for row in rows if row not in BENCHMARKS]
    assert not missing, missing
    summary = rows[rows.index("### Summary") + 1 :]
    summary = summary[: next(i for i, row in enumerate(summary) if row.startswith("###"))]
    quoted = [
        row for row in README.splitlines() if row.startswith(("| ce", "| logit_adj", "| gca"))
    ]
    assert len(quoted) == 4
    assert all(row in summary for row in quoted)
