"""The engine commands that a script starts."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.auditing.bash.interpreter import Interpreter, Ran
from autotune.errors import ProblemError, StartsNothing

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
SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class Invocation:
    """One engine started."""

    engine: str
    words: tuple[str, ...]
    """After the command itself."""
    environment: Mapping[str, str]
    """Set before it, on its line or above."""
    others: int
    """Engine commands after it in the text."""
    wrapper: str | None = None
    """The module that starts the engine, where it takes options of its own."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts that here-documents write, by path."""
    remarks: tuple[str, ...] = ()
    """Branches of the script that rest on what it does not say."""


def find_command(text: str, environment: Mapping[str, str] | None = None, at: int = 0) -> Invocation:
    """An engine command of a text, the first unless `at` counts on; raises ProblemError as `find_commands`."""
    found = find_commands(text, environment)
    return found[min(at, len(found) - 1)]


def find_commands(text: str, environment: Mapping[str, str] | None = None) -> tuple[Invocation, ...]:
    """All engine commands of a text, at least one.

    environment : variables set around it. Raises ProblemError where there is none, where quotes do not close, and where options
    follow on a line of their own that the shell would not see as part of the command.
    """
    script = Interpreter(dict(environment or {})).run(text)
    if script.broken:
        _refuse_unclosed(text)
    started = list(_started(script.ran))
    if not started:
        if script.exited_by:
            raise ProblemError(f"the script ends with '{script.exited_by}' before it starts an engine")
        raise StartsNothing(
            "no 'vllm serve ...', 'python -m sglang.launch_server ...' or 'trtllm-serve ...' command found; give the file that "
            "starts the engine"
        )
    return tuple(
        Invocation(
            engine=engine,
            words=tuple(word for word in ran.words[after:] if word.strip()),
            environment={**ran.variables, **_set_before(ran.words[:after])},
            others=len(started) - 1 - at,
            wrapper=ran.words[after - 1] if ran.words[after - 1] in WRAPPING else None,
            files=script.files,
            remarks=tuple(_remarks(script)),
        )
        for at, (ran, engine, after) in enumerate(started)
    )


def _set_before(words: Sequence[str]) -> dict[str, str]:
    """Variables of words before a program, as `env` takes them."""
    return dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))


def written_files(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Texts that a script writes into files, by path."""
    return Interpreter(dict(environment)).run(text).files


def _started(ran: Sequence[Ran]) -> Iterator[tuple[Ran, str, int]]:
    """(program, engine, position after its command) of all that start one."""
    engines = 0
    for one in ran:
        engine, after = _engine_of(one.words)
        if engine:
            engines += 1
            yield one, engine, after
        elif one.words[0].startswith("-") and engines == 1:
            shown = " ".join(one.words)[:60]
            raise ProblemError(
                f"'{shown}' stands on a line of its own after the command: the line before it does not end in a backslash (or a "
                "comment follows the backslash), so the shell would not pass it on"
            )


def _engine_of(words: Sequence[str]) -> tuple[str | None, int]:
    """(engine, position after its command); none for other programs."""
    for at, word in enumerate(words):
        if word in MODULES:
            return MODULES[word], at + 1
        if IMAGE.search(word):
            return "vllm", at + 1
        if posixpath.basename(word) == TRTLLM_SERVE and words[at + 1 : at + 2] and words[at + 1] not in ORCHESTRATES:
            return "trtllm", at + (2 if words[at + 1] == "serve" else 1)
        if word in SERVE and tuple(words[at + 1 : at + 2]) == ("serve",):
            return word, at + 2
    return None, 0


def _refuse_unclosed(text: str) -> None:
    """Raises ProblemError where an engine stands on a line whose quotes never close."""
    lines = text.replace("\\\n", " ").splitlines()
    at = next((at for at, line in enumerate(lines) if _engine_of(line.split())[0]), None)
    if at is None:
        return
    try:
        shlex.split("\n".join(lines[at : at + SHOWN_LINES]), comments=True)
    except ValueError as error:
        raise ProblemError(f"cannot be read as a command line ({error}): {lines[at].strip()[:80]}") from error


def _remarks(script: Interpreter) -> Iterator[str]:
    if script.asked:
        names = ", ".join(script.asked)
        yield f"the script's branches ask for {names}, which nothing sets: read as the shell would with nothing in them"
    if script.undecided:
        conditions = "; ".join(f"'{condition}'" for condition in script.undecided)
        yield f"not decided without running the script, so all sides were read and the last counts: {conditions}"
