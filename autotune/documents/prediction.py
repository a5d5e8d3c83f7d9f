"""What a prediction says, as typed documents that print, serialise and compare."""

from __future__ import annotations

from typing import Literal

from cost_models.specs.base import Spec

NOT_GROUPED = "not grouped"
"""Group of an operator in a document of before operators had one."""


class OperatorLine(Spec):
    """One operator of a step."""

    name: str
    time_s: float
    share: float
    """Share of the step."""
    bound_s: float
    """Roofline: peak FLOPs, bytes at full bandwidth, or link line rate; 0 where none is defined."""
    status: str
    """measured, transferred, assumed or datasheet."""
    outside_box: tuple[str, ...] = ()
    family: str = ""
    """Calibration family and variant that priced it."""
    group: str = NOT_GROUPED
    """What kind of work it is, as charts group it."""
    held_out_sigma: float | None = None
    """Standard deviation of log(measured / predicted) on held-out shapes, where it was fitted."""

    @property
    def over_bound(self) -> float | None:
        """Time / roofline."""
        return self.time_s / self.bound_s if self.bound_s > 0 else None


Lane = Literal["compute", "communication", "between"]
"""`between`: small kernels and gaps, which have no place of their own in a layer."""


class LayerOperator(Spec):
    """One operator of a layer."""

    name: str
    lane: Lane
    time_s: float
    """Of all micro-batches together, and of all its launches where it runs more than once."""


class HiddenTime(Spec):
    """Time of operators that a layer does not take, since it passes beside others. How much is known, when is not."""

    operators: tuple[str, ...]
    behind: str
    """What hides it: experts, down-projection, shared expert, other micro-batch."""
    time_s: float
    """Less what running side by side slows; negative where that is more than it hides."""


class LayerPrediction(Spec):
    """One MoE layer of a step: operators in the order they start, and what overlap hides of them.

    time_s = sum of the operators - sum of what is hidden; time_s x passes, over the kinds of MoE layers, is their time in a step.
    """

    attention: str
    """Its kind; empty for a layer without token mixing."""
    count: int
    """Layers of the model that are like it."""
    passes: float
    """Times it counts in a step: `count`, and more where pipeline stages wait for a longer one."""
    microbatches: int
    operators: tuple[LayerOperator, ...]
    hidden: tuple[HiddenTime, ...]
    time_s: float


class MemoryLine(Spec):
    """One line of a GPU's memory."""

    name: str
    bytes: float


class StepPrediction(Spec):
    """A predicted step of one pool, whatever its phase."""

    tokens_per_s_per_gpu: float
    """Generated tokens of a decode pool, new prompt tokens of a prefill pool."""
    tokens_per_s: float
    """All instances together."""
    step_s: float
    gpus: int
    operators: tuple[OperatorLine, ...]
    layer_kinds: dict[str, float]
    """Seconds per step in dense layers, MoE layers, head and host."""
    layers: tuple[LayerPrediction, ...] = ()
    """One MoE layer of each kind that the model has, commonest first; empty for a dense model."""
    memory: tuple[MemoryLine, ...]
    memory_total_bytes: float
    memory_limit_bytes: float
    kv_capacity_tokens: float
    """KV tokens of one DP rank that the memory limit leaves room for, in sequences of the workload's mean context."""
    kv_sequences: int
    """Sequences of one DP rank that the memory limit leaves room for, at independent points of their output."""
    fits: bool
    bottleneck: str
    calibration: str
    notes: tuple[str, ...] = ()


class Prediction(StepPrediction):
    """A predicted decode step and what follows from it."""

    tpot_s: float
    accepted_tokens_per_step: float
    concurrency: int
    """Sequences decoding at once in all instances."""
    context_tokens: float

    @property
    def latency_s(self) -> float:
        """Time per output token."""
        return self.tpot_s


class PrefillPrediction(StepPrediction):
    """A predicted prefill step and what follows from it."""

    tokens_per_step: float
    """New prompt tokens per attention-DP rank and step."""
    prompts_per_step: float
    """Prompts of one attention-DP rank in a step; below one, a prompt takes several steps."""
    prompt_s: float
    """All steps of one prompt: its time to first token when nothing waits [s]."""

    @property
    def latency_s(self) -> float:
        """Time of one prompt."""
        return self.prompt_s


class Interval(Spec):
    """Central 80 % of a predicted quantity."""

    low: float
    high: float


class SkewedInterval(Interval):
    """Central 80 %, and the value that half stay below: nearer to one end where errors have a long tail."""

    middle: float | None = None
    """None in documents saved without: the geometric middle of low and high."""


class Percentiles(Spec):
    """A time over requests [s]."""

    mean: float
    p50: float
    p95: float
    p99: float


class ServiceIntervals(Spec):
    """80 % intervals of a service's means, and of percentiles of its TTFT."""

    ttft_s: SkewedInterval
    ttft_p50_s: SkewedInterval
    ttft_p95_s: SkewedInterval
    ttft_p99_s: SkewedInterval
    tpot_s: SkewedInterval
    tokens_per_s_per_gpu: SkewedInterval

    def of_ttft(self, which: str) -> SkewedInterval:
        """Of the mean, or of a percentile (p50, p95, p99)."""
        found: SkewedInterval = self.ttft_s if which == "mean" else getattr(self, f"ttft_{which}_s")
        return found


class ServicePrediction(Spec):
    """What requests see of a whole service, from a replay."""

    ttft_s: Percentiles
    tpot_s: Percentiles
    tokens_per_s: float
    """Output tokens of the whole service."""
    tokens_per_s_per_gpu: float
    requests_per_s: float
    intervals: ServiceIntervals
    gpus: int
    requests: int
    """Replayed."""
    decode_sequences: float
    """Mean sequences decoding at once."""
    decode_slots: int
    """Sequences that fit: KV memory, or the pool's batch limit."""
    prefill_busy: float
    """Least share of the time that prefill runs: of the prefill workers, or of an aggregated engine."""
    overloaded: bool = False
    """Requests come faster than they are answered; the notes say where it stops."""
    calibration: str
    notes: tuple[str, ...] = ()


class Uncertainty(Spec):
    """Error bars of one prediction."""

    step_s: Interval
    tokens_per_s_per_gpu: Interval
    tpot_s: Interval | None = None
    """Of a decode pool."""


class PlanOdds(Spec):
    """How one plan compares with the others under the same errors."""

    uncertainty: Uncertainty
    best_probability: float
    """Probability of being the best of the plans returned by the problem's objective."""
    latency_probability: float
    """Probability of meeting the limit on the time per output token, or of one prompt."""
    expected_regret: float
    """Mean share of the objective (rate, or speed of a token or prompt) lost against whichever plan turns out best."""


class MeasurementValue(Spec):
    """What timing one family of kernels (or recording expert loads) would be worth before choosing."""

    family: str
    """Calibration family and variant, or `balance`: recorded expert loads."""
    operators: tuple[str, ...]
    """Operators of the best plan that it prices."""
    variance_share: float
    """Share of the best plan's throughput variance that its shared error explains."""
    regret_reduction: float
    """Expected throughput gained by choosing after the measurement instead of before, relative."""
