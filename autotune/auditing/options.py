"""An engine's command line against the options of the version that is to run it."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.auditing.settings_file import with_options_of_file
from autotune.auditing.shell import Invocation
from autotune.auditing.wrappers import DYNAMO_OPTIONS, WRAPPERS, Wrapped
from autotune.errors import ProblemError
from cost_models.errors import InputError
from cost_models.reading import parse_json, reading
from cost_models.releases import version_key
from search_spaces.loader import engine_names, load_engine, resolve_version, version_notes
from search_spaces.options import Option, OptionList, load_options, releases_with
from search_spaces.schema import EngineSpec, Renamed, Spelling

NUMBER = re.compile(r"^-?\d+(\.\d+)?$")
UNSET = re.compile(r"(:\s*)\$(?:\{\w+\}|\w+)")
"""A value in a document that a variable from outside gives."""
DOCUMENTS = ("--speculative-config", "--eplb-config", "--kv-transfer-config", "--additional-config", "--compilation-config")
HUMAN = re.compile(r"^(-?\d+(?:\.\d+)?)([kmgtKMGT]?)(i?)$")
UNITS = ("", "k", "m", "g", "t")
CHOICES_SHOWN = 8
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
    """Options that the version does not have, and values that it does not take: it would not start."""
    remarks: tuple[str, ...]
    role: str | None = None
    """That the program around the engine gives it."""

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
        if not field or spelling.name in self.options:
            name = spelling.name
            return (self.options[name] or spelling.value or "") if name in self.options else None
        value = self.document(name).get(field)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def document(self, name: str) -> dict[str, Any]:
        """A JSON option; empty where it is not there. Raises ProblemError for what is no JSON."""
        return _document(name, self.options.get(name))

    def count(self, name: str) -> int:
        """A whole number of at least 1, which is also the default."""
        if (self.options.get(name) or "").startswith("$"):
            raise ProblemError(
                f"{name} needs a whole number of at least 1, '{self.options[name]}' was given (--set NAME=VALUE says what a "
                "script takes from outside)"
            )
        return self.whole(name, least=1) or 1

    def whole(self, name: str, least: int = 0) -> int | None:
        """A whole number as both engines' parsers read it (16k, 1.5M, 4Ki); none where it is not given, or left to the engine."""
        text = self.options.get(name)
        if text is None or text.lower() in ("", "auto", "-1") or text.startswith("$"):  # see unmodelled.py for what is not said
            return None
        value = whole_number(text)
        if value is None or value < least:
            raise ProblemError(f"{name} needs a whole number of at least {least}, '{text}' was given")
        return value

    def largest(self, name: str) -> int | None:
        """The largest of a list of whole numbers; none where it is not given."""
        text = self.options.get(name)
        if text is None:
            return None
        values = [whole_number(part) for part in re.split(r"[\s,\[\]]+", text) if part]
        if not values or any(value is None for value in values):
            raise ProblemError(f"{name} needs whole numbers, '{text}' was given")
        return max(value for value in values if value is not None)


def whole_number(text: str) -> int | None:
    """A number with a suffix as both engines read it: 2k is 2000, 2K is 2048; none for what is no whole number."""
    found = HUMAN.match(text.strip())
    if found is None:
        return None
    number, unit, binary = found.groups()
    value = float(number) * (1024 if binary or unit.isupper() else 1000) ** UNITS.index(unit.lower())
    return int(value) if math.isfinite(value) and value == int(value) else None


def engine_for(command_line: str, vendor: str) -> EngineSpec:
    """The engine that takes these options on a vendor's hardware; raises ProblemError where none does."""
    for name in engine_names():
        engine = load_engine(name)
        if engine.command_line == command_line and vendor in engine.vendors:
            return engine
    raise ProblemError(f"{command_line} is not known on hardware of {vendor}")


def split_options(invocation: Invocation, engine: EngineSpec, version: str | None, folder: Path | None = None) -> Command:
    """The options of a command by their names in a version.

    folder : where the command's files lie.

    Raises ProblemError for options that no version has, that are given twice, or that lack their value.
    """
    if engine.command_line == "trtllm":
        from autotune.auditing.trtllm import split_settings

        return split_settings(invocation, engine, version, folder)
    words = (
        with_options_of_file(invocation.words, invocation.files, folder) if engine.command_line == "vllm" else invocation.words
    )
    split, known = _split(invocation, engine, version, words)
    options = split.merged()
    for name in DOCUMENTS:
        if str(options.get(name) or "").startswith("{"):
            _document(name, options[name])  # says what is wrong with it
    model = (
        (split.positional[0] if split.positional and engine.command_line == "vllm" else None)
        or options.get("--model-path")
        or options.get("--model")
    )
    if not model:
        raise ProblemError(f"the {engine.title} command names no model")
    remarks = [
        *invocation.remarks,
        *split.remarks,
        *version_notes(engine, version),
        *_unknown_variables(invocation, engine, known, split.listed),
    ]
    role = next((split.wrapped[name] for name in split.wrapped if split.wrapped[name]), None)
    return Command(engine, known, model, options, invocation.environment, tuple(split.conflicts), tuple(remarks), role)


