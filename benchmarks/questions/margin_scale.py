"""What does the scale of the margins do?

The margins of GCA with a mean of 0.1, 0.3, 1 (`gca`) and 3 on CIFAR-10-LT. To divide the logits by
a number also scales their gradient, so the learning rate is 0.1, or 0.1 divided by the scale
(`_rate_over`), or times it (`_rate_times`). One seed of 30 epochs, which moves by about a point.
"""

from benchmarks import training, training_tables
from benchmarks.methods import METHODS
from benchmarks.training import CIFAR, measure

__all__ = ["cases", "measure", "report"]


def cases():
    # A scale of 1 is `gca`; at 0.1 only the rate of the recipe was tried.
    skipped = ("gca_scale1", "gca_scale0.1_rate_times", "gca_scale0.1_rate_over")
    losses = [name for name in METHODS if name.startswith("gca_scale") and name not in skipped]
    short = CIFAR._replace(epochs=30)
    yield from training.grid(short, ["gca", *losses], (0,), dataset="cifar10", ratio=100.0)


def report(runs):
    return training_tables.summary(training_tables.by_condition(runs))
