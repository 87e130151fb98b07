"""Trainings of a ResNet on a long tail, one recipe for every loss.

The seeds of the subset, of its label noise and of the training move together. A training with a
hold-out leaves that part of its tail out and is evaluated on it; one without is tested, once, after
its last epoch. On TensorFlow or JAX.
"""

import hashlib
import re
from typing import NamedTuple

import keras
import numpy as np

from benchmarks import backups, baselines, images, methods, probabilities, store
from benchmarks.methods import METHODS
from keras_balanced import models

HELD_OUT = 0.2
SECOND_PHASE = 0.8  # Of the epochs; where LDAM-DRW starts to re-weight.
OFFSETS = tuple(i / 4 for i in range(-4, 9))  # Times `log prior`, taken off the logits.
SOURCES = hashlib.sha256(
    b"".join(
        path.read_bytes()
        for folder in ("benchmarks", "keras_balanced")
        for path in sorted((store.ROOT / folder).glob("*.py"))
    )
).hexdigest()  # As they were imported.


class Recipe(NamedTuple):
    """How every loss is trained."""

    size: int
    depth: int
    epochs: int
    batch_size: int
    schedule: str
    augment: bool = True
    learning_rate: float = 0.1
    warmup_epochs: int = 5
    dtype: str | None = None  # `None`: float32.
    threads: int | None = None  # `None`: the cores, shared by all trainings.


DIGITS = Recipe(size=8, depth=8, epochs=60, batch_size=32, schedule="cosine", augment=False)
CIFAR = Recipe(size=16, depth=8, epochs=100, batch_size=128, schedule="cosine")
# Of the literature.
PAPER = Recipe(size=32, depth=32, epochs=200, batch_size=128, schedule="steps")


def grid(recipe, losses, seeds, *, l2=5e-4, held_out=0.0, profile="exponential", **data):
    """Yields the settings of a training for each loss and seed.

    Args:
        data: `dataset`, `ratio`; `label_noise` and `n_max`, the images of the largest class, if
            they are wanted.
    """
    fixed = {name: value for name, value in recipe._asdict().items() if value is not None}
    for loss in losses:
        for seed in seeds:
            settings = {"seed": seed, "profile": profile, **data, "loss": loss}
            yield {**settings, "l2": l2, "held_out": held_out, **fixed}


def load(settings):
    """Returns the `images.Data` of a training."""
    names = ("dataset", "ratio", "profile", "seed", "held_out", "size")
    noise, n_max = settings.get("label_noise"), settings.get("n_max")
    return images.load(*(settings[name] for name in names), noise, n_max)


def recipe_of(settings):
    return Recipe(**{name: settings[name] for name in Recipe._fields if name in settings})


def learning_rate(epoch, recipe):
    if recipe.schedule == "steps":
        passed = epoch / recipe.epochs
        if epoch < recipe.warmup_epochs:
            return recipe.learning_rate * (epoch + 1) / recipe.warmup_epochs
        return recipe.learning_rate * 0.01 ** ((passed >= 0.8) + (passed >= 0.9))
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
        from benchmarks import fused

        resnet = fused.with_fused_normalization(resnet)
    if method.cosine_head:
        head = baselines.CosineHead(num_classes, keras.regularizers.L2(l2))
        resnet = keras.Model(resnet.input, head(resnet.layers[-1].input))
    return keras.Sequential([keras.Input(x.shape[1:]), normalization, resnet])


def measure(**settings):
    """Trains and evaluates once; goes on from a backup if it was cut off."""
    folder = store.ROOT / "results" / "unfinished"
    result = train(settings, folder)
    backup_path(settings, folder).unlink(missing_ok=True)
    return result


def train(settings, folder=None, keep=None):
    """Trains and evaluates once; returns the result.

    A backup of the training is kept in `folder` until the caller has written the result. In `keep`
    stay the state at the start of the second phase, from where all trainings with the same first
    phase go on, and the final weights with their logits.
    """
    data, recipe = load(settings), recipe_of(settings)
    keras.utils.clear_session()
    keras.config.set_dtype_policy(recipe.dtype or "float32")
    keras.utils.set_random_seed(settings["seed"])
    method = METHODS[settings["loss"]]
    model = build(method, *data.train, settings["l2"], recipe)
    loss, seconds = fit_phases(model, method, data.train, settings, folder, keep)
    logits = predict(model, data.evaluation[0])
    predicted = predict(model, data.train[0])
    if keep:
        kept = {"logits": logits, "labels": data.evaluation[1]}
        if settings["held_out"]:
            kept |= {"test_logits": predict(model, data.test[0]), "test_labels": data.test[1]}
        path = backup_path(settings, keep)
        backups.write(path, *map(keras.ops.convert_to_numpy, model.weights), **kept)
    speed = round(len(data.train[1]) * recipe.epochs / seconds)
    times = {"seconds": round(seconds, 2), "images_per_second": speed}
    return evaluate(loss, logits, predicted, data, settings) | times


