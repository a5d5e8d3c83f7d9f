"""What words become: variables, defaults, arrays, arithmetic, and what a condition says of them."""

from __future__ import annotations

import fnmatch
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.auditing.bash.arithmetic import evaluated, integer
from autotune.auditing.bash.tree import parser, source_text
from autotune.errors import ProblemError

if TYPE_CHECKING:
    from tree_sitter import Node

MOST_EXPANDED = 1_000_000
"""Characters of all that variables and substitutions become."""
VALUES = ("simple_expansion", "expansion", "command_substitution", "arithmetic_expansion")
NAME = re.compile(r"[A-Za-z_]\w*")
EXPANSION = re.compile(r"\$\{(?P<name>\w+|[@*])(?:\[(?P<index>[^]]*)\])?(?P<operator>:?[-=+?]|%%?|##?)?(?P<rest>.*)\}", re.DOTALL)
SPLITS = re.compile(r"[ \t\r\n]+")
ESCAPED = re.compile(r"\\(.)", re.DOTALL)
ESCAPED_IN_QUOTES = re.compile(r'\\([$`"\\\n])')
ESCAPED_HERE = re.compile(r"\\([$`\\\n])")
COMPARES: Mapping[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq, "-ne": operator.ne, "-gt": operator.gt, "-ge": operator.ge, "-lt": operator.lt, "-le": operator.le,
}  # fmt: skip


