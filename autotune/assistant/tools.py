"""What an assistant may ask: the same functions that the command line calls, on documents in and documents out.

Every function takes and returns plain data, writes run folders only, and raises
AutotuneError with one message that says the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from autotune.documents.deployment import Load
from autotune.documents.problem import MAX_GPUS
from autotune.documents.results import Result
from autotune.errors import ProblemError
from cost_models.specs.base import Spec
from cost_models.specs.workload import MAX_LENGTH_TOKENS

if TYPE_CHECKING:
    from autotune.auditing.commands import ReadCommand
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
        known = self.names()
        if run not in known:
            last = ", ".join(known[-5:]) or "none yet"
            raise ProblemError(f"no run {run[:80]!r} under {self.runs.name}; the last ones: {last}")
        return self.runs / run

    def names(self) -> list[str]:
        """Run folders, oldest first."""
        found = [path.parent for path in self.runs.glob("*/plan.yaml")] if self.runs.is_dir() else []
        return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime, path.name))]


class About(Spec):
    """What the command line of an engine or a manifest does not say."""

    hardware: str | None = None
    """A manifest may name it; a command does not."""
    version: str | None = None
    """Of the engine; a manifest's image may say it."""
    isl_tokens: int | None = Field(default=None, gt=0, le=MAX_LENGTH_TOKENS)
    """Those of the manifest's benchmark, or 2,000, when absent."""
    osl_tokens: int | None = Field(default=None, gt=0, le=MAX_LENGTH_TOKENS)
    size: int | None = Field(default=None, gt=0, le=MAX_LENGTH_TOKENS)
    """Sequences (decode) or tokens (prefill) per attention-DP rank."""
    model: str | None = None
    precision: str | None = None
    service: str | None = None
    """Which engine of a manifest that starts several."""
    load: Load | None = None
    """What a service is sent."""


@dataclass(frozen=True, slots=True)
class Given:
    """What is judged: one of a deployment document, a command line, and a manifest's text."""

    deployment: Data | None = None
    command: str | None = None
    manifest: str | None = None
    script: Data | None = None

    def read(self) -> ReadCommand:
        """As the command line reads it; raises AutotuneError for none or several, and for what cannot be read."""
        from autotune.auditing.commands import ReadCommand
        from autotune.documents.deployment import Deployment
        from autotune.manifests.judging import GivenToo, read_manifest
        from autotune.manifests.registry import read_manifest_text
        from autotune.manifests.scripts import read_script
        from cost_models.catalog import validated

        if sum(part is not None for part in (self.deployment, self.command, self.manifest)) != 1:
            raise ProblemError("give one of: a deployment, the command line of an engine, or the text of a manifest")
        if self.deployment is not None:
            if self.script:
                raise ProblemError("`script` is for a command or a manifest: a deployment says everything itself")
            return ReadCommand(validated(Deployment, self.deployment, "deployment"))
        about = validated(About, self.script or {}, "script (what the command does not say)")
        if self.command is not None:
            if about.hardware is None:
                raise ProblemError("a command needs `script` with its hardware (see catalog), and may have more there")
            return read_manifest(read_script(self.command), GivenToo(**dict(about)), "the command")
        found = read_manifest_text(self.manifest or "", about.hardware)
        return read_manifest(found, GivenToo(**dict(about)), "the manifest")


class Placing(Spec):
    """Experts of which model go on how many GPUs, from which loads."""

    model: str
    gpus: int = Field(gt=0, le=MAX_GPUS)
    redundant_experts: int = Field(default=0, ge=0, le=MAX_GPUS)
    gpus_per_node: int = Field(default=8, gt=0, le=MAX_GPUS)
    loads: tuple[str, ...] = ()
    """Files of recorded loads, one per workload."""
    synthetic: float | None = None
    """Spread of loads drawn instead; 1.7 is DeepSeek-R1's."""


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


def check(given: Given, goals: Data | None) -> Data:
    """Judge a deployment document, a command line or a manifest: does it start, fit, meet its goals, and what would help."""
    from autotune.auditing.checking import check as judge
    from autotune.auditing.goals import Goals
    from cost_models.catalog import validated

    wanted = validated(Goals, goals or {}, "goals")
    found = given.read()
    return judge(found.deployment, wanted, found).model_dump(mode="json")


def verify(results: list[str], given: Given, limits: Data | None) -> Data:
    """Measured runs beside what is predicted for them: what lies outside the error bars or over a limit, and why it may."""
    from autotune.auditing.goals import Goals
    from autotune.auditing.verifying import verify as compare
    from cost_models.catalog import validated

    if not results:
        raise ProblemError("give the files of at least one benchmark (vllm bench serve or latency, SGLang bench_serving)")
    found = given.read()
    points = compare([Path(name) for name in results], found.deployment, validated(Goals, limits or {}, "limits"))
    return {
        "passed": all(point.passed for point in points),
        "points": [point.model_dump(mode="json") for point in points],
        "not_modelled": [option.line() for option in found.unmodelled],
    }


def predict(deployment: Data) -> Data:
    """Throughput, latency, operators, memory and bottleneck of a deployment document."""
    from autotune.documents.deployment import Deployment
    from autotune.predicting.step import predict as step
    from autotune.serving.predicting import predict_service
    from cost_models.catalog import validated

    document = validated(Deployment, deployment, "deployment")
    found = predict_service(document) if document.phase == "serve" else step(document)
    return found.model_dump(mode="json")


def place(asked: Data) -> Data:
    """Expert replicas on GPUs, from recorded loads or from synthetic ones, with bound and gap; without the map itself."""
    from autotune.placement.loads import read_loads
    from autotune.placement.placing import place as solve
    from autotune.placement.synthetic import synthetic_loads
    from cost_models.catalog import load_model, validated

    wanted = validated(Placing, asked, "placement")
    spec = load_model(wanted.model)
    if bool(wanted.loads) == (wanted.synthetic is not None):
        raise ProblemError("give either files of recorded loads or `synthetic`, a spread to draw them with (1.7 is usual)")
    drawn = wanted.synthetic is not None
    loads = synthetic_loads(spec, wanted.synthetic or 0.0) if drawn else read_loads([Path(n) for n in wanted.loads], spec)
    placement = solve(loads, spec, wanted.gpus, wanted.redundant_experts, wanted.gpus_per_node)
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
