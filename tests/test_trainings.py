"""Trainings on long tails: the losses of other papers, the recipe, wrong labels, the tables."""

import keras
import numpy as np
import oracle
import pytest
from scipy import optimize

from benchmarks import baselines, images, methods, training, training_tables
from benchmarks.methods import METHODS
from benchmarks.training import CIFAR, DIGITS, PAPER
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
    for scale in methods.SCALES:
        loss = METHODS[f"gca_scale{scale}"].loss(COUNTS)
        np.testing.assert_allclose(loss.surrogate.margins.mean(), scale)
        gca = METHODS["gca"].loss(COUNTS)
        np.testing.assert_allclose(float(loss(y, z * np.float32(scale))), float(gca(y, z)), 1e-5)
    assert METHODS["gca_scale3_rate_times"].rate == 3
    assert METHODS["gca_scale0.1_rate_over"].rate == 10


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


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_losses_and_a_posterior(name, rng):
    method = METHODS[name]
    z = rng.normal(size=(8, 4)).astype("float32") * (0.1 if method.cosine_head else 1.0)
    uniform = np.full(4, 0.25)
    for loss_of in (method.loss, method.then):
        if loss_of is not None:
            loss = loss_of(COUNTS)
            assert np.isfinite(float(loss(np.arange(8) % 4, z)))
            posterior = keras.ops.convert_to_numpy(loss.posterior(z, priors=uniform))
            np.testing.assert_allclose(posterior.sum(axis=-1), 1.0, rtol=1e-5)


def test_learning_rate_of_the_protocols():
    paper = PAPER
    rates = [training.learning_rate(epoch, paper) for epoch in range(200)]
    np.testing.assert_allclose(rates[:5], [0.02, 0.04, 0.06, 0.08, 0.1])
    np.testing.assert_allclose(rates[5:160], 0.1)
    np.testing.assert_allclose(rates[160:180], 1e-3)
    np.testing.assert_allclose(rates[180:], 1e-5)
    cpu = CIFAR
    rates = [training.learning_rate(epoch, cpu) for epoch in range(cpu.epochs)]
    assert rates[cpu.warmup_epochs] == max(rates) == 0.1
    assert (np.diff(rates[cpu.warmup_epochs :]) < 0).all()
    assert 0 < rates[-1] < 1e-3
    for epochs in (1, 2):
        assert 0 < training.learning_rate(0, cpu._replace(epochs=epochs)) <= 0.1


def test_shrink_averages_squares():
    of_squares = np.arange(2 * 4 * 4 * 1, dtype="uint8").reshape(2, 4, 4, 1)
    small = images.shrink(of_squares, 2)
    assert small.dtype == "uint8"
    assert small[0, 0, 0, 0] == np.round(np.mean([0, 1, 4, 5]))
    assert small[1, 1, 1, 0] == np.round(np.mean([26, 27, 30, 31]))
    assert images.shrink(of_squares, 4) is of_squares


def test_oversampling_draws_the_classes_as_often():
    y = np.repeat([0, 1], [3900, 100])
    batches = images.BalancedBatches(np.zeros((4000, 1)), y, 100, augment=False, seed=0)
    for _ in range(2):
        drawn = np.concatenate([batches[i][1] for i in range(len(batches))])
        assert len(drawn) == 4000
        assert abs(drawn.mean() - 0.5) < 0.04
        before = batches.order
        batches.on_epoch_end()
        assert (batches.order != before).any()


