"""Progress for those who watch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.documents.sweep import Found
    from autotune.documents.tuned import TunedTrial
    from autotune.sweeping.running import OnAnswer
    from autotune.tuning.tuner import TuneWatch


@contextmanager
def watched(*, quiet: bool) -> Iterator[OnAnswer | None]:
    """A progress bar on the error stream when someone watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    counts: dict[str, int] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")

        def advance(done: int, total: int, found: Found) -> None:
            counts[found.status] = counts.get(found.status, 0) + 1
            text = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            bar.update(task, completed=done, total=total, description=text)

        yield advance


@contextmanager
def tuning_watched(limits: dict[str, float], *, quiet: bool) -> Iterator[TuneWatch | None]:
    """A table of the trials on the error stream when someone watches it; lines where it goes to a file."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda event, _: print(event, file=sys.stderr, flush=True)  # noqa: T201
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from autotune.report.tuning import trials_table

    with Live(console=Console(stderr=True), refresh_per_second=4, transient=True) as live:

        def show(event: str, trials: Sequence[TunedTrial]) -> None:
            feasible = [trial for trial in trials if trial.feasible]
            best = max(feasible, key=lambda trial: trial.measured["tokens_per_s_per_gpu"], default=None)
            live.update(Group(trials_table(trials, limits, best.number if best else None), Text(event, style="dim")))

        yield show
