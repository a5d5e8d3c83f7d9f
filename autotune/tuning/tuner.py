"""The loop: what is worth trying is measured as often as it takes, until nothing is, or the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from autotune.documents.tuned import RATE, Accuracy, MeasuredLoad, Quantities, TunedTrial, TuneResult
from autotune.tuning.advising import GUESS_ORIGIN, Adviser, Proposal, Stop, Tried
from autotune.tuning.guessing import worst_excess
from autotune.tuning.journal import Claim, TuneJournal
from autotune.tuning.noise import mean_quantities, run_sigma, worth_another
from autotune.tuning.outcomes import UNDER_LOAD, Bench, TrialFailed, TuningError
from autotune.tuning.space import Engine

WITHIN = 0.02
"""Of the winner: what random search is asked to come to."""
ALL_FAILED = 3
"""Servers that may fail to come up before any trial is measured until something else is at fault than what was tried."""
DRIFT = 4.0
"""Standard deviations of a run by which two runs of one configuration must not differ."""
CLOCK_DRIFT = 0.05


class TuneWatch(Protocol):
    """Who looks on."""

    def __call__(self, event: str, trials: Sequence[TunedTrial]) -> None: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent."""

    trials: int | None = None
    """Of the whole study, those of earlier sessions included."""
    seconds: float | None = None
    """Of this session."""

    def spent(self, trials: int, since: float, expected_s: float) -> str:
        """Why no more may be begun; empty where more may. expected_s : that the next trial is thought to take."""
        if self.trials is not None and trials >= self.trials:
            return f"the budget of {self.trials} trials is spent"
        if self.seconds is not None and time.monotonic() - since + expected_s >= self.seconds:
            return f"the budget of {self.seconds / 60:,.3g} minutes is spent; go on with --resume"
        return ""


