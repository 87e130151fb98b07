"""The tables and pictures that a question makes of networks on KEEL's tables."""

import json
from collections import defaultdict

import numpy as np

from benchmarks import keel, stats
from benchmarks.keel import Recipe
from benchmarks.training_tables import BY_POSTERIOR

OFFSETS = tuple(i / 10 for i in range(-10, 11))  # Times the log odds, taken off the logits.
QS = (0.3, 0.5, 0.7)
BASE, TOWARDS = "logit_adjusted", "towards p**0.3"
POST_HOC = "ce" + BY_POSTERIOR  # Post-hoc logit adjustment: what costs nothing.
# What is compared: a method's name alone decides by the argmax of its logits.
ROWS = (
    "ce",
    POST_HOC,
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
    POST_HOC,
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
ORDER = (BASE, *(f"gla_q{q}_tau1" for q in QS), "gla_q0.3", "weighted_q0.7", TOWARDS)


class Scores:
    """The mean scores of the methods on some tables."""

    def __init__(self, runs):
        self.of = {run["settings"]["table"]: run["result"] for run in runs}
        self.tables = sorted(self.of)
        sources = [keel.source_of(table) for table in self.tables]
        self.sources = sorted(set(sources))
        self.index = np.array([self.sources.index(source) for source in sources])

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


def decisions(scores):
    """Returns the decisions of all methods, best first."""
    rows, by_source, mean_ranks = ranked(scores)
    means = scores.values(rows, "geometric_mean")
    ranks_of_means = scores.by_source(stats.ranks(means)).mean(axis=0)
    means = scores.by_source(means)
    compared = stats.against(by_source, rows.index(POST_HOC))
    cells = []
    for i in np.argsort(mean_ranks):
        row = [rows[i], f"{mean_ranks[i]:.1f}", stats.percent(by_source[:, i])]
        row += [f"{ranks_of_means[i]:.1f}", f"{100 * means[:, i].mean():.1f}"]
        cells.append(row + compared[i])
    columns = ["method", "mean rank", "balanced accuracy", "mean rank by geometric mean"]
    columns += ["geometric mean", f"difference to {POST_HOC}", "better / worse", "p (Holm)"]
    return f"""{len(scores.tables)} tables of {len(scores.sources)} sources; that all methods are
equal has p = {stats.friedman(by_source):.0e} (Friedman's test).

{stats.table(columns, cells)}"""


def ranked(scores):
    """Returns the rows of the decisions, their values for each source, and their mean ranks."""
    rows = scores.rows(ROWS)
    values = scores.values(rows, "balanced_accuracy")
    return rows, scores.by_source(values), scores.by_source(stats.ranks(values)).mean(axis=0)


def of_probabilities(scores):
    """Returns how good the rankings and the probabilities of all methods are."""
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
            (scores.by_source(values), scores.by_source(stats.ranks(values, lower)).mean(axis=0))
        )
        columns += [name, "mean rank"]
    order = np.argsort(found[1][1])
    cells = [
        [rows[i]]
        + [
            cell
            for by_source, mean_ranks in found
            for cell in (f"{by_source[:, i].mean():.3f}", f"{mean_ranks[i]:.1f}")
        ]
        for i in order
    ]
    return stats.table(columns, cells)


def calibrations(scores):
    """Returns the probabilities of our losses before and after their temperature is fitted."""
    some = scores.of[scores.tables[0]]
    rows = [name for name in some if "log_temperature" in some[name]]
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
    return stats.table(columns, cells)


def with_noise(of_noise):
    """Returns what wrong labels cost, and what q saves."""
    base, columns = NOISE_ROWS.index(BASE), ["method"]
    cells = [[row] for row in NOISE_ROWS]
    for noise, scores in of_noise.items():
        columns += [f"{noise:.0%} wrong", f"minus {BASE}", "better / worse", "p (Holm)"]
        by_source = scores.by_source(scores.values(NOISE_ROWS, "balanced_accuracy"))
        compared = stats.against(by_source, base)
        for i, cell in enumerate(cells):
            cell += [stats.percent(by_source[:, i]), *compared[i]]
    return stats.table(columns, cells)


def memorised(of_noise):
    """Returns whether q saves what the network would have learnt, a line per rate."""
    from scipy.stats import spearmanr

    lines = []
    for noise, scores in of_noise.items():
        if noise:
            gain = scores.values(["gla_q0.7_tau1"], "balanced_accuracy")
            gain = gain - scores.values([BASE], "balanced_accuracy")
            learnt, gain = (
                scores.by_source(values)[:, 0]
                for values in (scores.values([BASE], "memorised"), gain)
            )
            correlation = spearmanr(learnt, gain)
            lines.append(
                f"{noise:.0%} wrong: of the wrong labels {BASE} learns {stats.percent(learnt)}%; "
                "with that, the gain of gla_q0.7_tau1 has the rank correlation "
                f"{correlation.statistic:.2f} (p = {correlation.pvalue:.2f})."
            )
    return "\n\n".join(lines)


