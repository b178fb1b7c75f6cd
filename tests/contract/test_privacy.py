"""No output of the operators has a sensitive value, whatever becomes of the record."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.flink import Subtask
from tests.support.scorers import output_of, prepared, write_model
from tests.support.stages import ROUTING, first_stage, next_stage
from tests.support.streams import BUCKETS, DOCUMENT, KAFKA_MS, micro_batch
from udfs.batches.privacy import Privacy
from udfs.definition.schema import Schema
from udfs.scoring.embedded import EmbeddedScoring
from udfs.stages.labels import LabelReader

MAIL, CARDS = "someone@example.org", ("a", "b")


def hidden() -> Schema:
    document: dict[str, Any] = copy.deepcopy(DOCUMENT)
    for field in document["event"]["fields"]:
        if field["name"] in ("id", "card"):
            field["sensitive"] = "hash"
    mail = {"name": "mail", "type": "string", "required": False, "sensitive": "drop"}
    document["event"]["fields"].append(mail)
    return Schema.model_validate(document | {"privacy": {"key": "0123456789abcdef"}})


def record(number: int, **changes: Any) -> bytes:
    event = {
        "id": f"event-{number}",
        "t": KAFKA_MS - 1_000 + number,
        "card": CARDS[number % 2],
        "terminal": "t0",
        "amount": 90.0,
        "kind": "CP",
        "mail": MAIL,
    }
    return json.dumps(event | changes).encode()


def test_no_output_has_a_sensitive_value(tmp_path: Path) -> None:
    schema = hidden()
    models = write_model(tmp_path / "models", prepared(schema))
    output = replace(output_of(schema, models), privacy=Privacy.of_events(schema))
    records = [record(n) for n in range(4)]
    records += [record(1), record(2, amount=1.0), record(9, amount=-5), record(9, mail=5)]
    records += [b'{"mail": "' + MAIL.encode(), b""]
    first = Subtask(first_stage(schema=schema))
    scoring = EmbeddedScoring(models / "fraud" / "7", "fraud", output)
    last = Subtask(next_stage(scoring, schema=schema))
    batch = micro_batch(BUCKETS[0], records, 0)
    rows = last.run_all(first.run_all([batch])) + last.end()
    outputs: list[list[tuple[bytes, bytes]]] = [[], [], [], [], []]
    for row in rows:
        for n, pairs in enumerate(row):
            outputs[n] += [(key, value) for key, value in pairs]
    predictions, alerts, dead, duplicates, _ = outputs
    assert [len(kind) for kind in outputs[:4]] == [4, len(alerts), 5, 1]
    assert alerts
    for key, value in [*predictions, *alerts, *dead, *duplicates]:
        document = json.loads(value)
        raw = base64.b64decode(document.get("raw_base64") or "")
        for text in (key, value, raw):
            assert MAIL.encode() not in text
            assert b"event-" not in text
        assert key not in (b"a", b"b")
    shown = {json.loads(value)["key"] for _, value in predictions}
    assert len(shown) == 2 and all(len(key) == 32 for key in shown)
    assert {json.loads(value)["event"]["terminal"] for _, value in alerts} == {"t0"}
    assert sum(json.loads(value)["raw_base64"] is None for _, value in dead) == 2


def test_a_refused_label_neither() -> None:
    reader = Subtask(LabelReader(hidden(), ROUTING, "labels"))
    label = {"id": "event-1", "t": KAFKA_MS, "terminal": "t0", "fraud": 7}
    (row,) = reader.run_all([micro_batch(BUCKETS[0], [json.dumps(label).encode()], 0)])
    ((_, letter),) = row[1].dead_letters
    assert b"event-1" not in base64.b64decode(json.loads(letter)["raw_base64"])
