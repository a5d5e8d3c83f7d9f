"""`autotune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder or plan.yaml.")],
    rank: Annotated[int, typer.Option(help="Which plan.")] = 1,
    format: Annotated[str | None, typer.Option("--format", help="Engine that the plan was made for (checked).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the scripts; prints them by default.")] = None,
) -> None:
    """Write launch scripts of a plan."""
    from autotune.documents.plan import Plan
    from autotune.documents.results import load_plans
    from autotune.errors import ProblemError
    from autotune.exporters import feed_requirement
    from autotune.exporters.folders import plan_scripts, write_scripts

    plans = load_plans(run).plans
    plan = next((p for p in plans if p.rank == rank), None)
    if plan is None:
        raise ProblemError(f"{run} has plans 1..{len(plans)}, not {rank}")
    engine = plan.deployment.engine.name
    if format is not None and format != engine:
        raise ProblemError(f"the plan was made for {engine}; search again with --engine {format} to export for it")
    scripts = plan_scripts(plan)
    if out is not None:
        write_scripts(out, plan, scripts)
        typer.echo(f"wrote {', '.join(s.name for s in scripts)} and README.md to {out}")
        if isinstance(plan, Plan):
            typer.echo(feed_requirement(plan.deployment, plan.prediction.tokens_per_s))
        return
    for script in scripts:
        if script.executable:
            typer.echo(script.text)
