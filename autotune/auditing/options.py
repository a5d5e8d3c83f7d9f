"""An engine's command line against the options of the version that is to run it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.auditing.shell import Invocation
from autotune.errors import ProblemError
from search_spaces.loader import engine_names, load_engine, resolve_version
from search_spaces.options import Option, OptionList, load_options, releases_with
from search_spaces.schema import EngineSpec, Renamed, Spelling

NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
UNSET = re.compile(r"(:\s*)\$(?:\{\w+\}|\w+)")
"""A value in a document that a variable from outside gives."""
DOCUMENTS = ("--speculative-config", "--eplb-config", "--kv-transfer-config", "--additional-config", "--compilation-config")
VARIABLES = {"vllm": ("VLLM_",), "sglang": ("SGLANG_", "SGL_")}
"""How an engine's own variables begin."""


@dataclass(frozen=True, slots=True)
class Command:
    """An engine's command line, split."""

    engine: EngineSpec
    version: str
    model: str
    options: Mapping[str, str | None]
    """By the version's own name; none for a switch."""
    environment: Mapping[str, str]
    conflicts: tuple[str, ...]
    """Options that the version does not have: it would not start."""
    remarks: tuple[str, ...]

    def given(self, name: str) -> bool:
        """Whether an option or switch is there."""
        return name in self.options

    def text(self, name: str) -> str | None:
        """An option's value."""
        return self.options.get(name)

    def said(self, spelling: Spelling) -> str | None:
        """What the command says of a knob, as text; none where it says nothing, empty for a switch that is on.

        A variable that the version does not read has no effect.
        """
        if spelling.kind == "env":
            return self.environment.get(spelling.name) if spelling.exists_in(self.version) else None
        if spelling.off is not None and spelling.off in self.options:
            return "false"
        name, _, field = spelling.name.partition(".")
        if not field:
            return (self.options[name] or "") if name in self.options else None
        value = self.document(name).get(field)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def document(self, name: str) -> dict[str, Any]:
        """A JSON option; empty where it is not there. Raises ProblemError for what is no JSON."""
        return _document(name, self.options.get(name))

    def count(self, name: str) -> int:
        """A whole number of at least 1, which is also the default."""
        text = self.options.get(name)
        if text is None:
            return 1
        if not text.isdigit() or int(text) < 1:
            raise ProblemError(f"{name} needs a whole number of at least 1, '{text}' was given")
        return int(text)


def engine_for(command_line: str, vendor: str) -> EngineSpec:
    """The engine that takes these options on a vendor's hardware; raises ProblemError where none does."""
    for name in engine_names():
        engine = load_engine(name)
        if engine.command_line == command_line and vendor in engine.vendors:
            return engine
    raise ProblemError(f"{command_line} is not known on hardware of {vendor}")


def split_options(invocation: Invocation, engine: EngineSpec, version: str | None) -> Command:
    """The options of a command by their names in a version.

    Raises ProblemError for options that no version has, that are given twice, or that lack their value.
    """
    known = resolve_version(engine, version)
    release = next(v.release for v in engine.versions if v.version == known)
    listed = load_options(invocation.engine, release)
    options: dict[str, str | None] = {}
    conflicts: list[str] = []
    positional: list[str] = []
    words = invocation.words
    at = 0
    while at < len(words):
        name, joined, value = words[at].partition("=")
        at += 1
        if not name.startswith("-"):
            positional.append(name)
            continue
        base, _, path = name.partition(".")
        option, taken, preset = _find(base, engine, listed, conflicts)
        taken, _, inside = taken.partition(".")  # what became part of a document
        path = inside or path
        if option.takes_value and preset is None:
            taken_words = [value] if joined else _values(words[at:])
            at += 0 if joined else len(taken_words)
            if not taken_words:
                raise ProblemError(f"{name} needs a value")
            preset = " ".join(taken_words)
        if path:
            preset = _nested(taken, options.get(taken), path, preset)
        elif taken in options:
            raise ProblemError(f"{name} is given twice; the engine would take the last, which may not be what was meant")
        options[taken] = preset
    for name in DOCUMENTS:
        if str(options.get(name) or "").startswith("{"):
            _document(name, options[name])  # says what is wrong with it
    model = (
        (positional[0] if positional and engine.command_line == "vllm" else None)
        or options.get("--model-path")
        or options.get("--model")
    )
    if not model:
        raise ProblemError(f"the {engine.title} command names no model")
    remarks = _unknown_variables(invocation, engine, known, listed)
    return Command(engine, known, model, options, invocation.environment, tuple(conflicts), tuple(remarks))


def _find(name: str, engine: EngineSpec, listed: OptionList, conflicts: list[str]) -> tuple[Option, str, str | None]:
    """(option, its name in this version, value it stands for by itself); notes what the version does not have."""
    name = name.replace("_", "-") if engine.command_line == "vllm" else name
    if option := listed.find_begun(name):
        return option, option.canonical(name), None
    renamed = next((r for r in engine.renamed if r.name == name), None)
    had = releases_with(listed.engine, name)
    if not had:
        every = [flag for option in listed.options for flag in option.flags]
        near = difflib.get_close_matches(name, every, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; see {engine.command_line} --help"
        raise ProblemError(f"no release of {engine.title} that is known here has an option {name}{hint}")
    conflicts.append(_gone(name, engine, listed.release, had, renamed))
    option = load_options(listed.engine, had[-1]).find(name)
    assert option is not None
    if renamed is None:
        return option, option.canonical(name), None
    return option, renamed.now, renamed.value


def _gone(name: str, engine: EngineSpec, release: str, had: Sequence[str], renamed: Renamed | None) -> str:
    span = f"release {had[0]} has" if len(had) == 1 else f"releases {had[0]} to {had[-1]} have"
    instead = f"; now {renamed.now}{f' {renamed.value}' if renamed.value else ''}" if renamed else ""
    return f"{engine.title} {release} has no {name} ({span} it{instead})"


def _values(words: Sequence[str]) -> list[str]:
    """The words that belong to an option: one, or a list of numbers."""
    if not words or (words[0].startswith("-") and not NUMBER.match(words[0])):
        return []
    end = 1
    while NUMBER.match(words[0]) and end < len(words) and NUMBER.match(words[end]):
        end += 1
    return list(words[:end])


def _nested(name: str, before: str | None, path: str, value: str | None) -> str:
    """`--option.a.b value` added to the option's document."""
    document = _document(name, before)
    *parents, last = path.split(".")
    inside = document
    for parent in parents:
        inside = inside.setdefault(parent, {})
    try:
        inside[last] = json.loads(value) if value is not None else True
    except ValueError:
        inside[last] = value
    return json.dumps(document)


def _document(name: str, text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(UNSET.sub(r"\1null", text))
    except ValueError as error:
        raise ProblemError(f"{name}: not JSON ({error}): {text[:80]}") from error
    return found if isinstance(found, dict) else {}


def _unknown_variables(invocation: Invocation, engine: EngineSpec, version: str, listed: OptionList) -> list[str]:
    """The engine's own variables that the release does not read."""
    own = tuple(name for name in invocation.environment if name.startswith(VARIABLES[invocation.engine]))
    return [
        f"{engine.title} {version} does not read {name}: it has no effect"
        for name in own
        if name not in listed.env and not name.startswith("VLLM_ASCEND_")
    ]
