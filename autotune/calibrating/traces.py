"""Time per operator family from a PyTorch profiler trace or an Nsight Systems kernel summary.

Kernel names map to families by editable rules (autotune/data/kernel_rules.yaml); what no rule knows is counted and
listed with its share of the time. Profiler traces (`*.pt.trace.json`, gzipped or not) also give the wall time of a
step; Nsight summaries (`nsys stats --report cuda_gpu_kern_sum --format csv`) and exports (`.sqlite`) only kernel times.
"""

from __future__ import annotations

import contextlib
import csv
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from autotune.calibrating.timings import sha256_of
from autotune.errors import ProblemError
from autotune.files import packaged
from cost_models.catalog import read_yaml, validated
from cost_models.patterns import compiled
from cost_models.reading import RESULT, parse_json, read_bytes, reading, regular, unpacked
from cost_models.specs.base import Spec

Family = Literal["attention", "dense_gemm", "experts", "dispatch", "combine", "all_reduce", "elementwise", "sampling", "ignore"]
NSYS_TIME, NSYS_NAME, NSYS_COUNT = "Total Time (ns)", "Name", "Instances"
STEP_MARK = "ProfilerStep#"
LATEST = 1e20
"""Of a time stamp, in microseconds or nanoseconds since whenever."""
MOST_LAUNCHES = 5_000_000
MOST_PATTERN = 2000
"""Characters of a rule's pattern."""
MOST_RULES = 1000


class KernelRule(Spec):
    """One pattern and the family it names."""

    pattern: str = Field(max_length=MOST_PATTERN)
    family: Family

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compiled(pattern, any_case=True)
        return pattern


class KernelRules(Spec):
    """Rules in order; the first match wins."""

    format: Literal["autotune-kernel-rules/1"] = "autotune-kernel-rules/1"
    rules: tuple[KernelRule, ...] = Field(min_length=1, max_length=MOST_RULES)

    def family(self, kernel: str) -> Family | None:
        """Family of a kernel, none where no rule knows it."""
        name = kernel.encode("utf-8", "replace").decode()
        for rule in self.rules:
            if compiled(rule.pattern, any_case=True).search(name):
                return rule.family
        return None


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Kernels of one GPU in a trace."""

    total_s: dict[str, float]
    """Kernel name -> time of all its launches."""
    launches: dict[str, int]
    steps: int | None
    """Steps in the trace, where it marks them."""
    wall_s: float | None
    """First kernel's start to last kernel's end."""
    busy_s: float | None
    """Time with at least one kernel running."""
    source: str


@dataclass(frozen=True, slots=True)
class FamilyTimes:
    """Seconds per step by family."""

    per_step_s: dict[str, float]
    launches: dict[str, int]
    idle_s: float | None
    """Time per step without any kernel, where the trace has a time axis."""
    unknown: tuple[tuple[str, int, float], ...]
    """Kernels that no rule knows: name, launches, share of all kernel time; largest first."""
    source: str


def load_rules(path: Path | None = None) -> KernelRules:
    """The user's rules, or the shipped ones."""
    if path is not None:
        return validated(KernelRules, read_yaml(path), str(path))
    return packaged(KernelRules, "kernel_rules.yaml")


def read_kernel_trace(path: Path) -> KernelTimes:
    """Read a trace; raises ProblemError when it is truncated, of another kind or without kernels."""
    source = f"{path.name} sha256 {sha256_of(path)}"
    if path.suffix == ".sqlite":
        times = _from_sqlite(path, source)
    elif path.suffix == ".csv":
        times = _from_nsys_csv(path, source)
    else:
        times = _from_profiler(path, source)
    if not times.total_s:
        raise ProblemError(f"{path}: no GPU kernel in the trace; record with CUDA activity")
    return times


def family_times(times: KernelTimes, rules: KernelRules, steps: int | None) -> FamilyTimes:
    """Sum kernels by family, per step; raises ProblemError when no kernel is recognised or the steps are unknown."""
    count = steps or times.steps
    if not count:
        raise ProblemError("the trace does not mark its steps: say how many it holds with --steps")
    seconds: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    unknown = []
    whole = sum(times.total_s.values())
    for name, total in times.total_s.items():
        family = rules.family(name)
        if family is None:
            unknown.append((name, times.launches[name], total / whole))
        elif family != "ignore":
            seconds[family] += total
            launches[family] += times.launches[name]
    if not seconds:
        raise ProblemError(f"none of {len(times.total_s)} kernels is known to the rules; write your own and pass --rules")
    idle = None if times.wall_s is None or times.busy_s is None else (times.wall_s - times.busy_s) / count
    listed = tuple(sorted(unknown, key=lambda item: -item[2]))
    return FamilyTimes({f: s / count for f, s in seconds.items()}, dict(launches), idle, listed, times.source)


