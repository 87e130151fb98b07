"""Do half precision, or the loop for accelerators, change what a training gives?

`mixed_bfloat16` against float32 on TensorFlow, three seeds of digits; and the loop of
`benchmarks/device_loop.py`, an epoch as one program on JAX, against `fit` on TensorFlow after three
epochs, five seeds, whose initial weights and batches the two do not share.
"""

from benchmarks import training, training_tables
from benchmarks.training import DIGITS

DTYPES = (None, "mixed_bfloat16")


def cases():
    losses = ("ce", "logit_adjusted", "gca")
    for dtype in DTYPES:
        for case in training.grid(
            DIGITS._replace(dtype=dtype), losses, range(3), dataset="digits", ratio=50.0
        ):
            yield case | {"backend": "tensorflow"}
    for backend in ("tensorflow", "jax"):
        short = DIGITS._replace(epochs=3)
        for case in training.grid(
            short, ("ce", "logit_adjusted"), range(5), dataset="digits", ratio=10.0
        ):
            yield case | {"backend": backend}


def measure(backend, **settings):
    import keras

    if keras.backend.backend() != backend:
        raise ValueError(f"needs KERAS_BACKEND={backend}. Received: {keras.backend.backend()}")
    return training.measure(**settings)


def report(runs):
    def table(epochs, backend):
        some = [
            run
            for run in runs
            if (run["settings"]["epochs"], run["settings"]["backend"]) == (epochs, backend)
        ]
        return training_tables.summary(training_tables.by_condition(some))

    return f"""## Half precision

{table(60, "tensorflow")}

## An epoch as one program

`fit` on TensorFlow:

{table(3, "tensorflow")}

The loop on JAX:

{table(3, "jax")}"""
