"""What a driver is, and what those that start engines have in common."""

from __future__ import annotations

import dataclasses
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autotune.documents.deployment import Deployment
from autotune.exporters import Launch, launch_of
from autotune.exporters.base import Argument
from autotune.tuning.outcomes import TrialFailed

HEALTH_POLL_S = 0.5
ANSWER_S = 5.0
BESIDE_KNOBS = ("--compilation-config",)
"""What exporters write that no knob says: the engine's own defaults go without it."""


@dataclass(frozen=True, slots=True)
class ToStart:
    """A server to be started."""

    deployment: Deployment
    """One instance."""
    folder: Path
    """Of the trial: scripts, logs and records go there."""
    options: tuple[str, ...] = ()
    """Words for the engine's command beyond what the plan says."""
    bare: bool = False
    """Whether the engine's own defaults are to be started."""


class Driver(Protocol):
    """Starts and stops one server at a time."""

    load_only: bool
    """Whether nothing of the engine can be varied."""

    def start(self, server: ToStart) -> str:
        """Start it, wait until it answers, return its URL; raises TrialFailed, or TuningError for what no other configuration
        would cure."""

    def failure(self) -> TrialFailed | None:
        """Why the server that was started no longer runs; none while it does."""

    def stop(self) -> None:
        """End it, and wait until it has ended."""

    def clean(self, folder: Path) -> bool:
        """End what an earlier tuner, which was killed, left of a trial; whether there was anything."""


def tuned_launch(server: ToStart) -> Launch:
    """The plan's launch with the words of the trial; of the engine's own defaults without what exporters add to knobs."""
    launch = launch_of(server.deployment)
    extra = tuple(Argument(word) for word in server.options)
    pools = []
    for pool in launch.pools:
        processes = []
        for process in pool.processes:
            kept = [a for a in process.arguments if not (server.bare and a.flag in BESIDE_KNOBS)]
            processes.append(dataclasses.replace(process, arguments=(*kept, *extra)))
        pools.append(dataclasses.replace(pool, processes=tuple(processes)))
    return dataclasses.replace(launch, pools=tuple(pools))


def wait_healthy(url: str, limit_s: float, ended: Callable[[], TrialFailed | None]) -> None:
    """Until /health answers 200; raises what `ended` says, or TrialFailed after the limit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if healthy(url):
            return
        if failure := ended():
            raise failure
        time.sleep(HEALTH_POLL_S)
    raise TrialFailed("never_healthy", f"{url}/health did not answer within {limit_s:,.0f} s")


def healthy(url: str) -> bool:
    """Whether a service says that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_S) as answer:  # noqa: S310  (the user's own service)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def served_models(url: str) -> tuple[str, ...]:
    """Names that a service answers to; none where it does not say."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=ANSWER_S) as answer:  # noqa: S310
            return tuple(str(entry["id"]) for entry in json.load(answer)["data"])
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return ()
