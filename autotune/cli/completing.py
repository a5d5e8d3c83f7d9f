"""Shell completion of names: read from folders, nothing is parsed and no library is loaded at a press of the tab key."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

RUN_FILE = "plan.yaml"


def hardware(incomplete: str) -> list[str]:
    """Names of the hardware catalogue."""
    return _starting(incomplete, _stems("cost_models", "data", "hardware"))


def models(incomplete: str) -> list[str]:
    """Model presets."""
    return _starting(incomplete, _stems("cost_models", "data", "models"))


def precisions(incomplete: str) -> list[str]:
    """Precision recipes."""
    return _starting(incomplete, _stems("cost_models", "data", "precisions"))


def engines(incomplete: str) -> list[str]:
    """Engines that have a document."""
    return _starting(incomplete, _stems("search_spaces", "data"))


def documents(incomplete: str) -> list[str]:
    """Documents that have a schema."""
    from autotune.cli.published import names

    return _starting(incomplete, names())


def runs(incomplete: str) -> list[str]:
    """Run folders beside what is typed, and those under results/ where nothing is typed; any folder that may hold some."""
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") else typed.parent
    places = {parent, Path("results")} if not incomplete else {parent}
    found = []
    for place in sorted(places):
        try:
            inside = [entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:
            continue
        found += [str(entry) if (entry / RUN_FILE).is_file() else f"{entry}/" for entry in sorted(inside)]
    return _starting(incomplete.removeprefix("./"), found)


def calibrations(incomplete: str) -> list[str]:
    """Calibration documents beside what is typed: YAML files and folders on the way to them."""
    parent = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        inside = sorted(parent.iterdir())
    except OSError:
        return []
    found = [
        f"{entry}/" if entry.is_dir() else str(entry) for entry in inside if entry.is_dir() or entry.suffix in (".yaml", ".yml")
    ]
    return _starting(incomplete.removeprefix("./"), found)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _stems(package: str, *folder: str) -> list[str]:
    """Names of a package's YAML documents, found without importing the package."""
    found = importlib.util.find_spec(package)
    roots = list(found.submodule_search_locations or ()) if found else []
    return sorted(file.stem for root in roots for file in Path(root, *folder).glob("*.yaml"))
