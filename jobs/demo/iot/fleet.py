"""Thousands of machines out of few runs: each replays one with its own clock, offset and gain.

A reading is made when it is due, a second of event time at a go, so that the length of a replay
costs no memory. All chances are drawn from the seed and the second alone: the same fleet is sent
again record by record, and what it consists of is counted before the first is sent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from jobs.demo.iot.grids import Grids
from jobs.demo.iot.runs import SENSORS, BoolArray, Runs
from jobs.demo.iot.spoiling import SPOIL, spoilt
from jobs.demo.replay import Chunk, Item
from udfs.batches.events import FloatArray, IntArray

TYPES = ("P100", "P200")
"""Types of machines; the second is twice the first in every sensor."""

DELAYED_S, LATE_S = (1, 2, 3), 60
"""How many seconds after its time a reading comes that is out of order, or too late."""

_DECIMALS = 5
_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with readings and machines, as parts of 1.

    Attributes:
        duplicate: Readings that are sent twice.
        missing: Readings of which one sensor is null.
        delayed: Readings that come 1 to 3 s late.
        late: Readings that come a minute late.
        bad: Further records that are no readings.
        gap: Machines that send nothing for 20 to 60 s, once.
        stuck: Machines of which one sensor stands still for 30 to 90 s, once.
        silent: Machines that stop for good in the second half.
    """

    duplicate: float = 0.002
    missing: float = 0.002
    delayed: float = 0.005
    late: float = 0.0005
    bad: float = 0.0002
    gap: float = 0.05
    stuck: float = 0.03
    silent: float = 0.005


