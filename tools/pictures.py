"""Draws the pictures of the page "Results" from the committed results of the benchmarks.

    python tools/pictures.py

`docs/img/demo.png` is drawn by `make -B docs/img/demo.png`.
"""

import json
import pathlib
import sys
from collections import defaultdict

import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import keel_tables, store  # noqa: E402
from benchmarks.training_tables import BY_POSTERIOR  # noqa: E402

# Readable on white and on black, as the background is transparent.
GREY, ORANGE, BLUE, GREEN, PURPLE = "#7b7b7b", "#d1682a", "#3a7fc1", "#3d9a4b", "#a45fc0"
STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "savefig.dpi": 130,
}
STYLE |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), GREY)
STYLE |= dict.fromkeys(("xtick.color", "ytick.color"), GREY)
# A way to decide: its name in code or in words, its loss in the results, which recalls, a colour.
WAYS = {
    "cross-entropy": ("ce", "recalls", GREY),
    "focal loss": ("focal", "recalls", GREY),
    "class weights": ("weighted", "recalls", PURPLE),
    "then LogitAdjustment(prior)": ("ce", "recalls_of_posterior", ORANGE),
    "GLALoss(prior)": ("logit_adjusted", "recalls", BLUE),
    "GCALoss(prior)": ("gca", "recalls_of_posterior", GREEN),
}


def runs(name):
    return store.read(store.path_of(name))


def balanced_accuracies(dataset, ratio, epochs):
    """Returns `{(loss, recalls): balanced accuracies of the seeds}` of one setting."""
    found = defaultdict(list)
    wanted = {"dataset": dataset, "ratio": ratio, "epochs": epochs, "held_out": 0}
    wanted |= {"profile": "exponential", "l2": 5e-4}
    for run in runs("accuracy"):
        settings = run["settings"]
        if wanted.items() <= settings.items():
            for kind in ("recalls", "recalls_of_posterior"):
                found[settings["loss"], kind].append(100 * np.mean(run["result"][kind]))
    return found


def dots(ax, rows, colors):
    """Draws the mean of each row and its standard error, from above to below."""
    for i, (values, color) in enumerate(zip(rows.values(), colors, strict=True)):
        if len(values):
            ax.errorbar(
                np.mean(values), -i, xerr=stats.sem(values), fmt="o", color=color, capsize=3
            )
    ax.set_yticks(-np.arange(len(rows)), rows)
    ax.set_ylim(0.5 - len(rows), 0.5)
    ax.grid(axis="x", color=GREY, alpha=0.25)


def images():
    """Balanced accuracy on three sets of long-tailed images."""
    figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.8), sharey=True)
    settings = {
        "CIFAR-10-LT": ("cifar10", 100, 100),
        "CIFAR-100-LT": ("cifar100", 100, 100),
        "digits": ("digits", 50, 60),
    }
    for ax, (title, setting) in zip(axes, settings.items(), strict=True):
        found = balanced_accuracies(*setting)
        rows = {way: found[key[:2]] for way, key in WAYS.items()}
        dots(ax, rows, [color for *_, color in WAYS.values()])
        ax.set_title(title, size=10.5)
    axes[1].set_xlabel("balanced accuracy, %")
    return figure


def tables():
    """What each method gains on post-hoc adjustment, over the sources of real tables."""
    chosen = [  # Not the tables to tune on.
        run
        for run in runs("tables")
        if run["settings"].get("noise") == 0 and run["settings"]["repetitions"] == 5
    ]
    scores = keel_tables.Scores(chosen)
    ways = {
        "cross-entropy": ("ce", GREY),
        "focal loss": ("focal", GREY),
        "gradient boosting": ("gradient_boosting", GREY),
        "balanced random forest": ("balanced_forest", GREY),
        "SMOTE": ("smote", PURPLE),
        "oversampling": ("oversampled", PURPLE),
        "class weights": ("weighted", PURPLE),
        "GLALoss(prior)": ("logit_adjusted", BLUE),
        "GCALoss(prior)": ("gca" + BY_POSTERIOR, GREEN),
    }
    methods, colors = zip(*ways.values(), strict=True)
    values = scores.values([*methods, keel_tables.POST_HOC], "balanced_accuracy")
    *of_ways, base = 100 * scores.by_source(values).T
    rows = {way: of - base for way, of in zip(ways, of_ways, strict=True)}
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    dots(ax, rows, colors)
    ax.axvline(0, color=ORANGE)
    ax.set_xlabel("points over cross-entropy, then LogitAdjustment(prior)")
    return figure


