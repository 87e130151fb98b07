"""The formulas of the losses in float64 NumPy, and nothing of our code."""

import numpy as np


def normalize(vector):
    vector = np.asarray(vector, "float64")
    return vector / vector.sum()


def psi(log_s, q):
    """(1 - s^q) / q, and -log s at q = 0."""
    return -log_s if q == 0 else -np.expm1(q * log_s) / q


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _true(values, y):
    return np.take_along_axis(values, np.asarray(y)[:, None], axis=-1)[:, 0]


def rounded(rho):
    """Margins on levels that differ by at most 5%, or on 64 of them."""
    steps = np.log(rho / rho.min())
    count = min(64, 2 + int(steps.max() / np.log(1.05)))
    step = steps.max() / (count - 1)
    return rho.min() * np.exp(step * np.rint(steps / step))


def gla(y, z, priors, q=0.0, tau=None, target_priors=None):
    p = normalize(priors)
    t = normalize(np.ones(len(p)) if target_priors is None else target_priors)
    tau = 1 / (1 - q) if tau is None else tau
    return psi(_true(log_softmax(np.asarray(z, "float64") + tau * np.log(p / t)), y), q)


def gca(y, z, priors, q=0.0, margins="cube_root", consistent=False, target_priors=None):
    p = normalize(priors)
    t = normalize(np.ones(len(p)) if target_priors is None else target_priors)
    if margins is None:
        rho = np.ones(len(p))
    elif isinstance(margins, str):
        rho = (t**2 / p) ** (1 / 3)
        if len(set(rho)) > 64:
            rho = rounded(rho)
    else:
        rho = np.asarray(margins, "float64")
    rho = rho / rho.mean()
    w = t / p * (rho if consistent else 1.0)
    return w[y] * psi(_true(log_softmax(np.asarray(z, "float64") / rho[y][:, None]), y), q)


def logsumexp(values, axis):
    largest = values.max(axis=axis, keepdims=True)
    return np.squeeze(largest, axis) + np.log(np.exp(values - largest).sum(axis=axis))


def log_posterior(z, priors, margins, weights, target, q=0.0, shift=0.0):
    """By the stationary distribution of the whole chain, `(B, K, K)`, by state reduction."""
    margins = np.asarray(margins, "float64")
    log_p = log_softmax(np.asarray(z, "float64")[:, None, :] / margins[:, None] + shift)
    log_s, reduced, entered = np.einsum("bkk->bk", log_p), log_p, []
    for n in range(len(margins) - 1, 0, -1):
        enter = reduced[:, :n, n] - logsumexp(reduced[:, n, :n], -1)[:, None]
        entered.append(enter)
        reduced = np.logaddexp(reduced[:, :n, :n], enter[:, :, None] + reduced[:, n, None, :n])
    log_u = np.zeros((len(z), 1))
    for enter in reversed(entered):
        log_u = np.concatenate([log_u, logsumexp(log_u + enter, -1)[:, None]], axis=-1)
    return log_softmax(log_u - q * log_s + np.log(target * margins / (priors * weights)))


def without_smoothing(log_eta, mass):
    """That of the labels before they were smoothed: at least a hundredth of the mass."""
    return np.log(np.maximum(np.exp(log_softmax(log_eta)) - mass, mass / 100))


def decision_scores(
    log_p, own, target_priors=None, costs=None, threshold=None, priors=None, temperature=1.0
):
    """Of log-probabilities `(..., K)` in the mix `own`: the largest score is the decision."""
    mix = own if target_priors is None else normalize(target_priors)
    if priors is not None:
        mix = normalize(priors)
    log_p = log_p / temperature + np.log(mix) - np.log(own)
    if costs is not None:
        return -np.exp(log_softmax(log_p)) @ np.asarray(costs, "float64")
    if threshold is not None:
        p = np.exp(log_softmax(log_p))[..., 1]
        return np.stack([np.full_like(p, threshold), p], axis=-1)
    return log_p


def gradient(loss, z, step=1e-6):
    """Central differences of `loss(z)`, `(B,)`, by the logits of each example, `(B, K)`."""
    z = np.asarray(z, "float64")
    columns = []
    for k in range(z.shape[-1]):
        h = np.zeros(z.shape[-1])
        h[k] = step
        columns.append((loss(z + h) - loss(z - h)) / (2 * step))
    return np.stack(columns, axis=-1)
