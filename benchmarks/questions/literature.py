"""Does the recipe of the literature give its numbers?

ResNet-32 on 32x32 images, 200 epochs, long tails of ratio 100, in `mixed_bfloat16` (one training in
float32). A queue trains loss by loss, for days, beside all other work: `make long`, see
`benchmarks/long_trainings.py`. Each result is appended to `benchmarks/results/long.jsonl` as it
ends; this page then takes `python -m benchmarks report literature`, and a commit of both.

Two trainings at a time, one thread each, with TensorFlow's fused batch normalization
(`benchmarks/fused.py`, the same up to rounding). One that was killed and went on ends with the same
weights, bit for bit, as one that was not, on the same processor with as many threads.

Published, on the balanced test set: cross-entropy 71.25 and 38.06 on
CIFAR-10-LT and CIFAR-100-LT (wang22ti/DDC); after post-hoc adjustment 77.32 and 44.07, logit
adjustment 77.89 and 44.06 (google-research/logit_adjustment, another network).
"""

from benchmarks import long_trainings, training_tables
from benchmarks.training import measure

__all__ = ["cases", "measure", "report"]
RESULTS = ("long",)


def cases():
    for row in long_trainings.ROWS:
        yield row.settings()


def report(runs):
    if not runs:
        return "No training has ended yet."
    conditions = training_tables.by_condition(runs)
    tested = training_tables.tested(conditions)
    return f"""## Summary

{training_tables.summary(tested)}

{training_tables.in_full(conditions)}"""
