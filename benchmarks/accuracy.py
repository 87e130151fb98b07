"""Which loss is best on a long tail? Losses x data x imbalance x seeds, under one recipe.

    python benchmarks/accuracy.py --protocol quick --output benchmarks/results/digits.jsonl
    python benchmarks/accuracy.py --protocol cpu --output benchmarks/results/cifar10.jsonl
    python benchmarks/accuracy.py --label-noise uniform:0.2 uniform:0.4 --output noise.jsonl
    python benchmarks/accuracy.py --report benchmarks/results/digits.jsonl

The seeds of the subset, of its label noise and of the training move together. With several `--l2`,
each loss chooses its own on a stratified hold-out of the tail at the first seed, by the argmax of
its logits. Then it trains on the whole tail, and its last epoch is tested once. Every training is
appended to `--output` as a line of JSON as it ends, and a rerun does what is missing. It also goes
on with the trainings that were cut off.

With `--held-out` every loss also trains on each seed's tail without that hold-out, and the report
adds which of the losses the hold-out chooses, as a user would choose q, and what that loses:
`--held-out --losses logit_adjusted gla_q0.5_tau1 gla_q0.7_tau1`, with `--report` too.

On TensorFlow or JAX; on JAX nothing else is needed but images: `--data cifar10.npz`, or what
`keras.datasets` finds.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import accuracy_report  # noqa: E402
import backups  # noqa: E402
import baselines  # noqa: E402
import keras  # noqa: E402
import long_tailed_cifar  # noqa: E402
import probabilities  # noqa: E402

import keras_balanced  # noqa: E402
from keras_balanced import (  # noqa: E402
    BalancedLoss,
    GCALoss,
    GLALoss,
    Surrogate,
    datasets,
    models,
)

HELD_OUT = 0.2
SECOND_PHASE = 0.8  # Of the epochs; where LDAM-DRW starts to re-weight.
OFFSETS = tuple(i / 4 for i in range(-4, 9))  # Times `log prior`, taken off the logits.
NOISES = ("uniform", "pair", "to_tail", "to_head")
TRAININGS_OF_A_PROCESS = 50
SOURCES = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for folder in ("benchmarks", "examples", "keras_balanced")
        for path in sorted((ROOT / folder).glob("*.py"))
    )
).hexdigest()  # As they were imported.
SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # Pixels.


class Protocol(NamedTuple):
    """A recipe, the same for every loss, and the conditions it is run under by default."""

    datasets: tuple
    ratios: tuple
    seeds: tuple
    losses: tuple
    size: int
    depth: int
    epochs: int
    batch_size: int
    schedule: str
    l2: tuple
    augment: bool = True
    profiles: tuple = ("exponential",)
    label_noise: tuple = (None,)
    n_max: tuple = (None,)
    learning_rate: float = 0.1
    warmup_epochs: int = 5
    dtype: str | None = None  # `None`: float32.
    threads: int | None = None  # Of each training; `None`: the cores, shared by all trainings.
    data: str | None = None


class Method(NamedTuple):
    """A loss `counts -> loss`, and what else a method changes in a training."""

    loss: Callable
    then: Callable | None = None
    oversample: bool = False
    cosine_head: bool = False
    rate: float = 1.0  # Times the learning rate of the recipe.


# The settings here, in full: a method that has results must not follow a default of the package.
def gla(q=0.0, tau=None):
    return lambda counts: GLALoss(counts, q, tau)


def gca(q=0.0, margins="cube_root", consistent=False):
    return lambda counts: GCALoss(counts, q, margins, consistent)


def gca_counts(q=0.0, consistent=False):
    """GCA with larger margins for larger classes."""
    return lambda counts: GCALoss(counts, q, np.cbrt(counts), consistent)


def gca_scale(scale):
    """GCA with margins of another mean than 1."""

    def loss(counts):
        of = gca()(counts).surrogate
        return BalancedLoss(Surrogate(counts, margins=scale * of.margins, weights=of.weights))

    return loss


def gla_margins(**arguments):
    return lambda counts: baselines.margin_gla(counts, **arguments)


def vs(counts):
    # The paper's, for exponential tails of CIFAR-10 and CIFAR-100.
    gamma, tau = (0.15, 1.25) if len(counts) == 10 else (0.05, 0.75)
    return baselines.VSLoss(counts, gamma, tau)


def ldam_reweighted(counts):
    return baselines.LDAMLoss(counts, baselines.effective_weights(counts))


def immax(counts):
    return GCALoss(counts, 0.0, "cube_root", consistent=False, target_priors=counts)


CE = gla(tau=0)
SCALES = (0.1, 0.3, 1, 3)
METHODS = {
    # Of other papers.
    "ce": Method(CE),
    "weighted": Method(gca(margins=None)),
    "effective": Method(baselines.effective_number),
    "focal": Method(baselines.FocalLoss),
    "gce": Method(gla(q=0.7, tau=0)),
    "oversampled": Method(lambda counts: CE(np.ones(len(counts))), oversample=True),
    "immax": Method(immax),
    "logit_adjusted": Method(gla()),
    "vs": Method(vs),
    "ldam": Method(baselines.LDAMLoss, cosine_head=True),
    "ldam_drw": Method(baselines.LDAMLoss, then=ldam_reweighted, cosine_head=True),
    # Cross-entropy first.
    "ce_drw": Method(CE, then=baselines.effective_number),
    "logit_adjusted_deferred": Method(CE, then=gla()),
    "gca_deferred": Method(CE, then=gca()),
    "gca_consistent_deferred": Method(CE, then=gca(consistent=True)),
    # GLA: q and tau.
    **{f"gla_q{q}": Method(gla(q=q)) for q in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)},
    **{f"gla_q{q}_tau1": Method(gla(q=q, tau=1)) for q in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)},
    "gla_q0_then_q0.3": Method(gla(), then=gla(q=0.3)),
    # GCA: margins and q.
    "gca": Method(gca()),
    **{f"gca_q{q}": Method(gca(q=q)) for q in (0.2, 0.5, 0.7)},
    "gca_consistent": Method(gca(consistent=True)),
    **{f"gca_consistent_q{q}": Method(gca(q=q, consistent=True)) for q in (0.2, 0.4)},
    "gca_consistent_q0_then_q0.3": Method(gca(consistent=True), then=gca(q=0.3, consistent=True)),
    **{f"gca_none_q{q}": Method(gca(q=q, margins=None)) for q in (0.2, 0.4, 0.5, 0.7)},
    "gca_counts": Method(gca_counts()),
    "gca_counts_consistent": Method(gca_counts(consistent=True)),
    "gca_counts_consistent_q0.2": Method(gca_counts(q=0.2, consistent=True)),
    # The margins' scale divides the logits, which acts on the learning rate as well.
    **{f"gca_scale{s}": Method(gca_scale(s)) for s in SCALES},
    **{f"gca_scale{s}_rate_times": Method(gca_scale(s), rate=s) for s in SCALES if s != 1},
    **{f"gca_scale{s}_rate_over": Method(gca_scale(s), rate=1 / s) for s in SCALES if s != 1},
    # GLA with the margins of GCA.
    "gla_margins": Method(gla_margins()),
    "gla_margins_consistent": Method(gla_margins(consistent=True)),
    "gla_margins_consistent_q0.2": Method(gla_margins(q=0.2, consistent=True)),
}

LOSSES = ("ce", "weighted", "focal", "logit_adjusted", "ldam_drw", "vs", "gla_q0.2", "gca")
PROTOCOLS = {
    "quick": Protocol(
        datasets=("digits",),
        ratios=(10, 50),
        seeds=tuple(range(5)),
        losses=LOSSES,
        size=8,
        depth=8,
        epochs=60,
        batch_size=32,
        schedule="cosine",
        l2=(5e-4,),
        augment=False,
    ),
    "cpu": Protocol(
        datasets=("cifar10",),
        ratios=(100,),
        seeds=(0, 1, 2),
        losses=LOSSES,
        size=16,
        depth=8,
        epochs=100,
        batch_size=128,
        schedule="cosine",
        l2=(5e-4,),
    ),
    "paper": Protocol(
        datasets=("cifar10", "cifar100"),
        ratios=(100,),
        seeds=(0, 1, 2),
        losses=LOSSES,
        size=32,
        depth=32,
        epochs=200,
        batch_size=128,
        schedule="steps",
        l2=(1e-4, 5e-4),
    ),
}
CONDITIONS = ("datasets", "profiles", "ratios", "label_noise", "n_max", "losses", "seeds", "l2")


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="quick")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--datasets", nargs="+", choices=datasets.NAMES)
    images.add_argument(
        "--data",
        type=pathlib.Path,
        help="an .npz of x_train, y_train, x_test and y_test; cifar10.npz is the data set cifar10",
    )
    parser.add_argument("--profiles", nargs="+", choices=datasets.PROFILES)
    parser.add_argument("--ratios", nargs="+", type=float)
    parser.add_argument(
        "--label-noise",
        nargs="+",
        type=label_noise,
        metavar="NOISE",
        help=f"none or KIND:RATE ({', '.join(NOISES)}): RATE of the training labels, or of those "
        "of the head or the tail, are wrong",
    )
    parser.add_argument("--n-max", nargs="+", type=int, help="images of the largest class")
    parser.add_argument("--losses", nargs="+", choices=METHODS, metavar="LOSS")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--l2", nargs="+", type=float)
    parser.add_argument(
        "--held-out", action="store_true", help="choose among the losses on a hold-out as well"
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--dtype", choices=["mixed_bfloat16"], help="default: float32")
    parser.add_argument(
        "--workers", type=int, help="trainings at a time; default: one a CPU core, on a GPU 1"
    )
    parser.add_argument("--output", type=pathlib.Path, help="default: results/<protocol>.jsonl")
    parser.add_argument("--report", type=pathlib.Path, nargs="+", help="only print these results")
    parser.add_argument("--pictures", type=pathlib.Path, help="folder for the report's pictures")
    parser.add_argument("--list", action="store_true", help="only list the losses")
    args = parser.parse_args(argv)
    protocol = PROTOCOLS[args.protocol]
    given = {key: tuple(v) for key in CONDITIONS if (v := getattr(args, key)) is not None}
    given |= {key: v for key in ("epochs", "dtype") if (v := getattr(args, key)) is not None}
    if args.data is not None:
        given |= {"datasets": (args.data.stem,), "data": str(args.data)}
    args.recipe = protocol._replace(**given)
    if args.workers is None:
        args.workers = 1 if accelerated() else os.cpu_count()
    args.output = args.output or pathlib.Path("results") / f"{args.protocol}.jsonl"
    try:
        if args.recipe.epochs < 1 or args.workers < 1:
            raise ValueError(
                "`epochs` and `workers` must be at least 1. "
                f"Received: epochs={args.recipe.epochs}, workers={args.workers}"
            )
        if min(args.recipe.l2) < 0:
            raise ValueError(f"`l2` must not be negative. Received: {args.recipe.l2}")
        if args.held_out and len(args.recipe.l2) > 1:
            raise ValueError(
                f"`held_out` chooses among losses of one `l2`. Received: l2={args.recipe.l2}"
            )
        for ratio in args.recipe.ratios:
            datasets.check_imbalance(ratio, "step")
            for n_max in args.recipe.n_max:
                if n_max is not None and n_max < ratio:
                    raise ValueError(
                        "`n_max` must be at least the imbalance ratio. "
                        f"Received: n_max={n_max}, ratio={ratio:g}"
                    )
        sides = (
            {name: SIDES[name] for name in args.recipe.datasets}
            if args.data is None
            else {args.data.stem: read_npz(args.data)[0][0].shape[1]}
        )
        for name, side in sides.items():
            if side % args.recipe.size:
                raise ValueError(
                    f"The protocol {args.protocol} needs images that shrink to {args.recipe.size} "
                    f"pixels a side. Received: {name}, of {side}"
                )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return args


def label_noise(text):
    """Returns `kind:rate` in one spelling, `None` for `none`."""
    if text == "none":
        return None
    kind, _, rate = text.partition(":")
    with contextlib.suppress(ValueError):
        if kind in NOISES and 0 < float(rate) < 1:
            return f"{kind}:{float(rate):g}"
    raise argparse.ArgumentTypeError(
        "label noise must be none or KIND:RATE with a RATE in (0, 1) and a KIND of "
        f"{', '.join(NOISES)}. Received: {text}"
    )


def accelerated():
    # To ask for a kind that is not there is an error on JAX.
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


def conditions(recipe):
    """Returns the settings of every final training but its L2, seeds first."""
    axes = {
        "seed": recipe.seeds,
        "dataset": recipe.datasets,
        "profile": recipe.profiles,
        "ratio": map(float, recipe.ratios),
        "label_noise": recipe.label_noise,
        "n_max": recipe.n_max,
        "loss": recipe.losses,
    }
    # What is not asked for is not in the settings, so that results from before it existed count.
    return [
        {name: value for name, value in zip(axes, point, strict=True) if value is not None}
        for point in itertools.product(*axes.values())
    ]


def selections(recipe, among_losses=False):
    """Returns the settings of the trainings on a part of the tail that choose the L2, or a loss."""
    if len(recipe.l2) == 1 and not among_losses:
        return []
    seeds = recipe.seeds if among_losses else recipe.seeds[:1]
    return [
        {**settings, "l2": l2, "held_out": HELD_OUT}
        for settings in conditions(recipe._replace(seeds=seeds))
        for l2 in recipe.l2
    ]


def finals(recipe, results):
    """Returns the settings of the trainings on the whole tail, with the L2 that was chosen."""
    if len(recipe.l2) == 1:
        return [
            {**settings, "l2": recipe.l2[0], "held_out": 0.0} for settings in conditions(recipe)
        ]
    return [
        {
            **settings,
            "l2": chosen_l2(settings, recipe, results),
            "held_out": 0.0,
            "chosen": {"l2": sorted(recipe.l2), "seed": recipe.seeds[0]},
        }
        for settings in conditions(recipe)
    ]


def chosen_l2(settings, recipe, results):
    """Returns the L2 that was best on the hold-out of the first seed."""

    def score(l2):
        held_out = {**settings, "seed": recipe.seeds[0], "l2": l2, "held_out": HELD_OUT}
        return np.mean(accuracy_report.known(results[key_of(held_out, recipe)]["recalls"]))

    return max(recipe.l2, key=score)


def recipe_of(recipe):
    """The part of a protocol that a result depends on."""
    fields = recipe._asdict().items()
    return {k: v for k, v in fields if k not in (*CONDITIONS, "data") and v is not None}


def key_of(settings, recipe):
    return json.dumps([settings, recipe_of(recipe)], sort_keys=True)


class Data(NamedTuple):
    """`(x, y)` to train on, to evaluate on, to test on, and the true labels of the first."""

    train: tuple
    evaluation: tuple
    test: tuple
    true: np.ndarray


def load_for(settings, recipe):
    return load(
        *(settings[k] for k in ("dataset", "ratio", "profile", "seed", "held_out")),
        recipe.size,
        settings.get("label_noise"),
        settings.get("n_max"),
        recipe.data,
    )


@functools.lru_cache(maxsize=1)
def load(dataset, ratio, profile, seed, held_out, size, label_noise=None, n_max=None, data=None):
    """Returns the `Data` of a training, images of `size` pixels a side.

    What is evaluated is the hold-out, if there is one, and the test set if not. A hold-out has
    noisy labels too, as a user's would.
    """
    if data is None:
        (x, true), (x_test, y_test) = datasets.load(dataset, ratio, profile, seed, max_count=n_max)
    else:
        tail, (x_test, y_test) = read_npz(data)
        x, true = datasets.long_tail(*tail, ratio, profile, n_max, seed)
    y = true if label_noise is None else with_noise(true, label_noise, seed)
    evaluation = test = shrink(x_test, size), y_test
    if held_out:
        fit, rest = datasets.stratified_split(y, held_out, seed)
        evaluation = shrink(x[rest], size), y[rest]
        x, y, true = x[fit], y[fit], true[fit]
    return Data((shrink(x, size), y), evaluation, test, true)


def read_npz(path):
    """Returns images and labels to train and to test on, from an .npz file."""
    names = ("x_train", "y_train", "x_test", "y_test")
    with np.load(path) as file:
        if missing := [name for name in names if name not in file.files]:
            raise ValueError(f"{path} must hold {', '.join(names)}. Received: no {missing[0]}")
        x, y, x_test, y_test = (file[name] for name in names)
    for images in (x, x_test):
        if images.dtype != "uint8" or images.ndim != 4 or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"The images in {path} must be uint8 of shape (N, side, side, channels). "
                f"Received: {images.dtype} of shape {images.shape}"
            )
    return (x, y.reshape(-1).astype("int64")), (x_test, y_test.reshape(-1).astype("int64"))


def with_noise(y, noise, seed):
    """Returns the labels with wrong ones; what leaves a class without a label is drawn anew."""
    counts = np.bincount(y)
    rng = np.random.default_rng([seed, 1])
    while True:
        noisy = draw_noise(y, noise, counts, rng)
        if np.bincount(noisy, minlength=len(counts)).all():
            return noisy


def draw_noise(y, noise, counts, rng):
    """Returns the labels, each wrong with the probability in `noise`.

    A wrong label is one of the other classes, all as likely (`uniform:RATE`), or the next class,
    after the last the first (`pair:RATE`). Of the more frequent half of the classes by `counts`
    alone the labels are wrong with `to_tail:RATE`, and become one of the rarer half; with
    `to_head:RATE` it is the other way round.
    """
    kind, rate = noise.split(":")
    wrong = rng.random(len(y)) < float(rate)
    if kind in ("to_tail", "to_head"):
        halves = np.split(np.argsort(-counts, kind="stable"), [len(counts) // 2])
        source, target = halves if kind == "to_tail" else halves[::-1]
        return np.where(wrong & np.isin(y, source), rng.choice(target, len(y)), y)
    steps = rng.integers(1, len(counts), len(y)) if kind == "uniform" else 1
    return np.where(wrong, (y + steps) % len(counts), y)


def shrink(images, size):
    """Averages squares of pixels."""
    factor = images.shape[1] // size
    if factor == 1:
        return images
    squares = images.reshape(len(images), size, factor, size, factor, images.shape[-1])
    return np.round(squares.mean(axis=(2, 4))).astype("uint8")


def forever(batches):
    """Yields batches without an end: to start an epoch anew would cost a small model its speed."""
    while True:
        for i in range(len(batches)):
            yield batches[i]
        batches.on_epoch_end()


def stream(batches):
    """Returns `forever(batches)` as `fit` takes it fastest."""
    import tensorflow as tf

    signature = tuple(
        tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (batches.x, batches.y)
    )
    dataset = tf.data.Dataset.from_generator(lambda: forever(batches), output_signature=signature)
    return without_autotuning(dataset.prefetch(8))


def without_autotuning(dataset):
    """Autotuning, which Keras's own data set of a generator has, can hold up the end of `fit`."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


