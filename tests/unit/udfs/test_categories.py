"""Codes of texts: exact in float64, the same everywhere."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from udfs.batches import categories
from udfs.batches.categories import MAX_CODE, code_of, codes_of, texts_of

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(st.lists(st.none() | texts, max_size=20))
def test_a_column_is_coded_text_by_text(column: list[str | None]) -> None:
    codes = codes_of(column)
    assert codes.dtype == float and len(codes) == len(column)
    for text, code in zip(column, codes.tolist(), strict=True):
        if text is None:
            assert math.isnan(code)
        else:
            assert int(code) == code_of(text) == (xxhash.xxh3_64(text.encode()).intdigest() % 2**52)
            assert 1 <= code <= MAX_CODE and float(int(code)) == code


def test_a_hash_of_zero_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categories, "xxh3_64_intdigest", lambda _: 7 << 52)
    assert code_of("any") == 1
    assert codes_of(["any"]).tolist() == [1.0]


def test_another_process_gives_the_same_code() -> None:
    code = "from udfs.batches.categories import code_of; print(code_of('é'), code_of(''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(code_of("é")), str(code_of(""))]


def test_the_first_by_alphabet_names_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categories, "xxh3_64_intdigest", lambda data: len(data))
    assert texts_of(["b", "a", None, "cc"]) == {1: "a", 2: "cc"}
