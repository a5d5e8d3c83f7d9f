"""Files: written so that nothing is ever half-written, read plain or compressed, or shipped with the package."""

from __future__ import annotations

import gzip
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import IO, TypeVar

from autotune.errors import OutputError
from cost_models.catalog import parse_yaml, validated
from cost_models.specs.base import Spec

S = TypeVar("S", bound=Spec)


def open_text(path: Path) -> IO[str]:
    """A text file, gzip-compressed where its name ends so."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def packaged(kind: type[S], *parts: str) -> S:
    """A document under autotune/data, checked against its schema."""
    text = resources.files("autotune").joinpath("data", *parts).read_text(encoding="utf-8")
    return validated(kind, parse_yaml(text, parts[-1]), parts[-1])


def write_whole(path: Path, text: str) -> None:
    """Write to a temporary file, then rename: an existing file is replaced whole or not at all.

    Raises OutputError when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".autotune-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(out: Path) -> None:
    """Raise OutputError early, before minutes are spent on a search that could not be saved."""
    existing = next(p for p in [out, *out.parents] if p.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder, so {out} cannot be created; choose another with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write under {existing}; choose another folder with --out")
