"""How a trial fails: by name, with the words of whoever said so; and what measures one."""

from __future__ import annotations

from typing import Protocol

from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.space import TuneCandidate
from cost_models.errors import AutotuneError

UNDER_LOAD = "_under_load"


class TrialFailed(Exception):
    """A configuration that cannot be measured; kept with its reason, and learned from."""

    def __init__(self, reason: str, detail: str, *, under_load: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.under_load = reason, detail, under_load

    @property
    def name(self) -> str:
        """The reason; of the same failure under load another one, since it says nothing of smaller loads."""
        return f"{self.reason}{UNDER_LOAD}" if self.under_load else self.reason


class TuningError(AutotuneError):
    """What no other configuration would cure: no engine, a port in use, a GPU that is full, a result of another model."""


class Bench(Protocol):
    """Measures candidates one after the other, keeping a server for as long as it fits."""

    def measure(self, candidate: TuneCandidate, number: int, run: int) -> MeasuredLoad:
        """One run of trial `number`; raises TrialFailed, or TuningError where nothing can be measured here."""

    def close(self) -> None:
        """Stop what runs."""
