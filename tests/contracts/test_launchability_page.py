"""docs/launchability.md lists every rule, as the table in the code has it."""

from __future__ import annotations

from pathlib import Path

from search_spaces.rules import PAIR_RULES, REQUIREMENTS, RULES

PAGE = Path(__file__).parents[2] / "docs" / "launchability.md"
BEGIN, END = "<!-- rules -->", "<!-- /rules -->"


def table() -> str:
    """The rules as the page has them."""
    lines = ["| rule | engines | what it says | without it | read in |", "|---|---|---|---|---|"]
    for rule in (*RULES, *PAIR_RULES, *REQUIREMENTS):
        since, until = getattr(rule, "since", None), getattr(rule, "until", None)
        span = f" {since or ''}-{until or ''}" if since or until else ""
        effect = getattr(rule, "effect", "breaks")
        lines.append(f"| `{rule.name}` | {', '.join(rule.engines)}{span} | {rule.says} | {effect} | {rule.source} |")
    return "\n".join(lines)


def test_the_page_lists_every_rule():
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0].strip() == table()
