"""A service deployment -> what its requests see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.documents.deployment import Deployment, Load
from autotune.documents.prediction import Percentiles, ServicePrediction
from autotune.serving.building import Built, build_service
from autotune.serving.errors import service_errors
from autotune.serving.replay import Replay, replay
from autotune.serving.requests import Requests
from autotune.serving.service import ServiceModel
from autotune.serving.steady import Settled, settled, settled_replay
from autotune.serving.traffic import requests_of, uncut_requests
from cost_models.arrays import Floats
from cost_models.specs.workload import Workload

FIFTHS_NEED = 100
SKIPPED = 5
"""The first so-manieth of a cut closed loop shows how it started."""
GROWS = 2.0
"""Ratio of late to early TTFT from which an open loop's queue is said to grow."""


@dataclass(frozen=True, slots=True)
class Service:
    """A deployment priced once; its loads may differ in rate, not in lengths."""

    deployment: Deployment
    built: Built

    def at(self, load: Load) -> ServicePrediction:
        """What requests see under a load; raises ProblemError for a bad trace."""
        return self._seen(load, self._state(load))

    def unless_full(self, load: Load) -> ServicePrediction | None:
        """The same; None, before anything is replayed, where the decode batch does not settle within its slots."""
        state = self._state(load)
        return None if state and state.overload else self._seen(load, state)

    def _state(self, load: Load) -> Settled | None:
        """Where the decode batch settles under an endless open loop; none for other loads."""
        if not load.rate_per_s or load.trace or load.requests:
            return None
        built = self.built
        rate_per_s = load.rate_per_s / built.instances
        return settled(self.deployment.workload, built.model, built.slots, rate_per_s, load.shortest)

    def _seen(self, load: Load, state: Settled | None) -> ServicePrediction:
        workload, built = self.deployment.workload, self.built
        requests = requests_of(workload, load, built.instances)
        computed = requests.without_cached(workload.prefix_cache_hit_rate)
        if state is not None:
            seen = _settled(workload, built, state, load)
        else:
            seen = _replayed(requests, computed, built, uncut_requests(load, built.instances))
        return _prediction(built, requests, computed, seen)


def service_of(deployment: Deployment) -> Service:
    """Price a deployment's pools for its load's lengths; raises as `predict_service` does."""
    assert deployment.load is not None
    instances = deployment.pools["serve"].instances if "serve" in deployment.pools else 1
    return Service(deployment, build_service(deployment, requests_of(deployment.workload, deployment.load, instances)))


def predict_service(deployment: Deployment) -> ServicePrediction:
    """Replay the deployment's load through its pools.

    Raises AutotuneError for unknown names and contradictions, ProblemError when a pool does not fit its memory.
    """
    assert deployment.load is not None
    return service_of(deployment).at(deployment.load)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a replay showed of one instance (or of both pools)."""

    replay: Replay
    tokens_per_s: float
    sequences: float
    overload: str
    notes: tuple[str, ...] = ()


def _prediction(built: Built, requests: Requests, computed: Requests, seen: _Seen) -> ServicePrediction:
    rate = seen.tokens_per_s * built.instances
    ttft_s, tpot_s = _percentiles(seen.replay.ttft_s), _percentiles(seen.replay.tpot_s)
    errors = service_errors().of(built.model.prefill is not None, built.engine)
    return ServicePrediction(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        intervals=errors.intervals(ttft_s, tpot_s, rate / built.gpus),
        tokens_per_s=rate,
        tokens_per_s_per_gpu=rate / built.gpus,
        requests_per_s=rate / float(requests.osl_tokens.mean()),
        gpus=built.gpus,
        requests=len(seen.replay.osl_tokens),
        decode_sequences=seen.sequences * built.instances,
        decode_slots=built.slots * built.instances,
        prefill_busy=_prefill_busy(rate / built.instances, requests, computed, built.model, built.prompts),
        overloaded=bool(seen.overload),
        calibration=built.calibration,
        notes=(*built.notes, *seen.notes, *([seen.overload] if seen.overload else [])),
    )


def _replayed(requests: Requests, computed: Requests, built: Built, uncut: int) -> _Seen:
    """All requests, from an empty service to its end; of a closed loop too long for that, what it settles at."""
    notes = []
    if uncut > len(requests):
        skipped = min(max(requests.concurrency, len(requests) // SKIPPED), len(requests) // 2)
        result = replay(computed, built.model).settled(skipped)
        rate = result.finished_tokens_per_s
        notes.append(f"{len(requests):,} of {uncut:,} requests were replayed: without the ramp at the start and the end")
        running = rate * float(result.tpot_s.mean())
    else:
        result = replay(computed, built.model)
        rate, running = result.output_tokens_per_s, _mean_running(result)
    if result.preempted:
        notes.append(f"the KV cache overflows: {result.preempted:,} times a sequence was preempted and computed again")
    overload = _overload(requests.rate_per_s is not None, result)
    return _Seen(result, rate, running, overload, tuple(notes))


def _settled(workload: Workload, built: Built, state: Settled, load: Load) -> _Seen:
    """The steady state under Poisson arrivals."""
    assert load.rate_per_s
    rate_per_s = load.rate_per_s / built.instances
    seen = settled_replay(workload, built.model, state.sequences, rate_per_s, load.shortest)
    tokens = rate_per_s * float(seen.osl_tokens.mean())
    if state.overload:
        tokens = min(tokens, state.sequences / float(seen.tpot_s.mean()))
    return _Seen(seen, tokens, state.sequences, state.overload or _overload(True, seen))


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


def _prefill_busy(tokens_per_s: float, requests: Requests, computed: Requests, model: ServiceModel, prompts: Workload) -> float:
    """Lower bound of the prefill's use: every prompt at the rate of a full step."""
    pool = model.prefill or model.decode
    full = pool.budget_tokens
    cached = prompts.isl_tokens * prompts.prefix_cache_hit_rate
    keys = full * (cached + (prompts.isl_tokens - cached) / 2)
    per_token_s = pool.prompt_s(full, full, keys, 0) / (full * pool.ranks)
    prompt_tokens_per_s = tokens_per_s * float(computed.isl_tokens.sum() / requests.osl_tokens.sum())
    return prompt_tokens_per_s * per_token_s / pool.workers
