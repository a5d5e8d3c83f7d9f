"""Results of a search as files: plan.yaml written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autotune.documents.candidates import Candidates
from autotune.documents.plan import SearchResult
from autotune.documents.service_plan import ServiceResult
from autotune.errors import ProblemError
from cost_models.catalog import read_yaml, validated
from cost_models.reading import RESULT, is_folder, parse_json, read_text

Result = SearchResult | ServiceResult
SERVICE_FORMAT = ServiceResult.model_fields["format"].default
SEARCH_FORMAT = SearchResult.model_fields["format"].default


def dump_yaml(data: Any) -> str:
    """Plain data as block YAML, keys in order."""
    text: str = yaml.dump(data, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=120)
    return text


CANDIDATES = "candidates.json"


def load_candidates(folder: Path) -> Candidates | None:
    """What a search weighed, from its run folder; None in folders of older versions and of services."""
    file = folder / CANDIDATES
    if not file.exists():
        return None
    return validated(Candidates, parse_json(read_text(file, RESULT), file), str(file))


def is_plan(data: Any) -> bool:
    """Whether a document is what a search writes as plan.yaml."""
    return isinstance(data, dict) and data.get("format") in (SERVICE_FORMAT, SEARCH_FORMAT)


def load_plans(path: Path) -> Result:
    """plan.yaml, or the run folder that holds it."""
    file = path / "plan.yaml" if is_folder(path) else path
    data = read_yaml(file)
    if not isinstance(data, dict) or "format" not in data:
        raise ProblemError(f"{file}: no plan of `autotune search`: it has no `format`")
    if data["format"] == SERVICE_FORMAT:
        return validated(ServiceResult, data, str(file))
    if data["format"] == SEARCH_FORMAT:
        return validated(SearchResult, data, str(file))
    raise ProblemError(
        f"{file}: format {str(data['format'])[:40]!r} of another version of autotune, this one reads {SEARCH_FORMAT} and "
        f"{SERVICE_FORMAT}; search again with the problem in its run.json"
    )
