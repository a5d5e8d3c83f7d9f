"""Markers by path, and the few objects most tests start from."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.resolving import ResolvedProblem, resolve_problem
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.machine import Machine

MARKERS = {"unit": pytest.mark.unit, "contracts": pytest.mark.contract, "integration": pytest.mark.integration}

YOUNG_OBJECTS = 50_000
"""Python's 700 look for garbage through all modules, documents and rewritten tests of a long process again and again."""


def pytest_configure() -> None:
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part in Path(item.path).parts:
            if part in MARKERS:
                item.add_marker(MARKERS[part])
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """So many equal parts, as xdist cuts them: files with slow tests in turn, before what is quick.

    Slow tests of commands and servers mostly wait: beside those of another file, and never the last that runs. Files stay whole,
    and so what their tests share.
    """
    files = dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))
    turn = {path: number % workers for number, path in enumerate(files)}
    parts = [[item for item in items if turn.get(item.path) == worker] for worker in range(workers)]
    quick = [item for item in items if item.path not in turn]
    for part in parts:
        room = max(len(items) // workers - len(part), 0)
        part.extend(quick[:room])
        del quick[:room]
    return [*(item for part in parts for item in part), *quick]


def machine_of(hw: str = "gb200-nvl72", model: str = "deepseek-v3", recipe: str = "nvfp4", engine: str = "vllm") -> Machine:
    hardware = load_hardware(hw)
    return Machine(load_model(model), hardware, load_recipe(recipe), calibration_for(hardware.gpu.name, engine))


@pytest.fixture(scope="session")
def gb200() -> Machine:
    return machine_of()


@pytest.fixture(scope="session")
def h200() -> Machine:
    return machine_of("hgx-h200", recipe="fp8-block")


@pytest.fixture(scope="session")
def small_problem() -> ResolvedProblem:
    """Eight GPUs: a table of a few thousand rows."""
    return resolve_problem(Problem(hardware="hgx-b200", trials=0))


H20 = {
    "hardware": "h20-4node-25gbe",
    "model": "deepseek-v3",
    "precision": "bf16",
    "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 32256, "osl_tokens": 512, "mean_context_tokens": 32768},
    "pools": {
        "decode": {
            "dp": 32, "ep": 32, "batch_per_dp_rank": 7, "all2all_backend": "deepep_low_latency", "memory_fraction": 0.9,
        }
    },
}  # fmt: skip
"""DeepSeek-V3 on 32 H20 with one 25 GbE port per node: a published sizing document claims that BF16 fits, and 35,000 tokens/s."""


def h20_plan(**changes: object) -> Deployment:
    return Deployment.model_validate({**H20, **changes})
