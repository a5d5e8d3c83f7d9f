"""`autotune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.watching import watched


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sweep")(sweep)


def sweep(
    scenarios: Annotated[Path, typer.Argument(help="YAML: a list of problems, or base, grid and problems.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the table and of the journal that a restart goes on from.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores by default.")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray (pip install 'moe-autotune[ray]').")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster, such as auto or ray://head:10001.")] = None,
    part: Annotated[str | None, typer.Option("--slice", help="Solve every Nth problem only, such as 3/16.")] = None,
    slurm: Annotated[int | None, typer.Option(help="Print an sbatch array of so many jobs instead.")] = None,
    table: Annotated[str, typer.Option("--format", help="Of the table: parquet or csv.")] = "parquet",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Solve many problems: grids and lists of hardware, models, workloads and limits."""
    from autotune.files import check_writable
    from autotune.sweeping.slices import Slice, sbatch
    from autotune.sweeping.table import check_format, write_table

    folder = out or Path("results") / f"{scenarios.stem}_sweep"
    if slurm is not None:
        typer.echo(sbatch(scenarios, folder, slurm), nl=False)
        return
    check_format(table)
    check_writable(folder)
    one = Slice.parsed(part) if part else Slice()
    from autotune.report.printing import show
    from autotune.report.sweeps import complaints, sweep_report
    from autotune.sweeping.running import sweep as run

    with watched(quiet=json) as on_answer:
        result = run(scenarios, folder, workers=workers, executor=executor, address=address, part=one, on_answer=on_answer)
    path = folder / f"table{one.suffix}.{table}"
    write_table(path, result.rows)
    if json:
        typer.echo(result.model_dump_json(indent=2, exclude_none=True))
    else:
        show(sweep_report(result))
        typer.echo(f"\nwrote {path}")
    faults = complaints(result, str(scenarios))
    for line in faults:
        typer.echo(f"error: {line}", err=True)
    if faults or not result.with_status("plan"):
        raise typer.Exit(1 if faults else 2)
