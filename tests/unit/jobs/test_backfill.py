"""A training set in a file: its rows, its metadata, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs import cli, settings
from jobs.environment import ROOT, NotReadyError
from jobs.exit_codes import ExitCode
from jobs.features import backfill as module
from jobs.features.backfill import METADATA_KEY, backfill
from jobs.settings import Settings
from udfs.offline.offline import features_of, history_of, labels_of

CONFIG = ROOT / "conf" / "fraud.yaml"
FIRST_MS = 1_735_689_600_000
DAY_MS = 86_400_000
ROWS = 500


@pytest.fixture(scope="module")
def job() -> Settings:
    return settings.load(CONFIG)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Unsorted, with two repeats and two refused rows among them."""
    random = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{n}" for n in range(ROWS)],
            "event_time_ms": FIRST_MS + random.integers(0, 40 * DAY_MS, ROWS),
            "card_id": random.choice(["0001", "0002", "0003"], ROWS),
            "terminal_id": random.choice(["0010", "0020"], ROWS),
            "amount": random.uniform(1, 100, ROWS).round(2),
            "type": random.choice(["CP", "CNP"], ROWS),
            "unread": 1,
            "is_fraud": random.choice([0.0, 1.0, np.nan], ROWS),
        }
    )
    repeats = frame.iloc[[10, 11]].assign(amount=[frame["amount"][10], 7e5])
    refused = frame.iloc[[12, 13]].assign(amount=[-1.0, np.nan], transaction_id=["x", "y"])
    parts = [frame.iloc[:100], repeats, frame.iloc[100:], refused]
    return pd.concat(parts, ignore_index=True)


def made(
    job: Settings, frame: pd.DataFrame, folder: Path, **options: Any
) -> tuple[pd.DataFrame, dict[str, Any]]:
    frame.to_parquet(folder / "history.parquet")
    backfill(job, folder / "history.parquet", folder / "set.parquet", **options)
    table = pq.read_table(folder / "set.parquet")
    return table.to_pandas(), json.loads(table.schema.metadata[METADATA_KEY])


def computed(job: Settings, frame: pd.DataFrame, order: Any = "time") -> tuple[Any, Any]:
    events = history_of(job.schema_, frame).events
    known = frame["is_fraud"].to_numpy(np.float64)[events.positions[:, 1]]
    return events, features_of(
        job.schema_, events, labels_of(job.schema_, events, known), order=order
    )


@pytest.mark.parametrize("order", ["time", "arrival"])
def test_the_rows_stand_in_the_historys_order_with_the_features_of_the_job(
    job: Settings, frame: pd.DataFrame, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", 64)
    got, _ = made(job, frame, tmp_path, order=order)
    events, features = computed(job, frame, order)
    at = np.sort(features.rows)
    assert got["transaction_id"].tolist() == [events.texts["transaction_id"][n] for n in at]
    assert got["card_id"].tolist() == [events.texts["card_id"][n] for n in at]
    assert got["event_time_ms"].astype("int64").tolist() == events.times[at].tolist()
    labels = frame["is_fraud"].to_numpy()[events.positions[at, 1]]
    np.testing.assert_array_equal(got["is_fraud"], labels)
    wanted = features.features[np.argsort(features.rows)]
    np.testing.assert_array_equal(got[list(job.schema_.columns)].to_numpy(), wanted)


def test_every_row_of_the_history_is_accounted_for(
    job: Settings, frame: pd.DataFrame, tmp_path: Path
) -> None:
    got, metadata = made(job, frame, tmp_path)
    assert metadata == {
        "config_hash": job.features_hash,
        "order": "time",
        "history": ROWS + 4,
        "rows": ROWS,
        "refused": {"out_of_range": 1, "missing_field": 1},
        "duplicates": 1,
        "conflicts": 1,
        "late": 0,
    }
    assert len(got) == ROWS


def test_in_order_of_arrival_late_events_are_counted(
    job: Settings, frame: pd.DataFrame, tmp_path: Path
) -> None:
    rows = frame[frame["amount"] >= 0].drop_duplicates("transaction_id")
    _, metadata = made(job, rows, tmp_path, order="arrival")
    seen: dict[str, dict[str, int]] = {"card_id": {}, "terminal_id": {}}
    late = 0
    for row in rows.to_dict("records"):
        time = row["event_time_ms"]
        newest = [seen[key].get(row[key], 0) for key in seen]
        late += any(time < t - job.event.time.allowed_lateness for t in newest)
        for key in seen:
            seen[key][row[key]] = max(time, seen[key].get(row[key], 0))
    assert metadata["late"] == late > 100


def test_floats_may_be_short(job: Settings, frame: pd.DataFrame, tmp_path: Path) -> None:
    long, _ = made(job, frame, tmp_path)
    short, _ = made(job, frame, tmp_path, precision="float32")
    columns = list(job.schema_.columns)
    assert set(short[columns].dtypes) == {np.dtype("float32")}
    np.testing.assert_array_equal(short[columns], long[columns].astype("float32"))


def test_a_history_without_label_has_none_unless_a_feature_reads_it(
    job: Settings, frame: pd.DataFrame, tmp_path: Path
) -> None:
    bare = frame.drop(columns="is_fraud")
    with pytest.raises(NotReadyError, match="no column 'is_fraud' with the label"):
        made(job, bare, tmp_path)
    windows = tuple(w for w in job.features.windows if w.stream == "events")
    features = job.features.model_copy(update={"windows": windows})
    got, _ = made(job.model_copy(update={"features": features}), bare, tmp_path)
    assert "is_fraud" not in got
    assert len(got) == ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="amount"), "required field.*amount"),
        (lambda f: f.assign(amount="much"), "field amount must be float, is str"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_a_wrong_history_is_refused_and_nothing_is_written(
    job: Settings, frame: pd.DataFrame, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(NotReadyError, match=message):
        made(job, change(frame), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["history.parquet"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("set.csv", "no .parquet file"),
        ("history.parquet", "is the history itself"),
        ("nowhere/set.parquet", "no folder"),
    ],
)
def test_a_place_that_would_fail_later_is_refused_before(
    job: Settings, frame: pd.DataFrame, tmp_path: Path, out: str, message: str
) -> None:
    frame.to_parquet(tmp_path / "history.parquet")
    with pytest.raises(NotReadyError, match=message):
        backfill(job, tmp_path / "history.parquet", tmp_path / out)


def test_a_failed_write_leaves_the_file_that_was_there(
    job: Settings, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    (tmp_path / "set.parquet").write_bytes(b"before")
    monkeypatch.setattr(module, "_write_groups", full)
    with pytest.raises(NotReadyError, match="no space left"):
        made(job, frame, tmp_path)
    assert (tmp_path / "set.parquet").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_shows_what_became_of_the_rows(frame: pd.DataFrame, tmp_path: Path) -> None:
    history, out = tmp_path / "history.csv", tmp_path / "set.parquet"
    frame.to_csv(history, index=False)
    command = ["features", "backfill", str(CONFIG), "--data", str(history), "--out", str(out)]
    done = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert done.exit_code == ExitCode.OK, done.output
    for text in ("500 of 504", "missing_field 1", "out_of_range 1", "events/s"):
        assert text in done.output
    assert len(pq.read_table(out)) == ROWS


def test_a_wrong_settings_file_ends_the_command_as_elsewhere(tmp_path: Path) -> None:
    conf = tmp_path / "job.yaml"
    conf.write_text("name: [")
    command = ["features", "backfill", str(conf), "--data", "x.csv", "--out", "x.parquet"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == ExitCode.CONFIG_REFUSED
