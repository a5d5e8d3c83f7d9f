"""Load packaged engine documents."""

from __future__ import annotations

import functools
import re
from importlib import resources

from cost_models.catalog import validated
from cost_models.errors import CatalogError, unknown_name
from cost_models.reading import parse_yaml
from cost_models.releases import version_key
from search_spaces.schema import EngineSpec

DEFAULT_OF = re.compile(r"^default_of: \[(.*)\]$", re.MULTILINE)
VERSION = re.compile(r"^\d+(\.\w+)*$")


def engine_names() -> list[str]:
    """Engines that have a document."""
    files = resources.files("search_spaces").joinpath("data").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


@functools.cache
def default_engine_of(vendor: str) -> str | None:
    """The engine taken for a vendor's hardware when none is named; documents are looked through, not parsed."""
    for name in engine_names():
        head = resources.files("search_spaces").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
        found = DEFAULT_OF.search(head)
        if found and vendor in [part.strip() for part in found[1].split(",")]:
            return name
    return None


@functools.cache
def load_engine(name: str) -> EngineSpec:
    """An engine by name; raises CatalogError with near matches."""
    if name not in engine_names():
        raise CatalogError(unknown_name("engine", name, engine_names()))
    text = resources.files("search_spaces").joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
    return validated(EngineSpec, parse_yaml(text, f"{name}.yaml"), f"{name}.yaml")


def resolve_version(engine: EngineSpec, version: str | None) -> str:
    """A supported version: the newest when none is given; 0.33.0 means 0.33, and one between two known ones the older of them.

    Raises CatalogError naming the supported ones for what is older or newer than all of them.
    """
    if version is None:
        return engine.newest
    for known in engine.versions:
        if version in (known.version, known.release):
            return known.version
    below = [known.version for known in engine.versions if version_key(known.version) <= version_key(version)]
    newest = version_key(engine.newest)
    if VERSION.match(version) and below and version_key(version)[: len(newest)] <= newest:
        return below[-1]
    raise CatalogError(unknown_name(f"{engine.name} version", version, [v.version for v in engine.versions]))


def version_notes(engine: EngineSpec, version: str | None) -> tuple[str, ...]:
    """Which release's options stand for a version that has no list of its own, and what its times were measured with."""
    found = resolve_version(engine, version)
    known = next(v for v in engine.versions if v.version == found)
    notes = []
    listed = engine.options_of(found)
    if listed and (version not in (None, known.version, known.release) or known.options_of):
        asked = found if known.options_of else version
        notes.append(f"{engine.title} {asked} has no list of options here: that of {listed} was used")
    if known.priced_as:
        notes.append(f"{engine.title} {found} is priced with times of {known.priced_as}")
    return tuple(notes)
