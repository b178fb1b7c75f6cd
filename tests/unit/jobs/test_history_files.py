"""Histories of one's own, in three kinds of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.history_files import HistoryFileError, read_frame
from udfs.offline.history import history_of

SCHEMA = settings.load(ROOT / "conf" / "fraud.yaml").schema_


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n}" for n in range(4)],
            "event_time_ms": 1_735_689_600_000 + np.arange(4),
            "card_id": ["0001", "0002", "0001", "NA"],
            "terminal_id": ["0010", "0020", "0010", "0020"],
            "amount": [1.5, 2.0, 0.1, 100.0],
            "type": ["CP", "CNP", "CP", "CP"],
            "is_fraud": [0, 1, 0, 0],
        }
    )


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_file_is_read_as_it_was_written(frame: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"history.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    got = history_of(SCHEMA, read_frame(path, SCHEMA)).events
    wanted = history_of(SCHEMA, frame).events
    assert got.texts == wanted.texts
    assert got.times.tolist() == wanted.times.tolist()
    for name, numbers in got.numbers.items():
        np.testing.assert_array_equal(numbers, wanted.numbers[name])


def test_only_the_columns_asked_for_are_read_of_parquet(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    frame.assign(other=1).to_parquet(tmp_path / "history.parquet")
    got = read_frame(tmp_path / "history.parquet", SCHEMA, ["amount", "card_id", "absent"])
    assert list(got.columns) == ["card_id", "amount"]
    assert got["card_id"].tolist() == frame["card_id"].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "cannot be read"),
        ("history.xlsx", b"", "no known kind"),
        ("history.jsonl", b'{"a": 1}\n{"a":', "line 2 is not a JSON object"),
        ("list.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("history.parquet", b"no", "cannot be read"),
        ("history.csv", b"", "cannot be read"),
    ],
)
def test_an_unreadable_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HistoryFileError, match=message):
        read_frame(path, SCHEMA)
