"""The decision found on held-out data, against scikit-learn's scores and every threshold."""

import functools
import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from keras_balanced import BinaryGCALoss, BinaryGLALoss, Decision, GCALoss, GLALoss, serving
from keras_balanced.scores import SCORES
from keras_balanced.serving import find_decision


def recalls_of(y, decided, w=None):
    return sk.recall_score(y, decided, average=None, labels=np.unique(y), sample_weight=w)


def geometric_mean(y, decided, sample_weight=None):
    recalls = recalls_of(y, decided, sample_weight)
    return np.prod(recalls) ** (1 / len(recalls))


ORACLES = {
    "macro_f1": functools.partial(sk.f1_score, average="macro"),
    "f1": sk.f1_score,
    "geometric_mean": geometric_mean,
    "worst_class_recall": lambda y, d, sample_weight=None: recalls_of(y, d, sample_weight).min(),
    "balanced_accuracy": sk.balanced_accuracy_score,
    "accuracy": sk.accuracy_score,
    "matthews": sk.matthews_corrcoef,
}
OF_MANY = sorted(set(ORACLES) - {"f1"})


def problem(seed, number=150, num_classes=3, ratio=10.0, noise=1.0):
    """Returns log-posteriors `(N, K)` under the training mix, labels, and that mix."""
    rng = np.random.default_rng(seed)
    priors = ratio ** -np.linspace(0, 1, num_classes)
    priors = priors / priors.sum()
    y = np.concatenate([np.arange(num_classes), rng.choice(num_classes, number, p=priors)])
    x = 2.0 * np.eye(num_classes)[y] + noise * rng.normal(size=(len(y), num_classes))
    z = (2.0 * x / noise**2 + np.log(priors)).astype("float32")
    return z - z.max(axis=1, keepdims=True), y, priors


def by_mix(z, log_mix):
    return (z + log_mix).argmax(axis=1)


def starts(priors):
    return [np.zeros_like(priors), np.log(priors), 0.5 * np.log(priors)]


@pytest.mark.parametrize("name", SCORES)
def test_named_scores_are_those_of_scikit_learn(name, rng):
    num_classes = 2 if name == "f1" else 4
    for _ in range(5):
        y, decided = rng.integers(0, num_classes, (2, 40))
        w = rng.random(40)
        matrix = sk.confusion_matrix(y, decided, sample_weight=w)
        expected = ORACLES[name](y, decided, sample_weight=w)
        np.testing.assert_allclose(SCORES[name](matrix), expected, atol=1e-9)
        stack = np.stack([[matrix, np.eye(num_classes)]])
        np.testing.assert_allclose(SCORES[name](stack), [[expected, 1.0]], atol=1e-9)


def test_scores_of_classes_that_do_not_come_up():
    y, decided = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 0])
    matrix = np.zeros((3, 3))
    np.add.at(matrix, (y, decided), 1.0)
    for name in ("macro_f1", "accuracy", "matthews", "geometric_mean", "worst_class_recall"):
        np.testing.assert_allclose(SCORES[name](matrix), ORACLES[name](y, decided), err_msg=name)
    np.testing.assert_allclose(SCORES["balanced_accuracy"](matrix), 0.5)


@pytest.mark.parametrize("name", ORACLES)
def test_of_two_classes_no_threshold_is_better(name):
    for seed in range(6):
        z, y, priors = problem(seed, 60, 2, noise=2.0)
        w = np.random.default_rng(seed).random(len(y)) + 0.1 if seed % 2 else None
        difference = z[:, 1] - z[:, 0]
        ordered = np.sort(difference)
        between = (ordered[1:] + ordered[:-1]) / 2
        best = max(
            ORACLES[name](y, (difference > t).astype(int), sample_weight=w)
            for t in [ordered[0] - 1, *between, ordered[-1] + 1]
        )
        for loss, y_pred in [
            (GLALoss(priors, tau=0), z),
            (GCALoss(priors), z),
            (BinaryGLALoss(priors[1], tau=0), difference),
            (BinaryGCALoss(priors[1]), difference[:, None]),
        ]:
            folds = [None, 5][seed % 3 == 0]
            found = find_decision(y_pred, y, loss, score=name, sample_weight=w, folds=folds)
            served = ORACLES[name](y, found.decision(y_pred), sample_weight=w)
            np.testing.assert_allclose([found.score, served], best, atol=1e-9)