def recipes(runs):
    """Returns the recipes on the tables that choose one, by the decisions that are meant."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        recipe = json.dumps([run["settings"][name] for name in Recipe._fields])
        source = keel.source_of(run["settings"]["table"])
        for method, scores in run["result"].items():
            decision = "_posterior" if method in MEANT_BY_POSTERIOR else ""
            values[recipe][method][source].append(scores["balanced_accuracy" + decision])
    means = {
        recipe: {
            method: np.mean([np.mean(of_table) for of_table in of_source.values()])
            for method, of_source in of_method.items()
        }
        for recipe, of_method in values.items()
    }
    best = {
        method: max(means, key=lambda recipe: means[recipe][method])
        for method in next(iter(means.values()))
    }
    overall = {recipe: np.mean(list(of.values())) for recipe, of in means.items()}
    cells = [
        [
            *json.loads(recipe),
            f"{100 * overall[recipe]:.2f}",
            ", ".join(method for method, of in best.items() if of == recipe),
        ]
        for recipe in sorted(means, key=lambda recipe: -overall[recipe])
    ]
    return stats.table([*Recipe._fields, "balanced accuracy", "best for"], cells)


def many_classes(scores):
    """Returns all scores of tables of many classes, best decisions first."""
    rows = scores.rows(ROWS)
    values = scores.values(rows, "balanced_accuracy")
    mean_ranks = stats.ranks(values).mean(axis=0)
    compared = stats.against(values, rows.index(POST_HOC))
    columns = ["method", "mean rank", "balanced accuracy", f"difference to {POST_HOC}"]
    columns += ["better / worse", "p (Holm)", "log loss, classes equal"]
    columns += ["calibration error, classes equal"]
    cells = []
    for i in np.argsort(mean_ranks, kind="stable"):
        row = [rows[i], f"{mean_ranks[i]:.1f}", stats.percent(values[:, i]), *compared[i]]
        for name in ("log_loss_target", "calibration_error_target"):
            method = rows[i].removesuffix(BY_POSTERIOR)
            row.append(f"{scores.values([method], name).mean():.3f}")
        cells.append(row)
    tables = f"{len(scores.tables)} tables: {', '.join(scores.tables)}"
    return f"{tables}\n\n{stats.table(columns, cells)}"


def offsets(of_noise):
    """Returns what each decision is worth, and the differences that answer the question."""

    def values(noise, method, offset):
        scores = of_noise[noise]
        if offset:
            return curve(scores)[:, OFFSETS.index(offset)]
        return scores.by_source(scores.values([method], "balanced_accuracy"))[:, 0]

    ways = list(dict.fromkeys(way for pair in PAIRS for way in pair))
    ways.sort(key=lambda way: ORDER.index(way[0]))
    cells = [
        [name_of(*way), *(stats.percent(values(noise, *way)) for noise in of_noise)] for way in ways
    ]
    decisions = stats.table(["decision", *(f"{noise:.0%} wrong" for noise in of_noise)], cells)
    columns, cells = ["difference"], [[f"{name_of(*a)} - {name_of(*b)}"] for a, b in PAIRS]
    for noise in of_noise:
        columns += [f"{noise:.0%} wrong", "better / worse", "p (Holm)"]
        pairs = [(values(noise, *a), values(noise, *b)) for a, b in PAIRS]
        p = stats.holm([stats.wilcoxon(*pair) for pair in pairs])
        for row, (a, b), p_of_row in zip(cells, pairs, p, strict=True):
            row += stats.compared(a, b, p_of_row)
    return f"{decisions}\n\n{stats.table(columns, cells)}"


def curve(scores):
    """Returns the balanced accuracy of logit adjustment by each offset, `(sources, offsets)`."""
    return scores.by_source(scores.values([BASE], "offsets")[:, 0])


def name_of(method, offset):
    return f"{method}, offset {offset:g}" if offset else method


def draw_offsets(of_noise):
    """Draws logit adjustment by its offset, and GLA by its logits at the offset of -q."""
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(of_noise), figsize=(3 * len(of_noise), 3), layout="constrained", squeeze=False
    )
    for axes, (noise, scores) in zip(all_axes[0], of_noise.items(), strict=True):
        base = 100 * curve(scores).mean(axis=0)
        axes.plot(OFFSETS, base, color="gray", label="logit adjustment")
        for i, q in enumerate(QS):
            values = scores.values([f"gla_q{q}_tau1"], "balanced_accuracy")
            found = 100 * scores.by_source(values).mean()
            axes.plot([-q], [found], "os^"[i], label=f"GLA, q = {q}, tau = 1")
        axes.axvline(0, color="gray", linewidth=1, linestyle=":")
        axes.set(title=f"{noise:.0%} wrong labels", xlabel="offset; of GLA -q")
        axes.set_ylim(base.max() - 15, base.max() + 3)
    all_axes[0, 0].set_ylabel("balanced accuracy, %")
    all_axes[0, 0].legend(fontsize=7, loc="lower left")
    return figure


def draw_ranks(scores):
    """Draws the mean ranks; a bar joins methods of which no two differ (Wilcoxon, Holm)."""
    from matplotlib import pyplot

    rows, by_source, mean_ranks = ranked(scores)
    order = np.argsort(mean_ranks)
    bars = stats.cliques(order, stats.pairwise(by_source))
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
    axes.set(xlabel=f"mean rank by balanced accuracy, {len(scores.sources)} sources (1 is best)")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    return figure
