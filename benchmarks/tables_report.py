"""The tables and the picture of `tables.py`, from its lines of JSON.

Scores are means over the folds of a table, then over the tables of a source: variants of one table
are not independent, so `n` is the number of sources. Ranks are taken on each table, then averaged
in the same way.
"""

import json
import warnings
from collections import defaultdict

import numpy as np
from accuracy_report import BY_POSTERIOR, mean_and_error, print_rows
from long_tailed_cifar import read_results
from scipy import stats

BASE = "ce" + BY_POSTERIOR  # Post-hoc logit adjustment: what costs nothing.
# What is compared: a method's name alone decides by the argmax of its logits.
ROWS = (
    "ce",
    BASE,
    "weighted",
    "focal",
    "focal" + BY_POSTERIOR,
    "logit_adjusted",
    "gla_q0.3",
    "gla_q0.3_tau1",
    "gla_q0.3_tau1" + BY_POSTERIOR,
    "gla_q0.7",
    "gla_q0.7_tau1",
    "gla_q0.7_tau1" + BY_POSTERIOR,
    "gca",
    "gca" + BY_POSTERIOR,
    "oversampled",
    "smote",
    "logistic_regression",
    "gradient_boosting",
    "balanced_forest",
)
NOISE_ROWS = (
    "ce",
    BASE,
    "logit_adjusted",
    "gla_q0.3_tau1",
    "gla_q0.3_tau1" + BY_POSTERIOR,
    "gla_q0.5_tau1",
    "gla_q0.7_tau1",
    "gla_q0.7_tau1" + BY_POSTERIOR,
    "weighted_q0.7",
)
# Whose logits are not what they are meant to decide by.
MEANT_BY_POSTERIOR = ("ce", "focal", "gca")
# Chosen by name, before anything was trained: ten tables, ratios from 2 to 130.
TUNING_SOURCES = ("abalone", "flare", "glass")
LEVEL = 0.05


class Scores:
    """The mean scores of the methods on some tables."""

    def __init__(self, lines):
        self.of = defaultdict(dict)
        for line in lines:
            scores = {name: float(np.mean(values)) for name, values in line["scores"].items()}
            self.of[line["table"]][line["method"]] = scores
        self.tables = sorted(self.of)
        source_of = {line["table"]: line["source"] for line in lines}
        self.sources = sorted(set(source_of.values()))
        self.index = np.array([self.sources.index(source_of[table]) for table in self.tables])

    def rows(self, names):
        """Returns those of the names that every table has."""
        of_tables = self.of.values()
        return [n for n in names if all(n.removesuffix(BY_POSTERIOR) in of for of in of_tables)]

    def values(self, rows, score):
        """Returns a score `(tables, rows)`."""
        return np.array(
            [
                [
                    self.of[table][row.removesuffix(BY_POSTERIOR)][
                        score + ("_posterior" if row.endswith(BY_POSTERIOR) else "")
                    ]
                    for row in rows
                ]
                for table in self.tables
            ]
        )

    def by_source(self, values):
        """Returns the mean over the tables of each source."""
        return np.array([values[self.index == i].mean(axis=0) for i in range(len(self.sources))])


def ranks(values, lower=False):
    """Returns the ranks in each row, 1 for the best; ties share theirs."""
    return stats.rankdata(values if lower else -values, axis=1)


def holm(p):
    """Returns p-values adjusted for as many tests, by Holm's method."""
    p = np.asarray(p, "float64")
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1.0)
    return result


def wilcoxon(a, b):
    """Returns the p-value of Wilcoxon's signed-rank test; differences of 0 count half to each."""
    difference = np.round(np.asarray(a) - np.asarray(b), 9)
    if not difference.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Few sources with ties: an approximation.
        return float(stats.wilcoxon(difference, zero_method="zsplit").pvalue)


def friedman(by_source):
    return stats.friedmanchisquare(*by_source.T).pvalue


def cliques(order, p):
    """Returns the longest runs of rows, in the order of their ranks, of which no two differ."""
    runs = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and all(
            p[order[last + 1]][order[i]] >= LEVEL for i in range(first, last + 1)
        ):
            last += 1
        if last > first and not (runs and runs[-1][1] >= last):
            runs.append((first, last))
    return runs


def pairwise(by_source):
    """Returns the p-values `(rows, rows)` of all pairs, adjusted by Holm's method."""
    pairs = [(i, j) for i in range(by_source.shape[1]) for j in range(i)]
    adjusted = holm([wilcoxon(by_source[:, i], by_source[:, j]) for i, j in pairs])
    p = np.ones((by_source.shape[1],) * 2)
    for (i, j), value in zip(pairs, adjusted, strict=True):
        p[i][j] = p[j][i] = value
    return p


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(values, sign=""):
    """Returns mean and standard error over the sources."""
    return mean_and_error((100 * np.asarray(values)).tolist(), sign)


