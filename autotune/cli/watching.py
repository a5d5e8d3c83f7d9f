"""A progress bar for those who watch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.documents.sweep import Found
    from autotune.sweeping.running import OnAnswer


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
