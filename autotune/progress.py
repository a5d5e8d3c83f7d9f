"""Who watches a search, and how long its stages take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Callbacks and timings of a run."""

    on_trial: Callable[[], None] | None = None
    on_stage: Callable[[str], None] | None = None
    on_found: Callable[[str, float], None] | None = None
    """Told what is best so far: its label and its tokens/s/GPU."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.on_stage:
            self.on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def found(self, label: str, tokens_per_s_per_gpu: float) -> None:
        """Say what is best so far."""
        if self.on_found:
            self.on_found(label, tokens_per_s_per_gpu)
