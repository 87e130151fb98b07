"""Every quirk of a backend, and every private name of Keras."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

Tensor: TypeAlias = Any  # A tensor of the backend in use: Keras has no type for it.

# Above so many classes, and up to so many numbers, TensorFlow's own cross-entropy is slower than
# ours in a graph on a CPU. With more numbers ours would take three arrays of the logits' size where
# TensorFlow takes two.
_NATIVE_CLASSES = 128
_NATIVE_NUMBERS = 2**21


def backend_name() -> str:
    """Returns the backend in use: `"tensorflow"`, `"jax"` or `"torch"`."""
    return keras.backend.backend()


def full_precision() -> str:
    """Returns Keras's default dtype, and `"float32"` where that is half precision.

    Half precision corrupts class ids above 256, and ends sums early.
    """
    dtype = keras.config.floatx()
    return dtype if dtype in ("float32", "float64") else "float32"


def long_integer() -> str:
    """Returns the widest dtype of signed integers: JAX has 32 bits unless told otherwise."""
    if backend_name() == "jax":
        import jax

        return "int64" if jax.config.jax_enable_x64 else "int32"
    return "int64"


def like(tensor: Tensor, values: Any) -> Tensor:
    """Returns constants as a tensor in the dtype of another."""
    # A copy: PyTorch warns of arrays that are read-only.
    return ops.convert_to_tensor(np.array(values), dtype=tensor.dtype)


def sparse_cross_entropy(
    labels: Tensor,
    logits: Tensor,
    num_classes: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Returns `-log softmax(logits * scale + shift)[labels]`, `(...)`, for labels in `[0, K)`.

    `logits` are `(..., K)`, `scale` is `(...)` and `shift` `(K,)`; `None` is 1 and 0.
    """
    adjusted = logits if scale is None else logits * scale[..., None]
    adjusted = adjusted if shift is None else adjusted + shift
    if backend_name() == "tensorflow" and not _native_is_slower((*logits.shape[:-1], num_classes)):
        return ops.sparse_categorical_crossentropy(labels, adjusted, from_logits=True)
    # With the true logit from the unadjusted ones, TensorFlow needs one array less.
    is_class = ops.equal(labels[..., None], ops.arange(num_classes, dtype=labels.dtype))
    zero = ops.convert_to_tensor(0.0, dtype=logits.dtype)
    true = ops.sum(ops.where(is_class, logits, zero), axis=-1)
    true = true if scale is None else true * scale
    true = true if shift is None else true + ops.take(shift, labels)
    maximum = ops.stop_gradient(largest(adjusted))
    normalizer = ops.log(ops.sum(ops.exp(adjusted - maximum[..., None]), axis=-1))
    return normalizer - (true - maximum)


def _native_is_slower(shape: tuple[Any, ...]) -> bool:
    batch = 256 if shape[0] is None else shape[0]  # Not known before it runs.
    if shape[-1] <= _NATIVE_CLASSES or None in shape[1:]:
        return False
    return math.prod((batch, *shape[1:])) <= _NATIVE_NUMBERS


def largest(values: Tensor) -> Tensor:
    """Returns the maximum over the last axis, also of an empty batch, which Keras refuses."""
    if backend_name() == "tensorflow":
        import tensorflow as tf

        return tf.reduce_max(values, axis=-1)
    if backend_name() == "torch":
        return values.amax(dim=-1)
    return ops.max(values, axis=-1)


def argmax(values: Tensor) -> Tensor:
    """Returns the place of the maximum over the last axis, int32: the first of equal ones.

    Keras's own takes -0.0 for less than 0.0 on TensorFlow and JAX, and needs operations that not
    every format of exported models has.
    """
    if backend_name() == "tensorflow":
        import tensorflow as tf

        return tf.argmax(values, axis=-1, output_type=tf.int32)
    if backend_name() == "jax":
        import jax

        return jax.numpy.argmax(values, axis=-1).astype("int32")
    return values.argmax(dim=-1).int()


