"""The command that a script starts, as the shell would see it: variables, continued lines, arithmetic, redirections."""

from __future__ import annotations

import ast
import bisect
import operator
import posixpath
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from autotune.errors import ProblemError, StartsNothing

ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(\S.*|)$")
DEFAULTED = re.compile(r"\$\{([A-Za-z_]\w{0,99}):-([^}]{0,1000})\}")
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
ARITHMETIC = re.compile(r"\$\(\(([^()]{0,20000})\)\)")
OWN_FOLDER = re.compile(r"\$\(dirname (?:-- )?['\"]?\$(?:0|\{0\}|BASH_SOURCE|\{BASH_SOURCE(?:\[0\])?\})['\"]?\)")
"""Where the script itself lies."""
WENT_THERE = re.compile(r"\$\(cd (?:-- )?['\"]?\.['\"]? (?:&& |; )pwd\)")
NAME = re.compile(r"[A-Za-z_]\w*")
QUOTING = re.compile(r"['\"\\#]")
WORD = re.compile(r"[^ \t\r\n]+")
CONTINUED = re.compile(r"\\\n")
BLANKS = re.compile(r"\s")
COMMAND_ENDS = re.compile(r"^(\|\|?|&&?|;|\d*[<>].*)$")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}
HERE = re.compile(r"<<-?[ \t]*(?P<quote>['\"]?)(?P<word>\w+)(?P=quote)")
"""Where a here-document begins."""
INTO = re.compile(
    r"(?:(?<![0-9&>])>>?|\btee)[ \t]+['\"]?(?P<path>[^\s'\"<>|;&-][^\s'\"<>|;&]*)|(?<![0-9&>])>(?P<joined>[^\s'\"<>|;&]+)"
)
"""The file that a line writes."""
MOST_UNCLOSED = 4
"""Quotes that never close, after which none is looked for beyond its line."""
MOST_EXPANDED = 1_000_000
"""Characters of all variables of a line, and of all lines."""
MOST_ARITHMETIC = 200
SHOWN_LINES = 20
IMAGE = re.compile(r"(^|/)vllm-openai([:@]|$)")
"""A container whose entry point is `vllm serve`."""
SERVE = ("vllm", "sglang")
"""Programs whose command `serve` starts the engine of their name."""
MODULES = {
    "sglang.launch_server": "sglang",
    "vllm.entrypoints.openai.api_server": "vllm",
    "dynamo.vllm": "vllm",
    "dynamo.sglang": "sglang",
    "dynamo.trtllm": "trtllm",
}
TRTLLM_SERVE = "trtllm-serve"
ORCHESTRATES = ("disaggregated", "disaggregated_mpi_worker", "mm_embedding_serve")
"""Commands of trtllm-serve that start no engine by themselves, or none that generates."""
WRAPPING = ("dynamo.vllm", "dynamo.sglang", "dynamo.trtllm")
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
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts that here-documents write, by path."""


def find_command(text: str, environment: Mapping[str, str] | None = None, at: int = 0) -> Invocation:
    """An engine command of a text, the first unless `at` counts on.

    environment : variables set around it. Raises ProblemError where there is none, where quotes do not close, and where options
    follow on a line of their own that the shell would not see as part of the command.
    """
    environment = dict(environment or {})
    found: Invocation | None = None
    others = length = 0
    passed = at
    for line in _logical_lines(text):
        expanded = _expanded(line.strip(), environment)
        length += len(expanded)
        if length > MOST_EXPANDED:
            raise ProblemError(
                f"the script has more than {MOST_EXPANDED:,} characters with its variables: give its last command alone"
            )
        if found is not None and expanded.startswith("-") and not others:
            raise ProblemError(
                f"'{expanded[:60]}' stands on a line of its own after the command: the line before it does not end in a "
                "backslash (or a comment follows the backslash), so the shell would not pass it on"
            )
        words = _words(expanded)
        engine, after = _engine_of(words)
        if engine is None:
            if (match := ASSIGNMENT.match(expanded)) and words:
                environment[match.group(1)] = _words(match.group(2))[0] if match.group(2) else ""
        elif found is None and passed:
            passed -= 1
        elif found is None:
            before = dict(word.split("=", 1) for word in words[:after] if "=" in word and not word.startswith("-"))
            wrapper = words[after - 1] if words[after - 1] in WRAPPING else None
            found = Invocation(engine, tuple(_until_end(words[after:])), {**environment, **before}, 0, wrapper)
        else:
            others += 1
    if found is None:
        raise StartsNothing(
            "no 'vllm serve ...', 'python -m sglang.launch_server ...' or 'trtllm-serve ...' command found; give the file that "
            "starts the engine"
        )
    return Invocation(found.engine, found.words, found.environment, others, found.wrapper, written_files(text, environment))


def written_files(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Texts of here-documents that a script writes into files, by path; variables are filled in where the word is not quoted."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    ends: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        ends.setdefault(line.strip(" \t"), []).append(number)
    at = 0
    while at < len(lines):
        match, into = HERE.search(lines[at]), INTO.search(lines[at])
        after = ends.get(match["word"], []) if match else []
        place = bisect.bisect_right(after, at)
        if match is None or into is None or place == len(after):
            at += 1
            continue
        body = "\n".join(lines[at + 1 : after[place]])
        path = _expanded(into["path"] or into["joined"], environment)
        found[path] = body if match["quote"] else _expanded(body, environment)
        at = after[place] + 1
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Lines as the shell takes them: continued by a backslash, or by a quote that is still open; here-documents only where an
    engine starts in them.

    A quote that never closes ends with its line, unless an engine starts on it. Takes time in proportion to the text.
    """
    joined = "\n".join(_without_here_documents(text.splitlines())) + ("\n" if text.endswith("\n") else "")
    lines = CONTINUED.sub(" ", joined).splitlines()
    at, unclosed = 0, 0
    while at < len(lines):
        end = _closing(lines, at, len(lines) if unclosed < MOST_UNCLOSED else at + 1)
        if end is not None:
            yield "\n".join(lines[at:end])
        else:
            unclosed += 1
            if _engine_of(lines[at].split())[0]:
                _words("\n".join(lines[at : at + SHOWN_LINES]))  # says what is wrong with it
        at = end or at + 1


