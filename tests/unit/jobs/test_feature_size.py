"""Measured memory agrees with the formula of udfs/README.md."""

from __future__ import annotations

import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.features.replay import silent
from jobs.features.size import measure
from jobs.features.size_table import as_document, bytes_text, journal_table, size_table
from tests.support.recorded_case import case_settings

FRAUD = settings.load(ROOT / "conf" / "fraud.yaml")


@pytest.mark.parametrize("per_day", [0.05, 4.0])
def test_the_measurement_is_near_the_formula(per_day: float) -> None:
    sizes, journals = measure(FRAUD, per_day, silent)
    assert [(s.stage, s.stream) for s in sizes] == [
        ("card_id", "events"),
        ("terminal_id", "events"),
        ("terminal_id", "labels"),
    ]
    for size in sizes:
        per_entry = {"card_id": 32, "terminal_id": 16}[size.stage]
        per_entry = 32 if size.stream == "labels" else per_entry
        assert size.packed_bytes == 24 * size.keys + per_entry * size.entries
        assert size.unpacked_bytes >= 8 * size.entry_words * size.entries
        if per_day > 1:
            assert size.packed_bytes == pytest.approx(size.formula_bytes, rel=0.05)
    assert [j.stage for j in journals] == ["card_id", "terminal_id"]
    # time, id, content, one value and the key's name with quotes and comma
    assert journals[0].event_bytes == pytest.approx(8 + 16 + 8 + 12, abs=1)
    assert journals[1].event_bytes == pytest.approx(8 + 8 + 12, abs=1)


def test_all_kinds_of_windows_can_be_filled() -> None:
    sizes, _ = measure(case_settings(), 2.0, silent)
    assert {s.stage for s in sizes} == set(case_settings().schema_.stages)


def test_totals_are_of_so_many_keys() -> None:
    sizes, journals = measure(FRAUD, 1.0, silent)
    document = as_document(sizes, journals, 1_000)
    per_key = sum(s.packed_bytes / s.keys for s in sizes)
    assert document["packed_bytes"] == pytest.approx(1_000 * per_key, abs=1)
    assert size_table(sizes, 1_000, 10**6).row_count == len(sizes) + 1
    assert journal_table(journals).row_count == len(journals)


@pytest.mark.parametrize(
    ("count", "text"), [(1_624, "1,624 B"), (132_000_000, "132.0 MB"), (12e9, "12.0 GB")]
)
def test_bytes_are_readable(count: float, text: str) -> None:
    assert bytes_text(count) == text
