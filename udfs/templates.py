"""JSON of a whole batch from one template, written in compiled code.

A dict per event and a dump of it cost ten times as much as this: orjson writes all numbers of the
batch in one call, as two texts, and a loop compiled by Numba copies them between the constant
pieces of the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import orjson
from numba import njit

from udfs.events import FloatArray, IntArray
from udfs.kernels import Bytes, Ints

FLOAT, WHOLE, TEXT = 0, 1, 2
"""Where the value of a slot comes from."""

_COMMA, _CLOSE, _NEWLINE = 44, 93, 10
_compiled = njit(cache=True)


@_compiled
def _copy_number(numbers: Bytes, begin: int, out: Bytes, at: int) -> tuple[int, int]:
    """Copy a number of ``[[1,2],[3,4]]``: where the next one begins, and where the copy ends."""
    while numbers[begin] != _COMMA and numbers[begin] != _CLOSE:
        out[at] = numbers[begin]
        begin, at = begin + 1, at + 1
    return begin + (1 if numbers[begin] == _COMMA else 3), at


@_compiled
def _fill(
    constants: Bytes,
    ends: Ints,
    sources: Ints,
    floats: Bytes,
    whole: Bytes,
    texts: Bytes,
    out: Bytes,
    records: Ints,
) -> None:
    """Write the records one after the other; ``records`` gets where each one ends."""
    float_at, whole_at, text_at, at = 2, 2, 0, 0
    for row in range(len(records)):
        begin = 0
        for slot in range(len(ends)):
            for n in range(begin, ends[slot]):
                out[at] = constants[n]
                at += 1
            begin = ends[slot]
            if slot == len(sources):
                break
            if sources[slot] == FLOAT:
                float_at, at = _copy_number(floats, float_at, out, at)
            elif sources[slot] == WHOLE:
                whole_at, at = _copy_number(whole, whole_at, out, at)
            else:
                while texts[text_at] != _NEWLINE:
                    out[at] = texts[text_at]
                    text_at, at = text_at + 1, at + 1
                text_at += 1
        records[row] = at


class Template:
    """A JSON text with slots.

    Args:
        pieces: The constant texts, one more than slots.
        sources: ``FLOAT``, ``WHOLE`` or ``TEXT`` for each slot.
    """

    def __init__(self, pieces: Sequence[bytes], sources: Sequence[int]) -> None:
        self._constants = np.frombuffer(b"".join(pieces), np.uint8)
        self._ends = np.cumsum([len(piece) for piece in pieces])
        self._sources = np.array(sources, np.int64)

    def fill(self, floats: FloatArray, whole: IntArray, texts: Sequence[str]) -> list[bytes]:
        """Every row's record.

        Args:
            floats: The values of the ``FLOAT`` slots, (n, slots); NaN becomes null.
            whole: The values of the ``WHOLE`` slots, int64 (n, slots).
            texts: The values of the ``TEXT`` slots, row after row; what JSON has between quotes.
        """
        float_text = orjson.dumps(np.ascontiguousarray(floats), option=orjson.OPT_SERIALIZE_NUMPY)
        whole_text = orjson.dumps(np.ascontiguousarray(whole), option=orjson.OPT_SERIALIZE_NUMPY)
        text = ("\n".join(texts) + "\n").encode()
        n = len(floats)
        sizes = n * len(self._constants), len(float_text), len(whole_text), len(text)
        out, ends = np.empty(sum(sizes), np.uint8), np.empty(n, np.int64)
        _fill(
            self._constants,
            self._ends,
            self._sources,
            np.frombuffer(float_text, np.uint8),
            np.frombuffer(whole_text, np.uint8),
            np.frombuffer(text, np.uint8),
            out,
            ends,
        )
        data, bounds = out.tobytes(), [0, *ends.tolist()]
        return [data[a:b] for a, b in pairwise(bounds)]


def between_quotes(texts: list[str]) -> list[str]:
    """What stands between the quotes of each text's JSON."""
    joined = "".join(texts)
    if '"' not in joined and "\\" not in joined and joined.isprintable():
        return texts
    return [orjson.dumps(text).decode()[1:-1] for text in texts]
