"""A public name is defined once: whoever reads it in one module may trust it in the next."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("autotune", "cost_models", "search_spaces")
FACADES = ("autotune/cli/", "autotune/assistant/")
"""Commands and tools are called what the function behind them is called."""
ENTRIES = {
    "autotune/manifests/": ("read", "recognises"),
    "autotune/exporters/targets/": ("render",),
    "autotune/tuning/generators/": ("command", "read"),
}
"""Registries whose entries are modules: each has the same names."""


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names() -> set[tuple[str, str]]:
    """(module, name) of everything that some module imports from another."""
    found = set()
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {(node.module, alias.name) for alias in node.names}
    return found


def is_entry(relative: str, name: str) -> bool:
    return any(relative.startswith(folder) and name in names for folder, names in ENTRIES.items())


def test_a_public_name_is_defined_once() -> None:
    """Functions and classes, and constants that other modules import."""
    imported, homes = imported_names(), defaultdict(list)
    for path in modules():
        relative = path.relative_to(ROOT).as_posix()
        if relative.startswith(FACADES) or path.name in ("__init__.py", "mla_decode_triton.py"):
            continue
        module = relative.removesuffix(".py").replace("/", ".")
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not is_entry(relative, node.name):
                homes[node.name].append(module)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            homes_of_constants = [t.id for t in targets if isinstance(t, ast.Name) and (module, t.id) in imported]
            for name in homes_of_constants:
                homes[name].append(module)
    twice = {name: found for name, found in homes.items() if len(found) > 1 and not name.startswith("_")}
    assert twice == {}
