"""What a bash script does until it starts something: variables, arrays, branches, functions, here-documents.

The parser is tree-sitter's; here its tree is walked as the shell would run it, as far as that can be told without running
anything. Of a branch that cannot be decided both sides are read. Programs are not run: what they print is not known.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.auditing.bash.printing import PRINTS
from autotune.auditing.bash.tree import branches, ends_its_line, matters, may_start_engine, parser, source_text, statements
from autotune.auditing.bash.values import ESCAPED_HERE, Values, opposite, truthy
from autotune.errors import ProblemError

if TYPE_CHECKING:
    from tree_sitter import Node

DEEPEST_TURNS = 3
DEEPEST_CALL = 20
"""Functions and quoted scripts inside each other."""
OWN_FOLDER = re.compile(r"\$\(dirname (?:-- )?['\"]?\$(?:0|\{0\}|BASH_SOURCE|\{BASH_SOURCE(?:\[0\])?\})['\"]?\)")
"""Where the script itself lies."""
WENT_THERE = re.compile(r"\$\(cd (?:-- )?['\"]?\.['\"]? (?:&& |; )pwd\)")
SHELLS = ("bash", "sh", "zsh")


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that the script runs."""

    words: tuple[str, ...]
    variables: Mapping[str, str]
    """All that are set by then, on its line too, of a program that may be an engine; none of others."""


