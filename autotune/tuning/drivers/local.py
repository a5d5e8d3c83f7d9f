"""Servers on this machine: each in a process group of its own that ends with the tuner."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.exporters.launch import Process
from autotune.exporters.quoting import Shell, name, words
from autotune.tuning.drivers.base import ToStart, tuned_launch, wait_healthy
from autotune.tuning.outcomes import TrialFailed, TuningError
from autotune.tuning.processes import RECORD_ENDING, KeptProcess, end_recorded, start_kept, tail
from autotune.tuning.reasons import HERE, reason_in

START_LIMIT_S = 900.0
FULL = 0.1
"""Share of a GPU's memory in use from which a server would not fit."""
FREED_S = 60.0
"""For a GPU's memory to be free again after a server ended."""
RECORD = f"server{RECORD_ENDING}"
LOG = "server.log"


@dataclass
class LocalDriver:
    """Runs the launch script of a plan, as `autotune export` would write it for one node."""

    model: str | None = None
    """Folder or name that is loaded instead of the plan's checkpoint."""
    port: int | None = None
    """A free one where none is asked for."""
    start_limit_s: float = START_LIMIT_S
    environment: Mapping[str, str] = field(default_factory=dict)
    load_only: bool = False
    running: KeptProcess | None = None
    had_one: bool = False
    """Whether a server of this driver ran before: what it held is free again in a while."""

    def start(self, server: ToStart) -> str:
        """Raises TuningError without the engine, with a port or a GPU in use; TrialFailed where it does not come up."""
        launch = tuned_launch(server)
        process = launch.pools[0].head
        if launch.pools[0].place.nodes > 1:
            raise TrialFailed("refused", f"{server.deployment.pool.layout.label()} spans {launch.pools[0].place.nodes} nodes")
        _check_there(process)
        port = self.port or _free_port()
        _check_port(port)
        _check_gpus(launch.pools[0].place.gpus_per_node, FREED_S if self.had_one else 0.0)
        self.had_one = True
        variables = {**process.variables(), "PORT": str(port)}
        variables |= {"MODEL": self.model} if self.model else {}
        server.folder.mkdir(parents=True, exist_ok=True)
        script = server.folder / "server.sh"
        script.write_text(_script(process, variables), encoding="utf-8")
        self.running = start_kept(["bash", str(script)], server.folder / RECORD, server.folder / LOG, self.environment)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_healthy(url, self.start_limit_s, lambda: self._ended(under_load=False))
        except BaseException:
            self.stop()
            raise
        return url

    def failure(self) -> TrialFailed | None:
        return self._ended(under_load=True)

    def _ended(self, *, under_load: bool) -> TrialFailed | None:
        """Why it ended, from its log; raises TuningError for what every configuration would meet."""
        if self.running is None or self.running.exit_code() is None:
            return None
        reason, said = reason_in(tail(self.running.log))
        code = self.running.exit_code()
        if reason in HERE:
            raise TuningError(f"the engine cannot start here: {said} ({self.running.log})")
        reason = "crashed_at_start" if reason == "crashed" and not under_load else reason
        return TrialFailed(reason, f"exit code {code}: {said}", under_load=under_load)

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()
        self.running = None

    def clean(self, folder: Path) -> bool:
        ended = [end_recorded(record) for record in folder.glob(f"*{RECORD_ENDING}")]  # all of them, not the first
        return any(ended)


def _script(process: Process, variables: Mapping[str, str]) -> str:
    """What is run, kept beside the trial's log."""
    lines = ["#!/usr/bin/env bash", "# Written by autotune tune.", "set -euo pipefail"]
    lines += [f"export {name(key)}={words([value])}" for key, value in variables.items()]
    lines += [f"export {name(key)}=${{{name(key)}:-{words([value])}}}" for key, value in process.defaults.items()]
    lines += [f"export {name(key)}={words([value])}" for key, value in process.environment.items()]
    arguments = [argument.rendered() for argument in process.arguments]
    return "\n".join([*lines, "", " \\\n  ".join([f"exec {words(process.command)}", *arguments])]) + "\n"


def _check_there(process: Process) -> None:
    program = process.command[0]
    if not isinstance(program, Shell) and shutil.which(program) is None:
        raise TuningError(
            f"no `{program}` on the PATH: the local driver starts the engine itself. Install it, activate its environment, or "
            "tune a service that is up already with --url"
        )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _check_port(port: int) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise TuningError(
                f"port {port} is in use ({error.strerror}); end what listens there, or choose another with --port"
            ) from error


def _check_gpus(wanted: int, patience_s: float) -> None:
    """Wait until the GPUs are free; raises TuningError where they stay in use, or are too few."""
    until = time.monotonic() + patience_s
    while True:
        found = memory_in_use()
        if found is None:
            return
        if len(found) < wanted:
            raise TuningError(f"{wanted} GPUs are needed, {len(found)} are here")
        full = {gpu: use for gpu, use in list(found.items())[:wanted] if use[0] > FULL * use[1]}
        if not full:
            return
        if time.monotonic() > until:
            said = ", ".join(f"GPU {gpu}: {used:,.0f} of {total:,.0f} MiB" for gpu, (used, total) in full.items())
            raise TuningError(
                f"GPUs are in use already ({said}); end what runs there, or choose others with CUDA_VISIBLE_DEVICES"
            )
        time.sleep(1.0)


def memory_in_use() -> dict[str, tuple[float, float]] | None:
    """GPU -> (used, all) [MiB], of those that are visible; none where no tool says."""
    rows = nvidia_smi("index,uuid,memory.used,memory.total")
    if rows is None:
        return None
    chosen = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    found = {
        index: (float(used), float(total)) for index, uuid, used, total in rows if not chosen or index in chosen or uuid in chosen
    }
    return {gpu: found[gpu] for gpu in (chosen if all(c in found for c in chosen) and chosen else found)}


def sm_clock_mhz() -> float | None:
    """The slowest GPU's clock right now; none where no tool says."""
    rows = nvidia_smi("clocks.current.sm")
    return min(float(row[0]) for row in rows) if rows else None


def nvidia_smi(fields: str) -> list[list[str]] | None:
    """Rows of a query; none where it cannot be asked."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
        rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError):
        return None
    numbers = [cell for row in rows for cell in row if cell and not cell.startswith("GPU-")]
    return rows if all(cell.replace(".", "", 1).isdigit() for cell in numbers) else None
