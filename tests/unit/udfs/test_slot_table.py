"""Slots by name, against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.features.slot_table import SlotTable

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(batches=st.lists(st.lists(NAMES, max_size=20), max_size=10))
def test_it_is_a_dictionary(batches: list[list[str]]) -> None:
    table, known = SlotTable(), dict[str, int]()
    for names in batches:
        assert table.find(names).tolist() == [known.get(name, -1) for name in names]
        new = [name for name in dict.fromkeys(names) if name not in known]
        assert table.add(new).tolist() == [*range(len(known), len(known) + len(new))]
        known |= {name: len(known) + n for n, name in enumerate(new)}
        assert table.find(names).tolist() == [known[name] for name in names]
        assert len(table) == len(known)


def test_it_grows() -> None:
    table, names = SlotTable(), [f"card {n}" for n in range(100_000)]
    for start in range(0, len(names), 7_000):
        table.add(names[start : start + 7_000])
    assert (table.find(names) == np.arange(len(names))).all()
    assert (table.find([f"{name}?" for name in names]) == -1).all()
