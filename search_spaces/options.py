"""Command-line options and variables of engine releases, as their own parsers list them (data/options).

One document an engine: every option with the releases that have it, so that a release's list costs what it changed.
"""

from __future__ import annotations

import functools
import json
from importlib import resources

from cost_models.releases import version_key
from cost_models.specs.base import Spec
from search_spaces.schema import Ranged

SWITCHES = (
    "_StoreTrueAction", "_StoreFalseAction", "_HelpAction", "EnableDisableAction", "BooleanOptionalAction", "DeprecatedAction",
    "DeprecatedStoreTrueAction", "DeprecatedStoreConstAction",
)  # fmt: skip
"""Argparse actions that take no value."""
NEGATIONS = ("--no-", "--disable-")


class Option(Ranged):
    """One option, as the releases from `since` to `until` have it; absent: from the oldest known, to the newest."""

    flags: tuple[str, ...]
    """All spellings that the parser accepts, the usual one first; hidden ones included."""
    type: str
    """Argparse type or action."""
    nargs: str | int | None = None
    """How many words follow, where that is not one."""
    choices: tuple[str | int | None, ...] = ()

    @property
    def takes_value(self) -> bool:
        """Whether a word follows."""
        return self.type not in SWITCHES and self.nargs != 0

    @property
    def takes_many(self) -> bool:
        """Whether all following words are its own."""
        return self.nargs in ("+", "*") or (isinstance(self.nargs, int) and self.nargs > 1)

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
        begun = {option.flags[0]: option for option in self.options for flag in option.flags if flag.startswith(name)}
        return self.find(name) or (next(iter(begun.values())) if len(begun) == 1 else None)


class OptionHistory(Spec):
    """What the known releases of an engine take."""

    engine: str
    how: str
    """Where the lists come from."""
    releases: tuple[str, ...]
    """Oldest first."""
    options: tuple[Option, ...]
    """An option that changed stands once for every form."""
    env: dict[str, tuple[Ranged, ...]]
    """Variables that the engine reads, with the releases that do."""

    def at(self, release: str) -> OptionList:
        """The list of one release."""
        options = tuple(option for option in self.options if option.exists_in(release))
        env = tuple(name for name, spans in self.env.items() if any(span.exists_in(release) for span in spans))
        return OptionList(engine=self.engine, release=release, how=self.how, options=options, env=env)


@functools.cache
def option_history(engine: str) -> OptionHistory:
    """All known releases of an engine's command line."""
    file = resources.files("search_spaces").joinpath("data", "options", f"{engine}.json")
    return OptionHistory.model_validate(json.loads(file.read_text(encoding="utf-8")))


@functools.cache
def load_options(engine: str, release: str) -> OptionList:
    """Options of a release that `releases` names."""
    return option_history(engine).at(release)


def releases(engine: str) -> list[str]:
    """Releases whose options are known, oldest first."""
    return sorted(option_history(engine).releases, key=version_key)


def releases_with(engine: str, option: str) -> list[str]:
    """Releases that have an option under this name, oldest first."""
    forms = [known for known in option_history(engine).options if option in known.flags]
    return [release for release in releases(engine) if any(form.exists_in(release) for form in forms)]
