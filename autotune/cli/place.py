"""`autotune place`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("place")(place)


def place(
    loads: Annotated[list[Path], typer.Argument(help="Recorded expert loads, one file per workload: .pt, .npz, .npy or .csv.")],
    gpus: Annotated[int, typer.Option(help="GPUs that share the experts (EP size).", min=1)],
    redundant: Annotated[int, typer.Option(help="Redundant experts.", min=0)] = 0,
    model: Annotated[str, typer.Option(help="Preset or path to a Hugging Face config.json.")] = "deepseek-v3",
    gpus_per_node: Annotated[int, typer.Option(help="For the hierarchical baseline.", min=1)] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for the placement in every engine's format.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Place expert replicas on GPUs, balanced in the worst of the given workloads, beside EPLB and the bound."""
    from autotune.placement.formats import write_files
    from autotune.placement.loads import read_loads
    from autotune.placement.placing import place as solve
    from cost_models.catalog import load_model

    spec = load_model(model)
    recorded = read_loads(loads, spec)
    placement = solve(recorded, spec, gpus, redundant, gpus_per_node)
    written = write_files(placement, spec, out) if out else []
    if json:
        typer.echo(placement.model_dump_json(indent=2))
        return
    from autotune.report.placement import placement_report
    from autotune.report.tables import show

    show(placement_report(placement, recorded))
    for path in written:
        typer.echo(f"wrote {path}")
