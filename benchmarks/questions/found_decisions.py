"""What is a decision worth that is found on held-out data?

Each problem is cut in three: 40% to train on, 40% held out, on which `find_decision` finds a
decision for each score, and the rest to test on. The mix of the classes is the same in all three.

* Two classes: every table of KEEL with at least 60 examples of the rarer class, except those that
  the recipe was chosen on. Of five folds two train, two are held out and one tests, in turns, so
  that a repetition tests every example.
* Many classes: every table of KEEL of more than two classes with at least 300 examples of the
  rarest, except those that the recipe was chosen on, and handwritten digits, cut to a tail of
  ratio 10; and CIFAR-10 (how much each quadrant has of 200 random patches), cut to tails of ratio
  20 and 100. The test examples, at most 1000 of each class, are not cut but weighted to the tail's
  mix: a rare class of few test examples would say little.

The networks have one hidden layer, and one recipe for all losses. The choice of the problems was
written down before anything was trained. That `find_decision`, of more than two classes, follows
its search only as far as cross-fitting says was chosen on other splits of these problems, of
several rules that gained about as much.

A decision is for the training mix (of cross-entropy the argmax), the balanced mix, or found for the
score of its column. Scores are in percent; errors are those of the mean over the problems, or over
the repetitions in the table of problems.
"""

import functools
import statistics
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stats

TWO_CLASSES = (
    *("car-good", "car-vgood", "ecoli-0_vs_1", "ecoli1", "haberman", "kr-vs-k-one_vs_fifteen"),
    *("kr-vs-k-three_vs_eleven", "kr-vs-k-zero-one_vs_draw", "page-blocks0", "pima", "segment0"),
    *("shuttle-c0-vs-c4", "vehicle0", "vehicle1", "vehicle2", "vehicle3", "vowel0", "wisconsin"),
    *("yeast-0-2-5-6_vs_3-7-8-9", "yeast-0-2-5-7-9_vs_3-6-8", "yeast1", "yeast3"),
)
MANY_CLASSES = (
    *("letter", "marketing", "optdigits", "penbased", "satimage", "segment", "splice", "texture"),
    *("digits", "CIFAR-10, ratio 20", "CIFAR-10, ratio 100"),
)
RATIO, CIFAR_RATIOS = 10.0, {"CIFAR-10, ratio 20": 20.0, "CIFAR-10, ratio 100": 100.0}
MOST_TESTED = 1000  # Examples of each class.
STEPS = {"two": 300, "many": 1000}
SCORES = {
    "macro_f1": "macro-F1",
    "geometric_mean": "G-mean",
    "worst_class_recall": "worst recall",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
}
LOSSES = {
    "cross-entropy": {"tau": 0},
    "GLA": {},
    "GLA, q = 0.3": {"q": 0.3},
    "class weights": {"margins": None},
    "GCA": {"margins": "cube_root"},
}
FIXED = ("training", "balanced")
SIZES = (5, 10, 20, 40, 80)  # Held-out examples of the rarest class, of cross-entropy and macro-F1.


class Case(NamedTuple):
    """A trained network: its loss, and logits and labels of what it was not trained on."""

    loss: Any
    priors: Any  # As the loss takes them.
    held_out: tuple  # Logits and labels.
    test: tuple  # Logits, labels and weights.


def cases():
    for kind, names in (("two", TWO_CLASSES), ("many", MANY_CLASSES)):
        for name in names:
            yield {"problem": name, "kind": kind, "repetitions": 3, "seed": 100}


def measure(problem, kind, repetitions, seed):
    """Returns the scores of each loss and decision, a list over the repetitions."""
    seeds = range(seed, seed + repetitions)
    splits = two_class_splits(problem, seeds) if kind == "two" else tails(problem, seeds)
    trained = train(splits, kind)
    size = 5 if kind == "two" else 1  # So many splits test every example once.
    groups = {name: in_groups(of_loss, size) for name, of_loss in trained.items()}
    some = trained["cross-entropy"]
    rarest = min(int(np.bincount(case.held_out[1]).min()) for case in some)
    return {
        "classes": int(some[0].held_out[1].max()) + 1,
        "rarest": rarest,
        "losses": {name: scores_of(of_loss) for name, of_loss in groups.items()},
        "by size": {
            str(n): found(groups["cross-entropy"], "macro_f1", n) for n in SIZES if n < rarest
        },
    }


