"""`autotune schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.cli.completing import documents


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("schema")(schema)


def schema(
    document: Annotated[
        str | None,
        typer.Argument(
            help="A file (deployment, problem, fleet, plan, hardware, ...) or what a command prints with --json (search, check, "
            "hw-list, ...); without one, all of them with their versions.",
            autocompletion=documents,
        ),
    ] = None,
) -> None:
    """Print the JSON schema of a document; its $id holds its version."""
    import json

    from autotune.cli.published import ENTRIES, find, schema_of

    if document is None:
        for entry in ENTRIES:
            what = f"autotune {entry.command} --json" if entry.command else "file"
            typer.echo(f"{entry.name:14} {entry.version}  {what}")
        return
    typer.echo(json.dumps(schema_of(find(document)), indent=2))
