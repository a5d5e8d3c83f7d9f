"""Measuring on a live engine: one server for as many runs as it fits, a warm-up after each start, every file kept by trial."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from autotune.auditing.naming import is_run_of
from autotune.documents.deployment import Load
from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.benchmark_report import benchmark_report
from autotune.tuning.drivers.base import Driver, ToStart, served_models
from autotune.tuning.drivers.local import sm_clock_mhz
from autotune.tuning.gate import check_run
from autotune.tuning.generators.base import LoadGenerator, LoadRun
from autotune.tuning.keeper import write_record
from autotune.tuning.outcomes import TrialFailed, TuningError
from autotune.tuning.processes import RECORD_ENDING, KeptProcess, start_kept, tail
from autotune.tuning.space import TuneCandidate, TuneSpace

LOAD_LIMIT_S = 1800.0
LOOK_S = 10.0
"""Between two looks at the server while a load runs, and for a tool to end after its server did."""
SERVED_BY = "served_by.json"
NOT_AN_OPTION = (
    "Error: Invalid value for",
    "unrecognized arguments",
    "No such option",
    "no such option",
    "unexpected extra argument",
)


@dataclass
class LiveBench:
    """Starts servers through a driver and loads them with a tool."""

    space: TuneSpace
    driver: Driver
    tool: LoadGenerator
    folder: Path
    """Of all trials."""
    model: str
    """What the load generator reads the tokenizer of."""
    served: str
    """What requests ask for."""
    engine_options: tuple[str, ...] = ()
    load_options: tuple[str, ...] = ()
    warm_up: bool = True
    load_limit_s: float = LOAD_LIMIT_S
    url: str = ""
    started: object = None
    """What the running server was started with."""
    started_in: str = ""
    """Folder of the trial that it was started for: its script and log lie there."""

    def trial_folder(self, number: int) -> Path:
        """Scripts, logs, records and results of a trial."""
        return self.folder / f"{number:03d}"

    def measure(self, candidate: TuneCandidate, number: int, run: int) -> MeasuredLoad:
        """One run; raises TrialFailed for one that failed or does not count, TuningError where nothing can be measured here."""
        folder = self.trial_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        if self.started != candidate.engine or self.driver.failure() is not None:
            self._start(candidate, folder)
        write_record(folder / SERVED_BY, {"url": self.url, "server_of_trial": self.started_in})
        load = self.space.load(candidate)
        found = self._run(load, folder, f"{run}", seed=run)
        check_run(found, load, self.space.deployment.workload)
        report = benchmark_report(
            found, self.space.one_instance(candidate), self.tool.title, self.tool.version, f"{folder.resolve()}/{run}"
        )
        (folder / f"benchmark-report-{run}.yaml").write_text(report, encoding="utf-8")
        return found

    def _start(self, candidate: TuneCandidate, folder: Path) -> None:
        self.close()
        bare = candidate.engine == self.space.bare(candidate.level).engine
        options = (*self.engine_options, *self.space.options(candidate))
        self.url = self.driver.start(ToStart(self.space.one_instance(candidate), folder, options, bare))
        self.started, self.started_in = candidate.engine, folder.name
        self._check_model()
        if self.warm_up:
            load = self.space.load(candidate)
            self._run(load.model_copy(update={"requests": max(load.concurrency or 8, 8)}), folder, "warm-up", seed=1009)

    def _check_model(self) -> None:
        """Raise TuningError where another model answers."""
        names = served_models(self.url)
        if not names or self.served in names:
            return
        own = [name for name in names if is_run_of(name, self.space.deployment.model)]
        if not own:
            raise TuningError(f"{self.url} serves {', '.join(names)}, the deployment is of {self.space.deployment.model}")
        self.served = own[0]

    def _run(self, load: Load, folder: Path, name: str, seed: int) -> MeasuredLoad:
        """Run the tool and read its result."""
        result = folder / self.tool.result.format(run=name)
        workload = self.space.deployment.workload
        asked = LoadRun(
            url=self.url,
            model=self.model,
            served=self.served,
            engine=self.space.deployment.engine.name,
            load=load,
            isl_tokens=workload.isl_tokens,
            osl_tokens=workload.osl_tokens,
            seed=seed,
            result=result.resolve(),
            extra=self.load_options,
        )
        log = folder / f"load-{name}.log"
        tool = start_kept(self.tool.command(asked), folder / f"load-{name}{RECORD_ENDING}", log)
        try:
            code = self._waited(tool)
        finally:
            tool.stop()
        if failure := self.driver.failure():
            raise failure
        if code != 0:
            self._failed(code, log)
        found = self.tool.read(result)
        if (
            found.model
            and found.model not in (self.model, self.served)
            and not is_run_of(found.model, self.space.deployment.model)
        ):
            raise TuningError(f"{result} is a result of {found.model}, the deployment is of {self.space.deployment.model}")
        return found.model_copy(
            update={
                "requests": max(load.requests or 0, found.requests),
                "rate_per_s": load.rate_per_s,
                "sm_clock_mhz": sm_clock_mhz(),
            }
        )

    def _waited(self, tool: KeptProcess) -> int | None:
        """Exit code of the tool; none where it ran too long. Raises the server's failure soon after it."""
        until = time.monotonic() + self.load_limit_s
        while (code := tool.wait(LOOK_S)) is None and time.monotonic() < until:
            if (failure := self.driver.failure()) and tool.wait(LOOK_S) is None:
                raise failure
        return code

    def _failed(self, code: int | None, log: Path) -> None:
        """Raise for a tool that did not end well, though the server lives."""
        lines = [line for line in tail(log) if line.strip()]
        said = " ".join(lines[-1].split())[-300:] if lines else "its log is empty"
        if code is None:
            raise TrialFailed("too_slow", f"the load was not through after {self.load_limit_s:,.0f} s", under_load=True)
        if any(word in line for line in lines for word in NOT_AN_OPTION):
            raise TuningError(
                f"{self.tool.title} does not take its options: {said} ({log}); options are those of {self.tool.version}"
            )
        raise TrialFailed("load_failed", f"{self.tool.title} ended with exit code {code}: {said}", under_load=True)

    def close(self) -> None:
        """Stop the server."""
        self.started = None
        self.driver.stop()

    def clean(self) -> list[Path]:
        """End what an earlier tuner left running; the folders of the trials it was left by."""
        return [path for path in sorted(self.folder.glob("[0-9]*")) if self.driver.clean(path)]
