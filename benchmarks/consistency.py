"""Does the minimiser of each loss decide as the best classifier of the balanced loss does?

    python benchmarks/consistency.py --output benchmarks/results/consistency.json

For random class posteriors and priors, minimises the conditional risk of each loss over the
logits, in float64 and from several starts, and counts how often the argmax of the logits is the
Bayes decision, and that of `posterior` where the minimum is attained: with margins and q > 0 it
can lie at infinity, where some class is given up. Prints a Markdown table.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from scipy import optimize

from keras_balanced import formula, surrogates

# Each loss of the design's table: its surrogate for a prior and q, and the q it is defined for.
GRID = (0.0, 0.3, 0.6)
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


def minimise(eta, surrogate, rng, starts=5):
    """Returns the best logits found, and whether they are a minimum and not on the way to one."""
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


def measure(surrogate_of, q, problems, seed=0):
    """Returns the percentage of right decisions, and of problems without a minimum."""
    rng = np.random.default_rng(seed)
    rng_problems = np.random.default_rng(seed)
    right_logits = right_posterior = attained = 0
    for _ in range(problems):
        eta, priors = random_problem(rng_problems)
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
        "problems": problems,
        "attained": 100 * attained / problems,
        "argmax of logits": 100 * right_logits / problems,
        "argmax of posterior": 100 * right_posterior / max(attained, 1),
    }


def counterexample():
    """Returns the logits of the design's binary problem, not consistent and consistent."""
    weighted = np.array([1.0, 1.2])
    margins = np.array([0.5, 1.0])
    logits = {}
    for consistent in (False, True):
        weights = weighted * (margins if consistent else 1.0)
        surrogate = surrogates.Surrogate([0.5, 0.5], margins=margins, weights=weights)
        logits[consistent] = minimise(np.full(2, 0.5), surrogate, np.random.default_rng(0))[0]
    return logits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args(argv)
    if args.problems < 1:
        parser.error(f"--problems must be at least 1. Received: {args.problems}")
    rows = []
    print("| loss | q | argmax of logits | argmax of posterior | minimum attained |")
    print("|---|---|---|---|---|")
    for name, (surrogate_of, grid) in LOSSES.items():
        for q in grid:
            row = {"loss": name, "q": q, **measure(surrogate_of, q, args.problems, args.seed)}
            rows.append(row)
            print(
                f"| {name} | {q:g} | {row['argmax of logits']:.1f} | "
                f"{row['argmax of posterior']:.1f} | {row['attained']:.1f} |",
                flush=True,
            )
    for consistent, z in counterexample().items():
        print(
            f"\nBinary counterexample, consistent={consistent}: logits {z.round(4).tolist()}, "
            f"decision {z.argmax()}; the Bayes decision is 1"
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
