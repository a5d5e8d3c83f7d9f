"""The timing table: one measured operator per row, checked before anything is fitted.

Columns: `operator`, `dtype`, `gpu`, exactly one of `latency_s`, `latency_ms`, `latency_us`, and the
shape columns of the operator (operators.py). CSV, JSON lines or Parquet. docs/timing-table.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autotune.calibrating.operators import OPERATORS
from autotune.errors import ProblemError

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"latency_s": 1.0, "latency_ms": 1e-3, "latency_us": 1e-6}
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
    """Hash of a raw file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    missing = [column for column in TEXT_COLUMNS if column not in frame.columns]
    if missing:
        raise ProblemError(f"{path}: columns {', '.join(missing)} are missing; the table needs {', '.join(TEXT_COLUMNS)}")
    return checked(frame, str(path), f"{path.name} sha256 {sha256_of(path)}")


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise ProblemError(f"{path}: no such file")
    try:
        if path.suffix == ".jsonl":
            frame = pd.read_json(path, lines=True)
        elif path.suffix == ".csv":
            frame = pd.read_csv(path)
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            raise ProblemError(f"{path}: unknown format; write .csv, .jsonl or .parquet")
    except (ValueError, OSError, ImportError) as error:
        raise ProblemError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if frame.empty:
        raise ProblemError(f"{path}: no rows")
    return frame


def collected(path: Path, rows: pd.DataFrame, dropped: dict[str, int], gpu: str, source: str) -> TimingTable:
    """Rows made from a raw file of a collection, with what its reader left out; source : how the collection names it."""
    if rows.empty:
        return TimingTable(rows, dropped)
    table = checked(rows.assign(gpu=gpu), str(path), f"{source} sha256 {sha256_of(path)}")
    return TimingTable(table.rows, {**table.dropped, **dropped})


def checked(frame: pd.DataFrame, name: str, source: str) -> TimingTable:
    """Latencies in seconds, complete shapes, known operators; unknown operators are counted."""
    import pandas as pd

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
    known = frame.operator.isin(OPERATORS)
    dropped = {f"unknown operator {op}": int(n) for op, n in frame.operator[~known].value_counts().items()}
    frame = frame[known].reset_index(drop=True)
    for operator in frame.operator.unique():
        _check_shapes(frame[frame.operator == operator], str(operator), name)
    if frame.empty:
        raise ProblemError(f"{name}: no row has a known operator ({', '.join(OPERATORS)}); found {', '.join(dropped)}")
    return TimingTable(frame.assign(source=source), dropped)


def _check_shapes(rows: pd.DataFrame, operator: str, name: str) -> None:
    missing = [column for column in OPERATORS[operator].columns if column not in rows.columns or rows[column].isna().any()]
    if missing:
        raise ProblemError(
            f"{name}: {operator} rows need {', '.join(OPERATORS[operator].columns)}; missing or empty: {', '.join(missing)}"
        )


def merge(tables: list[TimingTable]) -> TimingTable:
    """Several tables as one; exact duplicates are counted and dropped."""
    import pandas as pd

    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    dropped: dict[str, int] = {}
    for table in tables:
        for reason, count in table.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    unique = rows.drop_duplicates(ignore_index=True)
    if len(unique) < len(rows):
        dropped["duplicate rows"] = len(rows) - len(unique)
    return TimingTable(unique, dropped)