def of_rows(function: Callable[[Tensor], Tensor], values: Any, axes: int) -> Any:
    """Returns the result of a function of tensors `(..., *axes)`: of an array as an array.

    JAX compiles every operation again for each new size: there rows of zeros are added, up to a
    power of two, to an array and to a tensor that has a value here.
    """
    is_numpy = isinstance(values, np.ndarray)
    if backend_name() == "jax" and values.ndim > axes and (is_numpy or _is_at_hand(values)):
        rows, kind = values.shape[0], ops.convert_to_tensor if not is_numpy else np.asarray
        added = (1 << max(rows - 1, 0).bit_length()) - rows
        padded = np.pad(values, [(0, added), *[(0, 0)] * (values.ndim - 1)])
        return kind(ops.convert_to_numpy(function(kind(padded)))[:rows])
    return ops.convert_to_numpy(function(values)) if is_numpy else function(values)


def _is_at_hand(tensor: Tensor) -> bool:
    """Returns whether a tensor of JAX has a value, and all of it on the devices of this process."""
    import jax

    return not isinstance(tensor, jax.core.Tracer) and tensor.is_fully_addressable


def refuse_unless(valid: Tensor, labels: Tensor, message: str) -> Tensor:
    """Returns `valid`, and raises an error that names the labels unless all are valid.

    It raises on PyTorch, and on TensorFlow without XLA. JAX cannot raise.
    """
    if backend_name() == "jax":
        return valid
    if backend_name() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly():

            def refuse() -> Tensor:
                # A label out of range is the smallest or the largest.
                low, high = tf.reduce_min(labels), tf.reduce_max(labels)
                received = [message, " Received: labels from", low, "to", high]
                with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=received)]):
                    return tf.constant(False)

            check = tf.cond(tf.reduce_all(valid), lambda: tf.constant(True), refuse)
            with tf.control_dependencies([check]):
                return tf.identity(valid)
    if not ops.all(valid):
        bad = np.unique(ops.convert_to_numpy(labels)[~ops.convert_to_numpy(valid)])
        raise ValueError(f"{message} Received: labels {bad[:10].tolist()}")
    return valid


def is_dense_tensor(values: Any) -> bool:
    """Returns whether `values` is a tensor of the backend in use, or one without a value."""
    is_tensor = ops.is_tensor(values) or isinstance(values, keras.KerasTensor)
    return is_tensor and not is_ragged_or_sparse(values)


def own_tensor(values: Any) -> Tensor:
    """Returns an array, or a tensor of any library, as a tensor of the backend in use."""
    if ops.is_tensor(values):
        return values
    return ops.convert_to_tensor(ops.convert_to_numpy(values))


def is_ragged_or_sparse(values: Any) -> bool:
    """Returns whether `values` is a ragged or sparse tensor of any library."""
    if isinstance(values, np.ndarray):
        return False
    is_scipy, is_torch = hasattr(values, "toarray"), getattr(values, "is_sparse", False) is True
    return is_scipy or is_torch or type(values).__name__ in ("RaggedTensor", "SparseTensor", "BCOO")


def dense(values: Any) -> Any:
    """Returns a sparse tensor as a dense one."""
    if type(values).__name__ == "SparseTensor":
        import tensorflow as tf

        return tf.sparse.to_dense(values)
    return values.to_dense() if hasattr(values, "to_dense") else values.toarray()


def stored_values(values: Any) -> Any:
    """Returns the numbers `(N, ...)` that a ragged or sparse tensor holds, and no padding."""
    kind = type(values).__name__
    if kind == "RaggedTensor":
        return values.flat_values
    if kind in ("SparseTensor", "BCOO"):
        return values.values if kind == "SparseTensor" else values.data
    return values.coalesce().values() if hasattr(values, "coalesce") else values.data


def rows_of_values(ragged: Any) -> Any:
    """Returns the row `(N,)` of each value of a ragged tensor of two axes, or `None`."""
    return ragged.value_rowids() if getattr(ragged, "ragged_rank", None) == 1 else None


def is_endless_distributed(dataset: Any) -> bool:
    """Returns whether a dataset of a strategy of TensorFlow (2.21), without length, never ends."""
    return type(dataset).__name__ == "DistributedDataset" and int(dataset._cardinality) == -1


