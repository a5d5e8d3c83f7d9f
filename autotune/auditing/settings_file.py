"""Settings that a command takes from a file: the text itself, a here-document of the script, or a file beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from autotune.errors import ProblemError
from cost_models.reading import parse_yaml, read_text

OPTIONS_FILE = "--config"
"""vLLM's: options by name in YAML, which those of the command line go before (utils/argparse_utils.py load_config_file)."""


def settings_text(said: str, files: Mapping[str, str], folder: Path | None) -> str:
    """What a settings file holds: the text itself where it is one, a here-document of the script, or a file in its folder.

    Raises ProblemError where it is none of these.
    """
    if said.lstrip().startswith("{"):
        return said
    name = PurePosixPath(said.strip("\"'}")).name
    held = files.get(said) or next((text for path, text in files.items() if PurePosixPath(path).name == name), None)
    if held is not None:
        return held
    places = [] if folder is None else [folder / said, folder / name] if "$" not in said else [folder / name]
    found = next((place for place in places if _is_file(place)), None)
    if found is None:
        where = f" {folder}" if folder is not None else ""
        raise ProblemError(
            f"{said[:120]}: the settings file is not here; put it beside the script{where}, or give it as a here-document: "
            "without it nothing is known of what the engine does"
        )
    return read_text(found)


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def with_options_of_file(words: Sequence[str], files: Mapping[str, str], folder: Path | None) -> tuple[str, ...]:
    """A command's words with the options of its file before them; as they are where it has none, or where that is not here.

    files : what the script writes; folder : where it lies. Raises ProblemError for a file that is no mapping of options.
    """
    at = next((at for at, word in enumerate(words) if word.partition("=")[0] == OPTIONS_FILE), None)
    if at is None:
        return tuple(words)
    _, joined, said = words[at].partition("=")
    said, after = (said, at + 1) if joined else (next(iter(words[at + 1 : at + 2]), ""), at + 2)
    try:
        text = settings_text(said, files, folder)
    except ProblemError:
        return tuple(words)
    document = parse_yaml(text, said)
    if not isinstance(document, dict):
        raise ProblemError(f"{said}: no mapping of options to values")
    rest = (*words[:at], *words[after:])
    given = {_plain(word) for word in rest if word.startswith("-")}
    held = ((f"--{name}", value) for name, value in document.items())
    return (*rest, *(word for option, value in held if _plain(option) not in given for word in option_words(option, value)))


def _plain(option: str) -> str:
    return option.partition("=")[0].replace("_", "-")


def option_words(option: str, value: Any) -> Iterator[str]:
    """An option of a document as the parser sees it: true is a switch, false and null leave it out, a list follows, a mapping is
    JSON.

    vLLM and SGLang read their own --config files so.
    """
    if value is None or value is False:
        return
    yield option
    if isinstance(value, list):
        yield from map(str, value)
    elif isinstance(value, dict):
        yield json.dumps(value)
    elif value is not True:
        yield str(value)
