"""How well a sweep of a thousand problems uses more workers: measured with --measure 2 4 8, or, where no machine with as many
cores is at hand, a simulation of measured parts.

Measured: the whole sweep by the executor with each number of workers; beside it so many processes that know nothing of each
other, each solving the same sample one problem after the other: what they slow down is the machine's (shared caches, memory,
cores that are threads of one core), not the executor's.

The simulation's parts:

Measured here, in CPU seconds: every 37th problem of the benchmark's sweep alone, once tables are filled; what a fresh worker
takes before its first problem (imports); what all first problems take longer than the same again (documents and tables that every
worker fills for itself); and what the process that deals takes of its own core per problem (sending it, reading the answer,
journal and table), with the executor itself running two workers.

Simulated: tasks are dealt in order, each worker has one that runs and one that is ready, and one process deals to all. Cores are
taken as alike and as free; what the dealing takes is multiplied by --slack, because a cluster's network is slower than a pipe.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from run import SCENARIOS, SLICES, SWEEP_SCRIPT, timed

from autotune.sweeping.executors import WAITING_PER_WORKER, Executor, executor_of
from autotune.sweeping.running import sweep
from autotune.sweeping.scenarios import Task
from autotune.sweeping.slices import Slice
from autotune.sweeping.solving import solve
from autotune.threads import one_blas_thread

PROBLEMS = 1000
WORKERS = (1, 2, 4, 8, 16, 32)
START = "import autotune.sweeping.solving"
TIMED_SWEEP_SCRIPT = f"import time; start = time.perf_counter()\n{SWEEP_SCRIPT}\nprint(time.perf_counter() - start)"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a sweep is made of [s]."""

    tasks_s: tuple[float, ...]
    start_s: float
    warming_s: float
    """Documents and tables of all kinds of problems; a worker that meets only some fills less."""
    dealing_s: float


@dataclass(slots=True)
class Measured:
    """Solves in this process and keeps the CPU time of every problem."""

    seconds: list[float]

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """In order."""
        for task in tasks:
            start = time.process_time()
            answer = solve(task.problem)
            self.seconds.append(time.process_time() - start)
            yield task.key, answer


@dataclass(slots=True)
class Dealt:
    """Leaves the problems to an executor and keeps the CPU time of this process at every answer."""

    executor: Executor
    at_s: list[float]

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """As the executor finds them."""
        for answer in self.executor.results(tasks):
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.at_s.append(used.ru_utime + used.ru_stime)
            yield answer


def sweep_s(executor: str, workers: int) -> float:
    """Wall time of the whole sweep, a Ray of this machine started before [s]."""
    with tempfile.TemporaryDirectory() as name:
        chosen = executor_of(executor, workers)
        with started(executor, workers):
            start = time.perf_counter()
            _sweep(Path(name) / "whole", chosen, slices=1)
            return time.perf_counter() - start


@contextmanager
def started(executor: str, workers: int) -> Iterator[None]:
    """Ray with so many workers, where it is the executor."""
    if executor != "ray":
        yield
        return
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def apart_s(processes: int) -> float:
    """Mean wall time of processes that solve the same sample at the same time, each one problem after the other [s]."""
    with tempfile.TemporaryDirectory() as name, one_blas_thread():
        running = [
            subprocess.Popen(
                [sys.executable, "-c", TIMED_SWEEP_SCRIPT, str(_written(Path(name) / str(number))), str(SLICES)],
                text=True,
                stdout=subprocess.PIPE,
            )
            for number in range(processes)
        ]
        return statistics.mean(float(process.communicate()[0].split()[-1]) for process in running)


def measure(executor: str, counts: Sequence[int]) -> None:
    """Print what each number of workers took, beside the first."""
    base = counts[0]
    whole_s = {workers: sweep_s(executor, workers) for workers in counts}
    alone_s = {workers: apart_s(workers) for workers in counts}
    print(f"{len(os.sched_getaffinity(0))} cores to use; {executor}, {PROBLEMS} problems")
    for workers in counts:
        share = base * whole_s[base] / (workers * whole_s[workers])
        machine = alone_s[base] / alone_s[workers]
        print(f"{workers:3d} workers {whole_s[workers]:7.1f} s   {share:5.0%} as efficient as {base}", end="; ")
        print(f"as many processes apart {alone_s[workers]:5.2f} s each, {machine:5.0%}; of that {share / machine:5.0%}")


def makespan_s(parts: Parts, workers: int, slack: float) -> float:
    """When the last of PROBLEMS answers is read."""
    free_s = [parts.start_s + parts.warming_s] * workers
    in_flight: list[float] = []  # ends of what was dealt and not yet answered
    dealer_s = last_s = 0.0
    for number in range(PROBLEMS):
        room_s = heapq.heappop(in_flight) if len(in_flight) == WAITING_PER_WORKER * workers else 0.0
        dealer_s = max(dealer_s, room_s) + parts.dealing_s * slack
        end_s = max(heapq.heappop(free_s), dealer_s) + parts.tasks_s[number % len(parts.tasks_s)]
        heapq.heappush(free_s, end_s)
        heapq.heappush(in_flight, end_s)
        last_s = max(last_s, end_s)
    return last_s


def measured(executor: str) -> Parts:
    """The parts on this machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, again = Measured([]), Measured([])
        _sweep(folder / "first", first)
        _sweep(folder / "again", again)
        start_s = timed([sys.executable, "-c", START]).cpu_s
        dealt = Dealt(executor_of(executor, 2), [])
        _sweep(folder / executor, dealt)
    warming_s = max(sum(first.seconds) - sum(again.seconds), 0.0)
    return Parts(tuple(again.seconds), start_s, warming_s, (dealt.at_s[-1] - dealt.at_s[0]) / (len(dealt.at_s) - 1))


def _sweep(folder: Path, executor: Executor, slices: int = SLICES) -> None:
    sweep(_written(folder), out=folder / "out", executor=executor, part=Slice(0, slices))


def _written(folder: Path) -> Path:
    """The scenarios' file in a new folder."""
    folder.mkdir(parents=True)
    file = folder / "scenarios.yaml"
    file.write_text(json.dumps(SCENARIOS), encoding="utf-8")
    return file


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--slack", type=float, default=2.0, help="of the dealing, for the network")
    parser.add_argument("--measure", type=int, nargs="+", metavar="WORKERS", help="run it with so many workers instead")
    given = parser.parse_args()
    if given.measure:
        measure(given.executor, given.measure)
        return
    parts = measured(given.executor)
    mean_s = sum(parts.tasks_s) / len(parts.tasks_s)
    print(
        f"{len(parts.tasks_s)} problems of {mean_s * 1e3:.0f} ms (longest {max(parts.tasks_s) * 1e3:.0f} ms), "
        f"start of a worker {parts.start_s:.2f} s, its tables {parts.warming_s:.2f} s, "
        f"dealing {parts.dealing_s * 1e3:.1f} ms each, {given.executor}"
    )
    two_s = makespan_s(parts, 2, given.slack)
    for workers in WORKERS:
        took_s = makespan_s(parts, workers, given.slack)
        print(f"{workers:3d} workers {took_s:7.1f} s   {2 * two_s / (workers * took_s):5.0%} as efficient as two")


if __name__ == "__main__":
    main()
