"""The rule that chooses new tables, the search for a threshold, and the verdict."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from benchmarks.questions import advice


def numbers(rng, rows=1200):
    rare = rng.random((rows, 2)) < 0.08
    columns = {
        "row": np.arange(rows),
        "frequent": rng.random(rows) < 0.5,
        "told": rare[:, 0],
        "size": 5.0 * rare[:, 0] + rng.random(rows),
        "outcome": rare[:, 1],
        "noise": rng.normal(size=rows),
        "same": np.zeros(rows),
    }
    return pd.DataFrame(columns).astype("float64")


def test_rule_takes_the_first_rare_column_that_others_do_not_tell():
    table = numbers(np.random.default_rng(0))
    assert advice.features(table, "told") == ["frequent", "outcome", "noise"]
    assert advice.outcome_of(table) == "told"
    # One of two parts of `told` at a time tells little, both together tell all.
    part = np.random.default_rng(1).random(len(table)) < 0.5
    table["size"] = table["told"] * part
    table["rest"] = table["told"] * ~part
    assert advice.determined(table, "told")
    assert advice.outcome_of(table) not in ("told", None)


def test_rule_leaves_out_small_tables_and_panels():
    table = numbers(np.random.default_rng(0))
    assert advice.outcome_of(table[:999]) is None
    assert advice.outcome_of(table.assign(person=np.arange(1200) // 8)) is None


@pytest.mark.parametrize("score", advice.SCORES)
def test_no_threshold_is_better(score):
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.1).astype(int)
    logits = np.round(rng.normal(size=300) + y, 1)  # With ties.

    def of(threshold):
        if score == "balanced accuracy":
            return balanced_accuracy_score(y, logits > threshold)
        return f1_score(y, logits > threshold, average="macro")

    best = max(of(threshold) for threshold in np.unique(logits)[:-1])
    assert of(advice.best_threshold(score, logits, y)) == pytest.approx(best)


@pytest.mark.parametrize(("lead", "told"), [(-1.0, "it changes"), (1.0, "it stands")])
@pytest.mark.parametrize("score", advice.SCORES)
def test_advice_changes_where_it_is_clearly_behind(score, lead, told):
    runs = []
    for table in range(1, 5):
        scores = {
            method: {score: {way: [50.0 + table * lead * (method == "GLA")] for way in advice.WAYS}}
            for method in (*advice.NETWORKS, *advice.MODELS)
        }
        runs.append({"settings": {"table": str(table)}, "result": {"scores": scores}})
    assert told in advice.verdict(runs, score)
