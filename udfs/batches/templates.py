"""JSON of a whole batch from one template, written in compiled code.

A dict per event and a dump of it cost ten times as much as this: orjson writes all numbers of the
batch in one call, as two texts, and a loop compiled by Numba copies them between the constant
pieces of the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from udfs.batches.events import FloatArray, IntArray
from udfs.compiled import Bytes, Ints

FLOAT, WHOLE, TEXT = 0, 1, 2
"""Where the value of a slot comes from."""

_COMMA, _CLOSE, _NEWLINE = 44, 93, 10
_compiled = njit(cache=True)


@intrinsic
def _copy(typing: Any, out: Any, at: Any, source: Any, begin: Any, count: Any) -> Any:
    """``out[at : at + count] = source[begin : begin + count]`` of uint8 arrays, by memcpy.

    A loop goes byte by byte, as Numba cannot know that the arrays do not overlap.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, at, source, begin, count = arguments
        into = context.make_array(signature.args[0])(context, builder, out).data
        whence = context.make_array(signature.args[2])(context, builder, source).data
        into, whence = builder.gep(into, [at]), builder.gep(whence, [begin])
        cgutils.raw_memcpy(builder, into, whence, count, 1)
        return context.get_dummy_value()

    return types.none(out, types.intp, source, types.intp, types.intp), generate


@_compiled
def _end(text: Bytes, at: int) -> int:
    """Where a number of ``[[1,2],[3,4]]`` ends."""
    while text[at] != _COMMA and text[at] != _CLOSE:
        at += 1
    return at


@_compiled
def _end_of_line(text: Bytes, at: int) -> int:
    while text[at] != _NEWLINE:
        at += 1
    return at


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
            length = ends[slot] - begin
            _copy(out, at, constants, begin, length)
            begin, at = ends[slot], at + length
            if slot == len(sources):
                break
            if sources[slot] == FLOAT:
                end = _end(floats, float_at)
                length = end - float_at
                _copy(out, at, floats, float_at, length)
                float_at = end + (1 if floats[end] == _COMMA else 3)
            elif sources[slot] == WHOLE:
                end = _end(whole, whole_at)
                length = end - whole_at
                _copy(out, at, whole, whole_at, length)
                whole_at = end + (1 if whole[end] == _COMMA else 3)
            else:
                end = _end_of_line(texts, text_at)
                length = end - text_at
                _copy(out, at, texts, text_at, length)
                text_at = end + 1
            at += length
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


def json_text(value: Any) -> str:
    """A value's JSON."""
    return orjson.dumps(value).decode()


def members_of(names: Sequence[str], source: int) -> list[str | int]:
    """Names and slots of an object's members, without the braces."""
    quote = '"' if source == TEXT else ""
    parts: list[str | int] = []
    for n, name in enumerate(names):
        parts += [f"{',' if n else ''}{json_text(name)}:{quote}", source, quote]
    return parts


def as_template(parts: Sequence[str | int]) -> Template:
    """Texts and slots as a template; texts side by side are one piece."""
    pieces, sources = [b""], []
    for part in parts:
        if isinstance(part, str):
            pieces[-1] += part.encode()
        else:
            sources.append(part)
            pieces.append(b"")
    return Template(pieces, sources)
