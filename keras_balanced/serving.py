"""Models for TF Serving: classes and calibrated probabilities, for any class mix.

A model trained with a balanced loss gives logits whose softmax is not a probability. `export`
writes a SavedModel that answers with the right ones, `calibrate` fits their temperature on held-out
data, and `estimate_target_priors` finds the class mix of data without labels.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING

import keras

from keras_balanced import backends, validation
from keras_balanced.calibration import (
    TEMPERATURES,
    calibrate,
    check_loss,
    check_model,
    estimate_target_priors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keras_balanced.losses import BalancedLoss
    from keras_balanced.validation import ClassMix

__all__ = ["calibrate", "estimate_target_priors", "export"]


def export(
    model: keras.Model,
    path: str | os.PathLike,
    loss: BalancedLoss | None = None,
    class_names: Sequence[str] | None = None,
    target_priors: ClassMix | None = None,
    temperature: float | None = None,
) -> pathlib.Path:
    """Writes a model as the next version of a servable: a TensorFlow SavedModel.

    TF Serving and TensorFlow's C library load it without this package. Its signatures take the
    model's inputs by the names of `keras.Input` (a single one as `inputs`), any batch size:

    - `serving_default` answers with `probabilities` `(..., K)` under the stated class mix,
      `class_id` `(...)`, their argmax, `class_name` `(...)`, and the `logits`;
    - `with_priors` takes the class mix too, as `target_priors` `(1, K)` for all examples or
      `(B, K)` for each: counts or probabilities, zeros allowed, and needed for a class that
      has 0 in the mixes of the loss;
    - `raw` gives the `logits` alone.

    Formula:

    ```
    probabilities = softmax(log_posterior / temperature + log(target_priors / loss_target_priors))
    ```

    where `log_posterior` is that of the class mix that the loss trains for. A model of one logit
    an example, trained with a binary loss, has the classes 0 and 1.

    Args:
        model: Functional or Sequential model, built, with one output. It gives logits: a softmax
            at its end is refused, unless the loss has `from_logits=False`, where `logits` are
            the logarithms of the probabilities.
        path: Local directory of the servable, made if missing. The model goes into the
            subdirectory of the next free version, `1` at first, in one atomic step.
        loss: The `GLALoss`, `GCALoss` or binary loss (of one rate) that the model was trained
            with. `None` is the compiled one. For plain cross-entropy pass
            `GLALoss(priors, tau=0)`.
        class_names: `K` different names. `None` is `"0"`, `"1"`, ...
        target_priors: Class mix in which the probabilities hold, as in the loss: for instance
            that of production. `None` is the mix that the loss trains for.
        temperature: Number in `[0.01, 100)`, as `calibrate` finds. `None` is 1.

    Returns:
        The directory of the version, a `pathlib.Path`. Its `assets.extra/classes.json` holds the
        class names, the mixes, the temperature and the loss.

    Raises:
        ValueError: for arguments that do not fit; nothing is written.
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
    loss = check_loss(model, loss)
    named = check_model(model, loss)
    target = loss.surrogate.target_priors
    if target_priors is not None:
        target = loss.surrogate.check_target(target_priors)
    class_names = _check_class_names(class_names, len(target))
    if temperature is None:
        temperature = 1.0
    temperature = validation.check_number("temperature", temperature, *TEMPERATURES)
    if backends.name() == "torch":
        raise RuntimeError(
            "Keras cannot export a SavedModel of any batch size from the PyTorch backend. Save "
            "the model as a .keras file, and load and export it in a process with "
            "KERAS_BACKEND=tensorflow (or jax)."
        )
    classes = {
        "class_names": class_names,
        "training_priors": loss.surrogate.priors.tolist(),
        "loss_target_priors": loss.surrogate.target_priors.tolist(),
        "target_priors": target.tolist(),
        "temperature": temperature,
        "loss": keras.saving.serialize_keras_object(loss),
    }
    path = pathlib.Path(path)
    try:
        parents = (path.absolute(), *path.absolute().parents)
        base = next(parent for parent in parents if parent.exists())
        scratch = tempfile.TemporaryDirectory(prefix=".export-", dir=base)
    except OSError as error:
        raise ValueError(
            "`path` must be a directory that can be written. "
            f"Received: path={str(path)!r} ({error})"
        ) from error
    with scratch:
        saved = pathlib.Path(scratch.name, "model")
        tf = _tensorflow()
        # Without gradients, which serving has no use for and JAX none of a loop.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        _archive(tf, model, named, loss, classes).write_out(saved, options, verbose=False)
        extra = saved / "assets.extra"
        extra.mkdir()
        (extra / "classes.json").write_text(json.dumps(classes, indent=2) + "\n")
        path.mkdir(parents=True, exist_ok=True)
        return _rename_to_next_version(saved, path)