def compared(a, b, p):
    """Returns the cells of a comparison over the sources: difference, sources, p."""
    difference = np.round(np.asarray(a) - np.asarray(b), 9)
    sources = f"{(difference > 0).sum()} / {(difference < 0).sum()}"
    return [percent(difference, "+"), sources, p_value(p)]


def against(by_source, base):
    """Returns the cells of each row's comparison with the row `base`."""
    others = [i for i in range(by_source.shape[1]) if i != base]
    p = holm([wilcoxon(by_source[:, i], by_source[:, base]) for i in others])
    cells = {base: ["", "", ""]}
    for i, p_of_row in zip(others, p, strict=True):
        cells[i] = compared(by_source[:, i], by_source[:, base], p_of_row)
    return cells


def check_one_run(lines, names=("seed", "repetitions", "recipe")):
    """Raises `ValueError` unless all lines have the same of these settings."""
    runs = sorted({json.dumps([line[name] for name in names]) for line in lines})
    if len(runs) > 1:
        raise ValueError(f"The results must be of one {' and '.join(names)}. Received: {runs}")


def report(paths, picture=None):
    """Prints Markdown tables, for each kind of data that the lines have."""
    groups = defaultdict(list)
    for path in paths:
        for line in read_results(path):
            groups[line["noise"], line["source"] in TUNING_SOURCES].append(line)
    check_one_run([line for (_, tuning), of in groups.items() if not tuning for line in of])
    of_noise = {}
    for (noise, tuning), lines in sorted(groups.items()):
        if tuning:
            check_one_run(lines, ("seed", "repetitions"))
            print_recipes(lines)
        else:
            of_noise[noise] = Scores(lines)
    if 0.0 in of_noise:
        scores = of_noise[0.0]
        by_source, mean_ranks, rows = print_decisions(scores)
        if picture is not None:
            draw(rows, mean_ranks, pairwise(by_source), len(scores.sources), picture)
        print_probabilities(scores)
        print_calibration(scores)
    if len(of_noise) > 1:
        print_noise(of_noise)


def print_decisions(scores):
    """Prints the decisions of all methods, best first."""
    rows = scores.rows(ROWS)
    values = scores.values(rows, "balanced_accuracy")
    by_source = scores.by_source(values)
    mean_ranks = scores.by_source(ranks(values)).mean(axis=0)
    means = scores.values(rows, "geometric_mean")
    ranks_of_means = scores.by_source(ranks(means)).mean(axis=0)
    means = scores.by_source(means)
    compared = against(by_source, rows.index(BASE))
    cells = []
    for i in np.argsort(mean_ranks):
        row = [rows[i], f"{mean_ranks[i]:.1f}", percent(by_source[:, i])]
        row += [f"{ranks_of_means[i]:.1f}", f"{100 * means[:, i].mean():.1f}"]
        cells.append(row + compared[i])
    print("\n### Real tables: decisions\n")
    print(
        f"{len(scores.tables)} tables of {len(scores.sources)} sources; that all methods are equal"
    )
    print(f"has p = {friedman(by_source):.0e} (Friedman's test).\n")
    columns = ["method", "mean rank", "balanced accuracy", "mean rank by geometric mean"]
    columns += ["geometric mean", f"difference to {BASE}", "better / worse", "p (Holm)"]
    print_rows(columns, cells)
    return by_source, mean_ranks, rows


def print_probabilities(scores):
    """Prints how good the rankings and the probabilities of all methods are."""
    rows = scores.rows([row for row in ROWS if not row.endswith(BY_POSTERIOR)])
    columns = ["trained with"]
    found = []
    for score, name, lower in (
        ("average_precision", "average precision", False),
        ("log_loss", "log loss", True),
        ("log_loss_target", "log loss, classes equal", True),
        ("calibration_error", "calibration error", True),
        ("calibration_error_target", "calibration error, classes equal", True),
    ):
        values = scores.values(rows, score)
        found.append(
            (scores.by_source(values), scores.by_source(ranks(values, lower)).mean(axis=0))
        )
        columns += [name, "mean rank"]
    order = np.argsort(found[1][1])
    print("\n### Real tables: probabilities\n")
    cells = [
        [rows[i]]
        + [
            cell
            for by_source, mean_ranks in found
            for cell in (f"{by_source[:, i].mean():.3f}", f"{mean_ranks[i]:.1f}")
        ]
        for i in order
    ]
    print_rows(columns, cells)


