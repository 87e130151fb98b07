"""The benchmark that chooses q by an estimated rate of wrong labels."""

import importlib.util
import json

import accuracy
import keras
import noise_rate
import numpy as np
import pytest


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


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="`accuracy` needs another")
def test_networks_have_not_seen_what_they_predict(rng, monkeypatch):
    seen, predicted = [], []

    def fit(model, optimizer, loss, train, *arguments):
        seen.append({image.tobytes() for image in train[0]})
        return real_fit(model, optimizer, loss, train, *arguments)

    def predict(model, x):
        predicted.append({image.tobytes() for image in x})
        return real_predict(model, x)

    real_fit, real_predict = accuracy.fit, accuracy.predict
    monkeypatch.setattr(accuracy, "fit", fit)
    monkeypatch.setattr(accuracy, "predict", predict)
    labels = np.arange(64) % 2
    x = rng.integers(0, 128, (64, 8, 8, 1)) + 127 * labels[:, None, None, None]
    recipe = accuracy.PROTOCOLS["quick"]._replace(epochs=10)
    p = noise_rate.by_networks(x.astype("uint8"), labels, 0, recipe)
    assert [len(rows) for rows in seen + predicted] == 4 * [32]
    assert predicted == seen[::-1]
    assert not seen[0] & seen[1]
    np.testing.assert_allclose(p.sum(axis=-1), 1)
    assert (p.argmax(axis=-1) == labels).all()


def test_rule_by_hand(tmp_path, monkeypatch, capsys):
    of_images = {
        ("digits", 10.0, 0.0, 0): -2.0,
        ("digits", 10.0, 0.4, 0): 3.0,
        ("digits", 10.0, 0.4, 4): 5.0,
        ("cifar10", 10.0, 0.4, 0): -1.0,
    }
    of_tables = {("ecoli1", 0.2): 2.0, ("ecoli2", 0.2): 4.0, ("pima", 0.2): -1.0}
    monkeypatch.setattr(noise_rate, "gains_of_images", lambda: of_images)
    monkeypatch.setattr(noise_rate, "gains_of_tables", lambda: of_tables)
    monkeypatch.setattr(noise_rate, "RULE", 20)
    lines = [
        {"data": data, "ratio": 10.0, "rate": rate, "seed": seed, "estimated": found}
        for (data, _, rate, seed), found in zip(of_images, (0.1, 0.3, 0.1, 0.5), strict=True)
    ]
    lines += [
        {"data": "tables", "table": table, "rate": 0.2, "estimated": found}
        for table, found in (("ecoli1", 0.3), ("ecoli2", 0.1), ("pima", 0.1))
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({**line, "true": 0.2}) + "\n" for line in lines))
    noise_rate.report([path])
    printed = capsys.readouterr().out
    assert "The rule that digits at ratio 10 give: 20%." in printed
    assert printed.splitlines()[4:] == [
        "| digits, ratio 10 (of the rule) | 0% | 10% | 0% | +0.0 | -2.0 | 1 of 1 |",
        "| digits, ratio 10 (of the rule) | 40% | 30% | 100% | +3.0 | +3.0 | 1 of 1 |",
        "| digits, ratio 10 | 40% | 10% | 0% | +0.0 | +5.0 | 0 of 1 |",  # Another seed.
        "| cifar10, ratio 10 | 40% | 50% | 100% | -1.0 | -1.0 | 0 of 1 |",
        # GLA is taken for half of ecoli and not for pima.
        "| KEEL's tables | 20% | 15% | 25% | +0.5 ± 0.5 | +1.0 ± 2.0 | 2 of 3 |",
    ]


def test_estimate_without_trainings_is_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"data": "tables", "table": "none", "rate": 0.2, "estimated": 1, "true": 1}')
    with pytest.raises(ValueError, match=r"No trainings of logit_adjusted and gla_q0\.7_tau1"):
        noise_rate.report([path])


def test_resumes(tmp_path, monkeypatch, capsys):
    calls = []

    def estimated_rate(labels, p):
        calls.append(p.shape)
        return 0.25

    monkeypatch.setattr(noise_rate, "estimated_rate", estimated_rate)
    monkeypatch.setattr(noise_rate, "IMAGES", (("digits", 10.0, (0.0, 0.4), range(2)),))
    monkeypatch.setattr(noise_rate, "report", lambda paths: print(f"report of {paths}"))
    rows = [f"{i}, {'a' if i < 60 else 'b'}" for i in range(90)]
    (tmp_path / "pima.dat").write_text("\n".join(rows))
    (tmp_path / "glass1.dat").write_text("\n".join(rows))  # Left for tuning.
    output = tmp_path / "lines.jsonl"
    arguments = ["--data", str(tmp_path), "--output", str(output)]
    noise_rate.main(arguments)
    assert len(calls) == 4 + 2 * len(noise_rate.RATES)
    assert calls[0][1] == 10
    assert calls[-1] == (45, 2)
    lines = output.read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["table"] == "pima"
    assert last["true"] == pytest.approx(0.4)
    assert last["estimated"] == 0.25
    output.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    calls.clear()
    noise_rate.main(arguments)
    assert len(calls) == 2
    assert f"report of {[output]}" in capsys.readouterr().out
