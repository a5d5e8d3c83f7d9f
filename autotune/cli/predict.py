"""`autotune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("predict")(predict)


def predict(
    deployment: Annotated[Path, typer.Argument(help="Deployment file (autotune schema deployment).")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict one configuration: throughput, TPOT, breakdown, memory, bottleneck."""
    from autotune.deployment import Deployment
    from autotune.predicting import predict as run
    from cost_models.catalog import read_yaml, validated

    document = validated(Deployment, read_yaml(deployment), str(deployment))
    prediction = run(document)
    if json:
        typer.echo(prediction.model_dump_json(indent=2))
        return
    from autotune.report.tables import prediction_report, show

    show(prediction_report(document, prediction))
