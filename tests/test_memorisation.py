"""The report of what memorised labels have to do with q, on lines written by hand."""

import json

import memorisation
import numpy as np
import pytest


@pytest.fixture
def lines(tmp_path):
    """Two cells of two seeds: in one the base memorises much and loses, in the other little."""
    path = tmp_path / "noise.jsonl"
    with path.open("w") as file:
        for n_max, memorised, gain in ((400, 0.2, -0.1), (5000, 0.9, 0.1)):
            for seed in (0, 1):
                for loss in (memorisation.BASE, memorisation.LOSS, "ce"):
                    recall = 0.5 + gain * (loss == memorisation.LOSS) + 0.01 * seed
                    settings = {"dataset": "cifar10", "ratio": 10.0, "label_noise": "uniform:0.4"}
                    settings |= {"n_max": n_max, "loss": loss, "seed": seed, "held_out": 0.0}
                    result = {"recalls": [recall, recall], "memorised": memorised + 0.01 * seed}
                    line = {"settings": settings, "recipe": {"epochs": 30}, "result": result}
                    file.write(json.dumps(line) + "\n")
    return path


def test_pairs_are_of_one_seed(lines):
    pairs = memorisation.pairs_of([lines])
    assert [cell[3] for cell in pairs] == [400, 5000]
    few, many = pairs.values()
    np.testing.assert_allclose(few, [(20, -10), (21, -10)])
    np.testing.assert_allclose(many, [(90, 10), (91, 10)])


def test_correlation_and_threshold(lines, capsys, monkeypatch):
    pairs = memorisation.pairs_of([lines])
    value, low, high = memorisation.correlation(pairs)
    assert value == pytest.approx(0.894, abs=1e-3)  # With ties, (1 + 1) / sqrt(5).
    assert low <= value <= high
    assert memorisation.threshold(pairs) == pytest.approx((21 + 90) / 2)
    memorisation.report(pairs, [(90, 0.1), (90, -0.1), (10, 0.1)])
    printed = capsys.readouterr().out
    assert (
        "400 images, 30 epochs, 40% uniform (of the rule) | 2 | 20 | -10.0 ± 0.0 | loss | 2 |"
        in printed
    )
    assert "right for 2 of 2 trainings" in printed
    assert "right for 1 of 3, where to expect a gain of all is right for 2." in printed
    monkeypatch.setattr(memorisation, "RULE", 95)
    memorisation.report(pairs, [])
    assert "right for 0 of 2 trainings" in capsys.readouterr().out


def test_tables(tmp_path):
    path = tmp_path / "tables.jsonl"
    with path.open("w") as file:
        for method, score in ((memorisation.BASE, 0.6), (memorisation.LOSS, 0.7)):
            scores = {"balanced_accuracy": score, "memorised": score - 0.2}
            run = {"table": "glass", "noise": 0.4, "method": method, "scores": scores}
            file.write(json.dumps(run) + "\n")
    ((memorised, gain),) = memorisation.pairs_of_tables(path)
    assert (memorised, gain) == (pytest.approx(40), pytest.approx(0.1))
