"""Can an estimated rate of wrong labels choose q?

Confident learning (cleanlab) estimates the rate from class probabilities of training examples by
models that have not seen them: here by cross-validated logistic regressions, for CIFAR by networks
like those that are trained. The rule is to take GLA with q = 0.7 and `tau=1` where the estimate is
above 13%, else logit adjustment. It is made on digits at ratio 10 with seeds 0 to 3, and tested on
other draws of digits, on CIFAR and on KEEL's tables, of [the trainings with wrong
labels](label_noise.md) and [on tables](tables.md). Gains are points of balanced accuracy over logit
adjustment. The threshold was first sought by the number of right signs, which on clean digits are
those of chance, and gave 0%; then by the gain.
"""

import warnings
from collections import defaultdict

import numpy as np

from benchmarks import images, keel, stats, training
from benchmarks.methods import METHODS
from benchmarks.questions import memorisation, tables
from benchmarks.questions.memorisation import BASE, LOSS
from benchmarks.training import CIFAR, DIGITS

RESULTS = ("noise_rate", "label_noise", "tables")
CLEANLAB = "cleanlab==2.9.0"
RATES = (0.0, 0.2, 0.4)
# Ratio, rates and seeds of the images that were trained on.
IMAGES = (
    ("digits", 1.0, RATES, range(8)),
    ("digits", 10.0, RATES, range(8)),
    ("digits", 50.0, RATES, range(8)),
    ("cifar10", 10.0, (0.2, 0.4), range(1)),
    ("cifar100", 100.0, (0.4,), range(1)),
)
OF_THE_RULE = "digits, ratio 10 (of the rule)"
RULE_SEEDS = range(4)
RULE = 13  # GLA is to gain where more labels than this are thought wrong, in percent.
FOLDS = 5
FOLDS_OF_NETWORKS = 2  # Each a training.
NETWORKS = CIFAR._replace(epochs=30)


def cases():
    for data, ratio, rates, seeds in IMAGES:
        for seed in seeds:
            for rate in rates:
                yield {"data": data, "ratio": ratio, "rate": rate, "seed": seed}
    for table in tables.TABLES:
        for rate in RATES:
            yield {"data": "tables", "table": table, "rate": rate}


def measure(data, rate, table=None, ratio=None, seed=None):
    if data == "tables":
        return of_table(rate, keel.read(table))
    return of_images(rate, data, ratio, seed)


def estimated_rate(labels, p):
    """Returns the fraction of wrong labels by confident learning."""
    try:
        from cleanlab.count import estimate_joint
    except ImportError as error:
        raise ImportError(f"The estimate needs: pip install --no-deps {CLEANLAB}") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Of a class without a probability.
        return 1.0 - float(np.trace(estimate_joint(labels, p)))


