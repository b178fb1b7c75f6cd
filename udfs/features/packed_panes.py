"""Panes as they are stored, and as they are read again when features have changed."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints
from udfs.features import pane_kernels as p
from udfs.features import sketch_kernels as sketch
from udfs.features.layouts import FOREIGN, Layouts, StateFormatError

_COUNTS = struct.Struct("<qq")  # panes, marks
_SUMMARY, _SKETCHES = "summary", ("distinct", "quantiles")


class PackedPanes(NamedTuple):
    """The panes of a history, for ``pane_kernels.put``.

    Attributes:
        panes: End and summaries, with room for sums, int64 (n, words).
        marks: int64 (n, 2).
    """

    panes: Ints
    marks: Ints


def unpack_panes(
    packed: bytes, at: int, layouts: Layouts, number: int
) -> tuple[PackedPanes | None, int]:
    """The panes that stand at a place of a packed history, and where they end.

    What is new today has no panes yet. Panes of another length or error are dropped: none.

    Args:
        packed: The history.
        at: The place.
        layouts: Of panes.
        number: Which of them.

    Raises:
        StateFormatError: there is no such layout, or less than the counts say.
    """
    if number >= len(layouts.all) or not layouts.all[number]:
        raise StateFormatError(FOREIGN)
    stored, today = layouts.all[number], layouts.all[layouts.today]
    n, marks = _COUNTS.unpack_from(packed, at)
    words = 1 + p.SUMMARY * sum(name.startswith(_SUMMARY) for name in stored)
    begin, middle = at + _COUNTS.size, at + _COUNTS.size + 8 * n * words
    end = middle + 16 * marks
    if min(n, marks) < 0 or end > len(packed):
        raise StateFormatError("a stored history's panes are cut off: start without this state")
    own = np.frombuffer(packed, np.int64, n * words, begin).reshape(n, words)
    marked = np.frombuffer(packed, np.int64, 2 * marks, middle).reshape(marks, 2)
    if not today or stored[0] != today[0]:
        return None, end
    return PackedPanes(_summaries(own, stored, today), _marks(marked, stored, today)), end


def _summaries(own: Ints, stored: tuple[str, ...], today: tuple[str, ...]) -> Ints:
    names = [name for name in today if name.startswith(_SUMMARY)]
    made = np.zeros((len(own), 1 + 2 * p.SUMMARY * len(names)), np.int64)
    made[:, 0] = own[:, 0]
    floats: Floats = made.view(np.float64)
    for place, name in enumerate(names):
        at = 1 + p.SUMMARY * place
        if name in stored:
            old = 1 + p.SUMMARY * (stored.index(name) - 1)
            made[:, at : at + p.SUMMARY] = own[:, old : old + p.SUMMARY]
        else:
            floats[:, at + p.SMALLEST], floats[:, at + p.LARGEST] = np.inf, -np.inf
    return made


def _marks(marks: Ints, stored: tuple[str, ...], today: tuple[str, ...]) -> Ints:
    if stored == today:
        return marks
    names = [name for name in today if name.startswith(_SKETCHES)]
    moved = []
    for place, name in enumerate(n for n in stored if n.startswith(_SKETCHES)):
        if name in names:
            begin, end = sketch.marks_of(marks, place)
            own = marks[begin:end].copy()
            own[:, 0] += sketch.first_word(names.index(name), 0, 0) - sketch.first_word(place, 0, 0)
            moved.append(own)
    if not moved:
        return marks[:0]
    together = np.concatenate(moved)
    return np.ascontiguousarray(together[np.argsort(together[:, 0], kind="stable")])