def test_batches_for_ever_are_whole_epochs():
    x = np.arange(10)
    batches = images.Batches(x, x, 4, augment=False, seed=0)
    stream = images.forever(batches)
    epochs = [np.concatenate([next(stream)[0] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert (epochs[0] != epochs[1]).any()
    again = iter(images.stream(images.Batches(x, x, 4, False, seed=0)))
    streamed = [np.concatenate([np.asarray(next(again)[0]) for _ in range(3)]) for _ in range(2)]
    np.testing.assert_array_equal(streamed, epochs)


@pytest.fixture
def trained(monkeypatch):
    """Returns a function: runs a method for 5 epochs, returns its result and phases of `fit`."""
    fit, stream, phases = keras.Sequential.fit, images.stream, []

    def recording_stream(batches):
        phases.append({"batches": type(batches)})
        return stream(batches)

    def recording_fit(model, *args, **kwargs):
        history = fit(model, *args, **kwargs)
        rates = history.history["learning_rate"]
        epochs = (kwargs["initial_epoch"], kwargs["epochs"])
        phases[-1] |= {"model": model, "loss": model.loss, "epochs": epochs, "rates": rates}
        return history

    monkeypatch.setattr(images, "stream", recording_stream)
    monkeypatch.setattr(keras.Sequential, "fit", recording_fit)

    def run(name, ratio=50.0, l2=3e-4):
        phases.clear()
        recipe, data = DIGITS._replace(epochs=5, warmup_epochs=2), {"dataset": "digits"}
        (settings,) = training.grid(recipe, (name,), (0,), **data, ratio=ratio, l2=l2)
        return training.train(settings), phases

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
    assert phase["batches"] is images.Batches
    assert isinstance(phase["loss"], GCALoss)
    assert (phase["loss"].q, phase["loss"].consistent) == (0.2, True)
    kernels = [v for v in phase["model"].trainable_variables if v.name == "kernel"]
    assert len(kernels) == 8
    assert {round(float(kernel.regularizer.l2), 8) for kernel in kernels} == {3e-4}
    _, (phase,) = trained("oversampled")
    assert phase["batches"] is images.BalancedBatches
    np.testing.assert_array_equal(phase["loss"].surrogate.shift, 0.0)


@pytest.mark.slow
def test_a_method_scales_the_learning_rate(trained):
    _, (phase,) = trained("gca_scale3_rate_times")
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(3) / 3))
    np.testing.assert_allclose(phase["rates"], 3 * np.array([0.05, 0.1, *cosine]), rtol=1e-6)


def test_vs_is_set_as_in_its_paper():
    for num_classes, gamma, tau in ((10, 0.15, 1.25), (100, 0.05, 0.75)):
        counts = np.arange(1, num_classes + 1)
        loss = METHODS["vs"].loss(counts)
        np.testing.assert_allclose(loss.scale, (counts / num_classes) ** gamma)
        np.testing.assert_allclose(loss.surrogate.shift, tau * np.log(counts / counts.sum()))


def test_recalls_of_a_missing_class_are_unknown():
    scores = np.eye(3)[[0, 1, 1]]
    assert training.recalls(np.array([0, 0, 1]), scores) == [0.5, 1.0, None]
    scores[0] = np.nan  # What has diverged is wrong, class 0 too.
    assert training.recalls(np.array([0, 0, 1]), scores) == [0.0, 1.0, None]


def test_offset_of_one_is_the_posterior_of_cross_entropy(rng):
    counts = np.array([70, 20, 10])
    y, logits = rng.integers(0, 3, 200), rng.normal(size=(200, 3))
    of = training.of_offsets(y, logits, counts)
    assert list(of) == sorted(of)
    assert of[0.0] == pytest.approx(np.mean(training.recalls(y, logits)), abs=1e-6)
    by_posterior = training.posterior(METHODS["ce"].loss(counts), logits)
    assert of[1.0] == pytest.approx(np.mean(training.recalls(y, by_posterior)), abs=1e-6)
    assert of[1.0] != of[0.0]


def test_the_hold_out_leaves_the_test_set_alone():
    held_out = images.load("digits", 10, "exponential", 0, 0.2, 8)
    final = images.load("digits", 10, "exponential", 0, 0.0, 8)
    assert len(held_out.train[1]) + len(held_out.evaluation[1]) == len(final.train[1])
    tail = {image.tobytes() for image in final.train[0]}
    assert {image.tobytes() for image in held_out.evaluation[0]} <= tail
    assert final.evaluation is final.test
    assert len(final.test[1]) == 500
    np.testing.assert_array_equal(held_out.test[0], final.test[0])


@pytest.mark.parametrize(("kind", "rate"), [("uniform", 0.4), ("pair", 0.2)])
def test_noise_makes_labels_wrong(kind, rate):
    y = np.repeat(np.arange(5), 2000)
    noisy = images.with_noise(y, f"{kind}:{rate}", seed=3)
    assert abs((noisy != y).mean() - rate) < 0.02
    by_class = np.array([np.bincount((noisy - y)[y == k] % 5, minlength=5) for k in range(5)])
    to_each = by_class[:, 1:] / 2000
    expected = rate / 4 if kind == "uniform" else np.array([rate, 0, 0, 0])
    np.testing.assert_allclose(to_each, np.broadcast_to(expected, (5, 4)), atol=0.04)
    np.testing.assert_array_equal(images.with_noise(y, f"{kind}:{rate}", seed=3), noisy)
    assert (images.with_noise(y, f"{kind}:{rate}", seed=4) != noisy).any()


def test_noise_in_one_half_of_the_classes():
    y = np.repeat([3, 1, 4, 0, 2], [4000, 2000, 1000, 2000, 3000])
    head, tail = [2, 3], [0, 1, 4]
    for kind, source, target in (("to_tail", head, tail), ("to_head", tail, head)):
        noisy = images.with_noise(y, f"{kind}:0.3", seed=3)
        wrong = noisy != y
        assert not wrong[~np.isin(y, source)].any()
        assert abs(wrong[np.isin(y, source)].mean() - 0.3) < 0.02
        labels, counts = np.unique(noisy[wrong], return_counts=True)
        assert labels.tolist() == target
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(target), atol=0.04)


