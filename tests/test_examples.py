"""The main job and the examples, run as a user would."""

import importlib
import json

import keras
import long_tailed_cifar as main_job
import matplotlib as mpl
import numpy as np
import pytest
import segmentation
import tabular

mpl.use("Agg")


@pytest.mark.slow
def test_main_job(tmp_path, capsys, monkeypatch):
    fit, logs = keras.Model.fit, []

    def recording_fit(*args, **kwargs):
        history = fit(*args, **kwargs)
        logs.append(history.history)
        return history

    monkeypatch.setattr(keras.Model, "fit", recording_fit)
    output = tmp_path / "new" / "run.jsonl"
    arguments = ["--depth", "8", "--epochs", "1", "--steps-per-epoch", "2", "--output", str(output)]
    main_job.main([*arguments, "--losses", "ce", "gla"])
    printed = capsys.readouterr().out
    assert ["balanced_accuracy" in of_run for of_run in logs] == [True, True]
    header, _, *rows = printed[printed.index("| way") :].splitlines()
    columns = ["balanced", "worst seed", "best seed", "worst class", "many", "medium", "few"]
    assert header == f"| way | {' | '.join(columns)} |"
    ways = ["cross-entropy", "then LogitAdjustment(prior)", "GLALoss(prior)"]
    assert [row.split(" | ")[0] for row in rows[:3]] == [f"| {way}" for way in ways]
    runs = [json.loads(line) for line in output.read_text().splitlines()]
    assert [run["settings"]["loss"] for run in runs] == ["ce", "gla"]
    assert all(len(run["result"]["recalls"]) == 10 for run in runs)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    # A rerun trains only what is missing, also after a line that a kill cut short.
    with output.open("a") as file:
        file.write('{"settings": {"lo')
    main_job.main([*arguments, "--losses", "ce", "gla", "gca"])
    printed = capsys.readouterr().out
    assert printed.count("done before") == 2
    assert printed.count("training images") == 1
    assert len(logs) == 3
    assert len(output.read_text().splitlines()) == 4
    main_job.main([*arguments, "--losses", "ce", "--seeds", "0", "1"])
    assert capsys.readouterr().out.count("done before") == 1
    assert len(logs) == 4


def test_losses_of_the_main_job_are_what_they_are_called():
    args = main_job.parse_arguments(["--output", "/dev/null", "--gla-q", "0.2", "--gla-tau", "1"])
    prior = [3, 2, 1]
    called = {name: main_job.in_code(name, args) for name in main_job.LOSSES}
    assert called["gla"] == "GLALoss(prior, q=0.2, tau=1.0)"
    assert called["gca"] == "GCALoss(prior)"
    for name in ("weighted_ce", "gla", "gca"):
        code = eval(called[name], vars(main_job) | {"prior": prior})
        assert code.get_config() == main_job.LOSSES[name](prior, args).get_config()


