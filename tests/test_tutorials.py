"""The tutorials, followed to the end: `make test-docs`."""

import re

import numpy as np
import pytest
import tutorials
from processes import ROOT

pytestmark = pytest.mark.docs
PAGES = ROOT / "docs" / "tutorials"


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Returns `follow(name)`: runs a tutorial, whose pictures must be those that its page shows."""
    monkeypatch.chdir(tmp_path)

    def follow(name):
        variables = tutorials.run(name, tmp_path / "img")
        drawn = {path.name for path in (tmp_path / "img").iterdir()}
        shown = re.findall(r"!\[.+\]\(img/(.+)\)", (PAGES / f"{name}.py").read_text())
        assert set(shown) == drawn
        return variables

    return follow


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_jupyter_opens_it(name):
    jupytext = pytest.importorskip("jupytext")
    cells = jupytext.read(PAGES / f"{name}.py").cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    assert sum(cell.cell_type == "code" for cell in cells) >= 5
    for cell in cells:
        if cell.cell_type == "code":
            compile(cell.source, name, "exec")
        for picture in re.findall(r"\]\((img/.+)\)", cell.source):
            assert (PAGES / picture).read_bytes().startswith(b"\x89PNG")


def test_images(follow):
    found = follow("images")
    assert found["class_names"] == sorted(found["words"])
    counts = dict(zip(found["class_names"], found["prior"].counts, strict=True))
    assert (counts["zero"], counts["nine"]) == (99, 5)  # As the page says.
    before, after = found["baseline_scores"], found["scores"]
    assert after["balanced_accuracy"] > before["balanced_accuracy"] + 0.02
    assert after["worst_class_recall"] > before["worst_class_recall"]
    # The names that the exported model answers are those of the folders.
    assert found["names"] == [found["class_names"][k] for k in found["predicted"]]
    right = np.mean(found["labels"] == found["predicted"])
    assert right == pytest.approx(after["balanced_accuracy"], abs=1e-6)  # 50 images of each.


def test_fraud(follow):
    found = follow("fraud")
    assert found["rate"] == pytest.approx(1 / 200, rel=0.01)
    name = "binary_balanced_accuracy"
    assert found["score"][name] > found["baseline_score"][name] + 0.1
    assert found["p_test"].sum() == pytest.approx(found["y_test"].sum(), rel=0.3)
    assert found["average_precision"] > 20 * found["rate"]
    costs = found["costs"]
    assert costs["by cost"] < min(costs["above 0.5"], costs["no alert"])
    assert found["alerts"].mean() == pytest.approx(0.01, rel=0.3)
    assert (found["p_val"] > found["threshold"]).mean() <= 0.01
    assert (found["served_alerts"] == found["alerts"]).all()


def test_tagging(follow):
    found = follow("tagging")
    x, y, weights = found["x"], found["y"], found["weights"]
    assert ((y == -1) == (x == 0)).all()
    counts = [((y == tag) * weights[:, None]).sum() for tag in range(4)]
    np.testing.assert_allclose(found["prior"].counts, counts)
    recalls = found["recalls"]
    for name in ("GLA", "GCA"):
        assert recalls[name].mean() > recalls["cross-entropy"].mean() + 0.1
        assert recalls[name][3] > recalls["cross-entropy"][3] + 0.3
    # More padding changes neither loss nor score.
    model = found["models"]["GLA"]
    padded = [np.pad(x, ((0, 0), (0, 5))), np.pad(y, ((0, 0), (0, 5)), constant_values=-1)]
    scores = [model.evaluate(*data, sample_weight=weights, verbose=0) for data in ((x, y), padded)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_noisy_labels(follow):
    found = follow("noisy_labels")
    chosen, test = found["chosen"], found["test"]
    assert found["QS"][chosen["noisy"]] >= 0.5
    assert test["noisy"][chosen["noisy"]] > test["noisy"][0] + 0.05
    assert test["clean"][chosen["clean"]] > test["noisy"][chosen["noisy"]]
    assert np.ptp(test["clean"]) < 0.03  # Level, as the page says.
    memorised = found["memorised"]
    assert memorised[0] > 0.5 > memorised[chosen["noisy"]]


def test_decision(follow):
    found = follow("decision")
    scores, best = found["scores"], found["found"]
    assert scores["macro-F1"] > scores["plain accuracy"] + 0.02
    assert scores["macro-F1"] > scores["balanced accuracy"] + 0.02
    # As the page says: the score on the held-out data is too good.
    assert best.expected_score < best.score
    assert abs(best.expected_score - scores["macro-F1"]) < 0.05
    assert best.recalls[5] < 0.8 <= found["safe"].recalls[5]
    np.testing.assert_array_equal(found["answers"], found["safe"].decision(found["z_test"]))
