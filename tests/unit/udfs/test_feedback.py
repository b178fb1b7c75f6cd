"""The feedback join against a naive one that keeps everything, under any cut and restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.feedback.entries import Entry, FeedbackStateError
from udfs.feedback.join import FeedbackJoin, FeedbackOptions
from udfs.feedback.records import Impression, Interaction, Other, Record, Shown, record_of

OPTIONS = FeedbackOptions(window_ms=30, lateness_ms=10, keep_ms=50)
ITEMS = ("a", "b", "c")


class Stored(dict[str, bytes]):
    """What Flink's map state offers of a dict."""

    put = dict.__setitem__

    def remove(self, key: str) -> None:
        self.pop(key, None)


def impression(request_id: str, time_ms: int) -> Impression:
    body = {
        "kind": "impression",
        "request_id": request_id,
        "user": "u",
        "event_time_ms": time_ms,
        "items": [{"item": item, "features": [1.5]} for item in ITEMS],
    }
    found = record_of(orjson.dumps(body), frozenset())
    assert isinstance(found, Impression)
    return found


def joined(
    records: Sequence[Record], cuts: Iterable[int] = (), restarts: frozenset[int] = frozenset()
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """What comes out of records in batches, with a restart after some of them; then the end."""
    state, documents, counts = Stored(), list[dict[str, Any]](), Counter[str]()
    join = FeedbackJoin(OPTIONS, state)
    bounds = [0, *sorted(set(cuts)), len(records)]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        documents += [orjson.loads(one.value) for one in join.take(records[start:stop])]
        counts.update(join.counts.taken())
        if number in restarts:
            join = FeedbackJoin(OPTIONS, Stored(state))
            state = join._state  # type: ignore[assignment]
    documents += [orjson.loads(one.value) for one in join.finish()]
    counts.update(join.counts.taken())
    return documents, counts


class Naive:
    """Reads all of what came before at every step, and forgets nothing."""

    def __init__(self) -> None:
        self.came: list[Record] = []
        self.closed: dict[str, int] = {}
        self.gone: set[str] = set()
        self.documents: dict[str, dict[str, list[str]]] = {}
        self.late: list[Interaction] = []
        self.open: dict[str, list[Record]] = {}

    def take(self, record: Record) -> None:
        self.came.append(record)
        request_id = getattr(record, "request_id", "")
        if request_id in self.closed:
            if isinstance(record, Interaction):
                self.late.append(record)
        elif request_id:
            self.open.setdefault(request_id, []).append(record)
        self._settle()

    def _now(self) -> int:
        shown = [r.time_ms for r in self.came if isinstance(r, Impression)]
        other = [r.time_ms for r in self.came if not isinstance(r, Impression)]
        return min(max(shown), max(other)) if shown and other else -(2**62)

    @staticmethod
    def _begun(records: list[Record]) -> int:
        first = next((r for r in records if isinstance(r, Impression)), None)
        return first.time_ms if first else min(r.time_ms for r in records)

    def _settle(self) -> None:
        now = self._now()
        for request_id in list(self.open):
            if self._begun(self.open[request_id]) + 40 < now:
                self.close(request_id)
        for request_id, begun in list(self.closed.items()):
            if begun + 40 + 50 < now:
                del self.closed[request_id]

    def close(self, request_id: str) -> None:
        records = self.open.pop(request_id)
        begun = self._begun(records)
        self.closed[request_id] = begun
        is_shown = any(isinstance(r, Shown) for r in records)
        if not is_shown or not any(isinstance(r, Impression) for r in records):
            return
        labels: dict[str, list[str]] = {item: [] for item in ITEMS}
        clicks = [r for r in records if isinstance(r, Interaction)]
        for one in sorted(clicks, key=lambda r: (r.time_ms, r.item, r.kind)):
            if one.item in labels and begun <= one.time_ms <= begun + 30:
                labels[one.item].append(one.kind)
        self.documents[request_id] = labels

    def finish(self) -> None:
        for request_id in list(self.open):
            self.close(request_id)


ids = st.sampled_from(["r1", "r2", "r3"])
times = st.integers(0, 120)
records_of = st.lists(
    st.one_of(
        st.builds(impression, ids, times),
        st.builds(Shown, ids, times),
        st.builds(
            Interaction,
            st.sampled_from(["r1", "r2", "r3", ""]),
            st.sampled_from(["a", "b", "x"]),
            st.sampled_from(["click", "purchase"]),
            times,
        ),
        st.builds(Other, times),
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(records_of, st.sets(st.integers(0, 30)), st.frozensets(st.integers(0, 30)))
def test_it_equals_the_naive_join_however_it_is_cut(
    records: list[Record], cuts: set[int], restarts: frozenset[int]
) -> None:
    naive = Naive()
    for record in records:
        naive.take(record)
    naive.finish()
    documents, counts = joined(records, (c for c in cuts if c < len(records)), restarts)
    whole, whole_counts = joined(records)
    assert documents == whole and counts == whole_counts
    late = [d for d in documents if d["kind"] == "late"]
    assert len(late) == counts["late"] == len(naive.late)
    # A request may be forgotten and come again: the last example counts on both sides.
    labels = {
        d["request_id"]: {one["item"]: one["kinds"] for one in d["items"]}
        for d in documents
        if d["kind"] == "example"
    }
    assert labels == naive.documents


@given(records_of)
def test_every_interaction_is_counted_once(records: list[Record]) -> None:
    _, counts = joined(records)
    names = ("labels", "outside", "elsewhere", "unmatched", "unlinked", "late")
    assert sum(counts[n] for n in names) == sum(isinstance(r, Interaction) for r in records)


def test_a_click_before_its_impression_is_joined() -> None:
    records = [Interaction("r1", "b", "click", 5), Shown("r1", 0), impression("r1", 0)]
    (document,), counts = joined(records)
    assert [one["label"] for one in document["items"]] == [0, 1, 0]
    assert document["items"][1]["answered_ms"] == 5
    assert document["items"][0]["features"] == [1.5]
    assert counts == {"examples": 1, "labels": 1}


def test_what_no_caller_got_is_no_example() -> None:
    documents, counts = joined([impression("r1", 0), Interaction("r1", "b", "click", 5)])
    assert documents == [] and counts == {"unshown": 1, "elsewhere": 1}


def test_a_late_click_is_a_correction() -> None:
    on = [impression("r2", 60), Other(60)]
    records = [impression("r1", 0), Shown("r1", 0), *on, Interaction("r1", "a", "click", 3)]
    documents, counts = joined(records)
    assert [d["kind"] for d in documents] == ["example", "late"]
    assert documents[1]["item"] == "a" and documents[1]["user"] == "u"
    assert counts["late"] == 1


def test_the_time_of_a_silent_topic_passes_as_the_walls_does() -> None:
    join = FeedbackJoin(OPTIONS, Stored())
    assert list(join.take([impression("r1", 0), Shown("r1", 0)])) == []
    assert list(join.pass_time(1_000)) == [], "both were heard of since"
    assert list(join.pass_time(40)) == []
    (written,) = join.pass_time(1)
    assert orjson.loads(written.value)["example_id"] == "r1"


def test_state_is_forgotten() -> None:
    state = Stored()
    join = FeedbackJoin(OPTIONS, state)
    list(join.take([impression("r1", 0), Shown("r1", 0), impression("r2", 91), Other(91)]))
    assert set(state) == {"#", "rr2"}


def test_clicks_on_impressions_that_never_come_are_forgotten() -> None:
    state = Stored()
    join = FeedbackJoin(OPTIONS, state)
    list(join.take([Interaction("r1", "a", "click", 0), Other(1_000)]))
    for _ in range(41):  # a topic that was never heard of is waited for as long as a request is
        assert not list(join.pass_time(1))
        assert any(key.startswith("r") for key in state) == (join.counts.unmatched == 0)
    assert join.counts.unmatched == 1 and not [key for key in state if key != "#"]


@pytest.mark.parametrize("data", [b"", b"\x03[]\n"])
def test_another_layout_is_refused(data: bytes) -> None:
    with pytest.raises(FeedbackStateError):
        FeedbackJoin(OPTIONS, Stored({"rr1": data}))


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"kind":"click","event_time_ms":1}', b'{"kind":1}']
)
def test_malformed_records_are_left_out(raw: bytes) -> None:
    assert record_of(raw, frozenset({"click"})) is None


def test_an_entry_survives_packing() -> None:
    entry = Entry(
        5, b'{"a":1}\n', ("a", "b"), "u", True, False, [Interaction("r", "a", "click", 7)]
    )
    assert Entry.unpacked("r", entry.packed()) == entry


def test_a_request_of_an_earlier_release_is_read() -> None:
    head = orjson.dumps([5, True, False, "u", ["a"], [["a", "click", 6]]])
    entry = Entry.unpacked("r", b"\x01" + head + b"\n" + b'{"items": []}')
    assert entry.impression == b'{"items": []}' and entry.items == ("a",) and entry.shown
    again = Entry.unpacked("r", entry.packed())
    assert again == entry and again.packed()[0] == 2
