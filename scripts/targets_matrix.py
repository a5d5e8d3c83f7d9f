#!/usr/bin/env python3
"""Is every plan of a matrix valid in every target that it can be rendered to?

Searches hardware x model x engine x what is planned, renders each plan to each target and holds it against schemas, GPU counts
and the plan that is read back (tests/contracts/target_validity.py). Prints what is not valid, what targets refuse and why.

python scripts/targets_matrix.py [--only REGEX] [--every N] [--out matrix.json]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "contracts"))

from target_validity import complaints_of

from autotune.documents.problem import Problem
from autotune.errors import ExportError
from autotune.exporters.folders import plan_launch
from autotune.exporters.targets.registry import MODULES
from autotune.searching.pools import search
from autotune.searching.services.searching import search_services
from cost_models.catalog import load_hardware
from cost_models.errors import AutotuneError

HARDWARE = (
    "gb200-nvl72", "gb300-nvl72", "hgx-b200", "hgx-b300", "hgx-h200", "hgx-h100", "hgx-h20", "mi355x", "ascend-910c",
    "ascend-910b2",
)  # fmt: skip
GPUS = {"deepseek-r1": 24, "kimi-k2": 32, "qwen3-235b-a22b": 16, "gpt-oss-120b": 8, "llama-3.1-70b": 8}
"""Model -> GPUs to plan for."""
ENGINES = {"nvidia": ("vllm", "sglang", "trtllm"), "amd": ("vllm", "sglang"), "huawei": ("vllm-ascend",)}
PLANNED = ("decode", "prefill", "serve")


def cases(only: str, every: int) -> list[tuple[str, Problem]]:
    """(name, problem); every : take each so-manieth."""
    found = []
    for hardware, model in itertools.product(HARDWARE, GPUS):
        for engine, planned in itertools.product(ENGINES[load_hardware(hardware).gpu.vendor], PLANNED):
            name = f"{hardware} {model} {engine} {planned}"
            asked = {"hardware": hardware, "model": model, "engine": engine, "target": planned, "gpus": GPUS[model], "trials": 0}
            found.append((name, Problem.model_validate(asked)))
    return [case for case in found if re.search(only, case[0])][::every]


def main() -> None:
    """Run the matrix; exit 1 where anything is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="expression that a case's name holds")
    parser.add_argument("--every", type=int, default=1, help="take every so-manieth case")
    parser.add_argument("--out", type=Path, help="all answers as JSON")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    planless: list[str] = []
    for name, problem in cases(asked.only, asked.every):
        try:
            plans = (search_services(problem) if problem.target == "serve" else search(problem)).plans
        except AutotuneError as error:
            planless.append(f"{name}: {str(error)[:160]}")
            continue
        for plan, target in itertools.product(plans, MODULES):
            row: dict[str, Any] = {"case": name, "rank": plan.rank, "target": target}
            try:
                row["wrong"] = complaints_of(target, plan.deployment, plan_launch(plan))
            except ExportError as error:
                row["refused"] = str(error)
            rows.append(row)
            for line in row.get("wrong", ()):
                print(f"{name} plan {plan.rank} {target}: {line}", flush=True)
    _report(rows, planless)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"rows": rows, "no plan": planless}, indent=1) + "\n")
    sys.exit(any(row.get("wrong") for row in rows))


def _report(rows: list[dict[str, Any]], planless: list[str]) -> None:
    rendered = [row for row in rows if "wrong" in row]
    for target in MODULES:
        of = [row for row in rendered if row["target"] == target]
        refused = sum("refused" in row for row in rows if row["target"] == target)
        print(f"{target:10} {sum(not row['wrong'] for row in of):5} of {len(of):5} valid, {refused:5} refused")
    reasons = collections.Counter(
        re.sub(r"\d+", "N", f"{row['target']}: {row['refused']}")[:150] for row in rows if "refused" in row
    )
    for reason, count in reasons.most_common():
        print(f"  refused {count:4} x {reason}")
    print(
        f"{sum(not row['wrong'] for row in rendered)} of {len(rendered)} renderings valid; {len(planless)} cases without a plan"
    )


if __name__ == "__main__":
    main()