NO_FAULTS = Faults(*[0.0] * 8)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a machine.

    Attributes:
        machine: Its name.
        run: The run that it replays.
        anomalies_ms: From and to, event time, epoch.
        silent_from_ms: From when on it sends nothing more; none if it sends to the end.
    """

    machine: str
    run: str
    anomalies_ms: tuple[tuple[int, int], ...]
    silent_from_ms: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Second:
    """The chances of one second; all arrays are (machines,).

    Attributes:
        rows: Row among all runs' rows; -1 for no reading.
        twice: Whether the reading is sent twice.
        missing: The sensor that is null, -1 for none.
        delay_s: After how many seconds it comes.
        bad: Kind of the bad record that comes along, -1 for none.
    """

    rows: IntArray
    twice: BoolArray
    missing: IntArray
    delay_s: IntArray
    bad: IntArray


class Fleet:
    """A replay of runs as many machines; a ``jobs.demo.replay.Content``.

    Args:
        runs: What they replay.
        machines: How many.
        seconds: Of event time, from the first reading on.
        start_ms: Event time of the first second, epoch.
        seed: Of all chances.
        disturbed: Part of the machines that replay a labelled run from near its begin; the others
            replay parts of the run without an anomaly.
        faults: What goes wrong beside the anomalies.
    """

    def __init__(
        self,
        runs: Runs,
        machines: int,
        seconds: int,
        start_ms: int,
        seed: int = 1,
        disturbed: float = 0.05,
        faults: Faults | None = None,
    ) -> None:
        chance = np.random.default_rng(seed)
        self._seed, self._faults = seed, faults or Faults()
        self.machines, self.seconds, self.start_ms = machines, seconds, start_ms
        self.source = runs.source
        self.names = [f"m{n:05d}" for n in range(machines)]
        self._keys = [name.encode() for name in self.names]
        self._runs = (runs.normal, *runs.labelled)
        self._table = np.concatenate([run.values for run in self._runs])
        self._grids = Grids(self._runs)
        self._run_of = _choose_runs(machines, len(runs.labelled), disturbed, chance)
        self._from_s = _first_seconds(self._run_of, self._grids, seconds, chance)
        self.phase_ms: IntArray = np.sort(chance.integers(0, 1_000, machines))
        self._draw_scales(machines, chance)
        self._draw_troubles(machines, chance)

    def _draw_scales(self, machines: int, chance: np.random.Generator) -> None:
        self._type_of = chance.integers(0, len(TYPES), machines)
        spread = self._table.std(axis=0)
        gain = chance.uniform(0.8, 1.25, (machines, len(SENSORS)))
        self._gain = gain * (1.0 + self._type_of)[:, None]
        self._offset = chance.normal(0, 1, (machines, len(SENSORS))) * spread

    def _draw_troubles(self, machines: int, chance: np.random.Generator) -> None:
        f, last = self._faults, self.seconds
        has_gap, is_stuck, ends = (chance.random(machines) < p for p in (f.gap, f.stuck, f.silent))
        gap_from = np.where(has_gap, chance.integers(0, last, machines), _END)
        self._gap = gap_from, chance.integers(20, 61, machines)
        stuck_from = np.where(is_stuck, chance.integers(0, last, machines), _END)
        self._stuck = stuck_from, chance.integers(30, 91, machines)
        self._stuck_sensor = chance.integers(0, len(SENSORS), machines)
        self._silent_from = np.where(ends, chance.integers(last // 2, last, machines), _END)

    # -- what is known of it --------------------------------------------------------------------

    @cached_property
    def counts(self) -> Counter[str]:
        """How many records there are of each kind, see ``Faults``; ``readings`` are the others."""
        found: Counter[str] = Counter()
        for second in range(self.seconds):
            drawn = self._second(second)
            sent = drawn.rows >= 0
            found["readings"] += int(sent.sum())
            found["duplicate"] += int(drawn.twice.sum())
            found["missing"] += int((drawn.missing >= 0).sum())
            found["delayed"] += int(np.isin(drawn.delay_s, DELAYED_S).sum())
            found["late"] += int((drawn.delay_s == LATE_S).sum())
            found["bad"] += int((drawn.bad >= 0).sum())
        return found

    @property
    def events(self) -> int:
        """See ``replay.Content``."""
        return sum(self.counts[kind] for kind in ("readings", "duplicate", "bad"))

    @property
    def added(self) -> str:
        """See ``replay.Content``."""
        c = self.counts
        return (
            f"{c['duplicate']:,} exact duplicates, {c['bad']:,} bad records; of the readings "
            f"{c['delayed']:,} out of order, {c['late']:,} a minute late, {c['missing']:,} with a "
            "sensor's value missing"
        )

    def truth(self) -> list[Truth]:
        """What is known of each machine, in the order of ``names``."""
        return [self._truth(n) for n in range(self.machines)]

    def _truth(self, n: int) -> Truth:
        run, end_s = self._runs[self._run_of[n]], int(self._silent_from[n])
        rows = self._grids.rows(self._run_of[n], self._from_s[n] + np.arange(self.seconds))
        begin = self._grids.first[self._run_of[n]]
        known = rows >= 0
        times = np.flatnonzero(known)
        label = run.anomaly[rows[known] - begin].astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], label, [0]])))
        at = self.start_ms + int(self.phase_ms[n])
        spans = [
            (at + 1_000 * int(times[a]), at + 1_000 * int(times[b - 1]) + 1_000)
            for a, b in edges.reshape(-1, 2).tolist()
        ]
        silent = None if end_s >= self.seconds else at + 1_000 * end_s
        return Truth(self.names[n], run.name, tuple(spans), silent)

    # -- its records ----------------------------------------------------------------------------

    def chunks(self) -> Iterator[Chunk]:
        """See ``replay.Content``; a chunk is a second."""
        waiting: dict[int, list[Item]] = defaultdict(list)
        for second in range(self.seconds):
            items, places = waiting.pop(second, []), []
            places += [float(second)] * len(items)
            self._fill(second, items, places, waiting)
            if second == self.seconds - 1:
                rest = [item for at in sorted(waiting) for item in waiting[at]]
                items += rest
                places += [float(self.seconds)] * len(rest)
            yield Chunk(items, np.array(places) / self.seconds)

    def _fill(
        self,
        second: int,
        items: list[Item],
        places: list[float],
        waiting: dict[int, list[Item]],
    ) -> None:
        drawn = self._second(second)
        for n, value in self._readings(second, drawn):
            item, place = Item("events", self._keys[n], value), second + self.phase_ms[n] / 1_000
            if delay := int(drawn.delay_s[n]):
                waiting[second + delay].append(item)
                continue
            copies = [item] * (1 + int(drawn.twice[n]))
            if drawn.bad[n] >= 0:
                copies.append(item._replace(value=spoilt(value, int(drawn.bad[n]))))
            items += copies
            places += [place] * len(copies)

    def _readings(self, second: int, drawn: _Second) -> Iterator[tuple[int, bytes]]:
        at = np.flatnonzero(drawn.rows >= 0)
        times = (self.start_ms + 1_000 * second + self.phase_ms[at]).tolist()
        values: Any = self._values(second, drawn, at).tolist()
        nulls = drawn.missing[at].tolist()
        kinds = self._type_of[at].tolist()
        for n, time, row, null, kind in zip(at.tolist(), times, values, nulls, kinds, strict=True):
            if null >= 0:
                row[null] = None
            head = {
                "reading": f"{self.names[n]}-{time}",
                "at_ms": time,
                "machine": self.names[n],
                "machine_type": TYPES[kind],
            }
            yield n, orjson.dumps(head | dict(zip(SENSORS, row, strict=True)))

    def _values(self, second: int, drawn: _Second, at: npt.NDArray[np.intp]) -> FloatArray:
        values: FloatArray = self._table[drawn.rows[at]]
        from_s, length = (a[at] for a in self._stuck)
        stands = np.flatnonzero((from_s <= second) & (second < from_s + length))
        if len(stands):
            machines, sensors = at[stands], self._stuck_sensor[at[stands]]
            rows = self._rows(from_s[stands], machines)
            still = np.where(rows >= 0, rows, drawn.rows[machines])
            values[stands, sensors] = self._table[still, sensors]
        scaled: FloatArray = values * self._gain[at] + self._offset[at]
        return scaled.round(_DECIMALS)

    def _rows(self, seconds: IntArray, machines: npt.NDArray[np.intp]) -> IntArray:
        return self._grids.rows(self._run_of[machines], self._from_s[machines] + seconds)

    def _second(self, second: int) -> _Second:
        """The chances of a second: the same at every call."""
        f, chance = self._faults, np.random.default_rng((self._seed, second))
        everyone = np.arange(self.machines)
        rows = self._rows(np.full(self.machines, second), everyone)
        from_s, length = self._gap
        is_off = (from_s <= second) & (second < from_s + length) | (second >= self._silent_from)
        rows = np.where(is_off, -1, rows)
        sent = rows >= 0
        draws = chance.random((4, self.machines))
        delay = np.where(draws[0] < f.delayed, chance.choice(DELAYED_S, self.machines), 0)
        delay[draws[0] > 1 - f.late] = LATE_S
        delay[~sent] = 0
        missing = np.where(draws[2] < f.missing, chance.integers(0, 8, self.machines), -1)
        bad = np.where(draws[3] < f.bad, chance.integers(0, len(SPOIL), self.machines), -1)
        return _Second(
            rows=rows,
            twice=sent & (delay == 0) & (draws[1] < f.duplicate),
            missing=np.where(sent, missing, -1),
            delay_s=delay,
            bad=np.where(sent & (delay == 0), bad, -1),
        )

    def about(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "source": self.source,
            "machines": self.machines,
            "seconds": self.seconds,
            "seed": self._seed,
            "faults": asdict(self._faults),
        }


def _choose_runs(
    machines: int, labelled: int, disturbed: float, chance: np.random.Generator
) -> IntArray:
    """For each machine 0, the normal run, or one of the labelled ones, all of them alike often."""
    count = round(machines * disturbed)
    chosen = np.concatenate([1 + np.arange(count) % labelled, np.zeros(machines - count, np.int64)])
    return chance.permutation(chosen).astype(np.int64)


def _first_seconds(
    run_of: IntArray, grids: Grids, seconds: int, chance: np.random.Generator
) -> IntArray:
    """Where in its run each machine begins."""
    normal_room = max(int(grids.lengths[0]) - seconds, 1)
    latest = np.where(run_of == 0, normal_room, 60)
    begun: IntArray = (chance.random(len(run_of)) * latest).astype(np.int64)
    return begun
