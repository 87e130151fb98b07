"""Models for TF Serving: classes and calibrated probabilities, for any class mix.

A model trained with a balanced loss gives logits whose softmax is not a probability. `export`
writes a SavedModel that answers with the right ones, `calibrate` fits their temperature on held-out
data, `find_decision` the decision that is best for a score, `find_threshold` the threshold of one
logit that keeps within a budget, and `estimate_priors` the class mix of data without labels.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import tempfile
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from keras_balanced import backends, metrics, validation
from keras_balanced.calibration import (
    Calibration,
    calibrate,
    check_loss,
    check_model,
    estimate_priors,
    only,
)
from keras_balanced.decisions import Decision, check_decision
from keras_balanced.finding import FoundDecision, find_decision
from keras_balanced.thresholds import find_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = [
    "Calibration",
    "FoundDecision",
    "calibrate",
    "estimate_priors",
    "export",
    "find_decision",
    "find_threshold",
]


def __dir__() -> list[str]:
    return __all__


def export(
    model: keras.Model,
    path: str | os.PathLike,
    decision: Decision | BalancedLoss | None = None,
    *,
    class_names: Sequence[str] | Mapping | None = None,
    priors: ClassMix | None = None,
) -> pathlib.Path | str:
    """Writes a model as the next version of a servable: a TensorFlow SavedModel.

    TF Serving and TensorFlow's C library load it without this package. Its signatures take the
    model's inputs by the names of `keras.Input` (a single one as `inputs`), any batch size:

    - `serving_default` answers with `class_id` `(...)`, the decision, `class_name` `(...)`,
      `probabilities` `(..., K)` in the class mix `priors`, and the `logits`;
    - `with_priors` takes that class mix too, as `priors` `(1, K)` for all examples or `(B, K)` for
      each: counts or probabilities. A class of 0 in it is never the answer; one that has 0 in the
      mixes of the loss needs 0;
    - `raw` gives the `logits` alone.

    The argmax of `probabilities` is the default decision only where `priors` is the target mix of
    the loss: a decision by the class mix to be good at does not change with the mix that is met.
    One by costs or a threshold does, also in `with_priors`.

    Formula:

    ```
    probabilities = softmax(log_posterior / temperature + log(priors / loss_target_priors))
    ```

    where `log_posterior` is that of the class mix that the loss trains for. A model of one logit
    per example, trained with a binary loss, has the classes 0 and 1. Of `L` independent labels
    `probabilities`, `class_id` (0 or 1) and `class_name` are `(..., L)`, of each label, and
    `priors` the positive rates `(1, L)` or `(B, L)`.

    Args:
        model: Functional or Sequential model, built, with one output. It gives logits: a softmax
            at its end is refused, unless the loss has `from_logits=False`, where `logits` are
            the logarithms of the probabilities.
        path: Directory of the servable, made if missing; `~` is the home directory. The model
            goes into the subdirectory of the next free version, `1` at first, in one atomic step.
            A remote one, as `gs://bucket/models/digits`, is written through TensorFlow's file
            systems, `saved_model.pb` last.
        decision: `Decision` that `class_id` follows, with its temperature, or the loss that the
            model was trained with, which stands for its default one. `None` is the compiled loss.
            For plain cross-entropy pass `GLALoss(priors, tau=0)`, or `BinaryGLALoss(rate, tau=0)`.
            Warns of compiled metrics that predict other classes; where a decision is given here,
            only of those that were given none.
        class_names: `K` different names in order, or a dict of names and ids, such as the
            `class_indices` of Keras's generators; for one logit also that of label 1 alone. `None`
            is `"0"`, `"1"`, ...
        priors: Class mix in which the probabilities of `serving_default` are stated, as in the
            loss: for instance that of production. `None` is that of the decision by costs or a
            threshold, and otherwise the mix that the loss trains for.

    Returns:
        The directory of the version, a `pathlib.Path`, or a string where it is remote. Its
        `assets.extra/classes.json` holds the class names, the mixes, and the decision with its
        loss.

    Raises:
        ValueError: for arguments that do not fit, and models that would not be served as they
            are: of a fixed batch size, with a state between calls, or whose exported program
            answers otherwise than the model. Nothing is written.
        RuntimeError: on the PyTorch backend, where Keras cannot export what runs at any batch
            size.
        ImportError: where TensorFlow is missing.

    Example:

    >>> import tempfile
    >>> from keras_balanced import GLALoss
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> version = export(
    ...     model, tempfile.mkdtemp(), GLALoss([90, 10]), class_names=["healthy", "ill"]
    ... )
    >>> print(version.name)
    1
    """
    is_default = decision is None
    decision = _check_decision(model, decision)
    loss = decision.loss
    check_model(model, loss)
    input_names = _check_inputs(model)
    mix = _check_priors(decision, priors)
    class_names = validation.check_class_names(
        class_names, mix.shape[0], loss.surrogate.binary and not loss.surrogate.num_labels
    )
    # Where a metric and the export were given different decisions, both are meant.
    metrics.warn_of_other_decisions(model, decision, given=is_default)
    if backends.backend_name() == "torch":
        raise RuntimeError(
            "Keras cannot export a SavedModel of any batch size from the PyTorch backend. Save "
            "the model as a .keras file, and load and export it in a process with "
            "KERAS_BACKEND=tensorflow (or jax)."
        )
    tf = _tensorflow()
    is_remote = "://" in str(path)
    scratch = _scratch(tf, path, is_remote)
    with scratch:
        saved = pathlib.Path(scratch.name, "model")
        _save(tf, model, saved, input_names, decision, _contents(decision, mix, class_names))
        if is_remote:
            return _copy_to_next_version(tf.io.gfile, saved, str(path))
        return _rename_to_next_version(saved, pathlib.Path(path).expanduser())


def _contents(decision, mix, class_names):
    """Returns what `classes.json` says of a servable."""
    surrogate = decision.loss.surrogate
    return {
        "class_names": class_names,
        "training_priors": surrogate.priors.tolist(),
        "loss_target_priors": surrogate.target_priors.tolist(),
        "priors": mix.tolist(),
        "rule": str(decision),
        "decision": keras.saving.serialize_keras_object(decision),
    }


def _scratch(tf, path, is_remote):
    """Returns a temporary directory: on the disk of a local servable, for a rename in one step."""
    try:
        if is_remote:
            tf.io.gfile.exists(path)  # Raises for a file system that is not there.
        base = None if is_remote else _base(pathlib.Path(path).expanduser())
        return tempfile.TemporaryDirectory(prefix=".export-", dir=base)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            "`path` must be a directory that can be written. "
            f"Received: path={str(path)!r} ({error})"
        ) from error


def _base(path):
    """Returns the nearest directory above a path that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _save(tf, model, saved, input_names, decision, classes):
    """Writes the SavedModel and its `classes.json`, once its program answers as the model does."""
    # Without gradients: serving needs none, and JAX has none for a loop.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        archive, served = _archive(tf, model, input_names, decision, classes)
    except Exception as error:  # JAX fails where TensorFlow would answer otherwise.
        if fixed := _fixed_batch(model):
            raise ValueError(f"`model` cannot be exported: {fixed}") from error
        raise
    _check_served(tf, model, decision.loss, served)
    archive.write_out(saved, options, verbose=False)
    extra = saved / "assets.extra"
    extra.mkdir()
    (extra / "classes.json").write_text(json.dumps(classes, indent=2) + "\n")


