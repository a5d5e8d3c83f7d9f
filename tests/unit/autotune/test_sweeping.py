"""Sweeps: scenario files, workers that die, kills and restarts, the same rows whoever solves them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import autotune
from autotune.documents.sweep import Found, SweptRow
from autotune.errors import OutputError, ProblemError
from autotune.sweeping import executors
from autotune.sweeping.executors import LocalProcesses, Serial, executor_of
from autotune.sweeping.journal import Journal
from autotune.sweeping.running import sweep
from autotune.sweeping.scenarios import Task, entries_of, read_scenarios, task_of
from autotune.sweeping.slices import Slice, sbatch
from autotune.sweeping.table import write_table
from autotune.threads import BLAS_THREADS, one_blas_thread

LLAMA = {"hardware": "hgx-h200", "model": "llama-3.1-70b", "gpus": 4, "trials": 0}
GRID = """\
base: {model: llama-3.1-70b, trials: 0, workload: {isl_tokens: 500, osl_tokens: 100}}
grid:
  hardware: [hgx-h200, hgx-h100]
  gpus:
    - 4
    - 8
  workload.isl_tokens: [1000]
problems:
  - {hardware: hgx-h200, tpot_limit_s: 0.05}
  - {hardware: hgx-h200, tpot_limit_s: soon}
  - {hardware: no-such-machine}
