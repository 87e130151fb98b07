# %% [markdown]
# # Noisy labels: which q?
#
# `GLALoss(prior, q=...)` has a number `q` from 0 up to, but not including, 1. At 0 it is a
# cross-entropy: the less likely the model finds the label of an example, the harder that example
# pulls. A larger `q` makes the loss **bounded**: an example that the model finds very unlikely
# pulls little, because its label may be wrong. In this tutorial you choose `q` for labels that are
# partly wrong, and once more for labels that are right.

# %%
import keras
import numpy as np
from matplotlib import pyplot as plt

from keras_balanced import BalancedAccuracy, ClassPrior, GLALoss, datasets

# %% [markdown]
# ## Data with wrong labels
#
# Handwritten digits, the rarest class with a tenth of the images of the most frequent one. In
# training and validation data four labels in ten are replaced by another class, drawn at random.
# The test labels are right, to show at the end what the choice was worth; nothing is chosen by
# them.

# %%
NOISE = 0.4
(x, y), (x_val, y_val), (x_test, y_test) = datasets.load(
    "digits", imbalance_ratio=10, validation_split=0.3
)
rng = np.random.default_rng(0)


def make_noisy(labels):
    wrong = rng.random(len(labels)) < NOISE
    return np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels)


y_noisy, y_val_noisy = make_noisy(y), make_noisy(y_val)
print(f"{(y != y_noisy).mean():.0%} of {len(y)} training labels are wrong")

# %% [markdown]
# ## One training per q
#
# The class prior is counted on the labels that the model sees, the noisy ones. `tau=1` keeps the
# logit adjustment at its strength for every `q`. (The default, `1 / (1 - q)`, is the one for which
# the loss is proved consistent; at a large `q` it trains badly from scratch.)
#
# The network is large enough to memorise the training labels, the wrong ones too. That is when a
# large `q` helps: a network that does not learn wrong labels by heart has nothing to be saved from.


# %%
def fit(labels, q):
    keras.utils.set_random_seed(0)
    prior = ClassPrior(num_classes=10)
    prior.adapt(labels)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(512, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-3), GLALoss(prior, q=q, tau=1.0), metrics=[BalancedAccuracy(10)]
    )
    model.fit(x, labels, batch_size=32, epochs=60, verbose=0)
    return model


def balanced_accuracy(model, x, labels):
    return model.evaluate(x, labels, verbose=0, return_dict=True)["balanced_accuracy"]


QS = [0.0, 0.5, 0.7, 0.9]
trained = {
    "noisy": [fit(y_noisy, q) for q in QS],
    "clean": [fit(y, q) for q in QS],
}

# %% [markdown]
# ## The choice
#
# Compare by **balanced accuracy on held-out data**, whose labels are as noisy as those of training:
# that is what you have. It is far below the balanced accuracy on right labels, but a model that is
# better on one tends to be better on the other. Where two are level take the smaller `q`, as
# `argmax` does here. Never compare by `val_loss`: its scale depends on `q`.

# %%
validation = {
    "noisy": [balanced_accuracy(model, x_val, y_val_noisy) for model in trained["noisy"]],
    "clean": [balanced_accuracy(model, x_val, y_val) for model in trained["clean"]],
}
chosen = {kind: int(np.argmax(scores)) for kind, scores in validation.items()}
print({kind: f"q = {QS[index]}" for kind, index in chosen.items()})

# %% [markdown]
# ## What it was worth
#
# On the test labels, which are right. The rings mark the chosen values.

# %%
test = {
    kind: [balanced_accuracy(model, x_test, y_test) for model in models]
    for kind, models in trained.items()
}
axes = plt.subplots(layout="constrained")[1]
for kind, color in [("clean", "C0"), ("noisy", "C1")]:
    axes.plot(QS, test[kind], "o-", color=color, label=f"{kind} labels: test")
    axes.plot(QS, validation[kind], "x:", color=color, label=f"{kind} labels: held out")
    best = chosen[kind]
    axes.plot(QS[best], test[kind][best], "o", color=color, fillstyle="none", markersize=14)
axes.set_xlabel("q")
axes.set_ylabel("balanced accuracy")
axes.legend()
plt.show()

# %% [markdown]
# ![Balanced accuracy against q for clean and noisy labels](img/noisy_labels_1.png)
#
# With about four wrong labels in ten a large `q` is clearly ahead. With right labels all are level:
# the held-out part prefers 0.7 by a hair, and on the test set that is no better than 0. Such a
# difference is chance, so `q = 0` is right there. The reason is visible in how many of the wrong
# labels each model has learned by heart: fewer, the larger `q`.

# %%
wrong = y_noisy != y
memorised = [
    float((model.predict(x, verbose=0).argmax(axis=-1) == y_noisy)[wrong].mean())
    for model in trained["noisy"]
]
for q, fraction in zip(QS, memorised, strict=True):
    print(f"q = {q}: learned {fraction:.0%} of the wrong labels by heart")

# %% [markdown]
# This is one seed, one network and one kind of noise. Before you set `q`:
#
# * Leave it at 0 if you trust your labels.
# * If you do not, try 0.7 and 0.9 with `tau=1` (0.5 seldom helped), and choose as above. With few
#   held-out examples of the rare classes use [cross-validation](../tuning.md).
# * A network that does not learn the wrong labels by heart, because it is small or sees each image
#   only a few times, has less to gain, and can lose: a large `q` also trains more slowly.
# * On tables of two classes a lean to the frequent one gained what a `q` of 0.3 did: see
#   [which loss](../which_loss.md#wrong-labels).
