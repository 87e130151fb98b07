"""Decisions: one rule from predictions to classes, against the float64 oracle."""

import json
import re

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_balanced
from keras_balanced import (
    BalancedLoss,
    BinaryGCALoss,
    BinaryGLALoss,
    ClassPrior,
    Decision,
    GCALoss,
    GLALoss,
    Surrogate,
    backends,
    formula,
)

PRIORS = np.array([0.7, 0.25, 0.05])
COSTS = np.array([[0.0, 1, 3], [10, 1, 4], [40, 9, 2]])
WANTED = np.array([0.2, 0.3, 0.5])
LOSSES = {
    "gla": GLALoss(PRIORS),
    "gla_tau": GLALoss(PRIORS, 0.4, 1.0, target_priors=WANTED),
    "cross_entropy": GLALoss(PRIORS, tau=0),
    "weighted": GCALoss(PRIORS, 0.3, None),
    "equal_margins": BalancedLoss(Surrogate(PRIORS, q=0.2, shift=[0, 1, 2], margins=1.7)),
    "gca": GCALoss(PRIORS),
    "gca_q": GCALoss(PRIORS, 0.2, consistent=True, target_priors=WANTED),
    "own": BalancedLoss(
        Surrogate(
            PRIORS,
            target_priors=WANTED,
            q=0.1,
            shift=[0.3, 0, 1],
            margins=[1, 1.5, 2],
            weights=[3, 2, 1],
        )
    ),
    "gla_smoothed": GLALoss(PRIORS, label_smoothing=0.1),
    "gca_smoothed": GCALoss(PRIORS, label_smoothing=0.1, target_priors=WANTED),
}
RULES = {
    "default": {},
    "mix": {"target_priors": [5, 3, 2], "temperature": 1.7},
    "costs": {"costs": COSTS, "priors": [4, 4, 2], "temperature": 0.6},
    "logits": {"by": "logits"},
}
SHIFTS = {"gla", "gla_tau", "cross_entropy", "weighted", "equal_margins"}


def numpy(values):
    return ops.convert_to_numpy(values)


def log_posterior(loss, z):
    """That of the oracle, in the loss's own mix: `z` is `(N, K)`."""
    s = loss.surrogate
    if not s.label_smoothing:
        return oracle.log_posterior(
            z, s.priors, s.margins, s.weights, s.target_priors, s.q, s.shift
        )
    log_eta = oracle.log_posterior(z, s.priors, s.margins, s.weights, s.priors, s.q, s.shift)
    mass = s.priors / s.target_priors
    mass = s.label_smoothing * mass / mass.sum()
    log_eta = oracle.without_smoothing(log_eta, mass)
    return oracle.log_softmax(log_eta + np.log(s.target_priors / s.priors))


def expected_scores(loss, z, by="posterior", **rule):
    if by == "logits":
        return z.astype("float64")
    return oracle.decision_scores(log_posterior(loss, z), loss.surrogate.target_priors, **rule)


def away_from_ties(scores, least=1e-3):
    ordered = np.sort(scores, axis=-1)
    kept = ordered[..., -1] - ordered[..., -2] > least
    assert kept.mean() > 0.9
    return kept


def assert_decided(found, scores):
    kept = away_from_ties(scores)
    np.testing.assert_array_equal(numpy(found)[kept], scores.argmax(axis=-1)[kept])


def logits(rng, *shape, scale=2.0):
    return (scale * rng.normal(size=shape)).astype("float32")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LOSSES)
def test_decides_as_the_formulas(name, rule, rng):
    loss, z = LOSSES[name], logits(rng, 500, 3)
    expected = expected_scores(loss, z, **RULES[rule])
    decision = Decision(loss, **RULES[rule])
    found = decision(z)
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (np.dtype("int32"), (500,))
    assert_decided(found, expected)
    np.testing.assert_allclose(decision.scores(z), expected, rtol=1e-4, atol=1e-4)
    assert len(set(found.tolist())) > 1
    as_tensor = decision(ops.convert_to_tensor(z))
    assert ops.is_tensor(as_tensor)
    np.testing.assert_array_equal(numpy(as_tensor), found)


