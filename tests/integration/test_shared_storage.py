"""Several workers on one study, over a gRPC proxy and a real PostgreSQL: no trial is lost."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.documents.problem import Problem
from autotune.errors import OutputError
from autotune.flags.decode import DecodeFlagEvaluator
from autotune.flags.evaluate import FlagEvaluator
from autotune.flags.space import flag_space
from autotune.flags.study import tune_flags
from autotune.layouts.table import largest_fitting_size
from autotune.resolving import resolve_problem
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows

WORKERS, TRIALS = 8, 24
PROXY = (
    "import sys, optuna; optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage(sys.argv[1]), port=int(sys.argv[2]))"
)


def evaluator() -> FlagEvaluator:
    resolved = resolve_problem(Problem(hardware="gb200-nvl72", gpus=8))
    low_latency = BACKENDS.index("deepep_low_latency")
    row = Rows.of(dp=8, ep=8, batch=256, backend=low_latency, eplb=1, eplb_interval_steps=3000)
    return DecodeFlagEvaluator(resolved, row, flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0])), 1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not answers(port):
        assert process.poll() is None, "it ended before it answered"
        assert time.monotonic() < until, "it does not answer"
        time.sleep(0.1)


def as_postgres(folder: Path) -> dict[str, int]:
    """PostgreSQL does not run as root: as the user that its package makes, then."""
    if os.geteuid():
        return {}
    import pwd

    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid}


@pytest.fixture
def postgres() -> Iterator[str]:
    """A database of this test's own; skipped where PostgreSQL or its driver is not installed."""
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'moe-autotune[storage]'")
    found = [
        shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
        for name in ("initdb", "postgres")
    ]
    if None in found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    initdb, server = map(str, found)
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        data = Path(root) / "data"
        data.mkdir()
        user, port = as_postgres(data), free_port()
        subprocess.run(
            [initdb, "-D", str(data), "-A", "trust", "-U", "autotune", "--no-sync"], check=True, capture_output=True, **user
        )
        options = ["-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(data), "-c", "fsync=off"]
        running = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
        try:
            wait_for(port, running)
            yield f"postgresql+psycopg://autotune@127.0.0.1:{port}/postgres"
        finally:
            running.terminate()
            running.wait()


@pytest.fixture
def proxy(postgres) -> Iterator[str]:
    """Optuna's gRPC proxy in front of it."""
    pytest.importorskip("grpc", reason="no gRPC: pip install 'moe-autotune[storage]'")
    port = free_port()
    running = subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROXY, postgres, str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port, running)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def work(url: str, priced: FlagEvaluator, seed: int, kept: multiprocessing.Queue[int]) -> None:
    """What one worker does; the number of trials that it made itself."""
    made = []
    tune_flags(priced, trials=TRIALS, seed=seed, storage=url, study_name="shared", on_trial=lambda: made.append(1))
    kept.put(len(made))


@pytest.mark.slow
def test_eight_workers_over_a_proxy_and_postgresql_lose_no_trial(proxy):
    processes = multiprocessing.get_context("fork")
    kept: multiprocessing.Queue[int] = processes.Queue()
    priced = evaluator()
    workers = [processes.Process(target=work, args=(proxy, priced, seed, kept)) for seed in range(WORKERS)]
    for worker in workers:
        worker.start()
    made = [kept.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    import optuna

    url = proxy.removeprefix("grpc://").partition(":")
    storage = optuna.storages.GrpcStorageProxy(host=url[0], port=int(url[2]))
    trials = optuna.load_study(storage=storage, study_name="shared").get_trials(deepcopy=False)
    storage.close()
    assert len(trials) == sum(made)  # every trial that a worker made is there
    assert sorted(trial.number for trial in trials) == list(range(len(trials)))
    assert all(trial.state.is_finished() and trial.value is not None for trial in trials)
    assert TRIALS <= len(trials) < TRIALS + WORKERS  # each may have had one under way when the others were enough
    assert sum(count > 0 for count in made) > 1


@pytest.mark.slow
def test_a_proxy_that_is_not_there_is_one_message():
    pytest.importorskip("grpc")
    for url, text in ((f"grpc://127.0.0.1:{free_port()}", "cannot be used"), ("grpc://nowhere", "grpc://host:port")):
        with pytest.raises(OutputError, match=text):
            tune_flags(evaluator(), trials=3, seed=0, storage=url)
