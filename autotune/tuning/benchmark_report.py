"""llm-d's Benchmark Report 0.2.1 (llm-d-benchmark, benchmark-report): what a run saw, as other tools of that family read it.

Written: `version`, `run`, `scenario.load` and `results.request_performance.aggregate`. The stack is left out: its schema asks
for facts of a cluster that a tuner does not know. Read: the same parts, with any unit of time that the schema has.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.documents.deployment import Deployment
from autotune.documents.results import dump_yaml
from autotune.documents.tuned import MeasuredLoad
from autotune.errors import ProblemError
from autotune.tuning.generators.base import number_of
from cost_models.catalog import read_yaml, validated

REPORT_VERSION = "0.2.1"
READ_VERSIONS = ("0.2", "0.2.1")
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "s/token": 1.0, "ms/token": 1e-3, "us/token": 1e-6}


def benchmark_report(run: MeasuredLoad, deployment: Deployment, tool: str, tool_version: str, identity: str) -> str:
    """A run as YAML; identity : what the run's id is made of, so that the same run is the same report."""
    load, workload = deployment.load, deployment.workload
    assert load is not None
    pace = {"concurrency": load.concurrency} if load.concurrency else {"rate_qps": load.rate_per_s}
    document = {
        "version": REPORT_VERSION,
        "run": {"uid": str(uuid.uuid5(uuid.NAMESPACE_URL, identity)), "time": {"duration": f"PT{run.duration_s:.3f}S"}},
        "scenario": {
            "load": {
                "metadata": {"schema_version": "0.0.1"},
                "standardized": {
                    "tool": tool,
                    "tool_version": tool_version,
                    "source": "random",
                    "input_seq_len": _length(workload.isl_tokens, load.shortest),
                    "output_seq_len": _length(workload.osl_tokens, load.shortest),
                    **pace,
                },
                "native": {},
            }
        },
        "results": {"request_performance": {"aggregate": _aggregate(run)}},
    }
    return dump_yaml(document)


def _length(longest: int, shortest: float) -> dict[str, Any]:
    if shortest >= 1:
        return {"distribution": "fixed", "value": longest}
    return {"distribution": "uniform", "value": longest, "min": max(round(longest * shortest), 1), "max": longest}


def _aggregate(run: MeasuredLoad) -> dict[str, Any]:
    latency: dict[str, Any] = {}
    if "mean" in run.ttft_s:
        latency["time_to_first_token"] = {"units": "s", **run.ttft_s}
    if run.tpot_s is not None:
        latency["time_per_output_token"] = {"units": "s/token", "mean": run.tpot_s}
    return {
        "requests": {
            "total": run.requests,
            "failures": run.requests - run.completed,
            "input_length": {"units": "count", "mean": run.isl_tokens},
            "output_length": {"units": "count", "mean": run.osl_tokens},
        },
        "latency": latency,
        "throughput": {
            "output_token_rate": {"units": "tokens/s", "mean": run.tokens_per_s},
            "request_rate": {"units": "queries/s", "mean": run.completed / run.duration_s},
        },
    }


def read_benchmark_report(path: Path) -> MeasuredLoad:
    """A run from a report, YAML or JSON; raises ProblemError for other versions and for reports without request results."""
    document = read_yaml(path)
    version = str(document.get("version")) if isinstance(document, dict) else None
    if version not in READ_VERSIONS:
        raise ProblemError(f"{path}: Benchmark Report {version or '(no version)'}; read are {', '.join(READ_VERSIONS)}")
    found: Any = document
    for key in ("results", "request_performance", "aggregate"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise ProblemError(f"{path}: no results.request_performance.aggregate: the report says nothing of its requests")
    return validated(MeasuredLoad, _read(found, path), str(path))


def _read(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    total, failed = number_of(found, "requests", "total"), number_of(found, "requests", "failures")
    completed = total - failed - number_of(found, "requests", "incomplete")
    rate = number_of(found, "throughput", "request_rate", "mean")
    if completed <= 0 or rate <= 0:
        raise ProblemError(f"{path}: no completed request, or no request rate")
    return {
        "requests": int(total),
        "completed": int(completed),
        "duration_s": completed / rate,
        "isl_tokens": number_of(found, "requests", "input_length", "mean"),
        "osl_tokens": number_of(found, "requests", "output_length", "mean"),
        "tokens_per_s": number_of(found, "throughput", "output_token_rate", "mean"),
        "ttft_s": _seconds(found, "time_to_first_token", path),
        "tpot_s": _seconds(found, "time_per_output_token", path).get("mean")
        or _seconds(found, "inter_token_latency", path).get("mean"),
        "file": str(path),
    }


def _seconds(found: Mapping[str, Any], name: str, path: Path) -> dict[str, float]:
    latency: Any = found.get("latency")
    one: Any = latency.get(name) if isinstance(latency, Mapping) else None
    if not isinstance(one, Mapping):
        return {}
    unit = str(one.get("units"))
    if unit not in SECONDS:
        raise ProblemError(f"{path}: {name} in {unit!r}; known units: {', '.join(SECONDS)}")
    return {
        key: float(one[key]) * SECONDS[unit] for key in ("mean", "p50", "p95", "p99") if isinstance(one.get(key), int | float)
    }
