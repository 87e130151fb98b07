"""Do the rates of the theory show? In a model that cannot be right, and variance is the price.

The abstract of the paper says that the bounds of GLA grow as `1 / p` with the prior `p` of the
rarest class, those of GCA as `1 / sqrt(p)`. Four studies in float64, on the formulas:

1. *The promise.* Two classes, any logits: the smallest `C` with `balanced regret <=
   C sqrt(surrogate regret)`. At one input, and averaged over inputs whose posteriors have the mean
   `p`, as they must. Averages of two inputs suffice: the ratio of the squares is convex, so it is
   largest at an extreme point, and one condition on the mean leaves those at most two inputs.
   How `C` changes with `p` compares losses; its size depends on the scale of a loss.
2. *When it is real.* A linear model of two inputs that cannot be right, fitted to infinitely many
   examples. "Two kinds" is the plain case: the common class lies around (0, 0), half of the rare
   one around (2, 0), half around (0, 4), all with a standard deviation of 1. The random problems
   have two kinds of each class, anywhere. The best linear decision is found by a scan.
3. *When it is real, again.* 10 classes at ratio 10,000, free logits, but none larger than half the
   width of a box. The posteriors in the balanced mix are drawn uniformly from the simplex. Where
   several logits are the largest, the decision is by lot.
4. *What it costs.* The linear model, fitted to 40 rare examples and as many common ones as the
   prior asks for. "Well specified" has one kind of rare examples, around (2, 0); with 10 inputs,
   8 of them are noise.

GCA has its default margins and `q = 0`; "by posterior" has `consistent=False`, "consistent" is
decided by its logits. Errors and regrets are in percent. All of it is made up: what these
quantities are on real data is the matter of the other reports.
"""

import functools
import statistics

import numpy as np
from scipy import optimize, special

from benchmarks import stats
from benchmarks.questions import consistency
from keras_balanced import surrogates

LOSSES = {
    "GLA": lambda p: surrogates.gla_surrogate(p),
    "GLA, q = 0.3": lambda p: surrogates.gla_surrogate(p, 0.3),
    "class weights": lambda p: surrogates.gca_surrogate(p, margins=None),
    "GCA, by posterior": lambda p: surrogates.gca_surrogate(p),
    "GCA, consistent": lambda p: surrogates.gca_surrogate(p, consistent=True),
}
PRIORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
PRIORS_OF_POPULATIONS = (0.5, *PRIORS, 1e-6)
PRIORS_OF_SAMPLES = (0.1, 0.01, 0.001)
WIDTHS = (2, 4, 6, 8, 10)
# Kinds of examples: class, share of the class, mean, standard deviation.
PROBLEMS = {
    "two kinds": ((0, 1.0, (0, 0), 1.0), (1, 0.5, (2, 0), 1.0), (1, 0.5, (0, 4), 1.0)),
    "well specified": ((0, 1.0, (0, 0), 1.0), (1, 1.0, (2, 0), 1.0)),
}
PICTURE = "rates.png"
SAMPLES = (("well specified", 2), ("well specified", 10), ("two kinds", 2))


def cases():
    for loss in LOSSES:
        for p in PRIORS:
            yield {"part": "bound", "loss": loss, "p": p}
        for problem in PROBLEMS:
            for p in PRIORS_OF_POPULATIONS:
                yield {"part": "population", "loss": loss, "p": p, "problem": problem}
        for p in PRIORS_OF_POPULATIONS[::2]:
            yield {"part": "random populations", "loss": loss, "p": p, "problems": 40}
        for width in WIDTHS:
            yield {"part": "box", "loss": loss, "width": width, "draws": 300}
        for problem, inputs in SAMPLES:
            for p in PRIORS_OF_SAMPLES:
                setting = {"part": "sample", "loss": loss, "p": p, "problem": problem}
                yield setting | {"inputs": inputs, "rare": 40, "samples": 100}
        yield {"part": "package", "loss": loss}


def measure(part, loss, **settings):
    return PARTS[part](loss, **settings)


