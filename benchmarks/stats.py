"""The statistics and the tables that the reports share."""

import math
import statistics


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


def table(columns, rows):
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (columns, *rows)]
    lines.insert(1, "|---" * len(columns) + "|")
    return "\n".join(lines)
