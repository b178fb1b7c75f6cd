"""Alerts to Amazon SNS and to a webhook: the targets of ``streamscore deliver``."""

from __future__ import annotations

from jobs.outlets.run import Outlet
from jobs.outlets.settings import DeliverySettings
from jobs.outlets.sns import SnsTarget
from jobs.outlets.target import Target
from jobs.outlets.webhook import WebhookTarget
from jobs.outlets.worker import WorkerOptions
from jobs.settings import Settings
from jobs.settings_file import SettingsError


def outlets(settings: Settings) -> list[Outlet]:
    """Each target of the ``delivery`` section, with a consumer group of its own.

    Raises:
        SettingsError: There is no such section.
    """
    delivery = settings.delivery
    if delivery is None:
        raise SettingsError("there is no section delivery: name sns or webhook in it")
    return [
        Outlet(target, _options(settings, delivery, target.name), delivery.dead_letters)
        for target in _targets(delivery)
    ]


def _targets(delivery: DeliverySettings) -> list[Target]:
    targets: list[Target] = []
    if delivery.sns is not None:
        targets.append(SnsTarget(delivery.sns))
    if delivery.webhook is not None:
        targets.append(WebhookTarget(delivery.webhook))
    return targets


def _options(settings: Settings, delivery: DeliverySettings, name: str) -> WorkerOptions:
    kafka = settings.kafka
    return WorkerOptions(
        bootstrap=kafka.bootstrap_servers,
        login=kafka.python_properties(),
        topic=settings.topics.alerts,
        group=f"{delivery.group_id or f'{kafka.group_id}-deliver'}-{name}",
        batch=delivery.batch,
        linger_ms=delivery.linger,
        backoff_ms=delivery.backoff,
        max_backoff_ms=delivery.max_backoff,
        give_up_ms=delivery.give_up_after,
    )
