# %% [markdown]
# # From a trained model to the decision you are judged by
#
# You have a classifier, trained with plain cross-entropy, and you are judged by macro-F1: the mean
# of the F1 scores of the classes. The class with the largest probability is not the best answer
# then, and neither is the answer for balanced accuracy. In this tutorial you leave the model as it
# is, find the decision that is best for macro-F1 on held-out data, look at what changes, ask for a
# least recall of one class, and export it.

# %%
import keras
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from sklearn.datasets import make_classification
from sklearn.metrics import f1_score

from keras_balanced import Decision, GLALoss, plots, serving

# %% [markdown]
# ## A model that is there already
#
# Six kinds of events in a table, the rarest of them one in seventy. A part of the data is held out:
# the model has not seen it, and the decision is found on it. The test data come from the same
# source, as imbalanced as the rest, and are used to look at the end.

# %%
x, y = make_classification(
    n_samples=12_000,
    n_features=20,
    n_informative=8,
    n_classes=6,
    n_clusters_per_class=1,
    weights=[0.57, 0.25, 0.1, 0.05, 0.02, 0.01],
    class_sep=1.0,
    random_state=0,
)
x = x.astype("float32")
(x, x_val, x_test), (y, y_val, y_test) = np.split(x, [6000, 9000]), np.split(y, [6000, 9000])
print(np.bincount(y_val), "held-out examples of each class")

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((20,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(6)]
)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, y, epochs=10, batch_size=128, verbose=0)
z_val, z_test = (model.predict(part, verbose=0) for part in (x_val, x_test))

# %% [markdown]
# ## Say how it was trained, and calibrate
#
# `GLALoss(counts, tau=0)` *is* cross-entropy: it says what the logits mean. `calibrate` fits the
# temperature of the probabilities. The decision is found at that temperature, so this comes first.

# %%
loss = GLALoss(np.bincount(y), tau=0)
temperature = serving.calibrate(model, loss, (x_val, y_val)).temperature
print(f"temperature {temperature:.2f}")

# %% [markdown]
# ## Find the decision
#
# Two decisions need no search: that for plain accuracy, the largest logit, and that for balanced
# accuracy. `find_decision` looks for the class mix whose decision has the best macro-F1 on the
# held-out data.

# %%
found = serving.find_decision(z_val, y_val, loss, score="macro_f1", temperature=temperature)
decisions = {
    "plain accuracy": Decision(loss, target_priors=np.bincount(y)),
    "balanced accuracy": Decision(loss),
    "macro-F1": found.decision,
}
scores = {
    name: f1_score(y_test, decision(z_test), average="macro")
    for name, decision in decisions.items()
}
for name, score in scores.items():
    print(f"decided for {name}: macro-F1 {score:.3f} on the test data")
print(f"held-out data: {found.score:.3f}; expected on new data: {found.expected_score:.3f}")

# %% [markdown]
# `found.score` is the best of many on one set of data, and so it is too good. `expected_score` is
# not: each fifth of the held-out data is decided by what was found on the other four. Report that.
#
# ## What has changed
#
# Side by side: each row is a class, the diagonal its recall.

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
for ax, (name, decision) in zip(axes, decisions.items(), strict=True):
    plots.confusion_matrix(y_test, z_test, decision=decision, ax=ax)
    ax.set_title(f"for {name}")
plt.show()

# %% [markdown]
# ![Confusion matrices of the three decisions side by side](img/decision_1.png)
#
# Decided for accuracy the rare classes are lost to the frequent ones. Decided for balanced accuracy
# they are found, at the price of many false alarms among the frequent ones. For macro-F1 both
# count.
#
# ## A floor on one recall
#
# Say class 5 must be found four times in five. `min_recall` keeps that on the held-out data, and
# the rest is as good as it can then be. How well it holds on new data, `expected_recalls` says: of
# few examples a recall is known only roughly, so ask for more than you need.

# %%
safe = serving.find_decision(z_val, y_val, loss, min_recall={5: 0.8}, temperature=temperature)
print(f"recall of class 5: {found.recalls[5]:.2f} before, {safe.recalls[5]:.2f} with the floor")
print(f"macro-F1 {safe.score:.3f}; expected recall on new data {safe.expected_recalls[5]:.2f}")

# %% [markdown]
# ## Export
#
# What is served is what was measured: `class_id` follows the decision, and `probabilities` are
# calibrated, by default in the mix that the loss trains for.

# %%
version = serving.export(model, "results/tutorial_decision/served", safe.decision)
served = tf.saved_model.load(str(version)).signatures["serving_default"]
answers = served(inputs=tf.constant(x_test))["class_id"].numpy()
print(f"{np.mean(answers == safe.decision(z_test)):.0%} of the answers are those of the decision")

# %% [markdown]
# [Decisions](../decisions.md) has the other kinds: costs, budgets of alerts, other class mixes. For
# a model of scikit-learn pass its probabilities, and `GLALoss(..., tau=0, from_logits=False)`.
