"""The tables in the documentation are those that the committed results give."""

import json
import re

import accuracy_report
import consistency
import fit_speed
import labels
import long_tailed_cifar
import long_tailed_tables
import memorisation
import noise_rate
import segmentation
import table_offsets
import tables_report
import tabular
from processes import ROOT

RESULTS = ROOT / "benchmarks" / "results"
EVIDENCE = (ROOT / "docs" / "evidence.md").read_text()
METHOD = (ROOT / "docs" / "method.md").read_text()
WITH_ERROR = r"[\d.]+ ± [\d.]+\d"
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()


def test_demo():
    args = long_tailed_cifar.parse_arguments(["--output", "/dev/null"])
    runs = list(long_tailed_cifar.read_results(RESULTS / "demo.jsonl"))
    assert len(runs) == 9
    results = {}
    for run in runs:
        results.setdefault(run["settings"]["loss"], []).append(run["result"])
    ways = long_tailed_cifar.recalls_by_way(results, args)
    assert long_tailed_cifar.table(ways, runs[0]["result"]["class_counts"]) in EVIDENCE


def test_labels():
    results = json.loads((RESULTS / "labels.json").read_text())
    assert len(results) == 2
    for columns in results.values():
        assert labels.table(columns) in EVIDENCE
    found = labels.smoothing(num_classes=2, distance=3.0, seed=0, steps=60)
    assert found["uniform, priors of the labels"]["majority class"] < 0.5
    assert found[f"`label_smoothing={labels.SMOOTHING}`"]["majority class"] > 0.9


def printed_sections(capsys):
    return [part.strip() for part in re.split(r"(?m)^(?=### )", capsys.readouterr().out)[1:]]


def report_sections(capsys, *paths):
    accuracy_report.report(paths)
    return printed_sections(capsys)


def report_tables(capsys, *names, **options):
    """Returns the tables of a report by their titles."""
    accuracy_report.report([RESULTS / f"{name}.jsonl" for name in names], **options)
    return dict(re.findall(r"### (.*)\n\n((?:\|.*\n)+)", capsys.readouterr().out))


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
    quoted = re.findall(r"(?m)^\| (?:ce|logit_adjusted|gca)[^`\n]*$", EVIDENCE)
    assert len(quoted) == 5
    assert all(row in summary.splitlines() for row in quoted)
    for page in (EVIDENCE, METHOD):
        assert re.findall(WITH_ERROR, page)
        assert set(re.findall(WITH_ERROR, page)) <= set(re.findall(WITH_ERROR, BENCHMARKS))


Q = ("logit_adjusted", "gla_q0.5_tau1", "gla_q0.7_tau1", "gla_q0.9_tau1")


def test_wrong_labels(capsys):
    sections = report_tables(capsys, "noise_digits", candidates=Q)
    assert sections["Summary"] in BENCHMARKS
    assert sections["Differences"] in BENCHMARKS
    assert sections["Choices of the hold-outs"] in BENCHMARKS
    sections = report_tables(capsys, "noise_halves_digits")
    assert sections["Summary"] in BENCHMARKS
    assert sections["Differences"] in BENCHMARKS
    sections = report_tables(capsys, "noise_cifar10")
    for name in ("Summary", "Probabilities in a known mix", "Probabilities in changed mixes"):
        assert sections[name] in BENCHMARKS
    sections = report_tables(capsys, "noise_cifar100")
    assert sections["Summary"] in BENCHMARKS
    names = ("digits", "halves_digits", "cifar10", "cifar100")
    sections = report_tables(capsys, *(f"noise_{name}" for name in names))
    assert sections["Offsets in hindsight"] in BENCHMARKS
    pairs = memorisation.pairs_of(memorisation.RESULTS)
    memorisation.report(pairs, memorisation.pairs_of_tables(memorisation.TABLES))
    assert capsys.readouterr().out in BENCHMARKS
    # The rule was made of these cells.
    assert round(memorisation.made_of(pairs)) == memorisation.RULE


def test_estimated_rate_of_wrong_labels(capsys):
    noise_rate.report([RESULTS / "estimated_rates.jsonl"])
    printed = capsys.readouterr().out
    assert printed in BENCHMARKS
    assert f"The rule that digits at ratio 10 give: {noise_rate.RULE}%." in printed


def test_decisions(capsys):
    for name in ("offsets_digits", "mixes_cifar10"):
        assert report_tables(capsys, name)["Decisions"] in BENCHMARKS


def test_probabilities(capsys):
    sections = report_tables(capsys, "mixes_cifar10")
    assert sections["Probabilities in a known mix"] in BENCHMARKS
    assert sections["Probabilities in changed mixes"] in BENCHMARKS


def test_summaries(capsys):
    for name in ("scale_cifar10", "bfloat16_digits", "tensorflow_digits", "jax_digits"):
        assert report_tables(capsys, name)["Summary"] in BENCHMARKS


def cells(table):
    """Returns the cells of each row of a Markdown table by the first cell and the header."""
    header, _, *rows = (
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    )
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_margins(capsys):
    _, differences, *tables = report_sections(capsys, *sorted(RESULTS.glob("accuracy_*")))
    setting = "digits, exponential, ratio 50, 60 epochs"
    (measured,) = (cells(table) for table in tables if table.startswith(f"### {setting}"))
    quoted = re.findall(r"(?m)^\| .*\(`(\w+)`\) \| (?:yes|no)? ?\| (.*) \|$", METHOD)
    assert len(quoted) == 5
    for name, found in quoted:
        row = [measured[name]["logits"], measured[name]["posterior"]]
        difference = cells(differences).get(f"{name} - weighted", {}).get(setting, "")
        assert " | ".join([*row, difference]).strip() == found.strip()


def test_consistency():
    results = json.loads((RESULTS / "consistency.json").read_text())
    columns = ("argmax of logits", "argmax of posterior", "attained")
    rows = {
        f"| {row['loss']} | {row['q']:g} | {' | '.join(f'{row[c]:.1f}' for c in columns)} |"
        for row in results
    }
    assert rows <= set(BENCHMARKS.splitlines())
    quoted = re.findall(r"(?m)^\| .*(?: \| \d+\.\d){3} \|$", METHOD)
    assert len(quoted) == 8
    assert set(quoted) <= rows
    logits = consistency.counterexample()
    for consistent, found in logits.items():
        assert f"({found[0]:.3f}, {found[1]:.3f})" in BENCHMARKS
        assert (found.argmax() == 1) == consistent


def test_tables(capsys):
    tables_report.report(sorted(RESULTS.glob("tables*.jsonl")))
    sections = printed_sections(capsys)
    assert len(sections) > 3
    for section in sections:
        assert section + "\n" in BENCHMARKS
    written = re.findall(r"(?m)^### Real tables.*$", BENCHMARKS)
    assert sorted(written) == sorted(section.splitlines()[0] for section in sections)


def test_long_tailed_tables(capsys):
    long_tailed_tables.report(sorted(RESULTS.glob("long_tailed_tables*.jsonl")))
    sections = printed_sections(capsys)
    assert len(sections) == 3
    for section in sections:
        assert section + "\n" in BENCHMARKS


def test_offsets_on_tables(capsys):
    table_offsets.report([RESULTS / "table_offsets.jsonl"])
    sections = printed_sections(capsys)
    assert len(sections) == 2
    for section in sections:
        assert section + "\n" in BENCHMARKS


def test_fit_speed(capsys):
    for name in ("fit_speed", "fit_speed_jax"):
        fit_speed.print_table(json.loads((RESULTS / f"{name}.json").read_text())["cases"])
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
