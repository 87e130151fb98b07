"""Does the minimiser of each loss decide as the best classifier for balanced accuracy does?

200 random problems of 2 to 6 classes: class posteriors and priors, drawn at random. The minimiser
of each loss's conditional risk is found in float64 from five starts. The table says for how many
percent of the problems its decision is that of the best classifier for balanced accuracy, by the
argmax of the logits and, where a minimum is attained, by the argmax of `posterior`: with margins
and q > 0 it can lie at infinity, where some class is given up.
"""

import keras
import numpy as np

from benchmarks import stats
from keras_balanced import formula, surrogates

GRID = (0.0, 0.3, 0.6)
# Each loss of the design's table: its surrogate for a prior and q, and the q it is defined for.
LOSSES = {
    "cross-entropy": (lambda p, q: surrogates.gla_surrogate(p, q, tau=0.0), GRID[:1]),
    "generalized cross-entropy": (lambda p, q: surrogates.gla_surrogate(p, q, tau=0.0), GRID[1:]),
    "logit-adjusted": (lambda p, q: surrogates.gla_surrogate(p, q, tau=None), GRID[:1]),
    "GLA": (lambda p, q: surrogates.gla_surrogate(p, q, tau=None), GRID[1:]),
    "GLA, tau = 1": (lambda p, q: surrogates.gla_surrogate(p, q, tau=1.0), GRID[1:]),
    "class-weighted": (lambda p, q: surrogates.gca_surrogate(p, q, None, consistent=False), GRID),
    "GCA": (lambda p, q: surrogates.gca_surrogate(p, q, "cube_root", consistent=False), GRID),
    "GCA, consistent": (
        lambda p, q: surrogates.gca_surrogate(p, q, "cube_root", consistent=True),
        GRID,
    ),
    "GCA, consistent, margins p^(1/3)": (
        lambda p, q: surrogates.gca_surrogate(p, q, np.cbrt(p), consistent=True),
        GRID,
    ),
    "IMMAX": (
        lambda p, q: surrogates.gca_surrogate(p, q, "cube_root", consistent=False, target_priors=p),
        GRID[:1],
    ),
}


def cases():
    for loss, (_, grid) in LOSSES.items():
        for q in grid:
            yield {"loss": loss, "q": q, "problems": 200}


def measure(loss, q, problems):
    """Returns the percentage of right decisions, and of problems with a minimum."""
    surrogate_of, _ = LOSSES[loss]
    rng, rng_of_problems = np.random.default_rng(0), np.random.default_rng(0)
    right_logits = right_posterior = attained = 0
    for _ in range(problems):
        eta, priors = random_problem(rng_of_problems)
        surrogate = surrogate_of(priors, q)
        z, is_minimum = minimise(eta, surrogate, rng)
        bayes = np.argmax(eta / priors)
        right_logits += np.argmax(z) == bayes
        if not is_minimum:
            continue
        attained += 1
        posterior = formula.log_posterior(
            keras.ops.convert_to_tensor(z, dtype="float64"),
            surrogate,
            np.full(len(eta), 1 / len(eta)),
        )
        right_posterior += np.argmax(keras.ops.convert_to_numpy(posterior)) == bayes
    return {
        "argmax of logits": 100 * right_logits / problems,
        "argmax of posterior": 100 * right_posterior / max(attained, 1),
        "minimum attained": 100 * attained / problems,
    }


def random_problem(rng):
    """Returns a posterior and a prior whose Bayes decision is clear."""
    while True:
        num_classes = rng.integers(2, 7)
        eta, priors = rng.dirichlet(np.ones(num_classes), 2)
        priors = (priors + 0.01) / (priors + 0.01).sum()
        eta = (eta + 0.01) / (eta + 0.01).sum()
        scores = np.sort(eta / priors)
        if scores[-1] > 1.01 * scores[-2]:
            return eta, priors


def minimise(eta, surrogate, rng, starts=5):
    """Returns the best logits found, and whether they are a minimum and not on the way to one."""
    from scipy import optimize

    best = None
    for start in range(starts):
        z = rng.normal(0.0, 2.0 * start, len(eta))
        found = optimize.minimize(
            conditional_risk,
            z,
            (eta, surrogate),
            jac=True,
            method="BFGS",
            options={"gtol": 1e-10, "maxiter": 5000},
        )
        if best is None or found.fun < best.fun - 1e-12:
            best = found
    z = best.x - best.x.mean()
    # Where the minimum lies at infinity, some class is given up: to lower its logit costs nothing.
    lowered = [conditional_risk(row, eta, surrogate)[0] for row in z - 10.0 * np.eye(len(z))]
    return z, min(lowered) > best.fun + 1e-9


def conditional_risk(z, eta, surrogate):
    """Returns `sum_y eta_y loss(y, z)` and its gradient by `z`, from the formula, in NumPy."""
    q, margins = surrogate.q, surrogate.margins
    scores = z / margins[:, None] + surrogate.shift
    scores = scores - scores.max(axis=-1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    log_s = np.diag(log_p)
    psi = -log_s if q == 0 else -np.expm1(q * log_s) / q
    slope = eta * surrogate.weights * np.exp(q * log_s) / margins
    return eta @ (surrogate.weights * psi), slope @ np.exp(log_p) - slope


def counterexample(consistent):
    """Returns the logits of the design's binary problem, where class 1 is right."""
    margins = np.array([0.5, 1.0])
    weights = np.array([1.0, 1.2]) * (margins if consistent else 1.0)
    surrogate = surrogates.Surrogate([0.5, 0.5], margins=margins, weights=weights)
    return minimise(np.full(2, 0.5), surrogate, np.random.default_rng(0))[0]


def report(runs):
    columns = ["argmax of logits", "argmax of posterior", "minimum attained"]
    rows = [
        [run["settings"]["loss"], f"{run['settings']['q']:g}"]
        + [f"{run['result'][column]:.1f}" for column in columns]
        for run in runs
    ]
    of = {consistent: counterexample(consistent) for consistent in (False, True)}
    told = {
        consistent: f"({z[0]:.3f}, {z[1]:.3f}) and decide for class {z.argmax()}"
        for consistent, z in of.items()
    }
    return f"""{stats.table(["loss", "q", *columns], rows)}

The binary counterexample: two classes of equal prior with weights `eta t / p` = (1, 1.2) and
margins (0.5, 1); class 1 is right. With `consistent=False` the logits are {told[False]};
with `consistent=True` they are {told[True]}."""
