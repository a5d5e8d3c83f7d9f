"""Time per operator family from a PyTorch profiler trace or an Nsight Systems kernel summary.

Kernel names map to families by editable rules (autotune/data/kernel_rules.yaml); what no rule knows is counted and
listed with its share of the time. Profiler traces (`*.pt.trace.json`, gzipped or not) also give the wall time of a
step; Nsight summaries (`nsys stats --report cuda_gpu_kern_sum --format csv`) and exports (`.sqlite`) only kernel times.
vLLM's own profiler (`--profiler-config`, /start_profile) writes what each step held: those steps are kept apart.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
VLLM_STEP = re.compile(r"execute_(?:context|new)_(\d+)\((\d+)\)_(?:generation|cached)_(\d+)\((\d+)\)")
"""vLLM's annotation of a step on the GPU: prompts(their tokens), generating sequences(their tokens)."""
GPU_SPAN = "gpu_user_annotation"
MOST_MARK = 200
"""Characters of an annotation that are read."""
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
    after: Family | None = None
    """Counts only right after a kernel of this family: the activation between two experts' GEMMs is theirs."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compiled(pattern, any_case=True)
        return pattern


class KernelRules(Spec):
    """Rules in order; the first match wins."""

    format: Literal["autotune-kernel-rules/1"] = "autotune-kernel-rules/1"
    rules: tuple[KernelRule, ...] = Field(min_length=1, max_length=MOST_RULES)

    def family(self, kernel: str, before: str | None = None) -> Family | None:
        """Family of a kernel, none where no rule knows it.

        before : family of the kernel that ran before it on this GPU, where the order is known.
        """
        name = kernel.encode("utf-8", "replace").decode()
        for rule in self.rules:
            if rule.after in (None, before) and compiled(rule.pattern, any_case=True).search(name):
                return rule.family
        return None


class TracedKernel(NamedTuple):
    """A kernel by name, and what ran before it on its GPU where the order is known."""

    name: str
    before: str | None = None


class KernelLaunch(NamedTuple):
    """One kernel that ran, in the trace's unit of time."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True, slots=True, order=True)
