"""The timing table being written: whole after every row, so that what was measured is never lost."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import ProblemError
from autotune.files import write_whole
from autotune.measuring.shapes import KernelShape

FORMAT = "autotune-measured/1"
FIXED = ("operator", "dtype", "gpu", "latency_s", "kernel", "spread", "error")
TEXT = ("operator", "dtype", "gpu", "kernel")
MEASURED_NOT_ASKED = ("active_experts",)
"""Columns that a measurement finds out; they do not tell shapes apart."""


@dataclass
class MeasuredTable:
    """Rows and failures of one GPU, beside each other in PATH.csv and PATH.json."""

    path: Path
    gpu: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Provenance of every run that added to the table."""

    @classmethod
    def opened(cls, path: Path, gpu: str, run: dict[str, Any]) -> MeasuredTable:
        """A new table, or the one to resume; raises ProblemError for a file that is not this tool's or another GPU's."""
        table = cls(path, gpu)
        if path.exists():
            table._resume()
        table.runs.append(run)
        return table

    @property
    def notes_path(self) -> Path:
        return self.path.with_suffix(".json")

    def has(self, shape: KernelShape) -> bool:
        """Whether the shape was timed, or failed, already."""
        return shape.key in self._known

    def add(self, shape: KernelShape, latency_s: float, **notes: Any) -> None:
        """One timed shape."""
        self.rows.append(
            {"operator": shape.operator, "dtype": shape.dtype, "gpu": self.gpu, "latency_s": latency_s, **notes, **shape.columns}
        )
        self._known.add(shape.key)
        self.write()

    def fail(self, shape: KernelShape, reason: str) -> None:
        """One shape that could not be timed."""
        self.failed.append({"shape": shape.label(), "reason": reason})
        self.write()

    def write(self) -> None:
        """Both files, each whole."""
        columns = [*FIXED, *dict.fromkeys(name for row in self.rows for name in row if name not in FIXED)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        notes = {"format": FORMAT, "gpu": self.gpu, "runs": self.runs, "failed": self.failed}
        write_whole(self.path, text.getvalue())
        write_whole(self.notes_path, json.dumps(notes, indent=1) + "\n")

    def __post_init__(self) -> None:
        self._known: set[tuple[object, ...]] = set()

    def _resume(self) -> None:
        notes = _notes(self.notes_path, self.path)
        if notes["gpu"] != self.gpu:
            raise ProblemError(f"{self.path} holds measurements of {notes['gpu']}, this is {self.gpu}; choose another --out")
        with self.path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(FIXED) <= set(reader.fieldnames or ()):
                raise ProblemError(f"{self.path}: columns {', '.join(FIXED)} are expected; choose another --out or remove it")
            for line, row in enumerate(reader, start=2):
                self.rows.append(_row(row, self.path, line))
        self.runs = list(notes["runs"])
        self._known = {_shape_of(row).key for row in self.rows}


def _notes(path: Path, table: Path) -> dict[str, Any]:
    """The document beside a table."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProblemError(
            f"{table} cannot be resumed: {path} is missing or broken; choose another --out or remove it"
        ) from error
    if not isinstance(notes, dict) or notes.get("format") != FORMAT or not {"gpu", "runs"} <= set(notes):
        raise ProblemError(f"{path} was not written by autotune measure; choose another --out")
    return notes


def _row(row: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    """Numbers of one line; empty cells are columns of other operators."""
    try:
        if None in row or None in row.values():
            raise ValueError("cells are missing or too many")
        return {k: v if k in TEXT else float(v) for k, v in row.items() if v != ""}
    except ValueError as error:
        raise ProblemError(f"{path} line {line} is not whole ({error}); repair or remove the line") from error


def _shape_of(row: dict[str, Any]) -> KernelShape:
    columns = {k: v for k, v in row.items() if k not in FIXED and k not in MEASURED_NOT_ASKED}
    return KernelShape(row["operator"], row["dtype"], columns)


def _cell(value: Any) -> Any:
    """Seconds and ratios to six digits, whole numbers plainly."""
    if not isinstance(value, float):
        return value
    return int(value) if value.is_integer() else f"{value:.6g}"
