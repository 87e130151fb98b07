"""Are the probabilities right, and in another class mix?

What `posterior` answers on CIFAR-10-LT, after each loss: class-wise calibration error and log loss
(nats), as the model is and after `calibrate`, in the class mix of training, with classes equally
frequent, and with the mix of training reversed. One half of the test set, weighted to the mix, is
scored; `calibrate` has the other half, cut to the mix of training as held-out data of a user's
would be. In brackets, the calibration error that right probabilities would have on so many images:
there is no less to be had. `calibrate` does not take the focal loss. Two seeds of 30 epochs.
"""

from benchmarks import training_tables

RESULTS = ("decisions",)


def report(runs):
    conditions = training_tables.tested(training_tables.by_condition(runs))
    return f"""## In a known mix

{training_tables.probabilities(conditions)}

## In a changed mix

Means over five mixes, `counts ** power` with powers 1, 0.5, 0, -0.5 and -1, after `calibrate`. The
posterior is given that mix, or the one that `estimate_priors` finds in images of the mix without
their labels, or still the mix of training. The last column is half the sum of the absolute errors
of the estimate.

{training_tables.changed_mixes(conditions)}"""