def sampler_of(loader: Any) -> Any:
    """Returns what gives a grain `DataLoader` its indices (grain 0.2.18), or `None`."""
    return getattr(loader, "_sampler", None)


def is_tf_symbol(tensor: Any) -> bool:
    """Returns whether a tensor belongs to a graph of `tf.data`."""
    return type(tensor).__name__ == "SymbolicTensor"


def tf_function(function: Callable[..., Any], *shapes: Sequence[int | None]) -> Callable[..., Any]:
    """Returns `function`, of tensors of static shapes, as a function that TensorFlow traces.

    Axes of unknown size are of one size where they have the same place.
    """
    if backend_name() != "jax":
        return function
    from jax.experimental import jax2tf

    free = [
        ", ".join(f"d{i}" if size is None else str(size) for i, size in enumerate(shape))
        for shape in shapes
    ]
    converted = jax2tf.convert(function, polymorphic_shapes=[f"({shape})" for shape in free])
    if shapes[0][0] is not None:
        return converted
    import tensorflow as tf

    def in_few_sizes(*tensors: Any) -> Any:
        # As in `of_rows`: it is compiled again for each number of rows that is served.
        rows = tf.shape(tensors[0])[:1]
        place = tf.searchsorted(tf.constant([2**i for i in range(31)]), rows)
        added = tf.bitwise.left_shift(tf.ones_like(place), place) - rows
        padded = []
        for tensor, shape in zip(tensors, shapes, strict=True):
            axes = tf.one_hot([1], 2 * len(shape), dtype="int32") * added
            more = tf.pad(tensor, tf.reshape(axes, (-1, 2)))
            padded.append(tf.ensure_shape(more, (None, *shape[1:])))
        return converted(*padded)[: rows[0]]

    return in_few_sizes


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns `function`, of a tensor `(N, ...)` for any `N`, compiled: for a loop run by hand."""

    @functools.wraps(function)
    def call(tensor: Tensor) -> Tensor:
        return _compiled(function, tuple(tensor.shape[1:]), tensor.dtype)(tensor)

    return call


@functools.cache
def _compiled(
    function: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: Any
) -> Callable[[Tensor], Tensor]:
    if backend_name() == "tensorflow":
        import tensorflow as tf

        signature = [tf.TensorSpec((None, *shape), dtype)]
        return tf.function(function, input_signature=signature, autograph=False)
    if backend_name() == "jax":
        import jax

        return jax.jit(function)
    return function


def get_mask(tensor: Tensor) -> Tensor | None:
    """Returns the Keras mask of a tensor, `(...)`, or `None`."""
    if backend_name() != "jax":
        return getattr(tensor, "_keras_mask", None)
    # On JAX the mask is no attribute of the tensor, but a layer is given it.
    mask = _read_mask()(tensor)
    return mask if len(mask.shape) else None


def set_mask(tensor: Tensor, mask: Tensor) -> Tensor:
    """Returns the tensor with a Keras mask `(...)`, and leaves that of the argument as it is."""
    return _set_mask()([tensor, mask])


class _ReadMask(keras.layers.Layer):
    """Gives the mask of its input, and a scalar where there is none."""

    supports_masking = True

    def __init__(self) -> None:
        # No cast of the input: it would lose the mask.
        super().__init__(name="read_mask", dtype="float32", autocast=False)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return ops.ones((), "bool") if mask is None else mask


class _SetMask(keras.layers.Layer):
    """Gives the first of its inputs with the second as its mask."""

    supports_masking = True

    def __init__(self) -> None:
        super().__init__(name="set_mask", dtype="float32", autocast=False)

    def call(self, inputs: list[Tensor]) -> Tensor:
        return ops.copy(inputs[0])

    def compute_mask(self, inputs: list[Tensor], previous_mask: Any) -> Tensor:
        return inputs[1]


# One layer for all calls: they have no state, and a layer takes long to make.
_read_mask = functools.cache(_ReadMask)
_set_mask = functools.cache(_SetMask)


def logits_of(y_pred: Tensor) -> Tensor | None:
    """Returns the logits that Keras keeps on the output of a softmax or sigmoid, or `None`."""
    return getattr(y_pred, "_keras_logits", None)


def are_probabilities(y_pred: Tensor) -> bool:
    """Returns whether `y_pred` comes out of a softmax or sigmoid, as far as can be seen.

    Keras marks it with its logits. A cast or a reshape loses the mark, but what made a tensor can
    be followed in a graph of TensorFlow, and where PyTorch records gradients.
    """
    if logits_of(y_pred) is not None:
        return True
    makers = ("Softmax", "Sigmoid")
    if backend_name() == "tensorflow":
        maker = y_pred.op if hasattr(y_pred, "op") else None
        while maker is not None and maker.type in _FORMS_OF_TENSORFLOW:
            maker = maker.inputs[0].op
        return maker is not None and maker.type in makers
    if backend_name() == "torch":
        maker = getattr(y_pred, "grad_fn", None)
        while maker is not None and maker.name().startswith(_FORMS_OF_TORCH):
            maker = maker.next_functions[0][0]
        return maker is not None and maker.name().startswith(makers)
    return False


# Operations that change no number.
_FORMS_OF_TENSORFLOW = ("Reshape", "Cast", "Identity", "Squeeze", "ExpandDims")
_FORMS_OF_TORCH = ("View", "UnsafeView", "ReshapeAlias", "ToCopy", "Squeeze", "Unsqueeze", "Clone")


_PROBABILITIES = (
    "Expected logits in `y_pred` since `from_logits=True`, but it is the output of a softmax or "
    "sigmoid. Remove that activation from the model's last layer, or pass `from_logits=False`."
)


def refuse_probabilities(y_pred: Tensor) -> None:
    """Raises if `y_pred` comes out of a softmax or sigmoid."""
    if are_probabilities(y_pred):
        raise ValueError(_PROBABILITIES)


def refuse_symbolic_probabilities(y_pred: keras.KerasTensor) -> None:
    """Raises if a symbolic tensor comes out of a softmax or sigmoid: on JAX that is all to see."""
    layer = next(filter(_changes_numbers, _before(y_pred)), None)
    if _gives_probabilities(layer):
        raise ValueError(_PROBABILITIES)


def refuse_probability_layer(model: keras.Model, output_name: str | None = None) -> None:
    """Raises if the layers of a model say that its output is probabilities."""
    layer = probability_layer(model, output_name)
    if layer is not None:
        raise ValueError(
            "`model` must give logits, since its loss has `from_logits=True`. Received: a model "
            f"that ends in the softmax or sigmoid of its layer {layer.name!r}"
        )


def gives_mask(model: keras.Model) -> bool:
    """Returns whether the output of a functional model comes with a Keras mask."""
    return getattr(model.outputs[0], "_keras_mask", None) is not None


def set_direction(metric: keras.metrics.Metric, direction: str) -> None:
    """Tells Keras's callbacks whether a metric should go `"up"` or `"down"`."""
    metric._direction = direction


