"""Ranking losses by refitting the last layer of one trained model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_balanced import targets
from keras_balanced.backends import last_layer
from keras_balanced.losses import BalancedLoss
from keras_balanced.metrics import BalancedAccuracy
from keras_balanced.tuning.grid import Q, check_model, loss_grid
from keras_balanced.validation import check_integer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["FastSearch", "assign_folds", "fast_search", "search_last_layer"]


class FastSearch(NamedTuple):
    """What `search_last_layer` found: the `table`, best first, the best `loss` and the `model`."""

    table: list[dict[str, Any]]
    loss: keras.losses.Loss
    model: keras.Model | None


def search_last_layer(
    model: keras.Model,
    train: Any,
    validation: Any,
    priors: ClassMix,
    losses: Sequence[Literal["gla", "gca"] | BalancedLoss] = ("gla", "gca"),
    q: Sequence[float] = Q,
    tau: Sequence[float | None] = (None, 1.0),
    margins: Sequence[Literal["cube_root"] | ArrayLike | None] = ("cube_root", None),
    folds: int = 5,
    steps: int = 500,
    batch_size: int = 1024,
    learning_rate: float = 0.01,
    refit: bool = False,
    seed: int = 0,
    target_priors: ClassMix | None = None,
) -> FastSearch:
    """Ranks losses by refitting the last layer, and nothing else, of one trained model.

    The features, which the model hands to its last layer, are computed once and frozen. Heads for
    every loss and fold train side by side in one program: on the training examples and all folds
    of the validation examples but one, on which they are scored. So no head is scored on an
    example that the features or the head have seen.

    It is a search for a last layer, not for the loss to train with: on long-tailed digits the
    ranking did not agree with that of full trainings (rank correlations of 0.0 to 0.2; benchmarks).

    Args:
        model: Trained `keras.Model`, functional or sequential, whose last layer is a `Dense` that
            gives the logits `(B, K)`.
        train: Examples that the model was trained on: `(x, y)` arrays, or batches `(x, y)` in a
            `tf.data.Dataset` or `PyDataset`. Labels are integers or one-hot.
        validation: Examples that it was not trained on, in the same form.
        priors: Class mix of `train`: `K` counts or probabilities, or an adapted `ClassPrior`.
        losses: As in `BalancedHyperModel`, like the next three.
        q: The values of `q`.
        tau: The values of `tau` under GLA.
        margins: The values of `margins` under GCA.
        folds: Number of folds of the validation examples, at least 2.
        steps: Number of training steps (Adam, cosine decay) of the heads.
        batch_size: Examples a step. Memory grows with it, the grid, `folds` and `K`.
        learning_rate: First learning rate.
        refit: Whether to return a copy of the model with the best loss's head, fitted on all
            examples (decoupled training, Kang et al., 2020), compiled with that loss.
        seed: Seed of folds and batches.
        target_priors: Class mix to be good at, as `priors`, for all losses. `None` is uniform.

    Returns:
        A `FastSearch`. Its table has a dict for each loss: `loss`, `q`, `tau` and `margins`
        (`None` where the loss has none), `balanced_accuracy` over the classes in `validation`,
        and its binomial `standard_error`.

    Raises:
        ValueError: for bad arguments, and a model or data that do not fit.

    Example:

    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], [80, 20])
    >>> x = rng.normal(size=(100, 2)) + y[:, None]
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
    ... )
    >>> found = search_last_layer(model, (x, y), (x[::2], y[::2]), [80, 20], q=[0.0, 0.5], steps=5)
    >>> print(len(found.table), sorted(found.table[0]))
    7 ['balanced_accuracy', 'loss', 'margins', 'q', 'standard_error', 'tau']

    References:
        - [Kang et al., 2020](https://arxiv.org/abs/1910.09217)
    """
    folds = check_integer("folds", folds, low=2)
    steps = check_integer("steps", steps, low=1)
    grid = loss_grid(priors, losses, q, tau, margins, target_priors)
    for loss in grid.values():
        if type(loss).logits is not BalancedLoss.logits or type(loss).call is not BalancedLoss.call:
            raise ValueError(
                "`search_last_layer` needs losses that are a `Surrogate` alone. Received: "
                f"{type(loss).__name__}, which overrides `logits` or `call`"
            )
        if loss.surrogate.label_smoothing:
            raise ValueError(
                "`search_last_layer` needs losses without label smoothing. Received: "
                f"label_smoothing={loss.surrogate.label_smoothing}"
            )
    num_classes = len(next(iter(grid.values())).surrogate.priors)
    check_model(model, num_classes)
    head = last_layer(model)
    if not isinstance(head, keras.layers.Dense) or not hasattr(model, "inputs"):
        raise ValueError(
            "`model` must be functional or sequential and end in a `Dense` layer. "
            f"Received: {type(model).__name__} {model.name!r}, which ends in {head!r}"
        )
    if refit and not head.use_bias:
        raise ValueError("`refit` needs a last layer with a bias. Received: use_bias=False")
    extractor = keras.models.clone_model(
        model,
        clone_function=lambda layer: keras.layers.Identity() if layer is head else layer,
        recursive=True,
    )
    x, y = _features(extractor, train, num_classes, "train")
    x_val, y_val = _features(extractor, validation, num_classes, "validation")
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3

    # Heads for each loss: one for each fold left out, and one that leaves out none.
    fold_of = assign_folds(y_val, folds, seed)
    heads = _Heads(list(grid.values()), folds, x.shape[-1])
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(x.shape[1:])
    outputs = heads(inputs)
    trainer = keras.Model(inputs, outputs)
    trainer.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        loss=heads.losses_of,
    )
    count = len(y) + len(y_val)
    batch_size = min(batch_size, count)
    epochs = -(-steps // -(-count // batch_size))
    trainer.fit(
        (np.concatenate([x, x_val]) - mean) / scale,
        np.stack(
            [np.concatenate([y, y_val]), np.concatenate([np.full(len(y), folds), fold_of])], axis=-1
        ),
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
    )
    x_val = ((x_val - mean) / scale).astype("float32")
    predicted = np.concatenate(
        [heads.decisions(x_val[i : i + batch_size]) for i in range(0, len(x_val), batch_size)]
    )
    hits = predicted[np.arange(len(y_val)), :, fold_of] == y_val[:, None]
    present = np.unique(y_val)
    sizes = np.array([(y_val == k).sum() for k in present])[:, None]
    recalls = np.stack([hits[y_val == k].mean(axis=0) for k in present])
    scores = recalls.mean(axis=0)
    errors = np.sqrt((recalls * (1 - recalls) / sizes).sum(axis=0)) / len(present)
    table = [
        {
            "loss": name,
            "q": value,
            "tau": option if name == "gla" else None,
            "margins": option if name == "gca" else None,
            "balanced_accuracy": float(score),
            "standard_error": float(error),
        }
        for (name, value, option), score, error in zip(grid, scores, errors, strict=True)
    ]
    best = int(np.argmax(scores))
    loss = list(grid.values())[best]
    refitted = None
    if refit:
        kernel, bias = heads.head(best)
        kernel = kernel / scale[:, None]
        refitted = keras.models.clone_model(model)
        refitted.set_weights(model.get_weights())
        last_layer(refitted).set_weights([kernel, bias - mean @ kernel])
        refitted.compile(loss=loss, metrics=[BalancedAccuracy(num_classes, loss=loss)])
        refitted.optimizer.build(refitted.trainable_variables)  # For saving it.
    return FastSearch(sorted(table, key=lambda row: -row["balanced_accuracy"]), loss, refitted)


def fast_search(*args: Any, **kwargs: Any) -> FastSearch:
    """Is the old name of `search_last_layer`, and warns of it."""
    warnings.warn(
        "`fast_search` is called `search_last_layer`, which is what it does",
        DeprecationWarning,
        stacklevel=2,
    )
    return search_last_layer(*args, **kwargs)


class _Heads(keras.layers.Layer):
    """Classifier heads for many losses, side by side: `(B, D)` to logits `(B, H, K)`.

    A loss has `folds + 1` heads in a row; the j-th does not learn from fold j, the last from all.
    """

    def __init__(self, losses, folds, num_features):
        super().__init__()
        self.balanced_losses = losses
        surrogates = [loss.surrogate for loss in losses for _ in range(folds + 1)]
        num_classes = len(surrogates[0].priors)
        self.folds, self.num_classes = folds, num_classes

        def stacked(name):
            return np.stack([getattr(s, name) for s in surrogates]).astype("float32")

        self.shift = stacked("shift")
        self.inverse_margins = 1.0 / stacked("margins").T
        self.class_weights = stacked("weights").T
        self.q = np.array([surrogate.q for surrogate in surrogates], "float32")
        left_out = np.arange(len(surrogates)) % (folds + 1)
        self.learns = (np.arange(folds)[:, None] != left_out).astype("float32")
        # The training examples are in no fold.
        self.learns = np.concatenate([self.learns, np.ones((1, len(surrogates)), "float32")])
        size = len(surrogates) * num_classes
        self.kernel = self.add_weight((num_features, size), "zeros", name="kernel")
        self.bias = self.add_weight((size,), "zeros", name="bias")
        self.built = True

    def call(self, x):
        return ops.reshape(
            ops.matmul(x, self.kernel) + self.bias, (-1, len(self.q), self.num_classes)
        )

    def decisions(self, x):
        """Returns the class `(B, losses, folds + 1)` for which each head decides, as served."""
        logits, heads = self(x), self.folds + 1
        decided = []
        for i, loss in enumerate(self.balanced_losses):
            posterior = loss.posterior(logits[:, i * heads : (i + 1) * heads])
            decided.append(ops.convert_to_numpy(ops.argmax(posterior, axis=-1)))
        return np.stack(decided, axis=1)

    def losses_of(self, y_true, logits):
        """Returns the sum over the heads `(B,)` of `functional`'s formula, with one q a head."""
        labels, fold = ops.cast(y_true[:, 0], "int32"), ops.cast(y_true[:, 1], "int32")
        inverse = ops.take(ops.convert_to_tensor(self.inverse_margins), labels, axis=0)
        q, shift, learns = map(ops.convert_to_tensor, (self.q, self.shift, self.learns))
        z = logits * inverse[..., None] + shift
        true = ops.one_hot(labels, self.num_classes, dtype=z.dtype)[:, None, :]
        cross_entropy = ops.logsumexp(z, axis=-1) - ops.sum(z * true, axis=-1)
        psi = -ops.expm1(-q * cross_entropy) / ops.where(q > 0, q, ops.ones_like(q))
        psi = ops.where(q > 0, psi, cross_entropy)
        weights = ops.take(ops.convert_to_tensor(self.class_weights), labels, axis=0)
        return ops.sum(psi * weights * ops.take(learns, fold, axis=0), axis=-1)

    def head(self, index):
        """Returns kernel and bias of a loss's head that learned from all."""
        h = (index + 1) * (self.folds + 1) - 1
        chosen = slice(h * self.num_classes, (h + 1) * self.num_classes)
        kernel, bias = (ops.convert_to_numpy(w) for w in (self.kernel, self.bias))
        return kernel[:, chosen], bias[chosen]


def _features(extractor, data, num_classes, name):
    """Returns features `(N, D)` and class ids `(N,)`."""
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise ValueError(
                f"`{name}` must be (x, y), without weights. Received: {len(data)} parts"
            )
        x, y = extractor.predict(data[0], verbose=0), data[1]
    else:
        batches = [
            (extractor.predict_on_batch(batch[0]), ops.convert_to_numpy(batch[1])) for batch in data
        ]
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    y = targets.class_ids(f"{name}` labels `y", y)
    if x.ndim != 2 or len(x) != len(y) or not len(y) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"`{name}` must give features (N, D) and labels (N,) in [0, {num_classes}). "
            f"Received: features of shape {x.shape} and labels of shape {y.shape}"
            + (f" in [{y.min()}, {y.max()}]" if len(y) else "")
        )
    return x.astype("float32"), y


def assign_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the fold `(N,)` of each example: every class is spread evenly over the folds."""
    rng = np.random.default_rng(seed)
    fold_of = np.empty(len(labels), "int64")
    start = 0
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        # Going on where the last class ended keeps the folds of one size.
        fold_of[members] = np.arange(start, start + len(members)) % folds
        start += len(members)
    return fold_of
