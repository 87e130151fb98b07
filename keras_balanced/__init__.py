"""Keras 3 losses, priors and metrics for classes that are not balanced."""

import importlib
from typing import TYPE_CHECKING

from keras_balanced.decisions import Decision
from keras_balanced.functional import gca_loss, gla_loss
from keras_balanced.layers import ClassPrior, LogitAdjustment
from keras_balanced.losses import BalancedLoss, BinaryGCALoss, BinaryGLALoss, GCALoss, GLALoss
from keras_balanced.metrics import (
    BalancedAccuracy,
    BinaryBalancedAccuracy,
    ClassCalibrationError,
    ClassRecall,
    GeometricMeanRecall,
    MacroF1,
    ShotRecall,
    WorstClassRecall,
)
from keras_balanced.surrogates import Surrogate

if TYPE_CHECKING:
    from keras_balanced import callbacks, datasets, models, plots, serving, tuning  # noqa: F401

__version__ = "0.1.0"

__all__ = [
    "BalancedAccuracy",
    "BalancedLoss",
    "BinaryBalancedAccuracy",
    "BinaryGCALoss",
    "BinaryGLALoss",
    "ClassCalibrationError",
    "ClassPrior",
    "ClassRecall",
    "Decision",
    "GCALoss",
    "GLALoss",
    "GeometricMeanRecall",
    "LogitAdjustment",
    "MacroF1",
    "ShotRecall",
    "Surrogate",
    "WorstClassRecall",
    "gca_loss",
    "gla_loss",
]

_ON_DEMAND = ("callbacks", "datasets", "models", "plots", "serving", "tuning")


def __getattr__(name: str):
    if name in _ON_DEMAND:
        return importlib.import_module(f"keras_balanced.{name}")
    raise AttributeError(f"module 'keras_balanced' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_ON_DEMAND]
