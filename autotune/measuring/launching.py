"""One process per GPU: spawned here, or started by torchrun."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import ProblemError
from autotune.measuring.shapes import LINKS, KernelShape
from autotune.measuring.table import MeasuredTable
from autotune.versions import installed_version

LINK_TIMEOUT = datetime.timedelta(minutes=3)
"""After which a rank that waits for a dead one gives up."""


@dataclass(frozen=True, slots=True)
class MeasuringJob:
    """What every rank needs to know."""

    shapes: list[KernelShape]
    out: Path
    gpu: str
    budget_s: float


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """What a run did."""

    rows: int
    failed: int
    left_out: int


def gpus_here() -> tuple[int, str]:
    """(number of GPUs, name of the first); raises ProblemError where there is none or torch is missing."""
    try:
        import torch
    except ImportError as error:
        raise ProblemError("measuring needs torch: pip install 'moe-autotune[measure]'") from error
    if not torch.cuda.is_available():
        raise ProblemError("no GPU here: torch.cuda.is_available() is false; measure on the machine that will serve")
    return torch.cuda.device_count(), torch.cuda.get_device_name(0)


def under_torchrun() -> bool:
    """Whether a launcher started one process per GPU."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def run(job: MeasuringJob, ranks: int) -> RankOutcome:
    """Collectives over `ranks` GPUs first, then everything else on the first GPU.

    Ranks are spawned, or are those of torchrun, of which only rank 0 goes on. A rank that dies ends the collectives only; the
    table keeps what was measured.
    """
    if under_torchrun():
        return _torchrun(job)
    problem = None
    before = len(_table(job).rows)
    if ranks > 1 and any(shape.operator in LINKS for shape in job.shapes):
        problem = _spawned(job, ranks)
    outcome = _alone(job, before)
    if problem is not None:
        print(f"collectives stopped: {problem}; what was measured is kept", file=sys.stderr)  # noqa: T201
    return outcome


def _spawned(job: MeasuringJob, ranks: int) -> str | None:
    """Why the collectives stopped, if they did."""
    import torch.multiprocessing as processes

    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(_free_port())
    try:
        processes.spawn(_rank, args=(ranks, job), nprocs=ranks, join=True)
    except (processes.ProcessRaisedException, processes.ProcessExitedException) as error:
        return str(error).strip().splitlines()[-1]
    return None


def _rank(rank: int, ranks: int, job: MeasuringJob) -> None:
    """One spawned rank of the collectives."""
    import torch
    import torch.distributed as dist

    from autotune.measuring.running import measure_links

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=ranks, timeout=LINK_TIMEOUT)
    measure_links(job.shapes, _table(job) if rank == 0 else None, job.budget_s, _announce)
    dist.destroy_process_group()


def _torchrun(job: MeasuringJob) -> RankOutcome:
    """This process as one rank; rank 0 measures the rest afterwards."""
    import torch
    import torch.distributed as dist

    from autotune.measuring.running import measure_links

    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl", timeout=LINK_TIMEOUT)
    rank = dist.get_rank()
    before = len(_table(job).rows) if rank == 0 else 0
    measure_links(job.shapes, _table(job) if rank == 0 else None, job.budget_s, _announce)
    dist.destroy_process_group()
    return _alone(job, before) if rank == 0 else RankOutcome(0, 0, 0)


def _alone(job: MeasuringJob, before: int) -> RankOutcome:
    """Everything that one GPU can measure."""
    from autotune.measuring.running import measure_here

    table = _table(job)
    left = measure_here(job.shapes, table, job.budget_s, _announce)
    table.write()
    return RankOutcome(len(table.rows) - before, len(table.failed), left)


def _table(job: MeasuringJob) -> MeasuredTable:
    return MeasuredTable.opened(job.out, job.gpu, provenance())


def provenance() -> dict[str, Any]:
    """GPU, driver, clocks as found, library versions, command, time."""
    import torch

    query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    try:
        said = subprocess.run(  # noqa: S603
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],  # noqa: S607
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.strip().splitlines()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        said = []
    return {
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["autotune", *sys.argv[1:]],
        "gpus": {"query": query, "found": said},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "triton": installed_version("triton"),
        },
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _announce(shape: KernelShape) -> None:
    """What is being timed, where someone watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{shape.label()}", end="", file=sys.stderr)  # noqa: T201