def test_noise_leaves_every_class_a_label():
    y = np.array([0] * 20 + [1])
    for seed in range(20):  # The one label of class 1 is wrong in nine of ten draws.
        assert np.bincount(images.with_noise(y, "pair:0.9", seed)).all()


def test_halves_of_a_part_are_those_of_all(rng):
    """Labels to calibrate on, among which a class of the tail may be missing or frequent."""
    y = np.array([2] * 500 + [3] * 10)
    noisy = images.draw_noise(y, "to_head:0.5", np.array([900, 800, 20, 10]), rng)
    assert set(noisy[noisy != y]) == {0, 1}
    assert abs((noisy[:500] != 2).mean() - 0.5) < 0.1
    assert images.draw_noise(np.array([1]), "pair:0.999", np.ones(2), rng).tolist() == [0]


@pytest.mark.parametrize("noise", [None, "to_tail:0.5"])
def test_probabilities_are_calibrated_on_labels_as_wrong(noise, monkeypatch):
    def score(loss, logits, y, counts, true_counts, noisy, seed):
        labels = np.repeat([0, 1, 2], 1000)
        return counts.tolist(), true_counts.tolist(), (noisy(labels) != labels).mean(), seed

    monkeypatch.setattr(training.probabilities, "score", score)
    settings = {"held_out": 0.0, "seed": 3} | ({} if noise is None else {"label_noise": noise})
    counts, true = np.array([5, 3, 2]), np.array([0] * 7 + [1] * 2 + [2])
    y, logits = np.array([0, 0, 1, 1, 2, 2]), np.zeros((6, 3))
    *of_classes, wrong, seed = training.probabilities_of(None, logits, y, counts, true, settings)
    assert of_classes == [[5, 3, 2], [7, 2, 1]]
    assert seed == 3
    # Half of class 0, which alone is the head.
    assert wrong == (0.0 if noise is None else pytest.approx(1 / 6, abs=0.03))


def test_probabilities_need_two_images_of_each_class():
    settings = {"held_out": 0.0, "seed": 0}
    loss, counts, true = methods.gla()([4, 2]), np.array([4, 2]), np.array([0] * 4 + [1] * 2)

    def found(y, logits, **changed):
        arguments = (loss, logits, np.array(y), counts, true, settings | changed)
        return training.probabilities_of(*arguments)

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
    clean = images.load(*arguments)
    noisy = images.load(*arguments, "uniform:0.4")
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
    _, y = images.load("digits", 10, "exponential", 0, 0.0, 8, n_max=50).train
    assert np.bincount(y)[[0, 9]].tolist() == [50, 5]


CONDITION = "digits, step, ratio 10, 7 epochs"


def run(loss, seed, recalls, posterior=None, held_out=0.0, l2=1e-4, epochs=7, **result):
    settings = {"loss": loss, "seed": seed, "l2": l2, "held_out": held_out, "epochs": epochs}
    settings |= {"dataset": "digits", "profile": "step", "ratio": 10.0}
    result |= {"recalls": recalls, "recalls_of_posterior": posterior or recalls}
    return {"settings": settings, "result": result | {"train_recalls": [1.0, 0.9], "seconds": 7}}


