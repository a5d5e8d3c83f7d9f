"""Scenario files: grids and lists of problems, every one with the line it stands on."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autotune.documents.problem import Problem
from autotune.documents.sweep import Found
from autotune.errors import ProblemError
from autotune.versions import installed_version
from cost_models.catalog import looks_like_path, validated
from cost_models.errors import AutotuneError, unknown_name
from cost_models.reading import Limit, parse_yaml, read_bytes, read_text

PARTS = ("base", "grid", "problems")
ENTRIES = Limit(1_000_000, "problems of a scenario file")
DEFAULTS: dict[str, Any] = {"top_k": 1}
"""A row has room for one plan."""


@dataclass(frozen=True, slots=True)
class ScenarioEntry:
    """One problem as a scenario file asks it."""

    number: int
    asked: dict[str, Any]
    line: int | None = None
    value_lines: Mapping[str, int] = field(default_factory=dict)
    """Of a grid: the line of each field's value."""

    def line_of(self, message: str) -> int | None:
        """The line that a message is about: of the grid's value that it names, else of the problem."""
        for name, line in self.value_lines.items():
            value = _at(self.asked, name)
            if f"'{value}'" in message or message.startswith((f"{name}:", f"precision {value} ")):
                return line
        return self.line


@dataclass(frozen=True, slots=True)
class Task:
    """A problem to solve: what workers are given."""

    key: str
    """The same for problems that have the same answer, whoever solves them."""
    problem: str
    """As JSON."""
    typed: Mapping[str, str] = field(default_factory=dict)
    """Absolute path -> what was typed, of the files that the problem names."""


def read_scenarios(path: Path) -> list[ScenarioEntry]:
    """Entries of a scenario file; raises AutotuneError for a file that is none. Single bad entries are found later."""
    text = read_text(path)
    return list(entries_of(parse_yaml(text, path), str(path), _lines(text)))


def entries_of(document: Any, where: str, lines: Any = None) -> Iterator[ScenarioEntry]:
    """Entries of a scenario document: a list of problems, or a mapping of `base`, `grid` and `problems`."""
    if isinstance(document, list):
        document, lines = {"problems": document}, {"problems": lines}
    if not isinstance(document, dict) or not document:
        raise ProblemError(f"{where}: expected a list of problems, or a mapping of {', '.join(PARTS)}")
    for name in document:
        if name not in PARTS:
            raise ProblemError(f"{where}: {unknown_name('part of a scenario file', str(name), PARTS)}")
    base, grids, problems = (document.get(name) for name in PARTS)
    grids = [grids] if isinstance(grids, dict) else grids or []
    for name, value, kind in (("base", base or {}, dict), ("grid", grids, list), ("problems", problems or [], list)):
        if not isinstance(value, kind):
            raise ProblemError(f"{where}: {name}: expected a {'mapping' if kind is dict else 'list'}")
    if not grids and not problems:
        raise ProblemError(f"{where}: neither grid nor problems: nothing to solve")
    numbers = itertools.count(1)
    marks = lines or {}
    for at, grid in enumerate(grids):
        found = marks.get("grid")
        yield from _of_grid(grid, base or {}, where, numbers, found[at] if isinstance(found, list) else found)
    for at, problem in enumerate(problems or []):
        asked = _merged(base or {}, problem) if isinstance(problem, dict) else {"": problem}
        yield ScenarioEntry(next(numbers), asked, _line(marks.get("problems"), at))


def _of_grid(grid: Any, base: dict[str, Any], where: str, numbers: Iterator[int], marks: Any) -> Iterator[ScenarioEntry]:
    """Every combination of a grid's values; the last field changes fastest."""
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ProblemError(f"{where}: grid: expected a list of values for every field, such as gpus: [8, 16]")
    ENTRIES.check(math.prod(len(values) for values in grid.values()), where, "cut the grid")
    names = [str(name) for name in grid]
    for combination in itertools.product(*(range(len(values)) for values in grid.values())):
        asked = base
        lines = {}
        for name, at in zip(names, combination, strict=True):
            asked = _merged(asked, _nested(name, grid[name][at]))
            if (line := _line((marks or {}).get(name), at)) is not None:
                lines[name] = line
        yield ScenarioEntry(next(numbers), asked, min(lines.values(), default=None), lines)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """'workload.isl_tokens' and 8 -> {'workload': {'isl_tokens': 8}}."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def _at(asked: Any, name: str) -> Any:
    for part in name.split("."):
        asked = asked.get(part) if isinstance(asked, dict) else None
    return asked


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes on top of a base, mappings inside mappings."""
    both = {name: _merged(base[name], value) for name, value in changes.items() if _mappings(base.get(name), value)}
    return {**base, **changes, **both}


def _mappings(a: Any, b: Any) -> bool:
    return isinstance(a, dict) and isinstance(b, dict)


def _lines(text: str) -> Any:
    """The document with the line of every value in its place; mappings and lists keep theirs under the key None."""
    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def lines_of(node: Any) -> Any:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return {None: line, **{key.value: lines_of(value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}}
        return [lines_of(value) for value in node.value] if isinstance(node, yaml.SequenceNode) else line

    return lines_of(node) if node is not None else None


def _line(marks: Any, at: int) -> int | None:
    """Line of an element of a list."""
    found = marks[at] if isinstance(marks, list) and at < len(marks) else None
    while isinstance(found, list):
        found = found[0] if found else None
    return found.get(None) if isinstance(found, dict) else found


def task_of(asked: dict[str, Any]) -> Task | Found:
    """A problem to solve, or what is wrong with it.

    Files that it names count by their content, and by absolute paths: workers may run elsewhere.
    """
    try:
        problem = validated(Problem, {**DEFAULTS, **asked}, "problem")
        problem, typed, contents = _with_files(problem)
    except AutotuneError as error:
        return Found(status="bad", message=str(error).removeprefix("problem: "))
    text = problem.model_dump_json(exclude={"storage"})
    identity = json.dumps([text, contents, installed_version("moe-autotune")])
    return Task(hashlib.sha256(identity.encode()).hexdigest()[:32], text, typed)


def _with_files(problem: Problem) -> tuple[Problem, dict[str, str], list[str]]:
    """The problem with absolute paths, what was typed by absolute path, and the digests of its files."""
    named = {
        name: value
        for name in ("hardware", "model", "prefill_hardware")
        if looks_like_path(value := getattr(problem, name) or "")
    }
    changes: dict[str, Any] = {name: str(Path(value).resolve()) for name, value in named.items()}
    if problem.calibration.file:
        changes["calibration"] = problem.calibration.model_copy(update={"file": str(Path(problem.calibration.file).resolve())})
    if problem.expert_load:
        changes["expert_load"] = tuple(str(Path(name).resolve()) for name in problem.expert_load)
    if problem.load is not None and problem.load.trace:
        changes["load"] = problem.load.model_copy(update={"trace": str(Path(problem.load.trace).resolve())})
    files = [*named.values(), problem.calibration.file, *problem.expert_load, problem.load.trace if problem.load else None]
    typed = {str(Path(name).resolve()): name for name in files if name}
    limit = Limit(2**33, "bytes")
    digests = [hashlib.sha256(read_bytes(Path(name), limit)).hexdigest() for name in files if name]
    return problem.model_copy(update=changes), typed, digests
