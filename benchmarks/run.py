"""Wall time and memory of the jobs people wait for."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS_SCRIPT = """
import time
import numpy as np
from cost_models.catalog import calibration_for, load_hardware, load_model, load_recipe
from cost_models.machine import Machine
from cost_models.memory import decode_memory
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step
hardware = load_hardware("gb200-nvl72")
machine = Machine(load_model("deepseek-v3"), hardware, load_recipe("nvfp4"), calibration_for("GB200", "vllm"))
rng = np.random.default_rng(0)
n = 100_000
dp = rng.choice([4, 8, 16, 32, 48, 64, 72], n)
spare = -256 % dp
rows = Rows.of(
    dp=dp, ep=dp, redundant_experts=spare, eplb=1, batch=rng.integers(1, 1025, n), backend=rng.choice([1, 2, 4], n),
    overlap=rng.choice([0, 1], n),
)
start = time.perf_counter()
decode_step(machine, rows, 3000.0)
decode_memory(machine, rows, Workload(isl_tokens=2000, osl_tokens=2000))
print(time.perf_counter() - start)
"""

SERVICES = (
    ("--target prefill", ("--target", "prefill"), "6 s"),
    ("--target serve", ("--target", "serve"), "6 s"),
    ("--target serve --gpus 4608", ("--target", "serve", "--gpus", "4608"), "20 s"),
)

RECIPES = Path(__file__).parent.parent / "tests" / "fixtures" / "recipes"
CHECKS = (
    ("a recipe that works", ("vllm_r1_fp8_8xh200.sh", "--hw", "hgx-h200")),
    ("a recipe too slow, changes searched", ("vllm_r1_fp8_8xh200.sh", "--hw", "hgx-h200", "--tpot", "20ms")),
    ("a service too slow, changes searched", ("vllm_r1_fp8_8xh200.sh", "--hw", "hgx-h200", "--rate", "12", "--tpot", "70ms")),
)
"""Public recipes, judged; the last two end with exit code 2."""

AUTOTUNE = [sys.executable, "-m", "autotune"]


def timed(command: list[str], codes: tuple[int, ...] = (0,)) -> float:
    """Wall time of a command in a fresh process [s]; codes : exit codes it may end with."""
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True)
    took_s = time.perf_counter() - start
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return took_s


def peak_megabytes() -> float:
    """Largest resident set of any child so far [MB]."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure and print one table."""
    print(f"{'job':58s} {'median':>8s} {'best':>8s} {'target':>8s}")
    help_s = [timed([*AUTOTUNE, "--help"]) for _ in range(5)]
    report("autotune --help", help_s, "0.3 s")
    with tempfile.TemporaryDirectory() as out:
        job = [*AUTOTUNE, "search", "--hw", "gb200-nvl72", "--target", "decode", "--trials", "120", "--out", out]
        search_s = [timed(job) for _ in range(7)]
    report("autotune search --hw gb200-nvl72 --target decode, 120 trials", search_s, "2.5 s")
    print(f"{'  peak memory':58s} {peak_megabytes():6.0f} MB {'':8s} {'400 MB':>8s}")
    for name, options, target in SERVICES:
        with tempfile.TemporaryDirectory() as out:
            job = [*AUTOTUNE, "search", "--hw", "gb200-nvl72", *options, "--out", out]
            report(f"autotune search --hw gb200-nvl72 {name}", [timed(job) for _ in range(3)], target)
    print(f"{'  peak memory of all so far':58s} {peak_megabytes():6.0f} MB {'':8s} {'600 MB':>8s}")
    for name, (recipe, *options) in CHECKS:
        job = [*AUTOTUNE, "check", str(RECIPES / recipe), *options]
        report(f"autotune check, {name}", [timed(job, codes=(0, 2)) for _ in range(5)], "1.5 s")
    rows_s = [float(subprocess.check_output([sys.executable, "-c", ROWS_SCRIPT])) for _ in range(5)]
    report("costing 100,000 rows (step and memory)", rows_s, "0.5 s")


def report(job: str, seconds: list[float], target: str) -> None:
    """One line: median and best."""
    print(f"{job:58s} {statistics.median(seconds):6.2f} s {min(seconds):6.2f} s {target:>8s}")


if __name__ == "__main__":
    main()
