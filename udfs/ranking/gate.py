"""Whether a new version may be published: not worse on the newest holdout than the present one."""

from __future__ import annotations

from dataclasses import dataclass

from udfs.ranking.evaluation import Measured

__all__ = ["GateOptions", "refusal"]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What a new version may lose.

    Attributes:
        hit_rate: At most so much of the hit rate, absolute.
        ndcg: At most so much of the NDCG, absolute.
        least_requests: A smaller holdout says nothing: then nothing is published.
    """

    hit_rate: float = 0.01
    ndcg: float = 0.005
    least_requests: int = 50


def refusal(new: Measured, present: Measured | None, options: GateOptions) -> str | None:
    """Why a version is refused; none if it may be published.

    Args:
        new: The new version on the holdout.
        present: The present one on the same requests; none if there is none yet.
        options: What may be lost.
    """
    if new.requests < options.least_requests:
        return f"the holdout has {new.requests} requests, {options.least_requests} are needed"
    if present is None:
        return None
    for name, least, got in (
        ("hit rate", present.hit_rate - options.hit_rate, new.hit_rate),
        ("NDCG", present.ndcg - options.ndcg, new.ndcg),
    ):
        if not got >= least:  # NaN is refused, too
            return f"{name} {got:.4f} on the holdout, the present version allows {least:.4f}"
    return None
