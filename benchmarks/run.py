"""Wall time, CPU time and memory of the jobs people wait for, each in fresh processes.

CPU seconds (user and system, of all processes of a job) are what to compare on a machine that does other things; the ratio is to
what importing the job's own libraries takes, measured in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
start = time.process_time()
decode_step(machine, rows, 3000.0)
decode_memory(machine, rows, Workload(isl_tokens=2000, osl_tokens=2000))
print(time.process_time() - start)
"""

LIBRARIES = "import numpy, pydantic.main, pydantic.json_schema, yaml, typer, rich.console, rich.table, jinja2"
"""What the main job imports that is not ours."""

RECIPES = Path(__file__).parent.parent / "tests" / "fixtures" / "recipes"
RECIPE = str(RECIPES / "vllm_r1_fp8_8xh200.sh")
SEARCH = ("search", "--hw", "gb200-nvl72")
MAIN_JOB = "search --hw gb200-nvl72 --target decode"
DEPLOYMENT = """
hardware: gb200-nvl72
model: deepseek-v3
precision: nvfp4
engine: {name: vllm}
workload: {isl_tokens: 2000, osl_tokens: 2000}
pools: {decode: {dp: 8, ep: 8, batch_per_dp_rank: 256, all2all_backend: deepep_low_latency}}
"""
SCENARIOS = {
    "base": {"workload": {"isl_tokens": 2000, "osl_tokens": 1000}},
    "grid": {
        "hardware": ["gb200-nvl72", "hgx-b200", "hgx-h200", "hgx-h100"],
        "model": ["deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b", "llama-3.1-70b", "kimi-k2"],
        "gpus": [8, 16],
        "workload.isl_tokens": [500, 1000, 2000, 4000, 8000],
        "tpot_limit_s": [0.03, 0.05, 0.075, 0.1, 0.2],
    },
}
"""A thousand problems. Every 37th, a stride that no axis of the grid divides, and the time of all from theirs, unless --whole."""
SLICES = 37
SWEEP_SCRIPT = """
import sys
from autotune.sweeping.executors import Serial
from autotune.sweeping.running import sweep
from autotune.sweeping.slices import Slice
sweep(sys.argv[1], executor=Serial(), part=Slice(0, int(sys.argv[2])))
"""
"""In one process: the CPU time of a pool's processes is not all counted as their parent's."""
LOADS = (np.random.default_rng(0).lognormal(0, 1.2, (58, 256)) * 1000).round() + 1

AUTOTUNE = [sys.executable, "-m", "autotune"]


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the table."""

    name: str
    arguments: tuple[str, ...]
    target: str
    runs: int = 3
    codes: tuple[int, ...] = (0,)
    """Exit codes it may end with."""


@dataclass(frozen=True, slots=True)
class Took:
    """One run of a job."""

    wall_s: float
    cpu_s: float
    megabytes: float


def timed(command: list[str], codes: tuple[int, ...] = (0,)) -> Took:
    """A command in a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment())
        _, status, own = wait4(process.pid)
        process.returncode = status
        if status not in codes:
            errors.seek(0)
            raise subprocess.CalledProcessError(status, command, None, errors.read())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(time.perf_counter() - start, cpu_s, own.ru_maxrss * 1024 / 1e6)


