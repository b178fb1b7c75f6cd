"""A feed of a small log learns from what it is answered, and what bots click is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.learning import played
from jobs.ranking_data import TrainingData
from tests.support.purchases import renewed_log

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

SMALL = {
    "ranking.candidates": 100,
    "training.trees": 40,
    "training.depth": 4,
    "training.ranking.dimensions": 8,
    "training.ranking.neighbours": 20,
    "training.ranking.tolerance": 0,
    "training.ranking.folds": 1,
    "training.ranking.fold": "20d",
    "feedback.lateness": "1h",
    "gateway.deadline": "10s",  # it is about what is learnt, not about time
    "model.deadline": "5s",
}


def test_clicks_make_a_better_version_and_poison_none(tmp_path: Path) -> None:
    data = TrainingData(renewed_log(), "a small log")
    report = played(tmp_path, data, 160, 15.0, 2, SMALL)
    published, better, refused = report["held"].values()
    assert report["versions before the bots"][-1] > 1, report
    assert refused and "not published" in report["poison"]["told"], report
    live = report["second half, live"]
    assert live["by the model"] > 0.9 * live["requests"], report
    # After half of so small a log the gate may still say no; then it did not after the whole.
    assert better is published, report
    assert live["versions"] == [2 if published else 1], report