def rows_of(table):
    return [row.strip("|").strip().split(" | ") for row in table.splitlines()[2:]]


def test_tables_by_hand():
    runs = [
        run("ce", 0, [0.8, 0.2], [0.7, 0.5]),
        run("ce", 1, [0.9, 0.2], [0.8, 0.5]),
        run("gca", 0, [0.7, 0.7]),
        run("gca", 1, [0.8, 0.8]),
        run("gca", 1, [0.0, None], [0.25, None], held_out=0.2),
    ]
    conditions = training_tables.by_condition(runs)
    of_test, held_out = conditions
    assert of_test.title == CONDITION
    assert held_out.title == f"{CONDITION}, on 20% of the tail, held out"
    assert rows_of(training_tables.details(conditions[held_out]))[0][3:6] == ["0.0", "25.0", "0.0"]
    tested = training_tables.tested(conditions)
    assert list(tested) == [of_test]
    assert rows_of(training_tables.summary(tested)) == [
        ["ce", "52.5 ± 2.5"],
        ["ce, by posterior", "62.5 ± 2.5"],
        ["gca", "75.0 ± 5.0"],
    ]
    # 70 and 80 against 60 and 65.
    difference = ["gca, by posterior - ce, by posterior", "+12.5 ± 2.5"]
    assert rows_of(training_tables.differences(tested)) == [difference]
    gca, ce = rows_of(training_tables.details(tested[of_test]))
    # 70 and 80: mean 75, standard error 5; against 50 and 55: 20 and 25.
    assert gca == [
        *("gca", "0.0001", "2", "75.0 ± 5.0", "75.0 ± 5.0", "75.0", "95.0"),
        *("+22.5 ± 2.5", "+12.5 ± 2.5", "+12.5 ± 2.5"),
    ]
    assert ce[:6] == ["ce", "0.0001", "2", "52.5 ± 2.5", "62.5 ± 2.5", "20.0"]

    # Of another recipe, with a title of its own; and one whose L2 is not the only one.
    runs += [run("weighted", 1, [0.7, 0.7]), run("weighted", 2, [0.1, 0.1])]
    runs += [run("logit_adjusted", 1, [0.9, 0.6], epochs=8)]
    runs += [run("ce", 0, [0.8, 0.2], l2=1e-3), run("ce", 1, [0.6, 0.4], [0.6, 0.5], epochs=8)]
    tested = training_tables.tested(training_tables.by_condition(runs))
    assert training_tables.differences(tested).splitlines()[2:] == [
        "| logit_adjusted - ce |  | +25.0 |",
        "| logit_adjusted - ce, by posterior |  | +20.0 |",
        "| gca - weighted | +10.0 |  |",
    ]


def test_choices_on_the_hold_out():
    held_out = {"ce": (0.5, 0.9), "gca": (0.6, 0.8)}  # Of seeds 0 and 1.
    tested = {"ce": (0.6, 0.7), "gca": (0.7, 0.9)}
    runs = [
        run(loss, seed, [score] * 2, held_out=part)
        for scores, part in ((held_out, 0.2), (tested, 0.0))
        for loss, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]
    runs.append(run("weighted", 0, [1.0, 1.0]))  # Not a candidate.
    table = training_tables.choices(training_tables.by_condition(runs), ("ce", "gca"))
    expected = ["gca, ce", "70.0 ± 0.0", "gca", "80.0 ± 10.0", "-10.0 ± 10.0"]
    assert rows_of(table) == [[CONDITION, *expected]]


def test_the_offset_of_the_hold_out():
    runs = [
        run("ce", 0, [0.5] * 2, held_out=0.2, offsets={"0.0": 0.5, "0.5": 0.8, "1.0": 0.7}),
        run("ce", 0, [0.6] * 2, offsets={"0.0": 0.6, "0.5": 0.65, "1.0": 0.9}),
        run("gca", 0, [0.5, 0.5]),
    ]
    table = training_tables.by_offsets(training_tables.by_condition(runs))
    assert rows_of(table) == [[CONDITION, "ce", "60.0", "60.0", "65.0", "0.5"]]


