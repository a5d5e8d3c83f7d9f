"""`autotune validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.validating.cases import CaseFile, CaseResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("validate")(validate)


def validate(
    cases: Annotated[list[Path] | None, typer.Argument(help="Case files; the published cases by default.")] = None,
    update: Annotated[Path | None, typer.Option(help="Markdown file whose tables between the marks are replaced.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for cases.csv, README.md and plots (extra plots).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predicted against measured, case by case."""
    from autotune.errors import ProblemError
    from autotune.validating.cases import load_cases, published, try_cases
    from autotune.validating.report import markdown, update_between_marks

    files = [load_cases(path) for path in cases] if cases else published()
    tried = [(file, *try_cases(file)) for file in files]
    for file, priced, unpriced in tried:
        for case in unpriced:
            typer.echo(f"not priced: {file.title}: {case.id}: {case.reason}", err=True)
        if not priced:
            raise ProblemError(f"{file.title}: none of its {len(unpriced)} cases can be priced")
    validated = [(file, priced) for file, priced, _ in tried]
    if update is not None:
        update_between_marks(update, markdown(validated))
    if out is not None:
        _write(out, validated)
    if json:
        typer.echo(_as_json(validated))
        return
    typer.echo(markdown(validated))


def _write(folder: Path, validated: list[tuple[CaseFile, list[CaseResult]]]) -> None:
    import datetime
    from importlib import metadata

    from autotune.validating.report import write_folder

    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    for path in write_folder(folder, validated, date, metadata.version("moe-autotune")):
        typer.echo(f"wrote {path}", err=True)


def _as_json(validated: list[tuple[CaseFile, list[CaseResult]]]) -> str:
    import json

    from autotune.validating.statistics import decisions, summarise

    documents = []
    for file, results in validated:
        rows = [
            {
                "id": r.case.id,
                "named": r.case.named,
                "throughput_error": r.throughput_error,
                "tpot_error": r.tpot_error,
                "ttft_error": r.ttft_error,
            }
            for r in results
        ]
        named = [r for r in results if r.case.named] or results
        chosen = [decision.model_dump() for decision in decisions(results)]
        documents.append({"title": file.title, "cases": rows, "named": summarise(named).model_dump(), "decisions": chosen})
    return json.dumps(documents, indent=2)
