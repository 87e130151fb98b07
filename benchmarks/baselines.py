"""Losses of other papers, and settings of ours without a class: each with its `posterior`.

`posterior`, as in our losses, gives the class probabilities that a minimiser of the loss predicts
in a target mix, so that every loss can be judged by both of its decisions.
"""

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_balanced import BalancedLoss, GCALoss, Surrogate
from keras_balanced.surrogates import gca_surrogate, gla_surrogate
from keras_balanced.validation import check_counts

LDAM_MAX_MARGIN, LDAM_SCALE = 0.5, 30.0


def effective_number(counts, beta=0.9999):
    """Class weights by the effective number of examples: a class-weighted loss of our family.

    The weight of class k is `(1 - beta) / (1 - beta^n_k)` over its mean in the data.

    References:
        - [Cui et al., 2019](https://arxiv.org/abs/1901.05555)
    """
    counts = check_counts("counts", counts)
    target = counts * effective_weights(counts, beta)
    return GCALoss(counts, 0.0, margins=None, consistent=False, target_priors=target)


def effective_weights(counts, beta=0.9999):
    counts = check_counts("counts", counts)
    weights = (1 - beta) / (1 - beta**counts)
    return weights / np.average(weights, weights=counts)


class FocalLoss(keras.losses.CategoricalFocalCrossentropy):
    """Keras's focal loss for integer labels: `-(1 - p_y)^gamma log p_y`.

    Keras clips `p`: an example with a probability under 1e-7 has no gradient.

    References:
        - [Lin et al., 2017](https://arxiv.org/abs/1708.02002)
        - [Charoenphakdee et al., 2021](https://arxiv.org/abs/2011.09172) (the posterior)
    """

    def __init__(self, counts, gamma=2.0):
        super().__init__(alpha=1.0, gamma=gamma, from_logits=True)
        self.counts = check_counts("counts", counts)

    def call(self, y_true, y_pred):
        return super().call(ops.one_hot(ops.cast(y_true, "int32"), len(self.counts)), y_pred)

    def posterior(self, y_pred, *, priors):
        p = special.softmax(np.asarray(y_pred, "float64"), axis=-1)
        rest = np.maximum(1 - p, 1e-12)
        # Of the gradient by each probability: the true ones are proportional to this.
        slope = rest**self.gamma / p - self.gamma * rest ** (self.gamma - 1) * np.log(p)
        return _normalize(priors / slope / self.counts)


class VSLoss(BalancedLoss):
    """The vector-scaling loss: cross-entropy of scaled and shifted logits.

    Formula: `-log softmax(y_pred * (n / n_max)^gamma + tau * log(n / sum(n)))[y_true]`.

    References:
        - [Kini et al., 2021](https://arxiv.org/abs/2103.01550)
    """

    def __init__(self, counts, gamma, tau, **kwargs):
        self.counts, self.gamma, self.tau = check_counts("counts", counts), gamma, tau
        self.scale = (self.counts / self.counts.max()) ** gamma
        shift = tau * np.log(self.counts / self.counts.sum())
        super().__init__(Surrogate(counts, shift=shift), **kwargs)

    def logits(self, y_pred):
        return super().logits(y_pred) * self.scale.astype("float32")


class LDAMLoss(BalancedLoss):
    """The label-distribution-aware margin loss, of the cosines of a `CosineHead`.

    Formula: `-w[y] log softmax(30 * (y_pred - margins[y] * onehot(y)))[y]` with
    `margins = 0.5 * (n_min / n)^(1/4)`.

    References:
        - [Cao et al., 2019](https://arxiv.org/abs/1906.07413)
    """

    def __init__(self, counts, weights=None, **kwargs):
        self.counts, self.weights = check_counts("counts", counts), weights
        self.margins = LDAM_MAX_MARGIN * (self.counts.min() / self.counts) ** 0.25
        super().__init__(Surrogate(counts, weights=1.0 if weights is None else weights), **kwargs)

    def call(self, y_true, y_pred):
        true = y_true
        if tuple(y_true.shape) != tuple(y_pred.shape):
            true = ops.one_hot(ops.cast(y_true, "int32"), len(self.counts), dtype=y_pred.dtype)
        margins = ops.reshape(true, ops.shape(y_pred)) * self.margins.astype("float32")
        return super().call(y_true, LDAM_SCALE * (y_pred - margins))

    def log_posterior(self, logits, *, priors=None):
        # At the minimum the weighted probabilities are the stationary distribution of a chain
        # whose row y is the softmax that an example of class y sees.
        logits = ops.convert_to_numpy(logits).astype("float64")
        seen = LDAM_SCALE * (logits[:, None, :] - np.diag(self.margins))
        chain = special.softmax(seen, axis=-1)
        num_classes = len(self.counts)
        system = np.swapaxes(chain, 1, 2) - np.eye(num_classes)
        system[:, -1, :] = 1.0
        one = np.zeros((num_classes, 1))
        one[-1] = 1.0
        stationary = np.linalg.solve(system, np.broadcast_to(one, (len(logits), *one.shape)))
        stationary = np.maximum(stationary[..., 0], 0.0)
        mix = self.surrogate.target_priors
        if priors is not None:
            mix = self.surrogate.check_mix("priors", priors)
        with np.errstate(divide="ignore"):
            return np.log(_normalize(mix * stationary / self.surrogate.weights / self.counts))


def margin_gla(counts, q=0.0, consistent=False):
    """GLA with the margins of GCA; weighted by them and at q = 0 it is Bayes-consistent.

    Formula: `s = softmax(y_pred / margins[y] + log(priors) / (1 - q))[y]`,
    `loss = w * (1 - s^q) / q` with `w = margins[y]`, or 1 if not `consistent`.
    """
    shift, margins = gla_surrogate(counts, q).shift, gca_surrogate(counts, q).margins
    weights = margins if consistent else 1.0
    return BalancedLoss(Surrogate(counts, q=q, shift=shift, margins=margins, weights=weights))


@keras.saving.register_keras_serializable(package="benchmarks")
class CosineHead(keras.layers.Layer):
    """The cosine between the features and a vector of each class."""

    def __init__(self, num_classes, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.kernel_regularizer = kernel_regularizer

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], self.num_classes),
            initializer="glorot_uniform",
            regularizer=self.kernel_regularizer,
            name="kernel",
        )

    def call(self, x):
        return ops.matmul(ops.normalize(x, axis=-1), ops.normalize(self.kernel, axis=0))


def _normalize(values):
    return values / values.sum(axis=-1, keepdims=True)
