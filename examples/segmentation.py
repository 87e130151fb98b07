"""Segmentation with a rare class: seven ways to train the same network on spots of few pixels.

    python examples/segmentation.py

Generated images: noise, large bright discs (class 1) and small rings (class 2, under 1% of the
pixels, not in every image). Prints for each way the balanced accuracy over pixels, and recall
and intersection over union of the rare class, mean and standard error over seeds.
"""

import argparse
import json
import pathlib

import keras
import numpy as np

import keras_balanced
from keras_balanced import BalancedAccuracy, ClassPrior, GCALoss, GLALoss

NUM_CLASSES = 3
RARE = 2


def make_images(count, seed, size=32):
    """Returns images `(count, size, size, 1)` and labels `(count, size, size)`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images = rng.normal(0.0, 0.35, (count, size, size))
    labels = np.zeros((count, size, size), "int32")
    for image, label in zip(images, labels, strict=True):
        for class_id, radius in ((1, rng.uniform(5, 8)), (RARE, rng.uniform(1.5, 2.5))):
            if class_id == RARE and rng.random() < 0.5:
                continue
            row, column = rng.uniform(3, size - 3, 2)
            distance = np.hypot(rows - row, columns - column)
            inside = distance < radius
            label[inside] = class_id
            # A small disc is like a piece of a large one, except for its dark rim.
            image[inside] += 1.0
            if class_id == RARE:
                image[(distance >= radius) & (distance < radius + 1.0)] -= 0.6
    return images[..., None].astype("float32"), labels


def network():
    filters = [keras.layers.Conv2D(16, 3, padding="same", activation="relu") for _ in range(3)]
    return keras.Sequential(
        [keras.Input((None, None, 1)), *filters, keras.layers.Conv2D(NUM_CLASSES, 1)]
    )


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Focal(keras.losses.CategoricalFocalCrossentropy):
    """Keras's focal loss, which takes one-hot targets, on integer labels."""

    def call(self, y_true, y_pred):
        labels = keras.ops.cast(y_true, "int32")
        return super().call(keras.ops.one_hot(labels, NUM_CLASSES), y_pred)


# Each way: the loss for a prior, and what else `fit` gets.
WAYS = {
    "cross-entropy": (lambda prior: cross_entropy(), None),
    # Cross-entropy too, but one that knows its posterior.
    "post-hoc": (lambda prior: GLALoss(prior, tau=0), None),
    # Keras's own `class_weight` does not take labels of this rank.
    "class weights": (lambda prior: cross_entropy(), "sample_weight"),
    "focal": (lambda prior: Focal(alpha=0.25, from_logits=True), None),
    "oversampling": (lambda prior: cross_entropy(), "oversample"),
    "GLA": (lambda prior: GLALoss(prior, q=0.0, tau=None), None),
    "GCA": (
        lambda prior: GCALoss(prior, q=0.0, margins="cube_root", consistent=False),
        None,
    ),
}


def train(way, images, labels, args, seed):
    """Returns a network trained in one of the ways."""
    keras.utils.set_random_seed(seed)
    make_loss, extra = WAYS[way]
    prior = ClassPrior(NUM_CLASSES, output_mode="weight")
    prior.adapt(labels)
    weights = None
    if extra == "sample_weight":
        weights = keras.ops.convert_to_numpy(prior(labels))
    elif extra == "oversample":
        # Whole images: those with the rare class as often as makes them nine in ten.
        has_rare = (labels == RARE).any(axis=(1, 2))
        chance = np.where(has_rare, 0.9 / has_rare.sum(), 0.1 / (~has_rare).sum())
        chosen = np.random.default_rng(seed).choice(len(labels), len(labels), p=chance)
        images, labels = images[chosen], labels[chosen]
    model = network()
    model.compile(keras.optimizers.Adam(3e-3), make_loss(prior))
    model.fit(images, labels, args.batch_size, args.epochs, sample_weight=weights, verbose=0)
    return model


def evaluate(model, images, labels):
    scores = model.predict(images, batch_size=256, verbose=0)
    if hasattr(model.loss, "posterior"):
        # What post-hoc adjustment is, and how GCA, with its margins, decides. For GLA the same.
        scores = keras.ops.convert_to_numpy(model.loss.posterior(scores))
    metric = BalancedAccuracy(NUM_CLASSES)
    metric.update_state(labels, scores)
    predicted, actual = scores.argmax(axis=-1) == RARE, labels == RARE
    both = (predicted & actual).sum()
    return {
        "balanced accuracy": float(metric.result()),
        "rare recall": float(both / actual.sum()),
        "rare IoU": float(both / (predicted | actual).sum()),
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


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=pathlib.Path, default="results/segmentation.json")
    args = parser.parse_args(argv)
    for name in ("images", "seeds", "epochs", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"`{name}` must be at least 1. Received: {getattr(args, name)}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        images, labels = make_images(args.images, seed)
        test = make_images(512, seed=1000 + seed)
        rate = 100 * (labels == RARE).mean()
        print(f"Seed {seed}: the rare class has {rate:.2f}% of the pixels", flush=True)
        for way in WAYS:
            results[way].append(evaluate(train(way, images, labels, args, seed), *test))
    print(f"\nPixels of 512 test images, %, {args.seeds} seeds")
    print_table(results)
    versions = {"keras": keras.__version__, "keras_balanced": keras_balanced.__version__}
    args.output.write_text(json.dumps({"versions": versions, "ways": results}, indent=1) + "\n")
    print(f"\nResults: {args.output}")


if __name__ == "__main__":
    main()
