"""Is it the training, or the decision?

Each loss with a decision of its own: the argmax of `logits - tau log prior`, with the `tau` from -1
to 2 that is best on 20% of the training data, held out (of several that are as good the middle
one); the model is then trained on all of it.

The hold-out of digits has one image of the rarest class, so the chosen offset is noisy. Four seeds
of digits, two of CIFAR.
"""

from benchmarks import training, training_tables
from benchmarks.training import CIFAR, DIGITS, HELD_OUT, measure

__all__ = ["cases", "measure", "report"]


def cases():
    digits, cifar = {"dataset": "digits", "ratio": 50.0}, {"dataset": "cifar10", "ratio": 100.0}
    losses = ("ce", "weighted", "logit_adjusted", "gla_q0.3", "gca", "ldam_drw")
    for held_out in (HELD_OUT, 0.0):
        yield from training.grid(DIGITS, losses, range(4), **digits, held_out=held_out)
    short = CIFAR._replace(epochs=30)
    losses = ("ce", "weighted", "logit_adjusted", "gca", "vs", "ldam_drw")
    yield from training.grid(short, losses, range(2), **cifar, held_out=HELD_OUT)
    losses += ("focal", "gla_q0.2", "gla_q0.7_tau1")  # For their probabilities.
    yield from training.grid(short, losses, range(2), **cifar)


def report(runs):
    return training_tables.by_offsets(training_tables.by_condition(runs))