class BalancedBatches(long_tailed_cifar.Batches):
    """An epoch of as many images as there are, each class drawn as often."""

    def draw(self):
        p = 1 / np.bincount(self.y)[self.y]
        return self.rng.choice(len(self.y), len(self.y), p=p / p.sum())


def learning_rate(epoch, recipe):
    if recipe.schedule == "steps":
        return long_tailed_cifar.learning_rate(epoch, recipe.epochs)
    warmup = min(recipe.warmup_epochs, recipe.epochs - 1)
    if epoch < warmup:
        return recipe.learning_rate * (epoch + 1) / warmup
    passed = (epoch - warmup) / (recipe.epochs - warmup)
    return recipe.learning_rate * 0.5 * (1 + np.cos(np.pi * passed))


def build(method, x, y, l2, recipe):
    """Returns the untrained model."""
    num_classes = int(y.max()) + 1
    normalization = keras.layers.Normalization(dtype="float32")
    normalization.adapt(x.astype("float32"))
    resnet = models.resnet(x.shape[1:], num_classes, recipe.depth, l2)
    if keras.backend.backend() == "tensorflow":
        import fused

        resnet = fused.with_fused_normalization(resnet)
    if method.cosine_head:
        head = baselines.CosineHead(num_classes, keras.regularizers.L2(l2))
        resnet = keras.Model(resnet.input, head(resnet.layers[-1].input))
    return keras.Sequential([keras.Input(x.shape[1:]), normalization, resnet])


