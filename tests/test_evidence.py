"""The tables in the documentation are those that the committed results give."""

import json
import re

import accuracy_report
import fit_speed
import labels
import long_tailed_cifar
import segmentation
import tables_report
import tabular
from processes import ROOT

RESULTS = ROOT / "benchmarks" / "results"
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


def test_labels():
    page = (ROOT / "docs" / "labels.md").read_text()
    results = json.loads((RESULTS / "labels.json").read_text())
    assert len(results) == 2
    for columns in results.values():
        assert labels.table(columns) in page
    found = labels.smoothing(num_classes=2, distance=3.0, seed=0, steps=60)
    assert found["uniform, priors of the labels"]["majority class"] < 0.5
    assert found[f"`label_smoothing={labels.SMOOTHING}`"]["majority class"] > 0.9


def report_sections(capsys, *paths):
    accuracy_report.report(paths)
    sections = re.split(r"(?m)^(?=### )", capsys.readouterr().out)[1:]
    return [section.strip() for section in sections]


def test_accuracy(capsys):
    summary, differences, *tables = report_sections(capsys, *sorted(RESULTS.glob("accuracy_*")))
    _, table = report_sections(capsys, RESULTS / "convergence.jsonl")  # One loss: no differences.
    tables.append(table)
    assert len(tables) > 8
    for section in (summary, differences, *tables):
        assert section + "\n" in BENCHMARKS
    # No table that the results no longer give.
    written = re.findall(r"(?m)^### .*, ratio .*$", BENCHMARKS)
    assert sorted(written) == sorted(table.splitlines()[0] for table in tables)
    quoted = re.findall(r"(?m)^\| (?:ce|logit_adjusted|gca)[^`\n]*$", README)
    assert len(quoted) == 5
    assert all(row in summary.splitlines() for row in quoted)


def test_tables(capsys):
    tables_report.report(sorted(RESULTS.glob("tables*.jsonl")))
    sections = re.split(r"(?m)^(?=### )", capsys.readouterr().out)[1:]
    assert len(sections) > 3
    for section in sections:
        assert section.strip() + "\n" in BENCHMARKS
    written = re.findall(r"(?m)^### Real tables.*$", BENCHMARKS)
    assert sorted(written) == sorted(section.splitlines()[0] for section in sections)


def test_fit_speed(capsys):
    fit_speed.print_table(json.loads((RESULTS / "fit_speed.json").read_text())["cases"])
    assert capsys.readouterr().out in BENCHMARKS


def test_examples(capsys):
    of_tabular = json.loads((RESULTS / "tabular.json").read_text())
    of_segmentation = json.loads((RESULTS / "segmentation.json").read_text())
    tables = [(tabular.print_table, ways) for ways in of_tabular["ways"].values()]
    tables += [(tabular.print_trade_off, points) for points in of_tabular["trade_offs"].values()]
    tables += [(segmentation.print_table, of_segmentation["ways"])]
    for print_table, results in tables:
        print_table(results)
        assert capsys.readouterr().out in BENCHMARKS
    for budget in of_tabular["budgets"].values():
        assert f"{budget['recall']:.2f}" in BENCHMARKS
        assert f"{budget['precision']:.2f})" in BENCHMARKS


def test_posterior():
    results = json.loads((RESULTS / "posterior.json").read_text())
    for row in results["posterior"]:
        cells = f"| {row['shape'][0]} x {row['shape'][1]} | {row['levels']} | "
        ms = row["milliseconds"]
        cells += " / ".join(f"{ms[mode]['GLA']:.2f}" for mode in ("graph", "XLA"))
        assert cells + f" | {ms['eager']['GCA']:.2f} / " in BENCHMARKS
    for part in ("soft targets", "metric"):
        for row in results[part]:
            (batch, classes), ms = row["shape"], row["milliseconds"]
            first, second = list(ms.values())[:2]
            cells = f"| {batch} x {classes} | {row['mode']} | {first:.2f} | {second:.2f} |"
            assert cells in BENCHMARKS


def test_step_time():
    results = json.loads((RESULTS / "step_time.json").read_text())
    for row in results["value and gradient"]:
        cells = f"| {row['shape']} | {row['mode']} | {row['loss']} | {row['milliseconds']:.3f} | "
        assert cells + f"{row['ratio']:.3f} |" in BENCHMARKS