"""


@pytest.fixture
def scenarios(tmp_path) -> Path:
    path = tmp_path / "scenarios.yaml"
    path.write_text(GRID)
    return path


def test_a_grid_is_every_combination_on_top_of_the_base(scenarios):
    entries = read_scenarios(scenarios)
    assert [(e.asked["hardware"], e.asked.get("gpus")) for e in entries[:4]] == [
        ("hgx-h200", 4), ("hgx-h200", 8), ("hgx-h100", 4), ("hgx-h100", 8),
    ]  # fmt: skip
    assert entries[0].asked["workload"] == {"isl_tokens": 1000, "osl_tokens": 100}
    assert [e.number for e in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.line for e in entries[4:]] == [9, 10, 11]


def test_bad_entries_are_rows_with_their_line_and_the_rest_runs(scenarios):
    result = sweep(scenarios, executor=Serial())
    assert [row.found.status for row in result.rows] == ["plan"] * 5 + ["bad", "bad"]
    bad = result.with_status("bad")
    assert [row.line for row in bad] == [10, 11]
    assert "tpot_limit_s" in bad[0].found.message
    assert "'no-such-machine'" in bad[1].found.message


def test_a_bad_value_of_a_grid_is_named_by_its_own_line():
    lines = {"grid": {"hardware": [2, 3], "gpus": [4]}}
    entries = list(entries_of({"grid": {"hardware": ["hgx-h200", "hgx-h2oo"], "gpus": [4]}}, "x", lines))
    assert entries[1].line_of("unknown hardware 'hgx-h2oo'. Known: ...") == 3
    assert entries[1].line_of("gpus: Input should be less than 3") == 4


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a list of problems|nothing to solve"),
        ({"grids": {}}, "unknown part of a scenario file 'grids'"),
        ({"grid": {"gpus": 8}}, "list of values for every field"),
        ({"problems": {"hardware": "x"}}, "problems: expected a list"),
        ({"base": {"gpus": 1}}, "nothing to solve"),
        ("text", "expected a list of problems"),
    ],
)
def test_a_file_that_is_no_scenario_file_is_one_message(document, message):
    with pytest.raises(ProblemError, match=message):
        list(entries_of(document, "x.yaml"))


def test_alike_problems_are_solved_once_and_the_same_as_by_search():
    result = autotune.sweep([LLAMA, {**LLAMA, "model": "llama-3.1-70b"}, autotune.Problem(**LLAMA)], executor=Serial())
    assert result.solved == 1
    alone = autotune.search(autotune.Problem(**LLAMA)).best
    for row in result.rows:
        assert row.found.tokens_per_s_per_gpu == alone.prediction.tokens_per_s_per_gpu
        assert row.found.deployment == alone.deployment


def test_what_is_known_is_not_solved_again_and_a_line_cut_off_is_not_known(tmp_path):
    first = sweep([LLAMA, {**LLAMA, "gpus": 8}], tmp_path, executor=Serial())
    journal = tmp_path / "answers.jsonl"
    again = sweep([LLAMA, {**LLAMA, "gpus": 8}], tmp_path, executor=Serial())
    assert (first.solved, again.solved) == (2, 0)
    assert again.rows == first.rows
    journal.write_text(journal.read_text()[:-40])  # as a kill in the middle of a write leaves it
    third = sweep([LLAMA, {**LLAMA, "gpus": 8}], tmp_path, executor=Serial())
    assert third.solved == 1
    assert third.rows == first.rows
    assert sweep([LLAMA, {**LLAMA, "gpus": 8}], tmp_path, executor=Serial()).solved == 0


def test_files_count_by_their_content(tmp_path):
    path = tmp_path / "mine.yaml"
    from cost_models.catalog import load_hardware

    path.write_text(load_hardware("hgx-h200").model_dump_json())
    before = task_of({**LLAMA, "hardware": str(path)})
    path.write_text(load_hardware("hgx-h200").model_copy(update={"name": "other"}).model_dump_json())
    after = task_of({**LLAMA, "hardware": str(path)})
    assert isinstance(before, Task)
    assert isinstance(after, Task)
    assert before.key != after.key
    assert before.problem == after.problem


def test_slices_share_the_problems_and_know_each_others_answers(tmp_path):
    problems = [{**LLAMA, "gpus": n} for n in (1, 2, 4, 8)]
    parts = [sweep(problems, tmp_path, executor=Serial(), part=Slice(i, 2)) for i in (0, 1)]
    assert [[row.number for row in part.rows] for part in parts] == [[1, 3], [2, 4]]
    whole = sweep(problems, tmp_path, executor=Serial())
    assert whole.solved == 0
    assert [row.number for row in whole.rows] == [1, 2, 3, 4]


def test_the_job_array_runs_every_slice_once(tmp_path):
    script = sbatch(tmp_path / "a b.yaml", tmp_path / "out", 4)
    assert "#SBATCH --array=0-3\n" in script
    commands = [line for line in script.splitlines() if line.startswith("autotune sweep")]
    assert len(commands) == 1
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {commands[0]}"], capture_output=True, text=True, env=environment, check=True
    )
    words = shown.stdout.splitlines()
    assert words[2] == str(tmp_path / "a b.yaml")
    assert Slice.parsed(words[words.index("--slice") + 1]) == Slice(2, 4)
    for text in ("4/4", "x", "1", "-1/3"):
        with pytest.raises(ProblemError, match="slice"):
            Slice.parsed(text)


def test_two_sweeps_do_not_write_one_journal(tmp_path):
    with Journal(tmp_path, Slice()), pytest.raises(OutputError, match="another sweep writes"):
        Journal(tmp_path, Slice()).__enter__()


def test_failures_are_tried_again_by_the_next_run(tmp_path):
    with Journal(tmp_path, Slice()) as journal:
        journal.add("a", Found(status="failed", message="died"))
        journal.add("b", Found(status="infeasible", message="no"))
        assert set(journal.known()) == {"b"}


def dies_for(problem_json: str) -> str:
    """Stands for the solver: a problem whose worker is killed, among others."""
    if "kill" in problem_json:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return Found(status="infeasible", message=problem_json).model_dump_json()


@pytest.mark.slow
def test_a_worker_that_dies_takes_no_other_problem_along(monkeypatch):
    monkeypatch.setattr(executors, "solve", dies_for)
    tasks = [Task(str(i), "kill" if i == 5 else f"p{i}") for i in range(12)]
    found = {key: Found.model_validate_json(text) for key, text in LocalProcesses(2).results(tasks)}
    assert len(found) == 12
    assert [key for key, one in found.items() if one.status == "failed"] == ["5"]
    assert "died" in found["5"].message


@pytest.mark.slow
def test_a_worker_per_core_has_one_blas_thread(monkeypatch):
    monkeypatch.delenv(BLAS_THREADS, raising=False)
    monkeypatch.setattr(executors, "solve", os.getenv)
    asked = [Task(key=str(n), problem=BLAS_THREADS) for n in range(4)]
    assert {text for _, text in LocalProcesses(2).results(asked)} == {"1"}
    assert BLAS_THREADS not in os.environ


def test_a_number_of_blas_threads_that_is_set_already_is_kept(monkeypatch):
    monkeypatch.setenv(BLAS_THREADS, "3")
    with one_blas_thread():
        assert os.environ[BLAS_THREADS] == "3"
    assert os.environ[BLAS_THREADS] == "3"


def test_executors_are_asked_for_by_name(monkeypatch):
    assert executor_of("local", 1) == Serial()
    assert executor_of("local", 3) == LocalProcesses(3)
    with pytest.raises(ProblemError, match="unknown executor 'slurm'"):
        executor_of("slurm")
    with pytest.raises(ProblemError, match="Ray cluster"):
        executor_of("local", 2, "auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ProblemError, match=r"moe-autotune\[ray\]"):
        list(executor_of("ray").results([Task("a", "{}")]))


def test_the_table_holds_what_was_asked_and_found(tmp_path, scenarios):
    pq = pytest.importorskip("pyarrow.parquet")
    result = sweep(scenarios, executor=Serial())
    write_table(tmp_path / "t.parquet", result.rows)
    columns = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert columns["number"] == [1, 2, 3, 4, 5, 6, 7]
    assert columns["problem.gpus"] == [4, 8, 4, 8, None, None, None]
    assert columns["problem.tpot_limit_s"] == [None] * 4 + ["0.05", "soon", None]
    rates = np.array(columns["tokens_per_s_per_gpu"][:5], dtype=float)
    assert np.array_equal(rates, [row.found.tokens_per_s_per_gpu for row in result.rows[:5]])
    deployment = autotune.Deployment.model_validate_json(columns["deployment"][0])
    assert autotune.predict(deployment).tokens_per_s_per_gpu == pytest.approx(rates[0], rel=1e-9)
    write_table(tmp_path / "t.csv", result.rows)
    assert (tmp_path / "t.csv").read_text().count("\n") == 8


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "autotune", "sweep", *arguments]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path):
    path = tmp_path / "scenarios.yaml"
    path.write_text(json.dumps({"base": LLAMA, "grid": {"tpot_limit_s": [0.03 + 0.002 * i for i in range(16)]}}))
    journal = tmp_path / "out" / "answers.jsonl"
    running = subprocess.Popen(command(str(path), "--out", str(tmp_path / "out"), "--workers", "1"), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while (not journal.exists() or journal.read_text().count("\n") < 3) and time.monotonic() < until:
        time.sleep(0.02)
    running.kill()
    running.wait()
    kept = [json.loads(line)["key"] for line in journal.read_text().splitlines() if line.endswith("}")]
    assert 3 <= len(kept) < 16
    result = sweep(path, tmp_path / "out", executor=Serial())
    assert result.solved == 16 - len(kept)
    assert result.rows == sweep(path, executor=Serial()).rows


@pytest.mark.slow
def test_ray_finds_the_same_rows(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'moe-autotune[ray]'")
    path, out = tmp_path / "scenarios.yaml", tmp_path / "out"
    path.write_text(json.dumps([{**LLAMA, "gpus": 4}, {**LLAMA, "gpus": 8}, {**LLAMA, "model": "nosuch"}]))
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    arguments = command(str(path), "--out", str(out), "--executor", "ray", "--workers", "1", "--json", "--format", "csv")
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert f"{path}:1: unknown model 'nosuch'" in done.stderr
    rows = json.loads(done.stdout[done.stdout.index("{") :])["rows"]
    expected = sweep(path, executor=Serial())
    assert [SweptRow.model_validate(row) for row in rows] == list(expected.rows)
