"""Run folders: results/<date>_<slug>/ with plan.yaml, run.json, trials.csv and launch/."""

from __future__ import annotations

import csv
import datetime
import io
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.documents.problem import Problem
from autotune.documents.results import Result, dump_yaml
from autotune.exporters.folders import Launches, write_launches
from autotune.files import claim, scratch_folder
from autotune.flags.storing import without_password
from autotune.flags.study import TrialRow
from autotune.versions import installed_version

LONGEST_PART = 60
"""Characters of each part of a folder's name: with all of them it stays below what file systems take."""
LIBRARIES = ("moe-autotune", "numpy", "ortools", "optuna", "pydantic")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A written run folder."""

    folder: Path
    launch_note: str | None
    """Why there are no launch scripts, where there are none."""


def slug(problem: Problem) -> str:
    """gb200-nvl72_deepseek-v3_decode, safe as a folder name."""
    parts = [Path(problem.hardware).stem, _model_stem(problem.model), problem.target]
    return "_".join(re.sub(r"[^a-zA-Z0-9.-]+", "-", part)[:LONGEST_PART] for part in parts)


def _model_stem(model: str) -> str:
    path = Path(model)
    if path.name == "config.json":
        return path.resolve().parent.name
    return path.stem if path.suffix in (".json", ".yaml", ".yml") else path.name


def write_run(
    out: Path,
    problem: Problem,
    result: Result,
    trials: dict[int, tuple[TrialRow, ...]],
    command: list[str],
    launches: Launches,
    extra: Mapping[str, str] | None = None,
) -> RunRecord:
    """Write the folder under a scratch name, then rename it to one that is free: nothing is half-written, no result replaced.

    extra : further files by name, e.g. the page and the candidates that it draws.
    """
    stamp = datetime.datetime.now(datetime.UTC)
    with scratch_folder(out, "; choose another folder with --out") as scratch:
        _fill(scratch, problem, result, trials, command, stamp)
        write_launches(scratch / "launch", launches)
        for name, text in (extra or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")
        folder = claim(scratch, out, f"{stamp:%Y-%m-%d}_{slug(problem)}")
    return RunRecord(folder, launches.note)


def _fill(
    folder: Path,
    problem: Problem,
    result: Result,
    trials: dict[int, tuple[TrialRow, ...]],
    command: list[str],
    stamp: datetime.datetime,
) -> None:
    (folder / "plan.yaml").write_text(dump_yaml(result.model_dump(mode="json")), encoding="utf-8")
    (folder / "run.json").write_text(
        json.dumps(_run_document(problem, result, command, stamp), indent=2) + "\n", encoding="utf-8"
    )
    if any(trials.values()):
        (folder / "trials.csv").write_text(trials_csv(trials), encoding="utf-8")


def _run_document(problem: Problem, result: Result, command: list[str], stamp: datetime.datetime) -> dict[str, Any]:
    return {
        "command": shown_command(command),
        "time_utc": stamp.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in LIBRARIES}},
        "problem": {**problem.model_dump(mode="json"), "storage": problem.storage and without_password(problem.storage)},
        "seed": problem.seed,
        "best": {"label": result.best.label, "tokens_per_s_per_gpu": result.best.prediction.tokens_per_s_per_gpu},
        "calibrations": sorted({plan.prediction.calibration for plan in result.plans}),
        "assumed": list(result.assumed),
        "solver": [{"rank": p.rank, **p.solver.model_dump()} for p in result.plans],
        "statistics": result.statistics.model_dump(),
    }


def shown_command(command: Sequence[str]) -> list[str]:
    """A command as it may be passed on: without the folder of the program, the user's home and passwords."""
    home = f"{Path.home()}/"
    words = [Path(command[0]).name, *command[1:]] if command else []
    return [without_password(word.replace(home, "~/")) for word in words]


def trials_csv(trials: dict[int, tuple[TrialRow, ...]]) -> str:
    """One line per trial; knob columns are the union over plans."""
    knobs = list(dict.fromkeys(name for rows in trials.values() for row in rows for name in row.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["plan", "trial", "origin", "tokens_per_s_per_gpu", "latency_s", "size_per_dp_rank", "violated", *knobs])
    for rank, rows in trials.items():
        for row in rows:
            values = [row.params.get(name, "") for name in knobs]
            violated = " ".join(row.violated)
            rate = f"{row.tokens_per_s_per_gpu:.3f}"
            writer.writerow([rank, row.number, row.origin, rate, f"{row.latency_s:.6f}", row.size, violated, *values])
    return text.getvalue()
