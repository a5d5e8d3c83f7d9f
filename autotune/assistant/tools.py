"""What an assistant may ask: the same functions that the command line calls, on documents in and documents out.

Every function takes and returns plain data, writes run folders only, and raises
AutotuneError with one message that says the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.documents.results import Result
from autotune.errors import ProblemError

if TYPE_CHECKING:
    from autotune.progress import Progress

Data = dict[str, Any]
FILES = ("plan.yaml", "run.json", "report.html", "candidates.json")
"""Of a run folder, that are served as resources."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """The folder that searches write to and questions read from."""

    runs: Path

    def folder(self, run: str) -> Path:
        """A run folder by its name; raises ProblemError for names that are none of this bench."""
        folder = self.runs / run
        if Path(run).name != run or not (folder / "plan.yaml").is_file():
            known = ", ".join(self.names()[-5:]) or "none yet"
            raise ProblemError(f"no run {run!r} under {self.runs.name}; the last ones: {known}")
        return folder

    def names(self) -> list[str]:
        """Run folders, oldest first."""
        found = [path.parent for path in self.runs.glob("*/plan.yaml")] if self.runs.is_dir() else []
        return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime, path.name))]


def search(bench: Workbench, problem: Data, progress: Progress | None = None) -> Data:
    """Plan a deployment and write its run folder: the best plan, its intervals and odds, and the folder's name."""
    from autotune.documents.problem import Problem
    from autotune.report.page.folder import save_run
    from autotune.searching.pools import run_search
    from autotune.searching.services.searching import search_services
    from cost_models.catalog import validated

    asked = validated(Problem, problem, "problem")
    if asked.target == "serve":
        result: Result = search_services(asked, progress)
        trials, candidates = {}, None
    else:
        run = run_search(asked, progress)
        result = run.result
        trials, candidates = run.trials, run.candidates
    record = save_run(bench.runs, asked, result, trials, candidates, [])
    return {"run": record.folder.name, "launch_note": record.launch_note, **summary(result)}


def summary(result: Result) -> Data:
    """What an assistant needs of a result to go on; plan.yaml holds the rest."""
    best = result.best.model_dump(mode="json", exclude={"deployment", "flags", "placement"})
    plans = [{"rank": p.rank, "label": p.label, "tokens_per_s_per_gpu": p.prediction.tokens_per_s_per_gpu} for p in result.plans]
    return {"best": best, "plans": plans, "assumed": list(result.assumed), "notes": list(result.notes)}


def check(deployment: Data | None, command: str | None, goals: Data | None, script: Data | None) -> Data:
    """Judge a deployment document or an engine's command line: does it start, fit and meet its goals, and what would help."""
    from autotune.auditing.checking import check as judge
    from autotune.auditing.commands import ReadCommand, read_command
    from autotune.auditing.goals import Goals
    from autotune.documents.deployment import Deployment
    from cost_models.catalog import validated

    if (deployment is None) == (command is None):
        raise ProblemError("give either a deployment or the command line of an engine")
    wanted = validated(Goals, goals or {}, "goals")
    if command is None:
        found = ReadCommand(validated(Deployment, deployment, "deployment"))
    else:
        about = script or {}
        unknown = sorted(set(about) - {"hardware", "version", "isl_tokens", "osl_tokens", "size", "model", "precision"})
        if unknown or "hardware" not in about:
            raise ProblemError(
                "a command needs `script` with its hardware, and may have version, isl_tokens, osl_tokens, size, model and "
                f"precision there{'; unknown: ' + ', '.join(unknown) if unknown else ''}"
            )
        found = read_command(command, **{"isl_tokens": 2000, "osl_tokens": 2000, **about})
    return judge(found.deployment, wanted, found).model_dump(mode="json")


def predict(deployment: Data) -> Data:
    """Throughput, latency, operators, memory and bottleneck of a deployment document."""
    from autotune.documents.deployment import Deployment
    from autotune.predicting.step import predict as step
    from autotune.serving.predicting import predict_service
    from cost_models.catalog import validated

    document = validated(Deployment, deployment, "deployment")
    found = predict_service(document) if document.phase == "serve" else step(document)
    return found.model_dump(mode="json")


def place(model: str, gpus: int, redundant_experts: int, gpus_per_node: int, loads: list[str], spread: float | None) -> Data:
    """Expert replicas on GPUs, from recorded loads or from synthetic ones, with bound and gap; without the map itself."""
    from autotune.placement.loads import read_loads
    from autotune.placement.placing import place as solve
    from autotune.placement.synthetic import synthetic_loads
    from cost_models.catalog import load_model

    spec = load_model(model)
    if bool(loads) == (spread is not None):
        raise ProblemError("give either files of recorded loads or `synthetic`, the spread of synthetic ones (1.0 is usual)")
    recorded = read_loads([Path(name) for name in loads], spec) if loads else synthetic_loads(spec, spread or 0.0)
    placement = solve(recorded, spec, gpus, redundant_experts, gpus_per_node)
    return placement.model_dump(mode="json", exclude={"experts", "layers"})


def explain(bench: Workbench, run: str, layout: str) -> Data:
    """Why a layout was chosen or not, from what the search weighed."""
    from autotune.report.asking_services import explain_run
    from autotune.report.page.folder import read_page

    return explain_run(read_page(bench.folder(run)), layout).model_dump(mode="json")


def export(bench: Workbench, run: str, rank: int) -> Data:
    """Launch scripts of a plan, by name."""
    from autotune.documents.results import load_plans
    from autotune.exporters.folders import plan_scripts

    plans = load_plans(bench.folder(run)).plans
    plan = next((p for p in plans if p.rank == rank), None)
    if plan is None:
        raise ProblemError(f"{run} has plans 1..{len(plans)}, not {rank}")
    return {script.name: script.text for script in plan_scripts(plan)}


def validate() -> Data:
    """How far predictions lie from published measurements, case by case."""
    from autotune.validating.cases import published, run_cases
    from autotune.validating.statistics import summarise

    found = {}
    for file in published():
        results = run_cases(file)
        rows = [{"id": r.case.id, "throughput_error": r.throughput_error, "tpot_error": r.tpot_error} for r in results]
        found[file.title] = {"summary": summarise([r for r in results if r.case.named] or results).model_dump(), "cases": rows}
    return found


def read_file(bench: Workbench, run: str, file: str) -> str:
    """A file of a run folder; raises ProblemError for any other file."""
    from cost_models.reading import RESULT, read_text

    if file not in FILES:
        raise ProblemError(f"runs serve {', '.join(FILES)}, not {file}")
    path = bench.folder(run) / file
    if not path.is_file():
        raise ProblemError(f"{run} has no {file}")
    return read_text(path, RESULT)
