"""Searches that run: each in a child process that can be ended, a few at once, none remembered beyond its run folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.records import slug

MOST_WAITING = 20
MOST_KEPT = 50
"""Ended searches that the page still lists."""
State = Literal["waiting", "running", "done", "failed", "cancelled"]
HIDDEN = ("problem", "process", "started", "ended")
ENDED = ("done", "failed", "cancelled")


@dataclass
class Job:
    """One search and how far it is."""

    id: str
    title: str
    problem: str
    """As JSON."""
    state: State = "waiting"
    stage: str = ""
    trials: int = 0
    trials_asked: int | None = None
    found: tuple[str, ...] = ()
    """Best so far, newest last."""
    message: str = ""
    run: str = ""
    """Its run folder, once it is written."""
    started: float = 0.0
    ended: float = 0.0
    """Of the clock that only runs forward [s]."""
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    def shown(self) -> dict[str, Any]:
        """What the page draws."""
        until = self.ended or (time.monotonic() if self.started else 0.0)
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in HIDDEN} | {
            "seconds": round(until - self.started)
        }

    def told(self, event: dict[str, Any]) -> None:
        """Take in one line of the child's."""
        self.stage = event.get("stage", self.stage)
        self.trials += event.get("trial", 0)
        if "found" in event:
            self.found = (*self.found, event["found"])
        self.message = sayable(event.get("fault", self.message))
        self.run = event.get("run", self.run)


@dataclass
class Searches:
    """All searches of one server."""

    runs: Path
    at_once: int
    jobs: dict[str, Job] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.at_once)

    def start(self, problem: Problem) -> Job:
        """Queue a search; raises ProblemError where too many wait already."""
        waiting = sum(job.state == "waiting" for job in self.jobs.values())
        if waiting >= MOST_WAITING:
            raise ProblemError(f"{waiting} searches wait already: let some end, or cancel them")
        job = Job(secrets.token_hex(6), slug(problem), json.dumps(problem.model_dump()), trials_asked=problem.trials)
        self.jobs[job.id] = job
        self.tasks[job.id] = asyncio.create_task(self._run(job))
        ended = [key for key, other in self.jobs.items() if other.state in ENDED]
        for key in ended[: max(0, len(ended) - MOST_KEPT)]:
            del self.jobs[key]
        return job

    def cancel(self, key: str) -> Job:
        """End a search; one that has ended stays as it is. Raises ProblemError for one that is not known."""
        job = self.jobs.get(key)
        if job is None:
            raise ProblemError("no such search: the server was started again since, or it ended long ago")
        if job.state not in ENDED:
            job.state, job.message = "cancelled", "cancelled; nothing was written"
            self.tasks[key].cancel()
        return job

    async def close(self) -> None:
        """End all of them."""
        for key in list(self.tasks):
            if key in self.jobs:
                self.cancel(key)
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _run(self, job: Job) -> None:
        try:
            async with self.slots:
                await self._watch(job)
        finally:
            self.tasks.pop(job.id, None)

    async def _watch(self, job: Job) -> None:
        """Start the child and take in what it says until it ends."""
        job.started, job.state = time.monotonic(), "running"
        command = [sys.executable, "-m", "autotune.ui.worker", str(self.runs)]
        try:
            job.process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=_environment()
            )
        except OSError as error:
            job.state, job.message = "failed", f"cannot start a search: {error.strerror}"
            return
        child = job.process
        assert child.stdin
        assert child.stdout
        try:
            with contextlib.suppress(OSError):  # a child that died at once: its exit code says so below
                child.stdin.write(job.problem.encode())
                await child.stdin.drain()
                child.stdin.close()
            async for line in child.stdout:
                job.told(json.loads(line))
            code = await child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            job.ended = time.monotonic()
        job.state = "done" if job.run else "failed"
        job.message = job.message or ("" if job.run else ended_early(code))


def sayable(text: str) -> str:
    """Text that can be sent: characters that are none of Unicode's are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def ended_early(code: int) -> str:
    """What it means that a child went without an answer."""
    if code < 0:
        with contextlib.suppress(ValueError):
            ended_by = f"ended from outside ({signal.Signals(-code).name})"
            return f"the search was {ended_by}: the machine ran out of memory, or someone ended it; nothing was written"
    return f"the search ended with code {code} and no answer; nothing was written"


def _environment() -> dict[str, str]:
    """The child imports what this process imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
