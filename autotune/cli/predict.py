"""`autotune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.documents.deployment import Deployment


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("predict")(predict)


def predict(
    deployment: Annotated[Path, typer.Argument(help="Deployment file (autotune schema deployment).")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict one configuration: throughput, TPOT, breakdown, memory, bottleneck."""
    from autotune.documents.deployment import Deployment
    from autotune.predicting.step import predict as run
    from cost_models.catalog import read_yaml, validated

    document = validated(Deployment, read_yaml(deployment), str(deployment))
    if document.phase == "serve":
        _service(document, json)
        return
    prediction = run(document)
    if json:
        typer.echo(prediction.model_dump_json(indent=2))
        return
    from autotune.report.tables import prediction_report, show

    show(prediction_report(document, prediction))


def _service(document: Deployment, json: bool) -> None:
    from autotune.report.tables import service_report, show
    from autotune.serving.predicting import predict_service

    prediction = predict_service(document)
    if json:
        typer.echo(prediction.model_dump_json(indent=2))
        return
    show(service_report(document, prediction))
