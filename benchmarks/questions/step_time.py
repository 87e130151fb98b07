"""What does a loss cost, and its posterior?

TensorFlow on 2 cores of an AMD EPYC (Zen 3, AVX2): on other processors the ratios differ. All that
is compared takes turns. Ratios are medians over the rounds of the time over that of Keras's
`SparseCategoricalCrossentropy(from_logits=True)`, with a 95% bootstrap interval; below 1 is faster.
The textbook implementation (softmax, gather, power) first must give the same numbers as ours.

Margins of up to 64 different values are taken as they are, more are rounded to levels of equal
steps. A posterior's `memory` is the peak for one block of examples, in arrays of (block, levels,
classes) of 128 MiB; its `error` is the largest of the logarithm against float64, where the
posterior exceeds 1e-12. Soft targets (mixup) are compared with GLA and with a plain logsumexp over
(examples, levels, classes). `BalancedAccuracy` is timed by the logits and by a loss's posterior.
"""

import math
import pathlib
from collections import defaultdict

import keras
import numpy as np

from benchmarks import stats, timing
from keras_balanced import BalancedAccuracy, BalancedLoss, GCALoss, GLALoss, models

SHAPES = [(128, 10), (128, 100), (1024, 1000), (256, 21841)]
MEMORY_SHAPE = (1024, 40_000)
POSTERIORS = [(32, 10), (32, 100), (32, 1000), (1, 8142), (32, 8142), (1, 21841)]
SOFT = [(64, 100), (64, 1000)]
METRIC = [(128, 10), (128, 100), (128, 1000)]
BLOCK = 2**25  # Numbers in the largest array of a posterior.
MODES = {"eager": None, "graph": False, "XLA": True}
COMPILED = ("graph", "XLA")
Q = 0.3


def cases():
    for part, shapes, rounds in (
        ("value and gradient", SHAPES, 40),
        ("soft targets", SOFT, 15),
        ("metric", METRIC, 15),
    ):
        for batch, num_classes in shapes:
            for mode in COMPILED:
                shape = {"batch": batch, "num_classes": num_classes}
                yield {"part": part, **shape, "mode": mode, "rounds": rounds}
    yield {"part": "train step", "rounds": 40}
    for mode in COMPILED:
        yield {"part": "peak memory", "mode": mode}
    for batch, num_classes in POSTERIORS:
        yield {"part": "posterior", "batch": batch, "num_classes": num_classes, "rounds": 15}


def measure(part, batch=None, num_classes=None, **settings):
    shape = () if batch is None else ((batch, num_classes),)
    return PARTS[part](*shape, **settings)


def textbook_gla(priors, q):
    """Softmax, gather, power, as the formula reads."""
    shift = np.log(priors) / (1.0 - q) - np.log(1.0 / len(priors)) / (1.0 - q)
    return textbook(shift, np.ones(len(priors)), np.ones(len(priors)), q)


def textbook_gca(priors, q):
    # The loss rounds those of many classes to a few levels.
    margins = GCALoss(priors, margins="cube_root").surrogate.margins
    return textbook(np.zeros(len(priors)), margins, 1.0 / (len(priors) * priors), q)


def textbook(shift, margins, weights, q):
    import tensorflow as tf

    shift, margins, weights = (tf.constant(v, "float32") for v in (shift, margins, weights))

    def loss(y, z):
        s = tf.nn.softmax(z / tf.gather(margins, y)[:, None] + shift)
        s = tf.gather(s, y, batch_dims=1)
        psi = (1.0 - s**q) / q if q else -tf.math.log(s)
        return tf.reduce_mean(tf.gather(weights, y) * psi)

    return loss


LOSSES = {
    "cross-entropy": lambda p: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "GLA": lambda p: GLALoss(p, q=0.0, tau=None),
    "GLA, q = 0.3": lambda p: GLALoss(p, q=Q, tau=None),
    "GCA": lambda p: GCALoss(p, q=0.0, margins="cube_root", consistent=False),
    "GCA, q = 0.3": lambda p: GCALoss(p, q=Q, margins="cube_root", consistent=False),
    "GLA, one-hot": lambda p: GLALoss(p, q=0.0, tau=None),
    "textbook GLA": lambda p: textbook_gla(p, 0.0),
    "textbook GLA, q = 0.3": lambda p: textbook_gla(p, Q),
    "textbook GCA": lambda p: textbook_gca(p, 0.0),
    "textbook GCA, q = 0.3": lambda p: textbook_gca(p, Q),
}
# Those that must compute the same, or comparing their times says nothing.
TWINS = {name: name.removeprefix("textbook ") for name in LOSSES if name.startswith("textbook ")}
TWINS["GLA, one-hot"] = "GLA"


def priors_of(num_classes):
    priors = 100.0 ** -np.linspace(0.0, 1.0, num_classes)
    return priors / priors.sum()


