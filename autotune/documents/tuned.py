"""What tuning on a live engine tried, measured and found; and the trials as a table that calibrations are fitted to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.files import write_whole
from cost_models.catalog import validated
from cost_models.reading import RESULT, parse_json, read_text, reading
from cost_models.specs.base import Spec
from search_spaces.schema import Value

RATE = "tokens_per_s_per_gpu"
"""What tuning maximises."""
LAG = "lag"
"""Of an open loop: how long a run took over what it takes when no queue grows."""
LAG_LIMIT = 1.15
"""A run that takes longer was over-saturated."""
Quantities = dict[str, float]
"""By name: RATE, and times that requests see (ttft_s, ttft_p50_s, ttft_p95_s, ttft_p99_s, tpot_s)."""
TrialState = Literal["measured", "failed", "running"]


class MeasuredLoad(Spec):
    """What one run of a load generator saw of one instance."""

    requests: int = Field(ge=0)
    """Sent."""
    completed: int = Field(ge=0)
    duration_s: float = Field(gt=0)
    isl_tokens: float = Field(ge=0)
    """Mean of the completed requests."""
    osl_tokens: float = Field(ge=0)
    tokens_per_s: float = Field(ge=0)
    """Of answers."""
    ttft_s: dict[str, float] = Field(default_factory=dict)
    """mean, p50, p95, p99: those that the generator reports."""
    tpot_s: float | None = None
    """Mean over requests of the time between tokens after the first."""
    model: str = ""
    """As the result names it, where it does."""
    file: str = ""
    """The generator's own result, beside the journal."""
    rate_per_s: float | None = None
    """Asked of an open loop."""
    sm_clock_mhz: float | None = None
    """Of the GPUs right after the load, where that can be read."""

    def quantities(self, gpus: int) -> Quantities:
        """By name; gpus : of the instance that was loaded."""
        found = {"ttft_s" if name == "mean" else f"ttft_{name}_s": value for name, value in self.ttft_s.items()}
        if self.tpot_s is not None:
            found["tpot_s"] = self.tpot_s
        if self.rate_per_s:
            found[LAG] = lag_of(self.duration_s, self.completed, self.rate_per_s, self.osl_tokens * (self.tpot_s or 0.0))
        return {RATE: self.tokens_per_s / gpus, **found}


def lag_of(duration_s: float, requests: float, rate_per_s: float, answer_s: float) -> float:
    """Duration of a run over the time to send its requests and to see the last answered; answer_s : of one answer."""
    return duration_s / (requests / rate_per_s + 1.5 * answer_s)


class TunedTrial(Spec):
    """One configuration under one load."""

    number: int
    origin: str
    """Why it was tried: the engine's defaults, a plan of the model, or the stage that proposed it."""
    layout: str
    level: float
    """Requests in flight, or per second, of the whole deployment."""
    settings: dict[str, Value]
    """Engine knobs and options that were varied; `default` leaves one to the engine."""
    state: TrialState
    reason: str = ""
    """Why it failed or does not count, by name."""
    detail: str = ""
    """The same in the server's or the gate's own words."""
    predicted: Quantities = Field(default_factory=dict)
    """By the model, before anything was measured."""
    measured: Quantities = Field(default_factory=dict)
    """Geometric means over the runs."""
    loads: tuple[MeasuredLoad, ...] = ()
    constraints: dict[str, float] = Field(default_factory=dict)
    """Each limit by name: measured / limit - 1, met at 0 and below."""
    deployment: Deployment | None = None
    """What one instance ran, with the load that it was sent; none where the model cannot price it."""

    @property
    def feasible(self) -> bool:
        """Whether it was measured and met every limit."""
        return self.state == "measured" and all(value <= 0 for value in self.constraints.values())


class Accuracy(Spec):
    """How far predictions of one quantity lay from what was measured: mean absolute relative error."""

    quantity: str
    trials: int
    before: float
    """Of the model as it was."""
    after: float
    """Of the model with the ratios learned, each trial left out in turn."""


class TuneResult(Spec):
    """Everything that tuning returns; the same document as --json prints and tune.json stores."""

    format: Literal["autotune-tune/1"] = "autotune-tune/1"
    trials: tuple[TunedTrial, ...]
    best: int | None
    """Number of the winner; none where no trial met the limits."""
    closest: int | None = None
    """The trial that came closest to the limits, where none met them."""
    defaults: int | None
    """The engine's own defaults."""
    first_guess: int | None
    """The model's best plan, before anything was measured."""
    gain_over_defaults: float | None
    """Relative; none where the defaults failed or missed a limit."""
    gain_over_first_guess: float | None
    limits: dict[str, float]
    noise: float
    """Standard deviation of one run's throughput, relative."""
    stopped: str
    """Why no more was tried."""
    random_needed: float | None
    """Trials that random search would have needed on average for the winner less 2 %, by the recalibrated model."""
    accuracy: tuple[Accuracy, ...]
    warnings: tuple[str, ...] = ()

    def trial(self, number: int | None) -> TunedTrial | None:
        """By its number."""
        return next((trial for trial in self.trials if trial.number == number), None) if number is not None else None


class TrialRecord(Spec):
    """One line of a trials table: what ran, under which load, and what was seen."""

    format: Literal["autotune-trial/1"] = "autotune-trial/1"
    deployment: Deployment
    loads: tuple[MeasuredLoad, ...] = Field(min_length=1)


TRIAL_FORMAT = TrialRecord.model_fields["format"].default


def write_trials(path: Path, trials: Sequence[TunedTrial]) -> int:
    """The measured trials that the model can price, a JSON line each; how many."""
    records = [TrialRecord(deployment=t.deployment, loads=t.loads) for t in trials if t.deployment and t.state == "measured"]
    write_whole(path, "".join(record.model_dump_json(exclude_defaults=False) + "\n" for record in records))
    return len(records)


def looks_like_trials(path: Path) -> bool:
    """Whether a file is a trials table, by its first line."""
    with path.open("rb") as file:
        return TRIAL_FORMAT.encode() in file.readline(1 << 16)


def read_trials(path: Path) -> list[TrialRecord]:
    """The lines of a trials table; raises ProblemError naming the line at fault."""
    with reading(path, "cannot be read", ProblemError):
        text = read_text(path, RESULT)
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{path} line {number}"
            found.append(validated(TrialRecord, parse_json(line, f"{where} is not JSON: truncated?"), where))
    if not found:
        raise ProblemError(f"{path}: no measured trial in it")
    return found


def dump_result(result: TuneResult) -> str:
    """tune.json."""
    return json.dumps(result.model_dump(mode="json"), indent=2) + "\n"
