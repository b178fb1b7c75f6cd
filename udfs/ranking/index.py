"""The items of one model version: embeddings, co-visitation lists, prices and categories.

A folder's ``items.npz`` holds arrays of numbers and texts only and is read without pickle.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import Flags, Keys, Rows, Singles, Times, keys_of

__all__ = ["INDEX_FILE", "IndexFileError", "ItemIndex"]

INDEX_FILE = "items.npz"
_FORMAT = 1


class IndexFileError(ValueError):
    """A version folder has no index of items that can be used."""


@dataclass(frozen=True)
class ItemIndex:
    """All items of a model version; row i of every array is one item. Read only.

    Attributes:
        ids: Texts (I,), as in the events.
        keys: ``keys_of(ids)``.
        embeddings: float32 (I, D), each of length 1, or 0 for an item that was never bought.
        user_tower: float32 (D, D); what a user's mean of embeddings m becomes is the direction of
            m + tanh(m @ user_tower). Zeros leave it.
        user_lists: Items that the same users bought, by cosine: rows int32 (I, K), -1 at the end.
        user_weights: Their cosines, float32 (I, K), 0 at the end.
        basket_lists: Items of the same baskets, likewise.
        basket_weights: Their cosines.
        prices: float32 (I,); NaN where unknown.
        categories: int32 (I,): codes from 0, in no order.
        popularity: Decayed purchases as of ``as_of_ms``, float64 (I, H), H as in ``counters``.
        first_ms: Event time of the first purchase, epoch; the largest int64 if there was none.
        last_ms: That of the last; the smallest int64 if there was none.
        on_sale: bool (I,): what may be shown.
        as_of_ms: Event time up to which purchases count, themselves before it.
    """

    ids: npt.NDArray[np.str_]
    embeddings: Singles
    user_tower: Singles
    user_lists: Rows
    user_weights: Singles
    basket_lists: Rows
    basket_weights: Singles
    prices: Singles
    categories: Rows
    popularity: npt.NDArray[np.float64]
    first_ms: Times
    last_ms: Times
    on_sale: Flags
    as_of_ms: int
    keys: Keys = field(init=False)
    _order: npt.NDArray[np.intp] = field(init=False, repr=False)
    _sorted: Keys = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = keys_of(self.ids.tolist())
        order = np.argsort(keys)
        found = keys[order]
        if len(found) and (found[1:] == found[:-1]).any():
            raise IndexFileError("two items have one id, or ids with one 64-bit hash")
        for name, array in (("keys", keys), ("_order", order), ("_sorted", found)):
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def columns(self) -> Singles:
        """The embeddings as a request reads them, float32 (D, I)."""
        return np.ascontiguousarray(self.embeddings.T)

    @cached_property
    def log_prices(self) -> Singles:
        """float32 (I,); NaN where the price is unknown."""
        logs: Singles = np.log(self.prices)
        return logs

    @cached_property
    def category_count(self) -> int:
        """How many categories there are."""
        return int(self.categories.max(initial=0)) + 1

    def rows_of(self, keys: Keys) -> Rows:
        """The row of each key, int32 (n,); -1 for an item that this version does not know."""
        if not len(self):
            return np.full(len(keys), -1, np.int32)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        return np.where(self._sorted[at] == keys, self._order[at], -1).astype(np.int32)

    def save(self, folder: Path) -> None:
        """Write ``items.npz``; see ``load``."""
        stored: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        np.savez_compressed(folder / INDEX_FILE, format=np.int64(_FORMAT), **stored)

    @classmethod
    def load(cls, folder: Path) -> ItemIndex:
        """Read ``items.npz`` of a version folder.

        Raises:
            IndexFileError: There is none, or it is damaged or of another format.
        """
        path = folder / INDEX_FILE
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["format"]) != _FORMAT:
                    raise IndexFileError(f"{path} has format {int(stored['format'])}: train again")
                values = {f.name: stored[f.name] for f in fields(cls) if f.init}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
            raise IndexFileError(f"{path} cannot be read: {exc}; train again") from exc
        values["as_of_ms"] = int(values["as_of_ms"])
        _check(path, values)
        return cls(**values)


def _check(path: Path, values: dict[str, Any]) -> None:
    items = len(values["ids"])
    for name, array in values.items():
        if name not in ("as_of_ms", "user_tower") and len(array) != items:
            raise IndexFileError(f"{path}: {name} has {len(array)} rows, ids {items}: train again")
    for name in ("user_lists", "basket_lists"):
        if values[name].size and not -1 <= values[name].min() <= values[name].max() < items:
            raise IndexFileError(f"{path}: {name} names an item that is not there: train again")
