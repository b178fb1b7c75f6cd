"""The server's log: lines of ``key=value`` for people, or one JSON object per line for machines.

Messages are written as ``event=loaded model=%s version=%d``; in JSON each of these keys is a field
with its value as it was given, so that nothing need be parsed again. What is logged during a call
has the call's id.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from model_server.call_record import CallRecord, current

__all__ = ["CallLog", "LogFormat", "configure"]

LogFormat = Literal["text", "json"]

_TEXT = "time=%(asctime)s level=%(levelname)s %(message)s"
_FIELD = re.compile(r"(\w+)=(%[^\s%]*[a-zA-Z]|\S+)")
_OWN = frozenset({"time", "level", "logger", "request_id", "text", "error"})

_PROBES = frozenset(
    {"live", "ready", "metrics", "ServerLive", "ServerReady", "ModelReady", "Check"}
)
"""What is asked every few seconds, and says nothing of the calls."""

logger = logging.getLogger(__name__)


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        call = current.get()
        return text if call is None else f"{text} request_id={call.request_id}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        if (call := current.get()) is not None:
            document["request_id"] = call.request_id
        document |= _fields(record) or {"text": record.getMessage()}
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return orjson.dumps(document, default=str, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a message of ours; none of another's.

    The last one may be a text of several words, as ``message=%s`` or ``message=once per machine``.
    """
    template, arguments = str(record.msg), record.args
    if not template.startswith("event=") or not isinstance(arguments, tuple):
        return {}
    fields: dict[str, Any] = {}
    values = iter(arguments)
    for match in _FIELD.finditer(template):
        key, value = match.groups()
        key = f"{key}_" if key in _OWN else key
        if value.startswith("%"):
            given = next(values, None)
            fields[key] = given if isinstance(given, int | float) else str(given)
        elif key == "message":
            fields[key] = template[match.start(2) :]
            break
        else:
            fields[key] = value
    # More values than fields: a text whose parts are no fields by themselves.
    return {} if next(values, None) is not None else fields


def configure(form: LogFormat = "text", level: int = logging.INFO) -> None:
    """Log to stderr from now on.

    Args:
        form: ``text`` or ``json``.
        level: Least severity.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class CallLog:
    """Logs every call but probes; an ``Observer``."""

    def begun(self, record: CallRecord) -> None:
        """See ``Observer``."""

    def ended(self, record: CallRecord, took_s: float) -> None:
        """See ``Observer``."""
        if record.call in _PROBES:
            return
        logger.info(
            "event=call entrypoint=%s call=%s model=%s version=%d status=%s took_ms=%.3f "
            "message=%s",
            record.entrypoint,
            record.call,
            record.model,
            record.version,
            record.status,
            round(took_s * 1e3, 3),
            record.reason,
        )