@dataclass
class Tuner:
    """One worker of a study."""

    adviser: Adviser
    journal: TuneJournal
    bench: Bench
    budget: Budget
    watch: TuneWatch | None = None
    began: float = field(default_factory=time.monotonic)
    longest_s: dict[bool, float] = field(default_factory=dict)
    """Of the trials of this session: of those that started a server, and of those that found theirs running."""
    engine: Engine | None = None
    """What the server of the last trial was started with."""

    @property
    def limits(self) -> Mapping[str, float]:
        return self.adviser.limits

    def run(self) -> str:
        """Until there is a reason to stop, which is returned. Raises TuningError where nothing can be measured here."""
        seeds = self.adviser.seeds()
        self.journal.enqueue(seeds, {seed.candidate: self.adviser.guesses.of(seed.candidate) or {} for seed in seeds})
        try:
            while True:
                claim = self.journal.left_behind()
                if claim is None:
                    history = self.journal.history()
                    proposal = self._proposal(history)
                    if why := self.budget.spent(len(history), self.began, self._expected_s(proposal)):
                        return why
                    if isinstance(proposal, Stop):
                        return proposal.reason
                    predicted = self.adviser.guesses.of(proposal.candidate) or {} if proposal else {}
                    claim = self.journal.claim(proposal, predicted)
                since, starts = time.monotonic(), claim.candidate.engine != self.engine
                loads = self._try(claim)
                self._note_time(starts, time.monotonic() - since, loads)
                self.engine = claim.candidate.engine
                self._check_all_failed()
        finally:
            self.bench.close()

    def _note_time(self, starts: bool, took_s: float, loads: Sequence[MeasuredLoad]) -> None:
        """A trial that had to start its server also tells what one takes that has not to: its runs, and another to warm up."""
        kept_s = sum(load.duration_s for load in loads) * (1 + 1 / len(loads)) if starts and loads else took_s
        self.longest_s[starts] = max(self.longest_s.get(starts, 0.0), took_s)
        self.longest_s[False] = max(self.longest_s.get(False, 0.0), kept_s)

    def _expected_s(self, proposal: Proposal | Stop | None) -> float:
        """As long as the longest so far that had to start a server, or had not to, as this one."""
        next_up = [proposal] if isinstance(proposal, Proposal) else self.adviser.seeds()
        kept = all(each.candidate.engine == self.engine for each in next_up)
        return self.longest_s.get(False, 0.0) if kept else max(self.longest_s.values(), default=0.0)

    def _proposal(self, history: Sequence[Tried]) -> Proposal | Stop | None:
        """None where something enqueued waits."""
        return None if self.journal.waiting else self.adviser.next(history)

    def _try(self, claim: Claim) -> Sequence[MeasuredLoad]:
        """Measure a trial as often as it takes and tell what came out; returns its runs."""
        gpus = self.adviser.space.layouts[claim.candidate.layout].layout.gpus
        loads = list(claim.runs)
        self._tell(f"trial {claim.number} ({claim.origin}): {claim.candidate.label()}")
        try:
            while not loads or self._again(claim, [load.quantities(gpus) for load in loads]):
                load = self.bench.measure(claim.candidate, claim.number, len(loads))
                self.journal.add_run(claim, len(loads), load)
                loads.append(load)
        except TrialFailed as failure:
            self.journal.tell_failed(claim, failure)
            self._tell(f"trial {claim.number} failed: {failure.name}: {failure.detail}")
            return loads
        mean = mean_quantities([load.quantities(gpus) for load in loads])
        self.journal.tell_measured(claim, mean, self.limits)
        self._tell(f"trial {claim.number}: {said_quantities(mean, self.limits)}")
        return loads

    def _again(self, claim: Claim, runs: list[Quantities]) -> bool:
        history = [tried for tried in self.journal.history() if tried.candidate != claim.candidate]
        beliefs = self.adviser.beliefs(history)
        best = self.adviser.incumbent(history, beliefs)
        rate = next((tried.mean[RATE] for tried in history if tried.candidate == best), None)
        first = not any(len(tried.runs) > 1 for tried in history)
        return worth_another(runs, [*(tried.runs for tried in history), runs], self.limits, rate, first)

    def _tell(self, event: str) -> None:
        if self.watch is not None:
            self.watch(event, self.journal.documents(self.limits))

    def _check_all_failed(self) -> None:
        trials = self.journal.documents(self.limits)
        failed = [trial for trial in trials if trial.state == "failed" and not trial.reason.endswith(UNDER_LOAD)]
        if len(failed) >= ALL_FAILED and len(failed) == len(trials):
            last = failed[-1]
            raise TuningError(
                f"none of {len(failed)} configurations came up, the engine's defaults included; the last one: "
                f"{last.reason}: {last.detail}. What was tried is kept"
            )

    def result(self, stopped: str, warnings: Sequence[str] = ()) -> TuneResult:
        """What the study found."""
        trials = self.journal.documents(self.limits)
        history = self.journal.history()
        beliefs = self.adviser.beliefs(history)
        winner = self.adviser.incumbent(history, beliefs)
        best = next((t for t, tried in zip(trials, history, strict=True) if tried.candidate == winner and t.feasible), None)
        measured = [trial for trial in trials if trial.state == "measured"]
        closest = min(measured, key=lambda t: worst_excess(t.measured, self.limits), default=None)
        defaults = self._defaults(trials)
        guess = next((trial for trial in trials if trial.origin == GUESS_ORIGIN), None)
        return TuneResult(
            trials=trials,
            best=best.number if best else None,
            closest=None if best or closest is None else closest.number,
            defaults=defaults.number if defaults else None,
            first_guess=guess.number if guess else None,
            gain_over_defaults=_gain(best, defaults),
            gain_over_first_guess=_gain(best, guess),
            limits=dict(self.limits),
            noise=run_sigma([tried.runs for tried in history], RATE),
            stopped=stopped,
            random_needed=self._random_needed(history),
            accuracy=tuple(self._accuracy(history)),
            warnings=(*warnings, *drift_warnings(trials)),
        )

    def _defaults(self, trials: Sequence[TunedTrial]) -> TunedTrial | None:
        """The engine's defaults at the best of the loads that they were tried under."""
        space = self.adviser.space
        bare = dict(space.bare(1).settings)
        found = [t for t in trials if t.layout == space.own_layout and t.settings == bare]
        return max(found, key=lambda t: (t.feasible, t.measured.get(RATE, 0.0)), default=None)

    def _random_needed(self, history: Sequence[Tried]) -> float | None:
        """(n + 1) / (k + 1) draws without replacement find the first of k good ones among n."""
        beliefs = self.adviser.beliefs(history)
        winner = self.adviser.incumbent(history, beliefs)
        if winner is None:
            return None
        rates = np.exp(beliefs.rate.mean) * (beliefs.feasible >= 0.5)
        bar = math.exp(float(beliefs.rate.mean[self.adviser.index[winner]])) * (1 - WITHIN)
        good = max(int((rates >= bar).sum()), 1)
        return (len(rates) + 1) / (good + 1)

    def _accuracy(self, history: Sequence[Tried]) -> list[Accuracy]:
        """Errors of the model as it was, and of the model with the ratios learned from the other trials."""
        found = []
        for name, process in self.adviser.beliefs(history).processes.items():
            if len(process.observed) >= 2:
                before, after = np.exp(-process.observed) - 1, np.exp(process.left_out() - process.observed) - 1
                errors = (float(np.abs(before).mean()), float(np.abs(after).mean()))
                found.append(Accuracy(quantity=name, trials=len(process.observed), before=errors[0], after=errors[1]))
        return found


