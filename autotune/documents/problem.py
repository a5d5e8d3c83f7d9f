"""The search problem: what people ask."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from autotune.documents.deployment import CalibrationChoice, Load
from cost_models.specs.base import Spec
from cost_models.specs.workload import Workload

Objective = Literal["tokens_per_s_per_gpu", "tokens_per_s", "tpot", "ttft"]
Target = Literal["decode", "prefill", "serve"]

DEFAULT_MODEL = "deepseek-v3"
DEFAULT_LENGTH_TOKENS = 2000
DEFAULT_TPOT_S = 0.1
DEFAULT_TTFT_S = 3.0
DEFAULT_TRIALS = 120
"""Of a flag study in a space too large to enumerate, and of the random search that an answer is compared with."""
MAX_TRIALS = 10_000
"""Optuna's sampler reads all earlier trials for each new one: 1,000 take 9 s, 3,000 take 71 s."""
MAX_GPUS = 20_000
MAX_SEED = 2**31 - 1
MAX_USD = 1e12
MAX_GOAL = 10**15
"""Of a throughput or a concurrency to reach."""
"""CP-SAT's are 32-bit, numpy's not negative."""


def by_latency(objective: Objective) -> bool:
    """Whether plans are ranked by how long a token or a prompt takes, instead of by how many come."""
    return objective in ("tpot", "ttft")


class Problem(Spec):
    """What `autotune search` is asked; a YAML problem file has the same fields."""

    hardware: str
    model: str = DEFAULT_MODEL
    target: Target = "decode"
    precision: str | None = None
    """Best recipe that the hardware has kernels for when absent."""
    engine: str | None = None
    """vLLM (vLLM-Ascend on Ascend) when absent."""
    engine_version: str | None = None
    calibration: CalibrationChoice = CalibrationChoice()
    workload: Workload = Workload(isl_tokens=DEFAULT_LENGTH_TOKENS, osl_tokens=DEFAULT_LENGTH_TOKENS)
    gpus: int | None = Field(default=None, gt=0, le=MAX_GPUS)
    """GPU budget; one scale-up domain (or the whole fixed cluster) when absent."""
    objective: Objective = "tokens_per_s_per_gpu"
    tpot_limit_s: float = Field(default=DEFAULT_TPOT_S, gt=0, le=60)
    ttft_limit_s: float = Field(default=DEFAULT_TTFT_S, gt=0, le=3600)
    """Prefill: all steps of one prompt, when nothing waits."""
    ttft_p50_limit_s: float | None = Field(default=None, gt=0, le=3600)
    """Serve: limits on percentiles of the time to first token; P99 within DEFAULT_TTFT_S when none is given."""
    ttft_p95_limit_s: float | None = Field(default=None, gt=0, le=3600)
    ttft_p99_limit_s: float | None = Field(default=None, gt=0, le=3600)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    """Every limit on a time or a rate must hold with this probability, by the error bars; none: of the prediction alone."""
    expert_load: tuple[str, ...] = ()
    """Files of recorded expert loads, one per workload: what imbalance is priced from instead of a prior."""
    load: Load | None = None
    """Serve: what must be served. Without it the plan serves as much as its limits allow."""
    prefill_hardware: str | None = None
    """Serve: hardware of the prefill pool, where it differs."""
    prefill_gpus: int | None = Field(default=None, gt=0, le=MAX_GPUS)
    """GPU budget of that hardware; one scale-up domain when absent."""
    prefill_precision: str | None = None
    gpu_hour_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    """Serve: with a price, plans are compared by cost per token."""
    prefill_gpu_hour_usd: float | None = Field(default=None, gt=0, le=MAX_USD)
    min_concurrency: int = Field(default=0, ge=0, le=MAX_GOAL)
    """Sequences that must decode at once over all instances."""
    min_tokens_per_s: float = Field(default=0.0, ge=0, le=MAX_GOAL)
    """Output tokens per second that all instances must reach together."""
    drafter: str | None = None
    """Published drafter with weights of its own, or path to its config.json; needs workload.mtp_acceptance to be searched."""
    memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of driver-reported memory that a plan may fill (safety margin); DEFAULT_MEMORY_FRACTION at most, and no more than the
    engine's recipes with that all-to-all, when absent."""
    top_k: int = Field(default=3, gt=0, le=20)
    trials: int | None = Field(default=None, ge=0, le=MAX_TRIALS)
    """Optuna's, for the flags of the best layout; when absent they are enumerated, or DEFAULT_TRIALS made where too many."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    storage: str | None = None
    """Optuna storage URL; a study found there is resumed."""

    @property
    def gpu_hour_usd_by_phase(self) -> dict[str, float]:
        """Price of a GPU hour by the phase of a pool; empty where none is given."""
        if self.gpu_hour_usd is None:
            return {}
        prefill = self.prefill_gpu_hour_usd or self.gpu_hour_usd
        return {"prefill": prefill, "decode": self.gpu_hour_usd, "serve": self.gpu_hour_usd}
