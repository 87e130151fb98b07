# %% [markdown]
# # Tagging sequences with padding
#
# Each word of a sentence gets a tag: a person, a place, a drug, or, most often, none of them. The
# sentences differ in length, so the short ones are padded. In this tutorial you count the tags
# without the padding, keep the padding out of loss and metrics, weight sentences, and compare
# cross-entropy with two balanced losses.

# %%
import keras
import numpy as np
from matplotlib import pyplot as plt

from keras_balanced import (
    BalancedAccuracy,
    ClassPrior,
    ClassRecall,
    GCALoss,
    GLALoss,
    plots,
)

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The sentences
#
# Generated: word ids from 1 to 199; 0 is the padding. A person follows a title (ids 1 to 4), a
# place a preposition (5 to 8) and a drug a number (9 to 12). But such pairs of words also occur
# by chance, where the tag is `none`: of the pairs that look like a drug only some are one.

# %%
TAGS = ["none", "person", "place", "drug"]
LENGTH = 20


def sentences(number, seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 200, (number, LENGTH))
    tags = np.zeros((number, LENGTH), int)
    # How often each tag occurs, and the first of the four words that come before it.
    for tag, (rate, cue) in enumerate([(0.04, 1), (0.02, 5), (0.004, 9)], start=1):
        rows, columns = np.nonzero(rng.random((number, LENGTH - 1)) < rate)
        words[rows, columns] = rng.integers(cue, cue + 4, len(rows))
        words[rows, columns + 1] = rng.integers(13, 80, len(rows))
        tags[rows, columns] = 0
        tags[rows, columns + 1] = tag
    lengths = rng.integers(5, LENGTH + 1, number)
    padding = np.arange(LENGTH) >= lengths[:, None]
    words[padding], tags[padding] = 0, -1
    return words, tags


(x, y), (x_val, y_val), (x_test, y_test) = (
    sentences(number, seed) for seed, number in enumerate([3000, 500, 3000])
)
print(x[0])
print(y[0])

# %% [markdown]
# ## Padding
#
# The label of the padding is -1, which is no class. `ignore_class=-1` in the class prior, the loss
# and the metrics leaves those positions out: they are not counted, have no gradient and no part in
# the mean. This works on every backend.
#
# The embedding's mask (`mask_zero=True`) is for the recurrent layer, which must not read the
# padding. Keras hands the mask to the loss too, but not to metrics on JAX: hence `ignore_class`.
#
# ## Weights
#
# Say only the first 1000 sentences were tagged by hand, and the others, tagged by a program, shall
# count half. A weight per sentence, `(N,)`, is enough for tags `(N, T)`. The class prior takes the
# same weights: it must be the class mix that the loss sees.

# %%
weights = np.where(np.arange(len(x)) < 1000, 1.0, 0.5)
prior = ClassPrior(len(TAGS), ignore_class=-1)
prior.adapt(y, sample_weight=weights)
print(dict(zip(TAGS, prior.counts.tolist(), strict=True)))
axes = plots.class_counts(prior)
axes.set_xticks(range(len(TAGS)), TAGS)
plt.show()

# %% [markdown]
# ![How many words have each tag, by weight](img/tagging_1.png)
#
# ## Model and training
#
# The model gives one logit per word and tag, `(N, T, 4)`. Keras hands `sample_weight` to the loss
# and to `weighted_metrics`, never to `metrics`.
#
# `GLALoss(prior, tau=0)` is cross-entropy: `tau` is the strength of the adjustment for rare
# classes. (Keras's own cross-entropy cannot combine a mask with one weight per sentence.)


# %%
def fit(loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(200, 16, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.GRU(16, return_sequences=True)),
            keras.layers.Dense(len(TAGS)),
        ]
    )
    metric = BalancedAccuracy(len(TAGS), ignore_class=-1)
    model.compile(keras.optimizers.Adam(1e-2), loss=loss, weighted_metrics=[metric])
    model.fit(
        *(x, y),
        sample_weight=weights,
        batch_size=64,
        epochs=6,
        validation_data=(x_val, y_val),
        verbose=0,
    )
    return model


losses = {
    "cross-entropy": GLALoss(prior, tau=0, ignore_class=-1),
    "GLA": GLALoss(prior, ignore_class=-1),
    "GCA": GCALoss(prior, ignore_class=-1),
}
models = {name: fit(loss) for name, loss in losses.items()}

# %% [markdown]
# ## Which tags are found
#
# With `decision=loss` the metric decides by the loss's `posterior`, its probabilities where all
# tags are equally frequent. For GLA that is the argmax of the logits, for GCA with margins it is
# not.

# %%
recalls = {}
for name, model in models.items():
    loss = losses[name] if name != "cross-entropy" else None
    metric = ClassRecall(len(TAGS), ignore_class=-1, decision=loss)
    metric.update_state(y_test, model.predict(x_test, batch_size=500, verbose=0))
    recalls[name] = keras.ops.convert_to_numpy(metric.result())
    print(name, {tag: f"{recall:.2f}" for tag, recall in zip(TAGS, recalls[name], strict=True)})
axes = plots.class_recalls(recalls)
axes.set_xticks(range(len(TAGS)), TAGS)
plt.show()

# %% [markdown]
# ![Recall of each tag with each loss](img/tagging_2.png)
#
# Cross-entropy misses many drugs, since of the pairs that look like one most are none. The
# balanced losses find nearly all and pay with words that are tagged for nothing, as the first row
# of the confusion matrix shows.

# %%
is_word = y_test >= 0
predicted = models["GLA"].predict(x_test, batch_size=500, verbose=0).argmax(axis=-1)
plots.confusion_matrix(y_test[is_word], predicted[is_word], class_names=TAGS)
plt.show()

# %% [markdown]
# ![Confusion matrix of the GLA model](img/tagging_3.png)
#
# If that is too high a price, ask for a class mix between that of the data and the uniform one:
# `target_priors=prior.priors**0.5` in the loss, or in `posterior` after training.
# [Labels](../labels.md) says what else labels, weights and masks may look like.

# %%
logits = models["GLA"].predict(x_test, batch_size=500, verbose=0)
between = losses["GLA"].posterior(logits, priors=prior.priors**0.5).argmax(axis=-1)
for name, tags in [("uniform", predicted), ("between", between)]:
    found = (tags == y_test)[y_test == 3].mean()
    right = (y_test == 3)[(tags == 3) & is_word].mean()
    print(f"{name}: recall of drugs {found:.2f}, precision {right:.2f}")
