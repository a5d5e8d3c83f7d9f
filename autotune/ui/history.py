"""Run folders as the page lists them: newest first, and what cannot be read is said instead of left out."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from autotune.assistant.tools import Workbench
from autotune.report.page.folder import record_of
from cost_models.errors import AutotuneError

PER_PAGE = 50


def listed(bench: Workbench, skipped: int = 0) -> dict[str, Any]:
    """Run folders from the newest on, so many left out, and how many there are."""
    names = bench.names()[::-1]
    return {"total": len(names), "runs": [_row(bench.runs / name) for name in names[skipped : skipped + PER_PAGE]]}


def _row(folder: Path) -> dict[str, Any]:
    row = {"run": folder.name, "time": _time(folder), "asked": "", "best": "", "rate": None, "fault": ""}
    try:
        record = record_of(folder)
    except AutotuneError as error:
        return row | {"fault": str(error)}
    problem, best = record["problem"], record.get("best")
    asked = ", ".join(str(problem[name]) for name in ("hardware", "model", "target") if name in problem)
    found = best if isinstance(best, dict) else {}
    rate = found.get("tokens_per_s_per_gpu")
    return row | {"asked": asked, "best": str(found.get("label", "")), "rate": rate if isinstance(rate, int | float) else None}


def problem_in(bench: Workbench, run: str) -> dict[str, Any]:
    """What a run was asked, to be asked again; raises AutotuneError where its folder does not say."""
    asked: dict[str, Any] = record_of(bench.folder(run))["problem"]
    return asked


def _time(folder: Path) -> str:
    stamp = (folder / "plan.yaml").stat().st_mtime
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
