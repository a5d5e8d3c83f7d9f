"""A real `autotune ui` on a free port, and a client that says what it likes in its headers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ENDED = ("done", "failed", "cancelled")
WAIT_S = 60.0


@dataclass(frozen=True)
class Served:
    link: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(urlsplit(self.link).port or 0)

    def ask(
        self, where: str, body: Any = None, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer; `where` is inside of the link."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        path = where if where.startswith("/") else urlsplit(self.link).path + where
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, sent, headers or {})
        answer = connection.getresponse()
        found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def json(self, where: str) -> Any:
        status, body, _ = self.ask(where)
        assert status == 200, body
        return json.loads(body)

    def search(self, problem: dict[str, Any]) -> str:
        status, body, _ = self.ask("searches", problem, "POST")
        assert status == 201, body
        return str(json.loads(body)["id"])

    def job(self, key: str) -> Any:
        return next(job for job in self.json("searches") if job["id"] == key)

    def ended(self, key: str) -> Any:
        until(lambda: self.job(key)["state"] in ENDED)
        return self.job(key)

    def children(self) -> list[int]:
        """Processes that it started."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def until(holds: Callable[[], bool]) -> None:
    """Wait for what must come."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@contextmanager
def served(runs: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "autotune", "ui", "--port", "0", "--out", str(runs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout
    try:
        yield Served(process.stdout.readline().strip(), process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stdout.close()
