"""`streamscore rollout`: try a model version on a share of a running job's keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from jobs.settings import Settings
from jobs.settings_file import SettingsError
from udfs.scoring.rollout import Address, Limits, Rollout, RolloutError

_OWN = "the job's own server"

__all__ = ["change", "file_of", "start", "status_lines"]


def file_of(settings: Settings) -> Path:
    """Return the job's rollout file.

    Raises:
        SettingsError: The job has none.
    """
    if settings.model.rollout is None:
        raise SettingsError(
            "model.rollout is not set: name a file there that every TaskManager can read, and "
            "restart the job once"
        )
    return settings.model.rollout


def start(
    path: Path,
    canary: Address | None,
    shadow: Address | None,
    limits: Limits,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Rollout:
    """Begin a rollout, in place of one that has ended.

    Raises:
        RolloutError: One is running, or this one tries nothing.
    """
    current = Rollout.read(path)
    if current is not None and current.state == "running":
        raise RolloutError(f"rollout {current.id} is running: promote or abort it first")
    if current is not None and current.state == "promoted":
        raise RolloutError(
            f"rollout {current.id} is promoted and serves all keys: set model.version and "
            f"model.server to {_named(current.canary)} and restart the job, then remove {path}"
        )
    if canary is None and shadow is None:
        raise RolloutError("give a canary, a shadow or both")
    begun = Rollout(clock().isoformat(timespec="seconds"), "running", canary, shadow, limits)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun.write(path)
    return begun


def change(path: Path, verb: str, percent: float | None = None) -> Rollout:
    """Set the canary's share, promote it or abort it.

    Args:
        path: The rollout file.
        verb: set, promote or abort.
        percent: With set, of the keys.

    Raises:
        RolloutError: There is no rollout that this can be done to.
    """
    current = Rollout.read(path)
    if current is None:
        raise RolloutError(f"{path}: there is no rollout: streamscore rollout start")
    if verb == "abort":
        changed = replace(current.aborted("by hand"), shadow=None)
    elif current.state != "running" or current.canary is None:
        raise RolloutError(f"rollout {current.id} has no running canary to {verb}")
    elif verb == "promote":
        changed = replace(current, state="promoted")
    else:
        assert percent is not None
        changed = replace(current, canary=replace(current.canary, percent=percent))
    changed.write(path)
    return changed


def status_lines(rollout: Rollout | None) -> list[str]:
    """What there is to say of a rollout."""
    if rollout is None:
        return ["no rollout"]
    lines = [f"rollout {rollout.id}: {rollout.state}"]
    if rollout.reason:
        lines.append(f"  reason: {rollout.reason}")
    for name, address in (("canary", rollout.canary), ("shadow", rollout.shadow)):
        if address is not None:
            lines.append(f"  {name}: {_named(address)}, {address.percent:g} % of the keys")
    limits = rollout.limits
    lines.append(
        f"  limits: error rate +{limits.error_rate:g}, latency x{limits.latency_ratio:g}, "
        f"PSI {limits.psi:g}, from {limits.min_rows} rows"
    )
    return lines


def _named(address: Address | None) -> str:
    if address is None:
        return "nothing"
    version = "the newest version" if address.version is None else f"version {address.version}"
    return f"{version} at {address.server or _OWN}"
