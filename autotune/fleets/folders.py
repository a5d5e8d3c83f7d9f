"""A fleet's folder: the plan, and a deployment with its scripts for every service."""

from __future__ import annotations

import re
from pathlib import Path

from autotune.documents.fleet import FleetPlacement, FleetResult
from autotune.documents.results import dump_yaml
from autotune.errors import ExportError
from autotune.exporters import export
from autotune.files import write_whole

EXECUTABLE = 0o755


def write_fleet(folder: Path, result: FleetResult) -> list[str]:
    """Write fleet.yaml, and <model>_<cluster>_<gpus>/ for each service; returns why there are no scripts, where there are none.

    Raises OutputError when the folder cannot be written.
    """
    notes = []
    for placement in result.placements:
        inside = folder / name_of(placement)
        write_whole(inside / "deployment.yaml", dump_yaml(placement.deployment.model_dump(mode="json", exclude_defaults=True)))
        try:
            scripts = export(placement.deployment)
        except ExportError as error:
            notes.append(f"{inside.name}: {error}")
            continue
        for script in scripts:
            write_whole(inside / script.name, script.text)
            if script.executable:
                (inside / script.name).chmod(EXECUTABLE)
    write_whole(folder / "fleet.yaml", dump_yaml(result.model_dump(mode="json")))
    return notes


def name_of(placement: FleetPlacement) -> str:
    """Of a service's folder."""
    parts = (placement.model, placement.cluster, f"{placement.gpus_each}-gpus")
    return "_".join(re.sub(r"[^a-zA-Z0-9.-]+", "-", part) for part in parts)