# The two losses of a logit, and what they decide.


def of_label(label, z, surrogate):
    """Returns the loss of label 0 or 1 at the logit `z`, and its derivative."""
    rho, weight = surrogate.margins[label], surrogate.weights[label]
    sign = 2 * label - 1
    x = sign * (z / rho + surrogate.shift[1] - surrogate.shift[0])
    slope = -sign * weight / rho * special.expit(x) ** surrogate.q * special.expit(-x)
    return weight * psi(special.log_expit(x), surrogate.q), slope


def binary(z, surrogate):
    """Returns the losses `(2, ...)` of both labels, and their derivatives."""
    of_labels = [of_label(label, z, surrogate) for label in (0, 1)]
    return tuple(map(np.array, zip(*of_labels, strict=True)))


def psi(log_s, q):
    return -log_s if q == 0 else -np.expm1(q * log_s) / q


def posterior(z, surrogate):
    """Returns the posterior `(2, ...)` whose expected loss is least at `z`, of slope 0."""
    slope_0, slope_1 = binary(z, surrogate)[1]
    return np.array([-slope_1, slope_0]) / (slope_0 - slope_1)


@functools.cache
def of_prior(loss, p):
    """Returns the surrogate for a rare class of prior p, and the logit above which it decides so.

    That is 0, or by posterior the minimiser of an input whose posterior is the prior.
    """
    surrogate = LOSSES[loss](np.array([1 - p, p]))
    if "posterior" not in loss:
        return surrogate, 0.0

    def log_odds(z):
        of_common, of_rare = posterior(z, surrogate)
        return np.log(of_rare / of_common) - np.log(p / (1 - p))

    return surrogate, optimize.brentq(log_odds, -10.0, 10.0, xtol=1e-14)


# 1. What the bounds promise.


def bound(loss, p):
    """Returns the smallest C at one input, and averaged over inputs."""
    surrogate, threshold = of_prior(loss, p)
    # Each input decides wrongly at the least surrogate regret: at the threshold, since its
    # expected loss falls up to its minimiser and rises beyond. Inputs are named by those.
    steps = np.geomspace(1e-4, 60, 1000)
    below, above = (regrets(threshold + sign * steps, threshold, surrogate) for sign in (-1, 1))
    pointwise = max((b / np.sqrt(r)).max() for _, b, r in (below, above))
    (low, b_low, r_low), (high, b_high, r_high) = (np.array(side) for side in (below, above))
    of_high = (p - low[:, None]) / (high - low[:, None])
    of_low = 1 - of_high
    averaged = 0.0
    for low_wrong, high_wrong in ((1, 1), (1, 0), (0, 1)):
        b = low_wrong * of_low * b_low[:, None] + high_wrong * of_high * b_high
        r = low_wrong * of_low * r_low[:, None] + high_wrong * of_high * r_high
        averaged = max(averaged, (b / np.sqrt(r)).max())
    return {"pointwise": float(pointwise), "averaged": float(averaged)}


def regrets(z, threshold, surrogate):
    """Returns the probability of the rare class at inputs whose minimiser is `z`, and both regrets
    of a decision for the wrong class at the threshold."""
    eta = posterior(z, surrogate)
    difference = eta * surrogate.target_to_prior[:, None]
    lost = binary(np.full_like(z, threshold), surrogate)[0] - binary(z, surrogate)[0]
    return eta[1], np.abs(difference[1] - difference[0]), (eta * lost).sum(axis=0)


# 2. A linear model in the population.

# Standard normal inputs; finely, since GCA's loss has a kink where a margin is small.
NODES = np.arange(-14.0, 14.0, 0.005)
DENSITY = np.exp(-(NODES**2) / 2)
DENSITY /= DENSITY.sum()


