"""A file or folder as the documents in it, within limits; what is a template still is said, with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import ProblemError
from cost_models.errors import InputError
from cost_models.reading import Limit, parse_yaml_documents, read_text

DOCUMENTS = Limit(200, "documents in one file")
HELM = re.compile(
    r"\{\{-?\s*(?:\.(?:Values|Release|Chart|Capabilities|Files)\b|(?:include|template|define|if|range|with|end|else|toYaml|tpl|block)\b|/\*|\$)"
)
ANY_TEMPLATE = re.compile(r"\{\{|\{%")


@dataclass(frozen=True, slots=True)
class Source:
    """What was handed in."""

    path: Path
    documents: tuple[dict[str, Any], ...]


def documents_of(path: Path) -> tuple[dict[str, Any], ...]:
    """Mappings of a YAML or JSON file, of which it may hold several.

    Raises InputError or ProblemError for what is no YAML, too large, a template that was not rendered, or holds no mapping.
    """
    return documents_in(read_text(path, pipe=True), path)


def documents_in(text: str, where: object) -> tuple[dict[str, Any], ...]:
    """As documents_of, of text."""
    _check_rendered(text, HELM, where)
    try:
        found = parse_yaml_documents(text, where, DOCUMENTS)
    except InputError:
        _check_rendered(text, ANY_TEMPLATE, where)
        raise
    return tuple(flat for document in found if isinstance(document, dict) for flat in _listed(document))


def mappings_in(data: Any) -> Iterator[dict[str, Any]]:
    """Every mapping anywhere in documents, in no order that means anything."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def annotated(data: Any, key: str) -> list[str]:
    """Values of a key anywhere in documents."""
    return [str(found[key]) for found in mappings_in(data) if key in found]


def _listed(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of a Kubernetes List, else the document."""
    items = document.get("items")
    if document.get("kind") == "List" and isinstance(items, list):
        return [item for item in items if isinstance(item, dict)]
    return [document]


def _check_rendered(text: str, pattern: re.Pattern[str], where: object) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.lstrip().startswith("#") and pattern.search(line):
            raise ProblemError(
                f"{where}: line {number} is a template that was not rendered ({line.strip()[:60]}); "
                "render it first (helm template RELEASE CHART -f values.yaml > rendered.yaml) and give the result"
            )
