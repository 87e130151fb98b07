# %% [markdown]
# # A fraud table
#
# One payment in 200 is a fraud. In this tutorial you train a network with a single output on a
# table, turn its output into probabilities, choose from which probability on to raise an alert,
# and export the model together with that threshold.

# %%
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib import pyplot as plt
from sklearn.metrics import PrecisionRecallDisplay, average_precision_score
from sklearn.model_selection import train_test_split

from keras_balanced import BinaryBalancedAccuracy, BinaryGLALoss, Decision, plots, serving

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The table
#
# Generated, so that the tutorial needs no download. Frauds tend to be larger, at night, far from
# home and from young accounts, but many look like any other payment.

# %%
rng = np.random.default_rng(0)
fraud = (np.arange(60_000) < 300).astype("float32")  # 1 in 200
table = pd.DataFrame(
    {
        "log_amount": rng.normal(3.5 + 1.0 * fraud, 1.0),
        "hours_from_midnight": np.abs(rng.normal(9 - 4 * fraud, 3.0)),
        "log_distance": rng.normal(1.0 + 1.5 * fraud, 1.2),
        "log_account_days": rng.normal(6.0 - 1.2 * fraud, 1.0),
        "new_device": rng.random(len(fraud)) < 0.05 + 0.45 * fraud,
    }
).astype("float32")
x_train, x_test, y_train, y_test = train_test_split(
    table.to_numpy(), fraud, test_size=0.5, stratify=fraud, random_state=0
)
x_train, x_val, y_train, y_val = train_test_split(
    x_train, y_train, test_size=0.4, stratify=y_train, random_state=0
)
print(table.groupby(fraud).mean().round(2))

# %% [markdown]
# ## The loss and the model
#
# The binary losses take the **rate** of label 1 in the training data. The model ends in one
# logit, without a sigmoid.

# %%
rate = y_train.mean()
normalization = keras.layers.Normalization()
normalization.adapt(x_train)


def fit(loss, metric):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((x_train.shape[1],)),
            normalization,
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), loss=loss, metrics=[metric])
    stop = keras.callbacks.EarlyStopping(
        "val_binary_balanced_accuracy", mode="max", patience=5, restore_best_weights=True
    )
    model.fit(
        *(x_train, y_train),
        batch_size=256,
        epochs=20,
        validation_data=(x_val, y_val),
        callbacks=[stop],
        verbose=0,
    )
    return model


# %% [markdown]
# Plain accuracy would be 0.995 for a model that never says "fraud". **Balanced accuracy** is the
# mean of two recalls: which fraction of the frauds is found, and which fraction of the other
# payments passes. It is 0.5 for such a model.
#
# With `decision=loss` the metric predicts by the loss's default decision, as the
# exported model will.

# %%
baseline = fit(keras.losses.BinaryCrossentropy(from_logits=True), BinaryBalancedAccuracy())
loss = BinaryGLALoss(rate)
model = fit(loss, BinaryBalancedAccuracy(decision=loss))
baseline_score = baseline.evaluate(x_test, y_test, return_dict=True, verbose=0)
score = model.evaluate(x_test, y_test, return_dict=True, verbose=0)
for name, scores in [("cross-entropy", baseline_score), ("GLA", score)]:
    print(f"{name}: balanced accuracy {scores['binary_balanced_accuracy']:.3f}")

# %% [markdown]
# ## Probabilities
#
# A balanced loss moves the logit, so its sigmoid is not the probability of fraud. `posterior` is,
# for the rate that you state. `calibrate` fits one number, the temperature, on held-out data: it
# makes probabilities less extreme if the model is too sure.

# %%
calibration = serving.calibrate(model, loss, (x_val, y_val))


def fraud_probabilities(x):
    logits = model.predict(x, batch_size=4096, verbose=0)
    return loss.posterior(logits, priors=rate, temperature=calibration.temperature)[:, 0]


p_val, p_test = fraud_probabilities(x_val), fraud_probabilities(x_test)
print(f"temperature {calibration.temperature:.2f}")
print(f"frauds expected in the test set: {p_test.sum():.0f}, found there: {y_test.sum():.0f}")

# %% [markdown]
# ## The precision-recall curve
#
# Each threshold on the probability gives one point: the recall is the fraction of the frauds that
# raise an alert, the precision the fraction of the alerts that are frauds.

# %%
PrecisionRecallDisplay.from_predictions(y_test, p_test, name="GLA", plot_chance_level=True)
plt.show()
average_precision = average_precision_score(y_test, p_test)
print(f"average precision {average_precision:.2f}")

# %% [markdown]
# ![Precision against recall, and the level of alerts at random](img/fraud_1.png)
#
# ## A threshold by cost
#
# Say a missed fraud costs 20 times as much as a false alert. Then an alert pays off where the
# probability of fraud exceeds `1 / (1 + 20)`. This needs no search, only right probabilities.

# %%
by_cost = 1 / (1 + 20)


def cost(threshold):
    alerts = p_test > threshold
    return int(20 * ((y_test == 1) & ~alerts).sum() + ((y_test == 0) & alerts).sum())


costs = {"no alert": cost(1.0), "above 0.5": cost(0.5), "by cost": cost(by_cost)}
print(costs)

# %% [markdown]
# ## A threshold by budget
#
# Say your team can look at 1 payment in 100. `find_threshold` looks on held-out data for the
# lowest threshold that stays within that budget. It can also ask for a precision.

# %%
threshold = serving.find_threshold(p_val, max_alert_rate=0.01)
precise = serving.find_threshold(p_val, y_val, min_precision=0.5)
alerts = p_test > threshold
recall = alerts[y_test == 1].mean()
print(f"threshold {threshold:.3f}: {alerts.mean():.2%} alerts, recall {recall:.2f}")
plots.confusion_matrix(y_test, alerts, class_names=["fraud"])
plt.show()

# %% [markdown]
# ![Which fraction of frauds and of other payments raise an alert](img/fraud_2.png)
#
# The budget holds for the validation data. On new payments the number of alerts varies a little.
#
# ## Export
#
# The exported model answers with the probabilities and with `class_name`, which is `fraud` where
# the probability exceeds the threshold. Give it the rate and the temperature with which you chose
# the threshold.

# %%
decision = Decision(loss, threshold=threshold, priors=rate, temperature=calibration.temperature)
version = serving.export(model, "results/tutorial_fraud/served", decision, class_names=["fraud"])
served = tf.saved_model.load(str(version)).signatures["serving_default"]
answers = served(inputs=tf.constant(x_test))
served_alerts = answers["class_name"].numpy() == b"fraud"
print(f"{served_alerts.sum()} alerts from the exported model, {alerts.sum()} here")

# %% [markdown]
# [One logit](../binary.md) has the details: losses, thresholds for several labels, and a rate that
# changes in production.
