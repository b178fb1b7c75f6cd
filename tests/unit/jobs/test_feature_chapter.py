"""Each example of udfs/README.md is run: settings compute features, commands do their work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from jobs import cli, settings
from jobs.environment import ROOT
from jobs.features.backfill import backfill
from udfs.preparation.fitting import Rows, fit

CHAPTER = (ROOT / "udfs" / "README.md").read_text(encoding="utf-8")
FRAUD = ROOT / "conf" / "fraud.yaml"
FEATURES, PANES, PREPARATION, ENRICHMENT = [
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", CHAPTER, re.M | re.S)
]
"""Another one needs a test here; ``test_readme`` has that of the enrichment."""
COMMANDS = re.findall(r"^(?:\.venv/bin/)?(streamscore features .*?)\s*(?:#.*)?$", CHAPTER, re.M)
WITH_KAFKA = {"bootstrap", "parity", "explain"}
"""Run by ``tests/minicluster/test_bootstrap`` and ``test_features_parity``."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOON_MS = 20_000 * DAY_MS + 12 * HOUR_MS


def history(folder: Path, hours: list[float], amounts: list[float], **columns: Any) -> Path:
    """CNP transactions of one card at those hours after noon."""
    n = len(hours)
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(n)],
            "event_time_ms": [NOON_MS + round(h * HOUR_MS) for h in hours],
            "card_id": "c",
            "terminal_id": "s",
            "amount": amounts,
            "type": "CNP",
            "is_fraud": 0.0,
        }
        | columns
    )
    frame.to_parquet(folder / "history.parquet")
    return folder / "history.parquet"


def computed(changes: dict[str, Any], data: Path) -> pd.DataFrame:
    """The features of a history by the fraud job with other settings."""
    backfill(settings.load(FRAUD, changes), data, data.parent / "set.parquet")
    return pq.read_table(data.parent / "set.parquet").to_pandas()


def test_every_example_and_command_is_known() -> None:
    assert {"tables", "lookups"} == set(ENRICHMENT)
    assert len(re.findall("^```(?:yaml|sh|bash)$", CHAPTER, re.M)) == 8
    named = " ".join(c.split()[2] for c in COMMANDS)
    assert named == "backfill bootstrap check-change list docs size parity explain"


def test_declared_features(tmp_path: Path) -> None:
    """Eleven in the morning, then noon and four minutes later; amounts 100, 200 and 300."""
    changes = {f"features.{name}": given for name, given in FEATURES["features"].items()}
    data = history(tmp_path, [-1, 0, 1 / 15], [100.0, 200.0, 300.0])
    last = computed(changes, data).iloc[-1]
    assert last["large"] == 1
    assert last["card_mean_5m"] == 250
    assert last["card_count_last10"] == 3
    assert last["card_sum_session30m"] == 500
    assert last["card_count_day"] == 3
    assert last["card_burst"] == pytest.approx(2 / 3)
    weights = 0.5 ** np.array([16 / 15, 1 / 15, 0])
    assert last["card_sum_decay1h"] == pytest.approx(weights @ [100, 200, 300])


def test_panes(tmp_path: Path) -> None:
    """An event each half hour in 40 days: a month, and the whole pane that it begins in."""
    hours = (np.arange(80 * 24) / 2 + 1 / 4).tolist()
    amounts = np.random.default_rng(0).uniform(1, 100, len(hours)).round(2)
    changes = {"features.windows": PANES["features"]["windows"]}
    last = computed(changes, history(tmp_path, hours, amounts.tolist())).iloc[-1]
    month = amounts[-2 * 24 * 30 - 2 :]
    assert last["card_count_30d"] == len(month) == 1_442
    assert last["card_std_30d"] == pytest.approx(month.std(ddof=1))
    assert last["card_max_30d"] == month.max()
    assert last["card_p95_30d"] == pytest.approx(np.percentile(month, 95), rel=0.05)
    assert last["card_distinct_30d"] == pytest.approx(len(set(month)), rel=0.14)
    assert last["card_distinct_24h"] == len(set(amounts[-48:]))


def test_preparation(tmp_path: Path) -> None:
    """The declared fields and features that it speaks of are added to the fraud job's."""
    fraud = yaml.safe_load(FRAUD.read_text(encoding="utf-8"))
    added = [{"name": n, "type": "float", "required": False} for n in ("merchant_km", "visits")]
    values = [{"name": f["name"], "type": "value", "fields": [f["name"]]} for f in added]
    example = PREPARATION["features"]
    changes = {
        "event.fields": [*fraud["event"]["fields"], *added, {"name": "channel", "type": "string"}],
        "features.expressions": [*example["expressions"], *values],
        "features.preparation": example["preparation"],
    }
    n = 300
    channels = ["web"] * 150 + ["shop"] * 149 + ["fax"]
    columns = {"merchant_km": np.nan, "visits": np.nan, "channel": channels}
    data = history(tmp_path, [float(h) for h in range(n)], [float(h) for h in range(n)], **columns)
    table, schema = computed(changes, data), settings.load(FRAUD, changes).schema_
    rows = Rows(table[[*schema.columns]].to_numpy(float), np.zeros(n), np.arange(n))
    rows.features[0, schema.columns.index("card_mean_7d")] = np.nan
    codes = dict(zip(table["channel"], channels, strict=True))
    fitted = fit(schema, rows, {"channel": codes})
    made = pd.DataFrame(fitted.transform(rows.features), columns=[*fitted.columns])
    assert [c for c in made if "channel" in c] == ["channel_web", "channel_shop", "channel_other"]
    assert made["channel_other"].tolist() == [0] * 299 + [1]
    assert made["card_mean_7d_missing"].tolist() == [1] + [0] * 299
    assert made["card_mean_7d"][0] == pytest.approx(np.nanmean(table["card_mean_7d"][1:]))
    assert made["merchant_km"].isna().all() and (made["visits"] == 0).all()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[2] not in WITH_KAFKA])
def test_a_command_does_its_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is written, beside a history."""
    history(tmp_path, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command.replace("conf/fraud.yaml", str(FRAUD)))[1:]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    if "--out" in words:
        assert (tmp_path / words[words.index("--out") + 1]).stat().st_size > 1_000
    elif "check-change" not in words:
        assert "card_id" in done.output or "card_" in done.output
