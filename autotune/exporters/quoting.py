"""Shell text: the only place where text becomes something that bash reads.

Templates print shell text and whole numbers, nothing else: a plain string that reaches one raises TypeError, so an edit that
forgets to say how a value is quoted cannot write a script. The filters `word`, `note`, `message` and `name` say it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

from autotune.errors import ExportError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LIVE = re.compile(r'[\\"$`]')
"""Characters that mean something between double quotes."""
ENDING = re.compile(r'[\\"$`}]')
"""Characters that mean something inside a quoted `${NAME:?...}`."""
SUBSTITUTING = re.compile(r"(?<=[<>])\(")
"""What bash takes for the beginning of a process inside `${NAME:?...}`, between double quotes too."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
"""Control characters and everything that ends a line somewhere."""


class Shell(str):
    """Text that bash reads as it stands. Written out in code, never put together from values: see `filled` for those."""

    __slots__ = ()

    def filled(self, **numbers: int) -> Shell:
        """With whole numbers in the place of {name}."""
        if wrong := {k: v for k, v in numbers.items() if type(v) is not int}:
            raise TypeError(f"only whole numbers are put into shell text, not {wrong}")
        return Shell(self.format(**numbers))


def word(value: object) -> Shell:
    """One word with exactly this text, whatever is in it; shell text stays as it is.

    Raises ExportError for a NUL, which no argument of a program can hold.
    """
    if isinstance(value, Shell):
        return value
    text = str(value)
    if "\0" in text:
        raise ExportError(f"{text!r} has a NUL character, which no command line can hold")
    return Shell(shlex.quote(text))


def words(values: Iterable[object]) -> Shell:
    """Words of a command, each quoted where it is no shell text."""
    return Shell(" ".join(word(value) for value in values))


def note(value: object) -> Shell:
    """Text for after `# `: one line, its control characters spelt out."""
    return Shell(UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), str(value)))


def message(value: object) -> Shell:
    """Text for inside `"${NAME:?...}"`: one line, nothing in it expands or ends it; single quotes, paired there, curl."""
    return Shell(SUBSTITUTING.sub(" (", ENDING.sub(r"\\\g<0>", note(value)).replace("'", "\u2019")))


def name(value: str) -> Shell:
    """A variable's name; raises ExportError for what is none."""
    if not NAME.fullmatch(value):
        raise ExportError(f"{value!r} is not a name of a shell variable")
    return Shell(value)


def json_word(document: Any) -> Shell:
    """A JSON document as one word, in which leaves of shell text expand when the script runs.

    Such a leaf stands where a number does; for a text it brings its own quotes of JSON: `\\"$NAME\\"`.
    """
    return Shell(f'"{_json_inside(document)}"')


def _json_inside(value: Any) -> str:
    if isinstance(value, Shell):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json_inside(str(k))}:{_json_inside(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_json_inside(v) for v in value) + "]"
    return LIVE.sub(r"\\\g<0>", json.dumps(value))


def finalize(value: object) -> object:
    """What a template may print: shell text and whole numbers."""
    if isinstance(value, Shell) or type(value) is int:
        return value
    raise TypeError(f"{value!r} would reach a script as it is: say how it is quoted (word, note, message, name)")


FILTERS = {"word": word, "note": note, "message": message, "name": name}
