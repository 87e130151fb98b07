"""The accuracy benchmark: the losses of other papers, the recipe, resuming, the report."""

import json
import pathlib

import accuracy
import accuracy_report
import baselines
import keras
import numpy as np
import oracle
import pytest
from scipy import optimize

from keras_balanced import GCALoss, GLALoss

COUNTS = np.array([400, 90, 25, 10])


# The formulas of the papers, of all classes at once: (B, K) losses from (B, K) predictions.
def ldam(z, counts, weights=1.0):
    """Cao et al., equations 12 and 13, on logits of scale 30."""
    n = np.asarray(counts, "float64")
    delta = n**-0.25
    delta = 0.5 * delta / delta.max()
    losses = []
    for y in range(len(n)):
        true = 30 * (z[:, y] - delta[y])
        others = np.delete(30 * z, y, axis=1)
        losses.append(-np.log(np.exp(true) / (np.exp(true) + np.exp(others).sum(axis=1))))
    return np.stack(losses, axis=-1) * weights


def vs(z, counts, gamma, tau):
    """Kini et al., equation 3."""
    n = np.asarray(counts, "float64")
    delta, iota = (n / n.max()) ** gamma, tau * np.log(n / n.sum())
    losses = []
    for y in range(len(n)):
        others = [k for k in range(len(n)) if k != y]
        powers = np.exp(iota[others] - iota[y]) * np.exp(
            delta[others] * z[:, others] - delta[y] * z[:, [y]]
        )
        losses.append(np.log(1 + powers.sum(axis=1)))
    return np.stack(losses, axis=-1)


def focal(z, gamma):
    p = np.exp(oracle.log_softmax(z))
    return -((1 - p) ** gamma) * np.log(p)


def margin_gla(z, counts, q, consistent):
    """The formula in the docstring, for weights equal to the margins or to 1."""
    p = oracle.normalize(counts)
    rho = p ** (-1 / 3)
    rho = rho / rho.mean()
    log_s = [oracle.log_softmax(z / rho[y] + np.log(p) / (1 - q))[:, y] for y in range(len(p))]
    return oracle.psi(np.stack(log_s, axis=-1), q) * (rho if consistent else 1.0)