def _gain(best: TunedTrial | None, other: TunedTrial | None) -> float | None:
    if best is None or other is None or not other.feasible:
        return None
    return best.measured[RATE] / other.measured[RATE] - 1


def said_quantities(values: Quantities, limits: Mapping[str, float]) -> str:
    """A rate and the limited times, for people."""
    shown = [f"{values[RATE]:,.0f} tokens/s/GPU"] if RATE in values else []
    for name, limit in limits.items():
        if name in values:
            missed = " (missed)" if values[name] > limit else ""
            said = (
                f"{values[name] * 1e3:,.0f} of {limit * 1e3:,.0f} ms"
                if name.endswith("_s")
                else f"{values[name]:.2f} of {limit:g}"
            )
            shown.append(f"{name.removesuffix('_s').replace('_', ' ').upper()} {said}{missed}")
    return ", ".join(shown)


def drift_warnings(trials: Sequence[TunedTrial]) -> list[str]:
    """What says that the machine changed between trials: clocks, and runs of one configuration that differ too much."""
    clocks = [(trial.number, load.sm_clock_mhz) for trial in trials for load in trial.loads if load.sm_clock_mhz]
    found = []
    if clocks:
        middle = float(np.median([clock for _, clock in clocks]))
        off = [(number, clock) for number, clock in clocks if abs(clock / middle - 1) > CLOCK_DRIFT]
        if off:
            said = ", ".join(f"trial {number} {clock:,.0f} MHz" for number, clock in off[:5])
            found.append(f"GPU clocks drift: {middle:,.0f} MHz in the median, {said}; trials are comparable at one clock only")
    for trial in trials:
        rates = [load.tokens_per_s for load in trial.loads]
        others = [[load.quantities(1) for load in t.loads] for t in trials if t.number != trial.number]
        bar = DRIFT * run_sigma(others, RATE)
        if len(rates) > 1 and abs(math.log(rates[-1] / rates[0])) > bar:
            found.append(
                f"trial {trial.number}: runs of one configuration differ from {min(rates):,.0f} to {max(rates):,.0f} tokens/s: "
                "the machine changed"
            )
    return found
