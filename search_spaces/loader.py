"""Load packaged engine documents."""

from __future__ import annotations

import functools
from importlib import resources

from cost_models.catalog import validated
from cost_models.errors import CatalogError, unknown_name
from cost_models.reading import parse_yaml
from search_spaces.schema import EngineSpec


def engine_names() -> list[str]:
    """Engines that have a document."""
    files = resources.files("search_spaces").joinpath("data").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


@functools.cache
def load_engine(name: str) -> EngineSpec:
    """An engine by name; raises CatalogError with near matches."""
    if name not in engine_names():
        raise CatalogError(unknown_name("engine", name, engine_names()))
    text = resources.files("search_spaces").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
    return validated(EngineSpec, parse_yaml(text, f"{name}.yaml"), f"{name}.yaml")


def resolve_version(engine: EngineSpec, version: str | None) -> str:
    """A supported version: the newest when none is given; 0.33.0 means 0.33.

    Raises CatalogError naming the supported ones: a version in between may lack a flag.
    """
    if version is None:
        return engine.newest
    for known in engine.versions:
        if version in (known.version, known.release):
            return known.version
    raise CatalogError(unknown_name(f"{engine.name} version", version, [v.version for v in engine.versions]))