@dataclass(slots=True)
class Values(ABC):
    """What is set, and what it makes of the words of a tree."""

    variables: dict[str, str]
    arrays: dict[str, list[str]] = field(default_factory=dict)
    asked: dict[str, None] = field(default_factory=dict)
    """Variables that nothing sets and a branch asks for: to it they are empty, as to the shell."""
    asking: bool = False
    """Whether what is expanded belongs to the condition of a branch that matters."""
    length: int = 0
    """Characters that have been filled in."""

    @abstractmethod
    def _substituted(self, node: Node) -> str | None:
        """What a command prints, where that can be told."""

    def _words(self, node: Node) -> list[str]:
        """What an argument becomes: none, one or several words."""
        if (items := self._items(node)) is not None:
            return items
        done: list[str] = []
        current: str | None = None
        for text, splits in self._pieces(node):
            parts = SPLITS.split(text) if splits else [text]
            if splits and len(parts) == 1 and not text:
                continue
            for at, part in enumerate(parts):
                if at and current is not None:
                    done.append(current)
                    current = None
                if part or not splits:
                    current = (current or "") + part
        return done if current is None else [*done, current]

    def _items(self, node: Node) -> list[str] | None:
        """The elements of `"${NAME[@]}"`; none for another word."""
        quoted = node.type == "string"
        inner = node.named_children[0] if quoted and len(node.named_children) == 1 else node
        match = EXPANSION.fullmatch(source_text(inner)) if inner.type == "expansion" else None
        if match is None or match["index"] not in ("@", "*") or match["operator"] or match["name"] not in self.arrays:
            return None
        items = self.arrays[match["name"]]
        return list(items) if quoted else [part for item in items for part in SPLITS.split(item) if part]

    def _joined(self, node: Node) -> str:
        """A value that is not split."""
        text = "".join(text for text, _ in self._pieces(node))
        self._count(len(text))
        return text

    def _pieces(self, node: Node) -> Iterator[tuple[str, bool]]:
        """(text, whether blanks in it split the word)."""
        match node.type:
            case "string":
                yield self._filled(node, 1, 1, ESCAPED_IN_QUOTES), False
            case "raw_string":
                yield source_text(node)[1:-1], False
            case "ansi_c_string":
                yield source_text(node)[2:-1].encode("latin-1", "replace").decode("unicode_escape", "replace"), False
            case "concatenation":
                for child in node.children:
                    yield from self._pieces(child)
            case "simple_expansion" | "expansion" | "command_substitution":
                value = self._value(node)
                yield (source_text(node), False) if value is None else (value, True)
            case "arithmetic_expansion":
                yield self._value(node) or source_text(node), False
            case "word":
                yield ESCAPED.sub(lambda m: "" if m[1] == "\n" else m[1], source_text(node)), False
            case _:
                yield source_text(node), False

    def _filled(self, node: Node, left: int, right: int, escaped: re.Pattern[str]) -> str:
        """A text with its values filled in; left, right : bytes of quotes around it."""
        data = node.text or b""
        at, parts = left, []
        for child in node.named_children:
            if child.type not in VALUES:
                continue
            start = child.start_byte - node.start_byte
            value = self._value(child)
            parts += [_unescaped(data[at:start], escaped), source_text(child) if value is None else value]
            at = child.end_byte - node.start_byte
        parts.append(_unescaped(data[at : len(data) - right], escaped))
        found = "".join(parts)
        self._count(len(found))
        return found

    def _value(self, node: Node) -> str | None:
        """What a variable, an arithmetic or a substituted command stands for; None where that is not known."""
        if node.type == "arithmetic_expansion":
            number = self._arithmetic(node)
            return f"$(({SPLITS.sub('', source_text(node)[3:-2])}))" if number is None else str(int(number))
        if node.type == "command_substitution":
            return self._substituted(node)
        if node.type == "simple_expansion":
            return self._known(source_text(node)[1:])
        match = EXPANSION.fullmatch(source_text(node))
        return self._changed(node, match) if match else None

    def _arithmetic(self, node: Node) -> int | None:
        try:
            return self._number(node.named_children[0]) if node.named_children else None
        except RecursionError:  # a sum of thousands
            return None

    def _known(self, name: str) -> str | None:
        held = self._held(name)
        if held is None and self.asking and NAME.fullmatch(name):
            self.asked[name] = None
            return ""
        return held

    def _held(self, name: str) -> str | None:
        """What a variable is set to, of an array its first element; none where nothing sets it."""
        if name in self.variables:
            return self.variables[name]
        return " ".join(self.arrays[name][:1]) if name in self.arrays else None

    def _changed(self, node: Node, match: re.Match[str]) -> str | None:
        name, change = match["name"], match["operator"]
        value = held = self._held(name)
        if match["index"] in ("@", "*"):
            value = " ".join(self.arrays[name]) if name in self.arrays else None
        elif match["index"]:
            return None
        if not change:
            return self._known(name) if value is None else value
        if change.endswith(("-", "=", "+")):
            there = bool(value) if change.startswith(":") else held is not None
            if change.endswith("+"):
                return self._rest(node, change) if there else ""
            return value if there else self._rest(node, change)
        if change.endswith("?") or value is None:
            return value
        return _trimmed(value, self._rest(node, change), change)

    def _rest(self, node: Node, change: str) -> str:
        """What stands after the operator of `${NAME:-...}`."""
        place = next((child.end_byte for child in node.children if source_text(child) == change), None)
        if place is None:
            return ""
        parts = [child for child in node.named_children if child.start_byte >= place]
        if len(parts) == 1 and source_text(parts[0]).startswith("$(("):  # the parser takes arithmetic here for a command
            again = parser().parse(b"echo " + (parts[0].text or b"")).root_node
            parts = [child for child in again.named_children[0].named_children if child.type == "arithmetic_expansion"] or parts
        return "".join(self._joined(part) for part in parts)

    def _count(self, characters: int) -> None:
        self.length += characters
        if self.length > MOST_EXPANDED:
            raise ProblemError(
                f"the script has more than {MOST_EXPANDED:,} characters with its variables: give its last command alone"
            )

    def _truth(self, node: Node) -> bool | None:
        match node.type:
            case "parenthesized_expression":
                return self._truth(node.named_children[0])
            case "unary_expression":
                return self._unary(node)
            case "binary_expression":
                return self._binary(node)
            case _:
                return self._given(node)

    def _unary(self, node: Node) -> bool | None:
        sign, operand = source_text(node.children[0]), node.named_children[-1]
        if sign == "!":
            return opposite(self._truth(operand))
        if sign in ("-n", "-z"):
            there = self._given(operand)
            return there if sign == "-n" else opposite(there)
        return None

    def _given(self, node: Node) -> bool | None:
        """Whether a text is not empty; what is not known may be."""
        text = self._joined(node)
        return None if "$" in text else bool(text)

    def _binary(self, node: Node) -> bool | None:
        left, right = node.named_children[0], node.named_children[-1]
        sign = source_text(node.child_by_field_name("operator"))
        if sign in ("&&", "-a", "||", "-o"):
            first, second = self._truth(left), self._truth(right)
            decides = sign in ("||", "-o")
            if decides in (first, second):
                return decides
            return None if None in (first, second) else not decides
        if sign in COMPARES:
            numbers = [integer(self._joined(side)) for side in (left, right)]
            return None if None in numbers else COMPARES[sign](numbers[0] or 0, numbers[1] or 0)
        if sign not in ("=", "==", "!="):
            return None
        text, pattern = self._joined(left), self._joined(right)
        if "$" in text or "$" in pattern:
            return None
        alike = text == pattern or (right.type not in ("string", "raw_string") and fnmatch.fnmatchcase(text, pattern))
        return alike if sign != "!=" else not alike

    def _number(self, node: Node) -> int | None:
        """Whole-number arithmetic; None where a name is not known or it goes too far.

        By C's precedence over the words of the expression: the parser takes `-1 + 1` for the negative of a sum.
        """
        words = [*self._operands(node), ""]
        value = evaluated(words)
        return value if words == [""] else None

    def _operands(self, node: Node) -> Iterator[int | str | None]:
        """Numbers and signs of an expression, in order; None for what has no number."""
        if node.type in VALUES or node.type in ("string", "number"):
            yield integer(self._joined(node))
        elif node.type in ("variable_name", "word"):
            yield integer(self._known(source_text(node)) or source_text(node))
        elif node.children:
            for child in node.children:
                yield from self._operands(child)
        else:
            yield source_text(node)


def _unescaped(data: bytes, escaped: re.Pattern[str]) -> str:
    return escaped.sub(lambda m: "" if m[1] == "\n" else m[1], data.decode("utf-8", "replace"))


def _trimmed(value: str, pattern: str, change: str) -> str:
    """Without the shortest (%, #) or longest (%%, ##) end or beginning that a pattern matches."""
    lengths = range(len(value) + 1) if len(change) == 1 else range(len(value), -1, -1)
    for length in lengths:
        part = value[len(value) - length :] if change.startswith("%") else value[:length]
        if fnmatch.fnmatchcase(part, pattern):
            return value[: len(value) - length] if change.startswith("%") else value[length:]
    return value


def opposite(status: bool | None) -> bool | None:
    """Not; of what is not known, not known either."""
    return None if status is None else not status


def truthy(number: int | None) -> bool | None:
    """Whether arithmetic succeeds."""
    return None if number is None else bool(number)
