"""Trains on several machines with TensorFlow: the same command on each, told apart by `TF_CONFIG`.

    python examples/multi_worker.py --data shards --write-shards 6      # once: digits as six files
    TF_CONFIG='{"cluster": {"worker": ["host0:2222", "host1:2222"]},
                "task": {"type": "worker", "index": 0}}' \
        python examples/multi_worker.py --data shards --output shared/model.keras

Under `MultiWorkerMirroredStrategy` the `fit` of Keras 3 fails (keras-team/keras issue 20585), so
this is a loop of our own, on public APIs only. Each worker reads its own shards; the class priors
are merged before training. Worker 0 saves the model as it trains, to a path that all workers see.
A job that lost a worker ends, and when all workers are started again it resumes where it was saved.
Without `TF_CONFIG` it trains on this machine alone, to the same weights.
"""

import argparse
import faulthandler
import hashlib
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_balanced import BalancedAccuracy, ClassPrior, GCALoss, datasets

NUM_CLASSES = 10


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, help="directory of the shards")
    parser.add_argument("--write-shards", type=int, metavar="N", help="write N shards, and end")
    parser.add_argument("--output", type=pathlib.Path, default="results/multi_worker.keras")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--batch-size", type=int, default=60, help="of all workers together")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=300, help="seconds without a step")
    args = parser.parse_args(argv)
    for name in ("write_shards", "steps", "save_every", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"`{name}` must be at least 1. Received: {getattr(args, name)}")
    return args


