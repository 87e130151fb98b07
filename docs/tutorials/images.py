# %% [markdown]
# # Images in folders
#
# You have one folder per class, and some classes have few images. In this tutorial you read such
# folders, train a backbone of `keras.applications` with cross-entropy and with a balanced loss,
# look at the recall of every class, and export the better model with its class names.
#
# **Recall** of a class is the fraction of its images that the model gets right. **Balanced
# accuracy** is the mean of the recalls: every class counts the same, however rare.

# %%
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from keras_balanced import (
    BalancedAccuracy,
    ClassPrior,
    ClassRecall,
    GLALoss,
    WorstClassRecall,
    callbacks,
    datasets,
    plots,
    serving,
)

keras.utils.set_random_seed(0)

# %% [markdown]
# ## The folders
#
# Here are 8x8 images of handwritten digits. The training images follow a long tail: 99 zeros and
# 5 nines. With your images, skip this cell.

# %%
folder = pathlib.Path("results/tutorial_images")
shutil.rmtree(folder, ignore_errors=True)
words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
parts = datasets.load("digits", imbalance_ratio=20, validation_split=0.2)
for part, (images, labels) in zip(["train", "validation", "test"], parts, strict=True):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / part / words[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, image, scale=False)

# %% [markdown]
# `image_dataset_from_directory` reads a folder. Two things to know:
#
# * Class ids follow the **alphabetical order** of the folder names, not the order of your list:
#   `eight` is 0 here. `class_names` holds the names in that order. Keep it, since `map`, `cache`
#   and `prefetch` return a dataset without it.
# * It **shuffles by default**, anew each time the dataset is read. That is right for training. For
#   validation and test set `shuffle=False`, so that labels and predictions keep the same order.

# %%
options = {"color_mode": "grayscale", "image_size": (32, 32), "batch_size": 32, "verbose": False}
train = keras.utils.image_dataset_from_directory(folder / "train", seed=0, **options)
validation, test = (
    keras.utils.image_dataset_from_directory(folder / part, shuffle=False, **options)
    for part in ("validation", "test")
)
class_names = train.class_names
validation, test = validation.cache(), test.cache()  # Not `train`: that would freeze its order.
print(class_names)

# %% [markdown]
# ## The class mix
#
# `ClassPrior` counts the classes in the training data. The balanced losses take it.

# %%
prior = ClassPrior(num_classes=len(class_names))
prior.adapt(train)
axes = plots.class_counts(prior)
axes.set_xticks(range(len(class_names)), class_names, rotation=45)
plt.show()

# %% [markdown]
# ![How many training images each class has](img/images_1.png)
#
# ## The model
#
# A `keras.applications` backbone without pretrained weights, and a head that ends in **logits**:
# no softmax, because the losses need the logits.
#
# Two lines are there because the images are so small and few. The later layers would shrink 32x32
# pixels to one, so we take the output of the fifth block. And batch normalization averages over
# more steps than we train, so we let it forget faster. With images of the usual size and
# `weights="imagenet"` (and 3 channels) leave both out.


# %%
def build():
    keras.utils.set_random_seed(0)
    mobile_net = keras.applications.MobileNet(
        (32, 32, 1), alpha=0.25, include_top=False, weights=None
    )
    for layer in mobile_net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    backbone = keras.Model(mobile_net.input, mobile_net.get_layer("conv_pw_5_relu").output)
    return keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            backbone,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(len(class_names)),
        ]
    )


# %% [markdown]
# ## Cross-entropy, to compare with


# %%
def fit(loss, *more_callbacks):
    model = build()
    model.compile(
        keras.optimizers.Adam(3e-3),
        loss=loss,
        metrics=[BalancedAccuracy(len(class_names)), WorstClassRecall(len(class_names))],
    )
    model.fit(
        train,
        shuffle=False,  # `train` does it itself.
        epochs=15,
        validation_data=validation,
        callbacks=more_callbacks,
        verbose=0,
    )
    return model


baseline = fit(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
baseline_scores = baseline.evaluate(test, return_dict=True, verbose=0)
print({name: round(score, 3) for name, score in baseline_scores.items()})

# %% [markdown]
# ## A balanced loss
#
# Only the loss changes. `GLALoss(prior)` adds the logarithm of each class's frequency to its logit
# during training, so that a rare class needs a larger logit to be right. `GCALoss(prior)`, which
# weights the classes and gives the rare ones a larger margin, is the other loss to try.
#
# `PerClassReport` prints the worst classes after each epoch and adds the recall of each to the
# logs. Callbacks that come after it in the list, such as `TensorBoard`, see them too.

# %%
report = callbacks.PerClassReport(validation, class_names=class_names, num_classes_shown=2)
model = fit(GLALoss(prior), report)
scores = model.evaluate(test, return_dict=True, verbose=0)
print({name: round(score, 3) for name, score in scores.items()})

# %% [markdown]
# ## What each class gained
#
# The test set has 50 images of each class. The classes are sorted by how many training images
# they have.


# %%
def recalls(model):
    metric = ClassRecall(len(class_names))
    for images, labels in test:
        metric.update_state(labels, model(images, training=False))
    return keras.ops.convert_to_numpy(metric.result())


order = np.argsort(-prior.counts)
axes = plots.class_recalls(
    {"cross-entropy": recalls(baseline)[order], "GLA": recalls(model)[order]}
)
axes.set_xticks(range(len(order)), [class_names[k] for k in order], rotation=45)
plt.show()

# %% [markdown]
# ![Recall of each class with cross-entropy and GLA](img/images_2.png)
#
# The confusion matrix shows with which classes the others are confused.

# %%
labels = np.concatenate([labels for _, labels in test])
predicted = model.predict(test, verbose=0).argmax(axis=-1)
plots.confusion_matrix(labels, predicted, class_names=class_names)
plt.show()

# %% [markdown]
# ![Confusion matrix of the GLA model](img/images_3.png)
#
# ## Export
#
# `export` writes a TensorFlow SavedModel that answers with class names and with probabilities. By
# default these hold where all classes are equally frequent; `target_priors=prior` gives those for
# the class mix of the training data. The exported model runs without this package.

# %%
version = serving.export(model, folder / "served", class_names=class_names)
served = tf.saved_model.load(str(version)).signatures["serving_default"]
images = np.concatenate([images for images, _ in test])
answers = served(inputs=tf.constant(images))
names = [name.decode() for name in answers["class_name"].numpy()]
print(names[:5], answers["probabilities"].numpy().max(axis=-1)[:5].round(2))

# %% [markdown]
# [Serving](../serving.md) goes on from here: calibration, other class mixes, TF Serving, LiteRT and
# ONNX.