@pytest.mark.parametrize("name", OF_MANY)
def test_of_many_classes_no_move_of_one_is_better(name):
    z, y, priors = problem(1)
    found = find_decision(z, y, GLALoss(priors, tau=0), score=name, folds=None)
    log_mix = np.log(found.decision.target_priors) - np.log(priors)
    for k in range(3):
        others = np.delete(z + log_mix, k, axis=1).max(axis=1)
        flips = np.sort(others - z[:, k])
        for value in [flips[0] - 1, *(flips[1:] + flips[:-1]) / 2, flips[-1] + 1]:
            moved = log_mix.copy()
            moved[k] = value
            assert ORACLES[name](y, by_mix(z, moved)) <= found.score + 1e-9


@pytest.mark.parametrize("name", OF_MANY)
def test_three_classes_against_a_grid(name):
    grid = np.linspace(-5, 5, 41)
    for seed in (0, 2, 3):
        z, y, priors = problem(seed, 80, noise=1.5)
        found = find_decision(z, y, GLALoss(priors, tau=0), score=name, folds=None)
        matrices = []
        for first, second in itertools.product(grid, grid):
            decided = by_mix(z, np.array([0.0, first, second]))
            matrices.append(np.bincount(3 * y + decided, minlength=9).reshape(3, 3))
        assert SCORES[name](np.array(matrices, float)).max() <= found.score + 1e-3


@pytest.mark.parametrize("name", OF_MANY)
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_its_starts(name, seed):
    z, y, priors = problem(seed, 200, 6, ratio=50, noise=1.5)
    w = np.random.default_rng(seed).random(len(y))
    loss = GLALoss(priors, tau=0)
    found = find_decision(z, y, loss, score=name, sample_weight=w, folds=None)
    # The score and the recalls are those of what is served.
    served = found.decision(z)
    oracle = functools.partial(ORACLES[name], sample_weight=w)
    np.testing.assert_allclose(found.score, oracle(y, served), atol=1e-9)
    np.testing.assert_allclose(found.recalls, recalls_of(y, served, w))
    for log_mix in starts(priors):
        assert oracle(y, by_mix(z, log_mix - np.log(priors))) <= found.score + 1e-9


def test_a_function_is_as_its_name():
    z, y, priors = problem(4, num_classes=4)
    w, seen = np.random.default_rng(0).random(len(y)), []

    def macro_f1(confusion):
        seen.append(confusion)
        right = np.diagonal(confusion, axis1=-2, axis2=-1)
        return (2 * right / (confusion.sum(axis=-1) + confusion.sum(axis=-2))).mean(axis=-1)

    loss = GLALoss(priors, tau=0)
    by_name = find_decision(z, y, loss, sample_weight=w, folds=3)
    by_function = find_decision(z, y, loss, score=macro_f1, sample_weight=w, folds=3)
    assert by_function.decision == by_name.decision
    np.testing.assert_allclose(by_function.expected_score, by_name.expected_score)
    # Of weights, not of fractions.
    np.testing.assert_allclose(seen[-1].sum(), w.sum())

    # NaN is the worst.
    first = macro_f1(sk.confusion_matrix(y, z.argmax(axis=1), sample_weight=w))
    found = find_decision(
        *(z, y, loss),
        sample_weight=w,
        folds=None,
        score=lambda c: np.where(macro_f1(c) < first - 1e-6, np.nan, -macro_f1(c)),
    )
    assert -first - 1e-6 <= found.score <= -first + 1e-6
    # Also of a step of the way, on the parts left out.
    least = by_name.expected_score
    found = find_decision(
        *(z, y, loss),
        sample_weight=w,
        folds=3,
        score=lambda c: np.where(macro_f1(c) < least, np.nan, macro_f1(c)),
    )
    assert found.decision == by_name.decision


