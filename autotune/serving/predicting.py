"""A service deployment -> what its requests see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotune.documents.deployment import Deployment, Load, Pool
from autotune.documents.prediction import Percentiles, ServicePrediction
from autotune.errors import ProblemError
from autotune.predicting.step import memory_limit_bytes, pool_rows, resolve_pool
from autotune.serving.errors import service_errors
from autotune.serving.model import PrefillCurves, ServiceCoefficients, decode_curve, prefill_curves, prefill_kernels
from autotune.serving.replay import Replay, ServiceModel, replay
from autotune.serving.requests import Requests, benchmark_requests, poisson_requests, read_trace
from autotune.serving.steady import steady_state
from cost_models.arrays import Floats
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, prefill_memory, sequences_that_fit
from cost_models.rows import Rows
from cost_models.specs.workload import Workload

MAX_REPLAYED = 20_000
REQUESTS_PER_SLOT = 10
OPEN_LOOP_REQUESTS = 4000
DEFAULT_PREFILL_TOKENS = 16384
FIFTHS_NEED = 100
GROWS = 2.0
"""Ratio of late to early TTFT from which an open loop's queue is said to grow."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One pool with its documents loaded."""

    machine: Machine
    pool: Pool

    @property
    def prefill_tokens(self) -> int:
        """Token budget per rank and step."""
        return self.pool.max_batched_tokens or DEFAULT_PREFILL_TOKENS

    @property
    def limit_bytes(self) -> float:
        return memory_limit_bytes(self.machine, self.pool)


