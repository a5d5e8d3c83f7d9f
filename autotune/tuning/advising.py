"""What to try next: the engine's defaults and the model's best plan, then whatever is expected to gain most, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.documents.tuned import LAG, LAG_LIMIT, RATE, Quantities, TrialState
from autotune.tuning.guessing import Guesses, worst_excess
from autotune.tuning.noise import mean_quantities, run_sigma
from autotune.tuning.ratios import RatioBelief, RatioProcess, ratio_process
from autotune.tuning.space import TuneCandidate, TuneSpace
from cost_models.arrays import Floats, as_floats

DEFAULTS_ORIGIN = "engine defaults"
GUESS_ORIGIN = "model's best plan"
STAGE_GAIN = 0.01
"""Expected gain from which a stage goes on before the next one begins, relative."""
STOP_GAIN = 0.002
STOP_NOISE = 0.1
"""Nothing more is tried when the expected gain is below STOP_GAIN and below this share of a run's noise."""
FAILURE_WEIGHT, SUCCESS_PRIOR = {False: 1.0, True: 3.0}, 0.5
"""How much a failure under load, or at the start, makes others near to it doubtful; and how much trust they begin with."""
AT_START = ("out_of_memory", "unknown_option", "never_healthy", "crashed_at_start", "refused")
"""Failures that no load had a part in."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial as the next one is chosen by."""

    candidate: TuneCandidate
    state: TrialState
    runs: tuple[Quantities, ...] = ()
    reason: str = ""
    origin: str = ""

    @property
    def mean(self) -> Quantities:
        return mean_quantities(self.runs)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to try, and why."""

    candidate: TuneCandidate
    origin: str
    expected_gain: float | None = None
    """Relative to the best so far."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing is worth trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Beliefs:
    """What is known after some trials, of every candidate."""

    processes: dict[str, RatioProcess]
    rate: RatioBelief
    """Of log rate."""
    feasible: Floats
    """Probability of meeting every limit, (candidates,)."""
    works: Floats
    """Probability of running at all."""
    allowed: NDArray[np.bool_]
    """Not tried, and not known to fail."""


