"""Every document that a command reads or prints: its schema and the version of it.

One entry per document; `docs/schemas/NAME-VERSION.json` is its published schema. A published file never changes: whoever
changes a document in a way that its schema shows raises the version here and runs scripts/schemas.py.
"""

from __future__ import annotations

import functools
import importlib
import operator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Published:
    """A document with a published schema."""

    name: str
    version: int
    kinds: tuple[str, ...]
    """Where its types are defined, "module:Class"; several are alternatives."""
    command: str | None = None
    """Command that prints it with --json; None: it is read or written as a file."""
    many: bool = False
    """A list of them."""
    sparse: bool = False
    """Fields without a value are left out of what is printed."""

    @property
    def id(self) -> str:
        return f"autotune/{self.name}/{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}.json"


PRINTED = "autotune.cli.printed"
ENTRIES: tuple[Published, ...] = (
    # files
    Published("deployment", 1, ("autotune.documents.deployment:Deployment",)),
    Published("problem", 1, ("autotune.documents.problem:Problem",)),
    Published("fleet", 1, ("autotune.documents.fleet:FleetProblem",)),
    Published("plan", 2, ("autotune.documents.plan:SearchResult",)),
    Published("service-plan", 2, ("autotune.documents.service_plan:ServiceResult",)),
    Published("hardware", 1, ("cost_models.specs.hardware:HardwareSpec",)),
    Published("calibration", 1, ("cost_models.calibration:Calibration",)),
    Published("engine", 1, ("search_spaces.schema:EngineSpec",)),
    Published("case", 1, ("autotune.validating.cases:CaseFile",)),
    Published("trial", 1, ("autotune.documents.tuned:TrialRecord",)),
    # what commands print
    Published(
        "search", 2, ("autotune.documents.plan:SearchResult", "autotune.documents.service_plan:ServiceResult"), command="search"
    ),
    Published("sweep", 1, ("autotune.documents.sweep:SweepResult",), command="sweep", sparse=True),
    Published("tune", 1, ("autotune.documents.tuned:TuneResult",), command="tune"),
    Published("fleet-result", 1, ("autotune.documents.fleet:FleetResult",), command="fleet"),
    Published(
        "predict",
        1,
        (f"{PRINTED}:PredictedDecode", f"{PRINTED}:PredictedPrefill", f"{PRINTED}:PredictedService"),
        command="predict",
    ),
    Published("compare", 1, ("autotune.report.page.comparing:Comparison",), command="compare"),
    Published("explain", 1, ("autotune.report.asking:Explanation",), command="explain"),
    Published("place", 1, ("autotune.placement.placing:Placement",), command="place"),
    Published("place-sweep", 1, ("autotune.placement.placing:RedundancyChoice",), command="place", many=True),
    Published("validate", 1, (f"{PRINTED}:ValidatedFile",), command="validate", many=True),
    Published("check", 1, ("autotune.auditing.verdict:Verdict",), command="check"),
    Published("sensitivity", 1, ("autotune.auditing.sensitivity:Sensitivity",), command="sensitivity"),
    Published("verify", 1, ("autotune.auditing.verifying:VerifiedPoint",), command="verify", many=True),
    Published("recipe-import", 1, ("autotune.recipes.collecting:ImportedRecipes",), command="recipe import"),
    Published("recipe-compare", 1, ("autotune.recipes.comparing:RecipeComparisons",), command="recipe compare"),
    Published("hw-list", 1, (f"{PRINTED}:HardwareListed",), command="hw list", many=True),
    Published("hw-show", 1, (f"{PRINTED}:HardwareShown",), command="hw show"),
    Published("model-list", 1, (f"{PRINTED}:ModelListed",), command="model list", many=True),
    Published("model-show", 1, (f"{PRINTED}:ModelShown",), command="model show"),
    Published("engine-list", 1, (f"{PRINTED}:EngineListed",), command="engine list", many=True),
    Published("engine-show", 1, (f"{PRINTED}:EngineShown",), command="engine show"),
)


def names() -> tuple[str, ...]:
    """Names of all documents, files first."""
    return tuple(entry.name for entry in ENTRIES)


def find(name: str) -> Published:
    """A document by its name; raises ProblemError with near matches."""
    from autotune.errors import ProblemError
    from cost_models.errors import unknown_name

    found = next((entry for entry in ENTRIES if entry.name == name), None)
    if found is None:
        raise ProblemError(unknown_name("document", name, names()))
    return found


def schema_of(entry: Published) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a document, `$id` says its name and version."""
    from pydantic import TypeAdapter

    kinds = [_kind(where) for where in entry.kinds]
    one: Any = functools.reduce(operator.or_, kinds)
    mode: Literal["validation", "serialization"] = "serialization" if entry.command and not entry.sparse else "validation"
    found = TypeAdapter(list[one] if entry.many else one).json_schema(mode=mode)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": entry.id, **found}


def _kind(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