def expected_loss(theta, kinds, surrogate):
    """Returns the expected loss of `theta[:-1] @ x + theta[-1]` and its gradient.

    The logit of a kind is normally distributed, so one dimension is to be integrated.
    """
    direction, length = theta[:-1], np.linalg.norm(theta[:-1])
    value, gradient = 0.0, np.zeros_like(theta)
    for label, share, mean, deviation in kinds:
        z = direction @ mean + theta[-1] + length * deviation * NODES
        losses, slopes = of_label(label, z, surrogate)
        scale = share * surrogate.priors[label]
        value += scale * DENSITY @ losses
        weighted = scale * DENSITY * slopes
        gradient[:-1] += weighted.sum() * np.asarray(mean)
        gradient[:-1] += weighted @ NODES * deviation * direction / length
        gradient[-1] += weighted.sum()
    return value, gradient


def minimise(objective, starts):
    """Returns the best of the minima found; the objective is scaled to 1 at each start."""
    found = []
    for start in starts:
        scale = objective(start)[0]
        of_start = optimize.minimize(
            lambda theta, scale=scale: tuple(part / scale for part in objective(theta)),
            start,
            jac=True,
            method="BFGS",
            options={"gtol": 1e-8},
        )
        found.append((of_start.fun * scale, of_start.x))
    return min(found, key=lambda pair: pair[0])[1]


def starts_of(kinds, inputs=2):
    """Returns linear models along the difference of the means, steep and flat."""
    means = [
        sum(share * np.asarray(mean, "float64") for of, share, mean, _ in kinds if of == label)
        for label in (0, 1)
    ]
    direction = np.zeros(inputs)
    direction[:2] = means[1] - means[0]
    middle = direction[:2] @ (means[0] + means[1]) / 2
    return [scale * np.append(direction, -middle) for scale in (1.0, 0.3)]


def balanced_error(direction, intercept, kinds):
    """Returns the balanced error of deciding for class 1 where `direction @ x + intercept > 0`."""
    length, error = np.linalg.norm(direction), 0.0
    for label, share, mean, deviation in kinds:
        z = (direction[: len(mean)] @ mean + intercept) / (length * deviation)
        error = error + share / 2 * special.ndtr(z if label == 0 else -z)
    return error


def with_best_threshold(direction, kinds):
    """Returns the least balanced error along a direction."""
    intercepts = np.linspace(-12.0, 12.0, 601) * np.linalg.norm(direction)
    return balanced_error(direction, intercepts, kinds).min()


@functools.cache
def best_error(kinds):
    """Returns the least balanced error of a linear decision: a scan, refined."""

    def error(point):
        direction = np.array([np.cos(point[0]), np.sin(point[0])])
        return balanced_error(direction, point[1], kinds)

    intercepts = np.linspace(-12.0, 12.0, 241)
    angles = np.linspace(0.0, 2 * np.pi, 360, endpoint=False)
    errors = np.array([error((angle, intercepts)) for angle in angles])
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    start = [angles[row], intercepts[column]]
    options = {"xatol": 1e-8, "fatol": 1e-12}
    return optimize.minimize(error, start, method="Nelder-Mead", options=options).fun


def fitted_errors(loss, p, kinds):
    """Returns the balanced error of the minimiser in the population, and by its best threshold."""
    surrogate, threshold = of_prior(loss, p)
    theta = minimise(lambda theta: expected_loss(theta, kinds, surrogate), starts_of(kinds))
    error = balanced_error(theta[:-1], theta[-1] - threshold, kinds)
    return 100 * error, 100 * with_best_threshold(theta[:-1], kinds)


def population(loss, p, problem):
    kinds = PROBLEMS[problem]
    error, tuned = fitted_errors(loss, p, kinds)
    return {"error": error, "best threshold": tuned, "best": 100 * best_error(kinds)}


def random_populations(loss, p, problems):
    """Returns by how much each minimiser's balanced error is above that of the best linear one."""
    rng = np.random.default_rng(0)
    excess = []
    while len(excess) < problems:
        kinds = random_kinds(rng)
        best = 100 * best_error(kinds)
        if 5 < best < 30:
            excess.append(round(fitted_errors(loss, p, kinds)[0] - best, 4))
    return {"excess": excess}


