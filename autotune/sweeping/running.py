"""Scenarios -> rows: what is known already is not solved again, and every answer is kept as it is found."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.documents.problem import Problem
from autotune.documents.sweep import Found, SweepResult, SweptRow
from autotune.sweeping.executors import Executor, executor_of
from autotune.sweeping.journal import Journal
from autotune.sweeping.scenarios import ScenarioEntry, Task, entries_of, read_scenarios, task_of
from autotune.sweeping.slices import Slice

OnAnswer = Callable[[int, int, Found], None]
"""Called with the number of problems answered, of how many, and the newest answer."""


@dataclass
class Watch:
    """Who watches a sweep."""

    on_answer: OnAnswer | None = None
    total: int = 0
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def tell(self, found: Found, problems: int = 1) -> None:
        self.done += problems
        self.counts[found.status] = self.counts.get(found.status, 0) + problems
        if self.on_answer:
            self.on_answer(self.done, self.total, found)


def sweep(
    scenarios: Path | str | Sequence[Problem | dict[str, Any]],
    out: Path | str | None = None,
    *,
    workers: int | None = None,
    executor: str | Executor = "local",
    address: str | None = None,
    part: Slice | None = None,
    on_answer: OnAnswer | None = None,
) -> SweepResult:
    """Solve many problems.

    scenarios : a scenario file, or problems; out : folder of the journal, without which nothing is kept; workers : processes,
    the cores of this machine when absent; executor : local, ray (address : of its cluster) or one of your own; part : a slice.
    A bad entry is a row that says so. Raises AutotuneError for a file that is none, a folder that cannot be written or a
    cluster that is not there.
    """
    start = time.perf_counter()
    part = part or Slice()
    entries = [entry for entry in _entries(scenarios) if part.has(entry.number)]
    chosen = executor_of(executor, workers, address) if isinstance(executor, str) else executor
    asked = [task_of(entry.asked) for entry in entries]
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(Path(out), part)) if out is not None else None
        known = journal.known() if journal else {}
        answers, solved = _answers(asked, known, chosen, journal, Watch(on_answer, len(entries)))
    rows = tuple(_row(entry, task, answers) for entry, task in zip(entries, asked, strict=True))
    return SweepResult(rows=rows, solved=solved, seconds=time.perf_counter() - start)


def _entries(scenarios: Path | str | Sequence[Problem | dict[str, Any]]) -> Iterable[ScenarioEntry]:
    if isinstance(scenarios, str | Path):
        return read_scenarios(Path(scenarios))
    given = [one.model_dump(mode="json", exclude_unset=True) if isinstance(one, Problem) else one for one in scenarios]
    return entries_of(given, "scenarios")


def _answers(
    asked: Sequence[Task | Found], known: dict[str, Found], executor: Executor, journal: Journal | None, watch: Watch
) -> tuple[dict[str, Found], int]:
    """Answers by key, those known before included, and how many were found now."""
    tasks: dict[str, Task] = {}
    alike: dict[str, int] = {}
    for one in asked:
        if isinstance(one, Found):
            watch.tell(one)
        elif one.key in known:
            watch.tell(known[one.key])
        else:
            tasks[one.key] = one
            alike[one.key] = alike.get(one.key, 0) + 1
    answers = dict(known)
    for key, text in executor.results(list(tasks.values())) if tasks else ():
        answers[key] = Found.model_validate_json(as_typed(text, tasks[key].typed))
        if journal:
            journal.add(key, answers[key])
        watch.tell(answers[key], alike[key])
    return answers, len(tasks)


def as_typed(text: str, typed: Mapping[str, str]) -> str:
    """A worker's answer (JSON) with file names as they were typed: tables are passed on, folders of the user's are not."""
    for absolute in sorted(typed, key=len, reverse=True):
        text = text.replace(json.dumps(absolute)[1:-1], json.dumps(typed[absolute])[1:-1])
    return text


def _row(entry: ScenarioEntry, task: Task | Found, answers: dict[str, Found]) -> SweptRow:
    found = task if isinstance(task, Found) else answers[task.key]
    line = entry.line_of(found.message) if found.status == "bad" else entry.line
    return SweptRow(number=entry.number, line=line, problem=entry.asked, found=found)
