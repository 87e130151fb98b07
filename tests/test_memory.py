"""300 calls of a public function at one size hold no more memory than 30."""

import keras
import pytest
from processes import run

pytestmark = pytest.mark.slow
SCRIPT = """
import gc, sys, warnings
import keras, numpy as np
import keras_balanced as kb
from keras_balanced import datasets, metrics, plots, serving
from matplotlib import pyplot

rng = np.random.default_rng(0)
z, y = rng.normal(size=(64, 10)).astype("float32"), rng.integers(0, 10, 64)
labels, rates = (z[:, :3] > 0).astype("float32"), [0.1, 0.2, 0.3]
counts = 100.0 ** -np.linspace(0, 1, 10)
gla, gca, binary = kb.GLALoss(counts, q=0.3), kb.GCALoss(counts), kb.BinaryGCALoss(rates)
by_costs = kb.Decision(gca, costs=1 - np.eye(10), priors=counts)
model = keras.Sequential([keras.Input((10,)), keras.layers.Rescaling(2.0)])
p = gca.posterior(z, priors=counts)


def counted():
    prior = kb.ClassPrior(10)
    prior.adapt(y)
    return prior(y)


def drawn():
    plots.class_counts(counts + 1)
    plots.confusion_matrix(y, z.argmax(-1))
    plots.reliability_diagram(p, y)
    plots.class_recalls({"a": [0.5, 0.1]})
    pyplot.close("all")


CALLS = {
    "losses": lambda: (gla(y, z), gca(y, z), binary(labels, z[:, :3])),
    "new losses": lambda: kb.GCALoss(counts, q=0.1)(y, z),
    "soft targets": lambda: gca(np.eye(10, dtype="float32")[y], z),
    "gla_loss": lambda: kb.gla_loss(y, z, counts),
    "gca_loss": lambda: kb.gca_loss(y, z, counts),
    "posterior": lambda: (gla.posterior(z), gca.posterior(z), binary.posterior(z[:, :3])),
    "posterior of tensors": lambda: gca.posterior(keras.ops.convert_to_tensor(z)),
    "posterior of a new loss": lambda: kb.GCALoss(counts).posterior(z),
    "Decision": lambda: (kb.Decision(gca)(z), by_costs(z), by_costs.scores(z)),
    "BalancedAccuracy": lambda: kb.BalancedAccuracy(10)(y, z),
    "ClassRecall": lambda: kb.ClassRecall(10)(y, z),
    "GeometricMeanRecall": lambda: kb.GeometricMeanRecall(10)(y, z),
    "MacroF1": lambda: kb.MacroF1(10)(y, z),
    "WorstClassRecall": lambda: kb.WorstClassRecall(10)(y, z),
    "ShotRecall": lambda: kb.ShotRecall([200] * 9 + [5], "few")(y, z),
    "BinaryBalancedAccuracy": lambda: kb.BinaryBalancedAccuracy(num_labels=3)(labels, z[:, :3]),
    "ClassCalibrationError": lambda: kb.ClassCalibrationError(10)(y, p),
    "ClassPrior": counted,
    "LogitAdjustment": lambda: kb.LogitAdjustment(counts)(z),
    "calibrate": lambda: serving.calibrate(model, gla, (z, y)),
    "estimate_priors": lambda: serving.estimate_priors(p, counts),
    "estimate_priors, validation": lambda: serving.estimate_priors(p, counts, validation=(p, y)),
    "find_threshold": lambda: serving.find_threshold(p[:, 0], max_alert_rate=0.5),
    "shot_groups": lambda: metrics.shot_groups([200, 50, 5]),
    "long_tail": lambda: datasets.long_tail(z, np.arange(64) % 2, imbalance_ratio=4),
    "plots": drawn,
}


def held():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20


y[:10] = np.arange(10)
for name, call in CALLS.items():
    for _ in range(30):
        call()
    before = held()
    for _ in range(270):
        call()
    print(f"grew by {held() - before:.1f} MB: {name}", flush=True)
"""


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch compiles nothing")
def test_calls_at_one_size_hold_no_more_memory():
    backend = keras.backend.backend()
    output = run("-c", SCRIPT, KERAS_BACKEND=backend, MPLBACKEND="agg")
    grown = [line.split()[2:] for line in output.splitlines() if line.startswith("grew by")]
    assert len(grown) >= 25, output
    assert [line for line in grown if float(line[0]) > 10] == []
