"""How fast does `ClassPrior.adapt` count?

Against `np.bincount` on the same array, and against a loop over the same `tf.data` pipeline that
does nothing; in turns, medians of the rounds and their range. Above 1 is faster than the yardstick.
"""

import numpy as np

from benchmarks import stats, timing


def cases():
    for num_classes in (10, 1000, 100_000):
        for dtype in ("int64", "int32", "uint8")[: 3 if num_classes < 256 else 2]:
            yield {"labels": 10**8, "num_classes": num_classes, "dtype": dtype, "rounds": 5}
    for batch_size, count in ((1, 10_000), (128, 500_000), (1024, 500_000)):
        yield {"labels": count, "num_classes": 1000, "batch_size": batch_size, "rounds": 5}


def measure(labels, num_classes, rounds, dtype="int64", batch_size=None):
    from keras_balanced import ClassPrior

    y = np.random.default_rng(0).integers(0, num_classes, labels).astype(dtype)
    prior = ClassPrior(num_classes)
    if batch_size is None:
        data, yardstick = y, lambda: np.bincount(y, minlength=num_classes)
    else:
        data = pipeline(y, batch_size)

        def yardstick():
            for _ in data:
                pass

    times = timing.in_turns({"adapt": lambda: prior.adapt(data), "yardstick": yardstick}, rounds)
    speeds = times["yardstick"] / times["adapt"]
    return {
        "seconds": round(float(np.median(times["adapt"])), 3),
        "speed": round(float(np.median(speeds)), 3),
        "range": [round(float(speed), 3) for speed in (speeds.min(), speeds.max())],
    }


def pipeline(y, batch_size):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((np.zeros((len(y), 8), "float32"), y))
    return data.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def report(runs):
    rows = []
    for run in runs:
        settings, result = run["settings"], run["result"]
        if "batch_size" in settings:
            data = f"`tf.data`, {settings['labels']:,} examples in batches of "
            data += f"{settings['batch_size']}, against an empty loop"
        else:
            data = f"{settings['labels']:,} labels of {settings['num_classes']:,} classes, "
            data += f"{settings['dtype']}, against `np.bincount`"
        low, high = result["range"]
        speed = f"{result['speed']:.2f}"
        rows.append([data, f"{result['seconds']:.2f}", speed, f"{low:.2f} to {high:.2f}"])
    return stats.table(["data", "seconds", "speed against the yardstick", "range"], rows)