def random_batch(shape):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    z = tf.constant(rng.standard_normal(shape), "float32")
    return tf.constant(rng.integers(0, shape[1], shape[0]), "int32"), z


def step_of(loss, y, z, mode):
    """Returns a function without arguments that computes value and gradient."""
    import tensorflow as tf

    def step(y, z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(y, z)
        return value, tape.gradient(value, z)

    compiled = in_mode(step, mode)
    return lambda: compiled(y, z)


def in_mode(function, mode):
    import tensorflow as tf

    return function if mode == "eager" else tf.function(function, jit_compile=MODES[mode])


def step_of_labels(name, batch, mode):
    """Returns the same of a loss of `LOSSES`, for a batch of labels and logits."""
    y, z = batch
    if "one-hot" in name:
        y = keras.ops.one_hot(y, z.shape[1])
    return step_of(LOSSES[name](priors_of(z.shape[1])), y, z, mode)


def value_and_gradient(shape, mode, rounds):
    batch = random_batch(shape)
    functions = {name: step_of_labels(name, batch, mode) for name in LOSSES}
    assert_twins_agree(functions)
    return timing.against_first(timing.in_turns(functions, rounds, seconds_a_turn=0.02))


def assert_twins_agree(functions):
    """Raises if two losses that should be the same differ in value or gradient."""
    for name, twin in TWINS.items():
        for part, ours in zip(functions[name](), functions[twin](), strict=True):
            scale = np.abs(ours).max()
            np.testing.assert_allclose(part, ours, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def train_step(rounds):
    """Times a whole step of a ResNet-32 on 32 images."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, 32)
    functions = {}
    for name in ("cross-entropy", "GLA", "GCA"):
        model = models.resnet((32, 32, 3), 10, depth=32)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
        model.compile(optimizer, LOSSES[name](priors_of(10)))
        functions[name] = lambda model=model: model.train_on_batch(x, y)
    return timing.against_first(timing.in_turns(functions, rounds))


def peak_memory(mode):
    """Returns the peak memory of value and gradient, in arrays of the size of the logits."""
    # Each in a process of its own: a peak is the whole process's.
    return {name: timing.apart(peak_of_loss, name, mode) for name in LOSSES}


def peak_of_loss(name, mode):
    step = step_of_labels(name, random_batch(MEMORY_SHAPE), mode)
    step_of_labels(name, random_batch((2, 3)), mode)()  # What TensorFlow needs to start.
    return peak_of(step, MEMORY_SHAPE[0] * MEMORY_SHAPE[1])


def peak_of(function, numbers):
    """Returns how much the peak memory grows in a call, in arrays of so many float32 numbers."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak is now what stands here.
    before = timing.kilobytes("VmHWM")
    function()
    return round(1024 * (timing.kilobytes("VmHWM") - before) / (4 * numbers), 3)


def gca(num_classes):
    return GCALoss(priors_of(num_classes), q=0.0, margins="cube_root", consistent=False)


def logits_of(shape):
    return keras.ops.cast(np.random.default_rng(0).normal(0, 3, shape), "float32")


def posterior(shape, rounds):
    """Times the posterior of GCA beside that of GLA, and measures its memory and its error."""
    z, ours, theirs = logits_of(shape), gca(shape[1]), GLALoss(priors_of(shape[1]))
    milliseconds = {}
    for mode in MODES:
        functions = {"GLA": in_mode(theirs.posterior, mode), "GCA": in_mode(ours.posterior, mode)}
        milliseconds[mode] = medians({n: lambda f=f: f(z) for n, f in functions.items()}, rounds)
    exact = BalancedLoss(ours.surrogate, dtype="float64")
    expected = exact.log_posterior(keras.ops.cast(z, "float64")).numpy()
    error = np.abs(ours.log_posterior(z).numpy() - expected)[expected > np.log(1e-12)].max()
    return {
        "levels": len(ours.surrogate.levels),
        "milliseconds": milliseconds,
        "memory": timing.apart(peak_of_posterior, shape[1]),
        "error": float(f"{error:.4g}"),
    }


def peak_of_posterior(num_classes):
    loss = gca(num_classes)
    z = logits_of((BLOCK // (len(loss.surrogate.levels) * num_classes), num_classes))
    function = in_mode(loss.posterior, "graph")
    function(logits_of((1, num_classes)))  # What TensorFlow needs to start.
    function.get_concrete_function(z)
    return peak_of(lambda: function(z), BLOCK)


def soft_targets(shape, mode, rounds):
    """Times value and gradient of soft targets."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    y = tf.constant(rng.dirichlet(np.ones(shape[1]), shape[0]), "float32")
    z, loss = logits_of(shape), gca(shape[1])
    inverse = tf.constant(1.0 / loss.surrogate.levels[:, None], "float32")

    def logsumexp(y, z):
        return tf.reduce_sum(tf.reduce_logsumexp(z[:, None, :] * inverse, axis=-1))

    losses = {"GLA": GLALoss(priors_of(shape[1])), "GCA": loss, "logsumexp": logsumexp}
    return medians({name: step_of(of, y, z, mode) for name, of in losses.items()}, rounds, 0.1)


def metric(shape, mode, rounds):
    """Times what `BalancedAccuracy` adds to a step."""
    y = np.random.default_rng(0).integers(0, shape[1], shape[0])
    y, z = keras.ops.convert_to_tensor(y), logits_of(shape)
    decisions = {"logits": None, "GLA": GLALoss(priors_of(shape[1])), "GCA": gca(shape[1])}
    updates = {
        name: in_mode(BalancedAccuracy(shape[1], decision=of).update_state, mode)
        for name, of in decisions.items()
    }
    return medians({name: lambda f=f: f(y, z) for name, f in updates.items()}, rounds)


def medians(functions, rounds, seconds_a_turn=0.05):
    """Returns the milliseconds of each function, in turns."""
    times = timing.in_turns(functions, rounds, seconds_a_turn)
    return {name: round(1e3 * float(np.median(of)), 4) for name, of in times.items()}


PARTS = {
    "value and gradient": value_and_gradient,
    "train step": train_step,
    "peak memory": peak_memory,
    "posterior": posterior,
    "soft targets": soft_targets,
    "metric": metric,
}


def report(runs):
    of_parts = defaultdict(list)
    for run in runs:
        of_parts[run["settings"]["part"]].append((run["settings"], run["result"]))
    sections = {
        "Value and gradient: geometric mean over the shapes": summary(
            of_parts["value and gradient"]
        ),
        "A whole train step of a ResNet-32 on 32 images": against_cross_entropy(
            [], of_parts["train step"]
        ),
        "Peak memory above the logits, 1024 x 40,000, in arrays of their size": memory(
            of_parts["peak memory"]
        ),
        "Value and gradient": against_cross_entropy(
            ["shape", "mode"], of_parts["value and gradient"]
        ),
        "The posterior of GCA, beside that of GLA": posteriors(of_parts["posterior"]),
        "Value and gradient with soft targets": of_soft_targets(of_parts["soft targets"]),
        "What `BalancedAccuracy` adds to a step": metrics(of_parts["metric"]),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def shape_of(settings):
    return f"{settings['batch']} x {settings['num_classes']}"


def summary(found):
    rows = []
    for name in LOSSES:
        row = [name]
        for mode in COMPILED:
            ratios = [of[name]["ratio"] for settings, of in found if settings["mode"] == mode]
            row.append(f"{math.prod(ratios) ** (1 / len(ratios)):.3f}" if ratios else "")
        rows.append(row)
    return stats.table(["loss", *COMPILED], rows)


def against_cross_entropy(columns, found):
    rows = []
    for settings, of_losses in found:
        row = [shape_of(settings), settings["mode"]] if columns else []
        for name, of in of_losses.items():
            interval = "{:.3f} to {:.3f}".format(*of["interval"])
            ms = f"{of['milliseconds']:.3f}"
            rows.append([*row, name, ms, f"{of['ratio']:.3f}", interval])
    return stats.table([*columns, "loss", "ms", "ratio", "95%"], rows)


def memory(found):
    peaks = {settings["mode"]: of for settings, of in found}
    rows = [[name, *(f"{of[name]:.2f}" for of in peaks.values())] for name in LOSSES]
    return stats.table(["loss", *peaks], rows)


def posteriors(found):
    rows = []
    for settings, of in found:
        ms = of["milliseconds"]
        rows.append(
            [
                shape_of(settings),
                of["levels"],
                " / ".join(f"{ms[mode]['GLA']:.2f}" for mode in COMPILED),
                " / ".join(f"{ms[mode]['GCA']:.2f}" for mode in MODES),
                f"{of['memory']:.1f}",
                f"{of['error']:.1e}",
            ]
        )
    columns = ["examples x classes", "levels", "GLA, graph / XLA (ms)"]
    return stats.table([*columns, "GCA, eager / graph / XLA (ms)", "memory", "error"], rows)


def of_soft_targets(found):
    rows = []
    for settings, ms in found:
        ratios = f"{ms['GCA'] / ms['GLA']:.1f}", f"{ms['GCA'] / ms['logsumexp']:.2f}"
        times = f"{ms['GLA']:.2f}", f"{ms['GCA']:.2f}"
        rows.append([shape_of(settings), settings["mode"], *times, *ratios])
    columns = ["examples x classes", "mode", "GLA (ms)", "GCA (ms)", "of GLA", "of a logsumexp"]
    return stats.table(columns, rows)


def metrics(found):
    rows = [
        [shape_of(settings), settings["mode"], *(f"{value:.2f}" for value in ms.values())]
        for settings, ms in found
    ]
    columns = ["examples x classes", "mode", "by the logits (ms)", "posterior of GLA", "of GCA"]
    return stats.table(columns, rows)