def pixels():
    """Balanced accuracy and IoU of a rare class of pixels."""
    (found,) = (
        run["result"]["ways"]
        for run in runs("other_tasks")
        if run["settings"]["example"] == "segmentation"
    )
    names = {"post-hoc": "then LogitAdjustment(prior)", "focal": "focal loss"}
    names |= {"GLA": "GLALoss(prior)", "GCA": "GCALoss(prior)"}
    colors = [GREY, ORANGE, PURPLE, GREY, PURPLE, BLUE, GREEN]
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3), sharey=True)
    for ax, score in zip(axes, ("balanced accuracy", "rare IoU"), strict=True):
        rows = {
            names.get(way, way): [100 * run[score] for run in runs] for way, runs in found.items()
        }
        dots(ax, rows, colors)
        ax.set_xlabel(f"{score}, %")
    return figure


def wrong_labels():
    """What a large q gains, by how many wrong labels logit adjustment learns by heart."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    pairs = defaultdict(dict)
    for run in runs("label_noise"):
        settings = dict(run["settings"])
        loss = settings.pop("loss")
        if settings.get("label_noise") and settings["held_out"] == 0:
            pairs[json.dumps(settings, sort_keys=True)][loss] = run["result"]
    labels = {"digits": BLUE, "CIFAR": ORANGE}
    for settings, of in pairs.items():
        if {"logit_adjusted", "gla_q0.7_tau1"} <= set(of):
            base, loss = of["logit_adjusted"], of["gla_q0.7_tau1"]
            gain = 100 * (np.mean(loss["recalls"]) - np.mean(base["recalls"]))
            color = labels["digits" if "digits" in settings else "CIFAR"]
            ax.plot(100 * base["memorised"], gain, "o", color=color, alpha=0.6)
    for label, color in labels.items():
        ax.plot([], [], "o", color=color, label=label)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_xlabel("% of the wrong labels that GLALoss(prior) learns by heart")
    ax.set_ylabel("gain of q=0.7, tau=1")
    ax.legend(frameon=False)
    return figure


def probabilities():
    """The log loss in changed class mixes, with the mix known, estimated and ignored."""
    mixes = defaultdict(lambda: defaultdict(list))
    for run in runs("decisions"):
        if run["settings"]["held_out"] == 0:
            for mix in run["result"].get("probabilities", {}).get("after", {}).values():
                for given in ("known", "estimated", "training"):
                    if given in mix:
                        mixes[run["settings"]["loss"]][given].append(mix[given]["log_loss"])
    ways = {"cross-entropy": "ce", "GLALoss(prior)": "logit_adjusted", "GCALoss(prior)": "gca"}
    names = {"known": "stated", "estimated": "estimated", "training": "that of training"}
    figure, ax = plt.subplots(figsize=(6.4, 3))
    for i, ((given, name), color) in enumerate(
        zip(names.items(), (GREEN, BLUE, ORANGE), strict=True)
    ):
        heights = [np.mean(mixes[loss][given]) for loss in ways.values()]
        bars = ax.bar(np.arange(3) + 0.27 * (i - 1), heights, 0.25, color=color, label=name)
        ax.bar_label(bars, fmt="%.2f", color=GREY)
    ax.set_xticks(range(3), ways)
    ax.set_ylabel("log loss")
    figure.legend(title="priors", frameon=False, loc="outside upper center", ncols=3)
    return figure


def margins():
    """Balanced accuracy with and without margins, by two readings of the paper's summary."""
    found = balanced_accuracies("digits", 50, 60)
    rows = {
        "margins=counts ** (1/3)": found["gca_counts", "recalls_of_posterior"],
        "margins=None: class weights": found["weighted", "recalls"],
        'margins="cube_root", the default': found["gca", "recalls_of_posterior"],
    }
    figure, ax = plt.subplots(figsize=(6.4, 1.8))
    dots(ax, rows, [GREY, PURPLE, GREEN])
    ax.set_xlabel("balanced accuracy, %")
    return figure


PICTURES = (images, tables, pixels, wrong_labels, probabilities, margins)


def main(folder):
    folder.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for draw in PICTURES:
            figure = draw()
            figure.savefig(folder / f"{draw.__name__}.png", metadata={"Software": None})
            plt.close(figure)


if __name__ == "__main__":
    main(ROOT / "docs" / "img")
