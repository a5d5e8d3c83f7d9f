"""`autotune recipe`: public recipes as deployments, and beside our own plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.audit import (
    Acceptance,
    Answer,
    AsJson,
    Clients,
    Hardware,
    Model,
    Precision,
    Prompt,
    Rate,
    ScriptOptions,
    Service,
    Size,
    TtftP50,
    TtftP95,
    TtftP99,
    Version,
    check_asked,
    given_too,
    read_goals,
    read_load,
    read_plan,
)

Recipes = Annotated[list[Path], typer.Argument(help="Recipes (docs/auditing.md lists the kinds); import also takes folders.")]


def recipe_group() -> typer.Typer:
    """The sub-application."""
    app = typer.Typer(help="Public recipes: read into deployments, held beside our plans.", no_args_is_help=True)
    app.command("import")(import_)
    app.command("compare")(compare_recipes)
    return app


def import_(
    recipes: Recipes,
    out: Annotated[Path | None, typer.Option(help="Folder for the deployment files; without it they are only listed.")] = None,
    hw: Hardware = None,
    engine_version: Version = None,
    isl: Prompt = None,
    osl: Answer = None,
    size: Size = None,
    mtp_acceptance: Acceptance = None,
    rate: Rate = None,
    clients: Clients = None,
    model: Model = None,
    precision: Precision = None,
    service: Service = None,
    json: AsJson = False,
) -> None:
    """Read recipes into deployment files for check and predict. Exit 1: one of them cannot be read (the others are).

    --hw is for files that do not say what they run on.
    """
    from autotune.files import check_writable
    from autotune.recipes.collecting import import_recipes, write_imported

    if out is not None:
        check_writable(out)
    script = ScriptOptions(hw, engine_version, isl, osl, size, mtp_acceptance, model, precision, service)
    found = import_recipes(recipes, given_too(script, read_load(rate, clients)))
    if out is not None:
        write_imported(out, found)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        from autotune.report.printing import show
        from autotune.report.recipes import imported_report

        show(imported_report(found))
        if out is not None:
            typer.echo(f"\nwrote {len(found.deployments)} deployment files to {out}")
    for unread in found.unread:
        typer.echo(f"error: {unread.source}: {unread.message}", err=True)
    if found.unread or not found.deployments:
        raise typer.Exit(1)


def compare_recipes(
    recipes: Recipes,
    tpot: Annotated[str | None, typer.Option(help="Limit on the (mean) time per output token, e.g. 50ms.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Limit on the time of one prompt (prefill).")] = None,
    ttft_p50: TtftP50 = None,
    ttft_p95: TtftP95 = None,
    ttft_p99: TtftP99 = None,
    rate: Rate = None,
    clients: Clients = None,
    hw: Hardware = None,
    engine_version: Version = None,
    isl: Prompt = None,
    osl: Answer = None,
    size: Size = None,
    mtp_acceptance: Acceptance = None,
    model: Model = None,
    precision: Precision = None,
    service: Service = None,
    json: AsJson = False,
) -> None:
    """Hold recipes beside our plans for the same model, hardware, GPUs and load: figures, differences, and what each is worth.

    Without a limit, our plan must be no slower for a user than the recipe. Exit 1: one cannot be read or compared (the others
    are). 2: no plan within the limits.
    """
    from autotune.recipes.collecting import UnreadRecipe
    from autotune.recipes.comparing import RecipeComparisons, compare_recipe
    from cost_models.errors import AutotuneError

    limits = {"tpot_s": tpot, "ttft_s": ttft, "ttft_p50_s": ttft_p50, "ttft_p95_s": ttft_p95, "ttft_p99_s": ttft_p99}
    goals, load = read_goals(limits), read_load(rate, clients)
    script = ScriptOptions(hw, engine_version, isl, osl, size, mtp_acceptance, model, precision, service)
    compared, unread = [], []
    for path in recipes:
        try:
            read = read_plan(path, script, load)
            check_asked(goals, read.deployment)
            compared.append(compare_recipe(path.name, read, goals))
        except AutotuneError as error:
            unread.append(UnreadRecipe(source=str(path), message=str(error).removeprefix(f"{path}: ")))
    found = RecipeComparisons(compared=tuple(compared), unread=tuple(unread))
    if json:
        typer.echo(found.model_dump_json(indent=2))
    elif compared:
        from autotune.report.printing import show
        from autotune.report.recipes import recipe_report

        show(recipe_report(found))
    for one in unread:
        typer.echo(f"error: {one.source}: {one.message}", err=True)
    if code := 1 if unread else 2 if any(one.ours is None for one in compared) else 0:
        raise typer.Exit(code)
