"""Trains a ResNet on long-tailed digits or CIFAR with several losses, side by side.

    python examples/long_tailed_cifar.py --dataset cifar10 --losses ce gla gca --seeds 0 1 2

Prints a table, appends each run to `--output` as a line of JSON the moment it ends (a rerun skips
what is done), and draws balanced accuracies and the recall of each class beside it.
"""

import argparse
import json
import os
import pathlib
import time

import keras
import numpy as np

import keras_balanced
from keras_balanced import ClassPrior, GCALoss, GLALoss, datasets, metrics, models

LOSSES = {
    "ce": lambda priors, args: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "weighted_ce": lambda priors, args: GCALoss(priors, margins=None, consistent=False),
    "gla": lambda priors, args: GLALoss(priors, q=args.gla_q, tau=args.gla_tau),
    "gca": lambda priors, args: GCALoss(
        priors, q=args.gca_q, margins="cube_root", consistent=False
    ),
}
COLORS = ["#7b7b7b", "#d1682a", "#3a7fc1", "#3d9a4b", "#a45fc0"]
MARKERS = "xos^D"
LEARNING_RATE = 0.1
WARMUP_EPOCHS = 5


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", choices=datasets.NAMES, default="digits")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--imbalance-ratio", type=float, default=100)
    parser.add_argument("--profile", choices=datasets.PROFILES, default="exponential")
    parser.add_argument("--depth", type=int, choices=[8, 14, 20, 32, 44, 56, 110], default=32)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--steps-per-epoch", type=int, help="fewer steps, for a quick look")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--l2", type=float, default=1e-4)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="each of a subset and a training"
    )
    parser.add_argument("--gla-q", type=float, default=0.0, help="q of gla")
    parser.add_argument("--gla-tau", type=float, help="tau of gla; None is 1 / (1 - q)")
    parser.add_argument("--gca-q", type=float, default=0.0, help="q of gca")
    parser.add_argument("--mixed-precision", choices=["float16", "bfloat16"])
    parser.add_argument("--jit", action="store_true", help="compile the training step with XLA")
    parser.add_argument("--output", type=pathlib.Path, default="results/long_tailed.jsonl")
    args = parser.parse_args(argv)
    try:
        datasets.check_imbalance(args.imbalance_ratio, args.profile)
        for name in args.losses:
            LOSSES[name](np.ones(2), args)
        for name in ("epochs", "batch_size", "steps_per_epoch"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {getattr(args, name)}")
        if args.l2 < 0:
            raise ValueError(f"`l2` must not be negative. Received: {args.l2}")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.open("a").close()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


class Batches(keras.utils.PyDataset):
    """Shuffled batches; with `augment`, padded by an eighth, cropped and flipped at random."""

    def __init__(self, x, y, batch_size, augment, seed):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size
        self.seed, self.epoch = seed, 0
        self.shuffle()
        self.crops = None
        if augment:
            margin = x.shape[1] // 8
            padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
            self.crops = np.lib.stride_tricks.sliding_window_view(padded, x.shape[1:3], (1, 2))

    def __len__(self):
        return -(-len(self.y) // self.batch_size)

    def __getitem__(self, index):
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        if self.crops is None:
            return self.x[chosen], self.y[chosen]
        top, left = self.rng.integers(0, self.crops.shape[1], (2, len(chosen)))
        images = np.moveaxis(self.crops[chosen, top, left], 1, -1)
        flip = self.rng.random(len(chosen)) < 0.5
        images[flip] = images[flip, :, ::-1]
        return images, self.y[chosen]

    def on_epoch_end(self):
        self.epoch += 1
        self.shuffle()

    def shuffle(self):
        self.rng = np.random.default_rng([self.seed, self.epoch])
        self.order = self.rng.permutation(len(self.y))


def learning_rate(epoch, epochs):
    """The rate of an epoch: a linear warm-up, then x 0.01 at 80% and again at 90%."""
    if epoch < WARMUP_EPOCHS:
        return LEARNING_RATE * (epoch + 1) / WARMUP_EPOCHS
    return LEARNING_RATE * 0.01 ** ((epoch >= 0.8 * epochs) + (epoch >= 0.9 * epochs))


def train(name, seed, args, train_data, test_data):
    """Trains with one loss and returns what the table and the picture need."""
    (x, y), (x_test, y_test) = train_data, test_data
    num_classes = int(y_test.max()) + 1
    keras.utils.set_random_seed(seed)
    prior = ClassPrior(num_classes)
    prior.adapt(y)
    normalization = keras.layers.Normalization()
    normalization.adapt(x.astype("float32"))
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            normalization,
            models.resnet(x.shape[1:], num_classes, args.depth, args.l2),
        ]
    )
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
        loss=LOSSES[name](prior, args),
        metrics=[metrics.BalancedAccuracy(num_classes)],
        jit_compile=args.jit,
    )
    start = time.perf_counter()
    model.fit(
        Batches(x, y, args.batch_size, augment=args.dataset != "digits", seed=seed),
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: learning_rate(epoch, args.epochs))
        ],
    )
    seconds = time.perf_counter() - start
    logits = model.predict(x_test, batch_size=512, verbose=0)
    # Keras's cross-entropy is GLA at tau = 0, whose posterior is post-hoc logit adjustment.
    loss = GLALoss(prior, tau=0) if name == "ce" else model.loss
    return {
        "class_counts": prior.counts.astype(int).tolist(),
        "test_counts": np.bincount(y_test, minlength=num_classes).tolist(),
        "recalls": recalls(y_test, logits),
        "recalls_of_posterior": recalls(y_test, loss.posterior(logits)),
        "seconds": round(seconds, 1),
    }


