"""The result table: one line for each problem, asked and found."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.documents.sweep import Found, SweptRow
from autotune.errors import OutputError, ProblemError
from autotune.files import write_whole

FORMATS = ("parquet", "csv")
FOUND = tuple(name for name in Found.model_fields if name != "deployment")


def columns_of(rows: Sequence[SweptRow]) -> dict[str, list[Any]]:
    """Columns: number, line, every field that any problem sets (dotted where nested), what was found, the deployment as JSON."""
    asked = [_flat(row.problem) for row in rows]
    names = list(dict.fromkeys(name for one in asked for name in one))
    columns: dict[str, list[Any]] = {"number": [row.number for row in rows], "line": [row.line for row in rows]}
    columns |= {f"problem.{name}": [one.get(name) for one in asked] for name in names}
    columns |= {name: [getattr(row.found, name) for row in rows] for name in FOUND}
    deployments = [row.found.deployment for row in rows]
    columns["deployment"] = [None if each is None else each.model_dump_json(exclude_defaults=True) for each in deployments]
    return columns


def _flat(asked: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted names; lists as JSON."""
    flat: dict[str, Any] = {}
    for name, value in asked.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def check_format(kind: str) -> None:
    """Raise ProblemError for a format that cannot be written, before minutes are spent."""
    if kind not in FORMATS:
        raise ProblemError(f"--format {kind}: choose one of {', '.join(FORMATS)}")
    if kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ProblemError("parquet needs pyarrow: pip install 'moe-autotune[sweep]', or choose --format csv") from error


def write_table(path: Path, rows: Sequence[SweptRow]) -> None:
    """Write .parquet or .csv by the name; an existing file is replaced whole or not at all. Raises OutputError."""
    columns = columns_of(rows)
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_whole(path, text.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".autotune-", dir=path.parent)
        os.close(handle)
        pq.write_table(pa.table({name: pa.array(_alike(values)) for name, values in columns.items()}), scratch)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _alike(values: list[Any]) -> list[Any]:
    """Values of one type: numbers as numbers, else text (a bad entry may hold anything)."""
    given = [value for value in values if value is not None]
    kinds = {type(value) for value in given}
    if len(kinds) <= 1 and not kinds & {dict, list}:
        return values
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value) for value in values]