@pytest.mark.parametrize("name", LOSSES)
def test_where_margins_are_equal_a_shift_of_the_logits_decides(name, rng, monkeypatch):
    def never(*args):
        raise AssertionError("the posterior was computed")

    loss, z = LOSSES[name], logits(rng, 500, 3)
    monkeypatch.setattr(formula, "log_posterior", never)
    for rule in RULES:
        decision = Decision(loss, **RULES[rule])
        if rule == "logits" or (name in SHIFTS and rule != "costs"):
            decision(z)
        else:
            with pytest.raises(AssertionError, match="the posterior was computed"):
                decision(z)


BINARY = {
    "gla": lambda rate: BinaryGLALoss(rate, 0.3, 1.0),
    "gca": lambda rate: BinaryGCALoss(rate, 0.1, target_priors=0.4),
    "weighted": lambda rate: BinaryGCALoss(rate, margins=None),
    "smoothed": lambda rate: BinaryGCALoss(rate, label_smoothing=0.1),
}
BINARY_RULES = {
    "default": {},
    "mix": {"target_priors": 0.3, "temperature": 2.0},
    "costs": {"costs": {(0, 1): 1.0, (1, 0): 25.0}, "priors": 0.05, "temperature": 2.0},
    "threshold": {"threshold": 0.03, "priors": 0.05},
    "logits": {"by": "logits"},
}


