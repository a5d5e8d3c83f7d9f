"""Which releases of an engine have a model's architecture in their registry, read from the engines' own packages."""

from __future__ import annotations

import functools
from importlib import resources

from pydantic import Field

from cost_models.catalog import validated
from cost_models.reading import parse_yaml
from cost_models.releases import version_key
from cost_models.specs.base import Spec


class ArchitectureReleases(Spec):
    """An engine's architectures by release."""

    read: tuple[str, str]
    """First and last release that was looked at."""
    releases: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Architecture -> the first release that has it, and the last where a later one has not; empty where none has."""

    def without(self, architecture: str, release: str) -> str | None:
        """Which releases have it instead, in words; none where this one has, or where it was not looked at."""
        key = version_key(release)
        if architecture not in self.releases or key < version_key(self.read[0]):
            return None
        span = self.releases[architecture]
        if not span:
            return f"none to {self.read[1]} has it"
        if key < version_key(span[0]):
            return f"{span[0]} is the first that has it"
        if len(span) > 1 and version_key(span[1]) < key <= version_key(self.read[1]):
            return f"{span[1]} is the last that has it"
        return None


@functools.cache
def architecture_releases(engine: str) -> ArchitectureReleases | None:
    """The table of an engine; none where none was read."""
    file = resources.files("search_spaces").joinpath("data", "architectures", f"{engine}.yaml")
    if not file.is_file():
        return None
    return validated(ArchitectureReleases, parse_yaml(file.read_text(encoding="utf-8"), file.name), file.name)
