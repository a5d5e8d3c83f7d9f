"""The requests that a load sends to one instance, and the lengths that its steps see."""

from __future__ import annotations

from pathlib import Path

from autotune.documents.deployment import Load
from autotune.serving.requests import Requests, benchmark_requests, poisson_requests, read_trace
from cost_models.specs.workload import Workload

MAX_REPLAYED = 100_000
CUT_REPLAYED = 20_000
"""Of a closed loop of more than that, or GENERATIONS of what is in flight."""
GENERATIONS = 3
"""The first shows how all start at once; what they leave behind (a queue before the prefill) shows in those after it."""
REQUESTS_PER_SLOT = 10
OPEN_LOOP_REQUESTS = 4000


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
    uncut = uncut_requests(load, instances)
    cut = min(max(CUT_REPLAYED, GENERATIONS * concurrency), MAX_REPLAYED)
    count = -(-load.requests // instances) if load.requests else uncut if uncut <= MAX_REPLAYED else cut
    return benchmark_requests(*lengths, count=count, concurrency=concurrency, shortest=load.shortest)


def uncut_requests(load: Load, instances: int) -> int:
    """Requests of one instance that a benchmark of a closed loop would send; 0 of other loads."""
    if load.trace or load.requests or load.concurrency is None:
        return 0
    return REQUESTS_PER_SLOT * max(round(load.concurrency / instances), 1)


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
