"""Which loss is best on a long tail?

Small residual networks (ResNet-8) from scratch, the same recipe for every loss, on digits (8x8) and
on CIFAR-10-LT and CIFAR-100-LT shrunk to 16x16.

`logits` and `posterior` are balanced accuracy on the test set in percent, mean ± standard error
over the seeds, by either decision; `ce, by posterior` is post-hoc logit adjustment, and `gca`,
which has margins, is meant to decide so too. Differences are paired by seed. `train` is balanced
accuracy on the train set, `worst class` the lowest recall. `gca` and `gla_margins` are the defaults
of `GCALoss` and GLA with the same margins; `_consistent` has `consistent=True`; `_counts` has
margins `counts ** (1/3)`; `_deferred` and `_drw` follow cross-entropy (LDAM in `ldam_drw`) in the
last fifth of the epochs; `_tau1` is `tau=1` in place of `1 / (1 - q)`; `effective` are class
weights by the effective number of examples, `ce_drw` the same in the last fifth.

What to hold against these numbers:

* **Digits were the development set**: 38 settings were screened there with the test scores in
  view, so the best of them is flattered. CIFAR shows whether it holds.
* **One recipe for all.** Its L2 was the better of two on a hold-out of CIFAR-10's tail for `ce`,
  `logit_adjusted` and `gca`, but not for all losses (the tables of hold-outs; one seed, 50 epochs).
  The losses of other papers have the constants of those papers, made for CIFAR at ratio 100, and
  not their recipes. No loss had a learning rate of its own.
* **The errors are those of the seeds.** Three seeds (CIFAR) make a 95% interval of 4.3 errors to
  either side, five 2.8, eight 2.4. The test set, the same for every seed, adds about 1.6 points on
  digits (500 images) and 0.5 on CIFAR to each accuracy. On CIFAR-100 all seeds have one subset.
* GCA on CIFAR-100 was trained before its margins, 85 different ones there, were rounded to levels,
  which moves each by at most 2.5%.
* The default of `consistent` was set by the hold-outs and by digits.
* A seed gives the same numbers again on the same processor, not on another; the rows are from two
  machines. Two-phase trainings on digits at 10 and 50, and `gca_consistent_deferred` and `ldam_drw`
  on CIFAR-10 at seed 0, were made before their second shuffle was seeded and do not repeat.
"""

from benchmarks import training, training_tables
from benchmarks.methods import METHODS
from benchmarks.training import CIFAR, DIGITS, HELD_OUT, measure

__all__ = ["cases", "measure", "report"]
# These are asked about where labels are wrong, and the scales of margins for themselves.
ELSEWHERE = ("gla_q0.7", "gla_q0.7_tau1", "gla_q0.9_tau1", "gca_none_q0.7")
SCREENED = [name for name in METHODS if not name.startswith((*ELSEWHERE, "gca_scale"))]
MANY = ("ce", "weighted", "ldam_drw", "logit_adjusted", "gla_q0.2", "gca", "gca_consistent")
OF_CIFAR = ("effective", "focal", "vs", "ce_drw", "gla_q0_then_q0.3", "gla_margins", "gca_deferred")
HELD_OUT_LOSSES = ("focal", "vs", "gla_margins", *MANY)


def cases():
    digits, cifar = {"dataset": "digits"}, {"dataset": "cifar10", "ratio": 100.0}
    yield from training.grid(DIGITS, SCREENED, range(8), **digits, ratio=50.0)
    more = ("focal", "vs", "gla_q0.2_tau1", "gca_consistent_deferred")
    more += ("gla_margins", "gla_margins_consistent")
    yield from training.grid(DIGITS, MANY + more, range(5), **digits, ratio=10.0)
    losses = (*MANY, "gca_consistent_deferred")
    yield from training.grid(DIGITS, losses, range(5), **digits, ratio=100.0)
    yield from training.grid(DIGITS, MANY, range(5), **digits, ratio=50.0, profile="step")
    losses = (*MANY, *OF_CIFAR, "gca_consistent_deferred")
    yield from training.grid(CIFAR, losses, range(3), **cifar)
    losses = ("ce", "weighted", "logit_adjusted", "gca")
    yield from training.grid(CIFAR, losses, range(3), dataset="cifar100", ratio=100.0)
    yield from training.grid(CIFAR._replace(epochs=200), ("ce",), range(2), **cifar)
    # The choice of the L2, and of `consistent`.
    for l2 in (1e-4, 5e-4):
        recipe = CIFAR._replace(epochs=50)
        yield from training.grid(recipe, HELD_OUT_LOSSES, (0,), **cifar, l2=l2, held_out=HELD_OUT)
    yield from training.grid(CIFAR, ("ce", "gca_consistent"), (0,), **cifar, held_out=HELD_OUT)


def report(runs):
    conditions = training_tables.by_condition(runs)
    tested = training_tables.tested(conditions)
    # Of cross-entropy alone, to see that it has converged.
    several = {condition: of for condition, of in tested.items() if len(of) > 1}
    return f"""## Summary

{training_tables.summary(several)}

## Differences

{training_tables.differences(several)}

{training_tables.in_full(conditions)}"""
