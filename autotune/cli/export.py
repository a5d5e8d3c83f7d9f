"""`autotune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import completing
from autotune.cli.short import uncollected

FORMATS = "bash, sbatch, compose, lws, llmd, dynamo, srt-slurm, kserve"
"""The targets' registry, which takes too long to import for `--help` (a test holds the two together)."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("export")(export)


@uncollected()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder or plan.yaml.", autocompletion=completing.runs)],
    rank: Annotated[int, typer.Option(help="Which plan.")] = 1,
    format: Annotated[
        str, typer.Option("--format", help=f"{FORMATS}; or the engine that the plan was made for (checked; bash).")
    ] = "bash",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; prints them by default.")] = None,
    image: Annotated[str | None, typer.Option(help="Container image of the engine; by default its own of the version.")] = None,
    router_image: Annotated[str | None, typer.Option(help="Container image of the router in front of a pair of pools.")] = None,
    rdma_resource: Annotated[str, typer.Option(help="Name under which a cluster offers its NICs to pods.")] = "rdma/ib",
) -> None:
    """Write what launches a plan: bash scripts, a Slurm job, Compose, or manifests for Kubernetes (docs/targets.md)."""
    from autotune.documents.plan import Plan
    from autotune.documents.results import load_plans
    from autotune.errors import ProblemError
    from autotune.exporters import feed_requirement
    from autotune.exporters.folders import target_files, write_scripts
    from autotune.exporters.targets.base import TargetOptions
    from autotune.exporters.targets.registry import load_target

    plans = load_plans(run).plans
    plan = next((p for p in plans if p.rank == rank), None)
    if plan is None:
        raise ProblemError(f"{run} has plans 1..{len(plans)}, not {rank}")
    target = load_target(_target_of(format, plan.deployment.engine.name))
    files = target_files(plan, target, TargetOptions(image, router_image, rdma_resource))
    if out is not None:
        write_scripts(out, plan, files, target)
        typer.echo(f"wrote {', '.join(file.name for file in files)} and README.md to {out}")
        if isinstance(plan, Plan):
            typer.echo(feed_requirement(plan.deployment, plan.prediction.tokens_per_s))
        return
    for file in files:
        if file.executable or target.name != "bash":
            typer.echo(file.text)


def _target_of(name: str, engine: str) -> str:
    """A target's name; an engine's stands for bash, where the plan was made for it."""
    from autotune.errors import ProblemError
    from autotune.exporters.targets.registry import MODULES
    from search_spaces.loader import engine_names

    if name in MODULES or name not in engine_names():
        return name
    if name != engine:
        raise ProblemError(f"the plan was made for {engine}; search again with --engine {name} to export for it")
    return "bash"
