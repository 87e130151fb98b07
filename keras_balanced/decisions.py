"""Decisions: one rule from predictions to classes.

A model trained with a balanced loss gives logits. What class to answer with depends on what one is
judged by: a `Decision` says it once, and metrics, reports, searches and exports do it alike.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, formula, targets, validation
from keras_balanced.losses import (
    TEMPERATURES,
    BalancedLoss,
    check_posterior,
    has_posterior,
    of_predictions,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from keras_balanced.validation import ClassMix

__all__ = ["Decision"]


@keras.saving.register_keras_serializable(package="keras_balanced")
class Decision:
    """Decides on classes by the predictions of a model: one rule, stated once.

    Give it to metrics, `PerClassReport`, `plots.confusion_matrix` and `serving.export`, and all of
    them decide alike. It is one of four kinds:

    - by a class mix to be good at (default: the loss's own, balanced accuracy unless it has
      `target_priors`): the most probable class in that mix;
    - by `costs`: the class of the least expected cost;
    - by a `threshold`, of one logit, two classes or labels: label 1 where its probability exceeds
      it;
    - `by="logits"`: the largest logit, or one logit above 0, for a training that stays far from
      its minimum (a large `q` with `tau=1`).

    Formula:

    ```
    log_p = log posterior in the mix that the loss trains for / temperature
    class = argmax(log_p + log(target_priors) - log(loss_target_priors))
    class = argmin(softmax(log_p + log(priors) - log(loss_target_priors)) @ costs)
    class = softmax(log_p + log(priors) - log(loss_target_priors))[1] > threshold
    class = argmax(logits)
    ```

    Ties go to the lower id. A class that never occurs (prior 0), or whose logit is masked with
    `-inf` or a large negative number, is never the answer.

    Args:
        loss: The loss of keras_balanced that the model was trained with. For a model trained with
            plain cross-entropy `GLALoss(priors, tau=0)`, or `BinaryGLALoss(rate, tau=0)`.
        target_priors: Class mix to be good at, as in the loss. It does not move with the mix that
            is met. To multiply the posterior of the loss by numbers per class, pass these times the
            loss's own target mix.
        costs: `(K, K)` numbers, `costs[j, k]` of deciding for class `k` (column) where the truth is
            `j` (row), or a dict `{(truth, decided): cost}` of every pair of different classes; of
            one logit and of labels `(2, 2)`. Needs `priors`.
        threshold: Number in `[0, 1)`, of labels one for all or `(L,)`, as `serving.find_threshold`
            finds it. Needs `priors`.
        by: `"posterior"` (default) or `"logits"`.
        priors: Class mix of the data that are met, in which expected costs and probabilities hold:
            as in the loss. For `costs` and `threshold` only.
        temperature: Number in `[0.01, 100)` that `serving.calibrate` finds. An export states its
            probabilities at it, whatever the rule.

    Call arguments: predictions as the loss takes them, `(..., K)`, of one logit `(...)` or
    `(..., 1)`, of labels `(..., L)`. Returns class ids int32: `(...)`, of labels 0 and 1
    `(..., L)`; a NumPy array for one. Of the output of a functional model it is the output of a
    layer, saved and exported with the model: `keras.Model(inputs, decision(model(inputs)))`.

    Raises:
        ValueError: for more than one rule, arguments that do not belong to it, or a loss that
            overrides `call` without `log_posterior`.

    Example:

    >>> import numpy as np
    >>> from keras_balanced import GLALoss
    >>> loss, logits = GLALoss(priors=[90, 10]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> by_costs = Decision(loss, costs=[[0, 1], [50, 0]], priors=[90, 10])
    >>> print(Decision(loss)(logits), by_costs(logits))
    [0 1] [1 1]

    References:
        - [Elkan, 2001](https://dl.acm.org/doi/10.5555/1642194.1642224) (costs)
        - [Saerens et al., 2002](https://doi.org/10.1162/089976602753284446) (change of the mix)
    """

    def __init__(
        self,
        loss: BalancedLoss,
        *,
        target_priors: ClassMix | None = None,
        costs: ArrayLike | Mapping[tuple[int, int], float] | None = None,
        threshold: float | ArrayLike | None = None,
        by: Literal["posterior", "logits"] = "posterior",
        priors: ClassMix | None = None,
        temperature: float = 1.0,
    ):
        self.loss = _check_loss(loss)
        surrogate, binary = self.loss.surrogate, self.loss.surrogate.binary
        if by not in ("posterior", "logits"):
            raise ValueError(f'`by` must be "posterior" or "logits". Received: by={by!r}')
        self.costs = None if costs is None else _check_costs(costs, surrogate).tolist()
        self.threshold = None if threshold is None else _check_threshold(threshold, surrogate)
        _check_kind(target_priors, costs, threshold, by, priors)
        own = mix = surrogate.target_priors
        if target_priors is not None:
            mix = surrogate.check_mix("target_priors", target_priors)
        elif priors is not None:
            mix = surrogate.check_mix("priors", priors)
        self.target_priors = validation.as_json(target_priors, binary)
        self.by = by
        self.priors = validation.as_json(priors, binary)
        self.temperature = validation.check_number("temperature", temperature, *TEMPERATURES)
        # What is added to the log-posterior.
        self._log_priors = np.log(np.where(mix > 0, mix, 1.0))
        self._change = self._log_priors - np.log(np.where(own > 0, own, 1.0))
        if threshold is not None:
            high = np.maximum(np.asarray(self.threshold, "float64"), np.finfo("float32").tiny)
            self._change = self._change - np.log(np.stack([1.0 - high, high], axis=-1))
        self._shift = self._shift_of_logits()

    def __call__(self, y_pred: Any) -> Any:
        if isinstance(y_pred, keras.KerasTensor):
            return _Decide(self)(y_pred)
        return of_predictions(self.loss, self.of_logits, y_pred)

    def scores(self, y_pred: Any) -> Any:
        """Returns the scores of the classes, of which the largest is the decision.

        Args:
            y_pred: Predictions as in a call.

        Returns:
            `(..., K)`, of one logit `(..., 2)`, of labels `(..., L, 2)`: what the formula takes the
            argmax of. Of costs it is the expected cost, negative; of a threshold `t` the
            log-probabilities less `log(1 - t)` and `log(t)`.

        Raises:
            ValueError: for predictions that do not fit the loss.
        """
        if isinstance(y_pred, keras.KerasTensor):
            return _Decide(self, scores=True)(y_pred)

        def of_logits(logits):
            return self._scores(self.check_logits(logits))

        return of_predictions(self.loss, of_logits, y_pred)

    def check_logits(self, logits: Any) -> Any:
        """Returns logits `(..., K)`, of labels `(..., L)`, of one logit `(...)`."""
        surrogate = self.loss.surrogate
        if surrogate.axes:
            targets.check_classes(logits, surrogate.num_labels or len(surrogate.priors))
        elif len(logits.shape) > 1 and logits.shape[-1] == 1:
            return logits[..., 0]
        return logits

    def of_logits(self, logits: Any, log_priors: Any = None) -> Any:
        """Returns the class ids of logits, as the loss's `logits` gives them.

        Args:
            logits: `(..., K)`, of labels `(..., L)`, of one logit `(...)` or `(..., 1)`.
            log_priors: Logarithm of the class mix of the data that are met, a tensor that
                broadcasts to the scores, in place of `priors`: a class of `-inf` is never the
                answer. `None` is the mix of the decision.

        Returns:
            Class ids int32, as a call.
        """
        logits = self.check_logits(logits)
        if self._shift is None or (self._needs_priors and log_priors is not None):
            scores = self._scores(logits, log_priors)
        else:
            if self.loss.surrogate.binary:
                logits = ops.stack([ops.zeros_like(logits), logits], axis=-1)
            scores = logits + ops.convert_to_tensor(self._shift, dtype=logits.dtype)
            scores = formula.mask_absent(scores, self.loss.surrogate)
        if log_priors is not None:
            low = ops.convert_to_tensor(-np.inf, dtype=scores.dtype)
            scores = ops.where(ops.equal(log_priors, -np.inf), low, scores)
        return backends.argmax(scores)

    @property
    def _needs_priors(self):
        """Whether the rule depends on the class mix of the data that are met."""
        return self.costs is not None or self.threshold is not None

    def _scores(self, logits, log_priors=None):
        """Returns the scores of checked logits: once more, one step `(B, 1)` would be a column."""
        surrogate = self.loss.surrogate
        if self.by == "logits":
            if surrogate.binary:
                return ops.stack([ops.zeros_like(logits), logits], axis=-1)
            return formula.mask_absent(logits, surrogate)
        scores = log_p = self.loss.log_posterior(logits) / self.temperature
        change = self._change
        if log_priors is not None and self._needs_priors:
            scores, change = scores + ops.cast(log_priors, scores.dtype), change - self._log_priors
        scores = scores + ops.convert_to_tensor(change, dtype=scores.dtype)
        if self.costs is not None:
            p = ops.reshape(ops.softmax(scores), (-1, len(self.costs)))
            # An operator: `ops.matmul` of float64 is float32 on PyTorch.
            costs = p @ ops.convert_to_tensor(self.costs, dtype=scores.dtype)
            scores = -ops.reshape(costs, ops.shape(scores))
            # A masked class could otherwise have the least expected cost.
            masked = log_p < formula.MASKED / 2 / self.temperature
            low = ops.convert_to_tensor(formula.MASKED, dtype=scores.dtype)
            scores = ops.where(masked, low, scores)
        return formula.mask_absent(scores, surrogate)

    def _shift_of_logits(self):
        """Returns what, added to the logits, makes the largest the decision; `None` if nothing."""
        surrogate, occurs = self.loss.surrogate, self.loss.surrogate.occurs
        if self.by == "logits":
            return np.zeros_like(surrogate.priors)
        margin = surrogate.margins.max(axis=-1, keepdims=True, where=occurs, initial=0.0)
        original = all(
            getattr(type(self.loss), name) is getattr(BalancedLoss, name)
            for name in ("call", "log_posterior")
        )
        straight = np.where(occurs, surrogate.margins, margin) == margin
        if self.costs is not None or surrogate.label_smoothing or not original:
            return None
        if not straight.all():
            return None
        # With equal margins log_p is (1 - q) (logits / margin + shift) - log(priors * weights), up
        # to a constant.
        shift = (1.0 - surrogate.q) * surrogate.shift - np.log(surrogate.weights)
        shift = shift + np.log(surrogate.target_to_prior) + self.temperature * self._change
        shift = shift * margin / (1.0 - surrogate.q)
        first = np.expand_dims(occurs.argmax(axis=-1), -1)
        shift = shift - np.take_along_axis(shift, first, axis=-1)
        # Terms that cancel leave a rounding error, which must not break ties.
        return np.where(occurs, np.round(shift, 12), 0.0)

    def decides_as(self, other: Decision) -> bool:
        """Returns whether another decision is known to be the same rule, in whatever words."""
        mine, its = self.loss, other.loss
        reads_alike = _share(mine, its, "logits") and mine.from_logits == its.from_logits
        if not reads_alike or np.shape(self._change) != np.shape(other._change):
            return False
        if self._shift is not None and other._shift is not None:
            return np.allclose(self._shift, other._shift, atol=1e-6)
        alike = _share(mine, its, "log_posterior")
        alike = alike and mine.surrogate == its.surrogate and self.costs == other.costs
        # Without costs only the order of the probabilities matters.
        alike = alike and (self.costs is None or self.temperature == other.temperature)
        first, second = (
            temperature * (change - change[..., :1])
            for temperature, change in [
                (self.temperature, self._change),
                (other.temperature, other._change),
            ]
        )
        return alike and self.by == other.by and np.allclose(first, second, atol=1e-6)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments as plain numbers and lists."""
        names = ("target_priors", "costs", "threshold", "by", "priors", "temperature")
        loss = keras.saving.serialize_keras_object(self.loss)
        return {"loss": loss, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Decision:
        """Returns the decision of a config."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.get_config(), sort_keys=True))

    def __str__(self) -> str:
        binary = self.loss.surrogate.binary
        if self.by == "logits":
            rule = "a logit above 0" if binary else "the largest logit"
        elif self.threshold is not None:
            rule = f"a probability of label 1 above {_shown(self.threshold)} {self._mix()}"
        elif self.costs is not None:
            shape = np.shape(self.costs)
            costs = _shown(self.costs) if shape == (2, 2) else f"of shape {shape}"
            rule = f"the least expected cost, of costs {costs}, {self._mix()}"
        else:
            rule = f"the most probable class {self._mix()}"
        return rule + ("" if self.temperature == 1.0 else f", at temperature {self.temperature:g}")

    def __repr__(self) -> str:
        return f"Decision: {self}, by {self.loss!r}"

    def _mix(self):
        """Returns the class mix of the rule in words."""
        surrogate = self.loss.surrogate
        given = self.target_priors if self.priors is None else self.priors
        mix = surrogate.target_priors
        if given is not None:
            mix = surrogate.check_mix("priors", given)
        if np.allclose(mix, surrogate.check_mix("priors", None), rtol=1e-9):
            return "where every class is equally frequent"
        if surrogate.binary:
            return f"at the positive rate {_shown(mix[..., 1])}"
        return f"in the class mix {_shown(mix)}"


@keras.saving.register_keras_serializable(package="keras_balanced")
class _Decide(keras.layers.Layer):
    """A decision, or its scores, as the end of a functional model."""

    def __init__(self, decision, scores=False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.decision: Any = check_decision("decision", decision)
        self.scores = bool(scores)

    def call(self, y_pred):
        return self.decision.scores(y_pred) if self.scores else self.decision(y_pred)

    def compute_output_spec(self, y_pred):
        surrogate, shape = self.decision.loss.surrogate, tuple(y_pred.shape)
        if surrogate.axes:
            targets.check_classes(y_pred, surrogate.num_labels or len(surrogate.priors))
        elif len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        if self.scores:
            shape = (*shape, 2) if surrogate.binary else shape
            return keras.KerasTensor(shape, "float64" if y_pred.dtype == "float64" else "float32")
        return keras.KerasTensor(shape if surrogate.binary else shape[:-1], "int32")

    def get_config(self):
        decision = keras.saving.serialize_keras_object(self.decision)
        return {**super().get_config(), "decision": decision, "scores": self.scores}


def check_decision(name: str, decision: Any) -> Decision | None:
    """Returns a `Decision`: of a loss its default one, of a config that of the config."""
    if isinstance(decision, dict):
        decision = keras.saving.deserialize_keras_object(decision)
    if isinstance(decision, BalancedLoss):
        return Decision(decision)
    if decision is not None and not isinstance(decision, Decision):
        hint = "; pass its `decision`" if hasattr(decision, "decision") else ""
        raise ValueError(
            f"`{name}` must be a `Decision`, or a loss of keras_balanced by whose posterior to "
            f"decide. Received: {name}={validation.show(decision)}{hint}"
        )
    return decision


def decision_of(
    function: Callable[[BalancedLoss], Any] | None,
) -> Callable[[BalancedLoss], Decision | None]:
    """Returns a function of a loss that gives its decision, whatever a user's gives for one.

    `None` stands for the loss's default decision, or for no decision if it has no posterior.
    """
    if function is None:
        return _default_decision
    if not callable(function) or isinstance(function, (Decision, BalancedLoss)):
        raise ValueError(
            "`decision` must be a function `loss -> Decision`: a search has many losses. "
            f"Received: decision={validation.show(function)}"
        )
    return functools.partial(_decision_by, function)


def _default_decision(loss):
    return Decision(loss) if has_posterior(loss) else None


def _decision_by(function, loss):
    decision = check_decision("decision", function(loss))
    if decision is None or decision.loss != loss:
        raise ValueError(
            "`decision` must be a function that returns a `Decision` of the loss that it is given. "
            f"Received: {decision!r} for {loss!r}"
        )
    return decision


_OF_TRAINING = ("name", "reduction", "dtype", "ignore_class")


def _share(loss, other, method):
    """Returns whether a method of two losses is the same: an override may read any argument."""
    ours = getattr(BalancedLoss, method)
    if all(getattr(type(of), method) is ours for of in (loss, other)):
        return True
    first, second = (
        {name: value for name, value in of.get_config().items() if name not in _OF_TRAINING}
        for of in (loss, other)
    )
    return type(loss) is type(other) and first == second


def _check_loss(loss):
    if isinstance(loss, dict):  # Out of a config.
        loss = keras.saving.deserialize_keras_object(loss)
    if not isinstance(loss, BalancedLoss):
        raise ValueError(
            "`loss` must be the loss of keras_balanced that the model was trained with (for plain "
            f"cross-entropy `GLALoss(priors, tau=0)`). Received: loss={loss!r}"
        )
    check_posterior(loss)
    return loss


def _check_kind(target_priors, costs, threshold, by, priors):
    """Raises unless the arguments make one rule."""
    given = {"target_priors": target_priors, "costs": costs, "threshold": threshold}
    rules = [f"`{name}`" for name, value in given.items() if value is not None]
    rules += ['`by="logits"`'] if by == "logits" else []
    if len(rules) > 1:
        raise ValueError(
            "A `Decision` must be by one of `target_priors`, `costs`, `threshold` and "
            f'`by="logits"`. Received: {", ".join(rules)}'
        )
    needed = costs is not None or threshold is not None
    if needed and priors is None:
        raise ValueError(
            "`priors`, the class mix of the data that are met, must be given: expected costs and "
            "probabilities depend on it. For data as in training pass the training priors. "
            f"Received: {rules[0]} and priors=None"
        )
    if priors is not None and not needed:
        raise ValueError(
            "`priors`, the class mix of the data that are met, must be left out except with "
            "`costs` or `threshold`: no other rule depends on it. The mix to be good at is "
            f"`target_priors`. Received: priors with {rules[0] if rules else 'no other rule'}"
        )


def _check_costs(costs, surrogate):
    """Returns costs as a float64 array `(K, K)`: rows are the truth."""
    num_classes = surrogate.priors.shape[-1]
    occurs = np.flatnonzero(np.ones(2) if surrogate.binary else surrogate.occurs)
    shape = (num_classes, num_classes)
    expected = f"finite numbers of shape {shape}: rows are the truth, columns the decision"
    if isinstance(costs, Mapping):
        costs = _costs_of_pairs(costs, num_classes, occurs)
    elif hasattr(costs, "columns"):
        costs = costs.to_numpy()
    costs = validation.as_array("costs", costs, expected)
    if costs.shape != shape or not np.isfinite(costs).all():
        found = "others" if costs.shape == shape else f"numbers of shape {costs.shape}"
        raise ValueError(f"`costs` must be {expected}. Received: {found}")
    for truth in occurs:
        if costs[truth, truth] > costs[truth, occurs].min():
            raise ValueError(
                "`costs` must be least on the diagonal, where the decision is right: rows are the "
                f"truth, columns the decision. Received: the row {costs[truth, :10].tolist()} of "
                f"class {truth}; is the matrix transposed?"
            )
    return costs


def _costs_of_pairs(pairs, num_classes, occurs):
    """Returns the matrix of a dict of costs: 0 for a right decision that has none."""
    ids, costs = range(num_classes), np.zeros((num_classes, num_classes))
    wrong = [(j, k) for j in occurs.tolist() for k in occurs.tolist() if j != k]
    missing = [pair for pair in wrong if pair not in pairs]
    bad = [
        pair
        for pair in pairs
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(k in ids for k in pair))
    ]
    if bad or missing:
        found = f"the keys {bad[:5]}" if bad else f"none for {missing[:5]}"
        raise ValueError(
            "`costs` must have a cost for every pair `(truth, decided)` of different class ids in "
            f"[0, {num_classes}); or pass a matrix, such as `1 - numpy.eye({num_classes})` with "
            f"yours in it. Received: {found}"
        )
    for pair, cost in pairs.items():
        costs[pair] = validation.check_number("costs", cost)
    return costs


def _check_threshold(threshold, surrogate):
    """Returns a threshold as a float, or as a list of one for each of several labels."""
    shape, num_labels = surrogate.priors.shape, surrogate.num_labels
    if shape[-1] != 2:
        raise ValueError(
            "`threshold` must be left out for more than two classes: pass `costs` or "
            f"`target_priors`. Received: threshold={threshold!r} for {shape[-1]} classes"
        )
    thresholds = validation.as_array("threshold", threshold, "numbers in [0, 1)")
    per_label = num_labels is not None and thresholds.shape == (num_labels,)
    if (thresholds.ndim and not per_label) or not ((thresholds >= 0) & (thresholds < 1)).all():
        expected = f", or {num_labels} of them, one for each label" if num_labels else ""
        raise ValueError(
            f"`threshold` must be a number in [0, 1){expected}. Received: "
            f"threshold={_shown(thresholds.tolist())}"
        )
    return thresholds.tolist()


def _shown(values):
    """Returns numbers as text: some of them, of three digits."""
    if np.ndim(values) == 0:
        return f"{values:.3g}"
    shown = [_shown(value) for value in values[:6]]
    return f"[{', '.join(shown + ['...'] * (len(values) > 6))}]"