def in_groups(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


def two_class_splits(problem, seeds):
    """Returns the splits of a table of two classes, five per seed; `test` is a pair of rows."""
    from sklearn.model_selection import StratifiedKFold

    from benchmarks import keel

    table, splits = keel.read(problem), []
    for seed in seeds:
        folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(table.x, table.y)
        folds = [fold for _, fold in folds]
        for i in range(5):
            test, *others = folds[i:] + folds[:i]
            train, held_out = (np.concatenate(others[j : j + 2]) for j in (0, 2))
            x = keel.standardised(table, train)
            splits.append(keel.Split(x, table.y, table.y, train, (held_out, test)))
    return splits


def tails(problem, seeds):
    """Returns the splits of a problem cut to a tail, in an order of the classes drawn each time."""
    from benchmarks import keel
    from keras_balanced import datasets

    table, splits = table_of(problem), []
    classes, most = table.y.max() + 1, int(0.4 * np.bincount(table.y).min())
    counts = datasets.long_tail_counts(classes, most, CIFAR_RATIOS.get(problem, RATIO))
    for seed in seeds:
        rng = np.random.default_rng(seed)
        y, parts = rng.permutation(classes)[table.y], []
        for k, count in enumerate(counts):
            rows = rng.permutation(np.flatnonzero(y == k))
            parts.append(np.split(rows, np.cumsum([count, count, MOST_TESTED]))[:3])
        used = [np.concatenate(part) for part in zip(*parts, strict=True)]
        ends = np.cumsum([len(part) for part in used])
        train, held_out, test = np.split(np.arange(ends[-1]), ends[:-1])
        used = np.concatenate(used)
        x = keel.standardised(table._replace(x=table.x[used]), train)
        splits.append(keel.Split(x, y[used], y[used], train, (held_out, test)))
    return splits


def table_of(problem):
    """Returns the `keel.Table` of a problem of many classes."""
    from sklearn.datasets import load_digits

    from benchmarks import keel

    if problem not in CIFAR_RATIOS and problem != "digits":
        return keel.read(problem, "balanced")
    x, y = load_digits(return_X_y=True) if problem == "digits" else cifar10()
    return keel.Table(problem, x, y, x.shape[1])


@functools.cache
def cifar10(atoms=200, size=6):
    """Returns features of all images `(60000, 4 * atoms)` and their labels.

    How much each quadrant has of random whitened patches (Coates and Ng, 2011).
    """
    import tensorflow_datasets as tfds

    parts = [
        tfds.load("cifar10", split=split, batch_size=-1, download=False)
        for split in ("train", "test")
    ]
    images = np.concatenate([np.asarray(part["image"], "float32") for part in parts])
    labels = np.concatenate([np.asarray(part["label"], "int64") for part in parts])

    def patches_of(images):
        windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
        flat = windows[:, ::2, ::2].reshape(-1, 14, 14, 3 * size * size)
        flat = flat - flat.mean(axis=-1, keepdims=True)
        return flat / np.sqrt(flat.var(axis=-1, keepdims=True) + 10.0)

    rng = np.random.default_rng(0)
    some = patches_of(images[rng.choice(len(images), 500)]).reshape(-1, 3 * size * size)
    mean = some.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(some.T))
    whiten = vectors / np.sqrt(np.maximum(values, 0.0) + 0.1) @ vectors.T
    chosen = (some[rng.choice(len(some), atoms)] - mean) @ whiten
    chosen = whiten @ (chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).T
    features = []
    for start in range(0, len(images), 500):
        similar = (patches_of(images[start : start + 500]) - mean) @ chosen.astype("float32")
        similar = np.maximum(similar - 0.5, 0.0).reshape(-1, 2, 7, 2, 7, atoms)
        features.append(similar.mean(axis=(2, 4)).reshape(-1, 4 * atoms))
    return np.concatenate(features), labels


def train(splits, kind):
    """Returns the `Case` of each split, of each loss."""
    from benchmarks import keel

    def loss_of(priors, options):
        import keras_balanced

        family = "GCALoss" if "margins" in options else "GLALoss"
        return getattr(keras_balanced, ("Binary" if kind == "two" else "") + family)(
            priors, **options
        )

    counts = np.bincount(splits[0].y[splits[0].train])  # Of many classes those of every split.
    methods = {
        name: keel.Method(
            lambda rates, options=options: loss_of(rates if kind == "two" else counts, options)
        )
        for name, options in LOSSES.items()
    }
    outputs = 1 if kind == "two" else len(counts)
    recipe = keel.Recipe(steps=STEPS[kind])
    logits = keel.train(splits, methods, recipe, range(len(splits)), outputs)
    found = {name: [] for name in LOSSES}
    for (name, options), of_loss in zip(LOSSES.items(), logits, strict=True):
        for split, z in zip(splits, of_loss, strict=True):
            y, (held_out, test) = split.y, split.test
            z = z[:, 0] if kind == "two" else z
            priors = float(split.rate) if kind == "two" else counts
            weights = np.ones(len(test))
            if kind == "many":
                weights = (counts / counts.sum() / np.bincount(y[test]))[y[test]]
            case = Case(
                loss_of(priors, options),
                priors,
                (z[held_out], y[held_out]),
                (z[test], y[test], weights),
            )
            found[name].append(case)
    return found


