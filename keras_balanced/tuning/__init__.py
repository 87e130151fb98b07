"""Searches for the loss, its q, tau and margins: with KerasTuner, or on one trained model."""

try:
    import keras_tuner  # noqa: F401
except ImportError as error:
    raise ImportError('Tuning needs KerasTuner: pip install "keras-balanced[tuner]"') from error

from keras_balanced.tuning.folds import CrossValidation
from keras_balanced.tuning.heads import FastSearch, fast_search
from keras_balanced.tuning.hypermodel import BalancedHyperModel
from keras_balanced.tuning.oracle import GridSearch, GridSearchOracle

__all__ = [
    "BalancedHyperModel",
    "CrossValidation",
    "FastSearch",
    "GridSearch",
    "GridSearchOracle",
    "fast_search",
]