def expected_of_labels(losses, z, rule):
    """Scores `(N, L, 2)` of logits `(N, L)`, each label by a binary loss of its own."""
    rule = dict(rule)
    for name in ("target_priors", "priors"):
        if name in rule:
            rule[name] = [1 - rule[name], rule[name]]
    if "costs" in rule:
        rule["costs"] = [[0, 1], [25, 0]]
    pairs = np.stack([np.zeros_like(z), z], axis=-1).astype("float64")
    columns = [expected_scores(loss, pairs[:, i], **rule) for i, loss in enumerate(losses)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("rule", BINARY_RULES)
@pytest.mark.parametrize("name", BINARY)
def test_one_logit_and_labels(name, rule, rng):
    z, rates = logits(rng, 500, 2, scale=3.0), [0.1, 0.3]
    expected = expected_of_labels([BINARY[name](rate) for rate in rates], z, BINARY_RULES[rule])
    decision = Decision(BINARY[name](rates), **BINARY_RULES[rule])
    found = decision(z)
    assert found.shape == z.shape
    assert_decided(found, expected)
    assert decision.scores(z).shape == (*z.shape, 2)
    assert_decided(decision.scores(z).argmax(axis=-1), expected)
    assert 0 < found.mean() < 1

    decision = Decision(BINARY[name](0.1), **BINARY_RULES[rule])
    for one in (z[:, 0], z[:, :1]):
        assert decision(one).shape == (500,)
        assert_decided(decision(one), expected[:, 0])
        assert decision.scores(one).shape == (500, 2)
    table = z[:, 0].reshape(25, 20)
    np.testing.assert_array_equal(decision(table), decision(z[:, 0]).reshape(25, 20))


def test_a_threshold_for_each_label_and_for_two_classes(rng):
    z, rates = logits(rng, 500, 2), np.array([0.1, 0.3])
    loss = BinaryGCALoss(rates)
    decision = Decision(loss, threshold=[0.05, 0.6], priors=rates)
    p = loss.posterior(z, priors=rates)
    np.testing.assert_array_equal(decision(z), p > [0.05, 0.6])

    loss = GCALoss([9, 1], target_priors=[1, 2])
    decision = Decision(loss, threshold=0.2, priors=[8, 2], temperature=1.5)
    p = loss.posterior(z, priors=[8, 2], temperature=1.5)[:, 1]
    np.testing.assert_array_equal(decision(z), p > 0.2)
    assert decision.scores(z).shape == z.shape
    all_of_them = Decision(BinaryGLALoss(0.1), threshold=0, priors=0.1)
    assert all_of_them(np.array([-30.0, 0.0, 30.0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("loss", [BinaryGLALoss(0.1), BinaryGCALoss(0.1)], ids=["GLA", "GCA"])
@pytest.mark.parametrize("rule", ["default", "costs", "threshold", "logits"])
def test_a_single_step_keeps_its_axis(loss, rule, rng):
    arguments = {
        "costs": {"costs": [[0, 1], [9, 0]], "priors": 0.1},
        "threshold": {"threshold": 0.2, "priors": 0.1},
        "logits": {"by": "logits"},
    }
    decision, z = Decision(loss, **arguments.get(rule, {})), logits(rng, 50, 1, 1)
    found = decision(z)
    assert found.shape == (50, 1)
    np.testing.assert_array_equal(found[:, 0], decision(z[:, 0]))
    assert decision.scores(z).shape == (50, 1, 2)


def test_any_rank(rng):
    z = logits(rng, 2, 5, 3)
    for loss in (LOSSES["gla_tau"], LOSSES["gca"]):
        for rule in RULES.values():
            decision = Decision(loss, **rule)
            flat = decision(z.reshape(10, 3))
            np.testing.assert_array_equal(decision(z), flat.reshape(2, 5))
            assert decision(z[0, 0]) == flat[0]
            assert decision.scores(z).shape == z.shape
            assert decision(z[:0]).shape == (0, 5)
    labels = Decision(BinaryGCALoss([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(labels(z), labels(z.reshape(10, 3)).reshape(2, 5, 3))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_any_dtype(dtype, rng):
    z = (4 * rng.normal(size=(500, 3))).astype(dtype)
    for rule in RULES.values():
        decision = Decision(LOSSES["gla_tau"], **rule)
        np.testing.assert_array_equal(decision(z), decision(z.astype("float32")))


@pytest.mark.parametrize("rule", [{}, {"by": "logits"}, {"target_priors": [1, 1, 1]}])
def test_ties_go_to_the_lower_id(rule):
    """Though constants that cancel leave a rounding error."""
    z = np.array([[0.0, 0, 0], [-0.0, 0.0, -1], [-1.0, 2, 2], [1e-30, 0, 1e-30]])
    for priors in (PRIORS, PRIORS[::-1], [1, 1, 1], [7, 11, 13]):
        for q in (0.0, 0.3, 0.7):
            assert Decision(GLALoss(priors, q), **rule)(z).tolist() == [0, 0, 1, 0]
    for rate in (0.1, 0.3, 0.7):
        assert Decision(BinaryGLALoss(rate))(np.array([0.0, -0.0])).tolist() == [0, 0]


def test_multipliers_are_a_mix(rng):
    multipliers = np.array([1.0, 0.2, 7.0])
    for loss in LOSSES.values():
        z = logits(rng, 500, 3)
        mix = multipliers * loss.surrogate.target_priors
        expected = np.log(multipliers) + log_posterior(loss, z) / 1.3
        assert_decided(Decision(loss, target_priors=mix, temperature=1.3)(z), expected)


def test_kinds_that_say_the_same_decide_alike(rng):
    """Costs of 1 are the most probable class; a cost ratio is a threshold, and that a mix."""
    z = logits(rng, 500, 3)
    for loss in LOSSES.values():
        by_costs = Decision(loss, costs=1 - np.eye(3), priors=PRIORS, temperature=1.4)
        by_mix = Decision(loss, target_priors=PRIORS, temperature=1.4)
        kept = away_from_ties(by_mix.scores(z))
        np.testing.assert_array_equal(by_costs(z)[kept], by_mix(z)[kept])
    for loss in (BinaryGCALoss(0.1, 0.1), BinaryGLALoss(0.1), GCALoss([9, 1])):
        y_pred = z[:, :2] if not loss.surrogate.binary else z[:, 0]
        priors = 0.05 if loss.surrogate.binary else [95, 5]
        by_costs = Decision(loss, costs=[[1, 3], [31, 2]], priors=priors)
        by_threshold = Decision(loss, threshold=2 / 31, priors=priors)
        np.testing.assert_array_equal(by_costs(y_pred), by_threshold(y_pred))


def test_tiny_probabilities_decide(rng):
    """A cost of a millionth's probability, where float32 knows no 1 - p."""
    loss = BinaryGLALoss(1e-6)
    z = np.linspace(-12, 12, 400).astype("float32")
    expected = oracle.log_softmax(np.stack([0 * z, z + np.log(1e-9)], -1).astype("float64"))
    expected = oracle.decision_scores(expected, np.ones(2), costs=[[0, 1], [1e7, 0]])
    decision = Decision(loss, costs={(0, 1): 1, (1, 0): 1e7}, priors=1e-9)
    kept = np.abs(np.diff(expected)[:, 0]) > 1e-4
    np.testing.assert_array_equal(decision(z)[kept], expected.argmax(-1)[kept])
    assert set(decision(z).tolist()) == {0, 1}


MASKS = [-np.inf, -1e9, -1e6, float(np.finfo("float32").min)]


@pytest.mark.parametrize("low", MASKS)
@pytest.mark.parametrize(
    "name", ["gla", "gla_tau", "weighted", "gla_smoothed", "gca", "gca_q", "gca_smoothed"]
)
def test_masked_classes_never_win(name, low, rng):
    """Not where the costs make them the best compromise, nor for a mix of only them."""
    loss, z = LOSSES[name], logits(rng, 500, 3)
    z[:, 1] = low
    compromise = np.array([[0, 1, 50], [9, 0, 9], [50, 1, 0]])
    for rule in (
        *RULES.values(),
        {"target_priors": [1e-6, 1 - 2e-6, 1e-6]},
        {"costs": compromise, "priors": [1, 1, 1]},
        {"costs": compromise, "priors": [1, 100, 1], "temperature": 3.0},
    ):
        decision = Decision(loss, **rule)
        assert set(decision(z).tolist()) <= {0, 2}
        assert np.isfinite(decision.scores(z)[:, [0, 2]]).all()
        assert set(decision.scores(z).argmax(-1).tolist()) <= {0, 2}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gla_tau", "gca"])
def test_classes_that_are_not_met_never_win(name, rule, rng):
    """By the mix of a request."""
    with np.errstate(divide="ignore"):
        log_priors = np.log(np.array([0.6, 0.0, 0.4], "float32"))
    z = ops.convert_to_tensor(logits(rng, 500, 3))
    found = numpy(Decision(LOSSES[name], **RULES[rule]).of_logits(z, log_priors))
    assert set(found.tolist()) == {0, 2}


@pytest.mark.parametrize("make", [GLALoss, GCALoss])
def test_absent_classes_never_win(make, rng):
    """The others are decided as by a loss that does not know it."""
    z = logits(rng, 500, 4)
    z[:, 2] += 20
    occurs = [0, 1, 3]
    wide = make([7, 2.5, 0, 0.5], target_priors=[1, 1, 0, 2])
    narrow = make([7, 2.5, 0.5], target_priors=[1, 1, 2])
    costs = np.zeros((4, 4))
    costs[np.ix_(occurs, occurs)] = COSTS
    for ours, theirs in [
        ({}, {}),
        ({"by": "logits"}, {"by": "logits"}),
        ({"target_priors": [3, 2, 0, 1]}, {"target_priors": [3, 2, 1]}),
        ({"costs": costs, "priors": [3, 2, 0, 1]}, {"costs": COSTS, "priors": [3, 2, 1]}),
    ]:
        expected = Decision(narrow, **theirs).scores(z[:, occurs])
        kept = away_from_ties(expected)
        found = Decision(wide, **ours)(z)
        np.testing.assert_array_equal(found[kept], np.array(occurs)[expected.argmax(-1)][kept])
    pairs = {(j, k): COSTS[a, b] for a, j in enumerate(occurs) for b, k in enumerate(occurs)}
    assert Decision(wide, costs=pairs, priors=[3, 2, 0, 1]).costs == costs.tolist()


CASES = {
    **{
        (name, rule): (LOSSES[name], RULES[rule], (3,))
        for name in ("gla_tau", "gca", "gca_smoothed")
        for rule in RULES
    },
    **{
        (name, rule): (loss, BINARY_RULES[rule], shape)
        for name, loss, shape in [
            ("one", BinaryGCALoss(0.1), (1,)),
            ("labels", BinaryGLALoss([0.1, 0.3]), (2,)),
        ]
        for rule in BINARY_RULES
    },
    ("steps", "costs"): (LOSSES["gca"], RULES["costs"], (None, 3)),
}


def half_slow(cases):
    """Every other of the cases, each of which is compiled, among the slow tests."""
    return [
        pytest.param(of, id=" ".join(of), marks=[pytest.mark.slow] * (i % 2))
        for i, of in enumerate(cases)
    ]


@pytest.mark.parametrize("case", half_slow(CASES))
def test_as_the_end_of_a_model(case, rng, tmp_path):
    loss, rule, shape = CASES[case]
    decision = Decision(loss, **rule)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, [decision(inputs), decision.scores(inputs)])
    z = logits(rng, 40, *(4 if size is None else size for size in shape))
    expected = decision(z), decision.scores(z)
    answers = model.predict(z, verbose=0)
    for answer, output, said in zip(answers, model.outputs, expected, strict=True):
        assert len(output.shape) == answer.ndim
        assert output.shape[1:] == answer.shape[1:] or None in output.shape[1:]
        assert output.dtype == answer.dtype.name
        np.testing.assert_allclose(answer, said, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(z)[0]), expected[0])
    assert loaded.layers[-1].decision == decision


def test_a_layer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="must have the 3 classes"):
        Decision(LOSSES["gla"])(keras.Input((4,)))
    with pytest.raises(ValueError, match="must have the 3 classes"):
        Decision(BinaryGLALoss([0.1, 0.2, 0.3]))(keras.Input((2,)))


@pytest.mark.parametrize("case", half_slow(CASES))
def test_compiled(case, rng):
    loss, rule, shape = CASES[case]
    decision = Decision(loss, **rule)
    z = logits(rng, 40, *(4 if size is None else size for size in shape))
    if backends.backend_name() == "jax":
        import jax

        compiled = jax.jit(decision)
    elif backends.backend_name() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(decision, jit_compile=True)
    else:
        pytest.skip("PyTorch has nothing of the kind here")
    np.testing.assert_array_equal(numpy(compiled(ops.convert_to_tensor(z))), decision(z))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_config_is_plain_and_whole(case):
    loss, rule, _ = CASES[case]
    rule = {name: np.array(v) if isinstance(v, list) else v for name, v in rule.items()}
    decision = Decision(loss, **rule)
    written = json.dumps(keras.saving.serialize_keras_object(decision))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert again == decision
    assert hash(again) == hash(decision)
    assert json.dumps(keras.saving.serialize_keras_object(again)) == written
    assert (decision == Decision(loss)) == (rule == {})
    assert decision != loss


def test_arguments_in_other_forms(rng):
    z, prior = logits(rng, 100, 3), ClassPrior(3, counts=[7, 2, 1])
    loss = GCALoss(prior)
    pairs = {(j, k): float(COSTS[j, k]) for j in range(3) for k in range(3)}
    first = Decision(loss, costs=pairs, priors=prior)
    second = Decision(loss, costs=COSTS.tolist(), priors={0: 0.7, 1: 0.2, 2: 0.1})
    assert first == second
    np.testing.assert_array_equal(first(z), second(z))
    pandas = pytest.importorskip("pandas")
    assert Decision(loss, costs=pandas.DataFrame(COSTS), priors=prior) == first
    np.testing.assert_array_equal(numpy(first(z.tolist())), first(z))


def test_probabilities_as_predictions(rng):
    z = logits(rng, 500, 3)
    p = np.exp(oracle.log_softmax(z.astype("float64"))).astype("float32")
    for rule in RULES.values():
        ours = Decision(GCALoss(PRIORS, from_logits=False), **rule)
        scores = Decision(GCALoss(PRIORS), **rule).scores(z)
        kept = away_from_ties(scores)
        np.testing.assert_array_equal(ours(p)[kept], scores.argmax(-1)[kept])
    p = 1 / (1 + np.exp(-z[:, :1]))
    by_half = Decision(BinaryGLALoss(0.1, from_logits=False), by="logits")
    np.testing.assert_array_equal(by_half(p), p[:, 0] > 0.5)


@pytest.mark.parametrize(
    ("loss", "rule", "words"),
    [
        (GLALoss(PRIORS), {}, "the most probable class where every class is equally frequent"),
        (GLALoss(PRIORS), {"target_priors": WANTED}, r"class in the class mix \[0.2, 0.3, 0.5\]"),
        (GLALoss(PRIORS, target_priors=WANTED), {}, r"class in the class mix \[0.2, 0.3, 0.5\]"),
        (GCALoss(PRIORS), {"costs": COSTS, "priors": WANTED}, r"cost, .*\(3, 3\).* mix \[0.2"),
        (GLALoss(PRIORS), {"by": "logits", "temperature": 2}, "largest logit, at temperature 2"),
        (BinaryGLALoss(0.1), {"by": "logits"}, "a logit above 0"),
        (
            BinaryGLALoss(0.1),
            {"threshold": 0.02, "priors": 0.01},
            "a probability of label 1 above 0.02 at the positive rate 0.01",
        ),
        (
            BinaryGLALoss(0.1),
            {"costs": [[0, 1], [50, 0]], "priors": 0.01},
            r"the least expected cost, of costs \[\[0, 1\], \[50, 0\]\], at the positive rate 0.01",
        ),
        (GLALoss(np.arange(1, 101), target_priors=np.arange(100, 0, -1)), {}, r"0.0188, ...\]"),
    ],
)
def test_says_its_rule_in_words(loss, rule, words):
    said = repr(Decision(loss, **rule))
    assert said.startswith("Decision: ")
    assert said.endswith(f"by {loss!r}")

    assert re.search(words, said)


class OnlyCall(BalancedLoss):
    def __init__(self, **kwargs):
        super().__init__(Surrogate(PRIORS), **kwargs)

    def call(self, y_true, y_pred):
        return super().call(y_true, 2 * y_pred)


class Both(OnlyCall):
    def log_posterior(self, logits, *, priors=None):
        return super().log_posterior(2 * logits, priors=priors)


class CallAgain(Both):
    def call(self, y_true, y_pred):
        return super().call(y_true, 3 * y_pred)


class OnlyLogits(BalancedLoss):
    def __init__(self, **kwargs):
        super().__init__(Surrogate(PRIORS), **kwargs)

    def logits(self, y_pred):
        return super().logits(y_pred) * ops.convert_to_tensor([1.0, 2.0, 3.0])


def test_losses_of_ones_own(rng):
    for loss in (OnlyCall(), CallAgain()):
        message = f"override `log_posterior` too.*an? {type(loss).__name__}$"
        with pytest.raises(ValueError, match=message):
            Decision(loss)
    z = logits(rng, 500, 3)
    plain = BalancedLoss(Surrogate(PRIORS))
    scaled = z * np.array([1, 2, 3], "float32")
    for rule in RULES.values():
        expected = Decision(plain, **rule)(scaled)
        np.testing.assert_array_equal(Decision(OnlyLogits(), **rule)(z), expected)
        expected = Decision(plain, **rule)(z if "by" in rule else 2 * z)
        np.testing.assert_array_equal(Decision(Both(), **rule)(z), expected)


THREE, TWO, ONE = GLALoss(PRIORS), GLALoss([1, 1]), BinaryGLALoss(0.1)
LABELS = BinaryGLALoss([0.1, 0.2])


@pytest.mark.parametrize(
    ("loss", "rule", "message"),
    [
        (keras.losses.MeanSquaredError(), {}, r"plain cross-entropy `GLALoss\(priors, tau=0\)`"),
        (THREE, {"by": "argmax"}, '`by` must be "posterior" or "logits"'),
        (THREE, {"by": "logits", "target_priors": PRIORS}, "Received: `target_priors`, `by="),
        (THREE, {"by": "logits", "costs": COSTS}, "by one of"),
        (GLALoss([9, 1]), {"costs": [[0, 1], [1, 0]], "threshold": 0.1}, "`costs`, `threshold`"),
        (THREE, {"costs": COSTS}, "`priors`, the class mix .* must be given"),
        (ONE, {"threshold": 0.2}, "Received: `threshold` and priors=None"),
        (THREE, {"priors": PRIORS}, "`priors`, .* must be left out"),
        (THREE, {"priors": PRIORS, "by": "logits"}, "must be left out"),
        (THREE, {"priors": PRIORS, "target_priors": PRIORS}, "must be left out"),
        (THREE, {"target_priors": [1, 1]}, "`target_priors` must have .* 3 classes"),
        (THREE, {"target_priors": [1, 1, 0]}, "`target_priors` must be positive"),
        (THREE, {"costs": COSTS, "priors": [1, 1, 0]}, "`priors` must be positive"),
        (THREE, {"costs": COSTS, "priors": [1, np.nan, 0]}, "`priors` must be positive"),
        (THREE, {"costs": COSTS[::-1], "priors": PRIORS}, r"row \[40.*class 0; is .* transposed"),
        (THREE, {"costs": COSTS[:2], "priors": PRIORS}, r"shape \(3, 3\).*shape \(2, 3\)"),
        (THREE, {"costs": COSTS + np.nan, "priors": PRIORS}, "finite"),
        (THREE, {"costs": COSTS + np.inf, "priors": PRIORS}, "finite"),
        (THREE, {"costs": "high", "priors": PRIORS}, "finite numbers of shape"),
        (THREE, {"costs": {(2, 0): 5.0}, "priors": PRIORS}, r"none for \[\(0, 1\)"),
        (TWO, {"costs": {(0, 1): 1, (1, 0): np.nan}, "priors": [1, 1]}, "finite"),
        (TWO, {"costs": {(0, 1): 1, (1, 2): 1}, "priors": [1, 1]}, r"keys \[\(1, 2\)\]"),
        (THREE, {"threshold": 0.5}, "left out for more than two classes"),
        (ONE, {"threshold": 1.0, "priors": 0.1}, r"a number in \[0, 1\)\. Received: .*=1"),
        (ONE, {"threshold": np.nan, "priors": 0.1}, "Received: threshold=nan"),
        (ONE, {"threshold": [0.1, 0.2], "priors": 0.1}, r"a number in \[0, 1\)\."),
        (LABELS, {"threshold": [0.1], "priors": 0.1}, "or 2 of them, one for each"),
        (LABELS, {"target_priors": [0.1, 0.2, 0.3]}, "one for each label"),
        (ONE, {"target_priors": 1.5}, "`target_priors` must be the positive rate"),
        (THREE, {"temperature": 0.0}, "`temperature` must be in"),
        (THREE, {"temperature": np.nan}, "`temperature` must be in"),
    ],
)
def test_refuses_what_does_not_fit(loss, rule, message):
    with pytest.raises(ValueError, match=message) as raised:
        Decision(loss, **rule)
    assert len(str(raised.value)) <= 600


def test_refuses_predictions_that_do_not_fit(rng):
    for decide in (Decision(GLALoss(PRIORS)), Decision(GCALoss(PRIORS)).scores):
        with pytest.raises(ValueError, match="must have the 3 classes"):
            decide(logits(rng, 5, 4))
    with pytest.raises(ValueError, match="must have the 2 classes"):
        Decision(BinaryGLALoss([0.1, 0.2]))(logits(rng, 5, 1))
    with pytest.raises(ValueError, match="masked array"):
        Decision(GLALoss(PRIORS))(np.ma.masked_less(logits(rng, 5, 3), 0))


def test_of_arrays_few_sizes_are_compiled(rng):
    """On JAX each new size costs seconds, and memory that stays."""
    z = logits(rng, 100, 3)
    for loss in (LOSSES["gla_tau"], LOSSES["gca"]):
        decision = Decision(loss, **RULES["costs"])
        for rows in (0, 1, 5, 64, 99):
            assert decision(z[:rows]).tolist() == decision(z)[:rows].tolist()
            p = loss.posterior(z[:rows])
            assert type(p) is np.ndarray
            np.testing.assert_allclose(p, loss.posterior(z)[:rows], rtol=1e-5)
    sizes = set()

    def remember(y_pred):
        sizes.add(len(y_pred))
        return ops.convert_to_tensor(y_pred) * 2

    for rows in range(1, 1001, 7):
        x = np.ones((rows, 2), "float32")
        np.testing.assert_array_equal(backends.of_rows(remember, x, 1), 2 * x)
    assert len(sizes) <= 11 or backends.backend_name() != "jax"


def test_is_public():
    assert keras_balanced.Decision is Decision
    assert keras.saving.get_registered_name(Decision) == "keras_balanced>Decision"
    assert callable(keras_balanced.serving.find_threshold)