def _from_profiler(path: Path, source: str) -> KernelTimes:
    with reading(path, "cannot be read as a profiler trace", ProblemError):
        document: Any = parse_json(unpacked(path), path)
    events = document.get("traceEvents") if isinstance(document, dict) else None
    if not isinstance(events, list):
        raise ProblemError(f"{path}: no traceEvents: not a PyTorch profiler trace")
    kernels = [e for e in events if isinstance(e, dict) and e.get("cat") == "kernel" and "dur" in e]
    marks = {str(e["name"]) for e in events if isinstance(e, dict) and str(e.get("name", "")).startswith(STEP_MARK)}
    device = min((e.get("pid", 0) for e in kernels), default=0, key=str)
    mine = [_launch(e, f"{path}: kernel {at}") for at, e in enumerate(kernels, 1) if e.get("pid", 0) == device]
    return _timeline(mine, 1e-6, len(marks) or None, source)


def _launch(event: dict[str, Any], where: str) -> tuple[str, float, float]:
    """(name, start, duration) of a kernel event; raises ProblemError for what is not text and two times."""
    name, start, duration = event.get("name"), event.get("ts"), event.get("dur")
    if not isinstance(name, str):
        raise ProblemError(f"{where}: its name is {name!r:.60}, not text")
    return name, _time(start, f"{where}: its ts"), _time(duration, f"{where}: its dur")


def _time(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LATEST:
        raise ProblemError(f"{where} is {value!r:.60}, not a number between 0 and {LATEST:g}")
    return float(value)


def _timeline(kernels: list[tuple[str, float, float]], unit_s: float, steps: int | None, source: str) -> KernelTimes:
    """Sums over (name, start, duration) of one GPU's kernels."""
    total, launches = defaultdict[str, float](float), Counter[str]()
    for name, _, duration in kernels:
        total[name] += duration * unit_s
        launches[name] += 1
    wall, busy = _wall_and_busy([(start, start + duration) for _, start, duration in kernels])
    return KernelTimes(dict(total), dict(launches), steps, wall * unit_s, busy * unit_s, source)


def _wall_and_busy(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Length of the hull and of the union of intervals."""
    if not spans:
        return 0.0, 0.0
    ordered = sorted(spans)
    busy, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return reached - ordered[0][0], busy


def _from_nsys_csv(path: Path, source: str) -> KernelTimes:
    with reading(path, "cannot be read", ProblemError):
        lines = read_bytes(path, RESULT).decode(errors="replace").splitlines()
    header = next((i for i, line in enumerate(lines) if NSYS_TIME in line and NSYS_NAME in line), None)
    if header is None:
        raise ProblemError(f"{path}: no header with {NSYS_TIME!r} and {NSYS_NAME!r}: not a cuda_gpu_kern_sum report")
    total, launches = defaultdict[str, float](float), Counter[str]()
    with reading(path, "not a cuda_gpu_kern_sum report", ProblemError):
        for number, row in enumerate(csv.DictReader(lines[header:]), start=header + 2):
            with reading(path, f"line {number} is not a kernel row: truncated?", ProblemError):
                name, time_ns = row[NSYS_NAME], _time(float(row[NSYS_TIME].replace(",", "")), f"{path}: line {number}: its time")
                launches[name] += int(_time(int(row[NSYS_COUNT].replace(",", "")), f"{path}: line {number}: its count"))
                total[name] += time_ns * 1e-9
                if not isinstance(name, str):
                    raise ProblemError(f"{path}: line {number} has no name: truncated?")
    return KernelTimes(dict(total), dict(launches), None, None, None, source)


def _length(start: Any, end: Any) -> Any:
    return end - start if isinstance(start, int | float) and isinstance(end, int | float) else end


def _from_sqlite(path: Path, source: str) -> KernelTimes:
    query = (
        "SELECT s.value, k.start, k.end, k.deviceId FROM CUPTI_ACTIVITY_KIND_KERNEL k "
        "JOIN StringIds s ON s.id = k.demangledName ORDER BY k.deviceId"
    )
    with reading(path, "cannot be read as an Nsight Systems export", ProblemError):
        regular(path)
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(connection):
            rows = connection.execute(query).fetchmany(MOST_LAUNCHES + 1)
    if len(rows) > MOST_LAUNCHES:
        raise ProblemError(f"{path}: more than {MOST_LAUNCHES:,} kernel launches; export fewer steps")
    mine = [
        _launch({"name": name, "ts": start, "dur": _length(start, end)}, f"{path}: kernel {at}")
        for at, (name, start, end, device) in enumerate(rows, 1)
        if device == rows[0][3]
    ]
    return _timeline(mine, 1e-9, None, source)
