"""The benchmark on real tables of many classes, on small tables that are not."""

import json

import accuracy
import keras
import long_tailed_cifar
import long_tailed_tables
import numpy as np
import pytest
import tables

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="its program is JAX's")


def write_table(path, rng, counts):
    """A table as KEEL writes them, whose first column tells the classes apart."""
    lines = [
        f"{value:.3f}, 7, {rng.choice(['red', 'blue'])}, {label}"
        for label, count in enumerate(counts)
        for value in rng.normal(4 * label, 1, count)
    ]
    path.write_text("\n".join(rng.permutation(lines)) + "\n")


def test_tables_whose_tail_is_long_enough(tmp_path, rng):
    write_table(tmp_path / "two.dat", rng, [99, 99])
    write_table(tmp_path / "small.dat", rng, [99, 99, 79])
    write_table(tmp_path / "large.dat", rng, [80, 99, 99])
    ((table, counts),) = long_tailed_tables.many_class_tables(tmp_path, 20.0)
    assert table.name == "large"
    assert counts.tolist() == [40, 8, 2]


def test_training_folds_are_long_tailed(tmp_path, rng):
    write_table(tmp_path / "large.dat", rng, [80, 99, 90])
    table = tables.read_table(tmp_path / "large.dat")
    splits = long_tailed_tables.splits_of(table, [40, 8, 2], repetitions=5)
    assert len(splits) == 10
    heads = set()
    for split in splits:
        assert np.bincount(split.y[split.train]).tolist() == [40, 8, 2]
        assert not set(split.train) & set(split.test)
        assert 134 <= len(split.test) <= 135
        assert (split.given == split.y).all()
        # The same classes by other ids.
        pairs = set(zip(table.y, split.y, strict=True))
        assert len(pairs) == 3
        heads |= {k for k, new in pairs if new == 0}
        np.testing.assert_allclose(split.x[split.train, 0].mean(), 0, atol=1e-12)
    assert len(heads) > 1
    again = long_tailed_tables.splits_of(table, [40, 8, 2], repetitions=5)
    assert all((a.train == b.train).all() for a, b in zip(splits, again, strict=True))


def test_scores_treat_the_classes_alike():
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    decided = np.array([0, 0, 0, 1, 1, 0, 2])
    target = np.full((7, 3), 1 / 3)
    found = long_tailed_tables.score(y, decided, target)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert found["balanced_accuracy_posterior"] == pytest.approx(1 / 3)  # All class 0.
    assert found["log_loss_target"] == pytest.approx(np.log(3))
    assert found["calibration_error_target"] == pytest.approx(0)


def test_methods_are_those_of_the_images():
    counts = np.array([50, 10, 2])
    methods = long_tailed_tables.methods_of(counts)
    y, logits = np.array([0, 1, 2]), np.eye(3, dtype="float32")[::-1].copy()
    for name in long_tailed_tables.LOSSES:
        expected = accuracy.METHODS[name].loss(counts)(y, logits)
        assert float(methods[name].loss(None)(y, logits)) == pytest.approx(float(expected))
    assert {method.rows for method in methods.values()} == {"plain", "oversampled", "smote"}


@on_jax
def test_run_resume_and_report(tmp_path, rng, monkeypatch, capsys):
    recipe = tables.Recipe(steps=100, hidden=8, batch_size=16)
    monkeypatch.setattr(long_tailed_tables, "RECIPE", recipe)
    monkeypatch.setattr(tables, "RECIPES", [recipe, recipe._replace(steps=5)])
    monkeypatch.setattr(tables, "MODELS", {"logistic_regression": tables.logistic_regression})
    monkeypatch.setattr(long_tailed_tables, "RATIOS", (10.0, 15.0))
    for name in ("texture", "segment", "letter", "vowel"):
        write_table(tmp_path / f"{name}.dat", rng, [60] * 3)
    output = tmp_path / "results.jsonl"
    arguments = ["--data", str(tmp_path), "--output", str(output), "--repetitions", "1"]
    long_tailed_tables.main(arguments)
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert {(line["table"], line["ratio"]) for line in lines} == {
        (name, ratio) for name in ("letter", "segment", "texture") for ratio in (10.0, 15.0)
    }
    assert len(lines) == 6 * 11
    assert lines[0]["class_counts"] == [30, 9, 3]
    for line in lines:
        assert line["scores"]["balanced_accuracy_posterior"] > 0.4  # By chance a third.
        assert 0 < line["scores"]["log_loss_target"] < 2

    output.write_text(output.read_text()[:-9])  # Cut within the last line.
    capsys.readouterr()
    long_tailed_tables.main(arguments)
    assert capsys.readouterr().out.count(" ... ") == 1
    long_tailed_tables.main([*arguments, "--tune"])
    tuned = list(long_tailed_cifar.read_results(output))[-20:]
    assert {line["table"] for line in tuned} == {"vowel"}
    capsys.readouterr()
    long_tailed_tables.main(["--report", str(output)])
    report = capsys.readouterr().out
    for title in ("the recipe", "ratio 10", "ratio 15"):
        assert f"### Tables of many classes: {title}\n" in report
    assert report.count("3 tables: letter, segment, texture") == 2
    assert report.count("| smote |") == 2
    assert report.count("| logistic_regression |") == 2


def test_results_of_two_runs_are_not_mixed(tmp_path):
    line = {"table": "letter", "source": "letter", "method": "ce", "ratio": 20.0, "scores": {}}
    path = tmp_path / "results.jsonl"
    of_runs = [{**line, "seed": 0, "repetitions": n, "recipe": {}} for n in (1, 5)]
    path.write_text("".join(json.dumps(of_run) + "\n" for of_run in of_runs))
    with pytest.raises(ValueError, match="must be of one seed and repetitions and recipe"):
        long_tailed_tables.report([path])


def test_arguments(capsys):
    with pytest.raises(SystemExit):
        long_tailed_tables.parse_arguments(["--repetitions", "0"])
    assert "`repetitions` must be at least 1" in capsys.readouterr().err