def predict_service(deployment: Deployment) -> ServicePrediction:
    """Replay the deployment's load through its pools.

    Raises AutotuneError for unknown names and contradictions, ProblemError when a pool does not fit its memory.
    """
    load = deployment.load
    assert load is not None
    disaggregated = "serve" not in deployment.pools
    sides = {name: _Side(resolve_pool(deployment, pool), pool) for name, pool in deployment.pools.items()}
    decode = sides["decode" if disaggregated else "serve"]
    prefill = sides["prefill" if disaggregated else "serve"]
    instances = 1 if disaggregated else decode.pool.instances
    requests = requests_of(deployment.workload, load, instances)
    workload = as_decoded(deployment.workload, requests)
    prompts = as_prefilled(deployment.workload, requests)
    workers = decode.pool.instances if disaggregated else 1
    slots = _decode_slots(decode, prefill, workload, prompts) * workers
    if disaggregated:
        _check_prefill_fits(prefill, prompts)
    coefficients = prefill.machine.coefficients("serving", "default", ServiceCoefficients)
    start_s = 0.0 if disaggregated else coefficients.prefill_switch_s
    curves = prefill_curves(prefill.machine, _prefill_rows(prefill), prompts, prefill.prefill_tokens, start_s)
    model = _service_model(decode, prefill, curves, workload, slots, requests.concurrency)
    computed = requests.without_cached(deployment.workload.prefix_cache_hit_rate)
    if load.rate_per_s and not load.trace and not load.requests:
        seen = _settled(deployment.workload, model, load.rate_per_s / instances, load.shortest)
    else:
        seen = _replayed(requests, computed, model)
    gpus = sum(side.pool.layout.gpus * side.pool.instances for side in sides.values())
    rate = seen.tokens_per_s * instances
    ttft_s, tpot_s = _percentiles(seen.replay.ttft_s), _percentiles(seen.replay.tpot_s)
    errors = service_errors().disaggregated if disaggregated else service_errors().aggregated
    return ServicePrediction(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        intervals=errors.intervals(ttft_s.mean, tpot_s.mean, rate / gpus),
        tokens_per_s=rate,
        tokens_per_s_per_gpu=rate / gpus,
        requests_per_s=rate / float(requests.osl_tokens.mean()),
        gpus=gpus,
        requests=len(seen.replay.osl_tokens),
        decode_sequences=seen.sequences * instances,
        decode_slots=slots * instances,
        prefill_busy=_prefill_busy(rate / instances, requests, computed, model, curves),
        overloaded=bool(seen.overload),
        calibration=decode.machine.calibration.id,
        notes=(*decode.machine.model.flags, *([seen.overload] if seen.overload else [])),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a replay showed of one instance (or of both pools)."""

    replay: Replay
    tokens_per_s: float
    sequences: float
    overload: str


def _replayed(requests: Requests, computed: Requests, model: ServiceModel) -> _Seen:
    """All requests, from an empty service to its end."""
    result = replay(computed, model)
    return _Seen(result, result.output_tokens_per_s, _mean_running(result), _overload(requests.rate_per_s is not None, result))


def _settled(workload: Workload, model: ServiceModel, rate_per_s: float, shortest: float) -> _Seen:
    """The steady state under Poisson arrivals."""
    state = steady_state(workload, model, rate_per_s, shortest)
    tokens = rate_per_s * float(state.replay.osl_tokens.mean())
    if state.overload:
        tokens = min(tokens, state.sequences / float(state.replay.tpot_s.mean()))
    return _Seen(state.replay, tokens, state.sequences, state.overload or _overload(True, state.replay))


def requests_of(workload: Workload, load: Load, instances: int) -> Requests:
    """Traffic of one instance: requests are dealt in turn to identical instances."""
    if load.trace:
        requests = read_trace(Path(load.trace))
        if load.rate_per_s:
            requests = requests.at_rate(load.rate_per_s)
        if load.concurrency:
            requests = requests.closed(load.concurrency)
        return requests.first(load.requests).every(instances)
    lengths = (workload.isl_tokens, workload.osl_tokens)
    if load.concurrency is None:
        assert load.rate_per_s is not None
        count = -(-(load.requests or OPEN_LOOP_REQUESTS) // instances)
        return poisson_requests(*lengths, count=count, rate_per_s=load.rate_per_s / instances, shortest=load.shortest)
    concurrency = max(round(load.concurrency / instances), 1)
    count = -(-load.requests // instances) if load.requests else min(REQUESTS_PER_SLOT * concurrency, MAX_REPLAYED)
    return benchmark_requests(*lengths, count=count, concurrency=concurrency, shortest=load.shortest)


def as_decoded(workload: Workload, requests: Requests) -> Workload:
    """The lengths of a sequence found decoding: long answers are found more often, E[I O] / E[O] and E[O^2] / E[O]."""
    isl, osl = requests.isl_tokens, requests.osl_tokens
    lengths = {"isl_tokens": _whole((isl * osl).mean() / osl.mean()), "osl_tokens": _whole((osl**2).mean() / osl.mean())}
    return workload.model_copy(update=lengths)


def as_prefilled(workload: Workload, requests: Requests) -> Workload:
    """The length of the prompt that a token being prefilled belongs to, E[I^2] / E[I]: attention costs the square."""
    isl = requests.isl_tokens
    return workload.model_copy(update={"isl_tokens": _whole((isl**2).mean() / isl.mean())})


def _whole(length: float) -> int:
    return max(round(float(length)), 1)


def _decode_slots(decode: _Side, prefill: _Side, workload: Workload, prompts: Workload) -> int:
    """Sequences that one decode worker, or one aggregated instance, holds.

    An aggregated engine needs the larger of what its decode and its prefill steps need beside the KV cache.
    """
    pool = decode.pool
    rows = pool_rows(pool)
    aggregated = prefill is decode
    memory = decode_memory(decode.machine, rows.replace(batched_tokens=0) if aggregated else rows, workload)
    held = float(memory.without_kv_bytes[0])
    if aggregated:
        held = max(held, float(_prefill_memory(prefill, prompts).without_kv_bytes[0]))
    room = decode.limit_bytes - held
    fitting = int(sequences_that_fit(np.array([room / float(memory.kv_bytes_per_token[0])]), workload)[0])
    if fitting < 1:
        needed = workload.peak_context_tokens * float(memory.kv_bytes_per_token[0])
        raise ProblemError(
            f"no sequence of {workload.peak_context_tokens:,.0f} tokens fits beside the weights: its KV cache needs "
            f"{needed / 1e9:.1f} GB per GPU, {max(room, 0) / 1e9:.1f} GB of {decode.limit_bytes / 1e9:.1f} GB are left; "
            "use more GPUs, a smaller precision or a higher memory_fraction"
        )
    return min(fitting, pool.batch_per_dp_rank or fitting) * pool.dp


def _prefill_memory(side: _Side, prompts: Workload) -> Memory:
    return prefill_memory(side.machine, _prefill_rows(side), prompts)


def _check_prefill_fits(side: _Side, prompts: Workload) -> None:
    needed = float(_prefill_memory(side, prompts).total_bytes[0])
    if needed > side.limit_bytes:
        raise ProblemError(
            f"the prefill pool needs {needed / 1e9:.1f} GB per GPU, {(needed - side.limit_bytes) / 1e9:.1f} GB more than "
            f"allowed; lower max_batched_tokens ({side.prefill_tokens:,}) or use more GPUs per instance"
        )


def _prefill_rows(side: _Side) -> Rows:
    """A pool's prefill steps."""
    return prefill_kernels(pool_rows(side.pool)).replace(batch=1, drafts=0, batched_tokens=side.prefill_tokens)


def _service_model(
    decode: _Side, prefill: _Side, curves: PrefillCurves, workload: Workload, slots: int, concurrency: int
) -> ServiceModel:
    disaggregated = decode is not prefill
    workers = decode.pool.instances if disaggregated else 1
    most = min(concurrency or slots, slots) / workers
    c = decode.machine.coefficients("serving", "default", ServiceCoefficients)
    return ServiceModel(
        decode_step_s=decode_curve(decode.machine, pool_rows(decode.pool), workload, most),
        prefill_s=curves.step_s,
        prefill_extra_s=lambda busy, mean, step: curves.extra_s(busy, mean, step, bool(c.mixed)),
        disaggregated=disaggregated,
        prefill_workers=prefill.pool.instances if disaggregated else 1,
        prefill_ranks=prefill.pool.dp,
        prefill_tokens=float(prefill.prefill_tokens),
        decode_workers=workers,
        decode_slots=slots,
        frontend_s=c.frontend_s,
        transfer_s=c.transfer_s if disaggregated else 0.0,
        admission_interval_steps=decode.pool.admission_interval_steps,
        gather_steps=decode.pool.gather_prefill_steps,
    )


def _overload(open_loop: bool, result: Replay) -> str:
    """A stationary open loop has the same TTFT early and late."""
    if not open_loop or len(result.ttft_s) < FIFTHS_NEED:
        return ""
    fifth = len(result.ttft_s) // 5
    early_s, late_s = float(result.ttft_s[fifth : 2 * fifth].mean()), float(result.ttft_s[-fifth:].mean())
    if late_s <= GROWS * early_s:
        return ""
    return f"TTFT grows from {early_s:,.2f} s to {late_s:,.2f} s over the run: the service may not keep up with its requests"


def _percentiles(values: Floats) -> Percentiles:
    p50, p95, p99 = (float(x) for x in np.quantile(values, (0.5, 0.95, 0.99)))
    return Percentiles(mean=float(values.mean()), p50=p50, p95=p95, p99=p99)


def _mean_running(result: Replay) -> float:
    span = float(result.finished_s.max() - result.sent_s.min())
    return float((result.finished_s - result.first_token_s).sum() / span)


def _prefill_busy(
    tokens_per_s: float, requests: Requests, computed: Requests, model: ServiceModel, curves: PrefillCurves
) -> float:
    """Lower bound of the prefill's use: every prompt at the rate of a full step."""
    full = model.prefill_tokens
    per_token_s = curves.step_s(full, full) / (full * model.prefill_ranks)
    prompt_tokens_per_s = tokens_per_s * float(computed.isl_tokens.sum() / requests.osl_tokens.sum())
    return prompt_tokens_per_s * per_token_s / model.prefill_workers
