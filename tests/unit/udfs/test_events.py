"""From raw records to columns: any bytes in, each record out exactly once."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches import frames as framing
from udfs.batches.events import (
    MAX_KEY_BYTES,
    BatchFormatError,
    ClockSetBackError,
    Decoded,
    Decoder,
    Events,
    split_batch,
)
from udfs.definition.event import EventSpec, FieldSpec, LabelSpec, TimeSpec

KAFKA_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
FIELDS = (
    FieldSpec(name="id", type="string"),
    FieldSpec(name="t", type="int"),
    FieldSpec(name="card", type="string"),
    FieldSpec(name="amount", type="float", min=0, max=1_000_000),
    FieldSpec(name="category", type="string"),
    FieldSpec(name="lat", type="float", min=-90, max=90, required=False),
    FieldSpec(name="note", type="string", required=False),
    FieldSpec(name="tries", type="int", required=False, default=1),
    FieldSpec(name="online", type="bool", required=False),
)
SPEC = EventSpec(id="id", time=TimeSpec(field="t"), fields=FIELDS, max_bytes=2_000)
DECODER = Decoder.for_events(SPEC, ("card",))
GOOD = {"id": "e1", "t": KAFKA_MS, "card": "c1", "amount": 12.5, "category": "food"}


def positions_of(n: int, first_offset: int = 100) -> np.ndarray:
    offsets = np.arange(first_offset, first_offset + n)
    return np.stack([offsets % 3, offsets, np.full(n, KAFKA_MS)], axis=1)


def decode(*raw: bytes, decoder: Decoder = DECODER) -> Decoded:
    return decoder.decode([*raw], positions_of(len(raw)))


def good(decoded: Decoded) -> Events:
    assert decoded.rejects == []
    events = decoded.merged()
    assert events is not None
    return events


def event(**changes: Any) -> bytes:
    return orjson.dumps({**GOOD, **changes})


def without(*names: str) -> bytes:
    return orjson.dumps({k: v for k, v in GOOD.items() if k not in names})


def with_literal(name: str, literal: bytes) -> bytes:
    """The good event with a field's value written literally: also what no encoder writes."""
    return event(**{name: "@"}).replace(b'"@"', literal)


# -- split_batch --------------------------------------------------------------------------------


def joined(raw: list[bytes], positions: np.ndarray) -> str:
    """What the JVM makes of records."""
    return " ".join(
        f"{partition} {offset} {time_ms} {len(record)} {record.decode('latin-1')}"
        for record, (partition, offset, time_ms) in zip(raw, positions.tolist(), strict=True)
    )


@settings(max_examples=300)
@given(
    raw=st.lists(
        st.one_of(
            st.binary(max_size=20), st.lists(st.sampled_from(b" 0123-{}\xff\x00")).map(bytes)
        ),
        max_size=12,
    )
)
def test_any_bytes_survive_the_join(raw: list[bytes]) -> None:
    positions = positions_of(len(raw))
    records, at = split_batch(joined(raw, positions))
    assert records == raw
    assert at.dtype == np.int64
    assert at.tolist() == positions.tolist()


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [b""],
        [b"", b"", b""],
        [b" "],
        [b"  ", b"", b" "],
        [b"{}"],
        [b"0 0 0 0 ", b"0 1 2 3 {} 4 5 6 7", b"-1"],
        [b"\xff\xfe\x80", "日本".encode(), b"\xed\xa0\x80"],
        [bytes(range(256))],
        [b"x" * 100_000, b"y"],
    ],
)
def test_records_that_look_like_frames(raw: list[bytes]) -> None:
    records, at = split_batch(joined(raw, positions_of(len(raw))))
    assert records == raw
    assert at.shape == (len(raw), 3)


