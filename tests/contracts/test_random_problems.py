"""Any valid problem: its plans keep the limits, the budget and the memory, say their numbers soundly, and leave no memory held.

AUTOTUNE_PROBLEMS=1000 pytest tests/contracts/test_random_problems.py counts as docs/reliability.md reports it.
"""

from __future__ import annotations

import gc
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

import autotune
from autotune.documents.plan import Plan, SearchResult
from autotune.documents.problem import Problem
from autotune.documents.service_plan import ServicePlan, ServiceResult
from cost_models.catalog import hardware_names, model_names
from cost_models.errors import AutotuneError

PROBLEMS = int(os.environ.get("AUTOTUNE_PROBLEMS", "24"))
HELD_MIB = 300
"""What the second half of the problems may add to the process: catalogue entries and kept tables, not problems."""
ENGINES = (None, "vllm", "sglang", "trtllm", "vllm-ascend")


def problem(seed: int) -> Problem:
    """A valid problem of a seed: any hardware, model, engine, lengths, limits and budget."""
    rng = random.Random(f"problem {seed}")
    target = rng.choices(["decode", "prefill", "serve"], [5, 3, 2])[0]
    fields: dict[str, Any] = {
        "hardware": rng.choice(hardware_names()), "model": rng.choice(model_names()), "target": target,
        "engine": rng.choice(ENGINES), "gpus": rng.choice([None, 1, 2, 4, 8, 16, 24, 32, 64]),
        "workload": {"isl_tokens": int(10 ** rng.uniform(0, 5)), "osl_tokens": int(10 ** rng.uniform(0, 4)),
                     "prefix_cache_hit_rate": rng.choice([0.0, 0.5, 0.99]), "mtp_acceptance": rng.choice([(), (), (0.8,)])},
        "tpot_limit_s": 10 ** rng.uniform(-2.5, 0), "ttft_limit_s": 10 ** rng.uniform(-1, 2),
        "min_tokens_per_s": rng.choice([0, 0, 1e3]), "memory_fraction": rng.choice([None, 0.5, 0.9]),
        "confidence": rng.choice([None, None, 0.8]), "trials": rng.choice([0, 0, 2]), "top_k": rng.choice([1, 3]), "seed": seed,
    }  # fmt: skip
    if target == "serve":
        fields |= {"load": rng.choice([None, {"rate_per_s": 1.0, "requests": 100}, {"concurrency": 16, "requests": 100}])}
        fields |= {"ttft_p99_limit_s": rng.choice([None, 5.0])}
    elif target == "decode":
        fields |= {"min_concurrency": rng.choice([0, 0, 32]), "objective": rng.choice(["tokens_per_s_per_gpu", "tpot"])}
    return Problem.model_validate(fields)


def searched(asked: Problem) -> SearchResult | ServiceResult | AutotuneError:
    """The result, or autotune's own word why there is none; nothing else may be raised."""
    try:
        return autotune.search_services(asked) if asked.target == "serve" else autotune.search(asked)
    except AutotuneError as error:
        return error


def check_numbers(value: Any, place: str = "") -> None:
    """Every number is finite."""
    for name, inside in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        check_numbers(inside, f"{place}.{name}")
    assert not isinstance(value, float) or math.isfinite(value), place


def check_step_plan(plan: Plan, asked: Problem) -> None:
    found = plan.prediction
    limit_s = asked.tpot_limit_s if asked.target == "decode" else asked.ttft_limit_s
    assert found.latency_s <= limit_s * (1 + 1e-9)
    assert found.fits
    assert found.memory_total_bytes <= found.memory_limit_bytes
    assert sum(line.bytes for line in found.memory) == pytest.approx(found.memory_total_bytes)
    assert found.tokens_per_s >= asked.min_tokens_per_s * (1 - 1e-9)
    assert found.tokens_per_s == pytest.approx(found.tokens_per_s_per_gpu * found.gpus)
    assert asked.gpus is None or found.gpus <= asked.gpus
    assert found.gpus == plan.layout.gpus * plan.deployment.pool.instances
    if asked.target == "decode":
        assert found.concurrency >= asked.min_concurrency
    bars = plan.odds.uncertainty
    for bar in (bars.step_s, bars.tokens_per_s_per_gpu, *([bars.tpot_s] if bars.tpot_s else [])):
        assert 0 < bar.low <= bar.high
    assert 0 <= plan.odds.best_probability <= 1
    assert 0 <= plan.odds.latency_probability <= 1


def check_service(plan: ServicePlan, asked: Problem) -> None:
    found = plan.prediction
    assert found.gpus == sum(pool.gpus for pool in plan.pools)
    assert asked.gpus is None or found.gpus <= asked.gpus
    for times in (found.ttft_s, found.tpot_s):
        assert 0 <= times.p50 <= times.p95 <= times.p99
    for name, bar in found.intervals:
        assert 0 <= bar.low <= bar.high, name
    assert all(0 <= outcome.probability <= 1 for outcome in plan.objectives)


def check(seed: int) -> bool:
    """Whether the problem of a seed has plans; every claim about them is checked."""
    asked = problem(seed)
    result = searched(asked)
    if isinstance(result, AutotuneError):
        assert len(str(result)) > 12
        return False
    assert type(result).model_validate_json(result.model_dump_json()) == result  # the document is of its own schema
    check_numbers(result.model_dump(mode="json"))
    ranks = [plan.rank for plan in result.plans]
    assert ranks == list(range(1, len(ranks) + 1))
    assert 1 <= len(ranks) <= asked.top_k
    for plan in result.plans:
        check_service(plan, asked) if isinstance(plan, ServicePlan) else check_step_plan(plan, asked)
    return True


def resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_random_problems_keep_their_limits_and_leave_no_memory_held():
    half = PROBLEMS // 2
    solved = sum([check(seed) for seed in range(half)])
    before = resident_mib()
    solved += sum([check(seed) for seed in range(half, PROBLEMS)])
    assert solved >= PROBLEMS // 8, "hardly a problem has a plan: the test says nothing"
    assert resident_mib() - before < HELD_MIB
