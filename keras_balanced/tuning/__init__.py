"""Searches for the loss, its q, tau and margins, with KerasTuner or Optuna."""

import importlib
from typing import TYPE_CHECKING

from keras_balanced.tuning.grid import loss_grid, suggest_loss

if TYPE_CHECKING:
    from keras_balanced.tuning.folds import CrossValidation
    from keras_balanced.tuning.hypermodel import BalancedHyperModel
    from keras_balanced.tuning.oracle import GridSearch, GridSearchOracle, save_atomically

__all__ = [
    "BalancedHyperModel",
    "CrossValidation",
    "GridSearch",
    "GridSearchOracle",
    "loss_grid",
    "save_atomically",
    "suggest_loss",
]

# The rooms of the names that need KerasTuner.
_MODULES = {
    "BalancedHyperModel": "hypermodel",
    "CrossValidation": "folds",
    "GridSearch": "oracle",
    "GridSearchOracle": "oracle",
    "save_atomically": "oracle",
}


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import keras_tuner  # noqa: F401
    except ImportError as error:
        raise ImportError('Tuning needs KerasTuner: pip install "keras-balanced[tuner]"') from error
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