WEIGHTS = baselines.effective_weights(COUNTS, beta=0.99)
LOSSES = {
    "ldam": (baselines.LDAMLoss(COUNTS), lambda z: ldam(z, COUNTS), 0.3),
    "ldam, weighted": (
        baselines.LDAMLoss(COUNTS, WEIGHTS),
        lambda z: ldam(z, COUNTS, WEIGHTS),
        0.3,
    ),
    "vs": (baselines.VSLoss(COUNTS, 0.15, 1.25), lambda z: vs(z, COUNTS, 0.15, 1.25), 3.0),
    "focal": (baselines.FocalLoss(COUNTS), lambda z: focal(z, 2.0), 2.0),
    "margin gla": (
        baselines.margin_gla(COUNTS, consistent=True),
        lambda z: margin_gla(z, COUNTS, 0.0, True),
        3.0,
    ),
    "margin gla, q": (
        baselines.margin_gla(COUNTS, q=0.1),
        lambda z: margin_gla(z, COUNTS, 0.1, False),
        3.0,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_baseline_is_its_papers_formula(name, rng):
    loss, formula, scale = LOSSES[name]
    z = rng.normal(size=(12, 4)) * scale
    y = np.arange(12) % 4
    expected = formula(z)[np.arange(12), y].mean()
    np.testing.assert_allclose(float(loss(y, z.astype("float32"))), expected, rtol=1e-5)
    if name.startswith("margin"):  # Soft targets go another way through our code.
        loss_of_one_hot = float(loss(np.eye(4)[y], z.astype("float32")))
        np.testing.assert_allclose(loss_of_one_hot, expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_posterior_of_a_minimiser_is_the_truth(name, rng):
    loss, formula, _ = LOSSES[name]
    eta = rng.dirichlet(3 * np.ones(4)) + 0.05
    eta /= eta.sum()
    found = optimize.minimize(
        lambda z: (formula(z[None]) @ eta)[0], np.zeros(4), method="BFGS", options={"gtol": 1e-9}
    )
    target = np.array([0.4, 0.3, 0.2, 0.1])
    posterior = np.asarray(loss.posterior(found.x[None].astype("float32"), priors=target))[0]
    expected = oracle.normalize(eta * target / COUNTS)
    np.testing.assert_allclose(posterior, expected, atol=2e-4)


def test_baselines_meet_ours_where_they_should(rng):
    z = rng.normal(size=(8, 4)).astype("float32")
    y = np.arange(8) % 4
    np.testing.assert_allclose(
        float(baselines.VSLoss(COUNTS, gamma=0, tau=1)(y, z)), float(GLALoss(COUNTS)(y, z)), 1e-6
    )
    np.testing.assert_allclose(
        float(baselines.FocalLoss(COUNTS, gamma=0.0)(y, z)),
        float(GLALoss(COUNTS, tau=0)(y, z)),
        1e-5,
    )
    weighted = GCALoss(COUNTS, margins=None)
    effective = baselines.effective_number(COUNTS, beta=1 - 1e-9)
    np.testing.assert_allclose(float(effective(y, z)), float(weighted(y, z)), 1e-5)
    plain = baselines.effective_number(COUNTS, beta=0.0)
    np.testing.assert_allclose(float(plain(y, z)), float(GLALoss(COUNTS, tau=0)(y, z)), 1e-6)


def test_margins_of_another_scale(rng):
    z = rng.normal(size=(8, 4)).astype("float32")
    y = np.arange(8) % 4
    for scale in accuracy.SCALES:
        loss = accuracy.METHODS[f"gca_scale{scale}"].loss(COUNTS)
        np.testing.assert_allclose(loss.surrogate.margins.mean(), scale)
        gca = accuracy.METHODS["gca"].loss(COUNTS)
        np.testing.assert_allclose(float(loss(y, z * np.float32(scale))), float(gca(y, z)), 1e-5)
    assert accuracy.METHODS["gca_scale3_rate_times"].rate == 3
    assert accuracy.METHODS["gca_scale0.1_rate_over"].rate == 10


def test_effective_number_is_cuis():
    weights = baselines.effective_weights(COUNTS, beta=0.99)
    expected = 0.01 / (1 - 0.99**COUNTS)
    np.testing.assert_allclose(weights / weights[0], expected / expected[0])
    np.testing.assert_allclose(np.average(weights, weights=COUNTS), 1.0)
    surrogate = baselines.effective_number(COUNTS, beta=0.99).surrogate
    np.testing.assert_allclose(surrogate.weights, weights)


def test_cosine_head(rng):
    head = baselines.CosineHead(3)
    x = rng.normal(size=(5, 6)).astype("float32")
    y = keras.ops.convert_to_numpy(head(x))
    kernel = keras.ops.convert_to_numpy(head.kernel)
    expected = x @ kernel / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", accuracy.METHODS)
def test_every_method_gives_losses_and_a_posterior(name, rng):
    method = accuracy.METHODS[name]
    z = rng.normal(size=(8, 4)).astype("float32") * (0.1 if method.cosine_head else 1.0)
    uniform = np.full(4, 0.25)
    for loss_of in (method.loss, method.then):
        if loss_of is not None:
            loss = loss_of(COUNTS)
            assert np.isfinite(float(loss(np.arange(8) % 4, z)))
            posterior = keras.ops.convert_to_numpy(loss.posterior(z, priors=uniform))
            np.testing.assert_allclose(posterior.sum(axis=-1), 1.0, rtol=1e-5)


def test_learning_rate_of_the_protocols():
    paper = accuracy.PROTOCOLS["paper"]
    rates = [accuracy.learning_rate(epoch, paper) for epoch in range(200)]
    np.testing.assert_allclose(rates[:5], [0.02, 0.04, 0.06, 0.08, 0.1])
    np.testing.assert_allclose(rates[5:160], 0.1)
    np.testing.assert_allclose(rates[160:180], 1e-3)
    np.testing.assert_allclose(rates[180:], 1e-5)
    cpu = accuracy.PROTOCOLS["cpu"]
    rates = [accuracy.learning_rate(epoch, cpu) for epoch in range(cpu.epochs)]
    assert rates[cpu.warmup_epochs] == max(rates) == 0.1
    assert (np.diff(rates[cpu.warmup_epochs :]) < 0).all()
    assert 0 < rates[-1] < 1e-3
    for epochs in (1, 2):
        assert 0 < accuracy.learning_rate(0, cpu._replace(epochs=epochs)) <= 0.1


def test_shrink_averages_squares():
    images = np.arange(2 * 4 * 4 * 1, dtype="uint8").reshape(2, 4, 4, 1)
    small = accuracy.shrink(images, 2)
    assert small.dtype == "uint8"
    assert small[0, 0, 0, 0] == np.round(np.mean([0, 1, 4, 5]))
    assert small[1, 1, 1, 0] == np.round(np.mean([26, 27, 30, 31]))
    assert accuracy.shrink(images, 4) is images


def test_oversampling_draws_the_classes_as_often():
    y = np.repeat([0, 1], [3900, 100])
    batches = accuracy.BalancedBatches(np.zeros((4000, 1)), y, 100, augment=False, seed=0)
    for _ in range(2):
        drawn = np.concatenate([batches[i][1] for i in range(len(batches))])
        assert len(drawn) == 4000
        assert abs(drawn.mean() - 0.5) < 0.04
        before = batches.order
        batches.on_epoch_end()
        assert (batches.order != before).any()


def test_batches_for_ever_are_whole_epochs():
    x = np.arange(10)
    batches = accuracy.long_tailed_cifar.Batches(x, x, 4, augment=False, seed=0)
    stream = accuracy.forever(batches)
    epochs = [np.concatenate([next(stream)[0] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert (epochs[0] != epochs[1]).any()
    again = iter(accuracy.stream(accuracy.long_tailed_cifar.Batches(x, x, 4, False, seed=0)))
    streamed = [np.concatenate([np.asarray(next(again)[0]) for _ in range(3)]) for _ in range(2)]
    np.testing.assert_array_equal(streamed, epochs)


@pytest.fixture
def trained(monkeypatch):
    """Returns a function: runs a method for 5 epochs, returns its result and phases of `fit`."""
    fit, stream, phases = keras.Sequential.fit, accuracy.stream, []

    def recording_stream(batches):
        phases.append({"batches": type(batches)})
        return stream(batches)

    def recording_fit(model, *args, **kwargs):
        history = fit(model, *args, **kwargs)
        rates = history.history["learning_rate"]
        epochs = (kwargs["initial_epoch"], kwargs["epochs"])
        phases[-1] |= {"model": model, "loss": model.loss, "epochs": epochs, "rates": rates}
        return history

    monkeypatch.setattr(accuracy, "stream", recording_stream)
    monkeypatch.setattr(keras.Sequential, "fit", recording_fit)

    def run(name, ratio=50.0, l2=3e-4):
        phases.clear()
        recipe = accuracy.PROTOCOLS["quick"]._replace(epochs=5, warmup_epochs=2)
        settings = {"seed": 0, "dataset": "digits", "profile": "exponential", "ratio": ratio}
        line = accuracy.run({**settings, "loss": name, "l2": l2, "held_out": 0.0}, recipe)
        return line["result"], phases

    return run


def test_ldam_drw_reweights_in_the_last_fifth(trained):
    result, (first, second) = trained("ldam_drw")
    assert (first["epochs"], second["epochs"]) == ((0, 4), (4, 5))
    for phase in (first, second):
        assert isinstance(phase["loss"], baselines.LDAMLoss)
        np.testing.assert_array_equal(phase["loss"].counts, result["class_counts"])
    np.testing.assert_array_equal(first["loss"].surrogate.weights, 1.0)
    expected = baselines.effective_weights(result["class_counts"])
    np.testing.assert_allclose(second["loss"].surrogate.weights, expected)
    # One training: the second phase goes on with the same weights, down the same schedule.
    assert second["model"] is first["model"]
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(3) / 3))
    np.testing.assert_allclose(first["rates"] + second["rates"], [0.05, 0.1, *cosine], rtol=1e-6)
    (head,) = [
        layer
        for layer in first["model"].layers[-1].layers
        if isinstance(layer, baselines.CosineHead)
    ]
    assert head.kernel.regularizer.l2 == pytest.approx(3e-4)


def test_a_method_sets_loss_batches_and_l2(trained):
    _, (phase,) = trained("gca_consistent_q0.2")
    assert phase["epochs"] == (0, 5)
    assert phase["batches"] is accuracy.long_tailed_cifar.Batches
    assert isinstance(phase["loss"], GCALoss)
    assert (phase["loss"].q, phase["loss"].consistent) == (0.2, True)
    kernels = [v for v in phase["model"].trainable_variables if v.name == "kernel"]
    assert len(kernels) == 8
    assert {round(float(kernel.regularizer.l2), 8) for kernel in kernels} == {3e-4}
    _, (phase,) = trained("oversampled")
    assert phase["batches"] is accuracy.BalancedBatches
    np.testing.assert_array_equal(phase["loss"].surrogate.shift, 0.0)


@pytest.mark.slow
def test_a_method_scales_the_learning_rate(trained):
    _, (phase,) = trained("gca_scale3_rate_times")
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(3) / 3))
    np.testing.assert_allclose(phase["rates"], 3 * np.array([0.05, 0.1, *cosine]), rtol=1e-6)


def test_vs_is_set_as_in_its_paper():
    for num_classes, gamma, tau in ((10, 0.15, 1.25), (100, 0.05, 0.75)):
        counts = np.arange(1, num_classes + 1)
        loss = accuracy.METHODS["vs"].loss(counts)
        np.testing.assert_allclose(loss.scale, (counts / num_classes) ** gamma)
        np.testing.assert_allclose(loss.surrogate.shift, tau * np.log(counts / counts.sum()))


@pytest.mark.slow
def test_one_failed_training_loses_no_other(tmp_path, capsys, monkeypatch):
    """Nor do more trainings than a process does."""
    monkeypatch.setattr(accuracy, "TRAININGS_OF_A_PROCESS", 2)
    recipe = accuracy.PROTOCOLS["quick"]._replace(epochs=1)
    bad, *good = (
        {"seed": 0, "dataset": "digits", "profile": "step", "ratio": ratio}
        | {"loss": "ce", "l2": 5e-4, "held_out": 0.0}
        for ratio in (1e6, 50.0, 40.0)
    )
    output = tmp_path / "runs.jsonl"
    with pytest.raises(RuntimeError, match="1 of 3 trainings failed; a rerun tries them again"):
        accuracy.run_all([bad, *good], recipe, {}, output, workers=1)
    assert [json.loads(line)["settings"] for line in output.read_text().splitlines()] == good
    printed = capsys.readouterr().out
    assert "1/3 failed" in printed
    assert "`imbalance_ratio` must be at most" in printed


def test_recalls_of_a_missing_class_are_unknown():
    scores = np.eye(3)[[0, 1, 1]]
    assert accuracy.recalls(np.array([0, 0, 1]), scores) == [0.5, 1.0, None]
    scores[0] = np.nan  # What has diverged is wrong, class 0 too.
    assert accuracy.recalls(np.array([0, 0, 1]), scores) == [0.0, 1.0, None]


def test_offset_of_one_is_the_posterior_of_cross_entropy(rng):
    counts = np.array([70, 20, 10])
    y, logits = rng.integers(0, 3, 200), rng.normal(size=(200, 3))
    of = accuracy.of_offsets(y, logits, counts)
    assert list(of) == sorted(of)
    assert of[0.0] == pytest.approx(np.mean(accuracy.recalls(y, logits)), abs=1e-6)
    by_posterior = accuracy.posterior(accuracy.METHODS["ce"].loss(counts), logits)
    assert of[1.0] == pytest.approx(np.mean(accuracy.recalls(y, by_posterior)), abs=1e-6)
    assert of[1.0] != of[0.0]


def test_l2_is_chosen_on_the_hold_out_of_the_first_seed():
    recipe = accuracy.PROTOCOLS["paper"]._replace(
        losses=("ce", "gca"), seeds=(3, 4), datasets=("cifar10",)
    )
    results = {}
    for settings in accuracy.selections(recipe):
        assert settings["seed"] == 3
        assert settings["held_out"] == 0.2
        good = (settings["loss"], settings["l2"]) in (("ce", 1e-4), ("gca", 5e-4))
        result = {"recalls": [0.6 if good else 0.4, None], "recalls_of_posterior": [0.5, None]}
        results[accuracy.key_of(settings, recipe)] = result
    assert len(results) == 4
    chosen = {(s["loss"], s["seed"]): s["l2"] for s in accuracy.finals(recipe, results)}
    assert chosen == {("ce", 3): 1e-4, ("ce", 4): 1e-4, ("gca", 3): 5e-4, ("gca", 4): 5e-4}
    # Nothing to choose from: nothing is held out.
    one = recipe._replace(l2=(1e-4,))
    assert accuracy.selections(one) == []
    assert {s["held_out"] for s in accuracy.finals(one, {})} == {0.0}


def test_the_hold_out_leaves_the_test_set_alone():
    held_out = accuracy.load("digits", 10, "exponential", 0, 0.2, 8)
    final = accuracy.load("digits", 10, "exponential", 0, 0.0, 8)
    assert len(held_out.train[1]) + len(held_out.evaluation[1]) == len(final.train[1])
    tail = {image.tobytes() for image in final.train[0]}
    assert {image.tobytes() for image in held_out.evaluation[0]} <= tail
    assert final.evaluation is final.test
    assert len(final.test[1]) == 500
    np.testing.assert_array_equal(held_out.test[0], final.test[0])


@pytest.mark.parametrize(("kind", "rate"), [("uniform", 0.4), ("pair", 0.2)])
def test_noise_makes_labels_wrong(kind, rate):
    y = np.repeat(np.arange(5), 2000)
    noisy = accuracy.with_noise(y, f"{kind}:{rate}", seed=3)
    assert abs((noisy != y).mean() - rate) < 0.02
    by_class = np.array([np.bincount((noisy - y)[y == k] % 5, minlength=5) for k in range(5)])
    to_each = by_class[:, 1:] / 2000
    expected = rate / 4 if kind == "uniform" else np.array([rate, 0, 0, 0])
    np.testing.assert_allclose(to_each, np.broadcast_to(expected, (5, 4)), atol=0.04)
    np.testing.assert_array_equal(accuracy.with_noise(y, f"{kind}:{rate}", seed=3), noisy)
    assert (accuracy.with_noise(y, f"{kind}:{rate}", seed=4) != noisy).any()


def test_noise_in_one_half_of_the_classes():
    y = np.repeat([3, 1, 4, 0, 2], [4000, 2000, 1000, 2000, 3000])
    head, tail = [2, 3], [0, 1, 4]
    for kind, source, target in (("to_tail", head, tail), ("to_head", tail, head)):
        noisy = accuracy.with_noise(y, f"{kind}:0.3", seed=3)
        wrong = noisy != y
        assert not wrong[~np.isin(y, source)].any()
        assert abs(wrong[np.isin(y, source)].mean() - 0.3) < 0.02
        labels, counts = np.unique(noisy[wrong], return_counts=True)
        assert labels.tolist() == target
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(target), atol=0.04)


def test_noise_leaves_every_class_a_label():
    y = np.array([0] * 20 + [1])
    for seed in range(20):  # The one label of class 1 is wrong in nine of ten draws.
        assert np.bincount(accuracy.with_noise(y, "pair:0.9", seed)).all()


def test_halves_of_a_part_are_those_of_all(rng):
    """Labels to calibrate on, among which a class of the tail may be missing or frequent."""
    y = np.array([2] * 500 + [3] * 10)
    noisy = accuracy.draw_noise(y, "to_head:0.5", np.array([900, 800, 20, 10]), rng)
    assert set(noisy[noisy != y]) == {0, 1}
    assert abs((noisy[:500] != 2).mean() - 0.5) < 0.1
    assert accuracy.draw_noise(np.array([1]), "pair:0.999", np.ones(2), rng).tolist() == [0]


@pytest.mark.parametrize("noise", [None, "to_tail:0.5"])
def test_probabilities_are_calibrated_on_labels_as_wrong(noise, monkeypatch):
    def score(loss, logits, y, counts, true_counts, noisy, seed):
        labels = np.repeat([0, 1, 2], 1000)
        return counts.tolist(), true_counts.tolist(), (noisy(labels) != labels).mean(), seed

    monkeypatch.setattr(accuracy.probabilities, "score", score)
    settings = {"held_out": 0.0, "seed": 3} | ({} if noise is None else {"label_noise": noise})
    counts, true = np.array([5, 3, 2]), np.array([0] * 7 + [1] * 2 + [2])
    y, logits = np.array([0, 0, 1, 1, 2, 2]), np.zeros((6, 3))
    *of_classes, wrong, seed = accuracy.probabilities_of(None, logits, y, counts, true, settings)
    assert of_classes == [[5, 3, 2], [7, 2, 1]]
    assert seed == 3
    # Half of class 0, which alone is the head.
    assert wrong == (0.0 if noise is None else pytest.approx(1 / 6, abs=0.03))


def test_probabilities_need_two_images_of_each_class():
    settings = {"held_out": 0.0, "seed": 0}
    loss, counts, true = accuracy.gla()([4, 2]), np.array([4, 2]), np.array([0] * 4 + [1] * 2)

    def found(y, logits, **changed):
        arguments = (loss, logits, np.array(y), counts, true, settings | changed)
        return accuracy.probabilities_of(*arguments)

    logits = np.array([[2, 0], [1, 0], [0, 2], [1, 0]], "float32")
    assert found([0, 0, 1, 1], logits)["temperature"] > 0
    assert found([0, 0, 0, 1], logits) is None
    assert found([0, 0, 0, 0], logits) is None
    assert found([0, 0, 1, 1], logits, held_out=0.2) is None
    logits[0, 0] = np.inf
    assert found([0, 0, 1, 1], logits) is None


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_noise_is_in_the_training_part_alone(held_out):
    arguments = ("digits", 10, "exponential", 0, held_out, 8)
    clean = accuracy.load(*arguments)
    noisy = accuracy.load(*arguments, "uniform:0.4")
    (x, y), (x_test, y_test), true = noisy.train, noisy.evaluation, noisy.true
    assert 0.3 < (y != true).mean() < 0.5
    truth = dict(zip([image.tobytes() for image in clean.train[0]], clean.true, strict=True))
    if held_out:  # The split is of the noisy labels, and both parts have them.
        np.testing.assert_allclose(np.bincount(y_test), np.bincount(y) / 4, atol=1)
        truth |= {image.tobytes(): k for image, k in zip(*clean.evaluation, strict=True)}
        truth_of_test = np.array([truth[image.tobytes()] for image in x_test])
        assert 0.3 < (y_test != truth_of_test).mean() < 0.5
    else:
        np.testing.assert_array_equal(y_test, clean.evaluation[1])
        np.testing.assert_array_equal(x, clean.train[0])
    np.testing.assert_array_equal([truth[image.tobytes()] for image in x], true)


def test_fewer_images():
    _, y = accuracy.load("digits", 10, "exponential", 0, 0.0, 8, n_max=50).train
    assert np.bincount(y)[[0, 9]].tolist() == [50, 5]


def test_settings_that_are_not_asked_for_are_not_in_the_key():
    committed = pathlib.Path(accuracy.__file__).parent / "results" / "accuracy_digits.jsonl"
    lines = [json.loads(line) for line in committed.read_text().splitlines()]
    keys = {json.dumps([line["settings"], line["recipe"]], sort_keys=True) for line in lines}
    recipe = accuracy.parse_arguments(["--ratios", "50"]).recipe
    assert {accuracy.key_of(s, recipe) for s in accuracy.finals(recipe, {})} <= keys
    asked = ["--ratios", "50", "--label-noise", "none", "pair:0.20", "--n-max", "100"]
    recipe = accuracy.parse_arguments(asked).recipe
    noises = [settings.get("label_noise", "none") for settings in accuracy.finals(recipe, {})]
    assert set(noises) == {"none", "pair:0.2"}
    assert {settings["n_max"] for settings in accuracy.finals(recipe, {})} == {100}


@pytest.mark.slow
def test_a_training_on_noisy_labels(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    arguments = ["--label-noise", "none", "uniform:0.4", "--ratios", "10", "--seeds", "0"]
    arguments += ["--losses", "gla_q0.7_tau1", "--epochs", "2", "--workers", "1"]
    accuracy.main([*arguments, "--output", str(output)])
    clean, noisy = (json.loads(line) for line in output.read_text().splitlines())
    assert "memorised" not in clean["result"]
    for of_run in (clean, noisy):
        before = of_run["result"]["probabilities"]["before"]
        assert list(before) == ["1.0", "0.5", "0.0", "-0.5", "-1.0"]
        assert 0 < before["0.0"]["known"]["calibration_error"] < 0.2
    assert 0 <= noisy["result"]["memorised"] <= 1
    _, y = accuracy.load("digits", 10, "exponential", 0, 0.0, 8, "uniform:0.4").train
    assert noisy["result"]["class_counts"] == np.bincount(y).tolist()
    assert clean["result"]["class_counts"] != noisy["result"]["class_counts"]
    printed = capsys.readouterr().out
    assert "### digits, exponential, ratio 10, 2 epochs, 40% wrong labels (uniform)\n" in printed
    assert "| train | memorised |" in printed


@pytest.mark.slow
def test_runs_resumes_and_reports(tmp_path, capsys):
    output = tmp_path / "new" / "runs.jsonl"
    arguments = ["--ratios", "50", "--epochs", "2", "--l2", "1e-4", "1e-3", "--workers", "1"]
    arguments += ["--output", str(output), "--pictures", str(tmp_path / "pictures")]
    accuracy.main([*arguments, "--losses", "logit_adjusted", "--seeds", "0"])
    runs = [json.loads(line) for line in output.read_text().splitlines()]
    assert [run["settings"]["held_out"] for run in runs] == [0.2, 0.2, 0.0]
    assert all(run["settings"]["ratio"] == 50 for run in runs)
    assert runs[-1]["recipe"]["epochs"] == 2
    assert runs[-1]["versions"]["keras"] == keras.__version__
    assert len(runs[-1]["result"]["recalls"]) == 10
    assert "| logit_adjusted |" in capsys.readouterr().out

    with output.open("a") as file:
        file.write('{"settings": {"lo')  # What a kill leaves.
    accuracy.main([*arguments, "--losses", "logit_adjusted", "--seeds", "0", "1"])
    lines = output.read_text().splitlines()
    assert len(lines) == 5
    last = json.loads(lines[-1])["settings"]
    assert last["seed"] == 1
    assert last["chosen"] == {"l2": [1e-4, 1e-3], "seed": 0}
    printed = capsys.readouterr().out
    assert "2 trainings done before, 0 to do" in printed
    assert "1 trainings done before, 1 to do" in printed
    pictures = list((tmp_path / "pictures").iterdir())
    assert len(pictures) == 2
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def line(loss, seed, recalls, posterior, held_out=0.0, l2=1e-4):
    settings = {"loss": loss, "seed": seed, "l2": l2, "held_out": held_out}
    settings |= {"dataset": "digits", "profile": "step", "ratio": 10.0}
    result = {"recalls": recalls, "recalls_of_posterior": posterior, "train_recalls": [1.0, 0.9]}
    result["seconds"] = 7
    return json.dumps({"settings": settings, "recipe": {"epochs": 7}, "result": result}) + "\n"


def test_report_by_hand(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    path.write_text(
        line("ce", 0, [0.8, 0.2], [0.7, 0.5])
        + line("ce", 1, [0.9, 0.2], [0.8, 0.5])
        + line("gca", 0, [0.7, 0.7], [0.7, 0.7])
        + line("gca", 1, [0.8, 0.8], [0.8, 0.8])
        + line("gca", 1, [0.0, None], [0.25, None], held_out=0.2)
    )
    accuracy_report.report([path])
    printed = capsys.readouterr().out
    assert "### digits, step, ratio 10, 7 epochs\n" in printed
    assert "ratio 10, 7 epochs, on 20% of the tail, held out" in printed
    printed, held_out = printed.split("held out\n")
    assert "| gca | 0.0001 | 1 | 0.0 | 25.0 | 0.0 | 95.0 |" in held_out
    assert printed.splitlines()[3:8] == [
        "| loss | digits, step, ratio 10, 7 epochs |",
        "|---|---|",
        "| ce | 52.5 ± 2.5 |",
        "| ce, by posterior | 62.5 ± 2.5 |",
        "| gca | 75.0 ± 5.0 |",
    ]
    assert "epochs 7;\n4 trainings of about 7 s each\n" in printed
    # 70 and 80 against 60 and 65.
    assert "| gca, by posterior - ce, by posterior | +12.5 ± 2.5 |\n\n" in printed
    _, printed = printed.split("### digits", maxsplit=1)
    rows = [row.split(" | ") for row in printed.splitlines() if row.startswith("| ")]
    assert rows[0][-3:] == [
        "logits - ce",
        "logits - ce, by posterior",
        "posterior - ce, by posterior |",
    ]
    # 70 and 80: mean 75, standard error 5; against 50 and 55: 20 and 25.
    assert rows[1] == [
        *("| gca", "0.0001", "2", "75.0 ± 5.0", "75.0 ± 5.0", "75.0", "95.0"),
        *("+22.5 ± 2.5", "+12.5 ± 2.5", "+12.5 ± 2.5 |"),
    ]
    assert rows[2][:6] == ["| ce", "0.0001", "2", "52.5 ± 2.5", "62.5 ± 2.5", "20.0"]
    assert rows[2][7:] == ["", "-10.0 ± 0.0", " |"]

    # Of another recipe, with a title of its own; and one whose L2 is not the only one.
    more = line("weighted", 1, [0.7, 0.7], [0.7, 0.7]) + line("weighted", 2, [0.1, 0.1], [0.1, 0.1])
    more += line("logit_adjusted", 1, [0.9, 0.6], [0.9, 0.6]).replace('"epochs": 7', '"epochs": 8')
    more += line("ce", 0, [0.8, 0.2], [0.7, 0.5], l2=1e-3)
    more += line("ce", 1, [0.6, 0.4], [0.6, 0.5]).replace('"epochs": 7', '"epochs": 8')
    path.write_text(path.read_text() + more)
    accuracy_report.report([path])
    printed = capsys.readouterr().out
    assert printed[printed.index("### Differences") :].splitlines()[3:8] == [
        "|---|---|---|",
        "| logit_adjusted - ce |  | +25.0 |",
        "| logit_adjusted - ce, by posterior |  | +20.0 |",
        "| gca - weighted | +10.0 |  |",
        "",
    ]


def test_the_report_names_another_dtype(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    of_float32 = line("ce", 0, [0.8, 0.2], [0.7, 0.5])
    of_half = of_float32.replace('"epochs": 7', '"epochs": 7, "dtype": "mixed_bfloat16"')
    path.write_text(of_float32 + of_half)
    accuracy_report.report([path])
    condition = "digits, step, ratio 10, 7 epochs"
    assert f"| loss | {condition} | {condition}, mixed_bfloat16 |\n" in capsys.readouterr().out


def test_the_report_chooses_on_the_hold_out(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    held_out = {"ce": (0.5, 0.9), "gca": (0.6, 0.8)}  # Of seeds 0 and 1.
    tested = {"ce": (0.6, 0.7), "gca": (0.7, 0.9)}
    path.write_text(
        "".join(
            line(loss, seed, [score] * 2, [score] * 2, part)
            for scores, part in ((held_out, 0.2), (tested, 0.0))
            for loss, of_seeds in scores.items()
            for seed, score in enumerate(of_seeds)
        )
        + line("weighted", 0, [1.0, 1.0], [1.0, 1.0])  # Not a candidate.
    )
    accuracy_report.report([path], candidates=("ce", "gca"))
    _, printed = capsys.readouterr().out.split("### Choices of the hold-outs\n\n")
    assert printed.splitlines()[2] == (
        "| digits, step, ratio 10, 7 epochs | gca, ce | 70.0 ± 0.0 | gca | 80.0 ± 10.0 "
        "| -10.0 ± 10.0 |"
    )
    accuracy_report.report([path])
    assert "Choices" not in capsys.readouterr().out


def test_a_hold_out_of_every_seed_to_choose_among_losses():
    recipe = accuracy.PROTOCOLS["quick"]
    first = accuracy.selections(recipe, among_losses=True)
    finals = [{**settings, "held_out": 0.2} for settings in accuracy.finals(recipe, {})]
    assert first == finals
    assert accuracy.selections(recipe) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["--held-out", "--l2", "0", "1e-4"], "`held_out` chooses among losses of one `l2`"),
        (["--epochs", "0"], "`epochs` and `workers` must be at least 1"),
        (["--workers", "0"], "`epochs` and `workers` must be at least 1"),
        (["--l2", "-1"], "`l2` must not be negative"),
        (["--ratios", "0.5"], "`imbalance_ratio` must be a finite number of at least 1"),
        (["--losses", "hinge"], "invalid choice: 'hinge'"),
        (
            ["--label-noise", "uniform:1"],
            "with a RATE in (0, 1) and a KIND of uniform, pair, to_tail, to_head. "
            "Received: uniform:1",
        ),
        (["--label-noise", "pairs:0.1"], "none or KIND:RATE"),
        (["--n-max", "40"], "`n_max` must be at least the imbalance ratio"),
        (["--data", "nowhere.npz"], "No such file or directory: 'nowhere.npz'"),
        (["--protocol", "cpu", "--datasets", "digits"], "shrink to 16 pixels a side"),
    ],
)
def test_bad_arguments_are_refused_before_anything_trains(argument, message, capsys):
    with pytest.raises(SystemExit):
        accuracy.parse_arguments(argument)
    assert message in capsys.readouterr().err


def test_images_of_a_file(tmp_path, rng):
    x, y = rng.integers(0, 256, (60, 8, 8, 1), "uint8"), np.repeat(np.arange(3), 20)[:, None]
    path = str(tmp_path / "mine.npz")
    np.savez(path, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    recipe = accuracy.parse_arguments(["--data", path]).recipe
    assert recipe.datasets == ("mine",)
    assert recipe.data == path
    assert "data" not in accuracy.recipe_of(recipe)
    train, test, *_ = accuracy.load("mine", 2, "exponential", 0, 0.0, 8, data=path)
    assert np.bincount(train[1]).tolist() == [20, 14, 10]
    np.testing.assert_array_equal(test[1], y[:5, 0])
    np.savez(path, x_train=x / 255, y_train=y, x_test=x, y_test=y)
    with pytest.raises(ValueError, match="must be uint8 of shape"):
        accuracy.read_npz(path)
    np.savez(path, x_train=x, y_train=y)
    with pytest.raises(ValueError, match="Received: no x_test"):
        accuracy.read_npz(path)


def test_the_report_takes_the_offset_of_the_hold_out(tmp_path, capsys):
    def with_offsets(score, part, offsets):
        run = json.loads(line("ce", 0, [score] * 2, [score] * 2, part))
        run["result"]["offsets"] = offsets
        return json.dumps(run) + "\n"

    path = tmp_path / "runs.jsonl"
    path.write_text(
        with_offsets(0.5, 0.2, {"0.0": 0.5, "0.5": 0.8, "1.0": 0.7})
        + with_offsets(0.6, 0.0, {"0.0": 0.6, "0.5": 0.65, "1.0": 0.9})
        + line("gca", 0, [0.5, 0.5], [0.5, 0.5])
    )
    accuracy_report.report([path])
    _, printed = capsys.readouterr().out.split("### Decisions\n\n")
    assert printed.splitlines()[2:4] == [
        "| digits, step, ratio 10, 7 epochs | ce | 60.0 | 60.0 | 65.0 | 0.5 |",
        "",
    ]


def test_offsets_in_hindsight_by_hand(tmp_path, capsys):
    def run(loss, seed, score, offsets=None, noise="uniform:0.4"):
        run = json.loads(line(loss, seed, [score] * 2, [score] * 2))
        run["settings"]["label_noise"] = noise
        run["result"] |= {"memorised": 0.5, "offsets": offsets or {"0.0": score}}
        return json.dumps(run) + "\n"

    path = tmp_path / "runs.jsonl"
    path.write_text(
        # The second is best on the mean, though for neither seed.
        run("logit_adjusted", 0, 0.5, {"0.0": 0.5, "0.5": 0.65, "1.0": 0.7})
        + run("logit_adjusted", 1, 0.7, {"0.0": 0.7, "0.5": 0.65, "1.0": 0.4})
        + run("gla_q0.9_tau1", 0, 0.75)
        + run("gla_q0.9_tau1", 1, 0.85)
        + run("gca", 0, 0.6)
        # Without q, or without GLA, there is nothing to tell.
        + run("logit_adjusted", 0, 0.5, noise="pair:0.4")
        + run("gla_q0.9_tau1", 0, 0.5, noise="pair:0.2")
    )
    accuracy_report.report([path])
    printed = capsys.readouterr().out.split("### Offsets in hindsight\n\n")[1]
    name = "digits, step, ratio 10, 7 epochs, 40% wrong labels (uniform)"
    assert printed.splitlines()[2:4] == [
        f"| {name} | 60.0 ± 10.0 | 65.0 ± 0.0 | 0.5 |  |  | +15.0 ± 5.0 |",
        "",
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.5, 0.9, 0.7, 0.6], 0.0), ([0.5, 0.9, 0.9, 0.9], 0.5), ([0.7, 0.7, 0.7, 0.7], 0.5)],
)
def test_of_equally_good_offsets_the_middle_one_is_best(scores, expected):
    curve = dict(zip((-0.5, 0.0, 0.5, 1.0), scores, strict=True))
    assert accuracy_report.best_offset(curve) == expected


