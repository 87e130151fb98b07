"""When does q pay?

Training labels are wrong with the given rate: any other class (`uniform`), or the next one
(`pair`). Priors are counted on the wrong labels, as a user would; test labels are right. Small
residual networks as in [the question of the losses](accuracy.md); `gca_none_q0.7` are class weights
with q = 0.7, `gce` is generalized cross-entropy with q = 0.7.

What to hold against it: eight seeds on digits, four with wrong labels in the head or tail and with
hold-outs, two with pair noise; all draws are of the same 1,797 images, and the networks fit wrong
labels too. On CIFAR-10 three seeds, on CIFAR-100 one. Trainings on fewer than 5,000 images of the
largest class are from before probabilities were scored.
"""

from benchmarks import training, training_tables
from benchmarks.training import CIFAR, DIGITS, HELD_OUT, measure

__all__ = ["cases", "measure", "report"]
TAU1 = [f"gla_q{q}_tau1" for q in (0.3, 0.5, 0.7, 0.9)]
OTHERS = ("gca_none_q0.7", "gca", "weighted", "gce", "focal")
CANDIDATES = ("logit_adjusted", *TAU1[1:])
PAIR = ("logit_adjusted", "gla_q0.7_tau1")


def cases():
    uniform = ("uniform:0.2", "uniform:0.4")
    losses = ("ce", "logit_adjusted", *TAU1)
    for ratio, more, with_noise in (
        (1.0, ("gca",), ()),
        (10.0, (), (*OTHERS, "gla_q0.3", "gla_q0.7")),
        (50.0, (), OTHERS),
    ):
        clean = {"dataset": "digits", "ratio": ratio}
        yield from training.grid(DIGITS, losses + more, range(8), **clean)
        for noise in uniform:
            of = (*losses, *more, *with_noise)
            yield from training.grid(DIGITS, of, range(8), **clean, label_noise=noise)
    digits = {"dataset": "digits", "ratio": 10.0}
    for noise in ("pair:0.2", "pair:0.4"):
        yield from training.grid(DIGITS, PAIR, range(2), **digits, label_noise=noise)
    for noise in uniform:
        held_out = {"label_noise": noise, "held_out": HELD_OUT}
        yield from training.grid(DIGITS, CANDIDATES, range(4), **digits, **held_out)
    for noise in ("to_tail:0.1", "to_tail:0.2", "to_head:0.36", "uniform:0.08"):
        losses = ("ce", *CANDIDATES, "gca")
        yield from training.grid(DIGITS, losses, range(4), **digits, label_noise=noise)
    yield from of_cifar()


def of_cifar():
    cifar, noise = {"dataset": "cifar10", "ratio": 10.0}, {"label_noise": "uniform:0.4"}
    for epochs in (30, 100):
        for n_max in (400, 1250):
            recipe = CIFAR._replace(epochs=epochs)
            yield from training.grid(recipe, PAIR, range(3), **cifar, **noise, n_max=n_max)
    yield from training.grid(CIFAR, PAIR, range(3), **cifar, **noise)
    short = CIFAR._replace(epochs=30)
    losses = (*PAIR, "gla_q0.3_tau1", "gla_q0.9_tau1", "gca")
    for of_noise in ({"label_noise": "uniform:0.2"}, noise):
        yield from training.grid(short, losses, range(3), **cifar, **of_noise)
    yield from training.grid(short, PAIR, (0,), dataset="cifar100", ratio=100.0, **noise)


def report(runs):
    conditions = training_tables.by_condition(runs)
    tested = training_tables.tested(conditions)

    def some(dataset, halves=False):
        return {
            condition: of
            for condition, of in tested.items()
            if condition.dataset == dataset and halves == in_halves(condition)
        }

    digits, halves, cifar10 = some("digits"), some("digits", halves=True), some("cifar10")
    return f"""## Digits

{training_tables.summary(digits)}

{training_tables.differences(digits)}

## q chosen on a hold-out

On 20% of the training data, whose labels are as wrong, each seed by itself:

{training_tables.choices(conditions, CANDIDATES)}

## In the head or in the tail

`to_tail`: some images of the five most frequent classes are labelled as one of the five rarest;
with 10% of them, over a quarter of what is labelled rare is wrong, with 20% two fifths. `to_head`
is the other way round. Except in the column of 20%, 8% of all labels are wrong.

{training_tables.summary(halves)}

{training_tables.differences(halves)}

## CIFAR-10-LT

{training_tables.summary(cifar10)}

## CIFAR-100-LT

{training_tables.summary(some("cifar100"))}

## Is it an offset?

Logit adjustment by the argmax of `logits - tau log prior` with the `tau` from -1 to 2 that is best
for the mean of the seeds on the test set, what nobody can know before; and what GLA has more by its
plain logits.

{training_tables.hindsight(tested)}

## The probabilities

Of the trainings on 5,000 images of the largest class, measured as [without wrong
labels](probabilities.md); `calibrate` has held-out data whose labels are as wrong as those of
training.

{training_tables.probabilities(cifar10)}

{training_tables.changed_mixes(cifar10)}"""


def in_halves(condition):
    """Returns whether it is one of those that compare wrong labels of the head and the tail."""
    return condition.label_noise.startswith("to_") or condition.label_noise == "uniform:0.08"