def write_shards(directory, number, seed):
    """Writes the long-tailed digits as `number` files of the same size, and the test set."""
    (x, y), test = datasets.load("digits", imbalance_ratio=20, seed=seed)
    order = np.random.default_rng(seed).permutation(len(y) // number * number)
    directory.mkdir(parents=True, exist_ok=True)
    for shard in range(number):
        chosen = order[shard::number]
        np.savez(directory / f"train-{shard:03d}.npz", x=x[chosen], y=y[chosen])
    np.savez(directory / "test.npz", x=test[0], y=test[1])


def shards_of_worker(args, worker, num_workers, num_replicas):
    """Returns the files of this worker, and how many examples of each go into a global batch."""
    paths = sorted(args.data.glob("train-*.npz"))
    if not paths or len(paths) % num_workers:
        raise SystemExit(
            f"The number of shards must be a multiple of the {num_workers} workers. "
            f"Received: {len(paths)} files train-*.npz in {args.data}"
        )
    for name, number in (("replicas", num_replicas), ("shards", len(paths))):
        if args.batch_size % number:
            raise SystemExit(
                f"`batch_size` must be a multiple of the {number} {name}: uneven parts would "
                f"change the training. Received: batch_size={args.batch_size}"
            )
    return paths[worker::num_workers], args.batch_size // len(paths)


def batches(paths, each, per_replica, seed, step):
    """Batches of `per_replica`, from global batch `step` on, with `each` examples of a shard.

    What a shard gives depends on the seed alone, so any number of workers sees the same batches,
    also after a restart. All parts have one static shape, and no worker runs out first.
    """
    shards = []
    for path in paths:
        with np.load(path) as file:
            x, y = file["x"].astype("float32") / 255, file["y"].astype("int32")
        shard = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=seed)
        shards.append(shard.repeat().batch(each, drop_remainder=True))
    dataset = tf.data.Dataset.zip(tuple(shards)).map(
        lambda *parts: tuple(tf.concat(arrays, 0) for arrays in zip(*parts, strict=True))
    )
    dataset = dataset.skip(step).unbatch().batch(per_replica, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def merged_prior(paths, strategy, num_workers):
    """The class priors of all shards, of which this worker counts only its own."""
    prior = ClassPrior(NUM_CLASSES)
    for path in paths:
        with np.load(path) as file:
            prior.update_state(file["y"])
    # One row a replica; the replicas of one worker hold the same.
    rows = strategy.gather(strategy.run(lambda: tf.constant(prior.counts)[None]), axis=0)
    rows = rows.numpy()[:: strategy.num_replicas_in_sync // num_workers]
    prior.reset_state()
    prior.merge_state(ClassPrior(NUM_CLASSES, counts=row) for row in rows)
    return prior


def build(prior, args):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )
    # The sum, and not Keras's mean over the replica: see `train_step`.
    loss = GCALoss(prior, reduction="sum")
    model.compile(keras.optimizers.SGD(args.learning_rate, momentum=0.9), loss=loss)
    return model


def make_train_step(model, strategy, batch_size):
    def replica_step(x, y):
        with tf.GradientTape() as tape:
            # A part of the mean over the global batch: replicas add up their gradients.
            loss = model.loss(y, model(x, training=True)) / batch_size
            loss += sum(model.losses) / strategy.num_replicas_in_sync  # regularizers
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def train_step(batch):
        return strategy.reduce("SUM", strategy.run(replica_step, args=batch), axis=None)

    return train_step


def limit_time(seconds):
    """Ends the process, with a traceback, unless called again within `seconds`.

    A collective operation waits for ever for a worker that is gone, holds Python's lock and lets
    no signal through: only a thread outside Python can end it.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def save(model, path):
    """Saves so that a kill at any moment leaves the former file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.part.keras")
    model.save(part)
    part.replace(path)


def train(args, strategy, worker, num_workers):
    replicas = strategy.num_replicas_in_sync
    paths, each = shards_of_worker(args, worker, num_workers, replicas)
    prior = merged_prior(paths, strategy, num_workers)
    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        saved = args.output.exists()
        model = keras.models.load_model(args.output) if saved else build(prior, args)
        model.optimizer.build(model.trainable_variables)
    start = int(model.optimizer.iterations.numpy())
    print(f"Worker {worker}: counts {prior.counts.astype(int).tolist()}, starts at step {start}")

    data = strategy.distribute_datasets_from_function(
        lambda _: batches(paths, each, args.batch_size // replicas, args.seed, start)
    )
    train_step = make_train_step(model, strategy, args.batch_size)
    for step, batch in zip(range(start + 1, args.steps + 1), data):  # noqa: B905
        loss = float(train_step(batch))
        limit_time(args.time_limit)
        if step % args.save_every == 0 or step == args.steps:
            if worker == 0:
                save(model, args.output)
            print(f"Worker {worker}: step {step}, loss {loss:.4f}", flush=True)
    return model


def main(argv=None):
    args = parse_arguments(argv)
    if args.write_shards:
        write_shards(args.data, args.write_shards, args.seed)
        return
    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    num_workers = len(cluster.cluster_spec().as_dict().get("worker", ["this machine"]))
    worker = cluster.task_id or 0
    print(
        f"Worker {worker} of {num_workers}. It ends if the others do not join, or no step ends, "
        f"within {args.time_limit:g} s. Start all workers again to resume.",
        flush=True,
    )
    limit_time(args.time_limit)
    # Before any variable of Keras. This waits for the other workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=cluster)
    try:
        model = train(args, strategy, worker, num_workers)
    except tf.errors.OpError as error:
        print(f"Worker {worker}: lost another worker ({type(error).__name__}).", flush=True)
        os._exit(1)  # What TensorFlow does at exit waits for the others.
    weights = b"".join(w.tobytes() for w in model.get_weights())
    print(f"Worker {worker}: weights {hashlib.sha256(weights).hexdigest()[:16]}", flush=True)
    if worker == 0 and (args.data / "test.npz").exists():
        # Loaded again it is an ordinary model, of this machine alone.
        model = keras.models.load_model(args.output)
        with np.load(args.data / "test.npz") as file:
            metric = BalancedAccuracy(NUM_CLASSES)
            metric.update_state(file["y"], model(file["x"].astype("float32") / 255))
        print(f"Balanced accuracy on the test set: {float(metric.result()):.3f}")


if __name__ == "__main__":
    main()
