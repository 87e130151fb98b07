"""Every report is what the committed results give; a question is one file."""

import collections
import json
import re
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import long_trainings, questions, reporting, store
from benchmarks.questions import literature

TRY = '''"""Is the second seed luckier?

Two runs each.
"""

from benchmarks import stats


def cases():
    for seed in range(2):
        yield {"seed": seed, "length": 3}


def measure(seed, length):
    if seed == 1 and length == 3:
        raise RuntimeError("no luck")
    return {"luck": [seed] * length}


def report(runs):
    rows = [[run["settings"]["seed"], sum(run["result"]["luck"])] for run in runs]
    return stats.table(["seed", "luck"], rows)
'''


# Its results come for weeks, and need not have been reported on yet.
UNDER_WAY = "literature"
MEASURED = [name for name in questions.names() if hasattr(questions.load(name), "cases")]


@pytest.mark.parametrize("name", questions.names())
def test_report_is_made_of_the_committed_results(name):
    page, runs = reporting.path_of(name).read_text(), reporting.runs_of(name)
    if name == UNDER_WAY:
        runs = runs[: int(re.search(r": (\d+) runs\.", page)[1])]
    assert page == reporting.render(name, runs)


@pytest.mark.parametrize("name", MEASURED)
def test_results_are_those_of_the_cases(name):
    runs = store.read(store.path_of(questions.result_files(name)[0]))
    counted = collections.Counter(store.key(run["settings"]) for run in runs)
    assert set(counted.values()) <= {1}
    cases = {store.key(case) for case in questions.load(name).cases()}
    assert set(counted) <= cases if name == UNDER_WAY else set(counted) == cases


def test_every_committed_result_is_reported_on():
    files = {path.stem for path in store.FOLDER.glob("*.jsonl")}
    reported = {file for name in questions.names() for file in questions.result_files(name)}
    # The demo of the first page is an example's.
    assert files - reported == {"demo"}
    assert sum(path.stat().st_size for path in store.FOLDER.iterdir()) < 3e6


@pytest.fixture
def luck(tmp_path, monkeypatch):
    """A question in one file, as a new one would be added."""
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "luck.py").write_text(TRY)
    monkeypatch.setattr(questions, "FOLDER", folder)
    monkeypatch.setattr(questions, "__path__", [str(folder)])
    monkeypatch.setattr(store, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(reporting, "FOLDER", tmp_path / "reports")
    yield tmp_path
    sys.modules.pop("benchmarks.questions.luck", None)


def test_a_question_is_one_file(luck, capsys):
    command.main(["list"])
    assert capsys.readouterr().out.split(maxsplit=1) == ["luck", "Is the second seed luckier?\n"]
    with pytest.raises(SystemExit, match="1 runs failed"):
        command.main(["run", "luck"])
    assert "RuntimeError('no luck')" in capsys.readouterr().out
    command.main(["report"])
    page = (luck / "reports" / "luck.md").read_text()
    assert page.startswith("# Is the second seed luckier?\n\nTwo runs each.\n")
    assert page.endswith("| seed | luck |\n|---|---|\n| 0 | 0 |\n")


def test_part_of_a_question(luck, capsys):
    output = luck / "try.jsonl"
    arguments = ["run", "luck", "--set", "length=2", "--output", str(output)]
    command.main([*arguments, "--only", "seed=1"])
    command.main(arguments)  # What is missing.
    runs = store.read(output)
    assert [run["settings"] for run in runs] == [{"seed": s, "length": 2} for s in (1, 0)]
    assert runs[0]["versions"]["python"]
    capsys.readouterr()
    command.main(["report", "luck", "--results", str(output)])
    assert capsys.readouterr().out.endswith("| 1 | 2 |\n| 0 | 0 |\n\n")
    with pytest.raises(SystemExit, match=r"The settings are length, seed\. Received: epochs"):
        command.main([*arguments, "--only", "epochs=3"])
    with pytest.raises(SystemExit, match="No case has seed=7"):
        command.main([*arguments, "--only", "seed=7"])


def test_a_line_that_was_cut_short_is_no_run(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    store.append(path, {"seed": 0}, 1)
    path.write_text(path.read_text() + '{"settings": {"se')
    store.append(path, {"seed": 1}, 2)
    assert [run["result"] for run in store.read(path)] == [1, 2]
    assert "skipped" in capsys.readouterr().err
    assert store.missing([{"seed": 2}, {"seed": 1}], path) == [{"seed": 2}]
    # The queue of long trainings writes the recipe apart.
    path.write_text(json.dumps({"settings": {"seed": 0}, "recipe": {"epochs": 2}, "result": 3}))
    assert store.missing([{"seed": 0, "epochs": 2}], path) == []


def test_the_published_table():
    """Each number beside what was trained, and what is still to be trained."""
    ce, logit_adjusted, *others = long_trainings.ROWS
    result = {"recalls": [0.7] * 10, "recalls_of_posterior": [0.76] * 10, "images_per_second": 300}
    result |= {"train_recalls": [0.9] * 10, "seconds": 8000}
    result["offsets"] = {str(i / 4): 0.7 + i / 100 for i in range(-4, 9)}
    runs = [{"settings": row.settings(), "result": result} for row in (ce, logit_adjusted)]
    published, by_strength, *_, left = literature.report(runs).split("## ")[1:]
    rows = [line.split(" | ")[1:] for line in published.splitlines() if "cifar10," in line]
    assert rows == [
        ["ce", "71.25", literature.DDC, "70.0", "-1.2", "yes |"],
        ["ce", "71.36", literature.MENON, "70.0", "-1.4", "yes |"],
        ["ce, by posterior", "77.32", literature.MENON, "76.0", "-1.3", "yes |"],
        ["logit_adjusted", "77.89", literature.MENON, "70.0", "-7.9", "no |"],
        ["logit_adjusted", "77.54", literature.TRICKS, "70.0", "-7.5", "no |"],
    ]
    assert by_strength.count("| 70.0 | 72.0 | 74.0 | 76.0 | 78.0 |") == 2
    hours = dict(re.findall(r"\| (.+) \| ([0-9.]+) \|", left))
    assert list(hours) == [row.title() for row in others]
    # 200 epochs of 12,406 images at 300 a second; cross-entropy's state saves four fifths.
    of = {row.loss: float(hours[row.title()]) for row in reversed(others) if row.seed == 0}
    assert of["vs"] == of["ldam_drw"] == 2.3
    assert of["gca_deferred"] == 0.5
    assert "No training has ended yet." in literature.report([])
