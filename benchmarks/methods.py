"""The methods that are trained: a loss of ours or of other papers, and what else it changes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks import baselines
from keras_balanced import BalancedLoss, GCALoss, GLALoss, Surrogate


class Method(NamedTuple):
    """A loss `counts -> loss`, and what else a method changes in a training."""

    loss: Callable
    then: Callable | None = None
    oversample: bool = False
    cosine_head: bool = False
    rate: float = 1.0  # Times the learning rate of the recipe.


# The settings here, in full: a method that has results must not follow a default of the package.
def gla(q=0.0, tau=None):
    return lambda counts: GLALoss(counts, q, tau)


def gca(q=0.0, margins="cube_root", consistent=False):
    return lambda counts: GCALoss(counts, q, margins, consistent)


def gca_counts(q=0.0, consistent=False):
    """GCA with larger margins for larger classes."""
    return lambda counts: GCALoss(counts, q, np.cbrt(counts), consistent)


def gca_scale(scale):
    """GCA with margins of another mean than 1."""

    def loss(counts):
        of = gca()(counts).surrogate
        return BalancedLoss(Surrogate(counts, margins=scale * of.margins, weights=of.weights))

    return loss


def gla_margins(**arguments):
    return lambda counts: baselines.margin_gla(counts, **arguments)


def vs(counts):
    # The paper's, for exponential tails of CIFAR-10 and CIFAR-100.
    gamma, tau = (0.15, 1.25) if len(counts) == 10 else (0.05, 0.75)
    return baselines.VSLoss(counts, gamma, tau)


def ldam_reweighted(counts):
    return baselines.LDAMLoss(counts, baselines.effective_weights(counts))


def immax(counts):
    return GCALoss(counts, 0.0, "cube_root", consistent=False, target_priors=counts)


CE = gla(tau=0)
SCALES = (0.1, 0.3, 1, 3)
METHODS = {
    # Of other papers.
    "ce": Method(CE),
    "weighted": Method(gca(margins=None)),
    "effective": Method(baselines.effective_number),
    "focal": Method(baselines.FocalLoss),
    "gce": Method(gla(q=0.7, tau=0)),
    "oversampled": Method(lambda counts: CE(np.ones(len(counts))), oversample=True),
    "immax": Method(immax),
    "logit_adjusted": Method(gla()),
    "vs": Method(vs),
    "ldam": Method(baselines.LDAMLoss, cosine_head=True),
    "ldam_drw": Method(baselines.LDAMLoss, then=ldam_reweighted, cosine_head=True),
    # Cross-entropy first.
    "ce_drw": Method(CE, then=baselines.effective_number),
    "logit_adjusted_deferred": Method(CE, then=gla()),
    "gca_deferred": Method(CE, then=gca()),
    "gca_consistent_deferred": Method(CE, then=gca(consistent=True)),
    # GLA: q and tau.
    **{f"gla_q{q}": Method(gla(q=q)) for q in (0.1, 0.2, 0.3, 0.5, 0.7)},
    **{f"gla_q{q}_tau1": Method(gla(q=q, tau=1)) for q in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)},
    "gla_q0_then_q0.3": Method(gla(), then=gla(q=0.3)),
    # GCA: margins and q.
    "gca": Method(gca()),
    "gca_q0.2": Method(gca(q=0.2)),
    "gca_consistent": Method(gca(consistent=True)),
    **{f"gca_consistent_q{q}": Method(gca(q=q, consistent=True)) for q in (0.2, 0.4)},
    "gca_consistent_q0_then_q0.3": Method(gca(consistent=True), then=gca(q=0.3, consistent=True)),
    **{f"gca_none_q{q}": Method(gca(q=q, margins=None)) for q in (0.2, 0.4, 0.7)},
    "gca_counts": Method(gca_counts()),
    "gca_counts_consistent": Method(gca_counts(consistent=True)),
    "gca_counts_consistent_q0.2": Method(gca_counts(q=0.2, consistent=True)),
    # The margins' scale divides the logits, which acts on the learning rate as well.
    **{f"gca_scale{s}": Method(gca_scale(s)) for s in SCALES},
    **{f"gca_scale{s}_rate_times": Method(gca_scale(s), rate=s) for s in SCALES if s != 1},
    **{f"gca_scale{s}_rate_over": Method(gca_scale(s), rate=1 / s) for s in SCALES if s != 1},
    # GLA with the margins of GCA.
    "gla_margins": Method(gla_margins()),
    "gla_margins_consistent": Method(gla_margins(consistent=True)),
    "gla_margins_consistent_q0.2": Method(gla_margins(q=0.2, consistent=True)),
}


def first_phase(name):
    """Returns the first method that trains as this one does until the second phase."""
    wanted = METHODS[name]._replace(then=None)
    return next(other for other, of in METHODS.items() if of._replace(then=None) == wanted)
