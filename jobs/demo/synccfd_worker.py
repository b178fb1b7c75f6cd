"""Makes card transactions with synccfd; a script for ``build/synccfd-venv``, run by ``demo_data``.

    python synccfd_worker.py <JSON of DatasetGenerator's arguments> <CSV to write>

It writes one JSON line per step of progress: ``{"step": text, "done": count, "total": count}``.
It imports nothing of this project, which is not installed where it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

REPORT_EVERY_S = 0.2


def report(step: str, done: int, total: int) -> None:
    """Tell the parent how far a step is."""
    line = json.dumps({"step": step.rstrip(": "), "done": done, "total": total})
    print(line, file=sys.__stdout__, flush=True)


def reporting(items: Iterable[Any], desc: str = "", total: int | None = None) -> Iterator[Any]:
    """Stands in for tqdm in the generator: reports instead of drawing a bar."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    next_report_s = 0.0
    for done, item in enumerate(items):
        if time.monotonic() >= next_report_s:
            report(desc, done, total)
            next_report_s = time.monotonic() + REPORT_EVERY_S
        yield item
    report(desc, total, total)


def main() -> None:
    """Generate and write."""
    from synccfd import DatasetGenerator  # type: ignore[import-not-found]
    from synccfd.simulator import fraud, generator  # type: ignore[import-not-found]

    fraud.tqdm = generator.tqdm = reporting
    arguments, target = json.loads(sys.argv[1]), sys.argv[2]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _, _, transactions = DatasetGenerator(**arguments).generate()
    report("Writing", 0, 1)
    transactions.to_csv(target, index=False)


if __name__ == "__main__":
    main()