def test_positions_keep_all_64_bits() -> None:
    largest = 2**63 - 1
    records, at = split_batch(f"2147483647 {largest} {largest} 2 {{}} 0 0 -1 0 ")
    assert at.tolist() == [[2_147_483_647, largest, largest], [0, 0, -1]]
    assert records == [b"{}", b""]
    assert at.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("text", "byte"),
    [
        (" ", 0),
        ("x", 0),
        ("1 2 3", 0),
        ("1 2 3 2", 0),
        ("1 2 3 2 {", 0),
        ("1 2 3 2 {} ", 0),
        ("1 2 3 2 {}}", 0),
        ("1 2 3 1 {}", 0),
        ("1 2 3 -1 {}", 0),
        ("1 2 3 - {}", 0),
        ("1  3 2 {}", 0),
        ("1 2 3 + 2 {}", 0),
        ("1 2 3.5 2 {}", 0),
        ("1 2 3 99999999999 {}", 0),
        (f"1 2 3 {2**63 - 1} {{}}", 0),
        (f"1 2 3 {2**63} {{}}", 0),
        (f"1 2 3 {2**64 + 2} {{}}", 0),
        ("1 2 3 9999999999999999999 {}", 0),
        (f"1 {2**63} 3 2 {{}}", 0),
        (f"1 {2**63 + 1} 3 2 {{}}", 0),
        (f"1 {2**64} 3 2 {{}}", 0),
        ("1 10000000000000000000 3 2 {}", 0),
        ("1 18446744073709551617 3 2 {}", 0),
        (f"1 2 3 {2**63 - 1 - 24} {{}}", 0),
        ("1 2 3 2 {} 1 2 3 3 {}", 11),
        ("1 2 3 2 {}  1 2 3 2 {}", 11),
        ("1 2 3 2 {}\x001 2 3 2 {}", 0),
        (" 1 2 3 2 {}", 0),
        ("    ", 0),
        ("- - - - ", 0),
    ],
)
def test_a_text_that_is_no_batch_is_refused(text: str, byte: int) -> None:
    with pytest.raises(BatchFormatError, match=f"at byte {byte} of {len(text)}"):
        split_batch(text)


def test_a_text_of_more_than_bytes_is_refused() -> None:
    with pytest.raises(BatchFormatError, match="at character 8"):
        split_batch("1 2 3 1 日")


def test_a_window_without_records_is_a_clock_that_was_set_back() -> None:
    with pytest.raises(ClockSetBackError, match="goes on from its last checkpoint"):
        split_batch(None)


def read_frames(text: str) -> list[tuple[int, ...]] | None:
    """The frames of a batch, by the book; none if it is malformed."""
    frames: list[tuple[int, ...]] = []
    at = 0
    while at < len(text):
        head = re.compile(r"(-?[0-9]+) (-?[0-9]+) (-?[0-9]+) (-?[0-9]+) ").match(text, at)
        if head is None or max(abs(int(n)) for n in head.groups()) >= 2**63:
            return None
        *place, length = map(int, head.groups())
        end = head.end() + length
        if (
            length < 0
            or end > len(text)
            or text[end : end + 1] not in ("", " ")
            or end + 1 == len(text)
        ):
            return None
        frames.append((*place, head.end(), end))
        at = end + 1
    return frames


def check_against_the_book(text: str) -> None:
    """Nothing outside of the text is read or written: it lies between bytes that would show."""
    expected = read_frames(text)
    padded = np.frombuffer(b"7" * 64 + text.encode("latin-1") + b" 7" * 64, np.uint8)
    found, broken_at = framing.frames(padded[64 : 64 + len(text)])
    if expected is None:
        assert 0 <= broken_at < len(text)
    else:
        assert broken_at == -1
        assert [tuple(row) for row in found.tolist()] == expected


@settings(max_examples=500)
@given(text=st.text(st.sampled_from("0123 -x\xff"), max_size=60))
def test_any_text_is_read_by_the_book(text: str) -> None:
    check_against_the_book(text)