def test_ways_are_means_over_seeds():
    args = main_job.parse_arguments(["--output", "/dev/null"])
    runs = [{"recalls": [1.0, recall], "recalls_of_posterior": [0.9, 0.7]} for recall in (0.2, 0.6)]
    ways = main_job.recalls_by_way({"ce": runs}, args)
    assert list(ways) == ["cross-entropy", "then LogitAdjustment(prior)"]
    assert main_job.table_row(ways["cross-entropy"], [500, 101]) == {
        "balanced": "70.0",
        "worst seed": "60.0",
        "best seed": "80.0",
        "worst class": "40.0",
        "many": "70.0",
        "medium": "-",  # A group without a class.
        "few": "-",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "focal"], "invalid choice: 'focal'"),
        (["--gla-q", "1.2"], "`q` must be in [0, 1). Received: q=1.2"),
        (["--imbalance-ratio", "0"], "`imbalance_ratio` must be a finite number"),
        (["--epochs", "0"], "`epochs` must be at least 1"),
        (["--depth", "9"], "invalid choice: 9"),
        (["--l2", "-1"], "`l2` must not be negative"),
        (["--output", "/dev/null/x/y.jsonl"], "/dev/null"),
    ],
)
def test_bad_arguments_fail_before_data_is_loaded(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(main_job.datasets, "load", lambda *_: pytest.fail("loaded data"))
    with pytest.raises(SystemExit):
        main_job.main(["--output", str(tmp_path / "run.jsonl"), *arguments])
    assert message in capsys.readouterr().err


def test_learning_rate():
    rates = [main_job.learning_rate(epoch, 200) for epoch in (0, 4, 5, 159, 160, 179, 180)]
    assert rates == pytest.approx([0.02, 0.1, 0.1, 0.1, 0.001, 0.001, 0.00001])


def test_crops_are_windows_of_the_padded_image(rng):
    x = rng.integers(1, 256, (20, 32, 32, 3), dtype="uint8")
    batches = main_job.Batches(x, x[:, 0, 0, 0], 7, augment=True, seed=0)
    assert len(batches) == 3
    for index in range(3):
        images, labels = batches[index]
        assert images.shape == (len(labels), 32, 32, 3)
        for image, chosen in zip(images, batches.order[index * 7 :], strict=False):
            padded = main_job.np.pad(x[chosen], ((4, 4), (4, 4), (0, 0)))
            windows = [
                padded[i : i + 32, j : j + 32][:, ::step]
                for i in range(9)
                for j in range(9)
                for step in (1, -1)
            ]
            assert any((image == window).all() for window in windows)


def table_rows(printed):
    """Returns the cells of each row of a Markdown table by their first."""
    rows = [line[1:-1].split("|") for line in printed.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in rows}


@pytest.mark.slow
def test_tabular(tmp_path, capsys):
    output = tmp_path / "new" / "tabular.json"
    arguments = ["--seeds", "1", "--epochs", "4", "--imbalance-ratio", "50", "--examples", "4000"]
    tabular.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "One positive to 50 negatives, 1 seeds" in printed
    rows = table_rows(printed)
    assert list(rows) == ["", *tabular.WAYS, "alpha", "0", "0.25", "0.5", "0.75", "1"]
    balanced, recall, accuracy = (float(cell) for cell in rows["GLA"])
    assert balanced > 60
    assert accuracy < float(rows["cross-entropy"][2])
    assert recall > float(rows["cross-entropy"][1])
    # The ends of the trade-off.
    assert rows["0"] == [rows["GLA"][0], rows["GLA"][2]]
    assert rows["1"] == [rows["cross-entropy"][0], rows["cross-entropy"][2]]
    written = json.loads(output.read_text())
    assert round(100 * written["ways"]["50.0"]["GLA"][0]["recall"], 1) == recall
    assert round(100 * written["trade_offs"]["50.0"][0]["balanced accuracy"], 1) == balanced
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    budget = written["budgets"]["50.0"]
    assert f"recall {budget['recall']:.4f}" in printed
    assert 0 < budget["alerts"] < 0.1
    assert budget["precision"] > 2 / 51  # What alerts at random would have, twice.


def test_oversampling_balances(rng):
    x = rng.standard_normal((2000, 2))
    y = (np.arange(2000) < 20).astype(int)
    drawn, labels = tabular.oversample(x, y, rng)
    assert 0.45 < labels.mean() < 0.55
    assert len(drawn) == 2000


@pytest.mark.slow
def test_segmentation(tmp_path, capsys):
    output = tmp_path / "new" / "segmentation.json"
    arguments = ["--images", "32", "--epochs", "1", "--seeds", "1", "--output", str(output)]
    segmentation.main(arguments)
    header, *rows = table_rows(capsys.readouterr().out).items()
    assert header == ("", ["balanced accuracy", "rare recall", "rare IoU"])
    assert [way for way, _ in rows] == list(segmentation.WAYS)
    written = json.loads(output.read_text())["ways"]
    for way, cells in rows:
        assert cells == [f"{100 * value:.1f}" for value in written[way][0].values()]
        assert all(0 <= value <= 1 for value in written[way][0].values())
    _, labels = segmentation.make_images(200, seed=0)
    assert 0 < (labels == segmentation.RARE).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tabular", ["--seeds", "0"], "`seeds` must be at least 1. Received: 0"),
        ("tabular", ["--imbalance-ratio", "0.5"], "`imbalance_ratio` must be at least 1"),
        ("segmentation", ["--epochs", "0"], "`epochs` must be at least 1. Received: 0"),
    ],
)
def test_bad_arguments(name, arguments, message, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_tune_q(tmp_path, capsys, monkeypatch):
    tune_q = importlib.import_module("tune_q")
    arguments = ["--epochs", "1", "--batch-size", "64", "--folds", "2", "--q", "0"]
    arguments += ["--losses", "gla", "--output", str(tmp_path)]
    tune_q.main(arguments)
    first = capsys.readouterr().out
    assert len(list(tmp_path.glob("search/trial_*/fold_*.json"))) == 2
    assert "gla q=0 tau=1/(1-q)" in first
    assert (tmp_path / "tune_q.png").read_bytes().startswith(b"\x89PNG")

    # A rerun reads what is done.
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: pytest.fail("trained again"))
    tune_q.main(arguments)
    again = capsys.readouterr().out
    assert again[again.index("Balanced") :] == first[first.index("Balanced") :]
    with pytest.raises(SystemExit, match="other settings"):
        tune_q.main([*arguments, "--seed", "1"])
    for wrong, message in [
        (["--folds", "1"], "`folds` must be at least 2"),
        (["--epochs", "0"], "`epochs` must be at least 1"),
        (["--imbalance-ratio", "0"], "`imbalance_ratio` must be a finite number"),
        (["--q", "1"], "`q` must be in [0, 1)"),
    ]:
        with pytest.raises(SystemExit):
            tune_q.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
