"""Chromium by the WebDriver protocol, spoken with what Python has."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobs.ports import free_port
from tests.support.waiting import wait_until

MISSING = shutil.which("chromedriver") is None or shutil.which("chromium") is None
WHY = "needs Chromium: apt-get install chromium chromium-driver"

_OPTIONS = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]}


class Browser:
    """One window."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": _OPTIONS}}
        opened = self._call("POST", "/session", {"capabilities": wanted})
        self._base += f"/session/{opened['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, what: str) -> None:
        """Wait until a script returns something true."""
        wait_until(lambda: bool(self.run(script)), 20, what)

    def close(self) -> None:
        self._call("DELETE", "")


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a screen; it ends with the block."""
    port = free_port()
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _is_up(port), 20, "chromedriver")
        window = Browser(port)
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(20)


def _is_up(port: int) -> bool:
    with (
        suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as response,
    ):
        return bool(json.load(response)["value"]["ready"])
    return False
