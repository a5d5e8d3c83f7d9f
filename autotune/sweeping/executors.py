"""Where problems are solved: this process, this machine's cores, or a Ray cluster. All run the same function."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from autotune.documents.sweep import Found
from autotune.errors import ProblemError
from autotune.sweeping.scenarios import Task
from autotune.sweeping.solving import solve
from autotune.threads import one_blas_thread
from cost_models.errors import unknown_name

WAITING_PER_WORKER = 2
"""Problems handed to each worker at a time: one that runs and one that is ready."""
DIED = "the worker that solved it died, twice: killed, or out of memory"


class Executor(Protocol):
    """Solves tasks, in any order."""

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """(key, Found as JSON) of every task, as they are found."""
        ...


@dataclass(frozen=True, slots=True)
class Serial:
    """One after the other, in this process."""

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """In order."""
        for task in tasks:
            yield task.key, solve(task.problem)


@dataclass(frozen=True, slots=True)
class LocalProcesses:
    """Processes on this machine. Tasks whose worker dies are tried once more, each alone, so that they take no other along."""

    workers: int

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """As they are found."""
        suspects: list[Task] = []
        yield from self._round(deque(tasks), suspects)
        for task in suspects:
            died: list[Task] = []
            yield from LocalProcesses(1)._round(deque([task]), died)
            if died:
                yield task.key, Found(status="failed", message=DIED).model_dump_json()

    def _round(self, waiting: deque[Task], suspects: list[Task]) -> Iterator[tuple[str, str]]:
        """Until all are solved; those in flight when a worker died become suspects, and a new pool goes on with the rest."""
        while waiting:
            pool = ProcessPoolExecutor(self.workers, mp_context=_context())
            running: dict[Future[str], Task] = {}
            try:
                yield from self._until_broken(pool, waiting, running)
            except BrokenProcessPool:
                suspects += running.values()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _until_broken(
        self, pool: ProcessPoolExecutor, waiting: deque[Task], running: dict[Future[str], Task]
    ) -> Iterator[tuple[str, str]]:
        while waiting or running:
            with one_blas_thread():  # a worker per core
                while waiting and len(running) < WAITING_PER_WORKER * self.workers:
                    running[pool.submit(solve, waiting[0].problem)] = waiting[0]
                    waiting.popleft()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                text = future.result()
                yield running.pop(future).key, text


def _context() -> multiprocessing.context.BaseContext:
    """Workers that start from a clean process, which has the libraries loaded where the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autotune.sweeping.solving"])
    return context


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster, or Ray on this machine where no address is given.

    Raises ProblemError where Ray or the cluster is missing.
    """

    workers: int | None
    address: str | None

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """As they are found."""
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            self._connect(ray)
        try:
            workers = self.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
            yield from self._solved(ray, deque(tasks), workers * WAITING_PER_WORKER)
        finally:
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        own = {} if self.address else {"num_cpus": self.workers or usable_cores(), "include_dashboard": False}
        try:
            ray.init(address=self.address, log_to_driver=False, configure_logging=False, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise ProblemError(f"no Ray cluster {where}: {str(error).splitlines()[0][:200]}; start one with ray start") from error

    def _solved(self, ray: Any, waiting: deque[Task], most: int) -> Iterator[tuple[str, str]]:
        """`most` tasks are in flight at a time; one whose worker died is tried once more."""
        remote = ray.remote(num_cpus=1, max_retries=0)(solve)
        running: dict[Any, Task] = {}
        died: set[str] = set()
        while waiting or running:
            while waiting and len(running) < most:
                task = waiting.popleft()
                running[remote.remote(task.problem)] = task
            (reference,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(reference)
            try:
                yield task.key, ray.get(reference)
            except ray.exceptions.RayError:
                if task.key in died:
                    yield task.key, Found(status="failed", message=DIED).model_dump_json()
                else:
                    died.add(task.key)
                    waiting.append(task)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ProblemError("executor ray needs the package ray: pip install 'moe-autotune[ray]'") from error
    return ray


EXECUTORS = ("local", "ray")


def executor_of(name: str, workers: int | None = None, address: str | None = None) -> Executor:
    """An executor by name; raises ProblemError for others and for settings that it has not.

    workers : processes, this machine's (or the cluster's) cores when absent; address : of a Ray cluster.
    """
    if name not in EXECUTORS:
        raise ProblemError(unknown_name("executor", name, EXECUTORS))
    if name == "ray":
        return RayCluster(workers, address)
    if address:
        raise ProblemError("an address is a Ray cluster's: use --executor ray with it")
    count = workers or usable_cores()
    return LocalProcesses(count) if count > 1 else Serial()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