def run(settings, recipe, folder=None, keep=None):
    """Trains and evaluates once; returns the line of the results.

    A backup of the training is kept in `folder` until the caller has written the line. In `keep`
    stay the state at the start of the second phase, from where all trainings with the same first
    phase go on, and the final weights with their logits.
    """
    data = load_for(settings, recipe)
    train, evaluation, true = data.train, data.evaluation, data.true
    keras.utils.clear_session()
    keras.config.set_dtype_policy(recipe.dtype or "float32")
    keras.utils.set_random_seed(settings["seed"])
    method = METHODS[settings["loss"]]
    counts = np.bincount(train[1])
    model = build(method, *train, settings["l2"], recipe)
    optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
    second_phase = int(SECOND_PHASE * recipe.epochs)
    first = recipe.epochs if method.then is None else second_phase
    backup = backups.Backup(
        title(settings),
        model,
        optimizer,
        recipe.epochs,
        len(train[1]),
        path=folder and backup_path(settings, recipe, folder),
        milestone=keep and (second_phase, first_phase_path(settings, recipe, keep)),
    )
    for loss_of, epochs in (
        (method.loss, range(first)),
        (method.then, range(first, recipe.epochs)),
    ):
        if epochs:
            loss = loss_of(counts)
            fit(model, optimizer, loss, train, epochs, method, settings["seed"], recipe, backup)
    seconds = backup.seconds()
    logits = predict(model, evaluation[0])
    predicted = predict(model, train[0])
    if keep:
        kept = {"logits": logits, "labels": evaluation[1]}
        if settings["held_out"]:
            kept |= {"test_logits": predict(model, data.test[0]), "test_labels": data.test[1]}
        path = backup_path(settings, recipe, keep)
        backups.write(path, *map(keras.ops.convert_to_numpy, model.weights), **kept)
    result = {
        "class_counts": counts.tolist(),
        "train_recalls": recalls(train[1], predicted),
        "recalls": recalls(evaluation[1], logits),
        "recalls_of_posterior": recalls(evaluation[1], posterior(loss, logits)),
        "offsets": of_offsets(evaluation[1], logits, counts),
        "probabilities": probabilities_of(loss, logits, evaluation[1], counts, true, settings),
        "seconds": round(seconds, 2),
        "images_per_second": round(len(train[1]) * recipe.epochs / seconds),
    }
    if "label_noise" in settings:
        wrong = train[1] != true
        memorised = hits(train[1], predicted)[wrong]
        result["memorised"] = round(float(memorised.mean()), 6) if wrong.any() else None
    return {
        "settings": settings,
        "recipe": recipe_of(recipe),
        "result": result,
        "versions": {"commit": commit(), **versions()},
        "processor": processor(),
    }


