"""The statistics and the tables that the reports share."""

import math
import statistics
import warnings

import numpy as np


def standard_error(values):
    values = list(values)
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def mean_and_error(values, digits=1, sign=""):
    """Returns "mean ± standard error", the mean alone of one value, and nothing of none."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {standard_error(values):.{digits}f}" if len(values) > 1 else mean


def difference(values, base, digits=1):
    """Returns the mean difference over the keys (seeds, say) that both dictionaries have."""
    shared = sorted(values.keys() & base.keys())
    return mean_and_error([values[key] - base[key] for key in shared], digits, sign="+")


def ranks(values, lower=False):
    """Returns the ranks in each row, 1 for the best; ties share theirs."""
    from scipy import stats

    return stats.rankdata(values if lower else -values, axis=1)


def holm(p):
    """Returns p-values adjusted for as many tests, by Holm's method."""
    p = np.asarray(p, "float64")
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1.0)
    return result


def wilcoxon(a, b):
    """Returns the p-value of Wilcoxon's signed-rank test; differences of 0 count half to each."""
    from scipy import stats

    difference = np.round(np.asarray(a) - np.asarray(b), 9)
    if not difference.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Few sources with ties: an approximation.
        return float(stats.wilcoxon(difference, zero_method="zsplit").pvalue)


def friedman(by_source):
    """Returns the p-value that all columns are equal."""
    from scipy import stats

    return stats.friedmanchisquare(*by_source.T).pvalue


def cliques(order, p, level=0.05):
    """Returns the longest runs of rows, in the order of their ranks, of which no two differ."""
    runs = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and all(
            p[order[last + 1]][order[i]] >= level for i in range(first, last + 1)
        ):
            last += 1
        if last > first and not (runs and runs[-1][1] >= last):
            runs.append((first, last))
    return runs


def pairwise(by_source):
    """Returns the p-values `(rows, rows)` of all pairs, adjusted by Holm's method."""
    pairs = [(i, j) for i in range(by_source.shape[1]) for j in range(i)]
    adjusted = holm([wilcoxon(by_source[:, i], by_source[:, j]) for i, j in pairs])
    p = np.ones((by_source.shape[1],) * 2)
    for (i, j), value in zip(pairs, adjusted, strict=True):
        p[i][j] = p[j][i] = value
    return p


def p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(values, sign=""):
    """Returns mean and standard error over the sources."""
    return mean_and_error((100 * np.asarray(values)).tolist(), sign=sign)


def compared(a, b, p):
    """Returns the cells of a comparison over the sources: difference, sources, p."""
    difference = np.round(np.asarray(a) - np.asarray(b), 9)
    sources = f"{(difference > 0).sum()} / {(difference < 0).sum()}"
    return [percent(difference, "+"), sources, p_value(p)]


def against(by_source, base):
    """Returns the cells of each row's comparison with the row `base`."""
    others = [i for i in range(by_source.shape[1]) if i != base]
    p = holm([wilcoxon(by_source[:, i], by_source[:, base]) for i in others])
    cells = {base: ["", "", ""]}
    for i, p_of_row in zip(others, p, strict=True):
        cells[i] = compared(by_source[:, i], by_source[:, base], p_of_row)
    return cells


def table(columns, rows):
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (columns, *rows)]
    lines.insert(1, "|---" * len(columns) + "|")
    return "\n".join(lines)
