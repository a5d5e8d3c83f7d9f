"""A service that is up already: only what it is sent is varied, and it is never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.tuning.drivers.base import ToStart, healthy
from autotune.tuning.outcomes import TrialFailed, TuningError


@dataclass
class RemoteDriver:
    """Looks whether it answers."""

    url: str
    load_only: bool = True

    def start(self, server: ToStart) -> str:  # noqa: ARG002
        """Raises TuningError where it does not answer."""
        if not healthy(self.url.rstrip("/")):
            raise TuningError(f"{self.url} does not answer on /health: start the service first, or leave --url out")
        return self.url.rstrip("/")

    def failure(self) -> TrialFailed | None:
        if healthy(self.url.rstrip("/")):
            return None
        return TrialFailed("crashed", f"{self.url} no longer answers", under_load=True)

    def stop(self) -> None:
        """It is somebody else's."""

    def clean(self, folder: Path) -> bool:  # noqa: ARG002
        return False