def scores_of(groups):
    """Returns the scores of every decision, `{score: {decision: list over the groups}}`."""
    return {
        score: {way: [fixed(group, score, way) for group in groups] for way in FIXED}
        | {"training, held out": [fixed(group, score, "training", False) for group in groups]}
        | found(groups, score)
        for score in SCORES
    }


def confusion(decision, predictions, labels, weights):
    from keras_balanced.scores import confusion_matrix

    return confusion_matrix(labels, decision(predictions), weights, int(labels.max()) + 1)


def score_of(matrices, score):
    """Returns a score of the sum of confusion matrices, in percent."""
    from keras_balanced import scores

    return round(100 * float(scores.SCORES[score](sum(matrices))), 2)


def fixed(group, score, way, tested=True):
    """Returns the score of the decision for a known mix, on the test or on the held-out data."""
    from keras_balanced import Decision

    matrices = []
    for case in group:
        mix = case.priors if way == "training" else None
        data = case.test if tested else (*case.held_out, None)
        matrices.append(confusion(Decision(case.loss, target_priors=mix), *data))
    if tested:
        return score_of(matrices, score)
    return round(statistics.mean(score_of([matrix], score) for matrix in matrices), 2)


def found(groups, score, size=None):
    """Returns the scores of found decisions, and what was said of them."""
    from keras_balanced.serving import find_decision

    result = defaultdict(list)
    for number, group in enumerate(groups):
        matrices, said = [], []
        for i, case in enumerate(group):
            predictions, labels = case.held_out
            rows = fewer(labels, size, [number, i, size]) if size else slice(None)
            of = find_decision(predictions[rows], labels[rows], case.loss, score=score)
            matrices.append(confusion(of.decision, *case.test))
            said.append((100 * of.score, 100 * of.expected_score))
        in_sample, expected = (round(statistics.mean(part), 2) for part in zip(*said, strict=True))
        result["found"].append(score_of(matrices, score))
        result["in sample"].append(in_sample)
        result["expected"].append(expected)
    return dict(result)


def fewer(labels, rarest, seed):
    """Returns rows with so many examples of the rarest class, in the same mix."""
    rng, counts = np.random.default_rng(seed), np.bincount(labels)
    kept = np.round(counts * rarest / counts.min()).astype("int64")
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate(kept)]
    )


KINDS = {"two": "two classes", "many": "many classes"}
WAYS = (*FIXED, "found")


def mean_of(run, score, way, loss="cross-entropy"):
    return statistics.mean(run["result"]["losses"][loss][score][way])


def by_kind(runs):
    """Yields the name and the runs of each kind of problems."""
    for kind, name in KINDS.items():
        if of_kind := [run for run in runs if run["settings"]["kind"] == kind]:
            yield name, of_kind


def overall(runs, score, way, loss):
    return statistics.mean(mean_of(run, score, way, loss) for run in runs)


def report(runs):
    return f"""![Scores by decision, a line per loss](found_decisions.png)

## The loss, or the decision?

{losses_and_decisions(runs)}

How far the means lie apart: between the losses, by the decision that is found; and between the
decisions, for the loss of which they lie farthest apart and nearest together.

{spreads(runs)}

## From how many held-out examples?

Macro-F1 of cross-entropy, found on part of the held-out data: differences of the test score to
those of the fixed decisions.

{by_examples(runs)}

## Is the expected score right?

What is said on the held-out data, less the score on the test data: of the found decision
`expected_score` and `score`, and for comparison the score of the fixed decision for the training
mix, which was not chosen by anything. Means over the losses, then over the problems.

{honesty(runs)}

## Each problem

Macro-F1 of cross-entropy. `rarest` is the number of held-out examples of the rarest class.

{of_problems(runs)}

{behind(runs)}"""


def losses_and_decisions(runs):
    rows = [
        [kind, loss, way] + [f"{overall(of_kind, score, way, loss):.1f}" for score in SCORES]
        for kind, of_kind in by_kind(runs)
        for loss in LOSSES
        for way in WAYS
    ]
    return stats.table(["problems", "loss", "decision", *SCORES.values()], rows)


def spreads(runs):
    rows = []
    for kind, of_kind in by_kind(runs):
        means = {
            score: {
                loss: {way: overall(of_kind, score, way, loss) for way in WAYS} for loss in LOSSES
            }
            for score in SCORES
        }
        losses = [spread(of[loss]["found"] for loss in LOSSES) for of in means.values()]
        ways = [[spread(of[loss].values()) for loss in LOSSES] for of in means.values()]
        rows.append([kind, "losses", *(f"{width:.1f}" for width in losses)])
        rows.append([kind, "decisions", *(f"{min(w):.1f} to {max(w):.1f}" for w in ways)])
    return stats.table(["problems", "between", *SCORES.values()], rows)


