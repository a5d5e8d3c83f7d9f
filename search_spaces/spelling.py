"""Knobs as an engine version spells them: options, fields of documents, environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.schema import EngineSpec, Knob, Value


@dataclass(frozen=True, slots=True)
class Spelled:
    """What a launch script says of a plan's knobs."""

    options: dict[str, Value | dict[str, Any] | None] = field(default_factory=dict)
    """By name: a value, a document, or None for a switch."""
    environment: dict[str, str] = field(default_factory=dict)


def spelled(engine: EngineSpec, version: str, flags: Mapping[str, Value], role: str) -> Spelled:
    """The knobs of a plan as a version takes them, in the order of the engine's document.

    flags : knobs by name. role : prefill, decode or serve. Knobs that the version lacks, that their exporter composes, that a
    knob which is off makes idle, and values that the engine takes by itself are left out.
    """
    found = Spelled()
    for knob in engine.knobs:
        value = flags.get(knob.name, knob.default(version) if knob.emit == "always" else None)
        spelling = knob.spelling(version)
        if value is None or spelling is None or not _written(knob, value, flags, role):
            continue
        if spelling.value not in (None, value):
            continue
        if spelling.kind == "env":
            found.environment[spelling.name] = str(int(value)) if isinstance(value, bool) else str(value)
        elif "." in spelling.name:
            name, _, path = spelling.name.partition(".")
            document = found.options.setdefault(name, {})
            assert isinstance(document, dict)
            document[path] = value
        elif spelling.value is None and not isinstance(value, bool):
            found.options[spelling.name] = value
        elif value or spelling.off:
            found.options[spelling.name if value else str(spelling.off)] = None
    return found


def _written(knob: Knob, value: Value, flags: Mapping[str, Value], role: str) -> bool:
    idle = knob.needs is not None and not flags.get(knob.needs)
    return knob.emit != "by_exporter" and role in knob.roles and not idle and not _among(value, knob.unwritten)


def _among(value: Value, values: tuple[Value, ...]) -> bool:
    """Equal and of the same kind: False is no 0."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)
