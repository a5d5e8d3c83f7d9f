"""What a file starts: pools of engine instances by their commands, environment, nodes and GPUs; nothing is interpreted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.auditing.settings_file import option_words
from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError


@dataclass(frozen=True, slots=True)
class EngineService:
    """Identical instances of one engine."""

    name: str
    """As the file calls it."""
    text: str
    """Shell text that ends in the engine's command."""
    environment: Mapping[str, str] = field(default_factory=dict)
    role: PoolRole | None = None
    """That the file gives it; none where only the command may tell."""
    nodes: int = 1
    """Of one instance."""
    gpus_per_node: int | None = None
    """None where the file does not say."""
    instances: int = 1
    image: str | None = None
    version: str | None = None
    """Of the engine, where the file says it."""
    at: int = 0
    """Which of the text's engine commands."""
    folder: Path | None = None
    """Where files lie that the command names; none where the text holds them."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole file."""

    title: str
    """What kind of file, as messages call it."""
    services: tuple[EngineService, ...]
    hardware: tuple[str, ...] = ()
    """Catalogue names that the file may mean; empty where it does not say."""
    precision: str | None = None
    """Of the checkpoint, as the file calls it: fp8, fp4, ..."""
    isl_tokens: int | None = None
    """Of the benchmark that the file describes."""
    osl_tokens: int | None = None
    concurrencies: tuple[int, ...] = ()
    alternatives: bool = False
    """The services are ways to start the same model, of which one is taken."""
    remarks: tuple[str, ...] = ()

    def with_variables(self, variables: Mapping[str, str]) -> Manifest:
        """The same with variables set around every command, in place of what the file sets."""
        services = (dataclasses.replace(one, environment={**one.environment, **variables}) for one in self.services)
        return dataclasses.replace(self, services=tuple(services))


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Words of options that a document holds by name, with or without their dashes."""
    held = ((str(name) if str(name).startswith("-") else f"--{name}", value) for name, value in options.items())
    return [word for option, value in held for word in option_words(option, value)]


def whole(value: Any, where: str, least: int = 0) -> int:
    """A count from a document, a number or its text; raises ProblemError for what is none."""
    try:
        found = int(str(value))
    except ValueError as error:
        raise ProblemError(f"{where} needs a whole number, {value!r:.60} was given") from error
    if found < least or isinstance(value, bool):
        raise ProblemError(f"{where} needs a whole number of at least {least}, {value!r:.60} was given")
    return found


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping, empty where there is none; raises ProblemError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProblemError(f"{where} should be a mapping of keys, {value!r:.60} was given")
    return {str(key): inside for key, inside in value.items()}


def listing(value: Any, where: str) -> list[Any]:
    """A list, empty where there is none; raises ProblemError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ProblemError(f"{where} should be a list, {value!r:.60} was given")
    return value


def inner(value: Any, *path: str) -> dict[str, Any]:
    """The mapping under keys of mappings, empty where one is missing; raises ProblemError for what is no mapping."""
    for at, key in enumerate(path):
        value = mapping(value, ".".join(path[:at]) or "the document").get(key)
    return mapping(value, ".".join(path))