def _check_class_names(class_names, num_classes):
    if class_names is None:
        return [str(k) for k in range(num_classes)]
    names = list(class_names)
    if not all(isinstance(name, str) for name in names) or len(names) != num_classes:
        raise ValueError(
            f"`class_names` must be {num_classes} strings, one for each class. "
            f"Received: {len(names)} names, {names[:10]}"
        )
    if len(set(names)) < num_classes:
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"`class_names` must be different. Received: {repeated[:10]} repeated")
    return names


def _tensorflow():
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            'A SavedModel needs TensorFlow: pip install "keras-balanced[serving]"'
        ) from error
    return tensorflow


def _archive(tf, model, named, loss, classes):
    """Returns the `keras.export.ExportArchive` with the three signatures."""
    specs = {
        x.name if named else "inputs": tf.TensorSpec(
            (None, *x.shape[1:]), x.dtype, x.name if named else "inputs"
        )
        for x in model.inputs
    }

    def raw(inputs):
        y_pred = model(inputs if named else inputs["inputs"], training=False)
        return {"logits": loss.logits(y_pred)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    logits_of = archive.add_endpoint("raw", raw, [specs])

    def log_posterior(logits):
        if loss.surrogate.binary and len(logits.shape) > 1:
            logits = logits[..., 0]
        return loss.log_posterior(logits)

    shape = logits_of.get_concrete_function().structured_outputs["logits"].shape
    log_posterior = backends.tf_function(log_posterior, shape)

    names = tf.constant(classes["class_names"])
    target = tf.constant(classes["target_priors"])
    loss_target = tf.constant(classes["loss_target_priors"])
    occurs = loss_target > 0

    def answer(inputs, target_priors):
        logits = logits_of(inputs)["logits"]
        log_p = log_posterior(logits) / classes["temperature"]
        # From the mix of the loss, in which a class that never occurs has 0, and keeps it.
        change = tf.math.log(target_priors) - tf.math.log(tf.where(occurs, loss_target, 1.0))
        change = tf.cast(tf.where(occurs, change, 0.0), log_p.dtype)
        # One mix per example: the same at each of its positions.
        positions = [1] * (log_p.shape.rank - 2)
        change = tf.reshape(change, [-1, *positions, len(classes["class_names"])])
        probabilities = tf.nn.softmax(log_p + change)
        class_id = tf.argmax(probabilities, axis=-1)
        return {
            "probabilities": probabilities,
            "class_id": class_id,
            "class_name": tf.gather(names, class_id),
            "logits": logits,
        }

    @tf.function(input_signature=[specs], autograph=False)
    def serving_default(inputs):
        return answer(inputs, target)

    mix = tf.TensorSpec((None, len(classes["class_names"])), tf.float32, "target_priors")

    @tf.function(input_signature=[{**specs, "target_priors": mix}], autograph=False)
    def with_priors(inputs):
        inputs = dict(inputs)
        target_priors = inputs.pop("target_priors")
        valid = tf.reduce_all(tf.math.is_finite(target_priors) & (target_priors >= 0))
        valid &= tf.reduce_all(tf.reduce_sum(target_priors, axis=-1) > 0)
        valid &= tf.reduce_all(occurs | (target_priors == 0))
        check = tf.debugging.Assert(
            valid,
            [
                "`target_priors` must be a class mix, with 0 for classes that never occur. "
                "Received:",
                target_priors,
            ],
        )
        with tf.control_dependencies([check]):
            return answer(inputs, tf.identity(target_priors))

    for function in (serving_default, with_priors):
        function.get_concrete_function()
        archive.add_endpoint(function.__name__, function)
    return archive


def _rename_to_next_version(saved, path):
    """Moves a whole SavedModel to the next free version in `path` and returns where it is."""
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