def random_kinds(rng):
    """Returns two kinds of examples of each class."""
    kinds = []
    for label in (0, 1):
        share = rng.uniform(0.2, 0.8)
        for of_kind in (share, 1 - share):
            mean, deviation = rng.normal(0.0, 2.0, 2), rng.uniform(0.5, 1.5)
            kinds.append((label, of_kind, tuple(mean.tolist()), deviation))
    return tuple(kinds)


# 3. Logits in a box.


def box(loss, width, draws, num_classes=10, ratio=1e4):
    """Returns the balanced regret of the minimisers in a box, and how many decisions are ties."""
    from keras import ops

    from keras_balanced import formula

    prior = ratio ** -np.linspace(0, 1, num_classes)
    surrogate = LOSSES[loss](prior)
    balanced = np.random.default_rng(0).dirichlet(np.ones(num_classes), draws)
    z = np.array([in_box(row, surrogate, width) for row in balanced])
    scores = z
    if "posterior" in loss:
        uniform = np.full(num_classes, 1 / num_classes)
        z = ops.convert_to_tensor(z, dtype="float64")
        scores = ops.convert_to_numpy(formula.log_posterior(z, surrogate, uniform))
    top = scores > scores.max(axis=-1, keepdims=True) - 1e-6
    decided = (top * balanced).sum(axis=-1) / top.sum(axis=-1)
    regret = balanced.max(axis=-1) - decided
    best = (balanced.max(axis=-1, keepdims=True) - top * balanced).min(axis=-1)
    return {
        "regret": 100 * float(regret.mean()),
        "regret, ties decided best": 100 * float(best.mean()),
        "ties": 100 * float((top.sum(axis=-1) > 1).mean()),
    }


def in_box(balanced, surrogate, width, tolerance=1e-6):
    """Returns the logits of least expected loss, none larger than half the width.

    A search by values cannot place the logits of very rare classes, which hardly change the
    expected loss; Newton's steps, by its gradient alone, do.
    """
    eta = balanced * surrogate.priors
    eta /= eta.sum()
    z = np.log(balanced)
    z = np.clip(z - (z.max() + z.min()) / 2, -width / 2, width / 2)
    for size in (1.0, 0.5, 0.25):  # Whole steps can go round in a circle.
        z = searched(z, eta, surrogate, scales(hessian(z, eta, surrogate)), width)
        for _ in range(round(10 / size)):
            step = size * newton_step(z, eta, surrogate, width)
            moved = np.clip(z + step, -width / 2, width / 2)
            if np.abs(moved - z).max() < tolerance:
                return moved
            z = moved
    raise RuntimeError(f"no minimum found: width {width}, {balanced.tolist()}, at {z.tolist()}")


def newton_step(z, eta, surrogate, width):
    """Returns the step of the logits that are not held by the box."""
    gradient = consistency.conditional_risk(z, eta, surrogate)[1]
    curvature = hessian(z, eta, surrogate)
    scale = scales(curvature)
    held = (np.abs(z) == width / 2) & (gradient * z <= 0)
    free = np.flatnonzero(~held)
    scaled = (curvature / np.outer(scale, scale))[np.ix_(free, free)]
    step = np.zeros_like(z)
    # Least squares, since where no logit is held all can move together.
    step[free] = -np.linalg.lstsq(scaled, (gradient / scale)[free], rcond=1e-6)[0] / scale[free]
    return step


def hessian(z, eta, surrogate, step=1e-4):
    """Returns the second derivatives of the expected loss."""
    ahead, behind = (
        [
            consistency.conditional_risk(row, eta, surrogate)[1]
            for row in z + sign * step * np.eye(len(z))
        ]
        for sign in (1, -1)
    )
    return (np.array(ahead) - behind) / (2 * step)


def scales(curvature):
    """Returns the roots of the curvature by each logit: those of rare classes are far smaller."""
    found = np.abs(np.diag(curvature))
    return np.sqrt(np.maximum(found, 1e-10 * found.max()))


