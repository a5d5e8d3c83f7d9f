"""The whole table: rules of a pool, of a pair of pools, and what must be written."""

from __future__ import annotations

from search_spaces.rules import context, experts, models, nodes, settings, shapes, transport
from search_spaces.rules.nodes import PAIR_RULES
from search_spaces.rules.requirements import REQUIREMENTS, Needed
from search_spaces.rules.rule import Finding, Rule
from search_spaces.rules.subject import Subject

RULES: tuple[Rule, ...] = (
    *models.RULES,
    *shapes.RULES,
    *experts.RULES,
    *nodes.RULES,
    *transport.RULES,
    *settings.RULES,
    *context.RULES,
)
SIZED_RULES = tuple(rule for rule in RULES if rule.sized)
"""Those that the size of a step decides: the others are asked once per layout."""


def written(subject: Subject) -> Needed:
    """Options and variables that the scripts of a plan of one row need: of every option the value that is ours."""
    options: dict[str, tuple[str, ...]] = {}
    environment: dict[str, str] = {}
    for requirement in REQUIREMENTS:
        needed = requirement.of(subject)
        options |= {name: values[:1] for name, values in needed.options.items()}
        environment |= needed.environment
    return Needed(options, environment)


def unmet(subject: Subject) -> tuple[Finding, ...]:
    """What a command that was written lacks."""
    return tuple(found for requirement in REQUIREMENTS if (found := requirement.missing(subject)))


def pair_findings(prefill: Subject, decode: Subject) -> tuple[Finding, ...]:
    """What keeps two pools from exchanging KV caches."""
    return tuple(found for rule in PAIR_RULES if (found := rule.finding(prefill, decode)))


__all__ = ["PAIR_RULES", "REQUIREMENTS", "RULES", "SIZED_RULES", "pair_findings", "unmet", "written"]
