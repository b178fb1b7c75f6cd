"""The ``rollup`` section: what it makes of the event, and what is refused, with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.environment import ROOT
from jobs.features.catalogue import describe
from jobs.settings import load, summary
from jobs.settings_file import SettingsError

IOT = ROOT / "conf" / "iot.yaml"


def edited(folder: Path, **rollup: Any) -> Path:
    document = yaml.safe_load(IOT.read_text(encoding="utf-8"))
    document["rollup"] |= rollup
    path = folder / "iot.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_event_is_a_window() -> None:
    chosen = load(IOT)
    event = chosen.schema_.event
    assert (event.id, event.time.field) == ("window", "window_end_ms")
    names = {field.name for field in event.fields}
    own = {"window", "machine", "closed_by", "machine_type", "window_start_ms", "readings"}
    assert own | {"pressure_mean", "flow_slope"} <= names
    assert chosen.schema_.arriving == chosen.event
    assert "machine_type" in chosen.schema_.arriving_keys
    assert [d.name for d in describe(chosen.schema_)] == list(chosen.schema_.columns)
    assert "keyed stage" in summary(chosen)


def test_the_hash_knows_the_roll_up(tmp_path: Path) -> None:
    assert load(edited(tmp_path)).features_hash == load(IOT).features_hash
    assert load(edited(tmp_path, every="20s")).features_hash != load(IOT).features_hash


PRESSURE = {"value": "Pressure", "prefix": "p", "aggregates": ["mean"]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"every": "0s"}, "rollup.every: must be at least 1ms"),
        ({"every": 10}, "rollup.every: 10 has no unit; write 10s or 10ms"),
        ({"fields": []}, "rollup.fields: "),
        ({"fields": [PRESSURE | {"value": "Presure"}]}, "rollup.fields[0].value: no column"),
        ({"fields": [PRESSURE | {"value": "machine"}]}, "rollup.fields[0].value: 'machine' yields"),
        (
            {"fields": [PRESSURE | {"where": "Pressure"}]},
            "rollup.fields[0].where: 'Pressure' yields",
        ),
        ({"fields": [PRESSURE | {"aggregates": ["avg"]}]}, "fields[0].aggregates[0]: no aggregate"),
        (
            {"fields": [PRESSURE | {"aggregates": ["zscore"]}]},
            "rollup.fields[0].aggregates[0]: zscore compares events",
        ),
        (
            {"fields": [{"value": "Volume Flow RateRMS", "aggregates": ["mean"]}]},
            "rollup.fields[0].prefix: 'Volume Flow RateRMS' starts no name",
        ),
        ({"fields": [PRESSURE, PRESSURE]}, "rollup.fields: a window would have twice: p_mean"),
        ({"keep": ["machine"]}, "rollup.keep: a window would have 'machine' twice"),
        ({"keep": ["line"]}, "rollup.keep[0]: no field 'line'"),
        ({"keep": ["Pressure"]}, "rollup.keep[0]: field 'Pressure' must be"),
        ({"silent_after": "1s"}, "rollup.silent_after: must be at least idle"),
        ({"fields": [PRESSURE]}, "features.windows[0].value: no column"),
    ],
)
def test_a_wrong_roll_up_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(complaint)) as refused:
        load(edited(tmp_path, **change))
    assert re.search(r"\(line \d+\)", str(refused.value))


def test_late_labels_need_events(tmp_path: Path) -> None:
    document = yaml.safe_load(edited(tmp_path).read_text(encoding="utf-8"))
    document["labels"] = {"id": "reading", "time": "at", "key": "machine_type", "value": "bad"}
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"labels: a roll-up has no late labels"):
        load(tmp_path / "labels.yaml")


def test_a_sensor_that_windows_show_is_not_sensitive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PII_KEY", "0123456789abcdef")
    document = yaml.safe_load(edited(tmp_path).read_text(encoding="utf-8"))
    document["privacy"] = {"key": "${PII_KEY}"}
    fields = {field["name"]: field for field in document["event"]["fields"]}
    fields["machine"]["sensitive"] = fields["reading"]["sensitive"] = "hash"
    path = tmp_path / "private.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    event = load(path).schema_.event
    assert event.field("window").sensitive == event.field("machine").sensitive == "hash"
    fields["Volume Flow RateRMS"]["sensitive"] = "drop"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(SettingsError, match="features are computed from it"):
        load(path)
