"""`autotune validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("validate")(validate)


def validate(
    cases: Annotated[Path | None, typer.Argument(help="Case file; the published decode cases by default.")] = None,
    update: Annotated[Path | None, typer.Option(help="Markdown file whose table between the marks is replaced.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predicted against measured, case by case."""
    from autotune.validation import load_cases, markdown_table, summarise, update_between_marks
    from autotune.validation import validate as run

    file = load_cases(cases)
    results = run(file)
    if update is not None:
        update_between_marks(update, markdown_table(file, results))
    if json:
        import json as json_module

        rows = [
            {"id": r.case.id, "named": r.case.named, "throughput_error": r.throughput_error, "tpot_error": r.tpot_error}
            for r in results
        ]
        named = [r for r in results if r.case.named] or results
        typer.echo(json_module.dumps({"cases": rows, "named": summarise(named).model_dump()}, indent=2))
        return
    typer.echo(markdown_table(file, results))
