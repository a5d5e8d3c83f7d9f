"""`autotune measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import completing


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("measure")(measure)


def measure(
    out: Annotated[Path, typer.Option(help="Timing table to write or resume (.csv); provenance lies beside it (.json).")] = Path(
        "timings.csv"
    ),
    model: Annotated[
        str, typer.Option(help="Preset or path to a Hugging Face config.json.", autocompletion=completing.models)
    ] = "deepseek-v3",
    hw: Annotated[
        str | None,
        typer.Option(
            "--hw", help="Hardware file whose GPU name rows get; found by name by default.", autocompletion=completing.hardware
        ),
    ] = None,
    operators: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    tp: Annotated[str, typer.Option(help="Tensor-parallel sizes to cover.")] = "1,4,8",
    ep: Annotated[str, typer.Option(help="Expert-parallel sizes to cover.")] = "8,16,32,64",
    plan: Annotated[
        Path | None,
        typer.Option(help="Run folder or plan.yaml: only what tells most about its choice.", autocompletion=completing.runs),
    ] = None,
    budget: Annotated[str, typer.Option(help="Time to spend, e.g. 5m.")] = "10m",
    gpus: Annotated[int | None, typer.Option(help="GPUs for collectives; all by default.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be timed; needs no GPU.")] = False,
) -> None:
    """Time a model's kernels on the GPUs here: a table for `autotune calibrate`."""
    from autotune.cli.parsing import duration_s
    from autotune.measuring.choosing import most_telling
    from autotune.measuring.shapes import ShapeGrid, kernel_shapes, only_shapes
    from cost_models.catalog import load_model

    grid = ShapeGrid(tensor_parallel=_sizes(tp), expert_parallel=_sizes(ep))
    present = gpus or 8
    if not dry_run:
        from autotune.measuring.launching import gpus_here

        here, device = gpus_here()
        present = min(gpus or here, here)
    found = kernel_shapes(load_model(model), present, grid)
    found = most_telling(plan, found) if plan else found
    found = only_shapes(found, operators.split(",")) if operators else found
    if dry_run:
        for shape in found:
            typer.echo(shape.label())
        return
    from autotune.measuring.launching import MeasuringJob, run

    job = MeasuringJob(found, out, gpu_name(hw, device), duration_s(budget))
    outcome = run(job, present)
    typer.echo(
        f"{outcome.rows} timings added to {out}; {outcome.failed} shapes failed, {outcome.left_out} left out by the budget"
    )
    typer.echo(f"next: autotune calibrate {out} --hw {hw or '<hardware>'} --out mine.yaml")


def gpu_name(hw: str | None, device: str) -> str:
    """The catalogue's name of a GPU; raises ProblemError where none fits."""
    from autotune.errors import ProblemError
    from cost_models.catalog import hardware_names, load_hardware

    if hw is not None:
        return load_hardware(hw).gpu.name
    known = {load_hardware(name).gpu.name for name in hardware_names()}
    fitting = sorted((name for name in known if name in device.replace("-", " ").split()), key=len)
    if not fitting:
        raise ProblemError(f"{device} is not in the catalogue ({', '.join(sorted(known))}); name a hardware file with --hw")
    return fitting[-1]


def _sizes(text: str) -> tuple[int, ...]:
    from autotune.errors import ProblemError

    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ProblemError(f"'{text}' is not a list of sizes such as 1,4,8") from error
    if min(sizes) < 1:
        raise ProblemError(f"sizes start at 1, '{text}' was given")
    return sizes
