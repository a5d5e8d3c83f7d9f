"""The steady state of an open loop: decode batch by Little's law, waiting for the first token by replay."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from autotune.serving.model import interrupted_step_s
from autotune.serving.replay import Replay, ServiceModel, replay, replay_steady
from autotune.serving.requests import poisson_requests
from cost_models.specs.workload import Workload

STEPS_REPLAYED = 20
"""Full prefill steps of every replayed worker."""
REQUESTS = (2_000, 10_000)
WORKERS = 4
"""A pool of more prefill workers is replayed as so many of them, with their share of the requests."""
SETTLED = 1e-6
ROUNDS = 400
LONGEST = 100.0
"""Decode steps that prefill may add to each before it is called endless."""


@dataclass(frozen=True, slots=True)
class SteadyState:
    """Where a service settles under Poisson arrivals."""

    replay: Replay
    tpot_s: float
    sequences: float
    """Decoding at once."""
    overload: str = ""
    """Why it cannot settle, where it cannot."""


def steady_state(workload: Workload, model: ServiceModel, rate_per_s: float, shortest: float) -> SteadyState:
    """Where a disaggregated service, or one aggregated instance, settles.

    rate_per_s : requests that arrive. Decode batch: the smallest fixed point of N = rate x osl x TPOT(N), which is what a
    service reaches from empty.
    """
    osl = workload.osl_tokens * (1 + shortest) / 2
    interference = 0.0 if model.disaggregated else 1.0
    sequences, tpot_s = 0.0, model.decode_step_s(1.0)
    for _ in range(ROUNDS):
        step_s = model.decode_step_s(max(sequences / model.decode_workers, 1.0))
        admitted = min(rate_per_s, model.decode_slots / (osl * tpot_s))
        found_s = step_s + interference * _prefill_share_s(workload, model, admitted, step_s, shortest)
        tpot_s = (tpot_s + found_s) / 2  # damped: a longer step admits fewer prompts, which shortens it
        settled = min(rate_per_s * osl * tpot_s, float(model.decode_slots))
        if abs(settled - sequences) <= SETTLED * max(sequences, 1.0):
            break
        sequences = settled
    wanted = rate_per_s * osl * tpot_s
    overload = ""
    if wanted > model.decode_slots * (1 + 1e-3):
        overload = f"the answers need {wanted:,.0f} sequences at once, {model.decode_slots:,} fit"
    run = _run_apart if model.disaggregated else _run_together
    return SteadyState(run(workload, model, rate_per_s, shortest, tpot_s, round(sequences)), tpot_s, sequences, overload)


def _prefill_share_s(workload: Workload, model: ServiceModel, rate_per_s: float, step_s: float, shortest: float) -> float:
    """What prompts add to every decode step of an aggregated engine."""
    prompt = max(workload.isl_tokens * (1 - workload.prefix_cache_hit_rate) * (1 + shortest) / 2, 1.0)
    ranks, looks_s = model.prefill_ranks, model.admission_interval_steps * step_s
    batch, tpot_s = 1.0, step_s
    for _ in range(ROUNDS):
        busiest = max(math.ceil(batch / ranks - SETTLED), 1) * prompt
        steps = max(busiest / max(model.prefill_tokens, prompt), 1.0)
        prefill_s = model.prefill_extra_s(busiest / steps, max(batch, 1.0) * prompt / ranks / steps, step_s) * steps
        tpot_s = float(interrupted_step_s(step_s, prefill_s, rate_per_s, looks_s))
        found = max(rate_per_s * prefill_s * tpot_s / max(tpot_s - step_s, 1e-12), 1.0)  # prompts of one cycle
        if abs(found - batch) <= 1e-3 * batch or tpot_s > LONGEST * step_s:
            break
        batch = (batch + found) / 2
    return min(tpot_s - step_s, LONGEST * step_s)


def _count(workload: Workload, model: ServiceModel, workers: int) -> int:
    prompts = max(model.prefill_tokens / workload.isl_tokens, 1.0) * model.prefill_ranks * workers
    return int(np.clip(STEPS_REPLAYED * prompts, *REQUESTS))


def _run_apart(
    workload: Workload, model: ServiceModel, rate_per_s: float, shortest: float, tpot_s: float, _sequences: int
) -> Replay:
    """The prefill pool alone; answers follow at the settled pace."""
    workers = min(model.prefill_workers, WORKERS)
    share = rate_per_s * workers / model.prefill_workers
    count = _count(workload, model, workers)
    sent = poisson_requests(workload.isl_tokens, workload.osl_tokens, count=count, rate_per_s=share, shortest=shortest)
    prompts = dataclasses.replace(sent.without_cached(workload.prefix_cache_hit_rate), osl_tokens=np.ones(count))
    alone = dataclasses.replace(model, prefill_workers=workers, decode_slots=count)
    result = replay(prompts, alone)
    first, osl = result.first_token_s, sent.osl_tokens
    return Replay(result.sent_s, first, first + np.maximum(osl - 1, 0) * tpot_s, osl)


def _run_together(
    workload: Workload, model: ServiceModel, rate_per_s: float, shortest: float, _tpot_s: float, sequences: int
) -> Replay:
    """An aggregated instance that has long been running."""
    count = _count(workload, model, 1)
    sent = poisson_requests(workload.isl_tokens, workload.osl_tokens, count=count, rate_per_s=rate_per_s, shortest=shortest)
    return replay_steady(sent.without_cached(workload.prefix_cache_hit_rate), model, sequences)
