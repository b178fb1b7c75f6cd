"""Packed keyed state on its way into a savepoint: files of map entries.

A file is a sequence of blocks, each the entries of one bucket's map state::

    length of the names, length of the values' sizes, in bytes
    the names as a JSON array, the sizes as a JSON array, the values one after the other
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

import orjson

_LENGTHS = struct.Struct("<QQ")


def write_block(file: BinaryIO, entries: Mapping[str, bytes]) -> None:
    """Append entries to a file."""
    names, sizes = orjson.dumps(list(entries)), orjson.dumps([*map(len, entries.values())])
    file.write(_LENGTHS.pack(len(names), len(sizes)) + names + sizes)
    file.writelines(entries.values())


def read_blocks(path: Path) -> Iterator[dict[str, bytes]]:
    """The blocks of a file, in order."""
    with path.open("rb") as file:
        while lengths := file.read(_LENGTHS.size):
            names_bytes, sizes_bytes = _LENGTHS.unpack(lengths)
            names = orjson.loads(file.read(names_bytes))
            sizes = orjson.loads(file.read(sizes_bytes))
            data = file.read(sum(sizes))
            ends = accumulate(sizes, initial=0)
            yield {
                name: data[start:end]
                for name, (start, end) in zip(names, pairwise(ends), strict=True)
            }
