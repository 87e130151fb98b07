"""Trains on JAX with the images on the device, an epoch as one program.

`fit` feeds a device batch by batch from the host, where a small model waits for its images. Here
the images are on the device, shuffling, cropping and flipping are part of the program, and the
steps of an epoch are a scan. The state is Keras's: variables of the model and of the optimizer.
"""

import jax
from jax import numpy as jnp

from benchmarks import backups


def step_of(model, optimizer, loss):
    """Returns `step(state, images, labels) -> state`, the train step with the model's penalties."""

    def objective(trainable, non_trainable, images, labels):
        logits, non_trainable, penalties = model.stateless_call(
            trainable, non_trainable, images, training=True, return_losses=True
        )
        return loss(labels, logits) + sum(penalties), non_trainable

    def step(state, images, labels):
        trainable, non_trainable, slots = state
        gradients, non_trainable = jax.grad(objective, has_aux=True)(
            trainable, non_trainable, images, labels
        )
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return trainable, non_trainable, slots

    return step


def crop(key, x, chosen, side):
    """Returns the chosen images, each cropped to `side` pixels at random, half of them flipped."""
    key_of_corners, key_of_flips = jax.random.split(key)
    corners = jax.random.randint(key_of_corners, (len(chosen), 2), 0, x.shape[1] - side + 1)
    size = (1, side, side, x.shape[-1])
    images = jax.vmap(lambda i, corner: jax.lax.dynamic_slice(x, (i, *corner, 0), size)[0])(
        chosen, corners
    )
    flips = jax.random.bernoulli(key_of_flips, shape=(len(chosen), 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def epoch_of(step, batch_size, side, augment):
    """Returns `epoch(state, x, y, odds, key) -> state`, compiled.

    All batches are whole: what the last one lacks are images from the start of the epoch. `odds`
    are the probabilities to draw each image with; with `None` every image is drawn once.
    """

    @jax.jit
    def epoch(state, x, y, odds, key):
        steps = -(-len(y) // batch_size)
        key_of_order, key_of_crops = jax.random.split(key)
        if odds is None:
            order = jnp.resize(jax.random.permutation(key_of_order, len(y)), steps * batch_size)
        else:
            order = jax.random.choice(key_of_order, len(y), (steps * batch_size,), p=odds)

        def body(state, drawn):
            key, chosen = drawn
            images = crop(key, x, chosen, side) if augment else x[chosen]
            return step(state, images, y[chosen]), None

        keys = jax.random.split(key_of_crops, steps)
        return jax.lax.scan(body, state, (keys, order.reshape(steps, batch_size)))[0]

    return epoch


class Loop:
    """Epochs of one model, optimizer, loss and data."""

    def __init__(self, model, optimizer, loss, data, batch_size, augment, oversample=False, seed=0):
        self.x, self.y = map(jnp.asarray, data)
        self.optimizer, self.odds, self.key = optimizer, None, jax.random.key(seed)
        side = self.x.shape[1]
        if augment:
            margin = side // 8
            self.x = jnp.pad(self.x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        if oversample:
            self.odds = 1 / jnp.bincount(self.y)[self.y]
            self.odds /= self.odds.sum()
        self.parts = backups.parts_of(model, optimizer)
        self.step = step_of(model, optimizer, loss)
        self.epoch = epoch_of(self.step, batch_size, side, augment)

    def state(self):
        return tuple([variable.value for variable in part] for part in self.parts)

    def run(self, epochs, rate, backup=None):
        """Trains for `epochs`, at the rates `rate(epoch)`."""
        for epoch in epochs:
            self.optimizer.learning_rate = rate(epoch)
            key = jax.random.fold_in(self.key, epoch)
            state = self.epoch(self.state(), self.x, self.y, self.odds, key)
            for part, values in zip(self.parts, state, strict=True):
                for variable, value in zip(part, values, strict=True):
                    variable.assign(value)
            jax.block_until_ready(state)
            if backup is not None:
                backup.save_if_due(epoch + 1)