def searched(z, eta, surrogate, scale, width):
    """Returns where one search ends."""
    value = consistency.conditional_risk(z, eta, surrogate)[0]

    def objective(x):
        found, gradient = consistency.conditional_risk(x / scale, eta, surrogate)
        return found / value, gradient / scale / value

    half = width / 2 * scale
    found = optimize.minimize(
        objective,
        z * scale,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(-half, half, strict=True)),
        options={"ftol": 0.0, "gtol": 1e-14, "maxiter": 500, "maxcor": 20},
    )
    return np.clip(found.x / scale, -width / 2, width / 2)


# 4. A linear model of few rare examples.


def sample(loss, p, problem, inputs, rare, samples):
    """Returns by how much the balanced error of each fit is above that of the best linear one."""
    kinds = PROBLEMS[problem]
    surrogate, threshold = of_prior(loss, p)
    best = 100 * best_error(kinds)
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(samples):
        x = [draw(rng, kinds, 0, round(rare * (1 - p) / p), inputs)]
        x.append(draw(rng, kinds, 1, rare, inputs))
        theta = minimise(lambda t, x=x: mean_loss(t, x, surrogate), starts_of(kinds, inputs)[:1])
        error = balanced_error(theta[:-1], theta[-1] - threshold, kinds)
        excess.append(round(100 * error - best, 4))
    return {"excess": excess}


def draw(rng, kinds, label, count, inputs):
    """Returns examples of a class `(count, inputs)`; inputs beyond the first two are noise."""
    of_class = [kind for kind in kinds if kind[0] == label]
    kind = rng.choice(len(of_class), count, p=[share for _, share, _, _ in of_class])
    x = rng.normal(size=(count, inputs)) * np.array([of[3] for of in of_class])[kind, None]
    x[:, :2] += np.array([of[2] for of in of_class])[kind]
    return x


def mean_loss(theta, x, surrogate):
    """Returns the mean loss over the examples of both classes, and its gradient."""
    value, gradient = 0.0, np.zeros_like(theta)
    for label, of_class in enumerate(x):
        losses, slopes = of_label(label, of_class @ theta[:-1] + theta[-1], surrogate)
        value += losses.sum()
        gradient += np.append(slopes @ of_class, slopes.sum())
    count = sum(map(len, x))
    return value / count, gradient / count


# What the package computes.


def package(loss):
    """Returns how far the package's loss is from `binary`, in units of its weight."""
    from keras import ops

    from keras_balanced import BalancedLoss

    z = np.linspace(-20.0, 20.0, 81)
    logits = np.stack([np.zeros_like(z), z], axis=-1)
    differences = []
    for p in PRIORS:
        surrogate, _ = of_prior(loss, p)
        ours = BalancedLoss(surrogate, reduction=None, dtype="float64")
        expected, _ = binary(z, surrogate)
        for label in (0, 1):
            values = ops.convert_to_numpy(ours(np.full(len(z), label), logits))
            differences.append(np.abs(values - expected[label]).max() / surrogate.weights[label])
    return {"difference": float(max(differences))}


PARTS = {
    "bound": bound,
    "population": population,
    "random populations": random_populations,
    "box": box,
    "sample": sample,
    "package": package,
}


