"""Does the recipe of the literature give its numbers?

ResNet-32 on 32x32 images, 200 epochs, long tails of ratio 100, in `mixed_bfloat16` (one training in
float32). A queue trains loss by loss, for days, beside all other work: `make long`, see
`benchmarks/long_trainings.py`. Each result is appended to `benchmarks/results/long.jsonl` as it
ends; this page then takes `python -m benchmarks report literature`, and a commit of both.

Two trainings at a time, one thread each, with TensorFlow's fused batch normalization
(`benchmarks/fused.py`, the same up to rounding). One that was killed and went on ends with the same
weights, bit for bit, as one that was not, on the same processor with as many threads.
"""

import statistics

from benchmarks import long_trainings, stats, store, training_tables
from benchmarks.training import measure
from benchmarks.training_tables import BY_POSTERIOR

__all__ = ["cases", "measure", "report"]
RESULTS = ("long",)
DDC = "wang22ti/DDC"
MENON = "google-research/logit_adjustment"
TRICKS = "zhangyongshun/BagofTricks-LT"
# Accuracies on the balanced test set in percent, and who has published them.
PUBLISHED = {
    "cifar10": {
        "ce": [(71.25, DDC), (71.36, MENON)],
        "ce" + BY_POSTERIOR: [(77.32, MENON)],
        "logit_adjusted": [(77.89, MENON), (77.54, TRICKS)],
        "ldam_drw": [(77.97, DDC)],
        "vs": [(80.29, DDC)],
    },
    "cifar100": {
        "ce": [(38.06, DDC), (39.87, MENON)],
        "ce" + BY_POSTERIOR: [(44.07, MENON)],
        "logit_adjusted": [(44.06, MENON), (42.99, TRICKS)],
    },
}
STRENGTHS = ("0.0", "0.5", "1.0", "1.5", "2.0")
CLOSE = 3.0  # Points; the seed of the subset alone moves CIFAR-10 by 1.5 to 3.


def cases():
    for row in long_trainings.ROWS:
        yield row.settings()


def report(runs):
    sections = ["No training has ended yet."]
    if runs:
        conditions = training_tables.by_condition(runs)
        tested = training_tables.tested(conditions)
        sections = [
            f"## Beside the published numbers\n\n{beside_published(tested)}",
            f"## By the strength of an adjustment afterwards\n\n{by_strength(tested)}",
            f"## Summary\n\n{training_tables.summary(tested)}",
            training_tables.in_full(conditions),
        ]
    if text := still_to_run(runs):
        sections.append(text)
    return "\n\n".join(sections)


def beside_published(tested):
    """Returns a row for each published number of what has been trained."""
    rows = []
    for condition, of_losses in tested.items():
        for loss, numbers in PUBLISHED.get(condition.dataset, {}).items():
            ours = training_tables.decided(of_losses, loss)
            for number, source in numbers if ours else ():
                difference = statistics.mean(ours.values()) - number
                row = [condition.title, loss, f"{number:.2f}", source]
                row += [stats.mean_and_error(ours.values()), f"{difference:+.1f}"]
                rows.append([*row, "yes" if abs(difference) <= CLOSE else "no"])
    columns = ["condition", "loss", "published", "by", "here", "difference"]
    return f"""Published numbers are means of several seeds and of other subsets. The network of
{MENON} is not He et al.'s ResNet-32, and trains about six times as long.

{stats.table([*columns, f"within {CLOSE:g} points"], rows)}"""


def by_strength(tested):
    """Returns the balanced accuracy of `logits - tau log prior` by tau."""
    rows = []
    for condition, of_losses in tested.items():
        for (loss, _), of_seeds in of_losses.items():
            curves = [run["offsets"] for run in of_seeds.values()]
            means = [100 * statistics.mean(curve[tau] for curve in curves) for tau in STRENGTHS]
            rows.append([condition.title, loss, *(f"{mean:.1f}" for mean in means)])
    return f"""Seen on the test set: which one is best has to be found on held-out data.

{stats.table(["condition", "loss", *(f"tau {tau}" for tau in STRENGTHS)], rows)}"""


def still_to_run(runs):
    """Returns the rows of the queue that have no result, and the hours that they take."""
    done = {store.key(run["settings"]) for run in runs}
    left = [row for row in long_trainings.ROWS if store.key(row.settings()) not in done]
    if not left:
        return ""
    speeds = [run["result"]["images_per_second"] for run in runs]
    speed = statistics.median(speeds) if speeds else long_trainings.NOMINAL_SPEED
    rows = [(row.title(), f"{long_trainings.hours(row, speed):.1f}") for row in left]
    return f"""## Still to be trained

In this order, with the hours of each at {speed:.0f} images a second; a second phase goes on from
the state of its first.

{stats.table(["training", "hours"], rows)}"""