def backup_path(settings, recipe, folder):
    """Returns a file of these settings, libraries and sources: from no other a training goes on."""
    key = json.dumps([key_of(settings, recipe), versions(), SOURCES])
    name = re.sub(r"[^\w.]+", "-", title(settings))
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def first_phase(name):
    """Returns the first method that trains as this one does until the second phase."""
    wanted = METHODS[name]._replace(then=None)
    return next(other for other, of in METHODS.items() if of._replace(then=None) == wanted)


def first_phase_path(settings, recipe, keep):
    """Returns the file of the state at the start of the second phase."""
    of = settings | {"loss": first_phase(settings["loss"])}
    path = backup_path(of, recipe, keep)
    return path.with_name(f"{path.stem}-first.npz")


def title(settings):
    """Returns the settings of a training as a line of progress has them."""
    noise = f" {settings['label_noise']}" if "label_noise" in settings else ""
    return (
        f"{settings['dataset']} {settings['profile']} {settings['ratio']:g}{noise} "
        f"seed {settings['seed']} l2 {settings['l2']:g} {settings['loss']}"
    )


def versions():
    return {
        "keras_balanced": keras_balanced.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        keras.backend.backend(): sys.modules[keras.backend.backend()].__version__,
        "accelerated": accelerated(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def processor():
    """Returns the model of the processor, and what it computes bfloat16 with."""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.*)", text)
        units = [unit for unit in ("amx_bf16", "avx512_bf16") if f" {unit}" in text]
        return ", ".join([name[1] if name else platform.machine(), *units])
    return platform.processor()


def fit(model, optimizer, loss, train, epochs, method, seed, recipe, backup=None):
    """Trains the model for those of a range of epochs that the backup does not have."""
    if backup is not None:
        epochs = backup.left(epochs)
        if not epochs:
            return

    def rate(epoch):
        return method.rate * learning_rate(epoch, recipe)

    if keras.backend.backend() == "jax":
        import device_loop

        options = (recipe.batch_size, recipe.augment, method.oversample, seed)
        device_loop.Loop(model, optimizer, loss, train, *options).run(epochs, rate, backup)
        return
    kind = BalancedBatches if method.oversample else long_tailed_cifar.Batches
    batches = kind(*train, recipe.batch_size, recipe.augment, seed, epochs.start)
    callbacks = [keras.callbacks.LearningRateScheduler(rate)]
    if backup is not None:
        save = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: backup.save_if_due(epoch + 1)
        )
        callbacks.append(save)
    # A loop of steps saves a small model most of its time, and costs a large one a little.
    steps = len(batches) if recipe.size < 32 else 1
    model.compile(optimizer, loss, steps_per_execution=steps)
    model.fit(
        stream(batches),
        steps_per_epoch=len(batches),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        verbose=0,
        shuffle=False,  # The batches are.
        callbacks=callbacks,
    )


