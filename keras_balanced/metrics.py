"""Streaming metrics that count every class the same.

Each keeps sums for each class and reads its result off them: nothing is averaged over batches,
and replicas merge by addition.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, targets, validation
from keras_balanced.decisions import Decision
from keras_balanced.losses import TEMPERATURES, BalancedLoss
from keras_balanced.sums import ClassMetric, RecallMetric, check_size, sums_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix, HasCounts

__all__ = [
    "BalancedAccuracy",
    "BinaryBalancedAccuracy",
    "ClassCalibrationError",
    "ClassRecall",
    "GeometricMeanRecall",
    "MacroF1",
    "ShotRecall",
    "WorstClassRecall",
    "shot_groups",
]


def __dir__() -> list[str]:
    return __all__


def warn_of_other_decisions(
    model: keras.Model, decision: Decision, output_name: str | None = None, given: bool = True
) -> None:
    """Warns where a compiled metric of recalls predicts other classes than a decision.

    Without `given` only of metrics that were given no decision.
    """
    others = [
        metric.name
        for metric in backends.compiled_metrics(model, output_name)
        if isinstance(metric, RecallMetric)
        and (given or metric.decision is None)
        and not metric.decides_as(decision)
    ]
    if others:
        warnings.warn(
            f"The compiled metrics {others} predict other classes than the decision, which is for "
            f"{decision}: give all of them the same `decision`; a loss stands for its default one",
            stacklevel=3,
        )


@keras.saving.register_keras_serializable(package="keras_balanced")
class BalancedAccuracy(RecallMetric):
    """Computes the balanced accuracy: the mean recall over the classes.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    result    = mean of recall over the classes seen
    ```

    As in `sklearn.metrics.balanced_accuracy_score`, classes without an example are left out. With
    no example at all the result is 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = BalancedAccuracy(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], "float32")
    >>> print(float(metric(np.array([0, 0, 0, 1]), logits)))
    0.5
    """

    _default_name = "balanced_accuracy"

    def result(self) -> Any:
        return self._mean(self.recalls())


@keras.saving.register_keras_serializable(package="keras_balanced")
class ClassRecall(RecallMetric):
    """Computes the recall of one class, or of every class.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    ```

    As in `sklearn.metrics.recall_score`, a class without an example has recall 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        class_id: The class whose recall is wanted. `None` (default) gives all, as `(K,)`.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`, or an unknown class.

    Example:

    >>> import numpy as np
    >>> metric = ClassRecall(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], "float32")
    >>> print(keras.ops.convert_to_numpy(metric(np.array([0, 0, 0, 1]), logits)).round(2))
    [0.67 0.  ]
    """

    def __init__(
        self,
        num_classes: int,
        class_id: int | None = None,
        *,
        decision: Decision | BalancedLoss | None = None,
        ignore_class: int | Sequence[int] | None = None,
        name: str | None = "class_recall",
        dtype: str | None = None,
    ):
        super().__init__(
            num_classes, decision=decision, ignore_class=ignore_class, name=name, dtype=dtype
        )
        if class_id is not None:
            class_id = validation.check_integer("class_id", class_id, low=0, high=num_classes)
        self.class_id = class_id

    def result(self) -> Any:
        recalls = self.recalls()
        return recalls if self.class_id is None else recalls[self.class_id]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "class_id": self.class_id}


@keras.saving.register_keras_serializable(package="keras_balanced")
class WorstClassRecall(RecallMetric):
    """Computes the recall of the worst class.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    result    = minimum of recall over the classes seen
    ```

    With no example at all the result is 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = WorstClassRecall(num_classes=3)
    >>> logits = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], "float32")
    >>> print(float(metric(np.array([0, 1, 1]), logits)))
    0.5
    """

    _default_name = "worst_class_recall"

    def result(self) -> Any:
        present, recalls = ops.not_equal(self.total, 0), self.recalls()
        worst = ops.min(ops.where(present, recalls, ops.ones_like(recalls)))
        return ops.where(ops.any(present), worst, ops.zeros_like(worst))


@keras.saving.register_keras_serializable(package="keras_balanced")
class MacroF1(RecallMetric):
    """Computes the macro-averaged F1 score: the mean of the F1 scores of the classes.

    Formula:

    ```
    f1[k]  = 2 * weight of class k predicted as k / (weight of class k + weight predicted as k)
    result = mean of f1 over the classes seen, as labels or as predictions
    ```

    As `sklearn.metrics.f1_score(average="macro")`. It depends on the class mix of the data, unlike
    the recalls, and the argmax of a balanced loss is not good at it: `serving.find_decision` finds
    the decision that is. With no example at all the result is 0.

    Args:
        num_classes: Number of classes `K`, at least 2.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only. A class that is ignored has no F1 score.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = MacroF1(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [0, 1], [1, 0]], "float32")
    >>> print(f"{float(metric(np.array([0, 0, 1, 1]), logits)):.3f}")
    0.733
    """

    _default_name = "macro_f1"
    _sums = ("correct", "total", "predicted")

    def _count(self, y_true, predicted, weights):
        super()._count(y_true, predicted, weights)
        if len(y_true.shape) > 1:
            weights = weights * ops.sum(y_true, axis=-1)
        self.predicted.assign_add(sums_of(weights, predicted, self.num_classes))

    def result(self) -> Any:
        sizes = self.total + self.predicted
        kept = ~targets.is_ignored(np.arange(self.num_classes), self.ignore_class)
        counted = ops.cast(ops.logical_and(ops.not_equal(sizes, 0), kept), self.dtype)
        scores = ops.divide_no_nan(2.0 * self.correct, sizes)
        return ops.divide_no_nan(ops.sum(scores * counted), ops.sum(counted))


@keras.saving.register_keras_serializable(package="keras_balanced")
class GeometricMeanRecall(RecallMetric):
    """Computes the geometric mean of the recalls of the classes (G-mean).

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    result    = product of recall ** (1 / K') over the K' classes seen
    ```

    One class never predicted right makes it 0. It is `imblearn.metrics.geometric_mean_score` over
    the classes in the labels (which by default counts a class that is only predicted as recall 0).

    Args:
        num_classes: Number of classes `K`, at least 2.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = GeometricMeanRecall(num_classes=2)
    >>> logits = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]], "float32")
    >>> print(f"{float(metric(np.array([0, 0, 0, 1, 1]), logits)):.3f}")
    0.577

    References:
        - [Kubat and Matwin, 1997](https://sci2s.ugr.es/keel/pdf/algorithm/congreso/kubat97addressing.pdf)
    """

    _default_name = "geometric_mean_recall"

    def result(self) -> Any:
        present, recalls = ops.not_equal(self.total, 0), self.recalls()
        logs = ops.log(ops.where(present, recalls, ops.ones_like(recalls)))
        mean = ops.exp(self._mean(logs))
        return ops.where(ops.any(present), mean, ops.zeros_like(mean))


def shot_groups(
    counts: ArrayLike | HasCounts, thresholds: Sequence[float] = (100, 20)
) -> dict[str, np.ndarray]:
    """Returns which classes have many, a medium number of or few training examples.

    Formula:

    ```
    many: counts > thresholds[0];  few: counts < thresholds[1];  medium: between, both included
    ```

    Args:
        counts: Training examples of each class, `(K,)`, or an adapted `ClassPrior`.
        thresholds: Two numbers, the larger first.

    Returns:
        Dict of `"many"`, `"medium"` and `"few"` to `(K,)` arrays of booleans.

    Raises:
        ValueError: for invalid counts or thresholds.

    Example:

    >>> print(shot_groups([500, 100, 5])["few"])
    [False False  True]

    References:
        - [Liu et al., 2019](https://arxiv.org/abs/1904.05160)
    """
    counts = validation.check_counts("counts", counts)
    upper, lower = (validation.check_number("thresholds", value, low=0.0) for value in thresholds)
    if upper < lower:
        raise ValueError(
            f"`thresholds` must have the larger first. Received: thresholds={thresholds}"
        )
    many, few = counts > upper, counts < lower
    return {"many": many, "medium": ~many & ~few, "few": few}


@keras.saving.register_keras_serializable(package="keras_balanced")
class ShotRecall(RecallMetric):
    """Computes the mean recall of the classes with many, a medium number of or few examples.

    Formula:

    ```
    recall[k] = weight of class k predicted as k / weight of class k
    result    = mean of recall over the classes of the group that were seen
    ```

    Args:
        counts: *Training* examples of each class, `(K,)`, or an adapted `ClassPrior`.
        group: `"many"` (more than `thresholds[0]` examples), `"few"` (fewer than
            `thresholds[1]`) or `"medium"` (the rest).
        thresholds: Two numbers of examples, the larger first. Defaults to `(100, 20)`.
        decision: `Decision` by which to predict, or the loss that the model is trained with, which
            stands for its default one. `None` (default) is the argmax of the predictions, which is
            another decision under GCA with margins, or `tau` other than `1 / (1 - q)`.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. For integer `y_true` only.
        name: Optional name of the metric. Defaults to the group and `"_shot_recall"`.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for an unknown group, one without a class, or bad counts or thresholds.

    Example:

    >>> import numpy as np
    >>> metric = ShotRecall(counts=[500, 50, 5], group="few")
    >>> logits = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], "float32")
    >>> print(float(metric(np.array([0, 2, 2]), logits)))
    0.5

    References:
        - [Liu et al., 2019](https://arxiv.org/abs/1904.05160)
    """

    def __init__(
        self,
        counts: ArrayLike | HasCounts,
        group: Literal["many", "medium", "few"],
        thresholds: Sequence[float] = (100, 20),
        *,
        decision: Decision | BalancedLoss | None = None,
        ignore_class: int | Sequence[int] | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ):
        groups = shot_groups(counts, thresholds)
        if group not in groups:
            raise ValueError(
                '`group` must be "many", "medium" or "few". '
                f"Received: group={validation.show(group)}"
            )
        stored = validation.check_counts("counts", counts).tolist()
        if not groups[group].any():
            raise ValueError(
                f"The group {group!r} must have a class. "
                f"Received: counts={validation.show(stored)} and thresholds={thresholds}"
            )
        name = name or f"{group}_shot_recall"
        super().__init__(
            len(stored), decision=decision, ignore_class=ignore_class, name=name, dtype=dtype
        )
        self.counts = stored
        self.group = group
        self.thresholds = validation.as_json(thresholds)
        self._members = groups[group]

    def result(self) -> Any:
        members = ops.convert_to_tensor(self._members, dtype=self.dtype)
        return self._mean(self.recalls(), among=members)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["num_classes"]
        own = {"counts": self.counts, "group": self.group, "thresholds": self.thresholds}
        return {**config, **own}


@keras.saving.register_keras_serializable(package="keras_balanced")
class BinaryBalancedAccuracy(RecallMetric):
    """Computes the balanced accuracy of one logit or probability per example, or of each label.

    Formula:

    ```
    result = (recall of label 1 + recall of label 0) / 2      # of the classes decided for
    ```

    As in `BalancedAccuracy`, 0 or 1 without an example is left out.

    Args:
        num_labels: Number `L` of independent labels in `(..., L)`: the result is the mean over
            them. `None` (default) counts all labels together, as those of one problem.
        label_id: The label whose balanced accuracy is wanted, in `[0, num_labels)`. `None` is the
            mean.
        decision: `Decision` by which to predict, or the binary loss that the model is trained with,
            which stands for its default one. `None` (default) is a logit above 0. Probabilities
            need one: `Decision(BinaryGLALoss(rate, from_logits=False), by="logits")` for those
            above a half.
        ignore_class: Integer label, such as -1 for labels that are not known, or a list of
            several, that is not counted.
        name: Optional name of the metric.
        dtype: Dtype of the sums. float32 (default) counts 16.7 million examples per class exactly.

    Raises:
        ValueError: for shapes that do not fit, and probabilities without a decision.

    Example:

    >>> import numpy as np
    >>> metric = BinaryBalancedAccuracy()
    >>> print(float(metric(np.array([0, 0, 1, 1]), np.array([-2.0, -1.0, 1.0, -1.0]))))
    0.75
    """

    def __init__(
        self,
        num_labels: int | None = None,
        label_id: int | None = None,
        *,
        decision: Decision | BalancedLoss | None = None,
        ignore_class: int | Sequence[int] | None = None,
        name: str | None = "binary_balanced_accuracy",
        dtype: str | None = None,
    ):
        if num_labels is not None:
            num_labels = validation.check_integer("num_labels", num_labels, low=1)
        if label_id is not None:
            if num_labels is None:
                raise ValueError(
                    "`label_id` needs `num_labels`. "
                    f"Received: label_id={validation.show(label_id)} alone"
                )
            label_id = validation.check_integer("label_id", label_id, low=0, high=num_labels)
        self.num_labels, self.label_id = num_labels, label_id
        super().__init__(2, decision=decision, ignore_class=ignore_class, name=name, dtype=dtype)

    def _shape(self):
        return (2,) if self.num_labels is None else (self.num_labels, 2)

    def _sizes(self):
        return [(True, None), (True, self.num_labels)]

    def _kind(self):
        return "one logit, or of `num_labels`"

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Labels `(...)` or `(..., 1)`, or with `num_labels` `(..., L)`: 0, 1 or soft in
                between. Another label that is not `ignore_class` makes the result NaN.
            y_pred: Predictions as `decision` takes them, or logits, in the same forms.
            sample_weight: Optional weights `(...)`, or of fewer leading axes. Keras gives those of
                `fit` to `weighted_metrics` only.
        """
        y_true, y_pred = map(targets.as_tensor, ("y_true", "y_pred"), (y_true, y_pred))
        if self.decision is None and backends.are_probabilities(y_pred):
            raise ValueError(
                "`decision` is needed for probabilities, such as "
                '`Decision(BinaryGLALoss(rate, from_logits=False), by="logits")` for those above '
                "a half. Received: decision=None, and the output of a softmax or sigmoid"
            )
        y_true, weights = self._flatten_binary(y_true, y_pred, sample_weight, self.num_labels)
        if self.decision is None:
            predicted = ops.cast(y_pred, self.dtype) > 0
        else:
            predicted = self.decision(y_pred)
        predicted = ops.reshape(ops.cast(predicted, self.dtype), (-1, self.num_labels or 1))
        in_all = ops.stack([weights * (1.0 - y_true), weights * y_true], axis=-1)
        right = in_all * ops.stack([1.0 - predicted, predicted], axis=-1)
        for variable, values in [(self.total, in_all), (self.correct, right)]:
            variable.assign_add(ops.reshape(sums_of(values), variable.shape))

    def balanced_accuracies(self) -> Any:
        """Returns that of each label, `(L,)`; without `num_labels` a scalar."""
        present = ops.cast(ops.not_equal(self.total, 0), self.dtype)
        return ops.divide_no_nan(
            ops.sum(present * self.recalls(), axis=-1), ops.sum(present, axis=-1)
        )

    def result(self) -> Any:
        of_labels = self.balanced_accuracies()
        if self.num_labels is None:
            return of_labels
        if self.label_id is not None:
            return of_labels[self.label_id]
        present = ops.cast(ops.any(ops.not_equal(self.total, 0), axis=-1), self.dtype)
        return ops.divide_no_nan(ops.sum(present * of_labels), ops.sum(present))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["num_classes"]
        return {**config, "num_labels": self.num_labels, "label_id": self.label_id}


@keras.saving.register_keras_serializable(package="keras_balanced")
class ClassCalibrationError(ClassMetric):
    """Computes the class-wise expected calibration error of probabilities.

    Formula:

    ```
    gap[k, b] = sum of weight * (probability of class k - whether it is class k), over the
                examples whose probability of class k lies in bin b
    result    = sum of |gap| / (K * sum of weight)
    ```

    0 where each class occurs as often as its probabilities say. Compare like with like: the
    probabilities of `loss.posterior` are right for its target mix, or for `priors`: let that be the
    mix of the examples (and of their `sample_weight`). In `compile` it sees the outputs of the
    model, which for a balanced loss are not probabilities: give it the `loss`. With no example the
    result is 0.

    On few examples it is biased upwards, since what a bin holds by chance counts as a gap: of
    exactly calibrated predictions of two classes it is about 0.04 at 1,000 examples and 15 bins,
    and falls with the root of their number. Compare it on equally many examples, with fewer bins
    where these are few.

    Args:
        num_classes: Number of classes `K`; of independent labels `L`; or 1, for the probability of
            label 1.
        num_bins: Number of bins of equal width in `[0, 1]`, at least 1.
        loss: The loss that the model is trained with: `y_pred` is then what the loss takes, and
            its `posterior` is measured. `None` (default) takes `y_pred` as it is.
        priors: Class mix in which the posterior of `loss` is stated; `None` is its target mix.
        temperature: That of the posterior of `loss`, in `[0.01, 100)`.
        from_logits: Whether `y_pred` is logits, of which the softmax is taken (the sigmoid where
            `num_classes` is 1). `False` (default) is probabilities, as `loss.posterior` gives
            them: the softmax of a balanced loss's logits is not one.
        ignore_class: Integer label, in `[0, K)` or outside (255, -1), or a list of several, that is
            not counted. Of independent labels outside `[0, L)`, for those that are not known.
        name: Optional name of the metric.
        dtype: Dtype of the sums.

    Raises:
        ValueError: for shapes that do not fit `num_classes`.

    Example:

    >>> import numpy as np
    >>> metric = ClassCalibrationError(num_classes=2)
    >>> probabilities = np.array([[0.75, 0.25], [0.75, 0.25]], "float32")
    >>> print(float(metric(np.array([0, 1]), probabilities)))
    0.25

    References:
        - [Kull et al., 2019](https://arxiv.org/abs/1910.12656)
        - [Nixon et al., 2019](https://arxiv.org/abs/1904.01685) (static calibration error)
    """

    _better, _of_labels = "down", True

    def __init__(
        self,
        num_classes: int,
        num_bins: int = 15,
        *,
        loss: BalancedLoss | None = None,
        priors: ClassMix | None = None,
        temperature: float = 1.0,
        from_logits: bool = False,
        ignore_class: int | Sequence[int] | None = None,
        name: str | None = "class_calibration_error",
        dtype: str | None = None,
    ):
        super().__init__(num_classes, ignore_class, name, dtype, least=1)
        if isinstance(loss, dict):  # Out of a config.
            loss = keras.saving.deserialize_keras_object(loss)
        self._check_posterior(loss, priors, temperature, from_logits)
        self.loss = loss
        self.priors = validation.as_json(priors, loss is not None and loss.surrogate.binary)
        self.temperature = validation.check_number("temperature", temperature, *TEMPERATURES)
        self.num_bins = validation.check_integer("num_bins", num_bins, low=1)
        self.from_logits = bool(from_logits)
        cells = (self.num_classes * self.num_bins,)
        self.gap = self.add_variable(cells, "zeros", self.dtype, name="gap")
        self.weight = self.add_variable((), "zeros", self.dtype, name="weight")

    def _check_posterior(self, loss, priors, temperature, from_logits):
        """Raises unless the arguments are those of the posterior of a loss, or all left out."""
        if loss is None:
            if priors is not None or temperature != 1.0:
                raise ValueError(
                    "`priors` and `temperature` are those of the posterior of a `loss`. Received: "
                    "loss=None"
                )
            return
        if not isinstance(loss, BalancedLoss):
            raise ValueError(
                "`loss` must be a loss of keras_balanced, whose posterior is measured. Received: "
                f"loss={validation.show(loss)}"
            )
        labels = None if self.num_classes == 1 else self.num_classes
        of = f"{self.num_classes} classes or labels"
        check_size("loss", loss, (False, self.num_classes), (True, labels), of=of)
        loss.surrogate.check_mix("priors", priors)
        if from_logits:
            raise ValueError(
                "`from_logits` must be left out with a `loss`, which has its own. Received: "
                "from_logits=True and a loss"
            )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Classes as integers `(...)` or `(..., 1)`, or one-hot or soft targets
                `(..., K)`. A label outside `[0, K)` that is not `ignore_class` makes the result
                NaN.
            y_pred: Probabilities `(..., K)`, or logits with `from_logits`. A number outside
                `[0, 1]` makes the result NaN: logits are not probabilities. Where `num_classes` is
                1, labels and predictions are `(...)` or `(..., 1)`.
            sample_weight: Optional weights `(...)`, or of fewer leading axes. Keras gives those of
                `fit` to `weighted_metrics` only.
        """
        y_true, y_pred = map(targets.as_tensor, ("y_true", "y_pred"), (y_true, y_pred))
        if self.num_classes == 1:
            y_true, weights = self._flatten_binary(y_true, y_pred, sample_weight)
        else:
            y_true, weights = self._flatten(y_true, y_pred, sample_weight)
            weights = weights[:, None]
            if len(y_true.shape) == 1:
                y_true = ops.one_hot(y_true, self.num_classes, dtype=self.dtype)
            elif self.ignore_class is not None:
                unknown = targets.is_ignored(y_true, self.ignore_class)
                weights = ops.where(unknown, 0.0, weights)
        if self.loss is not None:
            y_pred = self.loss.posterior(y_pred, priors=self.priors, temperature=self.temperature)
        probabilities = ops.reshape(ops.cast(y_pred, self.dtype), (-1, self.num_classes))
        if self.from_logits:
            probabilities = (ops.sigmoid if self.num_classes == 1 else ops.softmax)(probabilities)
        bins = ops.cast(probabilities * self.num_bins, "int32")
        bins = ops.clip(bins, 0, self.num_bins - 1)
        cells = bins + self.num_bins * ops.arange(self.num_classes, dtype="int32")
        none = ops.any(ops.logical_or(probabilities < 0.0, probabilities > 1.0 + 1e-3))
        weights = ops.where(none, ops.full_like(weights, np.nan), weights)
        gaps = weights * (probabilities - y_true)
        self.gap.assign_add(sums_of(gaps, cells, self.num_classes * self.num_bins))
        weights = ops.broadcast_to(weights, ops.shape(probabilities))
        self.weight.assign_add(ops.sum(sums_of(weights)) / self.num_classes)

    def result(self) -> Any:
        return ops.divide_no_nan(ops.sum(ops.abs(self.gap)), self.num_classes * self.weight)

    def get_config(self) -> dict[str, Any]:
        loss = self.loss and keras.saving.serialize_keras_object(self.loss)
        return {
            **super().get_config(),
            "loss": loss,
            "priors": self.priors,
            "temperature": self.temperature,
            "num_bins": self.num_bins,
            "from_logits": self.from_logits,
        }