def refuse_tf_keras() -> None:
    """Raises if a model of `tf_keras` is calling: it would drop the weights of the examples."""
    frame = sys._getframe() if "tf_keras" in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("tf_keras."):
            raise ValueError(
                "The losses of keras_balanced need a model of Keras 3 (`import keras`). Received: "
                "a model of `tf_keras`, which drops the `sample_weight` of their examples"
            )
        frame = frame.f_back


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns what a model was compiled with, as `compile` takes it, except for the loss."""
    if not model.compiled:
        return {}
    # As of Keras 3.10. The public `get_compile_config` has no functions that are not registered.
    arguments = dict(model._compile_config.config)
    del arguments["loss"]
    # These may have been set since.
    now = {name: getattr(model, name) for name in ("run_eagerly", "steps_per_execution")}
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    return {**arguments, **now, "optimizer": model.optimizer, "auto_scale_loss": is_scaled}


def compiled_metrics(model: keras.Model, output_name: str | None = None) -> Iterator[Any]:
    """Yields the metrics that a model was compiled with: of one output where it is named."""
    compiled, names = compile_arguments(model), list(getattr(model, "output_names", ()))
    for kind in ("metrics", "weighted_metrics"):
        of_kind = compiled.get(kind)
        if output_name is not None and isinstance(of_kind, dict):
            of_kind = of_kind.get(output_name)
        elif output_name in names and len(names) > 1 and of_kind:
            of_kind = of_kind[names.index(output_name)]  # A list has one entry for each output.
        yield from (metric for metric in keras.tree.flatten(of_kind) if metric is not None)


def input_structure(model: keras.Model) -> Any:
    """Returns the symbolic inputs of a model as it takes them: one, or a list or dict of them."""
    # A Sequential that was never called has no `input`.
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def layers_within(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers of a model, also those within others."""
    yield from model._flatten_layers(include_self=False)