def test_report_of_probabilities_by_hand(tmp_path, capsys):
    def of_mix(shift):
        known = {"log_loss": 0.5 + shift, "calibration_error": 0.01 + shift}
        estimated = {"log_loss": 0.6 + shift, "calibration_error": 0.02, "distance": 0.1}
        training = {"log_loss": 0.9 + shift, "calibration_error": 0.03}
        by_mix = {"known": known, "estimated": estimated, "training": training}
        return by_mix | {"floor": 0.004 + shift}

    powers = ("1.0", "0.5", "0.0", "-0.5", "-1.0")
    before = {power: of_mix(0.1 * i) for i, power in enumerate(powers)}
    after = {power: of_mix(0.0) for power in powers}
    harder = {power: of_mix(0.2) for power in powers}
    for power in powers[1:]:
        del harder[power]["estimated"]  # It did not converge.
    calibrated = {"temperature": 2.0, "before": before, "after": after}
    found = (
        ("gca", 0, calibrated),
        ("gca", 1, {"temperature": 8.0, "before": before, "after": harder}),
        ("gca", 2, None),  # Logits that are not finite.
        ("focal", 0, {"temperature": None, "before": before}),
        ("ce", 0, None),
    )
    lines = []
    for loss, seed, probabilities in found:
        run = json.loads(line(loss, seed, [0.5, 0.5], [0.5, 0.5]))
        run["result"]["probabilities"] = probabilities
        lines.append(json.dumps(run) + "\n")
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(lines) + line("vs", 0, [0.5, 0.5], [0.5, 0.5]))
    accuracy_report.report([path])
    printed = capsys.readouterr().out
    _, printed = printed.split("### Probabilities in a known mix\n\n")
    in_known_mix, printed = printed.split("\n\n### Probabilities in changed mixes\n\n")
    changed, _ = printed.split("\n\n", maxsplit=1)
    condition = "| digits, step, ratio 10, 7 epochs | "
    assert in_known_mix.splitlines()[2:] == [
        condition + "gca | 2 | 4.00 | 0.010 to 0.110 (0.104) | 0.210 to 0.110 (0.104) "
        "| 0.410 to 0.110 (0.104) | 0.500 to 0.600 | 0.700 to 0.600 | 0.900 to 0.600 |",
        condition + "focal | 1 |  | 0.010 (0.004) | 0.210 (0.204) | 0.410 (0.404) "
        "| 0.500 | 0.700 | 0.900 |",
    ]
    assert changed.splitlines()[2:] == [
        # Five easy mixes and one of the harder.
        condition + "gca | 6 of 10 | 0.043 | 0.020 | 0.030 | 0.533 | 0.633 | 0.933 | 10.0 |",
        condition + "focal | 5 of 5 | 0.210 | 0.020 | 0.030 | 0.700 | 0.800 | 1.100 | 10.0 |",
    ]
