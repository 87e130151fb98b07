"""And outside image classification?

Small networks on generated data, 5 and 10 epochs, 3 seeds, all in percent: rare events in a table
(40,000 examples to train with, 200,000 to test), and pixels of a class that has 0.6% of them.
`post-hoc` is cross-entropy decided by the posterior, and GCA decides by its posterior too. The
numbers are those of `examples/tabular.py` and `examples/segmentation.py`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import stats, store

ALPHAS = (0, 0.25, 0.5, 0.75, 1)


def cases():
    for example in ("tabular", "segmentation"):
        yield {"example": example}


def measure(example):
    """Runs an example as a user does; returns what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "results.json"
        command = [sys.executable, f"examples/{example}.py", "--output", str(output)]
        subprocess.run(command, cwd=store.ROOT, check=True)
        return json.loads(output.read_text())


def report(runs):
    found = {run["settings"]["example"]: run["result"] for run in runs}
    sections = []
    if tables := found.get("tabular"):
        for ratio, of_ways in tables["ways"].items():
            title = f"## One positive to {float(ratio):g} negatives"
            sections.append(f"{title}\n\n{ways(of_ways)}\n\n{trade_off(tables, ratio)}")
    if pixels := found.get("segmentation"):
        sections.append(f"## Rare pixels\n\n{ways(pixels['ways'])}")
    return "\n\n".join(sections)


def ways(found):
    columns = list(next(iter(found.values()))[0])
    rows = [
        [name, *(stats.mean_and_error(100 * run[column] for run in of) for column in columns)]
        for name, of in found.items()
    ]
    return stats.table(["", *columns], rows)


def trade_off(tables, ratio):
    columns = ("balanced accuracy", "accuracy")
    rows = [
        [f"{alpha:g}", *(f"{100 * point[column]:.1f}" for column in columns)]
        for alpha, point in zip(ALPHAS, tables["trade_offs"][ratio], strict=True)
    ]
    budget = tables["budgets"][ratio]
    return f"""GLA with `target_priors = priors ** alpha`, one seed:

{stats.table(["alpha", *columns], rows)}

With as many alerts as there are positives, the threshold chosen on held-out data, GLA finds
{budget["recall"]:.2f} of the positives (precision {budget["precision"]:.2f}), first seed."""