class Composition:
    """What a step held."""

    prompts: int
    prompt_tokens: int
    sequences: int
    """That generate."""
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Kernels of one GPU in a trace, or in its steps of one composition."""

    total_s: dict[TracedKernel, float]
    """Time of all its launches."""
    launches: dict[TracedKernel, int]
    steps: int | None
    """Steps in the trace, where it marks them."""
    wall_s: float | None
    """First kernel's start to last kernel's end; summed over the steps where these are kept apart."""
    busy_s: float | None
    """Time with at least one kernel running."""
    source: str
    by_step: Mapping[Composition, KernelTimes] = field(default_factory=dict)
    """The same of all steps alike, where the engine says what each step held."""
    apart: bool = False
    """Of such steps: wall and busy time are within them."""


@dataclass(frozen=True, slots=True)
class FamilyTimes:
    """Seconds per step by family."""

    per_step_s: dict[str, float]
    launches: dict[str, int]
    idle_s: float | None
    """Time per step without any kernel, where the trace has a time axis; of steps kept apart, between their own kernels only."""
    unknown: tuple[tuple[str, int, float], ...]
    """Kernels that no rule knows: name, launches, share of all kernel time; largest first."""
    source: str
    apart: bool = False
    """Of steps that the trace keeps apart: then `idle_s` has no wait for the host between steps."""
    steps: int = 1


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
    strange: defaultdict[str, float] = defaultdict(float)
    strange_launches: Counter[str] = Counter()
    names = {kernel.before for kernel in times.total_s}
    family_before = {name: None if name is None else rules.family(name) for name in names}
    for kernel, total in times.total_s.items():
        family = rules.family(kernel.name, family_before[kernel.before])
        if family is None:
            strange[kernel.name] += total
            strange_launches[kernel.name] += times.launches[kernel]
        elif family != "ignore":
            seconds[family] += total
            launches[family] += times.launches[kernel]
    if not seconds:
        raise ProblemError(
            f"none of {len({k.name for k in times.total_s})} kernels is known to the rules; write your own and pass --rules"
        )
    idle = None if times.wall_s is None or times.busy_s is None else (times.wall_s - times.busy_s) / count
    whole = sum(times.total_s.values())
    unknown = ((name, strange_launches[name], total / whole) for name, total in strange.items())
    listed = tuple(sorted(unknown, key=lambda item: -item[2]))
    return FamilyTimes({f: s / count for f, s in seconds.items()}, dict(launches), idle, listed, times.source, times.apart, count)


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
    spans = [
        (found, _launch(e, f"{path}: step {at}"))
        for at, e in enumerate(events, 1)
        if isinstance(e, dict) and e.get("cat") == GPU_SPAN and e.get("pid", 0) == device and (found := _composition(e))
    ]
    whole = _timeline(mine, 1e-6, len(marks) or None, source)
    return replace(whole, by_step=_by_step(mine, _outermost(spans), 1e-6, source)) if spans else whole


def _composition(event: dict[str, Any]) -> Composition | None:
    """What the step of an annotation held; none where it is another annotation, or the step held nothing."""
    match = VLLM_STEP.fullmatch(str(event.get("name", ""))[:MOST_MARK])
    numbers = [int(text) for text in match.groups()] if match else []
    return Composition(*numbers) if any(numbers) else None


def _outermost(spans: Sequence[tuple[Composition, KernelLaunch]]) -> list[tuple[Composition, KernelLaunch]]:
    """Each step once: where some of its kernels run on another stream, as shared experts do, it is marked there too."""
    kept: list[tuple[Composition, KernelLaunch]] = []
    end = 0.0
    for composition, span in sorted(spans, key=lambda each: (each[1].start, -each[1].duration)):
        if span.start + span.duration > end:
            kept.append((composition, span))
            end = span.start + span.duration
    return kept


def _by_step(
    kernels: Sequence[KernelLaunch], spans: Sequence[tuple[Composition, KernelLaunch]], unit_s: float, source: str
) -> dict[Composition, KernelTimes]:
    """Kernels by what their step held: of each composition the sums over its steps, by when a kernel started."""
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    starts = [kernel.start for kernel in ordered]
    found: defaultdict[Composition, list[KernelTimes]] = defaultdict(list)
    for composition, span in spans:
        first, last = (bisect.bisect_left(starts, at) for at in (span.start, span.start + span.duration))
        if last > first:
            found[composition].append(_timeline(ordered[first:last], unit_s, 1, source))
    return {composition: _summed(steps) for composition, steps in found.items()}


def _summed(steps: Sequence[KernelTimes]) -> KernelTimes:
    """Steps of one composition as one."""
    total, launches = defaultdict[TracedKernel, float](float), Counter[TracedKernel]()
    for step in steps:
        for kernel, seconds in step.total_s.items():
            total[kernel] += seconds
        launches.update(step.launches)
    wall, busy = (sum(s or 0.0 for s in each) for each in zip(*((step.wall_s, step.busy_s) for step in steps), strict=True))
    return KernelTimes(dict(total), dict(launches), len(steps), wall, busy, steps[0].source, apart=True)


def _launch(event: dict[str, Any], where: str) -> KernelLaunch:
    """A kernel event; raises ProblemError for what is not text and two times."""
    name, start, duration = event.get("name"), event.get("ts"), event.get("dur")
    if not isinstance(name, str):
        raise ProblemError(f"{where}: its name is {name!r:.60}, not text")
    return KernelLaunch(name, _time(start, f"{where}: its ts"), _time(duration, f"{where}: its dur"))


def _time(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= LATEST:
        raise ProblemError(f"{where} is {value!r:.60}, not a number between 0 and {LATEST:g}")
    return float(value)


def _timeline(kernels: Sequence[KernelLaunch], unit_s: float, steps: int | None, source: str) -> KernelTimes:
    """Sums over one GPU's kernels."""
    total, launches = defaultdict[TracedKernel, float](float), Counter[TracedKernel]()
    before: str | None = None
    for launch in sorted(kernels, key=lambda kernel: kernel.start):
        kernel = TracedKernel(launch.name, before)
        total[kernel] += launch.duration * unit_s
        launches[kernel] += 1
        before = launch.name
    wall, busy = _wall_and_busy([(kernel.start, kernel.start + kernel.duration) for kernel in kernels])
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
    total, launches = defaultdict[TracedKernel, float](float), Counter[TracedKernel]()
    with reading(path, "not a cuda_gpu_kern_sum report", ProblemError):
        for number, row in enumerate(csv.DictReader(lines[header:]), start=header + 2):
            with reading(path, f"line {number} is not a kernel row: truncated?", ProblemError):
                name, time_ns = row[NSYS_NAME], _time(float(row[NSYS_TIME].replace(",", "")), f"{path}: line {number}: its time")
                launches[TracedKernel(name)] += int(
                    _time(int(row[NSYS_COUNT].replace(",", "")), f"{path}: line {number}: its count")
                )
                total[TracedKernel(name)] += time_ns * 1e-9
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