def _split(invocation: Invocation, engine: EngineSpec, version: str | None, words: Sequence[str]) -> tuple[_Split, str]:
    """(options, version); without a version it is said which release has all of the options, where the newest has not."""
    wrapper = WRAPPERS.get(invocation.wrapper or "", {})

    def of(known: str) -> _Split:
        listed = load_options(invocation.engine, engine.release(known))
        split = _Split(engine, listed, wrapper, _newer_list(invocation.engine, engine, version, known))
        split.read(words)
        return split

    known = resolve_version(engine, version)
    split = of(known)
    older = reversed(engine.versions[:-1]) if version is None and split.gone else ()
    if fitting := next((v for v in older if v.commands and not of(v.version).gone), None):
        split.remarks.append(
            f"no version is given, so the newest known is judged; {engine.title} {fitting.release} has all of its options "
            f"(--engine-version {fitting.version})"
        )
    return split, known


def _newer_list(command_line: str, engine: EngineSpec, version: str | None, known: str) -> OptionList | None:
    """The list of the next known release, where the one asked for is newer than that whose list stands for it."""
    later = [v for v in engine.versions if version_key(v.version) > version_key(known) and v.commands]
    exact = version in (None, known, engine.release(known))
    if exact or not later or version_key(str(version)) < version_key(engine.release(known)):
        return None
    return load_options(command_line, engine.release(later[0].version))


