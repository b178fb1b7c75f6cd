"""The demo data's form and its cache, on a frame made by hand; the simulator is not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from jobs import settings
from jobs.demo import data as demo_data
from jobs.demo.data import DAY_MS, DataError, Size
from jobs.environment import ROOT
from udfs.batches.events import Decoder, split_batch

SIZE = demo_data.SIZES["small"]
NOON_MS = 1_735_732_800_000  # 2025-01-01T12:00:00Z


@pytest.fixture
def raw() -> pd.DataFrame:
    """Three of the simulator's transactions, out of order; the last two at the same time."""
    return pd.DataFrame(
        {
            "TRANSACTION_ID": [12, 7, 3],
            "TX_DATETIME": pd.to_datetime(
                ["2025-01-01 12:00:01", "2025-01-01 12:00:00", "2025-01-01 12:00:00"]
            ),
            "CUSTOMER_ID": [5, 99_999, 0],
            "TERMINAL_ID": [1, 2, 3],
            "TX_AMOUNT": [10.5, 0.01, 99.99],
            "TX_TYPE": ["CP", "CNP", "CP"],
            "TX_BILL_LAT": [1.123456789, 2.0, 3.0],
            "TX_BILL_LONG": [-1.987654321, 2.0, 3.0],
            "TX_SHIPP_LAT": [float("nan"), 2.0, float("nan")],
            "TX_SHIPP_LONG": [float("nan"), 2.0, float("nan")],
            "TX_TERM_LAT": [1.0, float("nan"), 3.0],
            "TX_TERM_LONG": [1.0, float("nan"), 3.0],
            "TX_FRAUD": [1, 0, 0],
        }
    )


@pytest.fixture
def frame(raw: pd.DataFrame) -> pd.DataFrame:
    return demo_data.to_events(raw)


def test_events_are_sorted_by_time_then_id(frame: pd.DataFrame) -> None:
    assert frame["transaction_id"].tolist() == ["t0000000003", "t0000000007", "t0000000012"]
    assert frame["event_time_ms"].tolist() == [NOON_MS, NOON_MS, NOON_MS + 1_000]
    assert tuple(frame.columns) == (*demo_data.EVENT_COLUMNS, "is_fraud")


def test_coordinates_lose_what_is_below_a_metre_and_amounts_nothing(frame: pd.DataFrame) -> None:
    last = frame.iloc[2]
    assert (last["billing_lat"], last["billing_lon"]) == (1.12346, -1.98765)
    assert last["amount"] == 10.5


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_unit_of_the_simulators_times_does_not_matter(raw: pd.DataFrame, unit: str) -> None:
    raw["TX_DATETIME"] = raw["TX_DATETIME"].astype(f"datetime64[{unit}]")
    assert demo_data.to_events(raw)["event_time_ms"].tolist()[0] == NOON_MS


def test_an_event_is_keyed_by_its_card_and_an_unknown_number_is_null(frame: pd.DataFrame) -> None:
    key, value = list(demo_data.event_json(frame))[2]
    assert key == b"c00005"
    assert orjson.loads(value) == {
        "transaction_id": "t0000000012",
        "event_time_ms": NOON_MS + 1_000,
        "card_id": "c00005",
        "terminal_id": "m00001",
        "amount": 10.5,
        "type": "CP",
        "billing_lat": 1.12346,
        "billing_lon": -1.98765,
        "shipping_lat": None,
        "shipping_lon": None,
        "terminal_lat": 1.0,
        "terminal_lon": 1.0,
    }


def test_a_label_is_keyed_by_its_terminal_and_known_a_week_later(frame: pd.DataFrame) -> None:
    key, value = list(demo_data.label_json(frame))[2]
    assert key == b"m00001"
    assert orjson.loads(value) == {
        "transaction_id": "t0000000012",
        "event_time_ms": NOON_MS + 1_000,
        "terminal_id": "m00001",
        "is_fraud": 1,
        "known_at_ms": NOON_MS + 1_000 + 7 * DAY_MS,
    }


