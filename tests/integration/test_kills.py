"""Killed at any moment, and several at once: every output parses, nothing that was finished is lost, a rerun goes on.

AUTOTUNE_KILLS=200 pytest tests/integration/test_kills.py counts as docs/reliability.md reports it.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import yaml

from autotune.documents.results import load_plans
from cost_models.catalog import load_calibration

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("AUTOTUNE_KILLS", "4"))
LONGEST_S = 300
AUTOTUNE = [sys.executable, "-m", "autotune"]
SMALL = ["--hw", "hgx-h200", "--gpus", "8", "--model", "qwen3-235b-a22b"]
SEARCH = [*AUTOTUNE, "search", *SMALL, "--trials", "30", "--storage", "sqlite:///s.db"]
PLACE = [*AUTOTUNE, "place", "--synthetic", "1.5", "--gpus", "16", "--model", "qwen3-235b-a22b", "--out", "maps"]
MEASURE = """
from pathlib import Path
from autotune.measuring.shapes import ShapeGrid, kernel_shapes
from autotune.measuring.table import MeasuredTable
from cost_models.catalog import load_model
table = MeasuredTable.opened(Path("timings.csv"), "H200", {"started": "now"})
for shape in kernel_shapes(load_model("deepseek-v3"), 8, ShapeGrid())[:150]:
    if not table.has(shape):
        table.add(shape, 1e-5)
"""
"""What `measure` does with its table, without a GPU."""


def run(folder: Path, words: list[str], kill_after_s: float | None = None) -> int | None:
    """Exit code; none where it was killed."""
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=kill_after_s or LONGEST_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert kill_after_s is not None, f"{words} did not end within {LONGEST_S} s"
        return None
    assert "Traceback" not in err
    return process.returncode


def finished_trials(folder: Path) -> int:
    """Trials in the storage, all of them complete; the file is sound."""
    if not (folder / "s.db").exists():
        return 0
    with sqlite3.connect(folder / "s.db", timeout=60) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'trial_values'").fetchone():
            return 0
        total, complete = connection.execute("SELECT count(*), coalesce(sum(state = 'COMPLETE'), 0) FROM trials").fetchone()
        values = connection.execute("SELECT count(*) FROM trial_values").fetchone()[0]
    assert total == complete == values
    return int(total)


def sound_runs(folder: Path) -> int:
    """Run folders, each of which is whole."""
    runs = [path for path in (folder / "results").glob("*") if not path.name.startswith(".")] if folder.exists() else []
    for path in runs:
        assert load_plans(path).plans
        json.loads((path / "run.json").read_text())
        assert len(list((path / "launch").glob("plan-*/*.sh"))) >= 1
        for script in path.rglob("*.sh"):
            assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    return len(runs)


def sound_maps(folder: Path) -> int:
    """Maps of one placement: all of them, and of the same one."""
    maps = folder / "maps"
    if not maps.exists() or not any(maps.iterdir()):
        return 0
    placement = json.loads((maps / "placement.json").read_text())
    flat = [[expert for gpu in layer for expert in gpu] for layer in placement["experts"]]
    sglang = json.loads((maps / "sglang_expert_location.json").read_text())["physical_to_logical_map"]
    trtllm = yaml.load((maps / "trtllm_moe_load_balancer.yaml").read_text(), Loader=yaml.CSafeLoader)
    assert sglang[-len(flat) :] == list(trtllm["initial_global_assignments"].values()) == flat
    for picture in maps.glob("*.png"):
        assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    return 1


def sound_table(folder: Path) -> int:
    """Rows of the timing table, with the notes that it is resumed by."""
    if not (folder / "timings.csv").exists():
        return 0
    with (folder / "timings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["latency_s"]) == 1e-5 for row in rows)
    if len(rows) > 1:
        json.loads((folder / "timings.json").read_text())
    return len(rows)


LLAMA = {"hardware": "hgx-h200", "model": "llama-3.1-70b", "gpus": 1, "trials": 0}
SCENARIOS = [{**LLAMA, "tpot_limit_s": limit_s} for limit_s in (0.05, 0.06, 0.07, 0.08, 0.09, 0.1)]
FLEET = {
    "models": [{"name": "chat", "model": "llama-3.1-70b", "rate_per_s": 2, "workload": {"isl_tokens": 200, "osl_tokens": 20}}],
    "clusters": [{"name": "east", "hardware": "hgx-h200", "racks": 1}],
}
DECODE = {
    "hardware": "hgx-h200", "model": "deepseek-v3", "precision": "fp8-block", "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 2000, "osl_tokens": 500},
    "pools": {"decode": {"dp": 16, "ep": 16, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency"}},
}  # fmt: skip
MEASURED = {
    "format": "autotune-cases/1", "title": "mine",
    "cases": [{"id": "a", "title": "A", "source": "s", "date": "2026-01-01", "deployment": DECODE,
               "measured": {"tokens_per_s_per_gpu": 2000, "tpot_s": 0.05}}],
}  # fmt: skip
TIMINGS = "operator,dtype,gpu,m,n,k,latency_us\n" + "".join(
    f"dense_gemm,fp8_block,H200,{2**i},{n},7168,{5 + 2**i * n / 5e5:.3f}\n"
    for i in range(4, 14)
    for n in (4096, 7168, 2048, 1024, 512)
)
INPUTS = {
    "sweep.yaml": json.dumps(SCENARIOS),
    "fleet.yaml": json.dumps(FLEET),
    "cases.yaml": json.dumps(MEASURED),
    "given.csv": TIMINGS,
}
SWEEP = [*AUTOTUNE, "sweep", "sweep.yaml", "--out", "swept", "--workers", "1", "--format", "csv"]
FLEETS = [*AUTOTUNE, "fleet", "fleet.yaml", "--out", "fleet", "--workers", "1"]
VALIDATE = [*AUTOTUNE, "validate", "cases.yaml", "--out", "validated"]
CALIBRATE = [*AUTOTUNE, "calibrate", "given.csv", "--hw", "hgx-h200", "--out", "mine.yaml"]


def answers(folder: Path) -> int:
    """Answers in a sweep's journal: whole lines, but for one that a kill may have cut."""
    if not (folder / "answers.jsonl").exists():
        return 0
    kept = (folder / "answers.jsonl").read_text().split("\n")
    return sum(isinstance(json.loads(line), dict) for line in kept[:-1])


