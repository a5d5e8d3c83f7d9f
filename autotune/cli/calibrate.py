"""`autotune calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.calibrating.document import Change
    from autotune.calibrating.fits import FittedEntry
    from autotune.calibrating.timings import TimingTable


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("calibrate")(calibrate)


def calibrate(
    hw: Annotated[str, typer.Option("--hw", help="Hardware the timings were taken on.")],
    tables: Annotated[list[Path] | None, typer.Argument(help="Timing tables (.csv, .jsonl, .parquet).")] = None,
    engine: Annotated[str, typer.Option(help="Engine whose kernels were timed.")] = "vllm",
    silicon: Annotated[bool, typer.Option("--silicon", help="Add the public silicon database (extra silicon).")] = False,
    infersim: Annotated[Path | None, typer.Option(help="Add InferSim's bench_data folder (H20, H800).")] = None,
    out: Annotated[Path, typer.Option(help="New calibration document.")] = Path("calibration.yaml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and show what would change; write nothing.")] = False,
) -> None:
    """Fit a new calibration to measured timings, on top of the shipped one."""
    import datetime

    from autotune.calibrating.document import changes, new_document, write_document
    from autotune.calibrating.fits import fit_table
    from autotune.calibrating.infersim import read_infersim
    from autotune.calibrating.silicon import read_silicon
    from autotune.calibrating.timings import merge, read_timings
    from autotune.errors import ProblemError
    from cost_models.catalog import calibration_for, load_hardware

    hardware = load_hardware(hw)
    base = calibration_for(hardware.gpu.name, engine)
    read = [read_timings(path) for path in tables or []]
    if silicon:
        read.append(read_silicon(hardware.gpu.name, engine))
    if infersim is not None:
        read.append(read_infersim(infersim, hardware.gpu.name))
    if not read:
        raise ProblemError("give at least one timing table, --silicon or --infersim FOLDER")
    table = merge(read)
    fitted, skipped = fit_table(table, hardware, base)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    document = new_document(base.id, fitted, name=out.stem, gpu=hardware.gpu.name, engine=engine, date=today)
    _report(table, fitted, skipped, changes(document))
    if dry_run:
        typer.echo("dry run: nothing written")
        return
    write_document(document, out)
    typer.echo(f"wrote {out}; use it with --calibration {out}")


def _report(table: TimingTable, fitted: list[FittedEntry], skipped: dict[str, str], moved: list[Change]) -> None:
    from rich.table import Table

    from autotune.report.tables import show

    view = Table(title="Fits", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("operator", "dtype", "fitted rows", "held out", "median error", "P90", "bias"):
        view.add_column(column, justify="left" if column in ("operator", "dtype") else "right")
    for item in fitted:
        fit = item.fit
        errors = (f"{fit.median_error:.1%}", f"{fit.p90_error:.1%}", f"{fit.bias:+.1%}")
        view.add_row(item.family, item.variant, str(fit.points), str(fit.held_out), *errors)
    show(view)
    for name, reason in skipped.items():
        typer.echo(f"not fitted: {name}: {reason}")
    for reason, count in table.dropped.items():
        if count:
            typer.echo(f"left out: {count:,} rows: {reason}")
    for change in moved:
        typer.echo(f"{change.case}: {change.before:,.0f} -> {change.after:,.0f} tokens/s/GPU ({change.relative:+.1%})")
