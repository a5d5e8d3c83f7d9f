"""tree-sitter's tree of a script: its parts by what they are for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

ENGINES = ("vllm", "sglang", "trtllm")
"""What stands in every command that starts one."""
MATTERS = ("variable_assignment", "heredoc_redirect")
"""What a branch does that what follows may rest on."""


def branches(node: Node) -> Iterator[tuple[Sequence[Node] | None, Node]]:
    """(condition, side) of an `if`: its own, those of its elifs, and of its else, which has no condition."""
    yield before_then(node), node
    for child in node.named_children:
        if child.type == "elif_clause":
            yield before_then(child), child
        elif child.type == "else_clause":
            yield None, child


def before_then(node: Node) -> list[Node]:
    """The condition of an `if` or an `elif`."""
    then = next((child.start_byte for child in node.children if child.type == "then"), node.end_byte)
    return [child for child in node.named_children if child.start_byte < then]


def statements(side: Node, statement: Node) -> list[Node]:
    """Statements of one side."""
    if side.type == "case_item":
        start = next((child.end_byte for child in side.children if child.type == ")"), side.start_byte)
    else:
        start = next((child.end_byte for child in side.children if child.type in ("then", "else")), side.start_byte)
    inside = (child for child in side.named_children if child.start_byte >= start)
    if side != statement:
        return list(inside)
    return [child for child in inside if child.type not in ("elif_clause", "else_clause")]


def matters(node: Node) -> bool:
    """Whether something in a branch sets, writes, ends or starts what the rest may rest on."""
    waiting = list(node.named_children)
    while waiting:
        found = waiting.pop()
        if found.type in MATTERS or (found.type == "command" and _ends_or_starts(source_text(found))):
            return True
        waiting += found.named_children
    return False


def _ends_or_starts(command: str) -> bool:
    return command.startswith("exit") or may_start_engine(command)


def may_start_engine(text: str) -> bool:
    """Whether an engine's name stands in it: what has none needs no closer look."""
    return any(name in text for name in ENGINES)


def ends_its_line(assignment: Node, command: Node) -> bool:
    """Whether a line ends between an assignment and the program's name: the parser takes such lines for one command."""
    name = command.child_by_field_name("name")
    data, start = command.text or b"", command.start_byte
    between = data[assignment.end_byte - start : name.start_byte - start] if name is not None else b""
    return b"\n" in between.replace(b"\\\n", b"")


def source_text(node: Node | None) -> str:
    """As it stands; nothing of none."""
    return (node.text or b"").decode("utf-8", "replace") if node is not None else ""


@functools.cache
def parser() -> Parser:
    """For bash."""
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))