def test_offsets_in_hindsight_by_hand():
    def noisy(loss, seed, score, offsets=None, noise="uniform:0.4"):
        found = run(loss, seed, [score] * 2, offsets=offsets or {"0.0": score}, memorised=0.5)
        found["settings"]["label_noise"] = noise
        return found

    runs = [
        # The second is best on the mean, though for neither seed.
        noisy("logit_adjusted", 0, 0.5, {"0.0": 0.5, "0.5": 0.65, "1.0": 0.7}),
        noisy("logit_adjusted", 1, 0.7, {"0.0": 0.7, "0.5": 0.65, "1.0": 0.4}),
        noisy("gla_q0.9_tau1", 0, 0.75),
        noisy("gla_q0.9_tau1", 1, 0.85),
        noisy("gca", 0, 0.6),
        # Without q, or without GLA, there is nothing to tell.
        noisy("logit_adjusted", 0, 0.5, noise="pair:0.4"),
        noisy("gla_q0.9_tau1", 0, 0.5, noise="pair:0.2"),
    ]
    table = training_tables.hindsight(training_tables.by_condition(runs))
    name = f"{CONDITION}, 40% wrong labels (uniform)"
    assert table.splitlines()[2:] == [
        f"| {name} | 60.0 ± 10.0 | 65.0 ± 0.0 | 0.5 |  |  | +15.0 ± 5.0 |"
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.5, 0.9, 0.7, 0.6], 0.0), ([0.5, 0.9, 0.9, 0.9], 0.5), ([0.7, 0.7, 0.7, 0.7], 0.5)],
)
def test_of_equally_good_offsets_the_middle_one_is_best(scores, expected):
    curve = dict(zip((-0.5, 0.0, 0.5, 1.0), scores, strict=True))
    assert training_tables.best_offset(curve) == expected


def test_tables_of_probabilities_by_hand():
    def of_mix(shift):
        known = {"log_loss": 0.5 + shift, "calibration_error": 0.01 + shift}
        estimated = {"log_loss": 0.6 + shift, "calibration_error": 0.02, "distance": 0.1}
        of_training = {"log_loss": 0.9 + shift, "calibration_error": 0.03}
        by_mix = {"known": known, "estimated": estimated, "training": of_training}
        return by_mix | {"floor": 0.004 + shift}

    powers = ("1.0", "0.5", "0.0", "-0.5", "-1.0")
    before = {power: of_mix(0.1 * i) for i, power in enumerate(powers)}
    after = {power: of_mix(0.0) for power in powers}
    harder = {power: of_mix(0.2) for power in powers}
    for power in powers[1:]:
        del harder[power]["estimated"]  # It did not converge.
    runs = [
        run(loss, seed, [0.5, 0.5], probabilities=found)
        for loss, seed, found in (
            ("gca", 0, {"temperature": 2.0, "before": before, "after": after}),
            ("gca", 1, {"temperature": 8.0, "before": before, "after": harder}),
            ("gca", 2, None),  # Logits that are not finite.
            ("focal", 0, {"temperature": None, "before": before}),
            ("ce", 0, None),
        )
    ]
    tested = training_tables.by_condition(runs)
    condition = f"| {CONDITION} | "
    assert training_tables.probabilities(tested).splitlines()[2:] == [
        condition + "gca | 2 | 4.00 | 0.010 to 0.110 (0.104) | 0.210 to 0.110 (0.104) "
        "| 0.410 to 0.110 (0.104) | 0.500 to 0.600 | 0.700 to 0.600 | 0.900 to 0.600 |",
        condition + "focal | 1 |  | 0.010 (0.004) | 0.210 (0.204) | 0.410 (0.404) "
        "| 0.500 | 0.700 | 0.900 |",
    ]
    assert training_tables.changed_mixes(tested).splitlines()[2:] == [
        # Five easy mixes and one of the harder.
        condition + "gca | 6 of 10 | 0.043 | 0.020 | 0.030 | 0.533 | 0.633 | 0.933 | 10.0 |",
        condition + "focal | 5 of 5 | 0.210 | 0.020 | 0.030 | 0.700 | 0.800 | 1.100 | 10.0 |",
    ]
