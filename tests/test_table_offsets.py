"""The benchmark of offsets on real tables, on small tables that are not."""

import json

import keras
import numpy as np
import pytest
import table_offsets
import tables
from table_offsets import BASE, METHODS, OFFSETS, PAIRS
from test_tables import write_tables

from keras_balanced import BinaryGLALoss, GLALoss

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="its program is JAX's")


def test_offsets_are_times_the_log_odds_of_the_training_labels():
    y, logits = np.array([0, 0, 1, 1]), np.array([-3.0, -1.0, -1.5, -0.5])
    curve = table_offsets.curve(y, logits, rate=0.1)
    log_odds = np.log(1 / 9)
    for offset, found in zip(OFFSETS, curve, strict=True):
        called = logits > offset * log_odds
        assert found == pytest.approx(((1 - called[:2].mean()) + called[2:].mean()) / 2)
    assert curve[OFFSETS.index(-0.3)] == 0.5  # None is called positive, nor by more.
    assert curve[OFFSETS.index(0.3)] == 0.75  # The last one: -0.5 is more than -0.66.
    assert curve[OFFSETS.index(1)] == 0.75  # All but the first.


def test_an_offset_is_a_mix_to_decide_for(rng):
    """`posterior` towards the class mix to the power of q decides by the offset of -q."""
    q, counts = 0.3, np.array([900, 80, 20])
    logits = rng.normal(0, 2, (500, 3)).astype("float32")
    found = np.asarray(GLALoss(counts).posterior(logits, priors=counts**q)).argmax(axis=-1)
    assert (found == (logits + q * np.log(counts)).argmax(axis=-1)).all()
    rate = 0.1
    target = rate**q / (rate**q + (1 - rate) ** q)
    found = np.asarray(BinaryGLALoss(rate).posterior(logits[:, :1], priors=target)) > 0.5
    assert (found == (logits[:, :1] > -q * np.log(rate / (1 - rate)))).all()
    # The loss that trains towards it has the same target, and no q.
    loss = table_offsets.towards(np.array([rate]))
    np.testing.assert_allclose(loss.get_config()["target_priors"], [target])
    assert loss.get_config()["q"] == 0


def line(table, source, method, best, noise=0.2, **settings):
    """A line whose balanced accuracy is 0.8 at one offset, 0.5 at all others."""
    settings = {"seed": 0, "repetitions": 5, "recipe": {}, **settings}
    curve = [0.8 if offset == best else 0.5 for offset in OFFSETS]
    line = {"table": table, "source": source, "noise": noise, "method": method, "curve": curve}
    return line | settings


def write(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return [path]


def test_variants_of_one_table_count_once_and_the_last_run(tmp_path):
    tables_of = (("a1", "a", 0), ("a2", "a", 0.5), ("b", "b", 0))
    lines = [line(*of[:2], method, of[2]) for of in tables_of for method in METHODS]
    again = [line("b", "b", method, 0.7) for method in METHODS]
    paths = write(tmp_path / "results.jsonl", again + lines)
    curves = table_offsets.read_curves(paths)
    assert list(curves) == [0.2]
    for method in METHODS:
        found = curves[0.2][method]
        np.testing.assert_allclose(found[:, OFFSETS.index(0)], [0.65, 0.8])
        np.testing.assert_allclose(found[:, OFFSETS.index(0.7)], [0.5, 0.5])


def test_incomplete_tables_and_two_runs_are_refused(tmp_path):
    lines = [line("a", "a", method, 0) for method in METHODS]
    path = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match=r"all methods; run again. Received: part of \['a'\]"):
        table_offsets.read_curves(write(path, lines[1:]))
    # Of another seed, at whatever rate.
    other = [line("a", "a", method, 0, noise=0.4, seed=1) for method in METHODS]
    with pytest.raises(ValueError, match="must be of one seed and repetitions and recipe"):
        table_offsets.read_curves(write(path, lines + other))


def test_report_by_hand(tmp_path, capsys):
    best = dict.fromkeys(METHODS, 0) | {BASE: -0.3}
    lines = [line(name, name, method, best[method]) for name in "ab" for method in METHODS]
    table_offsets.report(write(tmp_path / "results.jsonl", lines), tmp_path / "picture.png")
    printed = capsys.readouterr().out
    for row in (
        "| logit_adjusted | 50.0 ± 0.0 |",
        "| logit_adjusted, offset -0.3 | 80.0 ± 0.0 |",
        "| gla_q0.7_tau1 | 80.0 ± 0.0 |",
    ):
        assert row in printed
    for row in (
        "| logit_adjusted, offset -0.3 - logit_adjusted | +30.0 ± 0.0 | 2 / 0 |",
        "| gla_q0.3_tau1 - logit_adjusted, offset -0.3 | +0.0 ± 0.0 | 0 / 0 | 1.000 |",
        "| gla_q0.5_tau1 - logit_adjusted, offset -0.5 | +30.0 ± 0.0 | 2 / 0 |",
    ):
        assert row in printed
    assert printed.count(" - ") == len(PAIRS)
    assert (tmp_path / "picture.png").stat().st_size > 1000


@on_jax
def test_run_resume_and_report(tmp_path, rng, monkeypatch, capsys):
    monkeypatch.setattr(tables, "RECIPE", tables.Recipe(steps=100, hidden=8, batch_size=16))
    monkeypatch.setattr(table_offsets, "NOISES", (0.0, 0.3))
    output, arguments = write_tables(tmp_path, rng)
    table_offsets.main(arguments)
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert len(lines) == 2 * 4 * len(METHODS)
    assert {each["table"] for each in lines} == {"ecoli1", "ecoli2", "pima", "wisconsin"}
    # The trainings of `tables`, and the decision by their logits.
    of_table = {each["noise"]: each for each in lines if each["table"] == "pima"}
    method = of_table[0.3]["method"]
    for noise, found in of_table.items():
        splits = tables.splits_of(tables.read_table(tmp_path / "pima.dat"), 1, noise)
        logits = tables.train(splits, {method: METHODS[method]}, tables.RECIPE, [0, 1])
        expected = [
            tables.recalls(split.y[split.test], (z[split.test] > 0).astype("int64")).mean()
            for split, z in zip(splits, logits[0, ..., 0], strict=True)
        ]
        assert found["curve"][OFFSETS.index(0)] == pytest.approx(np.mean(expected), abs=1e-2)

    capsys.readouterr()
    table_offsets.main(["--report", str(output)])
    report = capsys.readouterr().out
    output.write_text(output.read_text()[:-9])  # Cut within the last line.
    table_offsets.main(arguments)
    assert capsys.readouterr().out.count(" ... ") == 1
    table_offsets.main(["--report", str(output)])
    assert capsys.readouterr().out.endswith("skipped a broken line\n" + report)
