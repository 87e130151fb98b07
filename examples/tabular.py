"""Rare events in a table: seven ways to train the same network on one positive in hundreds.

    python examples/tabular.py --imbalance-ratio 100 1000

Generated data (scikit-learn) with one positive to `--imbalance-ratio` negatives. Prints balanced
accuracy, recall and accuracy of each way, mean and standard error over seeds, and what a budget of
alerts finds, and draws what `target_priors` trades: balanced accuracy against accuracy.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from sklearn.datasets import make_classification
from sklearn.preprocessing import StandardScaler

import keras_balanced
from keras_balanced import BinaryBalancedAccuracy, BinaryGCALoss, BinaryGLALoss, serving

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def load(imbalance_ratio, num_train, seed):
    """Returns train and test arrays and the rate of positives among the train labels."""
    x, y = make_classification(
        6 * num_train,
        n_features=20,
        n_informative=8,
        n_clusters_per_class=4,
        weights=[imbalance_ratio / (imbalance_ratio + 1)],
        flip_y=0.0,
        random_state=seed,
    )
    scaler = StandardScaler().fit(x[:num_train])
    x = scaler.transform(x).astype("float32")
    train, test = (x[:num_train], y[:num_train]), (x[num_train:], y[num_train:])
    return train, test, float(y[:num_train].mean())


def cross_entropy():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def oversample(x, y, rng):
    """Draws as many examples again, half of them positive."""
    weights = np.where(y == 1, 0.5 / y.sum(), 0.5 / (y == 0).sum())
    chosen = rng.choice(len(y), len(y), p=weights)
    return x[chosen], y[chosen]


# Each way: the loss for a rate of positives, and what else `fit` gets.
WAYS = {
    "cross-entropy": (lambda rate: cross_entropy(), None),
    # Cross-entropy too, but one that knows its posterior.
    "post-hoc": (lambda rate: BinaryGLALoss(rate, tau=0), None),
    "class_weight": (lambda rate: cross_entropy(), "class_weight"),
    "focal": (lambda rate: keras.losses.BinaryFocalCrossentropy(from_logits=True), None),
    "oversampling": (lambda rate: cross_entropy(), "oversample"),
    "GLA": (lambda rate: BinaryGLALoss(rate, q=0.0, tau=None), None),
    "GCA": (
        lambda rate: BinaryGCALoss(rate, q=0.0, margins="cube_root", consistent=False),
        None,
    ),
}


def train(loss, train_data, extra, rate, args, seed):
    """Returns a network trained with a loss."""
    keras.utils.set_random_seed(seed)
    x, y = train_data
    class_weight = None
    if extra == "class_weight":
        class_weight = {0: 0.5 / (1.0 - rate), 1: 0.5 / rate}
    elif extra == "oversample":
        x, y = oversample(x, y, np.random.default_rng(seed))
    hidden = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((x.shape[1],)), *hidden, keras.layers.Dense(1)])
    model.compile("adam", loss)
    model.fit(x, y, args.batch_size, args.epochs, class_weight=class_weight, verbose=0)
    return model


def evaluate(model, x, y):
    logits = model.predict(x, batch_size=8192, verbose=0)[:, 0]
    ours = hasattr(model.loss, "posterior")
    # What post-hoc adjustment is, and how GCA, with its margins, decides. For GLA the same.
    positive = model.loss.posterior(logits) > 0.5 if ours else logits > 0
    metric = BinaryBalancedAccuracy(decision=model.loss if ours else None)
    metric.update_state(y, logits)
    return {
        "balanced accuracy": float(metric.result()),
        "recall": float(positive[y == 1].mean()),
        "accuracy": float((positive == y).mean()),
    }


def print_table(results):
    columns = list(next(iter(results.values()))[0])
    print(f"| {'':<15} | " + " | ".join(f"{column:>17}" for column in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, runs in results.items():
        cells = []
        for column in columns:
            values = 100 * np.array([run[column] for run in runs])
            cell = f"{values.mean():.1f}"
            if len(values) > 1:
                cell += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"
            cells.append(cell)
        print(f"| {name:<15} | " + " | ".join(f"{cell:>17}" for cell in cells) + " |")


def print_trade_off(points):
    print("| alpha | balanced accuracy | accuracy |")
    print("|---|---|---|")
    for alpha, point in zip(ALPHAS, points, strict=True):
        cells = [f"{100 * point[name]:.1f}" for name in ("balanced accuracy", "accuracy")]
        print(f"| {alpha:g} | " + " | ".join(cells) + " |")


def alert_budget(ratio, args):
    """Returns what GLA finds within as many alerts as positives, chosen on held-out data."""
    (x, y), (x_test, y_test), rate = load(ratio, args.examples, seed=0)
    held_out = len(y) // 4
    data = (x[held_out:], y[held_out:])
    model = train(BinaryGLALoss(rate), data, None, rate, args, seed=0)

    def probabilities(x):
        logits = model.predict(x, batch_size=8192, verbose=0)[:, 0]
        return model.loss.posterior(logits, priors=rate)

    threshold = serving.find_threshold(probabilities(x[:held_out]), max_alert_rate=rate)
    alerts = probabilities(x_test) > threshold
    return {
        "threshold": threshold,
        "alerts": float(alerts.mean()),
        "precision": float(y_test[alerts].mean()) if alerts.any() else 0.0,
        "recall": float(alerts[y_test == 1].mean()),
    }


def draw(trade_offs, path):
    """Draws balanced accuracy against accuracy, a line for each imbalance ratio."""
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(layout="constrained")
    for ratio, points in trade_offs.items():
        accuracy = [100 * point["accuracy"] for point in points]
        balanced = [100 * point["balanced accuracy"] for point in points]
        ax.plot(accuracy, balanced, "o-", label=f"1 : {ratio:g}")
        for alpha, *where in zip(ALPHAS, accuracy, balanced, strict=True):
            ax.annotate(f"{alpha:g}", where, xytext=(4, 4), textcoords="offset points")
    ax.set_xlabel("accuracy, %")
    ax.set_ylabel("balanced accuracy, %")
    ax.set_title("BinaryGLALoss with target_priors = priors ** alpha")
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--imbalance-ratio", type=float, nargs="+", default=[100.0, 1000.0])
    parser.add_argument("--examples", type=int, default=40_000, help="to train with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--output", type=pathlib.Path, default="results/tabular.json")
    args = parser.parse_args(argv)
    for name in ("examples", "seeds", "epochs", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"`{name}` must be at least 1. Received: {getattr(args, name)}")
    if not all(1 <= ratio <= args.examples / 20 for ratio in args.imbalance_ratio):
        parser.error(
            "`imbalance_ratio` must be at least 1 and at most a twentieth of the examples. "
            f"Received: {args.imbalance_ratio} with {args.examples} examples"
        )
    return args


def compare(ratio, args):
    """Returns what each way reaches with each seed."""
    results = {name: [] for name in WAYS}
    for seed in range(args.seeds):
        train_data, test_data, rate = load(ratio, args.examples, seed)
        for name, (loss, extra) in WAYS.items():
            model = train(loss(rate), train_data, extra, rate, args, seed)
            results[name].append(evaluate(model, *test_data))
    return results


def trade_off(ratio, ways, args):
    """Returns what GLA reaches for each target between the balanced mix and that of the data."""
    train_data, test_data, rate = load(ratio, args.examples, seed=0)
    between = []
    for alpha in ALPHAS[1:-1]:
        target = rate**alpha / (rate**alpha + (1.0 - rate) ** alpha)
        loss = BinaryGLALoss(rate, target_priors=target)
        between.append(evaluate(train(loss, train_data, None, rate, args, seed=0), *test_data))
    # At the ends, 0 and 1, that is two of the ways.
    return [ways["GLA"][0], *between, ways["cross-entropy"][0]]


def main(argv=None):
    args = parse_arguments(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    ways, trade_offs, budgets = {}, {}, {}
    for ratio in args.imbalance_ratio:
        print(f"\nOne positive to {ratio:g} negatives, {args.seeds} seeds, % on test data")
        ways[ratio] = compare(ratio, args)
        print_table(ways[ratio])
        print("\nGLA with target_priors = priors ** alpha, first seed, % on test data")
        trade_offs[ratio] = trade_off(ratio, ways[ratio], args)
        print_trade_off(trade_offs[ratio])
        budgets[ratio] = alert_budget(ratio, args)
        print("\nGLA with as many alerts as positives, first seed, on test data")
        print(", ".join(f"{name} {value:.4f}" for name, value in budgets[ratio].items()))
    versions = {"keras": keras.__version__, "keras_balanced": keras_balanced.__version__}
    results = {"versions": versions, "ways": ways, "trade_offs": trade_offs, "budgets": budgets}
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    picture = args.output.with_suffix(".png")
    draw(trade_offs, picture)
    print(f"\nResults: {args.output}\nPicture: {picture}")


if __name__ == "__main__":
    main()
