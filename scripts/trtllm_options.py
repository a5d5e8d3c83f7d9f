#!/usr/bin/env python3
"""Options of a TensorRT-LLM release, read from a checkout without running it -> as `engine_options.py dump` prints them.

Its wheels need CUDA libraries to be imported, so the declarations are read as syntax: the click options of `trtllm-serve`, and
every field of the settings file (--config, --extra_llm_api_options), under its path: `kv_cache_config.dtype`.

dump:  python scripts/trtllm_options.py CHECKOUT 1.3.0rc3 > trtllm_1.3.0rc3.json
merge: python scripts/engine_options.py merge trtllm "how they were read" trtllm_*.json > search_spaces/data/options/trtllm.json
"""

from __future__ import annotations

import ast
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ARGUMENTS, SERVE = "tensorrt_llm/llmapi/llm_args.py", "tensorrt_llm/commands/serve.py"
BESIDE = ("tensorrt_llm/lora_helper.py", "tensorrt_llm/models/modeling_utils.py", "tensorrt_llm/mapping.py")
"""Files that declare classes which fields are of."""
ROOT = "TorchLlmArgs"
PLAIN = {"bool": "bool", "int": "int", "float": "float", "str": "str", "dict": "document", "Dict": "document", "list": "list",
         "List": "list", "Set": "list", "set": "list", "tuple": "list", "Tuple": "list", "PositiveInt": "int",
         "NonNegativeInt": "int", "NonNegativeFloat": "float", "PositiveFloat": "float", "Path": "str"}  # fmt: skip
OBJECTS = {"load_balancer": "MoeLoadBalancerConfig"}
"""Fields that are declared as any object -> the class that the release makes of a mapping (validate_load_balancer)."""
DEEPEST = 6
VARIABLES = re.compile(r"\b(?:TRTLLM|TLLM)_[A-Z0-9_]*[A-Z0-9]\b")


@dataclass
class Kind:
    """What a field takes."""

    types: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def add(self, other: Kind) -> None:
        self.types += [name for name in other.types if name not in self.types]
        self.choices += [name for name in other.choices if name not in self.choices]
        self.classes += other.classes