def sound_sweep(folder: Path) -> int:
    """Answers that a restart goes on from; the table is of all problems or not there."""
    if (folder / "swept" / "table.csv").exists():
        with (folder / "swept" / "table.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) >= len(SCENARIOS)
    return answers(folder / "swept")


def sound_fleet(folder: Path) -> int:
    """Answers of the fleet's sweep; its plan is whole and beside the scripts it names, or not there."""
    if (folder / "fleet" / "fleet.yaml").exists():
        assert yaml.safe_load((folder / "fleet" / "fleet.yaml").read_text())["placements"]
    for script in (folder / "fleet").rglob("*.sh"):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    return answers(folder / "fleet")


def sound_validation(folder: Path) -> int:
    """Pictures and table of one validation: all of them or none."""
    out = folder / "validated"
    if not out.exists() or not any(out.iterdir()):
        return 0
    pictures = list(out.glob("*.png"))
    assert len(pictures) == 2
    assert all(picture.read_bytes().endswith(b"IEND\xaeB`\x82") for picture in pictures)
    with (out / "cases.csv").open(newline="") as file:
        return len(list(csv.DictReader(file)))


def sound_calibration(folder: Path) -> int:
    """Families of a calibration that loads, or none yet."""
    if not (folder / "mine.yaml").exists():
        return 0
    return len(load_calibration(str(folder / "mine.yaml")).families)


CASES: dict[str, tuple[list[str], Callable[[Path], int], float]] = {
    "search": (SEARCH, lambda folder: (sound_runs(folder), finished_trials(folder))[1], 1.5),
    "place": (PLACE, sound_maps, 0.5),
    "measure": ([sys.executable, "-c", MEASURE], sound_table, 0.6),
    "sweep": (SWEEP, sound_sweep, 0.9),
    "fleet": (FLEETS, sound_fleet, 3.5),
    "validate": (VALIDATE, sound_validation, 1.5),
    "calibrate": (CALIBRATE, sound_calibration, 2.0),
}
"""Command, what it has finished, and a third more than it takes [s]: most kills come before its end."""


@pytest.mark.parametrize("name", CASES)
def test_killed_at_random_moments(tmp_path, name):
    words, count, longest_s = CASES[name]
    rng = random.Random(name)
    for file, text in INPUTS.items():
        (tmp_path / file).write_text(text)
    before = 0
    for _ in range(KILLS if name == "search" else max(KILLS // 2, 2)):
        run(tmp_path, words, kill_after_s=rng.uniform(0.2, longest_s))
        now = count(tmp_path)
        assert now >= before, f"{before - now} of {before} were lost"
        before = now
    time.sleep(0.1)
    assert run(tmp_path, words) == 0
    assert count(tmp_path) >= max(before, 1)
    if name == "search":
        assert finished_trials(tmp_path) == 30  # those that were left, not thirty more


def test_an_export_is_of_one_plan_whenever_it_is_killed(tmp_path):
    for target, name in ((["--target", "decode"], "a"), (["--target", "serve", "--rate", "1"], "b")):
        assert run(tmp_path, [*AUTOTUNE, "search", *SMALL, "--trials", "0", *target, "--out", name]) == 0
    plans = [next((tmp_path / name).iterdir()) for name in ("a", "b")]
    whole = []
    for number, plan in enumerate(plans):
        assert run(tmp_path, [*AUTOTUNE, "export", str(plan), "--out", f"whole{number}"]) == 0
        whole.append({path.name: path.read_text() for path in (tmp_path / f"whole{number}").iterdir()})
    rng = random.Random(5)
    for number in range(max(KILLS // 2, 2)):
        run(tmp_path, [*AUTOTUNE, "export", str(plans[number % 2]), "--out", "s"], kill_after_s=rng.uniform(0.2, 0.6))
        now = {path.name: path.read_text() for path in (tmp_path / "s").iterdir()} if (tmp_path / "s").exists() else {}
        assert now in ({}, *whole)


@pytest.mark.parametrize("workers", [4, 8] if KILLS > 4 else [4])
def test_several_at_once_lose_nothing_and_share_the_trials(tmp_path, workers):
    running = [
        subprocess.Popen(SEARCH, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    errors = [process.communicate(timeout=LONGEST_S)[1] for process in running]
    assert [process.returncode for process in running] == [0] * workers, errors
    assert sound_runs(tmp_path) == workers
    assert finished_trials(tmp_path) == 30
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path}/s.db")
    numbers = [trial.number for trial in optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/s.db").trials]
    assert numbers == list(range(30))
