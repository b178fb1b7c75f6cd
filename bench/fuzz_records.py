"""Try to bring a job down by its input: mutated records, through Kafka, a model embedded.

Each record is a real transaction changed in one to three of twelve ways: bits, bytes, truncation,
other types, huge and broken numbers, nesting, odd texts, missing and repeated fields, other keys.
The job must not fail (one failure ends it), and every record must come out once: as a prediction, a
dead letter or a duplicate. Prints a table and writes build/bench/fuzz_records.json; exit code 1 if
a record is missing or comes out twice, or the job failed.

Examples:
  python -m bench.fuzz_records --quick
  python -m bench.fuzz_records --records 1000000 --seed 3
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from bench.common import (
    BenchError,
    Result,
    add_common_options,
    command_line,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import PARTITIONS, Child, Lab, lab
from bench.records import repeated

SETTINGS = {"model.embedded": True, "flink.checkpoint_interval": "10s"}
_WAIT_S, _QUIET_S, _STALL_S = 1_800.0, 10.0, 120.0
_SHOWN = ("predictions", "dead_letters", "duplicates")

Mutation = Callable[[random.Random, bytes], bytes]

_NUMBERS = (
    b"-0.0", b"1e308", b"-1e308", b"1e309", b"NaN", b"Infinity", b"1e-400", b"0x1F", b"01", b"+1",
    b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"1" * 400,
    b"1.", b".5",
)  # fmt: skip
_TEXTS = ("", " ", "\x00", "\x1f", "\x7f", "\u2028", "\ud7ff", "\U0010ffff", "a" * 2_000, "é" * 600,
          '"', "\\", "null", "../../x", "${HOME}", "<script>", "0", "\ufeff")  # fmt: skip
_VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 2**63, 1.5, "x", [], {}, [1], {"a": 1}, "NaN")
_TIMES = (-1, 0, 1, 946_684_799_999, 2**31, 2**53, 2**62, 10**18)


def _flip_bits(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randint(0, len(raw))]


def _insert(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.randbytes(rng.randint(1, 8)) + raw[at:]


def _repeat(rng: random.Random, raw: bytes) -> bytes:
    return raw * rng.randint(2, 3)


def _noise(rng: random.Random, raw: bytes) -> bytes:
    return rng.randbytes(rng.randint(0, 200))


def _wrap(rng: random.Random, raw: bytes) -> bytes:
    depth = rng.choice((1, 2, 200, 1_100, 5_000))
    return rng.choice((b"[" * depth + raw + b"]" * depth, b'{"a":' * depth + raw + b"}" * depth))


def _number(rng: random.Random, raw: bytes) -> bytes:
    digits = [n for n in range(len(raw)) if raw[n : n + 1].isdigit()]
    if not digits:
        return raw
    start = end = rng.choice(digits)
    while start and raw[start - 1 : start] in b"0123456789.-+eE":
        start -= 1
    while end < len(raw) and raw[end : end + 1] in b"0123456789.-+eE":
        end += 1
    return raw[:start] + rng.choice(_NUMBERS) + raw[end:]


def _changed(raw: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A record changed as a document, if it still is one."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw
    if not isinstance(document, dict) or not document:
        return raw
    change(document)
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return raw


def _value(rng: random.Random, raw: bytes) -> bytes:
    def change(document: dict[str, Any]) -> None:
        document[rng.choice(list(document))] = rng.choice(_VALUES)

    return _changed(raw, change)


def _text(rng: random.Random, raw: bytes) -> bytes:
    def change(document: dict[str, Any]) -> None:
        texts = [name for name, value in document.items() if isinstance(value, str)]
        if texts:
            document[rng.choice(texts)] = rng.choice(_TEXTS)

    return _changed(raw, change)


def _without(rng: random.Random, raw: bytes) -> bytes:
    return _changed(raw, lambda document: document.pop(rng.choice(list(document))))


def _time(rng: random.Random, raw: bytes) -> bytes:
    def change(document: dict[str, Any]) -> None:
        document["event_time_ms"] = rng.choice(_TIMES) + rng.randint(-1, 1)

    return _changed(raw, change)


def _twice(rng: random.Random, raw: bytes) -> bytes:
    """A key twice in one object."""
    return raw[:-1] + b',"amount":' + rng.choice(_NUMBERS) + b"}" if raw.endswith(b"}") else raw


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _cut, _insert, _repeat, _noise, _wrap, _number, _value, _text, _without, _time,
    _twice,
)  # fmt: skip


def mutated(
    pairs: Iterator[tuple[bytes, bytes]], seed: int
) -> Iterator[tuple[bytes | None, bytes]]:
    """Each record changed, one in eight left as it is, some under another Kafka key or none."""
    rng = random.Random(seed)
    for key, raw in pairs:
        found = raw
        for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 3))):
            found = rng.choice(MUTATIONS)(rng, found)
        kind = rng.random()
        yield (None if kind < 0.02 else rng.randbytes(3) if kind < 0.05 else key), found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("fuzz_records", __doc__)
    add_common_options(result.add_argument)
    result.add_argument("--records", type=int, help="records (default: 1,000,000; --quick 20,000)")
    result.add_argument("--seed", type=int, default=1, help="of the mutations")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(argv)
    options.records = options.records or (20_000 if options.quick else 1_000_000)
    options.data = options.data or "small"
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about, overrides = machine(), SETTINGS | dict(options.overrides)
    with lab("fuzz_records", options.config, overrides, options.data, keep=options.keep) as at:
        (events,) = at.create("events", **{"max.message.bytes": "8388608"})
        (labels,) = at.create("labels")
        topics = {**at.create_outputs("fuzz"), "events": events, "labels": labels}
        seconds = _run(at, topics, overrides, options.records, options.seed)
        places, codes = _accounts(at, topics)
        sizes = {name: at.topics.size(topics[name]) for name in _SHOWN}
        missing = options.records - len(places)
        twice = sum(count > 1 for count in places.values())
        if missing or twice:
            at.failures.append(f"{missing:,} records came out nowhere, {twice:,} more than once")
        document = {
            "machine": about,
            "versions": versions(),
            "settings": {"config": options.config.name, "changed": overrides},
            "runs": [{"name": "fuzz", "seed": options.seed, "codes": codes, **sizes}],
            "failures": at.failures,
        }
        results = [Result("records", options.records, "records", note=f"{seconds:.0f} s")]
        results += [Result(name, size, "records") for name, size in sizes.items()]
        results += [
            Result("kinds_of_refusals", len(codes), "codes", note=", ".join(sorted(codes))),
            Result("missing", missing, "records"),
            Result("more_than_once", twice, "records"),
        ]
        return finish("fuzz_records", "Mutated records", document, results, quick=options.quick)


def _run(
    at: Lab, topics: Mapping[str, str], overrides: Mapping[str, Any], count: int, seed: int
) -> float:
    """Write all records into a running job and wait until nothing comes out any more; seconds."""
    say("starting the job")
    with at.start_ours("fuzz", {**at.job_overrides("fuzz", topics), **overrides}) as job:
        begun_s = time.monotonic()
        pairs: Any = mutated(repeated(at.frame, 0, count, "f"), seed)
        at.topics.write(topics["events"], pairs, "writing events", count)
        _settle(at, job, topics, count)
        return time.monotonic() - begun_s - _QUIET_S


def _settle(at: Lab, job: Child, topics: Mapping[str, str], count: int) -> None:
    """Wait until as many records came out as went in and none more, or none for minutes."""
    deadline_s = time.monotonic() + _WAIT_S
    size, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < (_QUIET_S if size >= count else _STALL_S):
        job.check()
        if time.monotonic() > deadline_s:
            raise BenchError(f"{size:,} of {count:,} records came out within {_WAIT_S:.0f} s")
        now = sum(at.topics.size(topics[name]) for name in _SHOWN)
        if now != size:
            size, since_s = now, time.monotonic()
        time.sleep(0.5)


def _accounts(
    at: Lab, topics: Mapping[str, str]
) -> tuple[Counter[tuple[int, int]], dict[str, int]]:
    """How often each input record came out, and how many were refused by code."""
    places: Counter[tuple[int, int]] = Counter()
    codes: Counter[str] = Counter()
    for name in _SHOWN:
        for message in at.topics.read(topics[name]):
            document = orjson.loads(message.value() or b"")
            source = document["source"]
            assert 0 <= source["partition"] < PARTITIONS
            places[source["partition"], source["offset"]] += 1
            if name == "dead_letters":
                codes[document["code"]] += 1
    return places, dict(codes)


if __name__ == "__main__":
    sys.exit(main())