def probability_layer(model: keras.Model, output_name: str | None = None) -> Any:
    """Returns the softmax or sigmoid, or the layer with one, that a model ends in, or `None`.

    It is found behind layers that change only the form too, and on JAX, where Keras leaves no mark.
    `None` also for a subclassed model: its layers do not say in which order they are called.
    """
    layer = layer_at_end(model, output_name)
    return layer if _gives_probabilities(layer) else None


def _gives_probabilities(layer: Any) -> bool:
    return is_softmax(layer) or _is_activation(layer)


def is_softmax(layer: Any) -> bool:
    """Returns whether a layer or operation is a softmax or sigmoid, and nothing else."""
    kind = type(layer).__name__
    return kind in ("Softmax", "Sigmoid") or (kind == "Activation" and _is_activation(layer))


def _is_activation(layer: Any) -> bool:
    activations = (keras.activations.softmax, keras.activations.sigmoid)
    return getattr(layer, "activation", None) in activations


def layer_at_end(model: keras.Model, output_name: str | None = None) -> Any:
    """Returns the last layer or operation of a model that changes numbers, or `None`."""
    return next(layers_from_the_end(model, output_name), None)


def layers_from_the_end(model: keras.Model, output_name: str | None = None) -> Iterator[Any]:
    """Yields the layers and operations of a model that change numbers, from an output backwards."""
    return filter(_changes_numbers, _from_the_end(model, output_name))


def _changes_numbers(layer: Any) -> bool:
    kind, activation = type(layer).__name__, getattr(layer, "activation", None)
    return kind not in _FORMS and (kind, activation) != ("Activation", keras.activations.linear)


# Layers and operations that change no number of an answer.
_FORMS = (
    *("Reshape", "Flatten", "Permute", "Transpose", "Moveaxis", "Swapaxes", "Squeeze"),
    *("ExpandDims", "Identity", "Cast", "StopGradient", "ActivityRegularization"),
    *("Dropout", "GaussianNoise"),
)


def _from_the_end(model: keras.Model, output_name: str | None = None) -> Iterator[Any]:
    """Yields the layers and operations of a model, from an output backwards."""
    if not getattr(model, "outputs", None):
        if isinstance(model, keras.Sequential):  # Not built.
            for layer in reversed(model.layers):
                yield from _within(layer)
        return
    yield from _before(model.outputs[0] if output_name is None else model.output[output_name])


def _before(tensor: Any) -> Iterator[Any]:
    """Yields the layers and operations that a symbolic tensor comes from, the last one first."""
    while (history := getattr(tensor, "_keras_history", None)) is not None:
        operation, node = history.operation, history.node_index
        yield from _within(operation)
        inputs = operation._inbound_nodes[node].input_tensors
        if len(inputs) != 1:
            return
        tensor = inputs[0]


def _within(layer: Any) -> Iterator[Any]:
    """Yields a layer, or those of a model whose order is known, from its end backwards."""
    layer = layer.layer if type(layer).__name__ == "TimeDistributed" else layer
    is_known = isinstance(layer, keras.Sequential) or getattr(layer, "outputs", None)
    yield from _from_the_end(layer) if is_known else [layer]
