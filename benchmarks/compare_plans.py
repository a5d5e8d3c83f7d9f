"""Whether a change of the program changed its plans: random problems solved, kept, and compared.

python benchmarks/compare_plans.py write before.json --count 200    # before the change
python benchmarks/compare_plans.py against before.json              # after it; exit code 1 when a plan changed
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from autotune import Problem, search
from cost_models.catalog import hardware_names, load_hardware, model_names
from cost_models.errors import AutotuneError

ROUNDING = 1e-9
"""Numbers within it are the same: sums were taken in another order."""
TIE = 1e-4
"""Settings within it count as equally good: which of them is chosen is not decided."""


def random_problem(rng: np.random.Generator) -> dict[str, Any]:
    """Any hardware, model, target and limits; many have no plan, and must go on having none."""
    hardware = str(rng.choice(hardware_names()))
    sizes = [1, 2, 4, 8, 16, 32, 64]
    allowed = [n for n in sizes if n <= (load_hardware(hardware).max_gpus or 64)]
    nvidia = load_hardware(hardware).gpu.vendor == "nvidia"
    target = str(rng.choice(["decode", "decode", "prefill"]))
    problem: dict[str, Any] = {
        "hardware": hardware,
        "model": str(rng.choice(["deepseek-v3", "deepseek-v3", *model_names()])),
        "target": target,
        "gpus": int(rng.choice(allowed)),
        "engine": str(rng.choice(["vllm", "vllm", "sglang"])) if nvidia else None,
        "workload": {"isl_tokens": int(rng.choice([200, 1000, 2000, 8000])), "osl_tokens": int(rng.choice([100, 1000, 2000]))},
        "tpot_limit_s": float(rng.choice([0.02, 0.05, 0.1, 0.2])),
        "ttft_limit_s": float(rng.choice([0.3, 1.0, 3.0])),
        "objective": str(rng.choice(["tokens_per_s_per_gpu", "tokens_per_s_per_gpu", "tokens_per_s", "tpot"])),
        "top_k": int(rng.choice([1, 3])),
    }
    if target == "decode" and rng.random() < 0.3:
        problem["min_concurrency"] = int(rng.choice([16, 512, 8192]))
    if rng.random() < 0.2:
        problem["min_tokens_per_s"] = float(rng.choice([500.0, 20_000.0]))
    return {name: value for name, value in problem.items() if value is not None}


def solved(problem: dict[str, Any]) -> dict[str, Any]:
    """The plans of a problem, or why there are none."""
    try:
        result = search(Problem.model_validate(problem))
    except AutotuneError as error:
        return {"error": str(error)}
    plans = [
        {
            "label": plan.label,
            "deployment": plan.deployment.model_dump(mode="json"),
            "tokens_per_s_per_gpu": plan.prediction.tokens_per_s_per_gpu,
            "step_s": plan.prediction.step_s,
        }
        for plan in result.plans
    ]
    others = [(other.label, round(other.tokens_per_s_per_gpu, 6)) for other in result.alternatives]
    return {"plans": plans, "alternatives": others}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """'tie' for other settings of the same worth, what changed otherwise; None for the same plans, numbers but for ROUNDING."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    if old == new:
        return None
    if "error" in old or "error" in new:
        return f"{old.get('error', 'plans')!s} -> {new.get('error', 'plans')!s}"
    if [plan["label"] for plan in old["plans"]] != [plan["label"] for plan in new["plans"]]:
        return f"{[p['label'] for p in old['plans']]} -> {[p['label'] for p in new['plans']]}"
    pairs = [
        (a[key], b[key]) for a, b in zip(old["plans"], new["plans"], strict=True) for key in ("tokens_per_s_per_gpu", "step_s")
    ]
    worst = max(abs(b / a - 1) for a, b in pairs)
    if worst > TIE:
        return f"rates or steps differ by {worst:.2%}"
    settings = [[plan["deployment"] for plan in side["plans"]] for side in (old, new)]
    others = [dict(side["alternatives"]) for side in (old, new)]
    alike = list(others[0]) == list(others[1]) and all(abs(others[1][n] - rate) <= TIE * rate for n, rate in others[0].items())
    if alike and worst <= ROUNDING and settings[0] == settings[1]:
        return None
    return "tie" if alike else f"{old['alternatives']} -> {new['alternatives']}"


def write(path: Path, count: int) -> int:
    """Solve `count` problems and keep their plans."""
    rng = np.random.default_rng(0)
    kept = []
    start = time.process_time()
    for _ in range(count):
        problem = random_problem(rng)
        kept.append({"problem": problem, "solved": solved(problem)})
    path.write_text(json.dumps(kept), encoding="utf-8")
    found = sum("plans" in item["solved"] for item in kept)
    print(f"{count} problems, {found} with plans, {time.process_time() - start:.1f} CPU s: {path}")
    return 0


def against(path: Path) -> int:
    """Solve the same problems again; 1 when a plan changed."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    start = time.process_time()
    found = [difference(item["solved"], solved(item["problem"])) for item in kept]
    changed = [i for i, text in enumerate(found) if text not in (None, "tie")]
    for i in changed:
        print(f"{i}: {json.dumps(kept[i]['problem'])}\n   {found[i]}")
    same, tied = found.count(None), found.count("tie")
    took = time.process_time() - start
    counts = f"{same} the same, {tied} other settings of the same worth, {len(changed)} changed"
    print(f"{len(kept)} problems: {counts}, {took:.1f} CPU s")
    return int(bool(changed))


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("write", "against"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    sys.exit(write(given.file, given.count) if given.job == "write" else against(given.file))


if __name__ == "__main__":
    main()
