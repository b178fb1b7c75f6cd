"""Tables out of real files of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from tests.unit.udfs.test_tables import FIELDS
from udfs.definition.enrichment import TableSpec
from udfs.enrichment.table_files import TableFileError, put_file, state_of
from udfs.enrichment.tables import VersionedTable

ROWS = [
    {"merchant": "0012", "risk": 0.5, "country": "NO", "chains": 3, "open": True, "since": 100},
    {"merchant": "m2", "risk": None, "country": None, "chains": None, "open": False, "since": 200},
]
EXPECTED = {"0012": (0.5, "NO", 3.0, 1.0), "m2": (np.nan, None, 1.0, 0.0)}


def table(path: Path, **changes: Any) -> VersionedTable:
    whole = {"name": "shop", "key": "merchant", "file": str(path), "fields": FIELDS} | changes
    return VersionedTable(TableSpec.model_validate(whole))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".jsonl":
            path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        case ".parquet":
            chains = frame["chains"].astype("Int64")
            frame.assign(chains=chains).to_parquet(path, index=False)
    return path


def read(path: Path, into: VersionedTable) -> list[tuple[str, str]]:
    refused: list[tuple[str, str]] = []
    put_file(into, path, lambda where, why: refused.append((where, why)))
    return refused


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_each_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"shops.{kind}", ROWS)
    if kind == "csv":  # a whole number is written as one
        path.write_text(path.read_text().replace("3.0", "3"))
    shops = table(path)
    assert read(path, shops) == []
    for key, expected in EXPECTED.items():
        assert repr(shops.at(key, 0)) == repr(tuple(map(_plain, expected)))


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, float) else value


def test_a_time_column_makes_versions(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[0] | {"since": 300, "risk": 0.9}]
    path = write(tmp_path / "shops.jsonl", rows)
    shops = table(path, time="since")
    read(path, shops)
    risks = [shops.at("0012", time_ms)[0] for time_ms in (99, 100, 299, 300)]
    np.testing.assert_array_equal(risks, [np.nan, 0.5, 0.5, 0.9])


def test_a_changed_file_is_the_table(tmp_path: Path) -> None:
    path = write(tmp_path / "shops.jsonl", ROWS)
    shops = table(path)
    read(path, shops)
    before = state_of(path)
    write(path, [ROWS[0] | {"risk": 0.7}])
    assert state_of(path) != before
    read(path, shops)
    assert shops.at("0012", 0)[0] == 0.7
    assert shops.keys() == {"0012"}


def test_a_refused_row_leaves_its_key_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "shops.jsonl", ROWS)
    shops = table(path)
    read(path, shops)
    write(path, [ROWS[0] | {"risk": "high"}, ROWS[1] | {"risk": 0.1}, {"merchant": None}])
    reasons = read(path, shops)
    assert reasons == [
        ("row 1", "shop_risk must be float, is str"),
        ("row 3", "merchant must be text, is None"),
    ]
    assert (shops.at("0012", 0)[0], shops.at("m2", 0)[0]) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"merchant": "m1"'),
        ("a.jsonl", b"[]"),
        ("a.csv", b"\xff\xfe"),
        ("a.csv", b"shop,risk\nm1,0.5\n"),
        ("a.parquet", b"PAR1"),
    ],
)
def test_what_cannot_be_read_changes_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    shops = table(tmp_path / name)
    shops.put("m1", shops.row_of({"risk": 0.5}), 0)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableFileError, match=name):
        read(tmp_path / name, shops)
    assert shops.at("m1", 0)[0] == 0.5


def test_there_is_no_file(tmp_path: Path) -> None:
    assert state_of(tmp_path / "shops.csv") is None
    with pytest.raises(TableFileError, match="No such file"):
        read(tmp_path / "shops.csv", table(tmp_path / "shops.csv"))
