"""The timing table: one measured operator per row, checked before anything is fitted.

Columns: `operator`, `dtype`, `gpu`, exactly one of `latency_s`, `latency_ms`, `latency_us`, and the
shape columns of the operator (operators.py). CSV, JSON lines or Parquet. docs/timing-table.md.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autotune.calibrating.operators import OPERATORS
from autotune.errors import ProblemError
from cost_models.reading import MIB, RESULT, read_bytes, reading, regular

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}
LARGEST_SHAPE = 1e15
TEXT_COLUMNS = ("operator", "dtype", "gpu")


@dataclass(frozen=True, slots=True)
class TimingTable:
    """Checked rows, with what was left out and why."""

    rows: pd.DataFrame
    """operator, dtype, gpu, latency_s, source (file with its sha256) and the union of shape columns."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows left out; nothing is dropped silently."""

    def groups(self) -> list[tuple[str, str, pd.DataFrame]]:
        """(operator, calibration variant, rows), sorted: one group per fit."""
        variants = [OPERATORS[o].variant or d for o, d in zip(self.rows.operator, self.rows.dtype, strict=True)]
        return [(str(key[0]), str(key[1]), part) for key, part in self.rows.groupby([self.rows.operator, variants])]


def sha256_of(path: Path) -> str:
    """Hash of a raw file; raises ProblemError where there is none."""
    digest = hashlib.sha256()
    with reading(path, "cannot be read", ProblemError):
        regular(path)
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                digest.update(chunk)
    return digest.hexdigest()


def require_pandas() -> None:
    """Raise ProblemError when the extra is missing."""
    try:
        import pandas  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ProblemError("calibrating needs pandas and scipy: pip install 'moe-autotune[calibrate]'") from error


def read_timings(path: Path) -> TimingTable:
    """Read and check one table; raises ProblemError naming the column or rows at fault."""
    require_pandas()
    frame = _read(path)
    with reading(path, "cannot be read", ProblemError):  # a frame may hold what pandas itself cannot compare
        return checked_rows(frame, str(path), f"{path.name} sha256 {sha256_of(path)}")


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    readers: dict[str, Callable[[io.BytesIO], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".jsonl": _json_lines,
        ".parquet": _parquet,
    }
    with reading(path, "cannot be read", ProblemError):
        raw = read_bytes(path, RESULT)
        if path.suffix not in readers:
            raise ProblemError(f"{path}: unknown format; write .csv, .jsonl or .parquet")
        frame = readers[path.suffix](io.BytesIO(raw))
    if frame.empty:
        raise ProblemError(f"{path}: no rows")
    return frame


def _json_lines(file: io.BytesIO) -> pd.DataFrame:
    import pandas as pd

    return pd.read_json(file, lines=True)


def _parquet(file: io.BytesIO) -> pd.DataFrame:
    """Raises InputError for a file that unpacks to more than RESULT, pyarrow's errors for text that is not UTF-8 and the like."""
    import pyarrow.parquet as pq

    found = pq.ParquetFile(file)
    groups = [found.metadata.row_group(at).total_byte_size for at in range(found.metadata.num_row_groups)]
    size = max(sum(groups), found.metadata.num_rows * found.metadata.num_columns)
    RESULT.check(size, "the table", "unpacked; is it a timing table?")
    table = found.read()
    table.validate(full=True)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def collected(path: Path, rows: pd.DataFrame, dropped: dict[str, int], gpu: str, source: str) -> TimingTable:
    """Rows made from a raw file of a collection, with what its reader left out; source : how the collection names it."""
    if rows.empty:
        return TimingTable(rows, dropped)
    table = checked_rows(rows.assign(gpu=gpu), str(path), f"{source} sha256 {sha256_of(path)}")
    return TimingTable(table.rows, {**table.dropped, **dropped})


def checked_rows(frame: pd.DataFrame, name: str, source: str) -> TimingTable:
    """Latencies in seconds, complete shapes, known operators; unknown operators are counted."""
    import pandas as pd

    missing = [column for column in TEXT_COLUMNS if column not in frame.columns]
    if missing:
        raise ProblemError(f"{name}: columns {', '.join(missing)} are missing; the table needs {', '.join(TEXT_COLUMNS)}")
    present = [unit for unit in UNITS if unit in frame.columns]
    if len(present) != 1:
        found = ", ".join(present) or "none"
        raise ProblemError(f"{name}: exactly one of {', '.join(UNITS)} is needed, found {found}: do not mix units in a table")
    latency = pd.to_numeric(frame[present[0]], errors="coerce") * UNITS[present[0]]
    bad = ~(np.isfinite(latency) & (latency > 0))
    if bad.any():
        lines = ", ".join(str(i + 2) for i in np.flatnonzero(bad)[:5])
        raise ProblemError(
            f"{name}: {int(bad.sum())} latencies are not positive numbers (lines {lines}, ...); remove or repair them"
        )
    frame = frame.drop(columns=present).assign(latency_s=latency)
    for column in TEXT_COLUMNS:
        if not frame[column].map(lambda value: isinstance(value, str)).all():
            raise ProblemError(f"{name}: column {column} holds something other than text; write names, such as H200")
    known = frame.operator.isin(OPERATORS)
    dropped = {f"unknown operator {op}": int(n) for op, n in frame.operator[~known].value_counts().items()}
    frame = frame[known].reset_index(drop=True)
    for operator in frame.operator.unique():
        frame = _with_shapes(frame, frame.operator == operator, str(operator), name)
    if frame.empty:
        raise ProblemError(f"{name}: no row has a known operator ({', '.join(OPERATORS)}); found {', '.join(dropped)}")
    return TimingTable(frame.assign(source=source), dropped)


def _with_shapes(frame: pd.DataFrame, mine: pd.Series[bool], operator: str, name: str) -> pd.DataFrame:
    """The frame with the shape columns of one operator's rows as numbers; raises ProblemError for what is none."""
    import pandas as pd

    rows, columns = frame[mine], OPERATORS[operator].columns
    missing = [column for column in columns if column not in rows.columns or rows[column].isna().any()]
    if missing:
        raise ProblemError(f"{name}: {operator} rows need {', '.join(columns)}; missing or empty: {', '.join(missing)}")
    for column in columns:
        numbers = pd.to_numeric(rows[column].map(_plain), errors="coerce")
        if not numbers.between(0, LARGEST_SHAPE).all():
            wrong = rows[column][~numbers.between(0, LARGEST_SHAPE)].iloc[0]
            raise ProblemError(f"{name}: {operator} rows: {column} is {wrong!r:.60}, not a number of zero or more")
        if not pd.api.types.is_numeric_dtype(frame[column]):
            frame = frame.assign(**{column: frame[column].astype(object).mask(mine, numbers)})
    return frame


def _plain(value: object) -> object:
    """What may be a number; lists and objects of JSON lines are none."""
    return value if isinstance(value, str | int | float) else None


def merge(tables: list[TimingTable]) -> TimingTable:
    """Several tables as one; exact duplicates are counted and dropped."""
    import pandas as pd

    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    needed = [*TEXT_COLUMNS, "latency_s", "source", *dict.fromkeys(c for kind in OPERATORS.values() for c in kind.columns)]
    rows = rows[[column for column in needed if column in rows.columns]]
    dropped: dict[str, int] = {}
    for table in tables:
        for reason, count in table.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    unique = rows.drop_duplicates(ignore_index=True)
    if len(unique) < len(rows):
        dropped["duplicate rows"] = len(rows) - len(unique)
    return TimingTable(unique, dropped)
