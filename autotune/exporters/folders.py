"""Launch folders: the scripts of every plan and what to do with them."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.documents.plan import Plan
from autotune.documents.prediction import Prediction
from autotune.documents.service_plan import ServicePlan
from autotune.errors import ExportError
from autotune.exporters import MAP_FILES, Launch, Script, feed_requirement, has_exporter, launch_of
from autotune.exporters.base import plain_name
from autotune.exporters.targets.base import Target, TargetOptions
from autotune.exporters.targets.bash import bash_scripts
from autotune.files import whole_folder

MARK = "ritten by autotune"
"""In the head of every file of an export, whatever else it is, and in the README beside them."""
MARKED_BYTES = 2048
ON_KUBERNETES = ("vllm", "sglang")
"""Engines that every Kubernetes target, or most, can say."""


@dataclass(frozen=True, slots=True)
class Launches:
    """Scripts of every plan of a run, made once for its folder and its page."""

    plans: Sequence[Plan | ServicePlan]
    scripts: Mapping[int, list[Script]]
    """By rank; none of a plan that cannot be exported."""
    note: str | None
    """Why plans have no scripts, where some have none."""


def launches_of(plans: Sequence[Plan | ServicePlan]) -> Launches:
    """Render every plan."""
    engine = plans[0].deployment.engine.name
    if not has_exporter(engine):
        return Launches(plans, {}, f"no launch scripts: {engine} has no exporter yet")
    scripts, notes = {}, []
    for plan in plans:
        try:
            scripts[plan.rank] = plan_scripts(plan)
        except ExportError as error:
            notes.append(f"plan {plan.rank}: {error}")
    return Launches(plans, scripts, "; ".join(notes) or None)


def write_launches(folder: Path, launches: Launches) -> None:
    """Scripts of every plan in plan-<rank>/."""
    for plan in launches.plans:
        if plan.rank in launches.scripts:
            _write_files(folder / f"plan-{plan.rank}", plan, launches.scripts[plan.rank])


def plan_scripts(plan: Plan | ServicePlan) -> list[Script]:
    """Everything that launches a plan, its expert map included."""
    return bash_scripts(plan_launch(plan))


def plan_launch(plan: Plan | ServicePlan) -> Launch:
    """A plan's launch, for any target."""
    return launch_of(plan.deployment, plan.placement if isinstance(plan, Plan) else None)


def target_files(plan: Plan | ServicePlan, target: Target, options: TargetOptions) -> list[Script]:
    """A plan as one target says it. Raises ExportError where it cannot."""
    return target.render(plan_launch(plan), options)


def _write_files(folder: Path, plan: Plan | ServicePlan, scripts: list[Script], target: Target | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for script in scripts:
        path = folder / script.name
        path.write_text(script.text, encoding="utf-8")
        if script.executable:
            path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    (folder / "README.md").write_text(launch_readme(plan, [s.name for s in scripts], target), encoding="utf-8")


def write_scripts(out: Path, plan: Plan | ServicePlan, scripts: list[Script], target: Target | None = None) -> None:
    """Files into a folder of the user's, all or none; those of an earlier plan go. Raises OutputError."""
    with whole_folder(out, _exported) as scratch:
        _write_files(scratch, plan, scripts, target)


def _exported(path: Path) -> bool:
    """Whether a file was written by an earlier export: a map, or what carries the mark of one."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name in MAP_FILES:
        return True
    with path.open("rb") as file:
        return MARK.encode() in file.read(MARKED_BYTES)


def launch_readme(plan: Plan | ServicePlan, scripts: list[str], target: Target | None = None) -> str:
    """What to run where, and what must feed it; target : one other than scripts for every node."""
    names = ", ".join(f"`{name}`" for name in scripts)
    title = f"# Plan {plan.rank}: {plan.label}\n\nWritten by autotune.\n\n"
    if target is not None and target.name != "bash":
        return (
            f"{title}{target.title}: {names}.\n\n"
            f"Start it here:\n\n    {target.apply}\n\nCheck it without starting anything:\n\n    {target.validate}\n"
        )
    if isinstance(plan, ServicePlan):
        return f"{title}{service_steps(plan, names)}{elsewhere(plan)}"
    pool = plan.deployment.pool
    return (
        f"{title}"
        f"{pool.instances} instance(s) of {pool.layout.gpus} GPUs. Scripts: {names}; each checks the variables it needs.\n\n"
        f"{feed_requirement(plan.deployment, plan.prediction.tokens_per_s)}\n\n"
        f"Predicted: {plan.prediction.tokens_per_s_per_gpu:,.0f} {_pace(plan)}.\n{elsewhere(plan)}"
    )


def elsewhere(plan: Plan | ServicePlan) -> str:
    """How the same plan starts on Kubernetes, said beside its scripts where it can be."""
    if plan.deployment.engine.name not in ON_KUBERNETES:
        return ""
    router = " --router-image IMAGE" if len(plan.deployment.pools) > 1 else ""
    return (
        f"\nOn Kubernetes, from the run folder: `autotune export . --rank {plan.rank} --format lws{router} --out k8s`, then "
        "`kubectl apply -f k8s/launch.yaml`; other targets: `autotune export --help`.\n"
    )


def service_steps(plan: ServicePlan, names: str) -> str:
    """What to start in which order, and what was predicted."""
    prediction = plan.prediction
    pools = "\n".join(f"- {pool.phase}: {pool.label} ({pool.gpus} GPUs of {plain_name(pool.hardware)})" for pool in plan.pools)
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