def by_regressions(x, labels):
    """Returns the probabilities of the examples by regressions that have not seen them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    with warnings.catch_warnings():
        # Classes of few labels: a part can lack one, whose probability is then 0.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return cross_val_predict(model, x, labels, cv=folds, method="predict_proba")


def by_networks(x, labels, seed, recipe=NETWORKS):
    """Returns the same by networks that are trained with cross-entropy."""
    import keras
    from scipy import special
    from sklearn.model_selection import StratifiedKFold

    p = np.empty((len(x), labels.max() + 1))
    method = METHODS["ce"]
    folds = StratifiedKFold(FOLDS_OF_NETWORKS, shuffle=True, random_state=seed)
    for fitted, rest in folds.split(x, labels):
        keras.utils.set_random_seed(seed)
        train = x[fitted], labels[fitted]
        model = training.build(method, *train, 5e-4, recipe)
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
        loss = method.loss(np.bincount(train[1]))
        training.fit(model, optimizer, loss, train, range(recipe.epochs), method, seed, recipe)
        logits = training.predict(model, x[rest]).astype("float64")
        p[rest] = special.softmax(logits, axis=-1)
    return p


def recipe_for(data):
    """Returns the recipe of the trainings that an estimate belongs to."""
    return DIGITS if data == "digits" else NETWORKS


def of_images(rate, data, ratio, seed):
    noise = f"uniform:{rate:g}" if rate else None
    size = recipe_for(data).size
    loaded = images.load(data, ratio, "exponential", seed, 0.0, size, noise)
    (x, y), true = loaded.train, loaded.true
    if data == "digits":
        p = by_regressions(x.reshape(len(x), -1) / 16, y)
    else:
        p = by_networks(x, y, seed)
    return rounded({"estimated": estimated_rate(y, p), "true": (y != true).mean()})


def of_table(rate, table):
    """Returns the means over the two folds of the first repetition."""
    parts = []
    for split in keel.splits_of(table, 1, rate):
        labels = split.given[split.train]
        p = by_regressions(split.x[split.train], labels)
        parts.append((estimated_rate(labels, p), (labels != split.y[split.train]).mean()))
    return rounded(dict(zip(("estimated", "true"), np.mean(parts, axis=0), strict=True)))


def rounded(found):
    return {name: round(float(value), 4) for name, value in found.items()}


def gains_of_images(runs):
    """Returns `{(data, ratio, rate, seed): points that GLA has more than logit adjustment}`."""
    gains = {}
    for cell, of_seeds in memorisation.both_losses(runs).items():
        settings = dict(zip(memorisation.AXES, cell, strict=True))
        kind, rate = (settings["label_noise"] or "uniform:0").split(":")
        epochs = recipe_for(settings["dataset"]).epochs
        of_recipe = settings["n_max"] is None and settings["epochs"] == epochs
        if kind == "uniform" and of_recipe:
            for seed, pair in of_seeds.items():
                key = settings["dataset"], settings["ratio"], float(rate), seed
                gains[key] = memorisation.gain(*pair)
    return gains


def gains_of_tables(runs):
    """Returns `{(table, rate): points that GLA has more than logit adjustment}`."""
    pairs = memorisation.both_losses_of_tables(runs)
    return {key: 100 * memorisation.gain_of_table(*pair) for key, pair in pairs.items()}


def report(runs):
    groups = grouped(runs)
    rows = []
    for (name, rate), found in groups.items():
        # Means over seeds, or over the tables of each source.
        sources = defaultdict(list)
        for source, estimated, gain in found:
            taken = estimated > RULE
            sources[source].append((estimated, 100 * taken, gain * taken, gain))
        means = np.array([np.mean(of, axis=0) for of in sources.values()])
        row = [name, f"{rate:.0%}", *(f"{means[:, i].mean():.0f}%" for i in (0, 1))]
        row += [stats.mean_and_error(means[:, i].tolist(), sign="+") for i in (2, 3)]
        right = sum((estimated > RULE) == (gain > 0) for _, estimated, gain in found)
        rows.append([*row, f"{right} of {len(found)}"])
    columns = ["data", "wrong labels", "estimated", "GLA is taken for", "gain of the rule"]
    columns += ["gain of GLA always", "the rule is right for"]
    return f"""The rule that digits at ratio 10 give: {made_of(groups):.0f}%.

{stats.table(columns, rows)}"""


def grouped(runs):
    """Returns `{(data, rate): [(seed or source, estimate in percent, gain of GLA), ...]}`."""
    of_images, of_tables = gains_of_images(runs), gains_of_tables(runs)
    groups = defaultdict(list)
    for run in runs:
        settings = run["settings"]
        if "rate" not in settings:
            continue
        if settings["data"] == "tables":
            gain = of_tables.get((settings["table"], settings["rate"]))
            name, source = "KEEL's tables", keel.source_of(settings["table"])
        else:
            gain = of_images.get(tuple(settings[key] for key in ("data", "ratio", "rate", "seed")))
            name, source = f"{settings['data']}, ratio {settings['ratio']:g}", settings["seed"]
            if name == "digits, ratio 10" and settings["seed"] in RULE_SEEDS:
                name = OF_THE_RULE
        if gain is None:
            raise ValueError(f"No trainings of {BASE} and {LOSS} belong to the estimate {settings}")
        estimated = 100 * run["result"]["estimated"]
        groups[name, settings["rate"]].append((source, estimated, gain))
    return groups


def made_of(groups):
    """Returns the threshold with the largest gain on digits at ratio 10, in percent."""
    points = sorted(
        (estimated, gain)
        for (name, _), found in groups.items()
        if name == OF_THE_RULE
        for _, estimated, gain in found
    )
    estimates, gains = np.array(points).T
    cuts = (estimates[1:] + estimates[:-1]) / 2
    return float(max(cuts, key=lambda cut: gains[estimates > cut].sum()))