def commit():
    """Returns the commit of this checkout; `None` outside git."""
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def posterior(loss, logits):
    """Returns the probabilities where all classes are equally frequent."""
    uniform = np.full(logits.shape[-1], 1 / logits.shape[-1])
    return probabilities.posterior(loss, logits, uniform)


def probabilities_of(loss, logits, y, counts, true, settings):
    """Returns the scores of the probabilities on the test set; `None` on a hold-out.

    Or where the logits are not finite, or a class has less than two images to test with.
    """
    few = np.bincount(y, minlength=len(counts)).min() < 2
    if settings["held_out"] or few or not np.isfinite(logits).all():
        return None
    true_counts, noise = np.bincount(true), settings.get("label_noise")

    def noisy(labels):
        rng = np.random.default_rng([settings["seed"], 4])
        return labels if noise is None else draw_noise(labels, noise, true_counts, rng)

    return probabilities.score(loss, logits, y, counts, true_counts, noisy, settings["seed"])


def of_offsets(y, logits, counts):
    """Returns the balanced accuracy of the argmax of `logits - tau log prior` for each tau."""
    log_prior = np.log(counts / counts.sum())
    found = {tau: recalls(y, logits - tau * log_prior) for tau in OFFSETS}
    return {tau: round(np.mean(accuracy_report.known(of)), 6) for tau, of in found.items()}


