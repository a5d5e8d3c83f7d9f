"""`autotune place`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli import completing

if TYPE_CHECKING:
    from autotune.placement.loads import Loads
    from cost_models.specs.model import ModelSpec


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("place")(place)


def place(
    loads: Annotated[
        list[Path] | None, typer.Argument(help="Recorded loads, a file per workload: .pt, .npz, .npy, .csv.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that share the experts (EP size).", min=1, max=20_000)] = None,
    redundant: Annotated[int, typer.Option(help="Redundant experts.", min=0)] = 0,
    current: Annotated[Path | None, typer.Option("--from", help="placement.json to change instead of placing afresh.")] = None,
    max_moves: Annotated[int, typer.Option(help="Replicas that may move from it, over all layers.", min=0)] = 256,
    synthetic: Annotated[float | None, typer.Option(help="Log-normal loads of this spread instead.")] = None,
    apart: Annotated[float, typer.Option(help="How far two synthetic workloads are apart.")] = 0.0,
    model: Annotated[
        str, typer.Option(help="Preset or path to a Hugging Face config.json.", autocompletion=completing.models)
    ] = "deepseek-v3",
    gpus_per_node: Annotated[int, typer.Option(help="For the hierarchical baseline.", min=1)] = 8,
    gather: Annotated[bool, typer.Option("--gather", help="Put experts that tokens choose together on one node.")] = False,
    refine: Annotated[float, typer.Option(help="Seconds for CP-SAT to improve the placement.", min=0)] = 0.0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Only compare numbers of redundant experts.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the placement in every engine's format.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw it beside them: balance by layer, load by GPU (extra plots).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Place expert replicas on GPUs, balanced in the worst of the given workloads, beside EPLB and the bound."""
    from autotune.errors import ProblemError
    from autotune.placement.formats import write_files
    from autotune.placement.loads import read_choices, read_loads
    from autotune.placement.placing import Placement, place_again, place_gathered
    from autotune.placement.placing import place as solve
    from autotune.placement.synthetic import synthetic_loads
    from cost_models.catalog import load_model, read_yaml, validated

    if pictures and (out is None or sweep):
        raise ProblemError("--pictures are drawn into the folder of a placement: give --out FOLDER, without --sweep")
    spec = load_model(model)
    if gather and (not loads or current is not None or sweep):
        raise ProblemError("--gather needs files with the experts that each token chose, and places afresh")
    if bool(loads) == (synthetic is not None):
        raise ProblemError("give recorded loads, or --synthetic 1.7 for loads drawn like DeepSeek-R1's")
    chosen = None
    if gather:
        recorded, chosen = read_choices(loads or [], spec)
    else:
        recorded = read_loads(loads, spec) if loads else synthetic_loads(spec, synthetic or 0.0, 2 if apart else 1, apart)
    if current is not None:
        held = validated(Placement, read_yaml(current), str(current))
        placement = place_again(recorded, spec, held, max_moves, gpus_per_node, refine)
    elif gpus is None:
        raise ProblemError("give the GPUs that share the experts: --gpus 32 (or a placement to change: --from placement.json)")
    elif sweep:
        _compare(recorded, spec, gpus, as_json=json)
        return
    elif chosen is not None:
        placement = place_gathered(recorded, chosen, spec, gpus, redundant, gpus_per_node, refine)
    else:
        placement = solve(recorded, spec, gpus, redundant, gpus_per_node, refine)
    written = write_files(placement, spec, out, recorded if pictures else None) if out else []
    if json:
        typer.echo(placement.model_dump_json(indent=2))
        return
    from autotune.report.placement import placement_report
    from autotune.report.printing import show

    show(placement_report(placement, recorded))
    for path in written:
        typer.echo(f"wrote {path}")
    if written and not pictures:
        typer.echo("not drawn: --pictures adds balance_by_layer.png and load_by_gpu.png")


def _compare(loads: Loads, model: ModelSpec, gpus: int, *, as_json: bool) -> None:
    """Numbers of redundant experts side by side."""
    from autotune.placement.placing import sweep_redundancy

    choices = sweep_redundancy(loads, model, gpus)
    if as_json:
        import json

        typer.echo(json.dumps([choice.model_dump() for choice in choices], indent=2))
        return
    from autotune.report.placement import redundancy_table
    from autotune.report.printing import show

    show(redundancy_table(choices))
