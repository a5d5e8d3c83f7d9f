"""The journal of a sweep: every answer is on the disk before the next one is looked at."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO

from autotune.documents.sweep import Found
from autotune.errors import OutputError
from autotune.sweeping.slices import Slice

PREFIX = "answers"


class Journal:
    """Answers by key, in a folder; a context manager, for one writer at a time.

    Slices of one sweep write a file each and read all.
    """

    def __init__(self, folder: Path, part: Slice) -> None:
        self.folder = folder
        self.path = folder / f"{PREFIX}{part.suffix}.jsonl"
        self.file: IO[str] | None = None

    def __enter__(self) -> Journal:
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = stack.enter_context(self.path.open("a+", encoding="utf-8"))
                _claim(self.file, self.path)
                _end_line(self.file)
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
            stack.pop_all()  # it stays open
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def known(self) -> dict[str, Found]:
        """Every answer of earlier runs and of other slices; a line that a kill cut off is as if it were not there."""
        found: dict[str, Found] = {}
        for path in sorted(self.folder.glob(f"{PREFIX}*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    found[str(entry["key"])] = Found.model_validate(entry["found"])
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def add(self, key: str, found: Found) -> None:
        """Write one answer; failures are none, so that another run tries again."""
        if found.status == "failed" or self.file is None:
            return
        try:
            self.file.write(json.dumps({"key": key, "found": found.model_dump(mode="json", exclude_none=True)}) + "\n")
            self.file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; what was found before is kept") from error


def _claim(file: IO[str], path: Path) -> None:
    """Keep others from writing the same file, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(f"another sweep writes to {path}: wait for it, or choose another folder with --out") from error


def _end_line(file: IO[str]) -> None:
    """Start on a line of our own where a kill cut the last one off."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(size - 1)
        if file.read(1) != "\n":
            file.write("\n")
