"""Training of a ranking job: figures, gate, feedback, what a version holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from jobs import ranking_data, ranking_training
from jobs.demo import retail
from jobs.environment import ROOT
from jobs.history_files import HistoryFileError
from jobs.ranking_data import TrainingData, examples_of
from jobs.ranking_training import GateRefused, split_of, summary, train
from jobs.settings import Settings, load
from model_server.backends import load_table
from model_server.repository import list_versions
from tests.support.purchases import build, small_log
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.examples import ExampleOptions, Examples, examples_before
from udfs.ranking.features import FEATURES
from udfs.ranking.index import ItemIndex


def silent(what: str, part: float) -> None:
    pass


@pytest.fixture
def job(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def settings_in(folder: Path, **changes: Any) -> Settings:
    small = {
        "model.path": str(folder / "models"),
        "ranking.candidates": 60,
        "training.trees": 30,
        "training.depth": 4,
        "training.ranking.folds": 1,
        "training.ranking.dimensions": 8,
        "training.ranking.neighbours": 20,
    }
    return load(ROOT / "conf" / "feed.yaml", small | changes)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return TrainingData(small_log(), "a small log")


def test_a_version_holds_items_model_and_figures(job: Settings, data: TrainingData) -> None:
    trained = train(job, data, silent)
    folder = trained.version.path
    assert len(ItemIndex.load(folder)) == len(data.log.item_ids)
    model = load_table(folder)
    assert model.feature_names == FEATURES
    scores = model.predict(np.full((3, len(FEATURES)), np.nan, np.float32))
    assert ((scores > 0) & (scores < 1)).all()
    metrics = orjson.loads((folder / "metrics.json").read_bytes())
    ours = metrics["figures"]["every_basket"]["streamscore"]
    assert ours["ndcg"] > metrics["figures"]["every_basket"]["popularity, all time"]["ndcg"]
    assert metrics["present"] is None
    shown = summary(trained)
    assert "hit rate@10" in shown["every basket: item-kNN"]


def test_training_again_gives_the_same_figures(job: Settings, data: TrainingData) -> None:
    first, second = (train(job, data, silent) for _ in range(2))
    assert first.metrics["figures"] == second.metrics["figures"]
    present = second.metrics["present"]
    ours = first.metrics["figures"]["every_basket"]["streamscore"]
    assert present["version"] == 1
    assert present["hit_rate"] == pytest.approx(ours["hit_rate"], abs=0.02)


def poisoned(data: TrainingData) -> TrainingData:
    """Many answers to real requests, each the opposite: clicks on all but what is liked."""
    split_ms = split_of(data.log, 0.6)
    options = CandidateOptions(count=60)
    chosen = ExampleOptions(folds=1, fold_days=20, negatives=1.0)
    honest = examples_before(data.log, split_ms, build, options, chosen, silent)
    labels = np.tile(1 - honest.labels, 10)
    feedback = Examples(np.tile(honest.features, (10, 1)), labels, 10 * honest.requests)
    return replace(data, feedback=feedback)


def test_a_poisoned_batch_of_clicks_is_stopped(job: Settings, data: TrainingData) -> None:
    train(job, data, silent)
    with pytest.raises(GateRefused, match="not published"):
        train(job, poisoned(data), silent)
    assert list_versions(job.model.path, "feed") == [1]
    train(job, data, silent)  # and what is honest comes through
    assert list_versions(job.model.path, "feed") == [1, 2]


def test_a_short_log_says_so(job: Settings, data: TrainingData) -> None:
    cut = data.log.part(slice(0, 300))
    with pytest.raises(ranking_training.TrainingError, match="requests"):
        train(job, replace(data, log=cut), silent)


def example(number: int, **changes: Any) -> dict[str, Any]:
    columns = ["user_clicks_count_24h", *FEATURES[::-1]]
    items = [
        {"item": "a", "label": 1, "features": [9, *range(len(FEATURES))]},
        {"item": "b", "label": 0, "features": [9, *[None] * len(FEATURES)]},
    ]
    document = {"kind": "example", "example_id": f"r{number}", "columns": columns, "items": items}
    return document | changes


def test_feedback_is_read_by_the_names_of_its_columns() -> None:
    late = {"kind": "late", "request_id": "r1", "item": "b"}
    found = examples_of([example(1), example(1), late, example(2)])
    assert found.requests == 2
    assert found.labels.tolist() == [1, 1, 1, 0]
    assert found.features[0].tolist() == list(range(len(FEATURES)))[::-1]
    assert np.isnan(found.features[1]).all()


def test_a_request_that_nobody_answered_is_left_out() -> None:
    unanswered = example(1)
    unanswered["items"] = [one | {"label": 0} for one in unanswered["items"]]
    late = {"kind": "late", "request_id": "r2", "item": "a"}
    assert examples_of([unanswered]).requests == 0
    found = examples_of([unanswered, unanswered | {"example_id": "r2"}, late])
    assert found.requests == 1 and found.labels.tolist() == [1, 0]


def test_a_feature_that_an_example_lacks_is_missing() -> None:
    one = example(1, columns=["item_trend"])
    one["items"] = [{"item": "a", "label": 1, "features": [0.5]}]
    (row,) = examples_of([one]).features
    assert row[FEATURES.index("item_trend")] == 0.5
    assert np.isnan(np.delete(row, FEATURES.index("item_trend"))).all()


def test_no_feedback_is_no_rows() -> None:
    assert examples_of([]).features.shape == (0, len(FEATURES))


def test_a_dump_of_the_events_topic_is_a_log(job: Settings, tmp_path: Path) -> None:
    bought = {"user": "7", "item": "b", "event_time_ms": 2_000, "price": 1.5, "kind": "purchase"}
    rows = [
        bought,
        bought,
        bought | {"item": "a", "event_time_ms": 1_000, "category": "BAG"},
        bought | {"kind": "request", "item": None},
        bought | {"kind": "view"},
    ]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    log = ranking_data.load(job, path, False, silent).log
    assert log.item_ids[log.items].tolist() == ["a", "b"]
    assert log.categories.tolist() == ["BAG", ""]
    assert log.times_ms.tolist() == [1_000, 2_000]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user": "7", "item": "b"}], "no column 'event_time_ms'"),
        ([{"user": "7", "item": "b", "event_time_ms": 1, "kind": "view"}], "no purchase in"),
    ],
)
def test_what_is_no_log_is_refused(
    job: Settings, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    path = tmp_path / "log.parquet"
    pd.DataFrame(rows).to_parquet(path)
    with pytest.raises(HistoryFileError, match=message):
        ranking_data.load(job, path, False, silent)


def test_without_online_retail_the_log_is_synthetic_and_says_so(
    job: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMSCORE_SHARED", str(tmp_path))
    found = ranking_data.load(job, None, False, silent)
    assert found.source.startswith("synthetic")
    assert len(found.log) > 100_000


def test_online_retail_is_cleaned_as_documented() -> None:
    path = retail.retail_file()
    if path is None:
        pytest.skip("../shared/data/online_retail.csv.gz is not there (STREAMSCORE_SHARED)")
    log = retail.read(path)
    assert (len(log), len(log.user_ids), len(log.item_ids)) == (386_326, 4_334, 3_659)
    assert not {"POST", "M", "DOT"} & set(log.item_ids.tolist())
    assert (np.diff(log.times_ms) >= 0).all()
    pairs = log.baskets.astype(np.int64) * len(log.item_ids) + log.items
    assert len(np.unique(pairs)) > 0.99 * len(pairs)  # two invoices of one minute are one basket
