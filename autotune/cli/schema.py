"""`autotune schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("schema")(schema)


def schema(
    document: Annotated[
        str, typer.Argument(help="deployment, problem, fleet, plan, service-plan, hardware, calibration, engine or case.")
    ],
) -> None:
    """Print the JSON schema of a document."""
    from autotune.documents.deployment import Deployment
    from autotune.documents.fleet import FleetProblem
    from autotune.documents.plan import SearchResult
    from autotune.documents.problem import Problem
    from autotune.documents.service_plan import ServiceResult
    from autotune.errors import ProblemError
    from autotune.validating.cases import CaseFile
    from cost_models.calibration import Calibration
    from cost_models.errors import unknown_name
    from cost_models.specs.base import Spec
    from cost_models.specs.hardware import HardwareSpec
    from search_spaces.schema import EngineSpec

    documents: dict[str, type[Spec]] = {
        "deployment": Deployment,
        "problem": Problem,
        "fleet": FleetProblem,
        "plan": SearchResult,
        "service-plan": ServiceResult,
        "hardware": HardwareSpec,
        "calibration": Calibration,
        "engine": EngineSpec,
        "case": CaseFile,
    }
    if document not in documents:
        raise ProblemError(unknown_name("document", document, documents))
    typer.echo(json.dumps(documents[document].model_json_schema(), indent=2))