@dataclass(slots=True)
class Interpreter(Values):
    """State of the shell."""

    files: dict[str, str] = field(default_factory=dict)
    """What it writes: path -> text."""
    ran: list[Ran] = field(default_factory=list)
    undecided: dict[str, None] = field(default_factory=dict)
    """Conditions of branches of which both sides were read."""
    exited_by: str | None = None
    """The command that ended it before its last line."""
    broken: bool = False
    """Whether the parser had to guess."""
    functions: dict[str, Node] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    printed: list[str] | None = None
    """What a substituted command prints; none outside of one."""
    untold: bool = False
    """Whether it prints what is not known here."""
    unsure: int = 0
    """Undecided branches around the running line."""
    depth: int = 0
    turns: int = 0
    """Loops that are run again around the running line."""

    def run(self, text: str) -> Interpreter:
        """Run a text to its end, then what it defines and never calls; raises ProblemError for what is too deep or too long."""
        try:
            self._run(text)
            self.unsure += 1
            for name, body in list(self.functions.items()):
                if name not in self.called:
                    self._call(name, body, [])
        except _Exited:
            pass
        except RecursionError as error:
            raise ProblemError("the script nests too deeply to be read: give its last command alone") from error
        return self

    def _run(self, text: str) -> None:
        root = parser().parse(text.replace("\r\n", "\n").encode("utf-8", "replace")).root_node
        self.broken = self.broken or root.has_error
        self._all(root.named_children)

    # --- Statements: True where they succeed, False where they fail, None where that is not known

    def _all(self, nodes: Sequence[Node]) -> bool | None:
        status: bool | None = True
        for node in nodes:
            if node.type != "comment":
                status = self._do(node)
        return status

    def _do(self, node: Node) -> bool | None:
        match node.type:
            case "command":
                return self._command(node)
            case "redirected_statement":
                return self._redirected(node)
            case "variable_assignment":
                return self._assign(node)
            case "if_statement":
                return self._branch(node, list(branches(node)))
            case "case_statement":
                return self._branch(node, [(_Case(node, item), item) for item in node.named_children if item.type == "case_item"])
            case "list":
                return self._list(node)
            case "test_command":
                return self._truth(node.named_children[0]) if node.named_children else False
            case "negated_command":
                return opposite(self._all(node.named_children))
            case "compound_statement" if node.children[0].type == "((":
                return truthy(self._number(node.named_children[0])) if node.named_children else False
            case "pipeline":
                self.untold = True
                return self._all(node.named_children)
            case "for_statement" | "while_statement" | "c_style_for_statement":
                return self._loop(node)
            case "function_definition":
                self.functions[source_text(node.child_by_field_name("name"))] = node.child_by_field_name("body") or node
                return True
            case _:
                return self._all(node.named_children)

    def _list(self, node: Node) -> bool | None:
        left, second = node.named_children[0], node.named_children[-1]
        status = self._do(left)
        wanted = node.children[1].type == "&&"
        if status is None:
            self.unsure += 1
            self._do(second)
            self.unsure -= 1
            return None
        return self._do(second) if status is wanted else status

    def _branch(self, node: Node, sides: Sequence[tuple[_Case | Sequence[Node] | None, Node]]) -> bool | None:
        """The side whose condition holds; where that is not known, every side that may be."""
        counts, before = matters(node), self.asking
        unsure = 0
        status: bool | None = True
        for condition, side in sides:
            self.asking = counts or before
            holds = self._holds(condition)
            self.asking = before
            if holds is False:
                continue
            if holds is None:
                unsure = 1
                if counts:
                    self.undecided[source_text(node).splitlines()[0][:80]] = None
            self.unsure += unsure
            status = self._all(statements(side, node))
            self.unsure -= unsure
            if holds:
                break
        return None if unsure else status

    def _holds(self, condition: _Case | Sequence[Node] | None) -> bool | None:
        if condition is None:
            return True
        return self._matches(condition) if isinstance(condition, _Case) else self._all(condition)

    def _matches(self, case: _Case) -> bool | None:
        word = self._joined(case.word)
        if "$" in word:
            return None
        patterns = case.item.children_by_field_name("value")
        return any(fnmatch.fnmatchcase(word, self._joined(pattern)) for pattern in patterns)

    def _loop(self, node: Node) -> bool | None:
        """Its body once, with the first of its values; what another turn would change is not known after it."""
        name, values = node.child_by_field_name("variable"), node.children_by_field_name("value")
        first = next((word for value in values for word in self._words(value)), None)
        if name is not None and first is not None:
            self.variables[source_text(name)] = first
        body = node.child_by_field_name("body")
        if body is None:
            return None
        status = self._all(body.named_children)
        self._forget_what_moves(body)
        return status

    def _forget_what_moves(self, body: Node) -> None:
        """Run the body again on a copy: counters and lists that grow go on for as many turns as nobody knows."""
        if self.turns >= DEEPEST_TURNS or not matters(body):
            return
        again = dataclasses.replace(
            self, variables=dict(self.variables), arrays={name: list(items) for name, items in self.arrays.items()},
            files={}, ran=[], asked={}, undecided={}, functions=dict(self.functions), called=set(),
            turns=self.turns + 1, unsure=1,
        )  # fmt: skip
        again._all(body.named_children)
        self.length = again.length
        for name, value in again.variables.items():
            if self.variables.get(name) != value:
                self.variables[name] = f"${name}"
        for name, items in again.arrays.items():
            if self.arrays.get(name) != items:
                self.arrays[name] = [f"${name}"]

    def _call(self, name: str, body: Node, arguments: Sequence[str]) -> bool | None:
        if self.depth >= DEEPEST_CALL:
            return None
        self.called.add(name)
        places = {str(at + 1): value for at, value in enumerate(arguments)}
        kept = {place: self.variables.get(place) for place in places}
        self.variables |= places
        self.depth += 1
        status = self._do(body)
        self.depth -= 1
        for place, value in kept.items():
            self.variables.pop(place)
            if value is not None:
                self.variables[place] = value
        return status

    def _command(self, node: Node) -> bool | None:
        own: dict[str, str] = {}
        for child in (child for child in node.named_children if child.type == "variable_assignment"):
            if ends_its_line(child, node):
                self._assign(child)
            else:
                own[source_text(child.child_by_field_name("name"))] = self._value_of(child)
        words = self._command_words(node)
        return self._execute(words, own) if words else None

    def _execute(self, words: list[str], own: Mapping[str, str]) -> bool | None:
        name, arguments = words[0], words[1:]
        if name in PRINTS:
            printed = PRINTS[name](arguments)
            if self.printed is not None and printed is not None:
                self.printed.append(printed)
            self.untold = self.untold or printed is None
            return True
        if name in ("true", ":", "false"):
            return name != "false"
        if name == "exit" and self.printed is None:
            self._exit(" ".join(words))
            return None
        if name in self.functions:
            return self._call(name, self.functions[name], arguments)
        if self.printed is not None:
            self.untold = True
            return None
        inner = next(_quoted_scripts(words), None)
        if inner is not None and self.depth < DEEPEST_CALL:
            self.depth += 1
            self._run(inner)
            self.depth -= 1
        else:
            self._start(words, own)
        return None

    def _start(self, words: Sequence[str], own: Mapping[str, str]) -> None:
        """Keep a program; what is set around it where it may be an engine."""
        kept = {**self.variables, **own} if any(may_start_engine(word) for word in words) else {}
        self.ran.append(Ran(tuple(words), kept))

    def _exit(self, command: str) -> None:
        if not self.unsure:
            self.exited_by = command
            raise _Exited

    def _redirected(self, node: Node) -> bool | None:
        """A statement whose output goes to a file, or that reads a here-document."""
        body = node.child_by_field_name("body")
        redirects = node.children_by_field_name("redirect")
        here = next((redirect for redirect in redirects if redirect.type == "heredoc_redirect"), None)
        path = next((found for redirect in redirects if (found := self._written_to(redirect))), None)
        if here is not None:
            return self._here(body, here, path)
        if path and body and body.type == "command" and source_text(body).startswith(("echo", "printf")):
            kept, self.printed = self.printed, []
            self._do(body)
            self._write(path, "".join(self.printed), appends=any(">>" in source_text(r)[:3] for r in redirects))
            self.printed = kept
            return True
        return self._do(body) if body else None

    def _here(self, body: Node | None, here: Node, path: str | None) -> bool | None:
        held = next((child for child in here.named_children if child.type == "heredoc_body"), None)
        word = next((source_text(child) for child in here.named_children if child.type == "heredoc_start"), "")
        text = source_text(held) if held is not None else ""
        if held is not None and not word.startswith(("'", '"', "\\")):
            text = self._filled(held, 0, 0, ESCAPED_HERE)
        if here.children[0].type == "<<-":
            text = re.sub(r"^\t+", "", text, flags=re.MULTILINE)
        words = self._command_words(body)
        tee = next((word for word in words[1:] if not word.startswith("-")), None) if words[:1] == ["tee"] else None
        if path or tee:
            self._write(path or str(tee), text, appends=">>" in source_text(here).split("\n")[0] or "-a" in words)
        if words and words[0] not in ("cat", "tee") and not (path or tee):
            self._start(words, {})
        self._read_inside(text)
        return None

    def _command_words(self, body: Node | None) -> list[str]:
        """A program and its arguments; none of what is no command."""
        children = body.named_children if body is not None and body.type == "command" else []
        said = (child for child in children if not child.type.endswith(("redirect", "variable_assignment", "comment")))
        names = (child.named_children[0] if child.type == "command_name" else child for child in said)
        return [word for child in names for word in self._words(child)]

    def _read_inside(self, text: str) -> None:
        """A here-document may be a script: programs that it runs count, what it sets and writes is its own."""
        if self.depth >= DEEPEST_CALL or not may_start_engine(text):
            return
        inner = Interpreter(dict(self.variables), dict(self.arrays), depth=self.depth + 1, length=self.length, unsure=1)
        self.ran += inner.run(text).ran

    def _written_to(self, redirect: Node) -> str | None:
        """The file that a redirection, or one inside a here-document's first line, writes."""
        if redirect.type == "heredoc_redirect":
            return next((path for child in redirect.named_children if (path := self._written_to(child))), None)
        if redirect.type == "pipeline":
            tees = (self._command_words(child) for child in redirect.named_children)
            return next((word for words in tees if words[:1] == ["tee"] for word in words[1:] if word[0] != "-"), None)
        if redirect.type != "file_redirect" or not any(child.type in (">", ">>", "&>") for child in redirect.children):
            return None
        place = redirect.child_by_field_name("destination")
        return self._joined(place) if place is not None else None

    def _write(self, path: str, text: str, *, appends: bool) -> None:
        self._count(len(text))
        self.files[path] = (self.files.get(path, "") if appends else "") + text

    def _assign(self, node: Node) -> bool:
        named, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        adds = any(child.type == "+=" for child in node.children)
        if named is None or named.type != "variable_name":
            return True
        name = source_text(named)
        if value is not None and value.type == "array":
            found = [word for child in value.named_children if child.type != "comment" for word in self._words(child)]
            self.arrays[name] = (self.arrays.get(name, []) if adds else []) + found
        else:
            self.variables[name] = (self.variables.get(name, "") if adds else "") + self._value_of(node)
        return True

    def _value_of(self, assignment: Node) -> str:
        value = assignment.child_by_field_name("value")
        return self._joined(value) if value is not None else ""

    def _substituted(self, node: Node) -> str | None:
        """What a command prints, where that can be told."""
        text = WENT_THERE.sub(".", OWN_FOLDER.sub(".", source_text(node)))
        if text == ".":
            return "."
        kept = self.printed, self.untold, dict(self.variables)
        self.printed, self.untold = [], False
        self._all(node.named_children)
        found = None if self.untold or not self.printed else "".join(self.printed).rstrip("\n")
        self.printed, self.untold, self.variables = kept
        self.untold = self.untold or (found is None and self.printed is not None)
        return found


class _Exited(Exception):
    """`exit` was reached."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A pattern's side of a `case`."""

    statement: Node
    item: Node

    @property
    def word(self) -> Node:
        return self.statement.child_by_field_name("value") or self.statement


def _quoted_scripts(words: Sequence[str]) -> Iterator[str]:
    """Texts that `bash -c` and its like run."""
    for shell, option, text in zip(words, words[1:], words[2:], strict=False):
        if posixpath.basename(shell) in SHELLS and re.fullmatch(r"-[a-z]*c", option):
            yield text
