"""Every count that a document may hold has a bound, and costs a bounded amount of memory at it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.assistant.tools import About
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment
from autotune.documents.fleet import FleetProblem
from autotune.documents.problem import Problem

DOCUMENTS = (Deployment, Problem, FleetProblem, Goals, About)
WITH_BOUNDS_OF_THEIR_OWN = {"Pool.flags.*"}
"""Knobs, whose ranges the engine's file gives; nothing is as long as one of them."""
UPPER = {"maximum", "exclusiveMaximum"}


def unbounded(schema: dict[str, Any], place: str) -> Iterator[str]:
    """Places of numbers that may be as large as one likes."""
    if schema.get("type") in ("integer", "number") and not UPPER & set(schema):
        yield place
    for kind in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for choice in schema.get(kind, ()):
            yield from unbounded(choice, place)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from unbounded(schema[inner], f"{place}.*")
    for container in ("properties", "$defs"):
        for name, inside in schema.get(container, {}).items():
            yield from unbounded(inside, name if container == "$defs" else f"{place}.{name}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.__name__)
def test_every_number_of_a_document_has_an_upper_bound(document):
    assert sorted(set(unbounded(document.model_json_schema(), document.__name__)) - WITH_BOUNDS_OF_THEIR_OWN) == []


DECODE = {
    "hardware": "hgx-h200", "model": "deepseek-v3", "precision": "fp8-block", "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 2000, "osl_tokens": 500},
    "pools": {"decode": {"dp": 16, "ep": 16, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency"}},
}  # fmt: skip
SERVE = {
    **DECODE, "model": "qwen3-235b-a22b", "phase": "serve", "load": {"concurrency": 64, "requests": 50},
    "pools": {"serve": {"tp": 8, "ep": 8, "batch_per_dp_rank": 64, "max_batched_tokens": 8192}},
}  # fmt: skip
LARGEST = [
    (DECODE, "pools.decode.redundant_experts", 4096),
    (DECODE, "pools.decode.batch_per_dp_rank", 10**6),
    (DECODE, "pools.decode.instances", 20_000),
    (DECODE, "pools.decode.dp", 20_000),
    (DECODE, "workload.isl_tokens", 10**7),
    (DECODE, "layers", 1000),
    (SERVE, "pools.serve.max_batched_tokens", 10**8),
    (SERVE, "pools.serve.batch_per_dp_rank", 10**6),
    (SERVE, "load.concurrency", 10**6),
    (SERVE, "workload.osl_tokens", 10**7),
]
MEMORY_BYTES = 2**31
PREDICTED = """
import json, resource, sys
from autotune.cli.main import main
sys.argv = ["autotune", "predict", sys.argv[1]]
try:
    main()
except SystemExit as stop:
    print(json.dumps([stop.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("document", "path", "value"), LARGEST, ids=[path for _, path, _ in LARGEST])
def test_the_largest_count_costs_no_more_memory_than_promised(tmp_path, document, path, value):
    changed = inside = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    for parent in parents:
        inside = inside[parent]
    inside[last] = value
    (tmp_path / "d.json").write_text(json.dumps(changed))
    words = [sys.executable, "-c", PREDICTED, str(tmp_path / "d.json")]
    limit = (resource.RLIMIT_CPU, (60, 60))
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=lambda: resource.setrlimit(*limit))
    assert "Traceback" not in done.stderr
    code, used_bytes = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, 1, 2)
    assert used_bytes < MEMORY_BYTES
