"""What do an unused class and smoothed targets do to the decision?

Simulated data, linear models, percent, means over the seeds. First: five Gaussian classes of ratio
100 and a head of six, as where ids start at 1; `n` is the number of training examples. Second: two
and ten classes of ratio 99 with 10% label smoothing.
"""

import numpy as np

from benchmarks import stats

SMOOTHING = 0.1
PROBLEMS = {"2 classes apart": (2, 3.0), "2 that overlap": (2, 0.5), "10 that overlap": (10, 0.7)}


def cases():
    same = {"seeds": 3, "steps": 1500}
    for count in (2_000, 100_000):
        yield {"task": "unused class", "count": count, **same}
    for num_classes, distance in PROBLEMS.values():
        yield {"task": "smoothing", "num_classes": num_classes, "distance": distance, **same}


def measure(task, seeds, steps, **data):
    """Returns the means over the seeds for each way."""
    of_seed = {"unused class": unused_class, "smoothing": smoothing}[task]
    runs = [of_seed(seed=seed, steps=steps, **data) for seed in range(seeds)]
    return {
        way: {name: round(np.mean([run[way][name] for run in runs]), 6) for name in found}
        for way, found in runs[0].items()
    }


def gaussians(num_classes, ratio, count, distance, seed):
    """Returns a long-tailed train set and a balanced test set of Gaussian classes."""
    rng = np.random.default_rng(seed)
    means = distance * rng.normal(size=(num_classes, 8))
    p = ratio ** -np.linspace(0, 1, num_classes)

    def draw(y):
        return (means[y] + rng.normal(size=(len(y), 8))).astype("float32"), y

    counts = np.maximum((count * p / p.sum()).astype(int), 2)
    return draw(np.repeat(np.arange(num_classes), counts)), draw(np.arange(20_000) % num_classes)


def trained(x, y, num_outputs, loss, steps):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(num_outputs)])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, steps)), loss)
    order = np.random.default_rng(0).integers(0, len(x), (steps, 512)).ravel()
    model.fit(x[order], y[order], batch_size=512, shuffle=False, verbose=0)
    return model


def unused_class(count, seed, steps):
    """Returns for each way the balanced accuracy, and how often the unused class 0 is predicted."""
    import keras

    from keras_balanced import ClassPrior, GCALoss, GLALoss, LogitAdjustment

    (x, y), (x_test, y_test) = gaussians(5, 100.0, count, 0.7, seed)
    smoothed, exact = ClassPrior(6, smoothing=1.0), ClassPrior(6)
    smoothed.adapt(y + 1)
    exact.adapt(y + 1)
    occurs = {"target_priors": [0, 1, 1, 1, 1, 1]}
    plain = trained(x, y + 1, 6, GLALoss(smoothed, tau=0.0), steps).predict(x_test, verbose=0)
    logits = {
        "cross-entropy, `LogitAdjustment(smoothing=1)`": LogitAdjustment(smoothed)(plain),
        "cross-entropy, `LogitAdjustment(target_priors=[0, ...])`": LogitAdjustment(
            exact, **occurs
        )(plain),
    }
    for name, cls in (("GLA", GLALoss), ("GCA", GCALoss)):
        for how, loss in (
            ("smoothing=1", cls(smoothed)),
            ("target_priors=[0, ...]", cls(exact, **occurs)),
        ):
            z = trained(x, y + 1, 6, loss, steps).predict(x_test, verbose=0)
            logits[f"{name}, `{how}`, logits"] = z
            if cls is GCALoss:  # The argmax of GLA's posterior is that of its logits.
                logits[f"{name}, `{how}`, posterior"] = loss.posterior(z)
        narrow = cls(np.bincount(y))
        z = trained(x, y, 5, narrow, steps).predict(x_test, verbose=0)
        logits[f"{name}, a head of five, logits"] = np.pad(
            z, ((0, 0), (1, 0)), constant_values=-1e9
        )
    found = {}
    for name, z in logits.items():
        predicted = keras.ops.convert_to_numpy(z).argmax(axis=-1)
        recalls = [(predicted == k + 1)[y_test == k].mean() for k in range(5)]
        found[name] = {
            "balanced accuracy": float(np.mean(recalls)),
            "unused class": float((predicted == 0).mean()),
        }
    return found


def smoothing(num_classes, distance, seed, steps):
    """Returns the accuracy on the majority class and the balanced accuracy of each way."""
    from keras_balanced import GLALoss

    (x, y), (x_test, y_test) = gaussians(num_classes, 99.0, 50_000, distance, seed)
    one_hot = np.eye(num_classes, dtype="float32")[y]
    uniform = (1 - SMOOTHING) * one_hot + SMOOTHING / num_classes
    hard, soft = one_hot.sum(axis=0), uniform.sum(axis=0)
    ways = {
        "none": (GLALoss(hard), y),
        f"`label_smoothing={SMOOTHING}`": (GLALoss(hard, label_smoothing=SMOOTHING), y),
        "uniform, priors of the labels": (GLALoss(hard), uniform),
        "uniform, priors of the smoothed targets": (GLALoss(soft), uniform),
    }
    found = {}
    for name, (loss, targets) in ways.items():
        z = trained(x, targets, num_classes, loss, steps).predict(x_test, verbose=0)
        predicted = z.argmax(axis=-1)
        recalls = [(predicted == k)[y_test == k].mean() for k in range(num_classes)]
        found[name] = {
            "balanced accuracy": float(np.mean(recalls)),
            "majority class": float(recalls[0]),
        }
    return found


def report(runs):
    columns = {"unused class": {}, "smoothing": {}}
    names = {problem: name for name, problem in PROBLEMS.items()}
    for run in runs:
        settings = run["settings"]
        if settings["task"] == "unused class":
            name = f"n = {settings['count']:,}"
        else:
            name = names[settings["num_classes"], settings["distance"]]
        columns[settings["task"]][name] = run["result"]
    return "\n\n".join(table(of_task) for of_task in columns.values() if of_task)


def table(columns):
    """Returns a row per way, two cells per column."""
    ways = next(iter(columns.values()))
    names = list(next(iter(ways.values())))
    rows = [
        [way, *(f"{100 * found[way][name]:.1f}" for found in columns.values() for name in names)]
        for way in ways
    ]
    return stats.table(["", *(f"{name}, {column}" for column in columns for name in names)], rows)