def spread(values):
    values = list(values)
    return max(values) - min(values)


def by_examples(runs):
    """Returns what a found decision is worth by the held-out examples of the rarest class."""
    rows = []
    for kind, of_kind in by_kind(runs):
        for size in (*SIZES, None):
            gains = [gains_on(run, size) for run in of_kind]
            gains = [of_run for of_run in gains if of_run]
            if gains:
                cells = [stats.mean_and_error(part, sign="+") for part in zip(*gains, strict=True)]
                worst = min(of_run[0] for of_run in gains)
                rows.append([kind, size or "all", len(gains), *cells[:2], f"{worst:+.1f}"])
                rows[-1] += cells[2:]
    columns = ["problems", "examples of the rarest", "number", "found - training"]
    columns += ["found - balanced", "least found - training", "expected - test"]
    return stats.table([*columns, "in sample - test"], rows)


def gains_on(run, size):
    """Returns the differences of a run on so many examples; nothing if it has no more than that."""
    of_run = run["result"]["losses"]["cross-entropy"]["macro_f1"]
    found = run["result"]["by size"].get(str(size)) if size else of_run
    if not found:
        return None
    test = statistics.mean(found["found"])
    fixed = [test - statistics.mean(of_run[way]) for way in FIXED]
    return fixed + [statistics.mean(found[way]) - test for way in ("expected", "in sample")]


def honesty(runs):
    rows = []
    for kind, of_kind in by_kind(runs):
        for score, name in SCORES.items():
            pairs = (("expected", "found"), ("in sample", "found"))
            pairs += (("training, held out", "training"),)
            cells = [
                stats.mean_and_error([said_less_test(run, score, *pair) for run in of_kind], 2, "+")
                for pair in pairs
            ]
            rows.append([kind, name, *cells])
    columns = ["problems", "score", "`expected_score`", "`score`", "fixed decision"]
    return stats.table(columns, rows)


def said_less_test(run, score, said, tested):
    return statistics.mean(
        mean_of(run, score, said, loss) - mean_of(run, score, tested, loss) for loss in LOSSES
    )


def of_problems(runs):
    rows = []
    for run in runs:
        of_run = run["result"]["losses"]["cross-entropy"]["macro_f1"]
        row = [run["settings"]["problem"], run["result"]["classes"], run["result"]["rarest"]]
        row += [f"{mean_of(run, 'macro_f1', way):.1f}" for way in WAYS]
        for way in FIXED:
            pairs = zip(of_run["found"], of_run[way], strict=True)
            row.append(stats.mean_and_error([a - b for a, b in pairs], sign="+"))
        rows.append(row)
    columns = ["problem", "classes", "rarest", *WAYS, "found - training", "found - balanced"]
    return stats.table(columns, rows)


def behind(runs):
    """Returns on which problems the found decision is behind the one for the training mix."""
    enough = [run for run in runs if run["result"]["rarest"] >= 20]
    lost = {
        run["settings"]["problem"]: mean_of(run, "macro_f1", "found")
        - mean_of(run, "macro_f1", "training")
        for run in enough
    }
    names = [f"{name} ({value:+.1f})" for name, value in lost.items() if value < -0.5]
    return (
        f"Of {len(enough)} problems with at least 20 held-out examples of each class it is behind "
        f"the argmax by more than 0.5 on {len(names)}{': ' * bool(names)}{', '.join(names)}."
    )


def pictures(runs):
    from matplotlib import figure

    kinds = list(by_kind(runs))
    whole = figure.Figure(figsize=(8, 1.9 * len(kinds) + 0.3), layout="constrained")
    for i, (kind, of_kind) in enumerate(kinds):
        for j, (score, name) in enumerate(SCORES.items()):
            axes = whole.add_subplot(len(kinds), len(SCORES), len(SCORES) * i + j + 1)
            for loss in LOSSES:
                values = [overall(of_kind, score, way, loss) for way in WAYS]
                axes.plot(range(len(WAYS)), values, "o-", markersize=3, linewidth=1, label=loss)
            axes.set_xticks(range(len(WAYS)), WAYS if i == len(kinds) - 1 else [""] * len(WAYS))
            axes.tick_params(labelsize=6, axis="both")
            axes.margins(x=0.2)
            axes.set_title(name if i == 0 else "", fontsize=8)
            if j == 0:
                axes.set_ylabel(f"{kind}, %", fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=len(LOSSES), fontsize=7)
    return {"found_decisions.png": whole}