class Adviser:
    """Chooses trials in a space, for limits by the name of their quantity."""

    def __init__(self, space: TuneSpace, guesses: Guesses, limits: Mapping[str, float]) -> None:
        self.space, self.guesses = space, guesses
        self.limits = dict(limits) if space.closed else {**limits, LAG: LAG_LIMIT}
        priced = guesses.all()
        self.candidates = tuple(priced)
        self.index = {candidate: number for number, candidate in enumerate(self.candidates)}
        self.features = as_floats(np.array([space.features(c) for c in self.candidates]).reshape(len(priced), -1))
        self.demands = np.array([space.demand(c) for c in self.candidates]).reshape(len(priced), -1)
        self.predicted = {name: np.log([guess[name] for guess in priced.values()]) for name in (RATE, *self.limits)}
        self.bands = guesses.bands()

    def seeds(self) -> list[Proposal]:
        """Before anything is known: the engine's defaults under the load that suits them, and the model's best plan."""
        ranked = sorted(self.candidates, key=self._promise, reverse=True)
        bare = [c for c in ranked if c.engine == self.space.bare(1).engine]
        found = [Proposal(bare[0], DEFAULTS_ORIGIN)] if bare else []
        found += [Proposal(c, GUESS_ORIGIN) for c in ranked[:1] if c not in bare[:1]]
        return found

    def _promise(self, candidate: TuneCandidate) -> tuple[bool, float]:
        """Predicted to meet the limits, and how much it does; by how little it misses where it does not."""
        guess = self.guesses.of(candidate)
        assert guess is not None
        excess = worst_excess(guess, self.limits)
        return (True, guess[RATE]) if excess <= 0 else (False, -excess)

    def next(self, history: Sequence[Tried]) -> Proposal | Stop:
        """The most promising candidate of the first stage that still promises something."""
        if not self.candidates:
            return Stop("the model finds no configuration that fits in memory")
        beliefs = self.beliefs(history)
        if not beliefs.allowed.any():
            return Stop("every configuration that may run was tried")
        best = self.incumbent(history, beliefs)
        if best is None:
            chances = beliefs.feasible * beliefs.works * np.exp(beliefs.rate.mean)
            at = int(np.argmax(np.where(beliefs.allowed, chances, -1.0)))
            return Proposal(self.candidates[at], "looking for a feasible one")
        gains = self._gains(beliefs, self._rate_at(beliefs, best))
        for name, inside in self._stages(history, best):
            masked = np.where(beliefs.allowed & inside, gains, -1.0)
            at = int(np.argmax(masked))
            if masked[at] >= STAGE_GAIN:
                return Proposal(self.candidates[at], name, float(masked[at]))
        masked = np.where(beliefs.allowed, gains, -1.0)
        at = int(np.argmax(masked))
        noise = run_sigma([tried.runs for tried in history], RATE)
        if masked[at] >= max(STOP_GAIN, STOP_NOISE * noise):
            return Proposal(self.candidates[at], "everything", float(masked[at]))
        return Stop(
            f"the most promising configuration left is expected to gain {max(masked[at], 0):.2%}, runs of one configuration "
            f"differ by {noise:.1%}"
        )

    def beliefs(self, history: Sequence[Tried]) -> _Beliefs:
        """Everything that follows from some trials."""
        measured = [t for t in history if t.state == "measured" and t.runs and t.candidate in self.index]
        rows = np.array([self.index[t.candidate] for t in measured], dtype=int)
        processes = {name: self._process(name, measured, rows, history) for name in self.predicted}
        logs = {}
        for name, process in processes.items():
            belief = process.at(self.features)
            logs[name] = RatioBelief(as_floats(self.predicted[name] + belief.mean), belief.sigma)
        feasible = np.ones(len(self.candidates))
        for name, limit in self.limits.items():
            feasible *= _below(math.log(limit), logs[name])
        return _Beliefs(processes, logs[RATE], as_floats(feasible), self._works(history), self._allowed(history))

    def _process(self, name: str, measured: Sequence[Tried], rows: NDArray[np.int_], history: Sequence[Tried]) -> RatioProcess:
        kept = [(row, t) for row, t in zip(rows, measured, strict=True) if t.mean.get(name, 0) > 0]
        index = np.array([row for row, _ in kept], dtype=int)
        observed = as_floats([math.log(t.mean[name]) for _, t in kept]) - self.predicted[name][index]
        sigma = run_sigma([tried.runs for tried in history], name)
        noise = as_floats([sigma / math.sqrt(len(t.runs)) for _, t in kept])
        return ratio_process(self.features[index], as_floats(observed), noise, self.bands[name])

    def _works(self, history: Sequence[Tried]) -> Floats:
        """Near to what ran: likely; near to what crashed: less."""
        ran, failed = np.full(len(self.candidates), SUCCESS_PRIOR), np.zeros(len(self.candidates))
        for tried in history:
            near = np.exp(-0.5 * ((self.features - self.space.features(tried.candidate)) ** 2).sum(axis=1))
            if tried.state == "failed":
                alike = [c.layout == tried.candidate.layout for c in self.candidates] if tried.reason in AT_START else near
                failed += FAILURE_WEIGHT[tried.reason in AT_START] * np.maximum(near, alike)
            elif tried.runs:
                ran += near
        return as_floats(ran / (ran + failed))

    def _allowed(self, history: Sequence[Tried]) -> NDArray[np.bool_]:
        """What was neither tried nor asks for at least what failed."""
        allowed = np.ones(len(self.candidates), dtype=bool)
        for tried in history:
            if tried.candidate in self.index:
                allowed[self.index[tried.candidate]] = False
            if tried.state == "failed":
                allowed &= ~self._doomed(tried)
        return allowed

    def _doomed(self, failed: Tried) -> NDArray[np.bool_]:
        """Candidates that would fail alike: the same engine where no load had a part in it, and the same layout with as much of
        everything or more."""
        same_layout = np.array([c.layout == failed.candidate.layout for c in self.candidates])
        asked = self.space.demand(failed.candidate)
        as_much = (self.demands >= asked).all(axis=1)
        if failed.reason not in AT_START:
            same_engine = np.array([c.engine == failed.candidate.engine for c in self.candidates])
            return np.asarray(same_layout & as_much | same_engine & (self.demands[:, 0] >= asked[0]), dtype=bool)
        own = set(failed.candidate.knobs.items())
        same = np.array([own <= set(c.knobs.items()) if own else c.engine == failed.candidate.engine for c in self.candidates])
        return np.asarray(same_layout & (same | (as_much & (failed.reason == "out_of_memory"))), dtype=bool)

    def incumbent(self, history: Sequence[Tried], beliefs: _Beliefs) -> TuneCandidate | None:
        """The best that was measured and met the limits, by what is believed of it now; none so far."""
        good = [
            t for t in history if t.state == "measured" and t.candidate in self.index and worst_excess(t.mean, self.limits) <= 0
        ]
        return max((t.candidate for t in good), key=lambda c: self._rate_at(beliefs, c), default=None)

    def _rate_at(self, beliefs: _Beliefs, candidate: TuneCandidate) -> float:
        return float(beliefs.rate.mean[self.index[candidate]])

    def _gains(self, beliefs: _Beliefs, log_best: float) -> Floats:
        """Expected relative gain over the best, weighed by the chance to run and to meet the limits, (candidates,)."""
        return as_floats(_expected_excess(beliefs.rate, log_best) * beliefs.feasible * beliefs.works)

    def _stages(self, history: Sequence[Tried], best: TuneCandidate) -> list[tuple[str, NDArray[np.bool_]]]:
        seen = {tried.candidate.layout for tried in history}
        return [
            ("layout", np.array([c.layout not in seen for c in self.candidates])),
            ("concurrency", np.array([c.engine == best.engine for c in self.candidates])),
            ("engine flags", np.array([c.layout == best.layout for c in self.candidates])),
        ]


def _below(limit: float, belief: RatioBelief) -> Floats:
    """Probability of staying below a limit."""
    return _normal((limit - belief.mean) / belief.sigma)


def _expected_excess(belief: RatioBelief, log_best: float) -> Floats:
    """E[(X / best - 1)+] of log-normal X."""
    d = (belief.mean - log_best) / belief.sigma
    return as_floats(np.exp(belief.mean - log_best + belief.sigma**2 / 2) * _normal(d + belief.sigma) - _normal(d))


def _normal(z: Floats) -> Floats:
    """Standard normal distribution function."""
    return as_floats(0.5 * np.vectorize(math.erfc, otypes=[float])(-np.asarray(z) / math.sqrt(2)))