def report(runs):
    of = by_part(runs)
    furthest = max(result["difference"] for result in of["package"].values())
    return f"""![The promise, when it is real, and what it costs]({PICTURE})

## The promise: the smallest C

{table_of_bounds(of["bound"])}

The slope is that of a line through the logarithms. What can be derived agrees: at one input GLA at
`q = 0` has `sqrt((1 - 2p) / log((1 - p) / p)) / (2 p (1 - p))`, by the inequality of Kearns and
Saul, and class weights `1 / sqrt(2 p log 2)`; averaged, GLA has `1 / sqrt(2 p (1 - p))` (seen, not
proved) and class weights `sqrt(2)`, since they are cross-entropy in the balanced mix.

## When it is real: a linear model that cannot be right

{table_of_population(of["population"], "two kinds")}

The less frequent the rare class, the more GLA sees of it its mean alone
([Owen, 2007](https://jmlr.org/papers/v8/owen07a.html)): in the limit of `p = 0` its error here is
{100 * limit_of_gla(PROBLEMS["two kinds"]):.2f}.

Regret against the best linear decision in {problems_of(of["random populations"])} random problems.
"Better" and "worse" count those in which a loss has more than a tenth of a point less or more
regret than GLA at the same prior.

{table_of_random(of["random populations"])}

## When it is real: logits in a box

Balanced regret (percentage of ties).

{table_of_boxes(of["box"])}

All regret of the losses that decide by logits is from ties: were these decided right, the
largest in the table would be {most_without_ties(of["box"]):.2f}. A box makes classes equal but does
not turn their order round: a larger logit is not at the bottom, a smaller one not at the top of the
box, so that their derivatives at a minimum are at most 0 and at least 0, and the argument for the
order of the logits without a box needs no more.

## What it costs: 40 rare examples

Regret against the best linear decision, mean ± standard error over {samples_of(of["sample"])}
samples (the same for all losses), and the paired difference to GLA.

{tables_of_samples(of["sample"])}

With infinitely many examples the regret of a linear model that is well specified is 0, except for
GCA: with margins its best logits are no linear function of the log-odds.

{table_of_population(of["population"], "well specified")}

## These formulas and the package

The losses of the package differ from these formulas by at most {furthest:.0e} of the weight of the
label, in float64."""


def by_part(runs):
    """Returns `{part: {(loss, value of every other setting ...): result}}`."""
    parts = {part: {} for part in PARTS}
    for run in runs:
        part, *setting = run["settings"].values()
        parts[part][tuple(setting)] = run["result"]
    return parts


def slope(by_prior):
    """Returns the exponent of p of a line through the logarithms of `{p: value}`."""
    return np.polyfit(np.log(list(by_prior)), np.log(list(by_prior.values())), 1)[0]


def table_of_bounds(results):
    rows = []
    for kind in ("pointwise", "averaged"):
        for loss in LOSSES:
            values = {p: results[loss, p][kind] for p in PRIORS}
            title = {"pointwise": "at one input", "averaged": "averaged"}[kind]
            rows.append([title, loss, *(f"{value:.2f}" for value in values.values())])
            rows[-1].append(f"{slope(values):.2f}".replace("-0.00", "0.00"))
    return stats.table(["", "loss", *(f"p = {p:g}" for p in PRIORS), "slope"], rows)


def table_of_population(results, problem):
    rows = []
    for loss in LOSSES:
        found = [results[loss, p, problem] for p in PRIORS_OF_POPULATIONS]
        rows.append([loss, *(f"{of_prior['error']:.2f}" for of_prior in found)])
        rows[-1].append(f"{found[-1]['best threshold']:.2f}")
    columns = ["loss", *(f"p = {p:g}" for p in PRIORS_OF_POPULATIONS), "best threshold"]
    return f"""{problem.capitalize()}, balanced error. The best linear decision has
{found[0]["best"]:.2f}. The last column takes the best threshold along the last direction.

{stats.table(columns, rows)}"""


def problems_of(results):
    return len(next(iter(results.values()))["excess"])


def samples_of(results):
    return len(next(iter(results.values()))["excess"])


def limit_of_gla(kinds):
    """Returns the balanced error of GLA at a prior of 0, of one standard normal common kind.

    Its direction is then the mean of the rare class, which the common class, weighted by the
    exponential of the logit, has to have.
    """
    mean = sum(share * np.asarray(mean) for label, share, mean, _ in kinds if label == 1)
    return balanced_error(mean, -mean @ mean / 2, kinds)