def recalls(y_test, y_pred):
    metric = metrics.ClassRecall(y_pred.shape[-1])
    metric.update_state(y_test, y_pred)
    return keras.ops.convert_to_numpy(metric.result()).astype(float).round(6).tolist()


def in_code(name, args):
    """Returns a loss, decided by its posterior, as in code."""
    if name == "ce":
        return "then LogitAdjustment(prior)"  # What the posterior of cross-entropy decides.
    if name == "weighted_ce":
        return "GCALoss(prior, margins=None)"
    q, tau = (args.gla_q, args.gla_tau) if name == "gla" else (args.gca_q, None)
    options = f", q={q:g}" * (q > 0) + f", tau={tau}" * (tau is not None)
    return f"{name.upper()}Loss(prior{options})"


def recalls_by_way(results, args):
    """Returns the recalls `(seeds, K)` of each way to a decision, by its name in code.

    `results` has a list for each loss, of a result for each seed.
    """
    ways = {}
    for name, of_seeds in results.items():
        if name == "ce":
            ways["cross-entropy"] = [result["recalls"] for result in of_seeds]
        ways[in_code(name, args)] = [result["recalls_of_posterior"] for result in of_seeds]
    return {way: np.array(recalls) for way, recalls in ways.items()}


def table_row(recalls, class_counts):
    """The percentages of one way, means over seeds; a group without a class is a dash."""
    balanced, means = recalls.mean(axis=1), recalls.mean(axis=0)
    row = {"balanced": balanced.mean(), "worst seed": balanced.min(), "best seed": balanced.max()}
    row["worst class"] = means.min()
    for shot, group in metrics.shot_groups(class_counts).items():
        row[shot] = means[group].mean() if group.any() else None
    return {key: "-" if value is None else f"{100 * value:.1f}" for key, value in row.items()}


def table(ways, class_counts):
    """Returns a Markdown table, a row for each way."""
    rows = {way: table_row(recalls, class_counts) for way, recalls in ways.items()}
    columns = list(next(iter(rows.values())))
    lines = [f"| way | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {way} | {' | '.join(row.values())} |" for way, row in rows.items()]
    return "\n".join(lines)


