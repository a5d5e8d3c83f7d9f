"""`autotune fleet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.watching import watched


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("fleet")(fleet)


def fleet(
    problem: Annotated[Path, typer.Argument(help="YAML: models with loads and limits, clusters (autotune schema fleet).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the plan, its scripts and the sweep's journal.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores by default.")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray (pip install 'moe-autotune[ray]').")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster, such as auto or ray://head:10001.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Serve several models on several clusters: which services go where, and how many racks to buy."""
    from autotune.documents.fleet import FleetProblem
    from autotune.files import check_writable
    from autotune.fleets.folders import write_fleet
    from autotune.fleets.planning import fleet as plan
    from cost_models.catalog import read_yaml, validated

    asked = validated(FleetProblem, read_yaml(problem), str(problem))
    folder = out or Path("results") / f"{problem.stem}_fleet"
    check_writable(folder)
    with watched(quiet=json) as on_answer:
        result = plan(asked, folder, workers=workers, executor=executor, address=address, on_answer=on_answer)
    notes = write_fleet(folder, result)
    if json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from autotune.report.fleets import fleet_report
    from autotune.report.printing import show

    show(fleet_report(asked, result))
    typer.echo(f"\nwrote {folder}")
    for note in notes:
        typer.echo(note)
