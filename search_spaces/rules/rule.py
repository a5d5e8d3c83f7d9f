"""One rule: what an engine refuses, since when, where that was read, and which rows break it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cost_models.releases import version_key
from search_spaces.rules.subject import Bools, Subject

Effect = Literal["refused", "breaks", "unpriced", "untimed", "unsure", "ignored"]
"""refused: the engine does not start or load. breaks: it starts and fails at work. unpriced: it runs, by kernels that nothing
here prices. untimed: it runs, and what is priced in its place was not timed for it. unsure: a library of the engine decides.
ignored: the setting has no effect."""
STOPS: tuple[Effect, ...] = ("refused", "breaks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an engine does not take."""

    name: str
    says: str
    """One sentence for people."""
    source: str
    """File and line of the engine's own source (at the version in brackets), or the report it was read from."""
    engines: tuple[str, ...]
    broken: Callable[[Subject], Bools]
    """Rows that break it, (rows,)."""
    because: Callable[[Subject], str]
    """Why the one row of a subject breaks it, with its numbers and the way out."""
    effect: Effect = "refused"
    sized: bool = False
    """Whether the size of a step decides, not the layout alone."""
    since: str | None = None
    until: str | None = None

    def applies(self, subject: Subject) -> bool:
        """Whether the subject's engine version has the rule."""
        key = version_key(subject.version)
        after = self.since is None or key >= version_key(self.since)
        return subject.engine.name in self.engines and after and (self.until is None or key <= version_key(self.until))


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a pool breaks."""

    rule: str
    effect: Effect
    text: str
    source: str

    @property
    def stops(self) -> bool:
        """Whether the engine does not start, or fails at work."""
        return self.effect in STOPS

    def line(self) -> str:
        """For people."""
        return f"{self.text} [{self.rule}: {self.source}]"


def legal(rules: Iterable[Rule], subject: Subject) -> Bools:
    """Rows that break no rule, (rows,): what a search may offer."""
    fine = subject.all(True)
    for rule in rules:
        if rule.applies(subject) and fine.any():
            fine &= ~rule.broken(subject)
    return fine


def findings(rules: Iterable[Rule], subject: Subject) -> tuple[Finding, ...]:
    """What the one row of a subject breaks."""
    return findings_by_row(rules, subject)[0]


def findings_by_row(rules: Iterable[Rule], subject: Subject) -> list[tuple[Finding, ...]]:
    """What each row breaks."""
    found: list[list[Finding]] = [[] for _ in range(len(subject.rows))]
    for rule in rules:
        if not rule.applies(subject):
            continue
        for row in np.flatnonzero(rule.broken(subject)):
            found[int(row)].append(Finding(rule.name, rule.effect, rule.because(subject.at(int(row))), rule.source))
    return [tuple(lines) for lines in found]