def fit_phases(model, method, train, settings, folder, keep):
    """Trains both phases of a method; returns the last loss and the seconds."""
    recipe, counts = recipe_of(settings), np.bincount(train[1])
    optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
    second_phase = int(SECOND_PHASE * recipe.epochs)
    first = recipe.epochs if method.then is None else second_phase
    backup = backups.Backup(
        title(settings),
        model,
        optimizer,
        recipe.epochs,
        len(train[1]),
        path=folder and backup_path(settings, folder),
        milestone=keep and (second_phase, first_phase_path(settings, keep)),
    )
    for loss_of, epochs in (
        (method.loss, range(first)),
        (method.then, range(first, recipe.epochs)),
    ):
        if epochs:
            loss = loss_of(counts)
            fit(model, optimizer, loss, train, epochs, method, settings["seed"], recipe, backup)
    return loss, backup.seconds()


def evaluate(loss, logits, predicted, data, settings):
    """Returns the scores of the logits to evaluate, and of those `predicted` on the train set."""
    y, (_, given) = data.evaluation[1], data.train
    counts = np.bincount(given)
    result = {
        "class_counts": counts.tolist(),
        "train_recalls": recalls(given, predicted),
        "recalls": recalls(y, logits),
        "recalls_of_posterior": recalls(y, posterior(loss, logits)),
        "offsets": of_offsets(y, logits, counts),
        "probabilities": probabilities_of(loss, logits, y, counts, data.true, settings),
    }
    if "label_noise" in settings:
        wrong = given != data.true
        memorised = hits(given, predicted)[wrong]
        result["memorised"] = round(float(memorised.mean()), 6) if wrong.any() else None
    return result


def backup_path(settings, folder):
    """Returns a file of these settings, libraries and sources: from no other a training goes on."""
    key = "".join([store.key(settings), store.key(store.versions()), SOURCES])
    name = re.sub(r"[^\w.]+", "-", title(settings))
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def first_phase_path(settings, keep):
    """Returns the file of the state at the start of the second phase."""
    path = backup_path(settings | {"loss": methods.first_phase(settings["loss"])}, keep)
    return path.with_name(f"{path.stem}-first.npz")


def title(settings):
    """Returns the settings of a training as a line of progress has them."""
    noise = f" {settings['label_noise']}" if "label_noise" in settings else ""
    return (
        f"{settings['dataset']} {settings['profile']} {settings['ratio']:g}{noise} "
        f"seed {settings['seed']} l2 {settings['l2']:g} {settings['loss']}"
    )


def fit(model, optimizer, loss, train, epochs, method, seed, recipe, backup=None):
    """Trains the model for those of a range of epochs that the backup does not have."""
    if backup is not None:
        epochs = backup.left(epochs)
        if not epochs:
            return

    def rate(epoch):
        return method.rate * learning_rate(epoch, recipe)

    if keras.backend.backend() == "jax":
        from benchmarks import device_loop

        options = (recipe.batch_size, recipe.augment, method.oversample, seed)
        device_loop.Loop(model, optimizer, loss, train, *options).run(epochs, rate, backup)
        return
    kind = images.BalancedBatches if method.oversample else images.Batches
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
        images.stream(batches),
        steps_per_epoch=len(batches),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        verbose=0,
        shuffle=False,  # The batches are.
        callbacks=callbacks,
    )


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
        return labels if noise is None else images.draw_noise(labels, noise, true_counts, rng)

    return probabilities.score(loss, logits, y, counts, true_counts, noisy, settings["seed"])


def of_offsets(y, logits, counts):
    """Returns the balanced accuracy of the argmax of `logits - tau log prior` for each tau."""
    log_prior = np.log(counts / counts.sum())
    found = {tau: recalls(y, logits - tau * log_prior) for tau in OFFSETS}
    return {tau: round(np.mean(known(of)), 6) for tau, of in found.items()}


def known(recalls):
    """A class too small for the hold-out has no recall there."""
    return [recall for recall in recalls if recall is not None]


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
