"""`autotune tune` against the simulated engine: real processes, real HTTP, real files; faults, kills and resumption."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from autotune.cli.main import TRACEBACK, main
from autotune.documents.results import load_plans
from autotune.documents.tuned import TuneResult, read_trials

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = ROOT / "tests" / "simulated_engine" / "bin"
LONGEST_S = 240
KILLS = int(os.environ.get("AUTOTUNE_TUNE_KILLS", "2"))
TRIALS = str(4 + KILLS // 3)
"""That a study is killed in."""
WORKLOAD = {"isl_tokens": 256, "osl_tokens": 16, "popularity_sigma": 0}
DEPLOYMENT = {
    "hardware": "hgx-h100",
    "model": "qwen3-30b-a3b",
    "precision": "bf16",
    "engine": {"name": "vllm", "version": "0.24"},
    "phase": "serve",
    "workload": WORKLOAD,
    "pools": {"serve": {"tp": 2, "max_batched_tokens": 8192, "batch_per_dp_rank": 256, "memory_fraction": 0.9}},
    "load": {"concurrency": 4},
}
QUICK = ["--vary", "max_num_batched_tokens=2048", "--rounds", "1", "--no-warm-up", "--same-layout"]
SLO = ["--slo", "ttft-p99=5s", "--slo", "tpot=200ms"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(DEPLOYMENT))
    write_world(tmp_path)
    return tmp_path


def write_world(folder: Path, **distortions: object) -> None:
    shared = {name: DEPLOYMENT[name] for name in ("hardware", "model", "precision", "workload")}
    (folder / "world.json").write_text(json.dumps({**shared, "version": "0.24", "distortions": distortions}))


def environment(folder: Path, path: str | None = None) -> dict[str, str]:
    where = f"{BIN}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin" if path is None else path
    return {**os.environ, "PATH": where, "SIMULATED_WORLD": str(folder / "world.json"), "SIMULATED_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT)}  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "autotune", "tune", "deployment.yaml", *words]


def tuned(folder: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words), cwd=folder, env=environment(folder, path), capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert "Traceback" not in done.stderr
    assert servers(folder) == []
    return done


@pytest.fixture
def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the command says, in this process, where there is nothing to measure; a fault of its own is raised."""

    def said(*words: str, path: str | None = None) -> str:
        monkeypatch.chdir(folder)
        for name, value in {**environment(folder, path), TRACEBACK: "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["autotune", "tune", "deployment.yaml", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        assert servers(folder) == []
        return capsys.readouterr().err

    return said


def servers(folder: Path) -> list[int]:
    """Processes of this folder's world that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            mine = f"SIMULATED_WORLD={folder / 'world.json'}".encode() in path.read_bytes().split(b"\0")
            words = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if mine and b"simulated_engine" in words:
            found.append(int(path.parent.name))
    return found


def test_the_loop_finds_a_winner_and_leaves_what_others_need(folder):
    write_world(folder, decode=1.3, host_s=0.002, crash_above=10)
    done = tuned(folder, *SLO, *QUICK, "--budget", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = TuneResult.model_validate_json(done.stdout)
    best = result.trial(result.best)
    assert best.feasible
    assert min(best.measured["tokens_per_s_per_gpu"], best.predicted["tokens_per_s_per_gpu"]) > 0
    assert any(trial.reason == "out_of_memory_under_load" for trial in result.trials)
    study = folder / "tuned"
    assert load_plans(study).best.deployment.pools["serve"].tp == 2
    assert "vllm serve" in (study / "launch" / "serve_node.sh").read_text()
    assert len(read_trials(study / "trials.jsonl")) == sum(trial.state == "measured" for trial in result.trials)
    kept = {path.name for path in (study / "trials" / f"{best.number:03d}").iterdir()}
    assert {"served_by.json", "bench-0.json", "load-0.log", "benchmark-report-0.yaml"} <= kept
    server = json.loads((study / "trials" / f"{best.number:03d}" / "served_by.json").read_text())["server_of_trial"]
    assert {"server.sh", "server.log"} <= {path.name for path in (study / "trials" / server).iterdir()}
    assert json.loads((study / "trials" / "000" / "server.process.json").read_text())["exit_code"] is not None
    again = tuned(folder, *SLO, *QUICK, "--budget", "5")
    assert again.returncode == 1
    assert "--resume" in again.stderr
    more = tuned(folder, *SLO, *QUICK, "--budget", "5", "--resume", "--json")
    assert TuneResult.model_validate_json(more.stdout).trials == result.trials


def test_limits_that_nothing_meets_exit_2_with_the_closest(folder):
    done = tuned(folder, "--slo", "tpot=1ms", *QUICK, "--fixed-load", "--budget", "2")
    assert done.returncode == 2
    assert "Closest is trial" in done.stderr
    assert (folder / "tuned" / "tune.json").exists()


def test_a_service_that_is_up_is_loaded_and_left_alone(folder):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [str(BIN / "vllm"), "serve", "Qwen/Qwen3-30B-A3B", "--tensor-parallel-size", "2", "--port", str(port)]
    server = subprocess.Popen(words, cwd=folder, env=environment(folder))
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        words = command("--url", f"http://127.0.0.1:{port}", *SLO, "--rounds", "1", "--budget", "2", "--json")
        done = subprocess.run(
            words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        assert done.returncode == 0, done.stderr
        assert {trial.layout for trial in TuneResult.model_validate_json(done.stdout).trials} == {"TP2"}
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.parametrize(
    ("words", "path", "said"),
    [
        ((), "/nowhere", "no `vllm` on the PATH"),
        (("--load", "guidell"), None, "guidellm"),
        (("--vary", "max_seqs=1"), None, "has no knob max_seqs"),
        (("--slo", "latency=1s"), None, "limits are on"),
        (("--apply", "true"), None, "--apply needs --delete"),
        (("--url", "http://127.0.0.1:9"), None, "does not answer on /health"),
    ],
)
def test_what_cannot_be_done_is_one_message(refused, words, path, said):
    assert said in refused(*SLO, "--budget", "1", *words, path=path)


def test_a_port_in_use_is_said(refused):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert "is in use" in refused(*SLO, *QUICK, "--budget", "1", "--port", str(one.getsockname()[1]))


@pytest.mark.parametrize(
    ("row", "said"),
    [("0, GPU-1, 70000, 81559", "1 are here"), ("0, GPU-1, 70000, 81559\n1, GPU-2, 400, 81559", "GPU 0: 70,000 of")],
)
def test_gpus_that_are_full_or_missing_are_said(folder, refused, row, said):
    """Two are needed; what nvidia-smi says is taken from a program of that name."""
    (folder / "bin").mkdir()
    (folder / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<EOF\n{row}\nEOF\n")
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{environment(folder)['PATH']}"
    assert said in refused(*SLO, *QUICK, "--budget", "1", path=path)


def test_a_server_that_never_becomes_healthy_is_one_message(folder):
    write_world(folder, never_healthy=["TP2"])
    done = tuned(folder, *SLO, *QUICK, "--budget", "6", "--start-limit", "3s")
    assert done.returncode == 1
    assert "never_healthy" in done.stderr
    assert len(json.loads((folder / "tuned" / "tune.json").read_text())["trials"]) >= 2


def test_options_that_the_engine_lacks_are_said_from_its_log(folder):
    done = tuned(folder, *SLO, *QUICK, "--budget", "6", "--engine-args", "--no-such-option 1")
    assert done.returncode == 1
    assert "unrecognized arguments: --no-such-option" in done.stderr


def test_a_cluster_is_driven_by_commands_and_what_was_applied_is_deleted(folder):
    """Slurm and Kubernetes as two scripts: one starts what the files say, the other ends it."""
    (folder / "apply.sh").write_text(
        '#!/bin/bash\nexport PORT=$2\nsetsid bash "$1/serve_node.sh" >"$1/log" 2>&1 </dev/null &\necho "job $!"\n'
    )
    (folder / "delete.sh").write_text(
        "#!/bin/bash\nkill -- -${2#job }\nwhile kill -0 -- -${2#job } 2>/dev/null; do sleep 0.1; done\n"
    )
    words = ["--apply", "bash apply.sh {folder} {port}", "--delete", "bash delete.sh {folder} '{id}'", "--format", "bash"]
    done = tuned(folder, *SLO, *QUICK, *words, "--fixed-load", "--budget", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert (folder / "tuned" / "trials" / "000" / "deleted.json").exists()


def test_kills_leave_no_server_and_lose_no_trial(folder):
    """AUTOTUNE_TUNE_KILLS=50 counts as the issue asks; whatever moment it is, the next session goes on."""
    chance = random.Random(7)
    known = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(*SLO, *QUICK, "--budget", TRIALS, "--resume"), cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(1, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 30
        while servers(folder) and time.monotonic() < until:
            time.sleep(0.1)
        assert servers(folder) == []
        known = max(known, finished(folder))
    done = tuned(folder, *SLO, *QUICK, "--budget", TRIALS, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    result = TuneResult.model_validate_json(done.stdout)
    assert sum(trial.state != "running" for trial in result.trials) >= max(known, 2)
    assert not any(trial.state == "running" for trial in result.trials)
    assert [trial.number for trial in result.trials] == list(range(len(result.trials)))


def finished(folder: Path) -> int:
    """Trials that were told."""
    journal = folder / "tuned" / "study.journal"
    if not journal.exists():
        return 0
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        study = optuna.load_study(
            study_name="autotune-tune", storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        )
    except KeyError:
        return 0
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