def _check_inputs(model):
    """Returns the names of a model's inputs in the signatures: `inputs` of a single one."""
    for layer in backends.layers_within(model):
        if getattr(layer, "stateful", False) is True:
            raise ValueError(
                "`model` must keep no state between calls, which its clients would share. "
                f"Received: the layer {layer.name!r} with `stateful=True`"
            )
    if not isinstance(backends.input_structure(model), dict) and len(model.inputs) == 1:
        return ["inputs"]
    names = [x.name for x in model.inputs]
    good = all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in names)
    different = len({name.lower() for name in names}) == len(names)
    unnamed = any(name.startswith("keras_tensor") for name in names)
    if not good or not different or unnamed or "priors" in names:
        raise ValueError(
            "Name each of several inputs, as in `keras.Input(shape, name=...)`: by letters, digits "
            "and `_`, different also in lower case, and none `priors`. Received: inputs "
            f"named {validation.show(names)}"
        )
    return names


def _check_decision(model, decision):
    """Returns the decision of an export: by default that of the compiled loss."""
    if decision is None:
        expected = "`decision` must be a `Decision`, or the loss"
        decision = check_loss(model, None, labels=True, expected=expected)
    return check_decision("decision", decision)


def _check_priors(decision, priors):
    """Returns the class mix in which an export states probabilities, as `priors` of the loss."""
    surrogate = decision.loss.surrogate
    if decision.priors is None:
        return surrogate.target_priors if priors is None else surrogate.check_mix("priors", priors)
    own = surrogate.check_mix("priors", decision.priors)
    if priors is not None and not np.allclose(surrogate.check_mix("priors", priors), own):
        raise ValueError(
            "`priors` must be left out, or be that of the decision, which depends on it. Received: "
            f"priors={validation.show(priors)} for a decision under {decision.priors}"
        )
    return own


def _tensorflow():
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            'A SavedModel needs TensorFlow: pip install "keras-balanced[serving]"'
        ) from error
    return tensorflow


