"""Plots draw what they are given, on the axes they are given."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot
from sklearn import calibration, metrics

import keras_balanced
from keras_balanced import plots


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def test_class_counts():
    _, axes = pyplot.subplots()
    assert plots.class_counts([100, 10, 1], axes) is axes
    assert [bar.get_height() for bar in axes.patches] == [100, 10, 1]
    assert axes.get_yscale() == "log"
    assert all(bar.get_height() > axes.get_ylim()[0] for bar in axes.patches)


def test_class_recalls_as_bars():
    axes = plots.class_recalls({"ce": [0.9, 0.1], "gca": [0.8, 0.7]})
    assert [bar.get_height() for bar in axes.patches] == [0.9, 0.1, 0.8, 0.7]
    lefts = [bar.get_x() for bar in axes.patches]
    assert len(set(lefts)) == 4
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["ce (mean 0.50)", "gca (mean 0.75)"]


def test_many_classes_as_lines():
    recalls = np.linspace(1, 0, 100)
    axes = plots.class_recalls({"ce": recalls})
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), recalls)


def test_confusion_matrix_is_scikit_learns(rng):
    labels, predicted = rng.integers(0, 4, (2, 100))
    ax = plots.confusion_matrix(labels, predicted, class_names=np.array(list("abcd")))
    expected = metrics.confusion_matrix(labels, predicted, normalize="true")
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list("abcd")


@pytest.mark.parametrize(
    ("labels", "predicted"), [([0, 2], [0, 1]), ([0, 1], [0, -1]), ([0, 1], [0])]
)
def test_confusion_matrix_refuses(labels, predicted):
    with pytest.raises(ValueError, match=r"must be classes in \[0, 2\)"):
        plots.confusion_matrix(labels, predicted, class_names=["a", "b"])


def test_reliability_diagram_is_scikit_learns(rng):
    probabilities = rng.dirichlet(np.ones(3), 500)
    labels = rng.integers(0, 3, 500)
    _, ax = pyplot.subplots()
    assert plots.reliability_diagram({"a": probabilities}, labels, 10, ax) is ax
    observed, predicted = calibration.calibration_curve(
        np.eye(3)[labels].ravel(), probabilities.ravel(), n_bins=10
    )
    np.testing.assert_allclose(ax.lines[1].get_xdata(), predicted)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), observed)


def points(ax):
    return [line.get_xydata().tolist() for line in ax.lines]


@pytest.mark.parametrize("last", [(), (1,)])
def test_diagrams_of_time_steps(last, rng):
    loss, one = keras_balanced.GLALoss([6, 3, 1]), keras_balanced.BinaryGLALoss(0.2)
    # As many steps as classes, and as labels.
    z, y = rng.normal(size=(40, 3, 3)), rng.integers(0, 3, (40, 3))
    ax = plots.confusion_matrix(y.reshape(*y.shape, *last), z, decision=loss)
    expected = metrics.confusion_matrix(y.ravel(), z.argmax(-1).ravel(), normalize="true")
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    p = loss.posterior(z)
    expected = points(plots.reliability_diagram(p.reshape(-1, 3), y.ravel()))
    assert points(plots.reliability_diagram(p, y.reshape(*y.shape, *last))) == expected
    assert points(plots.reliability_diagram(p, np.eye(3)[y])) == expected

    z, y = rng.normal(size=(40, 3, 1)), rng.integers(0, 2, (40, 3))
    ax = plots.confusion_matrix(y.reshape(*y.shape, *last), z, decision=one)
    expected = metrics.confusion_matrix(y.ravel(), (z > 0).ravel(), normalize="true")
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    p = one.posterior(z)
    expected = points(plots.reliability_diagram(p.ravel(), y.ravel()))
    assert points(plots.reliability_diagram(p, y.reshape(*y.shape, *last))) == expected


def test_counts_of_zero_and_of_a_layer():
    ax = plots.class_counts(keras_balanced.ClassPrior(3, counts=[100, 0, 1]))
    assert [bar.get_height() for bar in ax.patches] == [100, 0, 1]


@pytest.mark.parametrize(
    ("probabilities", "labels"), [([[3.0, -1.0]], [0]), ([[0.5, 0.5]], [-1]), ([[0.5, 0.5]], [2])]
)
def test_reliability_diagram_refuses(probabilities, labels):
    with pytest.raises(ValueError, match=r"must be (probabilities|classes)"):
        plots.reliability_diagram(probabilities, labels)


def test_accuracy_against_q():
    def row(loss, q, accuracy, **option):
        return {
            **{"loss": loss, "q": q, "tau": None, "margins": None},
            **{"balanced_accuracy": accuracy, "standard_error": 0.1, **option},
        }

    axes = plots.accuracy_against_q(
        [row("gla", 0.5, 0.6, tau="1"), row("gla", 0.0, 0.7, tau="1"), row("gca", 0.2, 0.8)]
    )
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["gca", "gla, tau 1"]
    curves = [container[0].get_xydata().tolist() for container in axes.containers]
    assert curves == [[[0.2, 0.8]], [[0.0, 0.7], [0.5, 0.6]]]
    (segment,) = axes.containers[0][2][0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [0.7, 0.9])