@settings(max_examples=500)
@given(
    raw=st.lists(st.binary(max_size=9), min_size=1, max_size=5),
    edits=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.integers(0, 3),
            st.sampled_from(["", " ", "-", "0", "9", "9" * 18]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_a_damaged_batch_is_read_by_the_book(
    raw: list[bytes], edits: list[tuple[int, int, str]]
) -> None:
    text = joined(raw, positions_of(len(raw)))
    for at, removed, put in edits:
        text = text[:at] + put + text[at + removed :]
    check_against_the_book(text)


# -- one bad record -----------------------------------------------------------------------------

BAD = {
    "not JSON": (b"hello", "not_json"),
    "truncated": (event()[:-5], "not_json"),
    "two documents": (event() + event(), "not_json"),
    "trailing NUL": (event() + b"\x00", "not_json"),
    "byte order mark": (b"\xef\xbb\xbf" + event(), "not_json"),
    "too deep": (b"[" * 1_900, "not_json"),
    "single quotes": (event().replace(b'"', b"'"), "not_json"),
    "not UTF-8": (event().replace(b"food", b"\xff\xfe"), "not_utf8"),
    "UTF-8 surrogate": (event().replace(b"food", b"\xed\xa0\x80"), "not_utf8"),
    "overlong UTF-8": (event().replace(b"food", b"\xc0\xaf"), "not_utf8"),
    "lone surrogate in key": (with_literal("card", rb'"\ud800"'), "not_json"),
    "lone surrogate in id": (with_literal("id", rb'"a\udc00b"'), "not_json"),
    "empty": (b"", "empty"),
    "whitespace": (b" \r\n\t ", "empty"),
    "null": (b"null", "not_an_object"),
    "list": (b"[]", "not_an_object"),
    "list of the event": (b"[" + event() + b"]", "not_an_object"),
    "text": (b'"x"', "not_an_object"),
    "number": (b"5", "not_an_object"),
    "true": (b"true", "not_an_object"),
    "empty object": (b"{}", "missing_field"),
    "id missing": (without("id"), "missing_field"),
    "time missing": (without("t"), "missing_field"),
    "amount missing": (without("amount"), "missing_field"),
    "amount null": (event(amount=None), "missing_field"),
    "card null": (event(card=None), "missing_field"),
    "time null": (event(t=None), "missing_field"),
    "bool for number": (event(amount=True), "wrong_type"),
    "bool for int": (event(tries=False), "wrong_type"),
    "bool for time": (event(t=True), "wrong_type"),
    "number as text": (event(amount="12.5"), "wrong_type"),
    "time as text": (event(t="1700000000000"), "wrong_type"),
    "time as float": (event(t=1.5), "wrong_type"),
    "list for number": (event(amount=[1]), "wrong_type"),
    "object for number": (event(amount={"a": 1}), "wrong_type"),
    "number for text": (event(card=5), "wrong_type"),
    "list for text": (event(category=["food"]), "wrong_type"),
    "number for bool": (event(online=1), "wrong_type"),
    "wrong optional": (event(lat="north"), "wrong_type"),
    "NaN": (with_literal("amount", b"NaN"), "not_json"),
    "Infinity": (with_literal("amount", b"Infinity"), "not_json"),
    "-Infinity": (with_literal("amount", b"-Infinity"), "not_json"),
    "1e999": (with_literal("amount", b"1e999"), "not_json"),
    "400 digits": (with_literal("amount", b"9" * 400), "not_json"),
    "400 digits of time": (with_literal("t", b"9" * 400), "not_json"),
    "negative amount": (event(amount=-0.01), "out_of_range"),
    "absurd amount": (event(amount=1_000_000.01), "out_of_range"),
    "amount beyond int64": (with_literal("amount", b"1" + b"0" * 19), "out_of_range"),
    "amount beyond uint64": (with_literal("amount", b"1" + b"0" * 30), "out_of_range"),
    "latitude": (event(lat=90.5), "out_of_range"),
    "int beyond int64": (with_literal("t", b"9223372036854775808"), "bad_time"),
    "int beyond uint64": (with_literal("t", b"18446744073709551616"), "wrong_type"),
    "far future": (event(t=KAFKA_MS + HOUR_MS + 1), "bad_time"),
    "largest int64": (event(t=2**63 - 1), "bad_time"),
    "seconds for milliseconds": (event(t=KAFKA_MS // 1_000), "bad_time"),
    "zero time": (event(t=0), "bad_time"),
    "negative time": (event(t=-1), "bad_time"),
    "smallest int64": (event(t=-(2**63)), "bad_time"),
    "too large": (event(note="x" * 2_000), "too_large"),
    "large and no JSON": (b"x" * 2_001, "too_large"),
    "empty key": (event(card=""), "bad_key"),
    "empty id": (event(id=""), "bad_key"),
    "newline in key": (event(card="a\nb"), "bad_key"),
    "unit separator in id": (event(id="a\x1fb"), "bad_key"),
    "NUL in key": (event(card="\x00"), "bad_key"),
    "DEL in key": (event(card="a\x7f"), "bad_key"),
    "long key": (event(card="k" * (MAX_KEY_BYTES + 1)), "bad_key"),
    "long key of few characters": (event(id="日" * (MAX_KEY_BYTES // 3 + 1)), "bad_key"),
}


@pytest.mark.parametrize(("raw", "code"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_rejected_with_its_code(raw: bytes, code: str) -> None:
    decoded = decode(raw)
    assert decoded.parts == []
    [reject] = decoded.rejects
    assert (reject.code, reject.raw) == (code, raw)
    assert reject.message
    assert [reject.partition, reject.offset, reject.kafka_time_ms] == positions_of(1)[0].tolist()
    orjson.dumps(reject.message)  # it becomes a dead letter: valid UTF-8


@pytest.mark.parametrize(("raw", "code"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_leaves_its_neighbours_alone(raw: bytes, code: str) -> None:
    decoded = decode(event(id="a"), event(id="b"), raw, event(id="c"))
    assert [(r.code, r.offset) for r in decoded.rejects] == [(code, 102)]
    events = decoded.merged()
    assert events is not None
    assert events.texts["id"] == ["a", "b", "c"]
    assert events.positions[:, 1].tolist() == [100, 101, 103]


def test_the_reason_names_the_field() -> None:
    for raw, words in (
        (without("id", "card"), "absent: id, card"),
        (event(amount=None), "null: amount"),
        (event(amount="1"), "amount must be float, is str"),
        (event(amount=-1), "amount is below its minimum 0"),
        (event(t=0), "t is before 2000-01-01"),
        (event(card=""), "card is empty"),
        (b"[]", "a JSON list"),
        (event().replace(b"food", b"\xff"), "not UTF-8 at byte"),
    ):
        assert words in decode(raw).rejects[0].message


# -- good records -------------------------------------------------------------------------------

FINE = {
    "unknown category": event(category="never seen"),
    "empty category": event(category=""),
    "control characters outside of keys": event(category="a\nb\x00"),
    "integer for float": event(amount=3),
    "negative zero": with_literal("amount", b"-0.0"),
    "largest amount": event(amount=1_000_000),
    "oldest time": event(t=SPEC.time.earliest_ms),
    "newest time": event(t=KAFKA_MS + HOUR_MS),
    "longest key": event(card="k" * MAX_KEY_BYTES),
    "longest key in UTF-8": event(card="é" * (MAX_KEY_BYTES // 2)),
    "key of astral characters": event(card="\U0001f4b3"),
    "escaped surrogate pair": with_literal("card", rb'"\ud83d\udcb3"'),
    "space around": b" \n" + event() + b"\t",
    "extra fields": event(extra={"deep": [1, None]}, another=True),
}


@pytest.mark.parametrize("raw", FINE.values(), ids=FINE.keys())
def test_a_good_record_is_kept_as_it_is(raw: bytes) -> None:
    events = good(decode(raw))
    document = orjson.loads(raw)
    assert events.raw == [raw]
    assert events.times.tolist() == [document["t"]]
    for name in ("id", "card", "category"):
        assert events.texts[name] == [document[name]]
    assert events.numbers["amount"].tolist() == [float(document["amount"])]


def test_of_duplicate_json_keys_the_last_counts() -> None:
    events = good(decode(event(card="first")[:-1] + b',"card":"last"}'))
    assert events.texts["card"] == ["last"]


def test_optional_fields_absent_null_and_given() -> None:
    events = good(
        decode(
            event(),
            event(lat=None, note=None, tries=None, online=None),
            event(lat=1, note="n", tries=7, online=True),
        )
    )
    np.testing.assert_array_equal(events.numbers["lat"], [np.nan, np.nan, 1])
    np.testing.assert_array_equal(events.numbers["online"], [np.nan, np.nan, 1])
    assert events.numbers["tries"].tolist() == [1, 1, 7]
    assert events.texts["note"] == [None, None, "n"]


def test_columns_have_one_type_each() -> None:
    events = good(decode(event(amount=1), event(amount=2)))
    assert events.times.dtype == np.int64
    assert {v.dtype for v in events.numbers.values()} == {np.dtype(np.float64)}
    assert set(events.numbers) | set(events.texts) == {f.name for f in FIELDS}
    assert "t" in events.numbers


def test_nothing_in_nothing_out() -> None:
    decoded = decode()
    assert (decoded.parts, decoded.rejects, decoded.merged()) == ([], [], None)


def test_the_longest_key_in_bytes_need_not_be_the_longest_in_characters() -> None:
    long_in_bytes = event(card="日" * 500)
    decoded = decode(event(card="k" * 1_000), long_in_bytes)
    assert [r.raw for r in decoded.rejects] == [long_in_bytes]


# -- any mix ------------------------------------------------------------------------------------

good_records = st.builds(
    event,
    id=st.text(
        st.characters(min_codepoint=32, exclude_characters="\x7f", codec="utf-8"), min_size=1
    ),
    t=st.integers(SPEC.time.earliest_ms, KAFKA_MS + HOUR_MS),
    card=st.sampled_from(["c1", "c2", "日" * 300, "k" * 900]),
    amount=st.one_of(st.floats(0, 1_000_000), st.integers(0, 1_000_000)),
    category=st.text(st.characters(codec="utf-8"), max_size=8),
    lat=st.one_of(st.none(), st.floats(-90, 90)),
    note=st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=8)),
    extra=st.one_of(st.none(), st.integers(-5, 5)),
).filter(lambda raw: len(raw) <= SPEC.max_bytes)
json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.just([]),
)
broken_records = st.one_of(
    st.sampled_from([raw for raw, _ in BAD.values()]),
    st.binary(max_size=30),
    st.builds(lambda raw, cut: raw[: cut % len(raw)], good_records, st.integers(0, 10_000)),
    st.builds(  # any JSON value in any field
        lambda name, value: event(**{name: value}),
        st.sampled_from([f.name for f in FIELDS]),
        json_values,
    ),
)


def rows_of(events: Events) -> list[tuple[Any, ...]]:
    """Every event as a comparable tuple; NaN as None."""
    return [
        (
            events.raw[i],
            *events.positions[i].tolist(),
            int(events.times[i]),
            *((name, column[i]) for name, column in events.texts.items()),
            *(
                (name, None if np.isnan(column[i]) else float(column[i]))
                for name, column in events.numbers.items()
            ),
        )
        for i in range(len(events))
    ]


@settings(max_examples=250)
@given(raw=st.lists(st.one_of(good_records, broken_records), max_size=25))
def test_a_batch_gives_what_each_record_gives_alone(raw: list[bytes]) -> None:
    positions = positions_of(len(raw))
    together = DECODER.decode([*raw], positions)
    alone = [DECODER.decode([r], positions[i : i + 1]) for i, r in enumerate(raw)]
    assert together.rejects == [reject for one in alone for reject in one.rejects]
    merged = together.merged()
    expected = [row for one in alone for part in one.parts for row in rows_of(part)]
    assert (rows_of(merged) if merged else []) == expected
    offsets = [r.offset for r in together.rejects] + [row[2] for row in expected]
    assert sorted(offsets) == positions[:, 1].tolist()


@settings(max_examples=150)
@given(documents=st.lists(good_records, min_size=1, max_size=25), bad=st.data())
def test_good_records_give_exactly_their_own_columns(documents: list[bytes], bad: Any) -> None:
    raw = [*documents]
    for _ in range(bad.draw(st.integers(0, 5))):
        at = bad.draw(st.integers(0, len(raw)))
        raw.insert(at, bad.draw(st.sampled_from([r for r, _ in BAD.values()])))
    decoded = DECODER.decode(raw, positions_of(len(raw)))
    events = decoded.merged()
    assert events is not None
    assert events.raw == documents
    assert len(decoded.rejects) == len(raw) - len(documents)
    for i, document in enumerate(map(orjson.loads, documents)):
        assert events.times[i] == document["t"]
        for name in ("id", "card", "category", "note"):
            assert events.texts[name][i] == document[name]
        assert events.numbers["amount"][i] == document["amount"]
        lat = events.numbers["lat"][i]
        assert lat == document["lat"] or (np.isnan(lat) and document["lat"] is None)


# -- times --------------------------------------------------------------------------------------


def times(format_: str, values: list[Any], **settings_: Any) -> tuple[list[int], list[str]]:
    kind = "string" if format_ == "iso8601" else "int"
    spec = EventSpec(
        id="id",
        time=TimeSpec(field="t", format=format_, **settings_),  # type: ignore[arg-type]
        fields=(FieldSpec(name="id", type="string"), FieldSpec(name="t", type=kind)),  # type: ignore[arg-type]
    )
    decoded = decode(*(event(t=v) for v in values), decoder=Decoder.for_events(spec, ()))
    events = decoded.merged()
    return ([] if events is None else events.times.tolist()), [r.code for r in decoded.rejects]


@pytest.mark.parametrize(
    "text",
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20",
        "2023-11-14 22:13:20+00:00",
        "2023-11-14T23:13:20+01:00",
        "2023-11-14T17:13:20.000-05:00",
        "2023-11-15T03:58:20.000000+05:45",
        "20231114T221320Z",
    ],
)
def test_iso_8601_with_and_without_an_offset(text: str) -> None:
    assert times("iso8601", [text]) == ([KAFKA_MS], [])


def test_iso_8601_fractions_and_dates() -> None:
    texts = ["2023-11-14T22:13:20.001Z", "2023-11-14T22:13:20.999999", "2023-11-14"]
    assert times("iso8601", texts)[0] == [KAFKA_MS + 1, KAFKA_MS + 1_000, 1_699_920_000_000]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "1700000000000",
        "2023-13-01",
        "2023-11-14T25:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2023-11-14T22:13:20+99:00",
    ],
)
def test_what_is_no_iso_8601_time(text: str) -> None:
    assert times("iso8601", [text]) == ([], ["bad_time"])


def test_epoch_seconds() -> None:
    seconds = KAFKA_MS // 1_000
    wrong = [KAFKA_MS, 0, -1, 2**63 - 1, -(2**63), 10**14, 2**64 - 1]
    assert times("epoch_s", [seconds, *wrong]) == ([KAFKA_MS], ["bad_time"] * len(wrong))


def test_the_smallest_number_of_seconds_does_not_wrap_to_1970() -> None:
    early = "1900-01-01T00:00:00+00:00"
    assert times("epoch_s", [-(2**63), 0], earliest=early) == ([0], ["bad_time"])


def test_the_earliest_time_without_an_offset_is_utc() -> None:
    earliest = 1_577_836_800_000
    got = times("epoch_ms", [earliest, earliest - 1], earliest="2020-01-01T00:00:00")
    assert got == ([earliest], ["bad_time"])


# -- labels -------------------------------------------------------------------------------------

LABELS = Decoder.for_labels(LabelSpec(id="id", time="at", key="terminal", value="fraud"), SPEC)
LABEL = {"id": "e1", "at": KAFKA_MS - HOUR_MS, "terminal": "t1", "fraud": 1}


def test_labels() -> None:
    raw = [orjson.dumps({**LABEL, "fraud": value, "who": "analyst"}) for value in (0, 1)]
    events = good(decode(*raw, decoder=LABELS))
    assert events.numbers["fraud"].tolist() == [0.0, 1.0]
    assert events.texts == {"id": ["e1", "e1"], "terminal": ["t1", "t1"]}
    assert events.times.tolist() == [KAFKA_MS - HOUR_MS] * 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"fraud": 2}, "out_of_range"),
        ({"fraud": -1}, "out_of_range"),
        ({"fraud": 0.5}, "wrong_type"),
        ({"fraud": True}, "wrong_type"),
        ({"fraud": None}, "missing_field"),
        ({"terminal": ""}, "bad_key"),
        ({"id": "a\n"}, "bad_key"),
        ({"at": KAFKA_MS + 2 * HOUR_MS}, "bad_time"),
        ({"at": "2023-11-14"}, "wrong_type"),
    ],
)
def test_bad_labels(change: dict[str, Any], code: str) -> None:
    decoded = decode(orjson.dumps(LABEL | change), orjson.dumps(LABEL), decoder=LABELS)
    assert [r.code for r in decoded.rejects] == [code]
    assert len(decoded.parts) == 1


def test_labels_are_in_epoch_ms_whatever_the_events_are_in() -> None:
    event_spec = SPEC.model_copy(update={"time": TimeSpec(field="t", format="epoch_s")})
    decoder = Decoder.for_labels(LabelSpec(id="id", time="at", key="k", value="v"), event_spec)
    raw = orjson.dumps({"id": "e", "at": KAFKA_MS, "k": "t", "v": 0})
    assert good(decode(raw, decoder=decoder)).times.tolist() == [KAFKA_MS]