def test_floors_are_kept():
    z, y, priors = problem(5, 400, 4, ratio=20, noise=1.5)
    loss = GLALoss(priors, tau=0)
    free = find_decision(z, y, loss, folds=None)
    floors = {3: 0.9, np.int64(0): 0.6}
    assert free.recalls[3] < 0.9
    found = find_decision(z, y, loss, min_recall=floors)
    assert found.recalls[3] >= 0.9
    assert found.recalls[0] >= 0.6
    assert found.score <= free.score
    # Never worse than a start that keeps them.
    for log_mix in starts(priors):
        decided = by_mix(z, log_mix - np.log(priors))
        recalls = recalls_of(y, decided)
        if recalls[3] >= 0.9 and recalls[0] >= 0.6:
            assert sk.f1_score(y, decided, average="macro") <= found.score + 1e-9
    assert find_decision(z, y, loss, min_recall={}, folds=None).decision == free.decision


def test_floors_of_two_classes_are_exact():
    z, y, priors = problem(6, 100, 2, noise=2.0)
    difference = z[:, 1] - z[:, 0]
    ordered = np.sort(difference)
    between = [ordered[0] - 1, *(ordered[1:] + ordered[:-1]) / 2, ordered[-1] + 1]
    loss = BinaryGLALoss(priors[1], tau=0)
    decided = [(difference > t).astype(int) for t in between]
    kept = [d for d in decided if recalls_of(y, d)[1] >= 0.9]
    found = find_decision(difference, y, loss, score="accuracy", min_recall={1: 0.9})
    assert found.recalls[1] >= 0.9
    np.testing.assert_allclose(found.score, max(sk.accuracy_score(y, d) for d in kept))
    best = max(recalls_of(y, d)[0] for d in decided if recalls_of(y, d)[1] == 1.0)
    with pytest.raises(ValueError, match=r"`min_recall` must be kept by a decision.*recalls \{0:"):
        find_decision(difference, y, loss, min_recall={1: 1.0, 0: best + 0.01})
    assert find_decision(difference, y, loss, min_recall={1: 1.0, 0: best}).recalls[0] == best


def test_floors_that_no_start_leads_to_are_kept(rng):
    z, y, priors = problem(0, 100, 5, ratio=10, noise=2.0)
    floors = recalls_of(y, by_mix(z, 1.5 * rng.normal(size=5)))
    kept = dict(enumerate(floors))
    found = find_decision(z, y, GLALoss(priors, tau=0), min_recall=kept, folds=None)
    assert (found.recalls >= floors - 1e-9).all()


def test_many_classes_of_recall_0_are_found_one_by_one():
    z, y, priors = problem(7, 300, 8, ratio=100, noise=1.5)
    z = z + 5.0 * np.arange(8)[::-1]  # All starts decide for few classes.
    loss = GLALoss(priors, tau=0)
    for name in ("geometric_mean", "worst_class_recall"):
        assert find_decision(z.astype("float32"), y, loss, score=name, folds=None).score > 0.2


def test_priors_weight_the_data(rng):
    z, y, priors = problem(8)
    loss = GLALoss(priors, tau=0)
    wanted = np.array([1, 1, 2])
    w = (wanted / np.bincount(y))[y]
    first = find_decision(z, y, loss, priors=wanted, folds=None)
    second = find_decision(z, y, loss, sample_weight=w, folds=None)
    assert first.decision == second.decision
    expected = sk.f1_score(y, first.decision(z), average="macro", sample_weight=w)
    np.testing.assert_allclose([first.score, second.score], expected)
    # Of weights too.
    given = 0.5 + rng.random(len(y))
    w = given * (wanted / np.bincount(y, given))[y]
    found = find_decision(z, y, loss, priors=wanted, sample_weight=given, folds=None)
    expected = sk.f1_score(y, found.decision(z), average="macro", sample_weight=w)
    np.testing.assert_allclose(found.score, expected)
    assert first.decision != find_decision(z, y, loss, folds=None).decision
    # A weight of 2 is an example that is there twice.
    twice = find_decision(
        np.concatenate([z, z[y == 2]]), np.concatenate([y, y[y == 2]]), loss, folds=None
    )
    weighted = find_decision(z, y, loss, sample_weight=np.where(y == 2, 2.0, 1.0), folds=None)
    np.testing.assert_allclose(twice.score, weighted.score)
    one = BinaryGLALoss(0.1)
    z, y, _ = problem(9, num_classes=2)
    rate = find_decision(z[:, 1] - z[:, 0], y, one, priors=0.01, folds=None)
    w = (np.array([0.99, 0.01]) / np.bincount(y))[y]
    served = rate.decision(z[:, 1] - z[:, 0])
    np.testing.assert_allclose(rate.score, sk.f1_score(y, served, average="macro", sample_weight=w))


