"""Command-line options and variables of engine releases, as their own parsers list them (data/options)."""

from __future__ import annotations

import functools
import json
from importlib import resources

from cost_models.specs.base import Spec
from search_spaces.schema import version_key

SWITCHES = (
    "_StoreTrueAction", "_StoreFalseAction", "_HelpAction", "EnableDisableAction", "BooleanOptionalAction", "DeprecatedAction",
    "DeprecatedStoreTrueAction", "DeprecatedStoreConstAction",
)  # fmt: skip
"""Argparse actions that take no value."""
NEGATIONS = ("--no-", "--disable-")


class Option(Spec):
    """One option of a release."""

    flags: tuple[str, ...]
    """All its spellings, the usual one first."""
    type: str
    """Argparse type or action."""
    choices: tuple[str | int | None, ...] = ()

    @property
    def takes_value(self) -> bool:
        """Whether a word follows."""
        return self.type not in SWITCHES

    def canonical(self, spelling: str) -> str:
        """The usual spelling; the negation of a switch keeps its own."""
        negated = not self.takes_value and spelling.startswith(NEGATIONS)
        return spelling if negated else self.flags[0]


class OptionList(Spec):
    """What one release takes."""

    engine: str
    release: str
    how: str
    options: tuple[Option, ...]
    env: tuple[str, ...]

    def find(self, name: str) -> Option | None:
        """An option by any spelling."""
        return next((option for option in self.options if name in option.flags), None)

    def find_begun(self, name: str) -> Option | None:
        """An option by any spelling, or by the beginning of one, as argparse allows (both engines' parsers do)."""
        begun = [option for option in self.options for flag in option.flags if flag.startswith(name)]
        return self.find(name) or (begun[0] if len(begun) == 1 else None)


@functools.cache
def load_options(engine: str, release: str) -> OptionList:
    """Options of a release that `releases` names."""
    file = resources.files("search_spaces").joinpath("data", "options", f"{engine}_{release}.json")
    return OptionList.model_validate(json.loads(file.read_text(encoding="utf-8")))


def releases(engine: str) -> list[str]:
    """Releases whose options are known, oldest first."""
    names = [entry.name for entry in resources.files("search_spaces").joinpath("data", "options").iterdir()]
    found = [name.removesuffix(".json").partition("_")[2] for name in names if name.startswith(f"{engine}_")]
    return sorted(found, key=version_key)


def releases_with(engine: str, option: str) -> list[str]:
    """Releases that have an option under this name, oldest first."""
    return [release for release in releases(engine) if load_options(engine, release).find(option)]