def test_the_job_accepts_every_event_and_label(frame: pd.DataFrame) -> None:
    schema = settings.load(ROOT / "conf" / "fraud.yaml").schema_
    assert schema.labels is not None
    decoders = {
        "events": Decoder.for_events(schema.event, schema.stages),
        "labels": Decoder.for_labels(schema.labels, schema.event),
    }
    for name, records in (
        ("events", demo_data.event_json(frame)),
        ("labels", demo_data.label_json(frame)),
    ):
        values = [value for _, value in records]
        texts = [f"0 {n} {NOON_MS} {len(v)} {v.decode('latin-1')}" for n, v in enumerate(values)]
        decoded = decoders[name].decode(*split_batch(" ".join(texts)))
        assert decoded.rejects == []


def test_the_summary_counts(frame: pd.DataFrame, tmp_path: Path) -> None:
    facts = demo_data.summary(frame, "small", tmp_path)
    assert (facts["transactions"], facts["fraud"], facts["cards"]) == ("3", "33.33%", "3")
    assert facts["from"] == "2025-01-01T12:00:00+00:00"


class TestCache:
    @pytest.fixture
    def cache(self, raw: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A cache as `load` makes it, by a simulator that only hands out the raw frame."""

        def simulate(_python: Path, _size: Size, target: Path, _progress: Any) -> None:
            self.runs += 1
            raw.to_csv(target, index=False)

        self.runs = 0
        monkeypatch.setattr(demo_data, "_simulator_python", lambda *_: Path("python"))
        monkeypatch.setattr(demo_data, "_simulate", simulate)
        demo_data.load("small", tmp_path)
        return tmp_path / "data" / "small" / "transactions.csv"

    def test_a_second_load_reads_it(self, cache: Path, tmp_path: Path, frame: pd.DataFrame) -> None:
        pd.testing.assert_frame_equal(demo_data.load("small", tmp_path), frame)
        assert self.runs == 1
        assert {path.name for path in cache.parent.iterdir()} == {cache.name, "transactions.json"}

    @pytest.mark.parametrize("damage", ["cut", "changed", "no record", "no json", "other seed"])
    def test_a_broken_one_is_made_again(self, damage: str, cache: Path, tmp_path: Path) -> None:
        record = cache.with_suffix(".json")
        if damage == "cut":
            cache.write_bytes(cache.read_bytes()[:100])
        elif damage == "changed":
            cache.write_bytes(cache.read_bytes().replace(b"t0000000003", b"t0000000004"))
        elif damage == "no record":
            record.unlink()
        elif damage == "no json":
            record.write_text("{")
        else:
            document = json.loads(record.read_text())
            document["arguments"]["random_state"] += 1
            record.write_text(json.dumps(document))
        assert not demo_data.is_intact(cache, SIZE)
        assert len(demo_data.load("small", tmp_path)) == 3
        assert self.runs == 2

    def test_it_is_of_one_size_lock_and_format(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert demo_data.is_intact(cache, SIZE)
        assert not demo_data.is_intact(cache, replace(SIZE, nb_days=1))
        monkeypatch.setattr(demo_data, "FORMAT", demo_data.FORMAT + 1)
        assert not demo_data.is_intact(cache, SIZE)

    def test_a_failed_simulation_leaves_nothing_behind(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_python: Path, _size: Size, target: Path, _progress: Any) -> None:
            target.write_bytes(b"half")
            raise DataError("the simulator failed: out of memory", "retry")

        monkeypatch.setattr(demo_data, "_simulate", fail)
        cache.unlink()
        with pytest.raises(DataError, match="out of memory"):
            demo_data.load("small", tmp_path)
        assert [path.name for path in cache.parent.iterdir()] == ["transactions.json"]


def test_there_is_no_other_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose one of: small, full"):
        demo_data.load("huge", tmp_path)