def test_expected_score_is_that_of_new_data():
    new, new_labels, _ = problem(100, 20_000, 4, ratio=10, noise=1.5)
    too_good, honest = [], []
    for seed in range(8):
        z, y, priors = problem(seed, 60, 4, ratio=10, noise=1.5)
        found = find_decision(z, y, GLALoss(priors, tau=0), seed=seed)
        reached = sk.f1_score(new_labels, found.decision(new), average="macro")
        too_good.append(found.score - reached)
        honest.append(found.expected_score - reached)
    assert np.mean(too_good) > 0.03
    assert abs(np.mean(honest)) < 0.5 * np.mean(too_good)


def test_a_seed_draws_the_parts():
    z, y, priors = problem(3, 80, 4, ratio=10, noise=1.5)
    loss = GLALoss(priors, tau=0)
    scores = [find_decision(z, y, loss, seed=seed).expected_score for seed in (0, 0, 1, 2)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


def test_each_part_is_decided_by_the_others():
    # Two examples a class, that contradict each other: what one part teaches is wrong for another.
    logits = np.array([0.0, 1.0, 2.0, 3.0])
    labels = np.array([0, 1, 0, 1])
    loss = BinaryGLALoss(0.5)
    found = find_decision(logits, labels, loss, score="accuracy", folds=4)
    assert found.score == 0.75
    assert found.expected_score <= 0.75
    assert found.expected_recalls.shape == (2,)
    np.testing.assert_allclose(found.expected_recalls.mean(), found.expected_score)
    again = find_decision(logits, labels, loss, score="accuracy", folds=4)
    assert again.expected_score == found.expected_score
    assert find_decision(logits, labels, loss, folds=None)[3:] == (None, None)
    assert find_decision(logits[:3], labels[:3], loss)[3:] == (None, None)
    many = find_decision(logits, labels, loss, score="accuracy", folds=50)
    assert many.expected_score is not None


def test_a_part_that_is_left_out_leaves_the_class_mix_as_it_is():
    """Or a label left out by itself would be in the minority, and never what is decided."""
    found = find_decision(
        np.zeros(8), np.arange(8) % 2, BinaryGLALoss(0.5), score="accuracy", folds=8
    )
    assert found.score == found.expected_score == 0.5


def test_goes_a_part_of_the_way_that_cross_fitting_chooses():
    new, new_labels, _ = problem(100, 20_000, 4, ratio=10, noise=1.5)
    steps, gains = [], []
    for seed in range(12):
        z, y, priors = problem(seed, 80, 4, ratio=10, noise=1.5)
        loss = GLALoss(priors, tau=0)
        best, found = (find_decision(z, y, loss, folds=folds) for folds in (None, 5))
        in_sample = [
            sk.f1_score(y, by_mix(z, s - np.log(priors)), average="macro") for s in starts(priors)
        ]
        start = starts(priors)[int(np.argmax(in_sample))]
        assert max(in_sample) - 1e-9 <= found.score <= best.score
        way = np.log(best.decision.target_priors) - start
        alike = [
            (by_mix(z, start + step * way - np.log(priors)) == found.decision(z)).all()
            for step in (0, 0.25, 0.5, 0.75, 1)
        ]
        assert any(alike)
        steps.append(int(np.argmax(alike)))
        reached = [
            sk.f1_score(new_labels, of.decision(new), average="macro") for of in (found, best)
        ]
        gains.append(reached[0] - reached[1])
    assert len(set(steps)) > 2
    assert np.mean(gains) > 0.01


@pytest.mark.parametrize(("seed", "num_classes"), [(18, 5), (120, 3)])
def test_a_part_of_the_way_is_no_worse_than_the_starts(seed, num_classes):
    """Though cross-fitting would choose a step that is, on these data."""
    z, y, priors = problem(seed, 40, num_classes, noise=2.0)
    found = find_decision(z, y, GLALoss(priors, tau=0))
    for log_mix in starts(priors):
        decided = by_mix(z, log_mix - np.log(priors))
        assert sk.f1_score(y, decided, average="macro") <= found.score + 1e-9


def test_of_a_single_example_or_with_floors_all_of_the_way(rng):
    z, y, priors = problem(3, 80, 4, ratio=10, noise=1.5)
    loss = GLALoss(priors, tau=0)
    floors = {3: find_decision(z, y, loss, folds=None).recalls[3]}
    best, found = (find_decision(z, y, loss, min_recall=floors, folds=n) for n in (None, 5))
    assert found.decision == best.decision
    assert found.expected_score is not None
    single = np.flatnonzero((y != 3) | (np.cumsum(y == 3) == 1))
    best, found = (find_decision(z[single], y[single], loss, folds=n) for n in (None, 5))
    assert found.decision == best.decision
    assert found.expected_score is None


def test_stands_in_the_middle_of_its_interval():
    loss = BinaryGLALoss(0.5)
    found = find_decision(np.array([-3.0, -1.0, 2.0, 5.0]), [0, 0, 1, 1], loss, folds=None)
    rate = found.decision.target_priors
    np.testing.assert_allclose(np.log(rate / (1 - rate)), -0.5, atol=1e-6)


def test_forms_of_the_data(rng):
    z, y, priors = problem(10, 117)
    loss = GLALoss(priors, tau=0)
    expected = find_decision(z, y, loss).decision
    assert find_decision(z.tolist(), y.tolist(), loss).decision == expected
    assert find_decision(z, y[:, None], loss).decision == expected
    assert find_decision(z, np.eye(3)[y], loss).decision == expected
    assert find_decision(z.reshape(12, 10, 3), y.reshape(12, 10), loss).decision == expected
    # What is ignored, or has no weight, may be anything.
    ignoring = GLALoss(priors, tau=0, ignore_class=-1)
    more, labels = np.concatenate([z, z[:20]]), np.concatenate([y, np.full(20, -1)])
    more[-1] = np.nan
    found = find_decision(more, labels, ignoring)
    assert found.decision.target_priors == expected.target_priors
    w = np.where(labels < 0, 0.0, 3.0)
    assert find_decision(more, labels, loss, sample_weight=w).decision == expected
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    of_p = find_decision(p, y, GLALoss(priors, tau=0, from_logits=False), folds=None)
    np.testing.assert_array_equal(of_p.decision(p), expected(z))


def test_any_loss_and_temperature():
    z, y, priors = problem(11)
    wanted = [0.2, 0.3, 0.5]
    for loss in (GCALoss(priors, 0.3), GLALoss(priors, 0.5, 1.0, target_priors=wanted)):
        found = find_decision(z, y, loss, temperature=1.7, folds=None)
        assert found.decision.temperature == 1.7
        assert found.decision.loss is loss
        for mix in (priors, None, wanted):
            decided = Decision(loss, target_priors=mix, temperature=1.7)(z)
            assert sk.f1_score(y, decided, average="macro") <= found.score + 1e-9


def test_absent_and_masked_classes():
    z, y, priors = problem(12)
    wide = np.insert(z, 1, 50.0, axis=1)
    labels = np.array([0, 2, 3])[y]
    target = np.array([1, 0, 1, 1])
    loss = GLALoss(np.insert(priors, 1, 0.0), tau=0, target_priors=target)
    found = find_decision(wide, labels, loss)
    three = find_decision(z, y, GLALoss(priors, tau=0))
    np.testing.assert_allclose(found.score, three.score)
    np.testing.assert_allclose(np.delete(found.recalls, 1), three.recalls)
    assert np.isnan(found.recalls[1])
    assert found.decision.target_priors[1] == 0
    masked = z.copy()
    masked[::3, 2] = -np.inf
    found = find_decision(masked, y, GLALoss(priors, tau=0), min_recall=None)
    assert (found.decision(masked)[::3] != 2).all()


def test_far_logits_keep_a_valid_mix():
    z = np.array([-200.0, -150.0, -120.0, 300.0])
    found = find_decision(z, [0, 1, 1, 1], BinaryGLALoss(0.5), folds=None)
    assert 0 < found.decision.target_priors < 1
    three = np.array([[0, -300, -500.0], [0, -200, -400], [0, -100, -300]])
    found = find_decision(three, [0, 1, 2], GLALoss([1, 1, 1]), folds=None)
    assert min(found.decision.target_priors) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "f2"}, r"`score` must be one of \['accuracy', .*Received: score='f2'"),
        ({"score": "f1"}, r'`score="f1"` is that of label 1 of two classes'),
        ({"score": lambda c: 1.0}, r"`score` must be .*shape \(\) of matrices \(2, 3, 3\)"),
        ({"labels": np.zeros(20, int)}, r"`labels` must have an example of every class.*\[1, 2\]"),
        ({"labels": np.full(20, 3)}, r"must be integers in \[0, 3\). Received: \[3\]"),
        ({"labels": np.zeros(19, int)}, r"`y_true` must hold integer classes"),
        ({"labels": np.full((20, 3), 1 / 3)}, "integers or one-hot. Received: soft targets"),
        ({"y_pred": np.full((20, 3), np.nan)}, "`y_pred` must be finite.*20 of 20 examples"),
        ({"y_pred": np.full((20, 3), 1 / 3)}, r"`y_pred` must be logits.*from_logits=False"),
        ({"y_pred": np.zeros((20, 4))}, "must have the 3 classes"),
        ({"loss": GLALoss([5, 2, 1], from_logits=False)}, "`y_pred` must be probab.*negative"),
        ({"sample_weight": -np.ones(20)}, "weights of the held-out data must not be negative"),
        ({"sample_weight": np.full(20, np.inf)}, "`sample_weight` must be finite"),
        ({"sample_weight": np.ones(19)}, "`sample_weight` must have the leading axes"),
        ({"min_recall": 0.5}, "`min_recall` must be a dict"),
        ({"min_recall": {3: 0.5}}, r"`min_recall` must have class ids in \[0, 3\).*Received: 3"),
        ({"min_recall": {"a": 0.5}}, r"must have class ids.*Received: 'a'"),
        ({"min_recall": {1: 80}}, r"recalls in \[0, 1\]. Received: 80 of class 1"),
        ({"priors": [1, 1]}, "`priors` must have one number for each of the 3 classes"),
        ({"temperature": 0}, "`temperature` must be"),
        ({"folds": 1}, "`folds` must be an integer of at least 2"),
        ({"seed": 0.5}, "`seed` must be an integer"),
        ({"loss": "categorical_crossentropy"}, "`loss` must be the loss of keras_balanced"),
        ({"loss": BinaryGLALoss([0.1, 0.2, 0.3])}, "one column at a time.*a loss of 3 labels"),
    ],
)
def test_refuses_what_does_not_fit(change, message, rng):
    arguments = {
        "y_pred": rng.normal(size=(20, 3)),
        "labels": np.arange(20) % 3,
        "loss": GLALoss([5, 2, 1]),
        **change,
    }
    with pytest.raises(ValueError, match=message) as error:
        find_decision(**arguments)
    assert len(str(error.value)) <= 600


def test_is_public():
    assert serving.find_decision is find_decision
    z, y, priors = problem(0)
    found = find_decision(z, y, GLALoss(priors))
    assert isinstance(found, serving.FoundDecision)
    assert found._fields == (
        "decision",
        "score",
        "recalls",
        "expected_score",
        "expected_recalls",
    )