class Sources:
    """Classes and aliases of the files that declare fields."""

    def __init__(self, checkout: pathlib.Path) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.aliases: dict[str, ast.expr] = {}
        for name in (*BESIDE, ARGUMENTS):
            file = checkout / name
            if file.exists():
                self._take(ast.parse(file.read_text(encoding="utf-8")))

    def _take(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.aliases[statement.targets[0].id] = statement.value
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                self.aliases[statement.target.id] = statement.value

    def bases(self, name: str) -> list[str]:
        """Names of a class's own bases."""
        return [last_name(base) for base in self.classes[name].bases] if name in self.classes else []

    def is_a(self, name: str, base: str) -> bool:
        """Whether a class descends from another, by name."""
        return name == base or any(self.is_a(parent, base) for parent in self.bases(name))

    def descendants(self, name: str) -> list[str]:
        """A class and those that are made from it."""
        return [other for other in self.classes if self.is_a(other, name)]

    def declared(self, name: str) -> dict[str, ast.AnnAssign]:
        """Fields of a class and of its bases."""
        found: dict[str, ast.AnnAssign] = {}
        for base in self.bases(name):
            found |= self.declared(base)
        body = self.classes[name].body if name in self.classes else []
        for statement in body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = statement
        return {key: value for key, value in found.items() if not key.startswith("_")}

    def kind(self, node: ast.expr) -> Kind:
        """Of an annotation."""
        found = Kind()
        match node:
            case ast.Constant(value=None):
                pass
            case ast.Constant(value=str(text)):
                found.add(self.kind(ast.parse(text, mode="eval").body))
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                found.add(self.kind(left))
                found.add(self.kind(right))
            case ast.Subscript(value=outer, slice=inner):
                self._subscript(last_name(outer), inner, found)
            case ast.Name() | ast.Attribute():
                self._named(last_name(node), found)
        return found

    def _subscript(self, outer: str, inner: ast.expr, found: Kind) -> None:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if outer == "Literal":
            values = [part.value for part in parts if isinstance(part, ast.Constant)]
            found.add(Kind(["str"], [str(value) for value in values]))
        elif outer in ("Optional", "Union", "Annotated", "Type"):
            for part in parts[:1] if outer == "Annotated" else parts:
                found.add(self.kind(part))
        elif outer in PLAIN:
            found.add(Kind([PLAIN[outer]]))
        else:
            found.add(Kind(["any"]))

    def _named(self, name: str, found: Kind) -> None:
        if name in PLAIN:
            found.add(Kind([PLAIN[name]]))
        elif name in self.aliases:
            found.add(self.kind(self.aliases[name]))
        elif name in self.classes and any(self.is_a(name, base) for base in ("Enum", "StrEnum", "IntEnum")):
            found.add(Kind(["str"], self._members(name)))
        elif name in self.classes:
            found.add(Kind(["document"], classes=self.descendants(name)))
        else:
            found.add(Kind(["any"]))

    def _members(self, name: str) -> list[str]:
        """What an enumeration may be given as: the text of a member, else its name."""
        members = [s for s in self.classes[name].body if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
        texts = [s.value.value for s in members if isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)]
        return texts or [s.targets[0].id for s in members if isinstance(s.targets[0], ast.Name)]


def last_name(node: ast.expr) -> str:
    """`x.y.Name` -> Name."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(value=value) | ast.Call(func=value):
            return last_name(value)
    return ""


def fields(sources: Sources, names: list[str], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Kind]]:
    """Every field of some classes, by path; a field of several of them once."""
    found: dict[str, Kind] = {}
    for name in names:
        for key, statement in sources.declared(name).items():
            kind = sources.kind(statement.annotation)
            if last_name(statement.annotation) == "ClassVar":  # decoding_type: what the file says to pick the class
                if not isinstance(statement.value, ast.Constant):
                    continue
                kind = Kind(["str"], [str(statement.value.value)])
            if key in OBJECTS:
                kind.add(Kind(["document"], classes=[OBJECTS[key]]))
            found.setdefault(key, Kind()).add(kind)
    for key, kind in found.items():
        yield prefix + key, kind
        if kind.classes and depth < DEEPEST:
            yield from fields(sources, list(dict.fromkeys(kind.classes)), f"{prefix}{key}.", depth + 1)


def commands(checkout: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Options of `trtllm-serve serve`."""
    tree = ast.parse((checkout / SERVE).read_text(encoding="utf-8"))
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name == "serve":
            for decorator in function.decorator_list:
                if isinstance(decorator, ast.Call) and last_name(decorator.func) == "option":
                    yield option(decorator)


def option(call: ast.Call) -> dict[str, Any]:
    """One click option."""
    flags = [
        word
        for a in call.args
        if isinstance(a, ast.Constant) and str(a.value).startswith("-")
        for word in str(a.value).split("/")
    ]
    said = {keyword.arg: keyword.value for keyword in call.keywords}
    flag = said.get("is_flag")
    if isinstance(flag, ast.Constant) and flag.value is True:
        return {"flags": flags, "type": "_StoreTrueAction", "nargs": 0}
    kind = said.get("type")
    found: dict[str, Any] = {"flags": flags, "type": last_name(kind) if kind is not None else "str"}
    if isinstance(kind, ast.Call) and kind.args and isinstance(kind.args[0], ast.List):
        aliases = [key for argument in kind.args[1:] if isinstance(argument, ast.Dict) for key in argument.keys]
        found["type"] = "str"
        found["choices"] = [part.value for part in (*kind.args[0].elts, *aliases) if isinstance(part, ast.Constant)]
    elif isinstance(kind, ast.Call):
        found["type"] = "str"
    return found


def dump(checkout: pathlib.Path, release: str) -> dict[str, Any]:
    """What a release takes: fields of its settings file, then options of its command."""
    found = dict(fields(Sources(checkout), [ROOT]))
    options = [
        {"flags": [path], "type": "|".join(kind.types) or "any", **({"choices": kind.choices} if kind.choices else {})}
        for path, kind in found.items()
    ]
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in (checkout / "tensorrt_llm").rglob("*.py"))
    env = sorted({name for text in texts for name in VARIABLES.findall(text)})
    return {"engine": "trtllm", "release": release, "options": [*options, *commands(checkout)], "env": env}


if __name__ == "__main__":
    json.dump(dump(pathlib.Path(sys.argv[1]), sys.argv[2]), sys.stdout)
