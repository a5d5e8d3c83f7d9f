"""What an engine's options do to a verdict: nothing, something that is modelled, or something that is not (data/effects)."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from importlib import resources
from typing import Literal

from pydantic import Field

from cost_models.catalog import validated
from cost_models.reading import parse_yaml
from cost_models.specs.base import Spec

Part = Literal["start", "memory", "speed", "waiting"]
"""Of a verdict: whether it starts, what fits, how long a step takes, how long prompts wait."""


class Change(Spec):
    """Options that change a verdict in a way that is not modelled."""

    options: tuple[str, ...] = Field(min_length=1)
    """Names or patterns of them."""
    what: str
    affects: tuple[Part, ...] = Field(min_length=1)
    neutral: tuple[str, ...] = ()
    """Values, or patterns of them, that change nothing."""
    values: tuple[str, ...] = ()
    """Values that change something, where the others do not; empty: all but the neutral ones."""
    only_for: Literal["sliding_windows", "nvfp4_experts"] | None = None
    """Models that it matters for alone: those whose layers forget, or whose experts are stored so."""

    def touches(self, value: str | None) -> bool:
        """Whether a value changes anything; none: a switch that is on."""
        said = (value or "").strip().lower()
        if self.values:
            return any(said == other.lower() for other in self.values)
        return not any(fnmatchcase(said, other.lower()) for other in self.neutral)


class Effects(Spec):
    """The classes of an engine's options. An option belongs to the first that names it: read, changes, harmless."""

    format: Literal["autotune-option-effects/1"] = "autotune-option-effects/1"
    engine: str
    read: tuple[str, ...]
    """What the command reader understands beside knobs."""
    changes: tuple[Change, ...]
    harmless: tuple[str, ...]
    """Addresses, logs, what clients see: no part of a verdict."""

    def change(self, name: str) -> Change | None:
        """What an option changes that is not modelled; none for the others."""
        if name in self.read:
            return None
        return next((change for change in self.changes if _named(name, change.options)), None)

    def classified(self, name: str) -> bool:
        """Whether an option is in any class."""
        return name in self.read or self.change(name) is not None or _named(name, self.harmless)


@functools.cache
def load_effects(engine: str) -> Effects:
    """Classes of the options of a command line (vllm or sglang)."""
    text = resources.files("search_spaces").joinpath("data", "effects", f"{engine}.yaml").read_text(encoding="utf-8")
    return validated(Effects, parse_yaml(text, f"effects/{engine}.yaml"), f"effects/{engine}.yaml")


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