def draw(ways, class_counts, title, path):
    """Draws the recalls by class size, and the balanced accuracy of each seed."""
    from matplotlib import pyplot

    grey = "#7b7b7b"  # Readable on white and on black: the background is transparent.
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), grey)
    style |= dict.fromkeys(("xtick.color", "ytick.color"), grey)
    with pyplot.rc_context(style):
        figure, (above, below) = pyplot.subplots(
            2, figsize=(6.4, 5.8), height_ratios=[1.5, 1], layout="constrained"
        )
        for i, (way, recalls) in enumerate(ways.items()):
            color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
            means, balanced = recalls.mean(axis=0), recalls.mean(axis=1)
            spread = np.abs([recalls.min(axis=0), recalls.max(axis=0)] - means)
            place = np.arange(len(means)) + 0.1 * (i - 1.5)
            above.errorbar(place, means, spread, color=color, marker=marker, linewidth=1.2)
            below.plot(balanced, np.full(len(balanced), -i), marker, color=color, alpha=0.5)
            below.plot(balanced.mean(), -i, "|", color=color, markersize=14, markeredgewidth=3)
            label = f"{way}: {balanced.mean():.2f}"
            below.text(0, 0.33 - i, label, color=color, transform=below.get_yaxis_transform())
        if len(class_counts) <= 20:
            above.set_xticks(range(len(class_counts)), class_counts)
            above.set_xlabel("training images of the class")
        else:
            above.set_xlabel("class, the most frequent first")
        above.set(ylim=(0, 1.02), ylabel="recall", title=title)
        below.set_yticks([])
        below.spines["left"].set_visible(False)
        below.set(
            ylim=(0.5 - len(ways), 0.8), xlabel="balanced accuracy of each seed, and the mean"
        )
        figure.savefig(path, dpi=130, transparent=True)
        pyplot.close(figure)


def read_results(path):
    """Yields the runs written so far; a line that a kill cut short is no run."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            print(f"{path}: skipped a broken line")


def resume(path):
    """Returns the runs of a file to append to, and ends the line that a kill cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            file.write(b"\n")
    return read_results(path)


def write(path, settings, result):
    run = {
        "settings": settings,
        "result": result,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "keras_balanced": keras_balanced.__version__,
    }
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")


def main(argv=None):
    args = parse_arguments(argv)
    if args.mixed_precision:
        keras.config.set_dtype_policy(f"mixed_{args.mixed_precision}")
    shared = {k: v for k, v in vars(args).items() if k not in ("losses", "seeds", "output")}
    done = {json.dumps(run["settings"]): run["result"] for run in resume(args.output)}
    results = {name: [] for name in args.losses}
    for seed in args.seeds:
        train_data, test_data = datasets.load(
            args.dataset, args.imbalance_ratio, args.profile, seed
        )
        for name in args.losses:
            settings = {"loss": name, "seed": seed, **shared}
            key = json.dumps(settings)
            if key not in done:
                print(f"\n{name}, seed {seed}: {len(train_data[1])} training images")
                done[key] = train(name, seed, args, train_data, test_data)
                write(args.output, settings, done[key])
            else:
                print(f"{name}, seed {seed}: done before, read from {args.output}")
            results[name].append(done[key])
    ways = recalls_by_way(results, args)
    class_counts = next(iter(results.values()))[0]["class_counts"]
    print(f"\nTest set, %, mean of {len(args.seeds)} seeds\n{table(ways, class_counts)}")
    picture = args.output.with_suffix(".png")
    title = f"{args.dataset}, {args.profile} imbalance, ratio {args.imbalance_ratio:g}"
    draw(ways, class_counts, title, picture)
    print(f"\nResults: {args.output}\nPicture: {picture}")


if __name__ == "__main__":
    main()
