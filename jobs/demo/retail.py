"""The feed demo's data: purchases of Online Retail, or a synthetic log of the same shape.

What is left out of Online Retail, and why:

- rows without a CustomerID (135,080): a guest has no history and no next basket;
- cancellations (invoices `C...`), bad-debt rows (`A...`) and quantities of 0 or less: nothing was
  bought then;
- prices of 0 or less: samples and corrections;
- codes that are not of five digits with at most two letters: postage, carriage, fees, discounts,
  manual entries, vouchers.

A stock code is written in capitals; a row bought twice in one basket counts once.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from jobs.environment import ROOT
from udfs.ranking.log import PurchaseLog, log_of

__all__ = ["read", "retail_file", "synthetic"]

_CODE = r"^\d{5}[A-Z]{0,2}$"
_COMMON = 20  # items that a word must describe to be a category


def retail_file() -> Path | None:
    """Where Online Retail lies beside the repository; none if it is not there."""
    shared = Path(os.environ.get("STREAMSCORE_SHARED", ROOT.parent / "shared"))
    path = shared / "data" / "online_retail.csv.gz"
    return path if path.is_file() else None


def read(path: Path) -> PurchaseLog:
    """Read and clean Online Retail; see the module's text for what is left out."""
    frame = pd.read_csv(path, dtype={"InvoiceNo": str, "StockCode": str, "Description": str})
    frame["StockCode"] = frame["StockCode"].str.upper()
    bought = frame["InvoiceNo"].str.isdigit() & (frame["Quantity"] > 0) & (frame["UnitPrice"] > 0)
    kept = bought & frame["CustomerID"].notna() & frame["StockCode"].str.match(_CODE)
    frame = frame[kept].drop_duplicates(["InvoiceNo", "StockCode"])
    times = pd.to_datetime(frame["InvoiceDate"]).to_numpy("datetime64[ms]").astype(np.int64)
    users = frame["CustomerID"].astype(np.int64).astype(str).to_numpy(str)
    codes = frame["StockCode"].to_numpy(str)
    texts = frame.groupby("StockCode")["Description"].first()
    prices = frame["UnitPrice"].to_numpy(np.float32)
    return log_of(users, codes, times, prices, _categories(texts.to_dict()))


def _categories(texts: dict[str, str]) -> dict[str, str]:
    """The last word of a description that describes many items: BAG, LANTERN; else `OTHER`."""
    words = {code: str(text).split() for code, text in texts.items()}
    common = Counter(word for found in words.values() for word in set(found))
    return {
        code: next((w for w in reversed(found) if w.isalpha() and common[w] >= _COMMON), "OTHER")
        for code, found in words.items()
    }


def synthetic(
    seed: int = 7, users: int = 1_500, items: int = 1_000, days: int = 200
) -> PurchaseLog:
    """A made-up log of the same shape: tastes, repeat purchases, fashions that come and go.

    Args:
        seed: Of all that is random.
        users: How many, with 1 to 40 baskets each.
        items: How many, in 20 categories.
        days: Length of the log.
    """
    random = np.random.default_rng(seed)
    categories = random.integers(0, 20, items)
    fame = random.pareto(1.2, items) + 0.1
    peak, width = random.uniform(0, days, items), random.uniform(20, 120, items)
    rows: list[tuple[int, int, float]] = []
    for user in range(users):
        taste = random.dirichlet(np.full(20, 0.3))
        known: list[int] = []
        for day in np.sort(random.uniform(0, days, 1 + int(random.geometric(0.2)))):
            fashion = fame * np.exp(-(((day - peak) / width) ** 2)) * (0.02 + taste[categories])
            size = min(items // 4, 1 + int(random.geometric(0.08)))
            chosen = random.choice(items, size, replace=False, p=fashion / fashion.sum())
            again = [i for i in known if random.random() < 0.1][: size // 2]
            basket = list(dict.fromkeys([*again, *chosen.tolist()]))
            known += basket
            rows += [(user, item, float(day)) for item in basket]
    prices = np.exp(random.normal(0.8, 0.8, items))
    at = np.array(rows)
    begin_ms = 1_291_161_600_000  # 2010-12-01
    times = begin_ms + (at[:, 2] * 86_400_000).astype(np.int64)
    numbers = at[:, 1].astype(np.int64)
    names = np.array([f"S{n:05d}" for n in range(items)])
    texts = {name: f"C{c:02d}" for name, c in zip(names.tolist(), categories, strict=True)}
    user_ids = np.array([f"U{n:05d}" for n in range(users)])[at[:, 0].astype(np.int64)]
    return log_of(user_ids, names[numbers], times, prices[numbers].astype(np.float32), texts)