def print_calibration(scores):
    """Prints the probabilities of our losses before and after their temperature is fitted."""
    some = scores.of[scores.tables[0]]
    rows = [name for name in some if "log_temperature" in some[name]]
    if not rows:
        return
    columns, parts = ["trained with"], []
    for score, name in (
        ("log_loss", "log loss"),
        ("log_loss_target", "log loss, classes equal"),
        ("calibration_error", "calibration error"),
        ("calibration_error_target", "calibration error, classes equal"),
    ):
        columns.append(name)
        before, after = (
            scores.by_source(scores.values(rows, prefix + score))
            for prefix in ("uncalibrated_", "calibrated_")
        )
        better = (np.round(after - before, 9) < 0).sum(axis=0)
        parts.append((before.mean(axis=0), after.mean(axis=0), better))
    temperatures = scores.by_source(scores.values(rows, "log_temperature"))
    without = scores.by_source(scores.values(rows, "not_calibrated"))
    columns += ["temperature", "without one"]
    print("\n### Real tables: calibration\n")
    cells = []
    for i, row in enumerate(rows):
        cells.append(
            [row]
            + [
                f"{before[i]:.3f} to {after[i]:.3f} ({better[i]})"
                for before, after, better in parts
            ]
            + [f"{np.exp(temperatures[:, i].mean()):.2f}", f"{100 * without[:, i].mean():.0f}%"]
        )
    print_rows(columns, cells)


def print_noise(of_noise):
    """Prints what wrong labels cost, and whether q saves what the network would have learnt."""
    levels = sorted(of_noise)
    # Tables that all levels have.
    rows = [row for row in NOISE_ROWS if all(s.rows([row]) for s in of_noise.values())]
    found = {
        noise: s.by_source(s.values(rows, "balanced_accuracy")) for noise, s in of_noise.items()
    }
    base = rows.index("logit_adjusted")
    columns = ["method"]
    for noise in levels:
        columns += [f"{noise:.0%} wrong", "minus logit_adjusted", "better / worse", "p (Holm)"]
    compared = {noise: against(by_source, base) for noise, by_source in found.items()}
    cells = []
    for i, row in enumerate(rows):
        cell = [row]
        for noise in levels:
            cell += [percent(found[noise][:, i]), *compared[noise][i]]
        cells.append(cell)
    print("\n### Real tables: wrong training labels\n")
    print_rows(columns, cells)
    print()
    for noise in levels[1:]:
        scores = of_noise[noise]
        gain = scores.values(["gla_q0.7_tau1"], "balanced_accuracy")
        gain = gain - scores.values(["logit_adjusted"], "balanced_accuracy")
        memorised = scores.values(["logit_adjusted"], "memorised")
        pair = [scores.by_source(values)[:, 0] for values in (memorised, gain)]
        correlation = stats.spearmanr(*pair)
        print(
            f"{noise:.0%} wrong: of the wrong labels logit_adjusted learns {percent(pair[0])}%; "
            f"with that, the gain of gla_q0.7_tau1 has the rank correlation "
            f"{correlation.statistic:.2f} (p = {correlation.pvalue:.2f}).\n"
        )


def print_recipes(lines, title="Real tables: the recipe"):
    """Prints the recipes on the tables that choose one, by the decisions that are meant."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in lines:
        decision = "_posterior" if line["method"] in MEANT_BY_POSTERIOR else ""
        score = np.mean(line["scores"]["balanced_accuracy" + decision])
        values[json.dumps(line["recipe"])][line["method"]][line["source"]].append(score)
    means = {
        recipe: {
            method: np.mean([np.mean(of_table) for of_table in of_source.values()])
            for method, of_source in of_method.items()
        }
        for recipe, of_method in values.items()
    }
    methods = list(next(iter(means.values())))
    best = {method: max(means, key=lambda recipe: means[recipe][method]) for method in methods}
    names = list(json.loads(next(iter(means))))
    ranked = sorted(means, key=lambda recipe: -np.mean(list(means[recipe].values())))
    print(f"\n### {title}\n")
    cells = []
    for recipe in ranked:
        of_methods = means[recipe]
        row = [*json.loads(recipe).values(), f"{100 * np.mean(list(of_methods.values())):.2f}"]
        row.append(", ".join(method for method in methods if best[method] == recipe))
        cells.append(row)
    print_rows([*names, "balanced accuracy", "best for"], cells)


def draw(rows, mean_ranks, p, num_sources, path):
    """Draws the mean ranks; a bar joins methods of which no two differ (Wilcoxon, Holm)."""
    from matplotlib import pyplot

    order = np.argsort(mean_ranks)
    bars = cliques(order, p)
    height = 1.2 + 0.24 * (len(rows) + len(bars))
    figure, axes = pyplot.subplots(figsize=(7.5, height), layout="constrained")
    positions = np.arange(len(rows))
    axes.plot(mean_ranks[order], positions, "o", color="C0")
    for position, i in enumerate(order):
        axes.annotate(
            f"{rows[i]}  {mean_ranks[i]:.1f}",
            (mean_ranks[i], position),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    for k, (first, last) in enumerate(bars):
        level = len(rows) + k
        ends = mean_ranks[order[first]], mean_ranks[order[last]]
        axes.plot(ends, [level, level], color="black", linewidth=3)
    axes.set_xlim(mean_ranks.min() - 0.5, mean_ranks.max() + 3.5)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set(xlabel=f"mean rank by balanced accuracy, {num_sources} sources (1 is best)")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
