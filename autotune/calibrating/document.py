"""A new calibration document from fits on top of an existing one, and what it would change."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.documents.deployment import CalibrationChoice, Deployment
from autotune.documents.results import dump_yaml
from autotune.files import write_whole
from autotune.validating.cases import predict_any, published
from cost_models.calibration import Entry
from cost_models.catalog import load_hardware, raw_calibration
from cost_models.errors import AutotuneError
from search_spaces.loader import engine_names


@dataclass(frozen=True, slots=True)
class CaseChange:
    """Predictions of one published case with the old and the new document."""

    case: str
    before: float
    after: float

    @property
    def relative(self) -> float:
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True)
class PlanChange:
    """Best decode layout of the default problem with the old and the new document."""

    before: str
    after: str
    rate_before: float
    rate_after: float


def new_document(
    base: str, entries: Sequence[tuple[str, str, Entry]], *, name: str, gpu: str, engine: str, date: str
) -> dict[str, Any]:
    """A raw document: the shipped one as written, with new (family, variant, entry) in place of its own.

    What the base inherits stays inherited. A base shared by several GPUs is inherited for this one, and
    what it measured on another GPU reads as transferred. Refitting a shipped document from the same
    data therefore gives the same document.
    """
    raw = raw_calibration(base)
    if raw["applies_to"]["gpus"] != [gpu]:
        raw = {
            "format": raw["format"],
            "title": f"{gpu} with {engine} kernels",
            "inherits": base,
            "inherited_status": "transferred",
        }
    families = {family: dict(variants) for family, variants in raw.get("families", {}).items()}
    for family, variant, entry in entries:
        families.setdefault(family, {})[variant] = entry.model_dump(mode="json", exclude_none=True)
    return {**raw, "id": name, "applies_to": {"gpus": [gpu], "engine": engine}, "date": date, "families": families}


def write_document(document: dict[str, Any], path: Path) -> None:
    """The document as YAML; an existing calibration is replaced whole or not at all."""
    write_whole(path, dump_yaml(document))


def changes(document: dict[str, Any]) -> list[CaseChange]:
    """Tokens/s/GPU of every published case on the document's GPUs and engine, before and after."""
    with as_file(document) as path:
        found = []
        for case in (case for file in published() for case in file.cases):
            if _prices(document, case.deployment):
                swapped = case.deployment.model_copy(update={"calibration": CalibrationChoice(file=str(path))})
                before, after = (predict_any(d).tokens_per_s_per_gpu for d in (case.deployment, swapped))
                found.append(CaseChange(case.id, before, after))
    return found


def plan_change(document: dict[str, Any], hardware: str, engine: str) -> PlanChange | None:
    """What `autotune search --hw HARDWARE` would choose, before and after; none where the engine has no search."""
    from autotune.documents.problem import Problem
    from autotune.searching.pools import search

    if engine not in engine_names():
        return None
    with as_file(document) as path:
        choices = (CalibrationChoice(), CalibrationChoice(file=str(path)))
        try:
            before, after = (
                search(Problem(hardware=hardware, engine=engine, calibration=choice, trials=0, top_k=1)).best
                for choice in choices
            )
        except AutotuneError:
            return None
    rates = (before.prediction.tokens_per_s_per_gpu, after.prediction.tokens_per_s_per_gpu)
    return PlanChange(before.label, after.label, *rates)


@contextmanager
def as_file(document: dict[str, Any]) -> Iterator[Path]:
    """The document under a name of its own, gone when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.yaml"
        write_document(document, path)
        yield path


def _prices(document: dict[str, Any], deployment: Deployment) -> bool:
    gpu = load_hardware(deployment.hardware).gpu.name
    engine = deployment.calibration.engine or deployment.engine.name
    applies = document["applies_to"]
    return gpu in applies["gpus"] and engine == applies["engine"]
