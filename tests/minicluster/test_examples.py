"""The settings in conf/examples, as they are: trained, run and compared, without any code of ours.

The events are made up from each file's own schema; what the job computed live must be what training
computes from the same events in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from jobs.environment import ROOT
from jobs.settings import Settings, load
from jobs.training import train
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import own_overrides
from tests.support.kafka import Record, Traffic
from tests.support.running import restarts, running
from udfs.batches.events import Events
from udfs.definition.schema import Schema
from udfs.features.expressions import evaluate
from udfs.features.formula_columns import FormulaColumns
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.series import kinds_of
from udfs.features.stage_inputs import StageInputs
from udfs.offline.offline import history_of

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

ROWS = 3_000
BEGIN_MS = 1_767_225_600_000
EXAMPLES = ROOT / "conf" / "examples"


def payments(random: np.random.Generator) -> pd.DataFrame:
    times = BEGIN_MS + np.arange(ROWS) * 7_000
    amounts = random.integers(1, 90_000, ROWS)
    return pd.DataFrame(
        {
            "payment": [f"p{n}" for n in range(ROWS)],
            "at": [pd.Timestamp(t, unit="ms", tz="UTC").isoformat() for t in times],
            "pan_token": random.choice([f"tok{n}" for n in range(40)], ROWS),
            "merchant": random.choice([f"m{n}" for n in range(15)], ROWS),
            "device": random.choice([f"d{n}" for n in range(60)], ROWS),
            "amount_cents": amounts,
            "recurring": random.random(ROWS) < 0.2,
            "channel": random.choice(["app", "web", None], ROWS),
            "charged_back": (amounts > 60_000).astype(int),
        }
    )


def sensors(random: np.random.Generator) -> pd.DataFrame:
    machines = np.arange(ROWS) % 20
    times = BEGIN_MS + np.arange(ROWS) // 20 * 1_000 + random.integers(0, 900, ROWS)
    times[random.random(ROWS) < 0.01] += 30_000  # a clock ahead: what follows is late
    vibration = random.gamma(2.0, 1.0, ROWS)
    return pd.DataFrame(
        {
            "reading": [f"r{n}" for n in range(ROWS)],
            "at_ms": times,
            "machine": [f"m{n:02}" for n in machines],
            "line": [f"L{n % 3}" for n in machines],
            "temperature_c": random.normal(70, 4, ROWS),
            "vibration_mm_s": np.where(random.random(ROWS) < 0.1, np.nan, vibration),
            "pressure_bar": np.where(random.random(ROWS) < 0.5, np.nan, random.normal(6, 1, ROWS)),
            "running": random.random(ROWS) < 0.9,
            "anomaly": (vibration > 4).astype(int),
        }
    )


def settings_of(name: str, bootstrap: str, folder: Path) -> Settings:
    """The example's own settings; its names of topics and folders are the test's."""
    path = EXAMPLES / f"{name}.yaml"
    overrides = own_overrides(bootstrap, folder / "models", folder)
    if load(path).labels is None:
        del overrides["topics.labels"]
    forced = {
        "model.embedded": True,
        "batch.buckets": 1,
        "flink.parallelism": 1,
        "topics.partitions": 1,
        "training.trees": 10,
        "event.time.max_future": "36500d",
    }
    return load(path, overrides | forced)


@pytest.mark.parametrize(("name", "make"), [("payments", payments), ("sensors", sensors)])
def test_an_example_runs_as_it_is(name: str, make: Any, bootstrap: str, tmp_path: Path) -> None:
    frame = make(np.random.default_rng(3))
    settings = settings_of(name, bootstrap, tmp_path)
    train(settings, frame)
    label = settings.training.label or "charged_back"
    schema = settings.schema_
    records = [
        Record(0, row[schema.key].encode(), orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
        for row in documents(frame.drop(columns=label))
    ]
    traffic = Traffic(settings)
    with traffic:
        with running(settings) as job:
            traffic.send(*records)
            traffic.wait_accounted()
            assert restarts(job) == 0
        traffic.read_to_end()
    check_schemas(traffic.outputs)
    check_accounts(traffic)
    predictions = traffic.outputs["predictions"]
    assert len(predictions) == ROWS
    found = {out.document["event_id"]: out.document for out in predictions}
    check_features(schema, frame, [found[event_id] for event_id in frame[schema.event.id]])


def documents(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON objects; what is missing is null."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(k): v for k, v in row.items()} for row in rows]


def recomputed(schema: Schema, events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Features, and which events are late, in one batch in the order given."""
    inputs = StageInputs(schema)
    values, entities = inputs.values(events), inputs.entities(events)
    entities |= {schema.key: events.texts[schema.key]}
    identities = Identities.of_events(events.texts[schema.event.id], events.raw)
    expressions = evaluate(schema.features.expressions, events, kinds_of(schema.known))
    parts, late = [expressions], np.zeros(len(events), np.bool_)
    for name in schema.stages:
        stage = KeyedStage(schema, name)
        seen = stage.observe(stage.new_state(), entities[name], events.times, values, identities)
        parts.append(seen.features)
        late |= seen.late
    return FormulaColumns(schema).append(np.concatenate(parts, axis=1), values), late


def check_features(schema: Schema, frame: pd.DataFrame, found: list[dict[str, Any]]) -> None:
    """In the order of arrival, which is the table's here, training computes the same."""
    expected, expected_late = recomputed(schema, history_of(schema, frame).events)
    live = np.array(
        [[document["features"][c] for c in schema.columns] for document in found], np.float64
    )
    np.testing.assert_allclose(live, expected, rtol=1e-9, atol=1e-12)
    assert [document.get("late", False) for document in found] == expected_late.tolist()
    known = ~np.isnan(live)
    labelled = [c for c in schema.columns if "chargebacks" in c]
    never = {
        c for c, any_known in zip(schema.columns, known.any(axis=0), strict=True) if not any_known
    }
    assert never <= set(labelled), "every feature has a value somewhere"
