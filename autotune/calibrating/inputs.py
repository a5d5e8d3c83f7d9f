"""Which importer a file needs, by what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.calibrating.benchmarks import BenchmarkPoint, looks_like_benchmark, read_benchmark
from autotune.calibrating.timings import TimingTable, read_timings
from autotune.calibrating.traces import NSYS_NAME, NSYS_TIME, KernelTimes, read_kernel_trace
from autotune.documents.tuned import TrialRecord, looks_like_trials, read_trials
from autotune.errors import ProblemError
from cost_models.reading import reading, regular

HEADER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Inputs:
    """Measurements by kind."""

    tables: tuple[TimingTable, ...]
    traces: tuple[KernelTimes, ...]
    points: tuple[BenchmarkPoint, ...]
    trials: tuple[TrialRecord, ...]
    """Of tuned services (autotune tune)."""
    ignored: int
    """Objects in benchmark files that were no results."""


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read timing tables, profiler traces, benchmark results and tuned trials; raises ProblemError naming the file at fault."""
    tables, traces, points, trials, ignored = [], [], [], [], 0
    for path in paths:
        with reading(path, "cannot be read", ProblemError):
            regular(path)
        if path.suffix == ".jsonl" and looks_like_trials(path):
            trials += read_trials(path)
        elif _is_trace(path):
            traces.append(read_kernel_trace(path))
        elif path.suffix in (".json", ".jsonl") and looks_like_benchmark(path):
            found, other = read_benchmark(path)
            points += found
            ignored += other
        elif path.suffix == ".json":
            raise ProblemError(f"{path}: neither a profiler trace nor a benchmark result")
        else:
            tables.append(read_timings(path))
    return Inputs(tuple(tables), tuple(traces), tuple(points), tuple(trials), ignored)


def _is_trace(path: Path) -> bool:
    if path.suffix in (".sqlite", ".gz"):
        return True
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if path.suffix == ".csv":
        return NSYS_TIME.encode() in head and NSYS_NAME.encode() in head
    return path.suffix == ".json" and (b'"traceEvents"' in head or b'"schemaVersion"' in head)