def environment() -> dict[str, str]:
    """This process's, but that modules are compiled once and kept, as those of an installed package are."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def wait4(pid: int) -> tuple[int, int, resource.struct_rusage]:
    """(pid, exit code, resources) of a child."""
    found, status, used = os.wait4(pid, 0)
    return found, os.waitstatus_to_exitcode(status), used


def jobs(folder: Path) -> list[Job]:
    """What is measured; files that jobs need are written to the folder."""
    out, deployment, loads = str(folder / "out"), folder / "deployment.yaml", folder / "loads.npz"
    deployment.write_text(DEPLOYMENT, encoding="utf-8")
    np.savez(loads, logical_count=LOADS)
    place = ("place", str(loads), "--gpus", "32", "--redundant", "32", "--out", str(folder / "map"))
    return [
        Job("--help", ("--help",), "0.2 s", 5),
        Job("predict, a decode pool", ("predict", str(deployment)), "0.6 s", 5),
        Job("check, a recipe that works", ("check", RECIPE, "--hw", "hgx-h200"), "0.7 s"),
        Job("check, too slow, changes searched", ("check", RECIPE, "--hw", "hgx-h200", "--tpot", "20ms"), "1.5 s", codes=(0, 2)),
        Job(MAIN_JOB, (*SEARCH, "--target", "decode", "--out", out), "1.5 s, 3.5 x", 7),
        Job("the same, with a study of 120 trials", (*SEARCH, "--target", "decode", "--trials", "120", "--out", out), "-"),
        Job("search --target prefill", (*SEARCH, "--target", "prefill", "--out", out), "1.8 s"),
        Job("search --target serve, 72 GPUs", (*SEARCH, "--target", "serve", "--out", out), "3 s"),
        Job("search --target serve, 4,608 GPUs", (*SEARCH, "--target", "serve", "--gpus", "4608", "--out", out), "4 s"),
        Job("search --expert-load", (*SEARCH, "--expert-load", str(loads), "--engine", "sglang", "--out", out), "2.5 s"),
        Job("place, 58 layers on 32 GPUs", place, "0.4 s"),
    ]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="jobs whose name has this in it")
    parser.add_argument("--whole", action="store_true", help="solve all thousand problems of the sweep")
    given = parser.parse_args()
    timed([*AUTOTUNE, "search", "--help"])  # compiles what is not yet
    libraries = [timed([sys.executable, "-c", LIBRARIES]) for _ in range(7)]
    base_s = statistics.median(took.cpu_s for took in libraries)
    print(f"{'job':42s} {'wall':>8s} {'best':>8s} {'CPU':>8s} {'ratio':>7s} {'memory':>8s} {'target':>14s}")
    report("importing the libraries of the main job", libraries, "", base_s)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job in jobs(folder):
            if given.only and given.only not in job.name:
                continue
            report(job.name, [timed([*AUTOTUNE, *job.arguments], job.codes) for _ in range(job.runs)], job.target, base_s)
            if job.arguments[0] == "search":
                stages(folder / "out")
        if not given.only or given.only in "sweep":
            sweep(folder, whole=given.whole)
    if not given.only or given.only in "scaling":
        subprocess.check_call([sys.executable, str(Path(__file__).with_name("scaling.py"))])
    if given.only and given.only in "test suite":
        suite()
    if not given.only or given.only in "fleets":
        subprocess.check_call([sys.executable, str(Path(__file__).with_name("fleets.py"))])
    if not given.only or given.only in "rows":
        rows()


def report(job: str, runs: list[Took], target: str, base_s: float) -> None:
    """One line: medians, the best, the ratio to importing the libraries."""
    wall_s, cpu_s = (statistics.median(getattr(took, name) for took in runs) for name in ("wall_s", "cpu_s"))
    best_s, most = min(took.wall_s for took in runs), max(took.megabytes for took in runs)
    print(f"{job:42s} {wall_s:6.2f} s {best_s:6.2f} s {cpu_s:6.2f} s {cpu_s / base_s:5.1f} x {most:5.0f} MB {target:>14s}")


def stages(out: Path) -> None:
    """What each stage of the newest run in a folder took of the clock; the rest is starting, importing, writing and printing."""
    newest = max(out.iterdir(), key=lambda path: path.stat().st_mtime)
    seconds = json.loads((newest / "run.json").read_text(encoding="utf-8"))["statistics"]["seconds"]
    shares = (f"{stage} {took * 1e3:.0f} ms ({took / sum(seconds.values()):.0%})" for stage, took in seconds.items())
    print("  " + ", ".join(shares) + "; the rest: start, import, report")


def sweep(folder: Path, *, whole: bool) -> None:
    """A thousand scenarios, one after the other in one process; two cores take half of its CPU time."""
    scenarios = folder / "scenarios.yaml"
    scenarios.write_text(json.dumps(SCENARIOS), encoding="utf-8")
    every = 1 if whole else SLICES
    solved = math.ceil(1000 / every)
    took = timed([sys.executable, "-c", SWEEP_SCRIPT, str(scenarios), str(every)])
    times = 1000 / solved
    name = "sweep, 1,000 scenarios" + ("" if whole else f" from {solved}")
    cpu = f"{took.cpu_s * times:6.0f} s {'':7s} {took.megabytes:5.0f} MB"
    print(f"{name:42s} {took.wall_s * times:6.0f} s {'':8s} {cpu} {'480 s of CPU':>14s}")


def suite() -> None:
    """The tests, all and the quick ones; minutes, so only when asked for."""
    for name, chosen, target in (("test suite", ["-n", "3"], "3 min"), ("its quick part", ["-n", "2", "-m", "not slow"], "40 s")):
        took = timed([sys.executable, "-m", "pytest", "-q", "--dist", "worksteal", *chosen])
        print(f"{name:42s} {took.wall_s:6.0f} s {'':8s} {took.cpu_s:6.0f} s {'':19s} {target:>14s}")


def rows() -> None:
    """How many rows are costed in a second, from nothing: the first rows also fill the tables of expert balance."""
    found = [float(subprocess.check_output([sys.executable, "-c", ROWS_SCRIPT])) for _ in range(5)]
    print(f"{'costing rows (step and memory)':42s} {0.1 / statistics.median(found):6.2f} M rows/CPU s {'':22s} {'1 M/s':>14s}")


if __name__ == "__main__":
    main()