def table_of_random(results):
    excess = {(loss, p): np.array(of["excess"]) for (loss, p, _), of in results.items()}
    rows = []
    for p in sorted({p for _, p in excess}, reverse=True):
        for loss in LOSSES:
            quartiles = np.quantile(excess[loss, p], [0.25, 0.5, 0.75])
            gain = excess["GLA", p] - excess[loss, p]
            row = [f"{p:g}", loss, *(f"{value:.2f}" for value in quartiles)]
            counts = ["", ""] if loss == "GLA" else [(gain > 0.1).sum(), (gain < -0.1).sum()]
            rows.append([*row, *counts])
    quartiles = ["lower quartile", "median", "upper quartile"]
    return stats.table(["p", "loss", *quartiles, "better", "worse"], rows)


def most_without_ties(results):
    """Returns the largest regret of the losses that decide by logits, were ties decided right."""
    return max(
        result["regret, ties decided best"]
        for (loss, *_), result in results.items()
        if "posterior" not in loss
    )


def table_of_boxes(results):
    found = {(loss, width): result for (loss, width, _), result in results.items()}
    rows = [
        [loss]
        + [
            f"{found[loss, width]['regret']:.2f} ({found[loss, width]['ties']:.0f}%)"
            for width in WIDTHS
        ]
        for loss in LOSSES
    ]
    return stats.table(["loss", *(f"width {width}" for width in WIDTHS)], rows)


def excess_of(results, problem, inputs):
    """Returns `{(loss, p): {sample: regret}}` of one problem."""
    return {
        (loss, p): dict(enumerate(result["excess"]))
        for (loss, p, *setting), result in results.items()
        if tuple(setting[:2]) == (problem, inputs)
    }


def tables_of_samples(results):
    tables = []
    for problem, inputs in SAMPLES:
        excess, rows = excess_of(results, problem, inputs), []
        for loss in LOSSES:
            rows.append([loss])
            for p in PRIORS_OF_SAMPLES:
                rows[-1].append(stats.mean_and_error(excess[loss, p].values(), 2))
                other = (
                    "" if loss == "GLA" else stats.difference(excess[loss, p], excess["GLA", p], 2)
                )
                rows[-1].append(other)
        columns = [name for p in PRIORS_OF_SAMPLES for name in (f"p = {p:g}", "less GLA's")]
        title = f"{problem.capitalize()}, {inputs} inputs:"
        tables.append(f"{title}\n\n{stats.table(['loss', *columns], rows)}")
    return "\n\n".join(tables)


def pictures(runs):
    from matplotlib import pyplot

    of = by_part(runs)
    figure, axes = pyplot.subplots(3, 1, figsize=(5.5, 9.5), layout="constrained")
    for number, loss in enumerate(LOSSES):
        color = f"C{number}"
        for kind, line in (("pointwise", "-"), ("averaged", "--")):
            values = [of["bound"][loss, p][kind] for p in PRIORS]
            axes[0].plot(PRIORS, values, line, color=color)
        found = [of["population"][loss, p, "two kinds"] for p in PRIORS_OF_POPULATIONS]
        values = [of_prior["error"] - of_prior["best"] for of_prior in found]
        axes[1].plot(PRIORS_OF_POPULATIONS, values, color=color, label=loss)
        excess = excess_of(of["sample"], "well specified", 10)
        samples = [list(excess[loss, p].values()) for p in PRIORS_OF_SAMPLES]
        axes[2].errorbar(
            PRIORS_OF_SAMPLES,
            [statistics.mean(values) for values in samples],
            [stats.standard_error(values) for values in samples],
            color=color,
            capsize=3,
        )
    axes[0].plot([], [], "-k", label="at one input")
    axes[0].plot([], [], "--k", label="averaged over inputs")
    axes[0].legend()
    axes[0].set(
        title="The promise: the smallest C of a bound",
        ylabel="balanced regret / √(surrogate regret)",
        yscale="log",
    )
    axes[1].set(
        title="When it is real: a linear model that cannot be right", ylabel="balanced regret, %"
    )
    axes[2].set(
        title="What it costs: 40 rare examples, a model that can be right",
        ylabel="balanced regret, %",
    )
    axes[2].set_ylim(bottom=0)
    for panel in axes:
        panel.set(xlabel="prior of the rare class", xscale="log")
        panel.invert_xaxis()
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return {PICTURE: figure}
