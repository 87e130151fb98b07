"""When does a large q pay? Where the network would memorise wrong labels.

    python benchmarks/memorisation.py --picture docs/img/memorisation.png

Reads the trainings of `accuracy.py --label-noise`, and pairs logit adjustment with GLA of q = 0.7
and tau = 1, trained on the same labels with the same seed. Prints the gain of each cell (data,
ratio, images, epochs, noise) beside the fraction of the wrong labels that logit adjustment
memorised, their rank correlation over trainings with an interval over cells, and how often a
rule that some of the cells gave (`RULE`) is right about the others, and about KEEL's tables.
"""

import argparse
import pathlib
import statistics
import sys
from collections import defaultdict

import numpy as np
from scipy import stats

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import accuracy_report  # noqa: E402
import long_tailed_cifar  # noqa: E402

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("noise_*.jsonl"))
TABLES = ROOT / "benchmarks" / "results" / "tables_noise.jsonl"
BASE, LOSS = "logit_adjusted", "gla_q0.7_tau1"
# GLA is to gain where logit adjustment memorises more of the wrong labels than this, in percent.
RULE = 42
RULE_NOISE = ("uniform:0.2", "uniform:0.4")
AXES = ("dataset", "ratio", "label_noise", "n_max", "epochs")


def both_losses(paths):
    """Returns `{cell: {seed: (result of the base, result of GLA)}}`, of all training data."""
    runs = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for run in long_tailed_cifar.read_results(path):
            settings = {**run["settings"], **run["recipe"]}
            if settings["held_out"] == 0:
                cell = tuple(settings.get(name) for name in AXES)
                runs[cell][settings["seed"]][settings["loss"]] = run["result"]
    needed = {BASE, LOSS}
    pairs = {
        cell: {
            seed: (of[BASE], of[LOSS]) for seed, of in sorted(seeds.items()) if needed <= set(of)
        }
        for cell, seeds in sorted(runs.items(), key=str)
    }
    return {cell: of_seeds for cell, of_seeds in pairs.items() if of_seeds}


def both_losses_of_tables(paths):
    """Returns `{(table, rate of wrong labels): (scores of the base, scores of GLA)}`."""
    scores = defaultdict(dict)
    for path in paths:
        for run in long_tailed_cifar.read_results(path):
            scores[run["table"], run["noise"]][run["method"]] = run["scores"]
    return {key: (of[BASE], of[LOSS]) for key, of in scores.items()}


def pairs_of(paths):
    """Returns `{cell: [(memorised by the base, gain), ...]}`, both in percent, over the seeds."""
    return {
        cell: [(100 * base["memorised"], gain(base, loss)) for base, loss in of_seeds.values()]
        for cell, of_seeds in both_losses(paths).items()
        if dict(zip(AXES, cell, strict=True))["label_noise"] is not None
    }


def pairs_of_tables(path):
    """Returns the same of KEEL's tables, at each rate of wrong labels; the gain as a fraction."""
    return [
        (100 * base["memorised"], gain_of_table(base, loss))
        for base, loss in both_losses_of_tables([path]).values()
    ]


def gain(base, loss):
    """Returns by how much the balanced accuracy of GLA is higher, in points."""
    return balanced(loss) - balanced(base)


def gain_of_table(base, loss):
    """Returns the same of a table, as a fraction."""
    return np.mean(loss["balanced_accuracy"]) - np.mean(base["balanced_accuracy"])


def balanced(result):
    return 100 * statistics.mean(accuracy_report.known(result["recalls"]))


def correlation(pairs, draws=2000):
    """Returns Spearman's rank correlation over trainings, and its 95% interval over cells."""
    cells = [np.array(of_cell) for of_cell in pairs.values()]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        points = np.concatenate([cells[i] for i in rng.integers(0, len(cells), len(cells))])
        if np.ptp(points, axis=0).all():
            drawn.append(stats.spearmanr(*points.T).statistic)
    points = np.concatenate(cells)
    return stats.spearmanr(*points.T).statistic, *np.quantile(drawn, [0.025, 0.975])


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


def report(pairs, of_tables):
    print("| cell | seeds | memorised, % | gain | the rule says | seeds right |")
    print("|---|---|---|---|---|---|")
    for cell, of_cell in sorted(pairs.items(), key=lambda item: not is_of_the_rule(item[0])):
        memorised = statistics.mean(m for m, _ in of_cell)
        gains = [gain for _, gain in of_cell]
        error = f" ± {np.std(gains, ddof=1) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        right = sum((m > RULE) == (gain > 0) for m, gain in of_cell)
        says = "gain" if memorised > RULE else "loss"
        note = " (of the rule)" if is_of_the_rule(cell) else ""
        print(
            f"| {cell_name(cell)}{note} | {len(of_cell)} | {memorised:.0f} "
            f"| {statistics.mean(gains):+.1f}{error} | {says} | {right} |"
        )
    value, low, high = correlation(pairs)
    others = [point for cell in pairs if not is_of_the_rule(cell) for point in pairs[cell]]
    right = sum((m > RULE) == (gain > 0) for m, gain in others)
    print(
        f"\nRank correlation over {sum(map(len, pairs.values()))} trainings {value:.2f}, "
        f"95% interval over cells {low:.2f} to {high:.2f}. Outside the cells that it was made of, "
        f"the rule is right for {right} of {len(others)} trainings."
    )
    right = sum((m > RULE) == (gain > 0) for m, gain in of_tables)
    gains = sum(gain > 0 for _, gain in of_tables)
    print(
        f"On KEEL's tables it is right for {right} of {len(of_tables)}, where to expect a gain of "
        f"all is right for {gains}."
    )


def draw(pairs, path):
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
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picture", type=pathlib.Path)
    args = parser.parse_args(argv)
    pairs = pairs_of(RESULTS)
    report(pairs, pairs_of_tables(TABLES))
    print(f"\nThe threshold that the first cells give: {made_of(pairs):.0f}%.")
    if args.picture is not None:
        draw(pairs, args.picture)


def made_of(pairs):
    """Returns the threshold that the cells of the rule give."""
    return threshold({cell: of_cell for cell, of_cell in pairs.items() if is_of_the_rule(cell)})


if __name__ == "__main__":
    main()
