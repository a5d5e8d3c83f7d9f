"""Run folders: results/<date>_<slug>/ with plan.yaml, run.json, trials.csv and launch/."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import ExportError, OutputError
from autotune.exporters import Script, export, feed_requirement, has_exporter
from autotune.flags.study import TrialRow
from autotune.plan import Plan, SearchResult
from autotune.prediction import Prediction
from autotune.problem import Problem
from autotune.services.plan import ServicePlan, ServiceResult
from autotune.versions import installed_version
from cost_models.catalog import read_yaml, validated

Result = SearchResult | ServiceResult
SERVICE_FORMAT = ServiceResult.model_fields["format"].default
SEARCH_FORMAT = SearchResult.model_fields["format"].default
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
    return "_".join(re.sub(r"[^a-zA-Z0-9.-]+", "-", part) for part in parts)


def _model_stem(model: str) -> str:
    path = Path(model)
    return path.resolve().parent.name if path.name == "config.json" else path.stem if path.suffix else model


def check_writable(out: Path) -> None:
    """Raise OutputError early, before minutes are spent on a search that could not be saved."""
    existing = next(p for p in [out, *out.parents] if p.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder, so {out} cannot be created; choose another with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write under {existing}; choose another folder with --out")


def write_run(
    out: Path, problem: Problem, result: Result, trials: dict[int, tuple[TrialRow, ...]], command: list[str]
) -> RunRecord:
    """Write the folder under a temporary name, then rename it: nothing is ever half-written."""
    stamp = datetime.datetime.now(datetime.UTC)
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".autotune-", dir=out))
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error
    try:
        note = _fill(scratch, problem, result, trials, command, stamp)
        scratch.chmod(0o755)
        folder = _free_name(out, f"{stamp:%Y-%m-%d}_{slug(problem)}")
        scratch.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return RunRecord(folder, note)


def _free_name(out: Path, name: str) -> Path:
    candidates = [out / name, *(out / f"{name}_{i}" for i in range(2, 10_000))]
    return next(path for path in candidates if not path.exists())


def _fill(
    folder: Path,
    problem: Problem,
    result: Result,
    trials: dict[int, tuple[TrialRow, ...]],
    command: list[str],
    stamp: datetime.datetime,
) -> str | None:
    (folder / "plan.yaml").write_text(dump_yaml(result.model_dump(mode="json")), encoding="utf-8")
    (folder / "run.json").write_text(
        json.dumps(_run_document(problem, result, command, stamp), indent=2) + "\n", encoding="utf-8"
    )
    if any(trials.values()):
        (folder / "trials.csv").write_text(trials_csv(trials), encoding="utf-8")
    return write_launch(folder / "launch", result.plans)


def dump_yaml(data: Any) -> str:
    """Plain data as block YAML, keys in order."""
    text: str = yaml.dump(data, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=120)
    return text


def _run_document(problem: Problem, result: Result, command: list[str], stamp: datetime.datetime) -> dict[str, Any]:
    return {
        "command": command,
        "time_utc": stamp.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: installed_version(name) for name in LIBRARIES}},
        "problem": problem.model_dump(mode="json"),
        "seed": problem.seed,
        "calibrations": sorted({plan.prediction.calibration for plan in result.plans}),
        "assumed": list(result.assumed),
        "solver": [{"rank": p.rank, **p.solver.model_dump()} for p in result.plans],
        "statistics": result.statistics.model_dump(),
    }


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


def write_launch(folder: Path, plans: Sequence[Plan | ServicePlan]) -> str | None:
    """Scripts of every plan in plan-<rank>/; returns why there are none, where there are none."""
    engine = plans[0].deployment.engine.name
    if not has_exporter(engine):
        return f"no launch scripts: {engine} has no exporter yet"
    notes = []
    for plan in plans:
        target = folder / f"plan-{plan.rank}"
        try:
            scripts = plan_scripts(plan)
        except ExportError as error:
            notes.append(f"plan {plan.rank}: {error}")
            continue
        _write_files(target, plan, scripts)
    return "; ".join(notes) or None


def plan_scripts(plan: Plan | ServicePlan) -> list[Script]:
    """Everything that launches a plan, its expert map included."""
    return export(plan.deployment, plan.placement if isinstance(plan, Plan) else None)


def _write_files(folder: Path, plan: Plan | ServicePlan, scripts: list[Script]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        path = folder / script.name
        path.write_text(script.text, encoding="utf-8")
        if script.executable:
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    (folder / "README.md").write_text(launch_readme(plan, [s.name for s in scripts]), encoding="utf-8")


def write_scripts(out: Path, plan: Plan | ServicePlan, scripts: list[Script]) -> None:
    """Scripts into a folder of the user's; each file is replaced whole or left alone."""
    check_writable(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".autotune-", dir=out) as scratch:
            _write_files(Path(scratch), plan, scripts)
            for path in Path(scratch).iterdir():
                path.replace(out / path.name)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}") from error


def launch_readme(plan: Plan | ServicePlan, scripts: list[str]) -> str:
    """What to run where, and what must feed it."""
    names = ", ".join(f"`{name}`" for name in scripts)
    if isinstance(plan, ServicePlan):
        return f"# Plan {plan.rank}: {plan.label}\n\n{service_steps(plan, names)}"
    pool = plan.deployment.pool
    return (
        f"# Plan {plan.rank}: {plan.label}\n\n"
        f"{pool.instances} instance(s) of {pool.layout.gpus} GPUs. Scripts: {names}; each checks the variables it needs.\n\n"
        f"{feed_requirement(plan.deployment, plan.prediction.tokens_per_s)}\n\n"
        f"Predicted: {plan.prediction.tokens_per_s_per_gpu:,.0f} {_pace(plan)}.\n"
    )


def service_steps(plan: ServicePlan, names: str) -> str:
    """What to start in which order, and what was predicted."""
    prediction = plan.prediction
    pools = "\n".join(f"- {pool.phase}: {pool.label} ({pool.gpus} GPUs of {pool.hardware})" for pool in plan.pools)
    order = "Start every instance, then `router.sh`." if len(plan.pools) > 1 else "Start every instance behind a load balancer."
    limits = "; ".join(
        f"{o.name} {o.predicted * 1e3:,.0f} of {o.limit * 1e3:,.0f} ms (met with {o.probability:.0%})" for o in plan.objectives
    )
    return (
        f"{pools}\n\nScripts: {names}; each checks the variables it needs. {order}\n\n"
        f"Predicted: {prediction.requests_per_s:,.1f} requests/s, {prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU. "
        f"{limits}.\n"
    )


def _pace(plan: Plan) -> str:
    pool, prediction = plan.deployment.pool, plan.prediction
    if isinstance(prediction, Prediction):
        step = f"output token with {pool.batch_per_dp_rank} sequences per DP rank"
        return f"tokens/s/GPU at {prediction.tpot_s * 1e3:.1f} ms per {step}"
    return f"prompt tokens/s/GPU with {pool.max_batched_tokens:,} tokens per DP rank in a step of {prediction.step_s:.2f} s"


def is_plan(data: Any) -> bool:
    """Whether a document is what a search writes as plan.yaml."""
    return isinstance(data, dict) and data.get("format") in (SERVICE_FORMAT, SEARCH_FORMAT)


def load_plans(path: Path) -> Result:
    """plan.yaml, or the run folder that holds it."""
    file = path / "plan.yaml" if path.is_dir() else path
    data = read_yaml(file)
    if isinstance(data, dict) and data.get("format") == SERVICE_FORMAT:
        return validated(ServiceResult, data, str(file))
    return validated(SearchResult, data, str(file))