def _closing(lines: list[str], at: int, stop: int) -> int | None:
    """One past the line on which quotes that open on line `at` are closed; none where they are not before `stop`."""
    quote = ""
    for number in range(at, stop):
        quote = _quote_after(lines[number], quote)
        if not quote:
            return number + 1
    return None


def _quote_after(line: str, quote: str) -> str:
    """The quote that is open at the end of a line that begins inside `quote`; a backslash where that is its last character."""
    quote = "" if quote == "\\" else quote
    characters = iter(line)
    for character in characters:
        if quote == "'":
            quote = "" if character == "'" else quote
        elif character == "\\":
            if next(characters, "") == "" and not quote:
                return character
        elif quote:
            quote = "" if character == quote else quote
        elif character == "#":
            return ""
        elif character in "'\"":
            quote = character
    return quote


def _without_here_documents(lines: list[str]) -> Iterator[str]:
    """Lines in which a here-document is replaced by its body where an engine starts in it, and by nothing elsewhere."""
    ends: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        ends.setdefault(line.strip(" \t"), []).append(number)
    at = 0
    while at < len(lines):
        match = HERE.search(lines[at])
        after = ends.get(match["word"], []) if match else []
        place = bisect.bisect_right(after, at + 1)
        if match is None or place == len(after):
            yield lines[at]
            at += 1
            continue
        body = lines[at + 1 : after[place]]
        starts = any(_engine_of(line.split())[0] for line in body)
        yield lines[at][: match.start()] + (body[0] if starts else "")
        yield from body[1:] if starts else ()
        at = after[place] + 1


def _words(text: str) -> list[str]:
    """shlex's words; where nothing is quoted, without it: its time grows with the square of a word's length."""
    if not QUOTING.search(text):
        return WORD.findall(text)
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
        if posixpath.basename(word) == TRTLLM_SERVE and words[at + 1 : at + 2] and words[at + 1] not in ORCHESTRATES:
            return "trtllm", at + (2 if words[at + 1] == "serve" else 1)
        if word in SERVE and words[at + 1 : at + 2] == ["serve"]:
            return word, at + 2
    return None, 0


def _expanded(line: str, environment: Mapping[str, str]) -> str:
    """Variables that the script has set, defaults of those it takes from outside, and arithmetic of either.

    Raises ProblemError for variables of variables that grow beyond MOST_EXPANDED.
    """
    line = WENT_THERE.sub(".", OWN_FOLDER.sub(".", line))
    line = _substituted(DEFAULTED, line, lambda m: environment.get(m.group(1), m.group(2)))
    line = _substituted(VARIABLE, line, lambda m: environment.get(m.group(1), m.group(0)))
    return _substituted(ARITHMETIC, line, lambda m: _computed(m.group(1), environment))


def _substituted(pattern: re.Pattern[str], line: str, value: Callable[[re.Match[str]], str]) -> str:
    length = len(line)

    def counted(match: re.Match[str]) -> str:
        nonlocal length
        found = value(match)
        length += len(found)
        if length > MOST_EXPANDED:
            raise ProblemError(f"variables expand to more than {MOST_EXPANDED:,} characters: {line[:60]}")
        return found

    return pattern.sub(counted, line)


def _computed(expression: str, environment: Mapping[str, str]) -> str:
    """The value of whole-number arithmetic; the text itself, without blanks, where a name is not known or it is too long."""
    unknown = f"$(({BLANKS.sub('', expression)}))"
    if len(expression) > MOST_ARITHMETIC:
        return unknown
    known = NAME.sub(lambda m: environment.get(m.group(0), m.group(0))[:MOST_ARITHMETIC], expression.replace("$", ""))
    if len(known) > MOST_ARITHMETIC:
        return unknown
    try:
        return str(_number(ast.parse(known.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return unknown


def _number(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            return int(OPERATORS[type(op)](_number(left), _number(right)))
    raise ValueError(node)
