"""Temperature and class mix are found again."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize, special

from keras_balanced import (
    BinaryGLALoss,
    ClassPrior,
    GCALoss,
    GLALoss,
    datasets,
    plots,
    serving,
)

PRIORS = [0.7, 0.2, 0.1]


def numpy_posterior(loss, logits, target=None):
    return ops.convert_to_numpy(loss.posterior(logits, priors=target))


CENTRES = np.array([[2.0, 0.0], [0.0, 2.0], [-1.5, -1.5]])


def gaussians(counts, rng):
    y = np.repeat(np.arange(3), counts)
    return (CENTRES[y] + rng.normal(size=(len(y), 2))).astype("float32"), y


def bayes_model(scale=1.0):
    """Logits that are the log-likelihoods of `CENTRES`, times `scale`: a minimiser of GLA."""
    dense = keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.set_weights([scale * CENTRES.T, -scale * (CENTRES**2).sum(axis=-1) / 2])
    return model


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_is_found_again(temperature, rng):
    x, y = gaussians([4000, 1000, 300], rng)
    found = serving.calibrate(bayes_model(temperature), GLALoss([4000, 1000, 300]), (x, y))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    for name, after in found.after.items():
        assert after < found.before[name]
    # Under the mix of the held-out data the probabilities are right without any weights.
    np.testing.assert_allclose(
        found.probabilities["after"].mean(axis=0), np.bincount(y) / len(y), atol=0.01
    )
    np.testing.assert_array_equal(found.labels, y)


def test_calibration_against_an_oracle(rng):
    x, y = gaussians([400, 100, 30], rng)
    loss, model = GCALoss([400, 100, 30], target_priors=[1, 1, 2]), bayes_model(2.0)
    found = serving.calibrate(model, loss, (x, y))
    log_p = np.log(numpy_posterior(loss, model.predict(x, verbose=0)).astype("float64"))

    def balanced_nll(temperature):
        z = log_p / temperature
        nll = special.logsumexp(z, axis=-1) - z[np.arange(len(y)), y]
        return np.average([nll[y == k].mean() for k in range(3)], weights=[1, 1, 2])

    best = optimize.minimize_scalar(balanced_nll, bounds=(0.1, 10), method="bounded")
    assert found.temperature == pytest.approx(best.x, rel=1e-3)
    assert found.before["negative_log_likelihood"] == pytest.approx(balanced_nll(1.0), rel=1e-5)
    assert found.after["negative_log_likelihood"] == pytest.approx(best.fun, rel=1e-5)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return tuple(array[index::4] for array in self.arrays)


def test_every_form_of_held_out_data_calibrates_the_same(rng):
    x, y = gaussians([40, 20, 10], rng)
    model, loss = bayes_model(2.0), GLALoss([40, 20, 10])
    expected = serving.calibrate(model, loss, (x, y))
    odd = np.concatenate([y, np.full(7, 255)]), np.concatenate([x, x[:7]])
    weights = np.r_[np.ones(len(y)), np.zeros(7)]
    forms = [
        (loss, (x, np.eye(3)[y])),
        (loss, (x, y[:, None], np.full(len(y), 3.0))),
        (loss, (odd[1], np.minimum(odd[0], 2), weights)),
        (GLALoss([40, 20, 10], ignore_class=255), (odd[1], odd[0])),
        # The ignored first, whose weights go with them.
        (
            GLALoss([40, 20, 10], ignore_class=255),
            (odd[1][::-1], odd[0][::-1], np.where(weights == 0, 9.0, 1.0)[::-1]),
        ),
        (loss, Batches(x, y)),
        (loss, Batches(x, y, np.ones(len(y)))),
    ]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        forms.append((loss, tf.data.Dataset.from_tensor_slices((x, y)).batch(16)))
    for same_loss, data in forms:
        found = serving.calibrate(model, same_loss, data)
        assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)
        assert found.after == pytest.approx(expected.after, rel=1e-3)
    model.compile(loss=loss)
    assert serving.calibrate(model, None, (x, y)).temperature == expected.temperature


def test_many_rows_of_many_classes_calibrate_as_few_at_a_time_do(rng):
    """Of 400 classes it takes 104 rows at once."""
    y = rng.integers(0, 400, 250)
    z = (rng.normal(size=(250, 400)) + 4 * np.eye(400)[y]).astype("float32")
    model = keras.Sequential([keras.Input((400,)), keras.layers.Rescaling(3.0)])
    loss = GLALoss(np.ones(400))
    order = np.concatenate([np.arange(i, 250, 4) for i in range(4)])  # Of `Batches`.
    found = serving.calibrate(model, loss, (z[order], y[order]))
    expected = serving.calibrate(model, loss, Batches(z, y))
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(
        found.probabilities["after"], expected.probabilities["after"], rtol=1e-3, atol=1e-6
    )


def test_one_logit_calibrates_as_two(rng):
    z = rng.normal(size=(500, 1)).astype("float32")
    y = (rng.random((500, 1)) < special.expit(z)).astype("int64")
    one = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(3.0)])
    two = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(3.0)])
    found = serving.calibrate(one, BinaryGLALoss(0.2), (z, y))
    expected = serving.calibrate(two, GLALoss([0.8, 0.2]), (np.c_[0 * z, z], y))
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)


def test_sequences_calibrate_at_each_position(rng):
    x, y = gaussians([40, 20, 10], rng)
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    inputs = keras.Input((7, 2))
    flat = bayes_model(2.0)
    model = keras.Model(inputs, flat.layers[-1](inputs))
    found = serving.calibrate(model, GLALoss([4, 2, 1]), (x.reshape(10, 7, 2), y.reshape(10, 7)))
    expected = serving.calibrate(flat, GLALoss([4, 2, 1]), (x, y))
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"must have a best temperature: .* Received: 3 examples, all right"),
        ([1, 2, 0], "3 examples, no more often right than by chance"),
        ([0, 1, 3], r"must be integers in \[0, 3\). Received: \[3\]"),
        ([0, 1, 0.5], r"must be integers in \[0, 3\)"),
        (np.full((3, 3), 1 / 3), "Received: soft targets"),
    ],
)
def test_data_that_cannot_calibrate(labels, message):
    x = CENTRES.astype("float32")
    with pytest.raises(ValueError, match=message):
        serving.calibrate(bayes_model(), GLALoss([1, 1, 1]), (x, np.array(labels)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y, w: x.__setitem__((7, 0), np.nan), r"1 of 70 .* places \[7\]$"),
        (lambda x, y, w: x.__setitem__((slice(10, 18), 0), np.inf), r"8 of 70 .* and others$"),
        (lambda x, y, w: w.__setitem__(3, np.nan), r"weights of .*: 1 of 70 .* places \[3\]$"),
        (lambda x, y, w: w.__setitem__(69, -1.0), r"weights of .*: 1 of 70 .* places \[69\]$"),
        (lambda x, y, w: w.__setitem__(69, np.inf), r"weights of .*: 1 of 70 .* places \[69\]$"),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_is_not_finite_does_not_calibrate(batched, spoil, message, rng):
    x, y = gaussians([40, 20, 10], rng)
    w = np.ones(70)
    spoil(x, y, w)
    data = (x, y, w)
    if batched:
        data = [tuple(part[i : i + 20] for part in data) for i in range(0, 70, 20)]
    with pytest.raises(ValueError, match=message):
        serving.calibrate(bayes_model(), GLALoss([4, 2, 1]), data)


@pytest.mark.parametrize("low", [-1e9, -np.inf])
def test_masked_classes_calibrate_but_not_as_labels(low, rng):
    x, y = gaussians([40, 20, 10], rng)
    identity = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(1.0)])
    z = bayes_model(2.0).predict(x, verbose=0)
    masked = np.arange(70) % 3 == 0
    z[masked, (y[masked] + 1) % 3] = low
    found = serving.calibrate(identity, GLALoss([4, 2, 1]), (z, y))
    assert 0.5 < found.temperature < 5
    assert np.isfinite(list(found.after.values())).all()
    z[5, y[5]] = low
    with pytest.raises(ValueError, match=r"1 of 70 examples that are not, at the places \[5\]"):
        serving.calibrate(identity, GLALoss([4, 2, 1]), (z, y))


@pytest.mark.parametrize(
    ("scale", "message"),
    [(400.0, r"beyond 100: .* more than 100 times too sure"), (1 / 300, "100 times too unsure")],
)
def test_a_temperature_out_of_the_range_is_named(scale, message, rng):
    x, y = gaussians([40, 20, 10], rng)
    with pytest.raises(ValueError, match=message):
        serving.calibrate(bayes_model(scale), GLALoss([4, 2, 1]), (x, y))


def test_calibration_without_a_class(rng):
    x, y = gaussians([40, 20, 10], rng)
    plain = serving.calibrate(bayes_model(2.0), GLALoss([4, 2, 1]), (x, y))
    inputs = keras.Input((2,))
    three = bayes_model(2.0).layers[-1](inputs)
    reserved = keras.layers.Rescaling(0.0, 50.0)(three[:, :1])
    model = keras.Model(inputs, keras.layers.Concatenate()([reserved, three]))
    loss = GLALoss([0, 4, 2, 1], target_priors=[0, 1, 1, 1])
    found = serving.calibrate(model, loss, (x, y + 1))
    assert found.temperature == pytest.approx(plain.temperature, rel=1e-4)
    assert np.isfinite(found.probabilities["after"]).all()
    np.testing.assert_allclose(
        found.probabilities["after"][:, 1:], plain.probabilities["after"], rtol=1e-3, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"must be integers in .*Received: \[0\]"):
        serving.calibrate(model, loss, (x, y))
    probabilities = found.probabilities["after"]
    mix = serving.estimate_priors(probabilities, [0, 40, 20, 10])
    expected = serving.estimate_priors(plain.probabilities["after"], [40, 20, 10])
    np.testing.assert_allclose(mix, [0, *expected], atol=1e-3)
    with pytest.raises(ValueError, match="must be 0 for a class whose training prior is 0"):
        serving.estimate_priors(np.full((4, 3), 1 / 3), [0, 1, 1])


def test_calibration_leaves_out_masks_and_weights_of_0(rng):
    x, y = gaussians([40, 20, 10], rng)
    order = rng.permutation(len(y))
    x, y = x[order].reshape(10, 7, 2), y[order].reshape(10, 7)
    kept = np.arange(7) < rng.integers(3, 8, (10, 1))
    flat = bayes_model(2.0)
    expected = serving.calibrate(flat, GLALoss([4, 2, 1]), (x[kept], y[kept])).temperature
    inputs = keras.Input((7, 2))
    model = keras.Model(inputs, flat.layers[-1](inputs))
    garbage = np.where(kept, y, -7)
    for labels in (garbage, np.where(kept[..., None], np.eye(3)[y], np.nan)):
        found = serving.calibrate(model, GLALoss([4, 2, 1]), (x, labels, kept))
        assert found.temperature == pytest.approx(expected, rel=1e-4)
    masked = keras.Model(inputs, flat.layers[-1](keras.layers.Masking(9.0)(inputs)))
    x[~kept] = 9.0
    found = serving.calibrate(masked, GLALoss([4, 2, 1]), (x, garbage))
    assert found.temperature == pytest.approx(expected, rel=1e-4)


def test_no_held_out_data():
    for data in [[], (np.zeros((2, 2), "float32"), np.array([0, 1]), np.zeros(2))]:
        with pytest.raises(ValueError, match=r"`validation_data` must have .*examples"):
            serving.calibrate(bayes_model(), GLALoss([1, 1, 1]), data)
    with pytest.raises(ValueError, match="`validation_data` must have labels"):
        serving.calibrate(bayes_model(), GLALoss([1, 1, 1]), [(np.zeros((2, 2), "float32"),)])


def test_mix_is_that_of_the_greatest_likelihood(rng):
    x, _ = gaussians([100, 20, 300], rng)
    priors = np.array(PRIORS)
    p = numpy_posterior(GLALoss(priors), bayes_model().predict(x, verbose=0), priors)
    estimate = serving.estimate_priors(p, priors, tolerance=1e-9)

    def loss(z):
        return -np.log((p / priors) @ special.softmax(z)).mean()

    best = optimize.minimize(loss, np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(estimate, special.softmax(best.x), atol=1e-4)
    assert loss(np.log(estimate)) <= best.fun + 1e-9


def test_mix_of_classes_hard_to_tell_apart_is_found_in_few_iterations(rng):
    """No mix is likelier by more than the tolerance; plain steps are not there after 2,000."""
    num_classes, count = 60, 400
    means = 0.4 * rng.normal(size=(num_classes, 4))
    y = rng.integers(0, num_classes, count)
    x = means[y] + rng.normal(size=(count, 4))
    priors = 100.0 ** -np.linspace(0, 1, num_classes)
    priors /= priors.sum()
    logits = -0.5 * ((x[:, None] - means) ** 2).sum(axis=-1) + np.log(priors)
    probabilities = special.softmax(logits, axis=-1)
    ratios = probabilities / priors

    def gain(mix):
        return (ratios / (ratios @ mix)[:, None]).mean(axis=0)

    found = serving.estimate_priors(probabilities, priors, max_iterations=400)
    assert found.sum() == pytest.approx(1.0)
    assert gain(found).max() <= 1.0 + 1e-6
    plain = priors
    for _ in range(2000):
        plain = plain * gain(plain)
    assert gain(plain).max() > 1.0 + 1e-5


def test_shifted_digits_give_their_mix(rng):
    """Within three standard deviations of the sampling error, which a bootstrap tells."""
    (x, y), (x_test, y_test) = datasets.load("digits", imbalance_ratio=1)
    x, y = np.concatenate([x, x_test]) / 255.0, np.concatenate([y, y_test])
    order = rng.permutation(len(y))  # The same writers in each part: only the mix shifts.
    train, held_out, production = np.split(order, [700, 1000])
    x_train, y_train = datasets.long_tail(x[train], y[train], imbalance_ratio=5)
    prior = ClassPrior(10)
    prior.adapt(y_train)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = GLALoss(prior)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss)
    model.fit(x_train, y_train, batch_size=32, epochs=15, verbose=0)
    temperature = serving.calibrate(model, loss, (x[held_out], y[held_out])).temperature
    p = numpy_posterior(loss, model.predict(x[production], verbose=0)) ** (1 / temperature)
    p = p * prior.priors
    p /= p.sum(axis=-1, keepdims=True)
    labels = y[production]
    for target in (np.arange(1, 11), 0.7 ** np.arange(10), np.ones(10)):
        counts = (np.bincount(labels).min() * target / target.max()).astype(int).clip(1)
        drawn = np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in enumerate(counts)])
        estimate = serving.estimate_priors(p[drawn], prior)
        assert estimate.sum() == pytest.approx(1.0)
        again = [
            serving.estimate_priors(p[rng.choice(drawn, len(drawn))], prior) for _ in range(30)
        ]
        true_mix = counts / counts.sum()
        deviation = np.maximum(
            np.std(again, axis=0), np.sqrt(true_mix * (1 - true_mix) / len(drawn))
        )
        assert (np.abs(estimate - true_mix) < 3 * deviation).all()
        shift = np.abs(true_mix - prior.priors).max()
        assert np.abs(estimate - true_mix).max() < shift / 2


def test_a_class_that_never_comes_up_gets_nothing():
    p = np.array([[0.9, 0.1, 0.0]] * 30 + [[0.1, 0.9, 0.0]] * 70)
    estimate = serving.estimate_priors(p, [1, 1, 1])
    np.testing.assert_allclose(estimate, [0.25, 0.75, 0.0], atol=1e-4)


@pytest.mark.parametrize("sure", [3.0, 30.0, 300.0])  # 300: some probabilities are 0.
def test_losses_take_the_estimated_mix_of_data_without_some_classes(sure, rng):
    prior = [50, 30, 20, 0]
    loss = GLALoss(prior, target_priors=[1, 1, 1, 0])
    logits = rng.normal(size=(200, 4)).astype("float32")
    logits[:150, 0] += sure
    logits[150:, 1] += sure
    mix = np.array([0.5, 0.3, 0.2, 0.0])
    estimate = serving.estimate_priors(numpy_posterior(loss, logits, mix), prior)
    assert estimate.sum() == pytest.approx(1.0)
    assert estimate[3] == 0.0
    assert estimate[2] < 0.05
    assert (numpy_posterior(loss, logits, estimate).argmax(axis=-1) < 2).mean() > 0.9


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_losses_take_the_estimated_rate_of_data_of_one_label(sign, rng):
    loss = BinaryGLALoss(0.2)
    logits = (sign * rng.uniform(300, 900, 100)).astype("float32")
    rate = serving.estimate_priors(numpy_posterior(loss, logits, 0.2), 0.2)
    assert 0 < rate < 1
    assert abs(rate - (sign > 0)) < 0.05
    assert ((numpy_posterior(loss, logits, rate) > 0.5) == (sign > 0)).mean() > 0.9


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.ones((4, 3)) / 3, "must be .N, 2."),
        (np.ones((2, 2, 2)) / 2, "must be .N, 2."),
        (np.ones(2) / 2, "must tell the classes apart"),
        (np.empty((0, 2)), "must be .N, 2."),
        (np.array([[2.0, -1.0]]), "must be non-negative and sum to 1"),
        (np.array([[3.0, 4.0]]), "must be non-negative and sum to 1"),
        (
            np.array([[0.5, 0.5], [np.nan, 1.0], [0.5, np.inf]]),
            r"must be finite. Received: 2 of 3 examples that are not, at the places \[1, 2\]",
        ),
        (np.array([[0.9, 0.1]] * 5), "must tell the classes apart"),
    ],
)
def test_bad_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        serving.estimate_priors(probabilities, [0.5, 0.5])


def drawn_posterior(mix, number, temperature, rng):
    """The posterior under `PRIORS` of examples of a mix, flattened, and their labels."""
    y = rng.choice(3, number, p=mix)
    x = 0.7 * CENTRES[y] + rng.normal(size=(number, 2))
    log_p = -0.5 * ((x[:, None] - 0.7 * CENTRES) ** 2).sum(axis=-1) + np.log(PRIORS)
    return special.softmax(log_p / temperature, axis=-1), y


@pytest.mark.parametrize("mix", [[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05]])
@pytest.mark.parametrize("temperature", [1.25, 1.5, 0.7])
def test_mix_by_probabilities_that_are_not_calibrated(temperature, mix, rng):
    p, _ = drawn_posterior(mix, 20_000, temperature, rng)
    validation = drawn_posterior(PRIORS, 10_000, temperature, rng)
    without, estimate = (
        serving.estimate_priors(p, PRIORS, validation=data) for data in (None, validation)
    )
    assert estimate.sum() == pytest.approx(1.0)
    assert np.abs(estimate - mix).sum() < 0.06
    assert np.abs(estimate - mix).sum() < np.abs(without - mix).sum()
    # By the moments: the mean probabilities are the mix of those of the classes.
    held_out, y = validation
    confusion = np.stack([held_out[y == k].mean(axis=0) for k in range(3)], axis=1)
    expected = np.linalg.solve(confusion, p.mean(axis=0))
    np.testing.assert_allclose(estimate, expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.4, 1.7])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_mix_by_validation_of_a_uniform_training_mix(num_classes, temperature, rng):
    """Symmetric examples give the uniform mix whatever the temperature, and another wrongly."""
    priors = np.full(num_classes, 1 / num_classes)
    mix = np.array([0.85, *[0.15 / (num_classes - 1)] * (num_classes - 1)])

    def drawn(mix, number):
        y = rng.choice(num_classes, number, p=mix)
        logits = 2.25 * np.eye(num_classes)[y] + 1.5 * rng.normal(size=(number, num_classes))
        return special.softmax(logits / temperature, axis=-1), y

    (p, _), validation = drawn(mix, 20_000), drawn(priors, 10_000)
    without, estimate = (
        serving.estimate_priors(p, priors, validation=data) for data in (None, validation)
    )
    assert np.abs(estimate - mix).sum() < min(0.03, np.abs(without - mix).sum())


def test_too_unsure_probabilities_alone_give_a_mix_far_off(rng):
    """Why there is `validation`: the mix has not even changed."""
    priors = np.array([0.9, 0.1])
    y = (rng.random(5000) < priors[1]).astype(int)
    logits = y - 0.5 + rng.normal(size=5000) - np.log(9.0)
    assert special.expit(logits).mean() == pytest.approx(0.1, abs=0.02)  # Calibrated.
    p = special.expit(logits / 1.25)
    without = serving.estimate_priors(p, priors[1])
    estimate = serving.estimate_priors(p, priors[1], validation=(p, y))
    assert abs(without - 0.1) > 0.05
    assert estimate == pytest.approx(y.mean(), abs=1e-6)


def test_mix_by_calibrated_probabilities_stays_the_likeliest(rng):
    p, _ = drawn_posterior([0.2, 0.2, 0.6], 2000, 1.0, rng)
    held_out, y = drawn_posterior(PRIORS, 2000, 1.0, rng)
    expected = serving.estimate_priors(p, PRIORS)
    for labels in (y, np.eye(3)[y]):
        estimate = serving.estimate_priors(p, PRIORS, validation=(held_out, labels))
        np.testing.assert_array_equal(estimate, expected)


def test_mix_by_validation_without_a_class(rng):
    p, _ = drawn_posterior([0.2, 0.2, 0.6], 4000, 1.4, rng)
    held_out, y = drawn_posterior(PRIORS, 4000, 1.4, rng)
    expected = serving.estimate_priors(p, PRIORS, validation=(held_out, y))
    p, held_out = (np.insert(part, 1, 0.0, axis=1) for part in (p, held_out))
    labels = np.array([0, 2, 3])[y]
    estimate = serving.estimate_priors(p, np.insert(PRIORS, 1, 0.0), validation=(held_out, labels))
    np.testing.assert_allclose(estimate, np.insert(expected, 1, 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (np.ones((3, 3)), "`validation` must be `.probabilities, labels.`. Received: validation="),
        (([[0.5, 0.5]], [0, 1, 2]), r"`validation` must be \(N, 3\)"),
        (
            (np.eye(3), [0, 1]),
            r"2 labels for 3 examples, and labels that do not fit for the class ids \[2\]",
        ),
        ((np.eye(3), [0, 1, 1]), r"of every class .* the class ids \[2\]"),
        ((np.eye(3) * np.nan, [0, 1, 2]), "`validation` must be finite. Received: 3 of 3"),
        ((np.eye(3), [0, 1, np.nan]), r"`validation` must be classes in \[0, 3\). Received: \[nan"),
    ],
)
def test_bad_validation(validation, message):
    with pytest.raises(ValueError, match=message):
        serving.estimate_priors(np.eye(3), PRIORS, validation=validation)


def test_no_convergence():
    p = np.array([[0.6, 0.4]] * 30 + [[0.4, 0.6]] * 31)
    with pytest.raises(RuntimeError, match="did not converge in 3 steps"):
        serving.estimate_priors(p, [0.9, 0.1], max_iterations=3)
    with pytest.raises(ValueError, match="`max_iterations` must be an integer of at least 1"):
        serving.estimate_priors(p, [0.9, 0.1], max_iterations=0)
    with pytest.raises(ValueError, match="`training_priors` must be positive"):
        serving.estimate_priors(p, [1.0, 0.0])


def test_reliability_diagram_of_a_calibration(rng):
    mpl = pytest.importorskip("matplotlib")
    mpl.use("Agg")
    x, y = gaussians([40, 20, 10], rng)
    found = serving.calibrate(bayes_model(3.0), GLALoss([4, 2, 1]), (x, y))
    axes = plots.reliability_diagram(found.probabilities, found.labels)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    mpl.pyplot.close(axes.figure)
