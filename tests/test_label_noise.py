"""What memorised labels and estimated rates of wrong labels have to do with q."""

import importlib.util

import keras
import numpy as np
import pytest

from benchmarks import reporting, stats, training
from benchmarks.questions import memorisation, noise_rate


def runs_of_two_cells():
    """Two cells of two seeds: in one the base memorises much and loses, in the other little."""
    for n_max, memorised, gain in ((400, 0.2, -0.1), (5000, 0.9, 0.1)):
        for seed in (0, 1):
            for loss in (memorisation.BASE, memorisation.LOSS, "ce"):
                recall = 0.5 + gain * (loss == memorisation.LOSS) + 0.01 * seed
                settings = {"dataset": "cifar10", "ratio": 10.0, "label_noise": "uniform:0.4"}
                settings |= {"n_max": n_max, "loss": loss, "seed": seed, "held_out": 0.0}
                result = {"recalls": [recall, recall], "memorised": memorised + 0.01 * seed}
                yield {"settings": settings | {"epochs": 30}, "result": result}


def run_of_table(**scores):
    settings = {"table": "pima", "noise": 0.4, "repetitions": 5}
    return {"settings": settings, "result": scores}


def test_pairs_are_of_one_seed():
    pairs = memorisation.pairs_of(runs_of_two_cells())
    assert [cell[3] for cell in pairs] == [400, 5000]
    few, many = pairs.values()
    np.testing.assert_allclose(few, [(20, -10), (21, -10)])
    np.testing.assert_allclose(many, [(90, 10), (91, 10)])
    value, low, high = memorisation.correlation(pairs)
    assert value == pytest.approx(0.894, abs=1e-3)  # With ties, (1 + 1) / sqrt(5).
    assert low <= value <= high
    assert memorisation.threshold(pairs) == pytest.approx((21 + 90) / 2)


def test_report_of_what_is_memorised():
    base, loss = {"balanced_accuracy": 0.6, "memorised": 0.4}, {"balanced_accuracy": 0.7}
    of_table = run_of_table(**{memorisation.BASE: base, memorisation.LOSS: loss})
    ((memorised, gain),) = memorisation.pairs_of_tables([of_table])
    assert (memorised, gain) == (pytest.approx(40), pytest.approx(0.1))
    printed = memorisation.report([*runs_of_two_cells(), of_table])
    cell = "400 images, 30 epochs, 40% uniform (of the rule) | 2 | 20 | -10.0 ± 0.0 | loss | 2 |"
    assert cell in printed
    assert "the rule is right for 2 of\n2 trainings" in printed
    assert "it is right for 0 of 1," in printed


def test_rules_are_those_that_their_cells_give():
    runs = reporting.runs_of("memorisation")
    assert round(memorisation.made_of(memorisation.pairs_of(runs))) == memorisation.RULE
    groups = noise_rate.grouped(reporting.runs_of("noise_rate"))
    assert round(noise_rate.made_of(groups)) == noise_rate.RULE


def test_missing_package_says_what_to_install():
    if importlib.util.find_spec("cleanlab"):
        pytest.skip("the package is installed")
    with pytest.raises(ImportError, match=r"pip install --no-deps cleanlab==2\.9\.0"):
        noise_rate.estimated_rate(np.repeat([0, 1], 20), np.full((40, 2), 0.5))


def test_estimate_of_separable_classes(rng):
    pytest.importorskip("cleanlab")
    y = np.repeat([0, 1, 2], [300, 100, 50])
    x = rng.normal(size=(450, 3)) + 6 * np.eye(3)[y]
    assert noise_rate.estimated_rate(y, noise_rate.by_regressions(x, y)) < 0.01
    noisy = np.where(rng.random(450) < 0.2, (y + 1) % 3, y)
    found = noise_rate.estimated_rate(noisy, noise_rate.by_regressions(x, noisy))
    assert found == pytest.approx((noisy != y).mean(), abs=0.03)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="trainings need another")
def test_networks_have_not_seen_what_they_predict(rng, monkeypatch):
    seen, predicted = [], []

    def fit(model, optimizer, loss, train, *arguments):
        seen.append({image.tobytes() for image in train[0]})
        return real_fit(model, optimizer, loss, train, *arguments)

    def predict(model, x):
        predicted.append({image.tobytes() for image in x})
        return real_predict(model, x)

    real_fit, real_predict = training.fit, training.predict
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "predict", predict)
    labels = np.arange(64) % 2
    x = rng.integers(0, 128, (64, 8, 8, 1)) + 127 * labels[:, None, None, None]
    recipe = training.DIGITS._replace(epochs=10)
    p = noise_rate.by_networks(x.astype("uint8"), labels, 0, recipe)
    assert [len(rows) for rows in seen + predicted] == 4 * [32]
    assert predicted == seen[::-1]
    assert not seen[0] & seen[1]
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    assert (p.argmax(axis=-1) == labels).all()


def test_rule_of_estimates_by_hand(monkeypatch):
    of_images = {
        ("digits", 10.0, 0.0, 0): -2.0,
        ("digits", 10.0, 0.4, 0): 3.0,
        ("digits", 10.0, 0.4, 4): 5.0,
        ("cifar10", 10.0, 0.4, 0): -1.0,
    }
    of_tables = {("ecoli1", 0.2): 2.0, ("ecoli2", 0.2): 4.0, ("pima", 0.2): -1.0}
    monkeypatch.setattr(noise_rate, "gains_of_images", lambda runs: of_images)
    monkeypatch.setattr(noise_rate, "gains_of_tables", lambda runs: of_tables)
    monkeypatch.setattr(noise_rate, "RULE", 20)
    settings = [
        {"data": data, "ratio": 10.0, "rate": rate, "seed": seed}
        for data, _, rate, seed in of_images
    ] + [{"data": "tables", "table": table, "rate": rate} for table, rate in of_tables]
    estimates = (0.1, 0.3, 0.1, 0.5, 0.3, 0.1, 0.1)
    runs = [
        {"settings": of, "result": {"estimated": estimate}}
        for of, estimate in zip(settings, estimates, strict=True)
    ]
    printed = noise_rate.report(runs)
    assert "The rule that digits at ratio 10 give: 20%." in printed
    assert printed.splitlines()[4:] == [
        "| digits, ratio 10 (of the rule) | 0% | 10% | 0% | +0.0 | -2.0 | 1 of 1 |",
        "| digits, ratio 10 (of the rule) | 40% | 30% | 100% | +3.0 | +3.0 | 1 of 1 |",
        "| digits, ratio 10 | 40% | 10% | 0% | +0.0 | +5.0 | 0 of 1 |",  # Another seed.
        "| cifar10, ratio 10 | 40% | 50% | 100% | -1.0 | -1.0 | 0 of 1 |",
        # GLA is taken for half of ecoli and not for pima.
        "| KEEL's tables | 20% | 15% | 25% | +0.5 ± 0.5 | +1.0 ± 2.0 | 2 of 3 |",
    ]
    runs[-1]["settings"]["table"] = "none"
    with pytest.raises(ValueError, match=r"No trainings of logit_adjusted and gla_q0\.7_tau1"):
        noise_rate.report(runs)


def test_means_with_errors():
    assert stats.mean_and_error([70, 80]) == "75.0 ± 5.0"
    assert stats.mean_and_error([-1.04], sign="+") == "-1.0"
    assert stats.mean_and_error([]) == ""
    assert stats.difference({0: 1.0, 1: 5.0, 2: 9.0}, {1: 2.0, 2: 4.0, 3: 0}) == "+4.0 ± 1.0"
