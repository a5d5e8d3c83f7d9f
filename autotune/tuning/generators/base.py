"""What a load generator is: a public tool, run by its own command line, read by its own result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.documents.deployment import Load
from autotune.documents.tuned import MeasuredLoad
from autotune.errors import ProblemError
from autotune.tuning.outcomes import TrialFailed
from cost_models.errors import InputError
from cost_models.reading import RESULT, parse_json, read_text, reading


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One run to be made."""

    url: str
    """Of the service, without a path."""
    model: str
    """What the tool reads the tokenizer of: a checkpoint's name or a folder."""
    served: str
    """What requests ask for."""
    engine: str
    load: Load
    """A closed loop, or a rate, of so many requests."""
    isl_tokens: int
    osl_tokens: int
    seed: int
    result: Path
    """File, or folder, that the tool writes."""
    extra: tuple[str, ...] = ()
    """Further words of the tool's command."""

    @property
    def requests(self) -> int:
        assert self.load.requests is not None
        return self.load.requests

    def mean_tokens(self, longest: int) -> int:
        """Mean of lengths drawn evenly between the load's shortest share and all of the longest."""
        return max(round(longest * (1 + self.load.shortest) / 2), 1)


@dataclass(frozen=True, slots=True)
class LoadGenerator:
    """One tool."""

    name: str
    title: str
    program: tuple[str, ...]
    """What must be there: a program, or `python3 -m MODULE`."""
    result: str
    """Name of what it writes, with {run}."""
    command: Callable[[LoadRun], list[str]]
    read: Callable[[Path], MeasuredLoad]
    """Raises TrialFailed for a result without a completed request, ProblemError for a file that is none."""
    install: str
    """How to get it."""
    version: str
    """Whose options and result are written and read."""


def result_object(path: Path) -> dict[str, Any]:
    """The JSON object in a result file, of JSON lines the last; raises TrialFailed where the tool wrote none."""
    if not path.is_file():
        raise TrialFailed("no_result", f"the load generator wrote no {path.name}")
    with reading(path, "cannot be read", ProblemError):
        text = read_text(path, RESULT)
    try:
        found = parse_json(text, path)
    except InputError:
        lines = [line for line in text.splitlines() if line.strip()]
        found = parse_json(lines[-1], f"{path}: its last line is not JSON: truncated?") if lines else None
    if not isinstance(found, dict):
        raise ProblemError(f"{path}: a load generator's result is one JSON object")
    return found


def number_of(item: Mapping[str, Any], *keys: str) -> float:
    """A number by nested keys, 0 where there is none."""
    found: Any = item
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) and found == found else 0.0


def paced(load: Load) -> list[str]:
    """Pace of a load as the clients of vLLM and SGLang take it."""
    words = ["--max-concurrency", str(load.concurrency)] if load.concurrency else []
    return words + (["--request-rate", f"{load.rate_per_s:g}"] if load.rate_per_s else [])


def client_figures(item: Mapping[str, Any]) -> dict[str, Any]:
    """What the clients of vLLM and SGLang write under the same names."""
    completed = number_of(item, "completed")
    keys = {"mean": "mean_ttft_ms", "p50": "median_ttft_ms", "p95": "p95_ttft_ms", "p99": "p99_ttft_ms"}
    return {
        "completed": int(completed),
        "duration_s": number_of(item, "duration"),
        "isl_tokens": number_of(item, "total_input_tokens") / max(completed, 1),
        "osl_tokens": number_of(item, "total_output_tokens") / max(completed, 1),
        "tokens_per_s": number_of(item, "output_throughput"),
        "ttft_s": {name: number_of(item, key) / 1e3 for name, key in keys.items() if key in item},
        "tpot_s": number_of(item, "mean_tpot_ms") / 1e3,
    }


def some_completed(load: dict[str, Any], path: Path) -> MeasuredLoad:
    """The document; raises TrialFailed where nothing was completed, so that nothing can be said of it."""
    if load["completed"] < 1 or load["duration_s"] <= 0:
        raise TrialFailed(
            "no_request_completed", f"{path.name}: none of {load['requests']:,} requests was completed", under_load=True
        )
    return MeasuredLoad.model_validate({**load, "file": str(path)})
