"""What engines refuse, by version, with the source line it was read from: one table that search, check and the exporters ask."""

from __future__ import annotations

from search_spaces.rules.rule import Finding, Rule, findings, findings_by_row, legal
from search_spaces.rules.subject import Role, Subject
from search_spaces.rules.table import PAIR_RULES, REQUIREMENTS, RULES, SIZED_RULES, pair_findings, unmet, written

__all__ = [
    "PAIR_RULES",
    "REQUIREMENTS",
    "RULES",
    "SIZED_RULES",
    "Finding",
    "Role",
    "Rule",
    "Subject",
    "findings",
    "findings_by_row",
    "legal",
    "pair_findings",
    "unmet",
    "written",
]
