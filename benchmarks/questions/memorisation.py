"""When does a large q pay? Where the network would memorise wrong labels?

Logit adjustment against GLA with q = 0.7 and `tau=1`, same labels, same seed, of the trainings
[with wrong labels](label_noise.md). `memorised` is the fraction of the wrong training labels that
logit adjustment predicts at the end, `gain` what GLA has more on the test set, in points. Beside
them stands how often a rule that some of the cells gave is right about the others: to take GLA
where more than 42% are memorised.

The cells of the rule and those that were trained with them ran at the same time; the trainings at
5,000 images and on CIFAR-100, those in the head or tail and seeds 1 and 2 of 1,250 images after 100
epochs came after it was fixed, as did seeds 4 to 7 and ratio 1 of digits.
"""

import statistics
from collections import defaultdict

import numpy as np

from benchmarks import stats
from benchmarks.training import known

RESULTS = ("label_noise", "tables")
BASE, LOSS = "logit_adjusted", "gla_q0.7_tau1"
# GLA is to gain where logit adjustment memorises more of the wrong labels than this, in percent.
RULE = 42
RULE_NOISE = ("uniform:0.2", "uniform:0.4")
AXES = ("dataset", "ratio", "label_noise", "n_max", "epochs")


def both_losses(runs):
    """Returns `{cell: {seed: (result of the base, result of GLA)}}`, of all training data."""
    found = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        settings = run["settings"]
        if settings.get("held_out") == 0:
            cell = tuple(settings.get(name) for name in AXES)
            found[cell][settings["seed"]][settings["loss"]] = run["result"]
    needed = {BASE, LOSS}
    pairs = {
        cell: {
            seed: (of[BASE], of[LOSS]) for seed, of in sorted(seeds.items()) if needed <= set(of)
        }
        for cell, seeds in sorted(found.items(), key=str)
    }
    return {cell: of_seeds for cell, of_seeds in pairs.items() if of_seeds}


def both_losses_of_tables(runs):
    """Returns `{(table, rate of wrong labels): (scores of the base, scores of GLA)}`."""
    found = {}
    for run in runs:
        settings, result = run["settings"], run["result"]
        if "noise" in settings and settings["repetitions"] == 5:  # Not of those to tune on.
            found[settings["table"], settings["noise"]] = result[BASE], result[LOSS]
    return found


def pairs_of(runs):
    """Returns `{cell: [(memorised by the base, gain), ...]}`, both in percent, over the seeds."""
    return {
        cell: [(100 * base["memorised"], gain(base, loss)) for base, loss in of_seeds.values()]
        for cell, of_seeds in both_losses(runs).items()
        if dict(zip(AXES, cell, strict=True))["label_noise"] is not None
    }


def pairs_of_tables(runs):
    """Returns the same of KEEL's tables, at each rate of wrong labels; the gain as a fraction."""
    return [
        (100 * base["memorised"], gain_of_table(base, loss))
        for (_, noise), (base, loss) in both_losses_of_tables(runs).items()
        if noise
    ]


def gain(base, loss):
    """Returns by how much the balanced accuracy of GLA is higher, in points."""
    return balanced(loss) - balanced(base)


def gain_of_table(base, loss):
    """Returns the same of a table, as a fraction."""
    return loss["balanced_accuracy"] - base["balanced_accuracy"]


def balanced(result):
    return 100 * statistics.mean(known(result["recalls"]))


def correlation(pairs, draws=2000):
    """Returns Spearman's rank correlation over trainings, and its 95% interval over cells."""
    from scipy.stats import spearmanr

    cells = [np.array(of_cell) for of_cell in pairs.values()]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        points = np.concatenate([cells[i] for i in rng.integers(0, len(cells), len(cells))])
        if np.ptp(points, axis=0).all():
            drawn.append(spearmanr(*points.T).statistic)
    points = np.concatenate(cells)
    return spearmanr(*points.T).statistic, *np.quantile(drawn, [0.025, 0.975])


def threshold(pairs):
    """Returns the fraction memorised, in percent, that best tells gains from losses."""
    points = np.array(sorted(point for of_cell in pairs.values() for point in of_cell))
    cuts = np.concatenate([[0.0], (points[1:, 0] + points[:-1, 0]) / 2])
    right = [((points[:, 0] > cut) == (points[:, 1] > 0)).sum() for cut in cuts]
    return float(cuts[int(np.argmax(right))])


def is_of_the_rule(cell):
    settings = dict(zip(AXES, cell, strict=True))
    digits = settings["dataset"] == "digits" and settings["ratio"] == 10
    return settings["label_noise"] in RULE_NOISE and (digits or settings["n_max"] == 400)


def cell_name(cell):
    dataset, ratio, noise, n_max, epochs = cell
    kind, rate = noise.split(":")
    images = f", {n_max} images" if n_max else ""
    return f"{dataset}, ratio {ratio:g}{images}, {epochs} epochs, {float(rate):.0%} {kind}"


def made_of(pairs):
    """Returns the threshold that the cells of the rule give."""
    return threshold({cell: of_cell for cell, of_cell in pairs.items() if is_of_the_rule(cell)})


def report(runs):
    pairs, of_tables = pairs_of(runs), pairs_of_tables(runs)
    rows = []
    for cell, of_cell in sorted(pairs.items(), key=lambda item: not is_of_the_rule(item[0])):
        learnt = statistics.mean(m for m, _ in of_cell)
        right = sum((m > RULE) == (gain > 0) for m, gain in of_cell)
        note = " (of the rule)" if is_of_the_rule(cell) else ""
        row = [cell_name(cell) + note, len(of_cell), f"{learnt:.0f}"]
        row.append(stats.mean_and_error((gain for _, gain in of_cell), sign="+"))
        rows.append([*row, "gain" if learnt > RULE else "loss", right])
    columns = ["cell", "seeds", "memorised, %", "gain", "the rule says", "seeds right"]
    value, low, high = correlation(pairs)
    others = [point for cell in pairs if not is_of_the_rule(cell) for point in pairs[cell]]
    right = sum((m > RULE) == (gain > 0) for m, gain in others)
    right_of_tables = sum((m > RULE) == (gain > 0) for m, gain in of_tables)
    gains = sum(gain > 0 for _, gain in of_tables)
    return f"""The threshold that the first cells give: {made_of(pairs):.0f}%.

{stats.table(columns, rows)}

![Gain by what is memorised](memorisation.png)

Rank correlation over {sum(map(len, pairs.values()))} trainings {value:.2f}, 95% interval over cells
{low:.2f} to {high:.2f}. Outside the cells that it was made of, the rule is right for {right} of
{len(others)} trainings. On KEEL's tables it is right for {right_of_tables} of {len(of_tables)},
where to expect a gain of all is right for {gains}."""


def pictures(runs):
    pairs = pairs_of(runs)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for dataset, marker in (("digits", "s"), ("cifar10", "o"), ("cifar100", "^")):
        for of_the_rule in (True, False):
            points = [
                point
                for cell, of_cell in pairs.items()
                if cell[0] == dataset and is_of_the_rule(cell) == of_the_rule
                for point in of_cell
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    fillstyle="none" if of_the_rule else "full",
                    label=dataset + (", the rule's" if of_the_rule else ""),
                )
    axes.axhline(0, color="gray", linewidth=1)
    axes.axvline(RULE, color="gray", linewidth=1, linestyle=":")
    axes.set(
        xlabel="wrong labels that logit adjustment memorised, %",
        ylabel="gain of GLA, q = 0.7, tau = 1, points",
    )
    axes.legend()
    return {"memorisation.png": figure}
