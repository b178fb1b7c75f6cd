"""Publishes alerts to an Amazon SNS topic, ten a call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.environment import NotReadyError
from jobs.outlets.alerts import Alert
from jobs.outlets.settings import SnsSettings
from jobs.outlets.target import DONE, Fate, Message, Outcome

MAX_ENTRIES, MAX_BYTES = 10, 262_144
"""What SNS takes in one call, attributes included."""
_ATTRIBUTES_BYTES = 1_024
_AGAIN = ("Throttl", "KMSThrottl", "RequestLimit", "InternalError", "ServiceUnavailable")


class SnsTarget:
    """``PublishBatch``; the alert is the message, and its id, kind and state are attributes.

    A topic that ends in .fifo drops repeats of an id within 5 minutes and keeps the order of an
    entity's alerts. Subscribers of any other topic see repeats by the attribute ``alert_id``.

    What SNS says is the sender's fault, as a message that is too long, is refused; so is all else
    but what passes: throttling, faults of SNS, no answer, credentials that are wrong.

    Args:
        settings: The topic.
    """

    name = "sns"

    def __init__(self, settings: SnsSettings) -> None:
        self._settings = settings
        self._is_fifo = settings.topic_arn.endswith(".fifo")

    def open(self) -> None:
        """Make the client; raises NotReadyError without boto3."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError as exc:
            fix = "install it: make setup EXTRA=sns"
            raise NotReadyError("Amazon SNS needs boto3", fix) from exc
        timeout_s = self._settings.timeout / 1_000
        # Retried by whoever calls, with a back-off that lets other work go on.
        config = Config(
            connect_timeout=timeout_s, read_timeout=timeout_s, retries={"total_max_attempts": 1}
        )
        region = self._settings.topic_arn.split(":")[3]
        self._client = boto3.client(
            "sns", region_name=region, endpoint_url=self._settings.endpoint, config=config
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Target``."""
        outcomes = [Outcome(Fate.RETRY, "not tried: SNS does not answer")] * len(messages)
        entries: list[tuple[int, dict[str, Any]]] = []
        for n, message in enumerate(messages):
            try:
                entries.append((n, self._entry(message)))
            except ValueError as exc:
                outcomes[n] = Outcome(Fate.REFUSED, str(exc))
        for part in _parts(entries):
            found = self._publish([entry for _, entry in part])
            for n, entry in part:
                outcomes[n] = found[entry["Id"]]
            if all(o.fate is Fate.RETRY for o in found.values()):
                break
        return outcomes

    def _entry(self, message: Message) -> dict[str, Any]:
        """An entry of the call; raises ValueError for what SNS can never take."""
        if len(message.value) > MAX_BYTES - _ATTRIBUTES_BYTES:
            raise ValueError(f"{len(message.value):,} bytes; SNS takes {MAX_BYTES:,}")
        alert = Alert(message)
        texts = {"alert_id": alert.id, "kind": alert.kind, "state": alert.state}
        entry: dict[str, Any] = {
            "Id": f"{message.partition}-{message.offset}",
            "Message": message.value.decode(),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": text} for name, text in texts.items()
            },
        }
        if self._is_fifo:
            entry["MessageGroupId"] = _hash(message.key)
            entry["MessageDeduplicationId"] = _hash(alert.id.encode())
        return entry

    def _publish(self, entries: list[dict[str, Any]]) -> dict[str, Outcome]:
        """The outcome of each entry by its Id."""
        from botocore.exceptions import BotoCoreError, ClientError

        topic = self._settings.topic_arn
        try:
            answer = self._client.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
        except (BotoCoreError, ClientError) as exc:
            return dict.fromkeys((e["Id"] for e in entries), _of_whole_call(exc))
        found = {done["Id"]: DONE for done in answer.get("Successful", ())}
        for failed in answer.get("Failed", ()):
            told = f"{failed['Code']}: {failed.get('Message', '')}"
            is_final = failed["SenderFault"] and not failed["Code"].startswith(_AGAIN)
            found[failed["Id"]] = Outcome(Fate.REFUSED if is_final else Fate.RETRY, told)
        unknown = Outcome(Fate.RETRY, "SNS said nothing of it")
        return {e["Id"]: found.get(e["Id"], unknown) for e in entries}


def _of_whole_call(exc: Exception) -> Outcome:
    """A call that failed as a whole says nothing of an alert: the topic or the login is wrong."""
    return Outcome(Fate.RETRY, f"{type(exc).__name__}: {exc}")


def _parts(entries: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, Any]]]:
    """Cut into calls."""
    part: list[tuple[int, Any]] = []
    size = 0
    for n, entry in entries:
        length = len(entry["Message"].encode()) + _ATTRIBUTES_BYTES
        if part and (len(part) == MAX_ENTRIES or size + length > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append((n, entry))
        size += length
    if part:
        yield part


def _hash(text: bytes) -> str:
    """Group and deduplication ids hold 128 characters of ASCII at most."""
    return hashlib.sha256(text).hexdigest()
