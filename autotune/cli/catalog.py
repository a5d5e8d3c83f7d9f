"""`autotune hw|model|engine list` and `show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli import completing

if TYPE_CHECKING:
    from cost_models.specs.base import Spec

NAMES_OF = {"hw": completing.hardware, "model": completing.models, "engine": completing.engines}
"""Completion of each kind of entry."""
CONTEXTS = (1024, 8192, 65536)
"""Contexts at which `model show` says what a sequence keeps [token]."""


def group(kind: str, help_text: str) -> typer.Typer:
    """The list and show commands of one kind of catalogue entry."""
    app = typer.Typer(help=help_text, no_args_is_help=True)

    @app.command("list", help="List what is known.")
    def list_entries(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
        _print_list(kind, json)

    @app.command("show", help="Show one entry with its sources.")
    def show_entry(
        name: Annotated[str, typer.Argument(help="Catalogue name or path to a file.", autocompletion=_completed)],
        json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        from autotune.documents.results import dump_yaml

        entry, derived = _load(kind, name)
        data = {**entry.model_dump(mode="json"), "derived": derived}
        if json:
            import json as json_module

            typer.echo(json_module.dumps(data, indent=2))
        else:
            typer.echo(dump_yaml(data), nl=False)

    return app


def _completed(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind whose `show` is typed; the group tells which."""
    kind = ctx.parent.info_name if ctx.parent else None
    return NAMES_OF[kind](incomplete) if kind in NAMES_OF else []


def _names(kind: str) -> list[str]:
    from cost_models.catalog import hardware_names, model_names
    from search_spaces.loader import engine_names

    return {"hw": hardware_names, "model": model_names, "engine": engine_names}[kind]()


def _load(kind: str, name: str) -> tuple[Spec, dict[str, Any]]:
    """An entry and the numbers computed from it."""
    from cost_models.catalog import load_hardware, load_model, load_recipe
    from search_spaces.loader import load_engine

    if kind == "hw":
        hardware = load_hardware(name)
        return hardware, {
            "scale_out_bytes_per_s_per_gpu": hardware.scale_out_bytes_per_s,
            "host_link_bytes_per_s_per_gpu": hardware.host_link_bytes_per_s,
            "default_gpus": hardware.default_gpus,
        }
    if kind == "model":
        model = load_model(name)
        return model, {
            "parameters": model.parameters(),
            "active_parameters": model.active_parameters(),
            "bf16_state_bytes_by_context": {tokens: float(model.state_bytes(tokens, load_recipe("bf16"))) for tokens in CONTEXTS},
        }
    engine = load_engine(name)
    return engine, {"newest": engine.newest, "knobs_of_newest": [k.name for k in engine.knobs if k.spelling(engine.newest)]}


def _print_list(kind: str, as_json: bool) -> None:
    rows = [_summary(kind, name) for name in _names(kind)]
    if as_json:
        import json

        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from autotune.report.printing import show

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0]:
        table.add_column(column, style="cyan" if column == "name" else None)
    for row in rows:
        table.add_row(*row.values())
    show(table)


def _summary(kind: str, name: str) -> dict[str, str]:
    from cost_models.catalog import load_hardware, load_model
    from search_spaces.loader import load_engine

    if kind == "hw":
        h = load_hardware(name)
        return {
            "name": name,
            "title": h.title,
            "GPUs per node": str(h.gpus_per_node),
            "domain": f"{h.scale_up.domain_gpus} at {h.scale_up.bytes_per_s.value / 1e9:,.0f} GB/s",
            "HBM": f"{h.gpu.hbm_visible_bytes.value / 1e9:,.0f} GB at {h.gpu.hbm_bytes_per_s.value / 1e12:.2f} TB/s",
            "NIC per GPU": f"{h.scale_out_bytes_per_s / 1e9:,.2f} GB/s",
        }
    if kind == "model":
        m = load_model(name)
        return {
            "name": name,
            "title": m.title,
            "parameters": f"{m.parameters() / 1e9:,.2f}e9",
            "active": f"{m.active_parameters() / 1e9:,.2f}e9",
            "precisions": ", ".join(m.checkpoints),
            "not modelled": "; ".join(m.flags),
        }
    e = load_engine(name)
    versions = ", ".join(v.version for v in e.versions)
    return {"name": name, "title": e.title, "versions": versions, "launch scripts": "yes" if e.exporter else "no"}
