"""The benchmark of offsets on real tables, on small tables that are not."""

import json

import accuracy
import keras
import numpy as np
import pytest
import table_offsets
import tables
from test_tables import binary_table, write_table

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="its program is JAX's")


def test_the_hold_out_is_of_the_training_fold_and_its_labels():
    split = tables.splits_of(binary_table(num=400), repetitions=1, noise=0.3)[0]
    held = table_offsets.hold_out(split, seed=0)
    assert sorted(np.concatenate([held.train, held.test])) == sorted(split.train)
    assert len(held.test) == 40
    assert (held.y == split.given).all()
    assert (split.given != split.y)[split.train].any()
    assert held.rate == pytest.approx(split.given[held.test].mean(), abs=0.02)  # Stratified.


def test_offsets_are_times_the_log_odds_of_the_training_labels():
    y, logits = np.array([0, 0, 1, 1]), np.array([-3.0, -1.0, -2.0, -0.5])
    curve = table_offsets.curve(y, logits, rate=0.1)
    assert tuple(curve) == accuracy.OFFSETS
    for tau, found in curve.items():
        expected = (
            (logits <= tau * np.log(1 / 9))[:2].mean(),
            (logits > tau * np.log(1 / 9))[2:].mean(),
        )
        assert found == pytest.approx(np.mean(expected))
    assert curve[0] == 0.5  # All are called negative.
    assert curve[0.25] == 0.75


def line(source, method, best, noise=0.2, **settings):
    """A line whose balanced accuracy is 0.8 at one offset, 0.5 at all others."""
    settings = {"seed": 0, "repetitions": 5, "recipe": {}, **settings}
    scores = {f"{tau:g}": 0.8 if tau == best else 0.5 for tau in accuracy.OFFSETS}
    line = {"table": source, "source": source, "noise": noise, "method": method, "curve": scores}
    return line | settings | {"held_out": 0.7, "chosen": [best, -1]}


def test_no_source_chooses_its_own_offset():
    best = {"a": 1, "b": 1, "c": 0.5}
    lines = [
        line(source, method, tau)
        for source, tau in best.items()
        for method in table_offsets.METHODS
    ]
    found = table_offsets.decisions(lines)
    assert (found[table_offsets.LOGITS] == 0.5).all()
    assert (found[table_offsets.HOLD_OUT] == 0.7).all()
    # To `a` and `b` 0.5 and 1 are as good; the others of `c` take 1, though 0.5 is best for it.
    np.testing.assert_allclose(found[table_offsets.OTHERS], np.outer([0.8, 0.8, 0.5], np.ones(5)))
    best["c"] = 1
    lines = [
        line(source, method, tau)
        for source, tau in best.items()
        for method in table_offsets.METHODS
    ]
    found = table_offsets.decisions(lines)
    np.testing.assert_allclose(found[table_offsets.OTHERS], 0.8)
    offsets = table_offsets.offsets_of(lines)
    assert offsets[table_offsets.OTHERS][0] == "1"
    assert offsets[table_offsets.HOLD_OUT][0] == "0 (-1 to 1)"


def test_variants_of_one_table_count_once():
    of_source = [line("a", "ce", tau) for tau in (0, 0.5)] + [line("b", "ce", 0)]
    of_source[1]["table"] = "a2"
    lines = [{**each, "method": name} for each in of_source for name in table_offsets.METHODS]
    names, curves = table_offsets.mean_curves(lines)
    assert names == ["a", "b"]
    zero = accuracy.OFFSETS.index(0)
    np.testing.assert_allclose(curves[:, 0, zero], [0.65, 0.8])


@on_jax
def test_run_resume_and_report(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RECIPE", tables.Recipe(steps=100, hidden=8, batch_size=16))
    monkeypatch.setattr(table_offsets, "NOISES", (0.0, 0.3))
    for name in ("ecoli1", "ecoli2", "pima", "wisconsin"):
        write_table(tmp_path / f"{name}.dat", rng)
    write_table(tmp_path / "glass0.dat", rng)  # Left for tuning.
    output = tmp_path / "results.jsonl"
    arguments = ["--data", str(tmp_path), "--output", str(output), "--repetitions", "1"]
    table_offsets.main(arguments)
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert len(lines) == 2 * 4 * len(table_offsets.METHODS)
    assert {each["table"] for each in lines} == {"ecoli1", "ecoli2", "pima", "wisconsin"}
    for each in lines:
        assert len(each["chosen"]) == 2
        assert max(each["curve"].values()) > 0.65  # By chance 0.5.
        assert 0.5 < each["held_out"] < 1
    # The same training as in `tables`, and the decision by its logits.
    lines = {(each["table"], each["noise"], each["method"]): each for each in lines}
    table = tables.read_table(tmp_path / "pima.dat")
    splits = tables.splits_of(table, repetitions=1)
    method = {"logit_adjusted": tables.METHODS["logit_adjusted"]}
    logits = tables.train(splits, method, tables.RECIPE, [0, 1])[0, ..., 0]
    expected = [
        tables.recalls(split.y[split.test], (z[split.test] > 0).astype("int64")).mean()
        for split, z in zip(splits, logits, strict=True)
    ]
    found = lines["pima", 0.0, "logit_adjusted"]["curve"]["0"]
    assert found == pytest.approx(np.mean(expected), abs=0.03)

    output.write_text(output.read_text()[:-9])  # Cut within the last line.
    capsys.readouterr()
    table_offsets.main(arguments)
    assert capsys.readouterr().out.count(" ... ") == 1
    table_offsets.main(["--report", str(output)])
    report = capsys.readouterr().out
    for title in ("0% wrong labels", "30% wrong labels", "the same at every rate"):
        assert f"### Offsets on tables: {title}\n" in report
    assert report.count("| logit_adjusted | offset of the hold-out |") == 2


def test_the_same_offset_at_every_rate_by_hand(capsys):
    of_noise = {
        0.2: [line("a", name, -0.25) for name in table_offsets.METHODS],
        0.4: [line("a", name, 0, noise=0.4) for name in table_offsets.METHODS],
    }
    table_offsets.print_same_offset(of_noise)
    minus = "minus logit_adjusted | minus gla_q0.3_tau1"
    assert capsys.readouterr().out.splitlines()[3:] == [
        f"| decision | 20% wrong | {minus} | 40% wrong | {minus} |",
        "|---|---|---|---|---|---|---|",
        "| logit_adjusted | 50.0 |  | +0.0 | 80.0 |  | +0.0 |",
        "| gla_q0.3_tau1 | 50.0 | +0.0 |  | 80.0 | +0.0 |  |",
        "| logit_adjusted, offset 0.25 | 50.0 | +0.0 | +0.0 | 50.0 | -30.0 | -30.0 |",
        "| logit_adjusted, offset -0.25 | 80.0 | +30.0 | +30.0 | 50.0 | -30.0 | -30.0 |",
        "| logit_adjusted, offset -0.5 | 50.0 | +0.0 | +0.0 | 50.0 | -30.0 | -30.0 |",
        "| logit_adjusted, offset -0.75 | 50.0 | +0.0 | +0.0 | 50.0 | -30.0 | -30.0 |",
    ]


def test_results_of_two_runs_are_not_mixed(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [line("a", "ce", 0, repetitions=n) for n in (1, 5)]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(ValueError, match="must be of one seed and repetitions and recipe"):
        table_offsets.report([path])