def _archive(tf, model, input_names, decision, classes):
    """Returns the `keras.export.ExportArchive` with the signatures, and the function of `raw`."""
    specs = {
        name: tf.TensorSpec((None, *x.shape[1:]), x.dtype, name)
        for name, x in zip(input_names, model.inputs, strict=True)
    }
    mix = tf.TensorSpec((None, len(classes["class_names"])), tf.float32, "priors")

    def raw(inputs):
        return {"logits": _logits(model, decision.loss, [inputs[name] for name in input_names])}

    archive = keras.export.ExportArchive()
    archive.track(model)
    logits_of = archive.add_endpoint("raw", raw, [specs])
    shape = logits_of.get_concrete_function().structured_outputs["logits"].shape
    answer = _answers(tf, decision, tuple(shape), classes)

    @tf.function(input_signature=[specs], autograph=False)
    def serving_default(inputs):
        return answer(logits_of(inputs)["logits"], tf.constant(classes["priors"]), False)

    @tf.function(input_signature=[{**specs, "priors": mix}], autograph=False)
    def with_priors(inputs):
        inputs = dict(inputs)
        # A loaded signature does not check shapes.
        sent = tf.ensure_shape(inputs.pop("priors"), mix.shape)
        priors = _checked_priors(tf, sent, decision.loss.surrogate)
        return answer(logits_of(inputs)["logits"], priors, True)

    for function in (serving_default, with_priors):
        function.get_concrete_function()
        archive.add_endpoint(function.__name__, function)

    def served(inputs):
        return logits_of(dict(zip(input_names, inputs, strict=True)))["logits"]

    return archive, served


def _answers(tf, decision, shape, classes):
    """Returns the function from logits and a class mix, which a client may send, to an answer."""
    loss, labels = decision.loss, decision.loss.surrogate.num_labels
    names, own = tf.constant(classes["class_names"]), tf.constant(classes["loss_target_priors"])

    def log_posterior_of(logits):
        return loss.log_posterior(decision.check_logits(logits))

    of_scores = _shape_of_scores(shape, loss.surrogate)
    log_posterior = backends.tf_function(log_posterior_of, shape)
    decide = backends.tf_function(decision.of_logits, shape)
    decide_under = backends.tf_function(decision.of_logits, shape, of_scores)

    def log_of(mix):
        return tf.math.log(tf.where(own > 0, mix, 1.0))

    def answer(logits, priors, is_sent):
        log_p = log_posterior(logits)
        # One mix per example: the same at each of its positions. A class that never occurs has 0 in
        # every mix, and is masked in the posterior.
        positions = [1] * (log_p.shape.rank - 1 - own.shape.rank)
        log_mix = log_of(priors / tf.reduce_sum(priors, -1, True))
        log_mix = tf.reshape(log_mix, [-1, *positions, *own.shape])
        log_mix = tf.cast(tf.broadcast_to(log_mix, tf.shape(log_p)), log_p.dtype)
        log_own = tf.cast(log_of(own), log_p.dtype)
        probabilities = tf.nn.softmax(log_p / decision.temperature + log_mix - log_own)
        class_id = decide_under(logits, log_mix) if is_sent else decide(logits)
        class_id = tf.cast(class_id, tf.int64)
        if labels:
            probabilities = probabilities[..., 1]
            class_name = tf.broadcast_to(names, tf.shape(class_id))
        else:
            class_name = tf.gather(names, class_id)
        return {
            "probabilities": probabilities,
            "class_id": class_id,
            "class_name": class_name,
            "logits": logits,
        }

    return answer


def _shape_of_scores(shape, surrogate):
    """Returns the shape of a decision's scores of logits of a shape."""
    if not surrogate.binary:
        return shape
    is_column = not surrogate.axes and len(shape) > 1 and shape[-1] == 1
    return (*(shape[:-1] if is_column else shape), 2)


def _checked_priors(tf, sent, surrogate):
    """Returns the class mix that a client sent, of labels that of 0 and 1, once it is checked."""
    priors = tf.stack([1.0 - sent, sent], axis=-1) if surrogate.num_labels else sent
    valid = tf.reduce_all(tf.math.is_finite(priors) & (priors >= 0))
    valid &= tf.reduce_all(tf.reduce_sum(priors, axis=-1) > 0)
    valid &= tf.reduce_all(tf.constant(surrogate.target_priors > 0) | (priors == 0))
    message = "`priors` must be a class mix, with 0 for classes that never occur. Received:"
    with tf.control_dependencies([tf.debugging.Assert(valid, [message, priors])]):
        return tf.identity(priors)


def _logits(model, loss, inputs):
    """Returns the logits for inputs in the order of `model.inputs`, in the form the model takes."""
    inputs = keras.tree.pack_sequence_as(backends.input_structure(model), inputs)
    return loss.logits(only(model(inputs, training=False)))