@dataclass(slots=True)
class _Split:
    """A command line on its way to options by name."""

    engine: EngineSpec
    listed: OptionList
    wrapper: Mapping[str, Wrapped]
    newer: OptionList | None = None
    """The list after this one, of a release that lies between the two."""
    options: dict[str, str | None] = field(default_factory=dict)
    dotted: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Documents of `--option.field value`."""
    positional: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Options that the release does not have."""
    remarks: list[str] = field(default_factory=list)
    wrapped: dict[str, str | None] = field(default_factory=dict)
    """Options of a program around the engine, with the role that they give it."""

    def read(self, words: Sequence[str]) -> None:
        """Take words one option at a time."""
        at = 0
        while at < len(words):
            at = self._option(words, at) if words[at].startswith("-") else self._positional(words, at)

    def _positional(self, words: Sequence[str], at: int) -> int:
        self.positional.append(words[at])
        return at + 1

    def _option(self, words: Sequence[str], at: int) -> int:
        """Read one option; the position after it."""
        name, joined, value = words[at].partition("=")
        following = words[at + 1 :]
        base, _, path = name.partition(".")
        if base.startswith("-O") and self.engine.command_line == "vllm":  # -O3, -O 3: an alias of the parser's own
            levels = self.listed.find("--optimization-level") is not None
            base, path, joined, value = _optimization(base, path, joined, value, following, levels)
        if base in self.wrapper or (self.wrapper and base.startswith(DYNAMO_OPTIONS)):
            return at + 1 + self._around(base, bool(joined), following)
        spelled = base.replace("_", "-") if self.engine.command_line == "vllm" else base
        option, taken, preset = self._between(spelled) or self._found(spelled)
        taken, _, inside = taken.partition(".")  # what became part of a document
        path, used = inside or path, 0
        if option.takes_value and preset is None:
            given = [value] if joined else _values(following, option)
            used = 0 if joined else len(given)
            if not given:
                raise ProblemError(f"{name} needs a value")
            preset = " ".join(given)
            if not path:
                self._check_choice(name, option, given)
        if path:
            _put(self.dotted.setdefault(taken, {}), path, preset)
        elif taken in self.options:
            raise ProblemError(f"{name} is given twice; the engine would take the last, which may not be what was meant")
        else:
            self.options[taken] = preset
        return at + 1 + used

    def _found(self, name: str) -> tuple[Option, str, str | None]:
        """(option, its name in this version, value it stands for by itself); notes what the version does not have."""
        if option := self.listed.find_begun(name):
            return option, option.canonical(name), None
        renamed = next((r for r in self.engine.renamed if r.name == name), None)
        had = releases_with(self.listed.engine, name)
        if not had:
            every = [flag for option in self.listed.options for flag in option.flags]
            near = difflib.get_close_matches(name, every, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; see {self.engine.command_line} --help"
            raise ProblemError(f"no release of {self.engine.title} that is known here has an option {name}{hint}")
        self.gone.append(name)
        self.conflicts.append(_gone(name, self.engine, self.listed.release, had, renamed))
        option = load_options(self.listed.engine, had[-1]).find(name)
        assert option is not None
        if renamed is None:
            return option, option.canonical(name), None
        return option, renamed.now, renamed.value

    def _between(self, name: str) -> tuple[Option, str, None] | None:
        """An option that the list before a release lacks and the one after it has: which of them is right is not known."""
        if self.newer is None or self.listed.find_begun(name) or not (option := self.newer.find_begun(name)):
            return None
        self.remarks.append(
            f"{self.engine.title} {self.newer.release} has {name}, {self.listed.release} has not: what lies between may lack it"
        )
        return option, option.canonical(name), None

    def _around(self, name: str, joined: bool, following: Sequence[str]) -> int:
        """Note an option of the program around the engine; how many words are its values."""
        found = self.wrapper.get(name, Wrapped())
        values = _values(following, None) if found.takes_value and not joined else []
        self.wrapped[name] = found.roles.get(values[0] if values else "", found.roles.get(""))
        return len(values)

    def _check_choice(self, name: str, option: Option, given: Sequence[str]) -> None:
        known = [str(choice) for choice in option.choices]
        foreign = [value for value in given if known and value not in known and not value.startswith("$")]
        if foreign:
            near = difflib.get_close_matches(foreign[0], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" ({', '.join(known[:CHOICES_SHOWN])})"
            self.conflicts.append(f"{self.engine.title} {self.listed.release} takes no {name} {foreign[0]}{hint}")

    def merged(self) -> dict[str, str | None]:
        """Options with documents as the parser makes them: fields given one by one take the place of a whole document.

        vllm/utils/argparse_utils.py appends the dotted fields as one document, and the last one counts.
        """
        for name, document in self.dotted.items():
            if name in self.options:
                lost = ", ".join(sorted(set(_document(name, self.options[name])) - set(document)))
                if lost:
                    self.remarks.append(f"{name}: the fields given one by one replace the document, {lost} has no effect")
            self.options[name] = json.dumps(document)
        return self.options


def _optimization(
    name: str, path: str, joined: str, value: str, following: Sequence[str], levels: bool
) -> tuple[str, str, str, str]:
    """-O3, -O=3 and -O 3 are levels, -O.field is a field of the compilation; levels : as an option of their own."""
    document = name == "-O" and (path or (not joined and following[:1] and following[0] not in ("0", "1", "2", "3")))
    if document:
        return "--compilation-config", path, joined, value
    said = ("=" if joined or len(name) > 2 else "", value or name[2:])
    return ("--optimization-level", "", *said) if levels else ("--compilation-config", "level", *said)


def _gone(name: str, engine: EngineSpec, release: str, had: Sequence[str], renamed: Renamed | None) -> str:
    span = f"release {had[0]} has" if len(had) == 1 else f"releases {had[0]} to {had[-1]} have"
    instead = f"; now {renamed.now}{f' {renamed.value}' if renamed.value else ''}" if renamed else ""
    return f"{engine.title} {release} has no {name} ({span} it{instead})"


def _values(words: Sequence[str], option: Option | None) -> list[str]:
    """The words that belong to an option: one, or all up to the next option where it takes many or they are numbers."""
    many = option is not None and option.takes_many
    end = 0
    while end < len(words) and (not words[end].startswith("-") or NUMBER.match(words[end])):
        end += 1
        if not many and not (end < len(words) and NUMBER.match(words[0]) and NUMBER.match(words[end])):
            break
    return list(words[:end])


def _put(document: dict[str, Any], path: str, value: str | None) -> None:
    """`--option.a.b value` and `--option.a+=x,y` in the option's document, as vLLM's parser puts them."""
    *parents, last = path.split(".")
    for parent in parents:
        inside = document.setdefault(parent, {})
        if not isinstance(inside, dict):
            raise ProblemError(f"{path}: {parent} is a value, not a document")
        document = inside
    if last.endswith("+"):
        listed = document.setdefault(last[:-1], [])
        if not isinstance(listed, list):
            raise ProblemError(f"{path}: {last[:-1]} is a value, not a list")
        listed.extend((value or "").split(","))
        return
    try:
        document[last] = parse_json(value, path) if value is not None else True
    except InputError:
        number = whole_number(value or "")
        document[last] = value if number is None else number


def _document(name: str, text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    with reading(name, f"not JSON: {text[:80]}", ProblemError):
        found = parse_json(UNSET.sub(r"\1null", text), name)
    if isinstance(found, int) and name == "--compilation-config":  # a level by itself
        return {"level": found}
    if not isinstance(found, dict):
        raise ProblemError(f"{name} needs a JSON object, '{text[:80]}' was given")
    return found


def _unknown_variables(invocation: Invocation, engine: EngineSpec, version: str, listed: OptionList) -> list[str]:
    """The engine's own variables that the release does not read."""
    own = tuple(name for name in invocation.environment if name.startswith(VARIABLES[invocation.engine]))
    return [
        f"{engine.title} {version} does not read {name}: it has no effect"
        for name in own
        if name not in listed.env and not name.startswith("VLLM_ASCEND_")
    ]
