"""`autotune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from autotune.predicting.uncertainty import uncertainty
    from cost_models.catalog import read_yaml, validated

    document = validated(Deployment, read_yaml(deployment), str(deployment))
    if document.phase == "serve":
        _service(document, json)
        return
    prediction = run(document)
    if json:
        typer.echo(_as_json({**prediction.model_dump(mode="json"), "intervals": uncertainty(prediction).model_dump(mode="json")}))
        return
    from autotune.report.printing import show
    from autotune.report.tables import prediction_report

    show(prediction_report(document, prediction))


def _service(document: Deployment, json: bool) -> None:
    from autotune.report.printing import show
    from autotune.report.tables import service_report
    from autotune.serving.full import full_steps
    from autotune.serving.predicting import predict_service

    prediction = predict_service(document)
    if json:
        steps = {phase: step.model_dump(mode="json") for phase, step in full_steps(document, prediction.decode_slots).items()}
        typer.echo(_as_json({**prediction.model_dump(mode="json"), "steps": steps}))
        return
    show(service_report(document, prediction))


def _as_json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=2)
