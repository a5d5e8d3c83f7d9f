"""Pages of runs: from a search that just ended, or read back from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.documents.candidates import Candidates
from autotune.documents.plan import Plan
from autotune.documents.problem import Problem
from autotune.documents.results import CANDIDATES, Result, load_candidates, load_plans
from autotune.errors import ProblemError
from autotune.exporters.folders import Launches, launches_of
from autotune.records import RunRecord, shown_command, write_run
from autotune.report.page.page import RunPage, ShownScript, render_page
from autotune.versions import installed_version
from cost_models.catalog import validated
from cost_models.reading import parse_json, read_text

if TYPE_CHECKING:
    from autotune.flags.study import TrialRow

PAGE = "report.html"
RECORD = "run.json"


def _files_of(
    problem: Problem, result: Result, candidates: Candidates | None, command: Sequence[str], launches: Launches
) -> dict[str, str]:
    """Files of a run folder beside its plan: the page, and the candidates it draws."""
    files = {PAGE: render_page(page_of(problem, result, candidates, command, launches))}
    if candidates is not None:
        files[CANDIDATES] = candidates.model_dump_json() + "\n"
    return files


def save_run(
    out: Path,
    problem: Problem,
    result: Result,
    trials: dict[int, tuple[TrialRow, ...]],
    candidates: Candidates | None,
    command: list[str],
) -> RunRecord:
    """The run folder with its scripts, its page and what it draws; raises OutputError where it cannot be written."""
    launches = launches_of(result.plans)
    files = _files_of(problem, result, candidates, shown_command(command), launches)
    return write_run(out, problem, result, trials, command, launches, files)


def page_of(
    problem: Problem, result: Result, candidates: Candidates | None, command: Sequence[str], launches: Launches
) -> RunPage:
    """A page of typed results; plans whose scripts cannot be written have none."""
    return RunPage(
        title=f"{Path(problem.hardware).stem}, {Path(problem.model).stem}, {problem.target}",
        result=result,
        candidates=candidates,
        command=command,
        osl_tokens=problem.workload.osl_tokens,
        scripts=[
            ShownScript(rank, script.name, script.text)
            for rank, scripts in launches.scripts.items()
            for script in scripts
            if script.executable
        ],
        gpu_hour_usd=problem.gpu_hour_usd_by_phase,
        made=f"Made by moe-autotune {installed_version('moe-autotune')}",
    )


def with_sensitivity(page: RunPage) -> RunPage:
    """The page with what a pool's throughput hangs on; a service's is left as it is."""
    from autotune.auditing.sensitivity import sensitivity  # prices some fifty steps: only where it is asked for

    best = page.result.best
    return dataclasses.replace(page, sensitivity=sensitivity(best.deployment)) if isinstance(best, Plan) else page


def record_of(folder: Path) -> dict[str, Any]:
    """What run.json of a run folder says; raises AutotuneError where the folder is none, or the file is not a search's."""
    run = folder / RECORD
    if not (folder / "plan.yaml").is_file() or not run.is_file():
        raise ProblemError(
            f"{folder} is no run folder: it has no plan.yaml and run.json; give a folder that `autotune search` wrote"
        )
    record = parse_json(read_text(run), run)
    if not isinstance(record, dict) or not isinstance(record.get("problem"), dict):
        raise ProblemError(f"{run}: no `problem` in it; it was not written by `autotune search`")
    return record


def read_page(folder: Path) -> RunPage:
    """The page of a run folder.

    Raises ProblemError where the folder is no run folder, and AutotuneError naming the file that cannot be read.
    """
    record = record_of(folder)
    problem = validated(Problem, record["problem"], str(folder / RECORD))
    command = record.get("command")
    typed = [str(word) for word in command] if isinstance(command, list) else []
    result = load_plans(folder)
    return page_of(problem, result, load_candidates(folder), typed, launches_of(result.plans))