def predict(model, x):
    return model.predict(x, batch_size=500, verbose=0)


def hits(y, scores):
    """Returns where the argmax is the label; what is not finite is wrong."""
    return (scores.argmax(axis=-1) == y) & np.isfinite(scores).all(axis=-1)


def recalls(y, scores):
    """Returns the recall of each class."""
    of = np.bincount(y, minlength=scores.shape[-1]).tolist()
    right = np.bincount(y[hits(y, scores)], minlength=scores.shape[-1]).tolist()
    return [round(h / n, 6) if n else None for h, n in zip(right, of, strict=True)]


def train_all(missing, recipe, workers, folder):
    """Yields the settings and the future of each training, as they end.

    Each portion has new processes: TensorFlow keeps memory of every training, and a pool that
    replaces its processes (`max_tasks_per_child`) can wait for ever
    (https://github.com/python/cpython/issues/115634).
    """
    spawn = multiprocessing.get_context("spawn")
    portion = workers * TRAININGS_OF_A_PROCESS
    for first in range(0, len(missing), portion):
        with futures.ProcessPoolExecutor(workers, spawn, end_with_parent) as pool:
            some = missing[first : first + portion]
            work = {pool.submit(run, settings, recipe, folder): settings for settings in some}
            for job in futures.as_completed(work):
                yield work[job], job


