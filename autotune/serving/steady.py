"""The steady state of an open loop: decode batch by Little's law, what requests see by a replay that starts there.

The first costs milliseconds and already says which loads are too much; the second costs tenths of a second."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from autotune.serving.replay import Replay, replay_steady
from autotune.serving.requests import poisson_requests
from autotune.serving.service import PoolModel, ServiceModel
from cost_models.serving import interrupted_step_s
from cost_models.specs.workload import Workload

STEPS_REPLAYED = 20
"""Full prefill steps of every worker."""
FEWEST_REQUESTS, MOST_REQUESTS = 2_000, 10_000
SLICE_ERROR, SLICE_WORKERS = 0.01, 8
"""Of a slice: how far its ratio of workers may be off, and the fewest workers of the side that has more."""
SETTLED = 1e-6
ROUNDS = 400
LONGEST = 100.0
"""Decode steps that prefill may add to each before it is called endless."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the decode batch of a service settles under Poisson arrivals."""

    sequences: float
    """Decoding at once."""
    overload: str = ""
    """Why it cannot settle, where it cannot."""


def settled(workload: Workload, model: ServiceModel, slots: int, rate_per_s: float, shortest: float) -> Settled:
    """Where a disaggregated service, or one aggregated instance, settles.

    slots : sequences that decode at once at most. rate_per_s : requests that arrive. Decode batch: the smallest fixed
    point of N = rate x osl x TPOT(N), which is what a service reaches from empty.
    """
    osl = workload.osl_tokens * (1 + shortest) / 2
    pool = model.decode
    sequences, tpot_s = 0.0, _step_s(pool, 1.0) / pool.tokens_per_step
    for _ in range(ROUNDS):
        each = max(sequences / (pool.workers * pool.ranks), 1.0)
        step_s = _step_s(pool, each)
        admitted = min(rate_per_s, slots / (osl * tpot_s))
        extra_s = 0.0 if model.prefill else _prompts_add_s(workload, model, admitted, step_s, each, shortest)
        found_s = (step_s + extra_s) / pool.tokens_per_step
        tpot_s = (tpot_s + found_s) / 2  # damped: a longer step admits fewer prompts, which shortens it
        fixed = min(rate_per_s * osl * tpot_s, float(slots))
        if abs(fixed - sequences) <= SETTLED * max(sequences, 1.0):
            break
        sequences = fixed
    wanted = rate_per_s * osl * tpot_s
    overload = ""
    if wanted > slots * (1 + 1e-3):
        overload = f"the answers need {wanted:,.0f} sequences at once, {slots:,} fit"
    return Settled(sequences, overload)


def settled_replay(workload: Workload, model: ServiceModel, sequences: float, rate_per_s: float, shortest: float) -> Replay:
    """What requests see of a service in which `sequences` decode when the first of them comes.

    Of a service so large that MOST_REQUESTS give its workers less than STEPS_REPLAYED steps each, a slice is replayed: requests
    are dealt to workers in turn, so a slice with its share of the requests sees what the whole would.
    """
    part = slice_of(model) if _wanted(workload, model) > MOST_REQUESTS else model
    share = part.decode.workers / model.decode.workers
    rate_per_s *= part.prefill.workers / model.prefill.workers if part.prefill and model.prefill else 1.0
    count = int(np.clip(_wanted(workload, part), FEWEST_REQUESTS, MOST_REQUESTS))
    sent = poisson_requests(workload.isl_tokens, workload.osl_tokens, count=count, rate_per_s=rate_per_s, shortest=shortest)
    return replay_steady(sent.without_cached(workload.prefix_cache_hit_rate), part, round(sequences * share))


def slice_of(model: ServiceModel) -> ServiceModel:
    """The smallest disaggregated service with the same ratio of workers to within SLICE_ERROR, and SLICE_WORKERS of the side
    that has more of them; the same model where that is no smaller, or aggregated."""
    if model.prefill is None:
        return model
    few, many = sorted((model.prefill.workers, model.decode.workers))
    parts = ((part, round(part * many / few)) for part in range(1, few + 1))
    alike = ((p, o) for p, o in parts if o >= SLICE_WORKERS and abs(o * few / (p * many) - 1) <= SLICE_ERROR)
    part, other = next(alike, (few, many))
    prefill, decode = (part, other) if model.prefill.workers <= model.decode.workers else (other, part)
    servers = max(round(model.frontend.servers * prefill / model.prefill.workers), 1)
    return dataclasses.replace(
        model,
        prefill=dataclasses.replace(model.prefill, workers=prefill),
        decode=dataclasses.replace(model.decode, workers=decode),
        frontend=dataclasses.replace(model.frontend, servers=servers),
    )


def _step_s(pool: PoolModel, sequences: float) -> float:
    """A decode step at a mean batch per rank between whole ones."""
    low = int(sequences)
    share = sequences - low
    return pool.decode_s(low) * (1 - share) + pool.decode_s(low + 1) * share


def _prompts_add_s(
    workload: Workload, model: ServiceModel, rate_per_s: float, step_s: float, decoding: float, shortest: float
) -> float:
    """What prompts add to every decode step of an aggregated engine."""
    cached = workload.isl_tokens * workload.prefix_cache_hit_rate * (1 + shortest) / 2
    prompt = max(workload.isl_tokens * (1 + shortest) / 2 - cached, 1.0)
    pool, mixes = model.decode, model.policy.mixes
    beside = decoding if mixes else 0.0
    budget = max(model.policy.budget(pool.budget_tokens, decoding), 1.0)
    batch, found_s = 1.0, step_s
    for _ in range(ROUNDS):
        busiest = max(math.ceil(batch / pool.ranks - SETTLED), 1) * prompt
        steps = max(busiest / max(budget, 1.0 if model.policy.cuts else prompt), 1.0)
        tokens, mean = busiest / steps, max(batch, 1.0) * prompt / pool.ranks / steps
        whole_s = pool.prompt_s(tokens + beside, mean + beside, tokens * (cached + prompt / 2), round(beside))
        stalled = 0.0 if mixes else min(max(batch, 1.0) / pool.ranks, 1.0)  # share of ranks that gain no token meanwhile
        extra_s = (whole_s - (1 - stalled) * step_s) * steps
        found_s = float(interrupted_step_s(step_s, max(extra_s, 0.0), rate_per_s, pool.look_steps * step_s))
        found = max(rate_per_s * extra_s * found_s / max(found_s - step_s, 1e-12), 1.0)  # prompts of one cycle
        if abs(found - batch) <= 1e-3 * batch or found_s > LONGEST * step_s:
            break
        batch = (batch + found) / 2
    return min(found_s - step_s, LONGEST * step_s)


def _wanted(workload: Workload, model: ServiceModel) -> float:
    """Requests that fill STEPS_REPLAYED steps of every worker that prefills."""
    pool = model.prefill or model.decode
    return STEPS_REPLAYED * max(pool.budget_tokens / workload.isl_tokens, 1.0) * pool.ranks * pool.workers
