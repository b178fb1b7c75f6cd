"""moto's server as Amazon's SNS and SQS."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.ports import HOST, free_port

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Sns:
    """moto's server with a topic, and a queue that gets what is published."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable, value in ENVIRONMENT.items():
            monkeypatch.setenv(variable, value)
        import boto3
        from moto.server import ThreadedMotoServer

        self.port = free_port()
        self.endpoint = f"http://{HOST}:{self.port}"
        self._new = lambda: ThreadedMotoServer(HOST, self.port, verbose=False)
        self.start()
        options = {"region_name": "eu-west-1", "endpoint_url": self.endpoint}
        self._sqs = boto3.client("sqs", **options)
        sns = boto3.client("sns", **options)
        fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        self._queue = self._sqs.create_queue(QueueName=name, Attributes=fifo)["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])
        attributes = {"FifoTopic": "true"} if fifo else {}
        self.topic = sns.create_topic(Name=name, Attributes=attributes)["TopicArn"]
        sns.subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"])

    def start(self) -> None:
        self._server = self._new()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def received(self) -> list[dict[str, Any]]:
        """What came, taken out of the queue."""
        found: list[dict[str, Any]] = []
        while True:
            answer = self._sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10)
            messages = answer.get("Messages", [])
            if not messages:
                return found
            for m in messages:
                found.append(orjson.loads(m["Body"]))
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=m["ReceiptHandle"])
