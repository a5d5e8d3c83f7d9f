"""Lengths of requests as scripts need them: the longest that is let in, and what a benchmark sends."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from autotune.documents.deployment import Deployment
from autotune.errors import ProblemError
from autotune.predicting.step import held_memory
from autotune.serving.requests import Requests
from autotune.serving.traffic import requests_of
from cost_models.errors import AutotuneError
from cost_models.specs.model import ModelSpec

ROUNDING_TOKENS = 64
LONGEST_OVER_MEAN = 4
"""Longest request that is let in over the mean, where only means are known (98 % of an exponential distribution)."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of a deployment's requests [token]."""

    longest: int
    """Prompt and answer of the longest request that the engine takes."""
    why: str
    """Where that comes from, for the script's header."""
    isl: int
    osl: int
    """Means that a benchmark sends."""
    shortest: float = 1.0
    """Share of the longest synthetic length that the shortest has."""


def lengths_of(deployment: Deployment, model: ModelSpec) -> Lengths:
    """From the trace's own requests; else from the workload's means, at most the model's context and what the KV cache holds."""
    found = _asked(deployment, model)
    room = kv_room_tokens(deployment) // ROUNDING_TOKENS * ROUNDING_TOKENS
    if not 0 < room < found.longest:
        return found
    return dataclasses.replace(found, longest=room, why=f"what one rank's KV cache holds; {found.why} would be {found.longest:,}")


def kv_room_tokens(deployment: Deployment) -> int:
    """Tokens that the KV cache of every pool's ranks holds: engines refuse to start where the longest request does not fit.

    0 where a pool's memory is not known.
    """
    found = []
    for phase, pool in deployment.pools.items():
        alone = deployment.alone("prefill" if phase == "prefill" else "decode", pool)
        try:
            found.append(held_memory(alone).kv_capacity_tokens)
        except AutotuneError:
            return 0
    return int(min(found))


def _asked(deployment: Deployment, model: ModelSpec) -> Lengths:
    """Without regard to memory."""
    workload, load = deployment.workload, deployment.load
    given, shortest = workload.isl_tokens + workload.osl_tokens, load.shortest if load else 1.0
    requests, unread = _traced(deployment)
    if requests is not None:
        most = int((requests.isl_tokens + requests.osl_tokens).max())
        isl, osl = (max(round(float(part.mean())), 1) for part in (requests.isl_tokens, requests.osl_tokens))
        longest, why = _within(most, model, f"the trace's longest request has {most:,} tokens")
        return Lengths(longest, why, isl, osl)
    if shortest < 1.0:
        longest, why = _within(given, model, f"the longest synthetic request has {given:,} tokens")
        return Lengths(longest, why, workload.isl_tokens, workload.osl_tokens, shortest)
    longest, why = _within(LONGEST_OVER_MEAN * given, model, f"{LONGEST_OVER_MEAN} times the mean request of {given:,} tokens")
    return Lengths(longest, f"{why}{unread}", workload.isl_tokens, workload.osl_tokens)


def _within(tokens: int, model: ModelSpec, why: str) -> tuple[int, str]:
    """Rounded up, at most the model's context."""
    rounded = -(-tokens // ROUNDING_TOKENS) * ROUNDING_TOKENS
    if rounded <= model.max_context_tokens:
        return rounded, why
    return model.max_context_tokens, f"the model's own limit; {why}"


def _traced(deployment: Deployment) -> tuple[Requests | None, str]:
    """The trace's requests, and a remark where it cannot be read any more."""
    load = deployment.load
    if load is None or not load.trace:
        return None, ""
    try:
        return requests_of(deployment.workload, load, 1), ""
    except ProblemError as error:
        return None, f" (its trace was not read: {error})"
