"""The command that a script starts, as the shell would see it: variables, continued lines, arithmetic, redirections."""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.errors import ProblemError

ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(\S.*|)$")
DEFAULTED = re.compile(r"\$\{([A-Za-z_]\w*):-([^}]*)\}")
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
ARITHMETIC = re.compile(r"\$\(\(([^()]*)\)\)")
NAME = re.compile(r"[A-Za-z_]\w*")
CONTINUED = re.compile(r"\\\n")
BLANKS = re.compile(r"\s")
COMMAND_ENDS = re.compile(r"^(\|\|?|&&?|;|\d*[<>].*)$")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}
HERE = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1[^\n]*\n(.*?)\n[ \t]*\2[ \t]*$", re.DOTALL | re.MULTILINE)
"""A here-document."""
IMAGE = re.compile(r"(^|/)vllm-openai([:@]|$)")
"""A container whose entry point is `vllm serve`."""
SERVE = ("vllm", "sglang")
"""Programs whose command `serve` starts the engine of their name."""
MODULES = {
    "sglang.launch_server": "sglang",
    "vllm.entrypoints.openai.api_server": "vllm",
    "dynamo.vllm": "vllm",
    "dynamo.sglang": "sglang",
}
WRAPPING = ("dynamo.vllm", "dynamo.sglang")
"""Modules that take options of their own beside the engine's."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One engine started."""

    engine: str
    words: tuple[str, ...]
    """After the command itself."""
    environment: Mapping[str, str]
    """Set before it, on its line or above."""
    others: int
    """Further engine commands in the text."""
    wrapper: str | None = None
    """The module that starts the engine, where it takes options of its own."""


def find_command(text: str) -> Invocation:
    """The first engine command of a text.

    Raises ProblemError where there is none, where quotes do not close, and where options follow on a line of their own that
    the shell would not see as part of the command.
    """
    environment: dict[str, str] = {}
    found: Invocation | None = None
    others = 0
    for line in _logical_lines(text):
        expanded = _expanded(line.strip(), environment)
        if found is not None and expanded.startswith("-") and not others:
            raise ProblemError(
                f"'{expanded[:60]}' stands on a line of its own after the command: the line before it does not end in a "
                "backslash (or a comment follows the backslash), so the shell would not pass it on"
            )
        words = _words(expanded)
        engine, at = _engine_of(words)
        if engine is None:
            if (match := ASSIGNMENT.match(expanded)) and words:
                environment[match.group(1)] = _words(match.group(2))[0] if match.group(2) else ""
        elif found is None:
            before = dict(word.split("=", 1) for word in words[:at] if "=" in word and not word.startswith("-"))
            wrapper = words[at - 1] if words[at - 1] in WRAPPING else None
            found = Invocation(engine, tuple(_until_end(words[at:])), {**environment, **before}, 0, wrapper)
        else:
            others += 1
    if found is None:
        raise ProblemError(
            "no 'vllm serve ...' or 'python -m sglang.launch_server ...' command found; give the file that starts the engine"
        )
    return Invocation(found.engine, found.words, found.environment, others, found.wrapper)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines as the shell takes them: continued by a backslash, or by a quote that is still open; here-documents only where an
    engine starts in them.

    A quote that never closes ends with its line, unless an engine starts on it.
    """
    lines = CONTINUED.sub(" ", HERE.sub(_here, text)).splitlines()
    at = 0
    while at < len(lines):
        end = next((end for end in range(at + 1, len(lines) + 1) if _closes("\n".join(lines[at:end]))), None)
        if end is None and _engine_of(lines[at].split())[0]:
            _words("\n".join(lines[at:]))  # says what is wrong with it
        if end is not None:
            yield "\n".join(lines[at:end])
        at = end or at + 1


def _here(document: re.Match[str]) -> str:
    body = document.group(3)
    return body if any(_engine_of(line.split())[0] for line in body.splitlines()) else ""


def _closes(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise ProblemError(f"cannot be read as a command line ({error}): {text[:80]}") from error


def _until_end(words: list[str]) -> list[str]:
    """Without pipes, redirections and what follows them."""
    end = next((at for at, word in enumerate(words) if COMMAND_ENDS.match(word)), len(words))
    kept = words[:end]
    return [*kept[:-1], kept[-1].rstrip(";")] if kept else kept


def _engine_of(words: list[str]) -> tuple[str | None, int]:
    """(engine, position after its command); none for other lines."""
    for at, word in enumerate(words):
        if word in MODULES:
            return MODULES[word], at + 1
        if IMAGE.search(word):
            return "vllm", at + 1
        if word in SERVE and words[at + 1 : at + 2] == ["serve"]:
            return word, at + 2
    return None, 0


def _expanded(line: str, environment: Mapping[str, str]) -> str:
    """Variables that the script has set, defaults of those it takes from outside, and arithmetic of either."""
    line = DEFAULTED.sub(lambda m: environment.get(m.group(1), m.group(2)), line)
    line = VARIABLE.sub(lambda m: environment.get(m.group(1), m.group(0)), line)
    return ARITHMETIC.sub(lambda m: _computed(m.group(1), environment), line)


def _computed(expression: str, environment: Mapping[str, str]) -> str:
    """The value of whole-number arithmetic; the text itself, without blanks, where a name is not known."""
    known = NAME.sub(lambda m: environment.get(m.group(0), m.group(0)), expression.replace("$", ""))
    try:
        return str(_number(ast.parse(known.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return f"$(({BLANKS.sub('', expression)}))"


def _number(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            return int(OPERATORS[type(op)](_number(left), _number(right)))
    raise ValueError(node)