def end_with_parent():
    """Ends this process when the one that started it is gone, killed too."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def set_threads(recipe, workers):
    """Sets the threads of the processes that are started from here on."""
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        if recipe.threads:
            os.environ[name] = str(recipe.threads)
        else:
            os.environ.setdefault(name, str(max(os.cpu_count() // workers, 1)))
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def written(output):
    """Returns the runs written so far by their settings and recipes, as `key_of` has them."""
    runs = long_tailed_cifar.resume(output)
    return {json.dumps([run["settings"], run["recipe"]], sort_keys=True): run for run in runs}


def append(output, line):
    """Appends a result as a line of JSON."""
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")


def run_all(jobs, recipe, results, output, workers):
    """Runs the jobs that have no result yet, and writes each as it ends."""
    missing = [settings for settings in jobs if key_of(settings, recipe) not in results]
    print(f"{len(jobs) - len(missing)} trainings done before, {len(missing)} to do")
    if not missing:
        return
    set_threads(recipe, workers)
    start = time.perf_counter()
    errors = []
    backups = output.with_name(f"{output.name}.unfinished")
    for done, (settings, job) in enumerate(train_all(missing, recipe, workers, backups), 1):
        if error := job.exception():
            errors.append(error)
            print(f"{done}/{len(missing)} failed: {settings}: {error!r}", flush=True)
            continue
        line = job.result()
        append(output, line)
        backup_path(settings, recipe, backups).unlink(missing_ok=True)
        result = line["result"]
        results[key_of(settings, recipe)] = result
        passed = time.perf_counter() - start
        print(
            f"{done}/{len(missing)} {passed / 60:.1f} min  {title(settings)}: "
            f"{100 * np.mean(accuracy_report.known(result['recalls'])):.1f} "
            f"{100 * np.mean(accuracy_report.known(result['recalls_of_posterior'])):.1f}",
            flush=True,
        )
    with contextlib.suppress(OSError):
        backups.rmdir()
    if errors:
        raise RuntimeError(
            f"{len(errors)} of {len(missing)} trainings failed; a rerun tries them again"
        ) from errors[0]


def main(argv=None):
    # The trainings share an accelerator with each other and with this process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args = parse_arguments(argv)
    if args.list:
        print("\n".join(METHODS))
        return
    if not args.report:
        recipe = args.recipe
        results = {key: run["result"] for key, run in written(args.output).items()}
        first = selections(recipe, args.held_out)
        run_all(first, recipe, results, args.output, args.workers)
        run_all(finals(recipe, results), recipe, results, args.output, args.workers)
    candidates = args.recipe.losses if args.held_out else ()
    accuracy_report.report(args.report or [args.output], args.pictures, candidates)


if __name__ == "__main__":
    main()