def _check_served(tf, model, loss, served):
    """Raises unless the exported program answers what the model does, with logits."""
    inputs, expected = _tried(model, loss)
    if inputs is None:
        return
    _refuse_probabilities(expected, loss)
    expected = _without_constant(expected, loss)
    half = any("16" in layer.compute_dtype for layer in backends.layers_within(model))
    tolerance = (1e-1 if half else 1e-3) * max(1.0, float(np.abs(expected).max(initial=0.0)))
    for rows in (slice(None), slice(0, 1)):
        try:
            answer = served([tf.constant(x[rows]) for x in inputs]).numpy()
            answer = _without_constant(answer, loss)
        except tf.errors.OpError as error:
            answer = np.empty(0)
            found = f"fails: {error.message}"
        else:
            found = f"answers {answer.shape} numbers"
        same = answer.shape == expected[rows].shape
        if not same or not np.allclose(answer, expected[rows], atol=tolerance, equal_nan=True):
            cure = _fixed_batch(model) or (
                "layers that look at sizes, such as `TimeDistributed` over an axis of unknown "
                "size, need that size"
            )
            raise ValueError(
                "`model` must be exported as it is. Received: a model that answers "
                f"{expected[rows].shape} numbers where its exported program {found}"
                f"{', others' if same else ''}; {cure}"
            )


def _tried(model, loss):
    """Returns random inputs and the model's logits for them, or two `None` where it takes none."""
    rng = np.random.default_rng(0)
    free = any(None in x.shape[1:] for x in model.inputs)
    batch_size = next((x.shape[0] for x in model.inputs if x.shape[0] is not None), 3)
    for size in (32, 64, 256) if free else (0,):
        inputs = [_random(rng, x, batch_size, size) for x in model.inputs]
        try:
            logits = _logits(model, loss, [backends.own_tensor(x) for x in inputs])
        except Exception:  # An axis that is free may have a least size.
            continue
        return inputs, ops.convert_to_numpy(logits)
    return None, None


def _without_constant(logits, loss):
    """Returns logits less what a softmax drops: Keras remembers those of probabilities, or not."""
    return logits if loss.surrogate.binary else logits - logits.max(axis=-1, keepdims=True)


def _fixed_batch(model):
    """Returns what to do about an input of a fixed batch size, in words, or `None`."""
    for x in model.inputs:
        if x.shape[0] is not None:
            return (
                f"its input {x.name!r} has a fixed batch size: build it from `keras.Input(shape)`"
            )
    return None


def _refuse_probabilities(logits, loss):
    if loss.surrogate.binary or not loss.from_logits:
        return
    # A softmax gives no one-hot rows.
    inside = ((logits > 0) & (logits < 1)).any() and logits.min() >= 0
    if inside and np.allclose(logits.sum(axis=-1), 1.0, atol=1e-3):
        raise ValueError(
            "`model` must give logits, since its loss has `from_logits=True`. Received: outputs "
            "that are not negative and sum to 1 for every example, as a softmax gives them"
        )


def _random(rng, x, batch_size, free):
    """Returns random values for an input: 0 and 1 where they are ids, text where it is text."""
    shape = (batch_size, *(free if size is None else size for size in x.shape[1:]))
    if x.dtype == "string":
        return rng.choice(["", "a"], shape).astype(object)
    values = rng.standard_normal(shape) if keras.backend.is_float_dtype(x.dtype) else None
    return (rng.integers(0, 2, shape) if values is None else values).astype(x.dtype)


def _rename_to_next_version(saved, path):
    """Moves a whole SavedModel to the next free version in `path` and returns where it is."""
    path.mkdir(parents=True, exist_ok=True)
    version = 1 + max(
        (int(child.name) for child in path.iterdir() if child.name.isdigit()), default=0
    )
    while True:
        try:
            return saved.rename(path / str(version))
        except OSError:
            # Another export came first: a directory that is not empty is never replaced.
            if not (path / str(version)).exists():
                raise
            version += 1


def _copy_to_next_version(gfile, saved, path):
    """Copies a whole SavedModel to the next free version in a remote directory."""
    gfile.makedirs(path)
    names = [name.rstrip("/") for name in gfile.listdir(path)]
    version = 1 + max((int(name) for name in names if name.isdigit()), default=0)
    target = f"{path.rstrip('/')}/{version}"
    files = [file for file in saved.rglob("*") if file.is_file()]
    # The file that makes the directory a model comes last.
    for file in sorted(files, key=lambda file: file.name == "saved_model.pb"):
        there = f"{target}/{file.relative_to(saved).as_posix()}"
        gfile.makedirs(there.rpartition("/")[0])
        gfile.copy(str(file), there)
    return target
