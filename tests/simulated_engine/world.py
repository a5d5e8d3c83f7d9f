"""A world that tuning does not know: engines whose steps are those of the serving model, distorted.

The same world serves a server (`server.py`, real time, real HTTP) and studies that measure thousands of configurations without
either. Its true optimum is known, because it is a function.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.documents.deployment import Deployment, Pool
from autotune.documents.tuned import MeasuredLoad
from autotune.serving.building import build_service
from autotune.serving.replay import Replay, replay
from autotune.serving.service import PoolModel, ServiceModel
from autotune.serving.traffic import requests_of
from autotune.tuning.gate import check_run
from autotune.tuning.outcomes import TrialFailed
from autotune.tuning.space import TuneCandidate, TuneSpace


@dataclass(frozen=True)
class Distortions:
    """How a world differs from the model."""

    decode: float = 1.0
    """Factor on steps that only decode."""
    prompt: float = 1.0
    """Factor on steps that hold prompts."""
    host_s: float = 0.0
    """Added to every step: a slower CPU."""
    sequence_s: float = 0.0
    """Added to every step for each sequence."""
    per_tp_doubling: float = 1.0
    """Factor for each doubling of tensor parallelism: slower links."""
    data_parallel: float = 1.0
    """Factor where attention is data-parallel."""
    expert_parallel: float = 1.0
    large_step_tokens: float = math.inf
    large_step: float = 1.0
    """Factor on prompt steps of more tokens."""
    noise: float = 0.0
    """Standard deviation of a run, relative."""
    crash_above: float = math.inf
    """Sequences at once of one rank at which the engine dies of memory."""
    crash_tokens: float = math.inf
    """Tokens of a step for which no buffers fit: the engine does not start."""
    never_healthy: tuple[str, ...] = ()
    """Layouts whose server never answers."""

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Distortions:
        """From a file's fields; those that are not said are as the model has them."""
        return Distortions(**{**fields, "never_healthy": tuple(fields.get("never_healthy", ()))})


NONE = Distortions()


def drawn(seed: int, layouts: tuple[str, ...] = ()) -> Distortions:
    """A random world: host, kernels, links and noise of what studies of public runs show, and sometimes a trap."""
    rng = np.random.default_rng([seed, 19])
    traps = rng.random(3)
    return Distortions(
        decode=float(np.exp(rng.normal(0, 0.12))),
        prompt=float(np.exp(rng.normal(0, 0.15))),
        host_s=float(rng.uniform(0, 0.004)),
        sequence_s=float(rng.uniform(0, 3e-5)),
        per_tp_doubling=float(np.exp(rng.normal(0.03, 0.08))),
        data_parallel=float(np.exp(rng.normal(0.05, 0.12))),
        expert_parallel=float(np.exp(rng.normal(0.0, 0.10))),
        large_step_tokens=float(rng.choice([2500, 5000, 10000])),
        large_step=float(rng.uniform(0.95, 1.35)),
        noise=float(rng.uniform(0.005, 0.03)),
        crash_above=float(rng.choice([48, 100, 150])) if traps[0] < 0.3 else math.inf,
        crash_tokens=10000.0 if traps[1] < 0.25 else math.inf,
        never_healthy=(str(rng.choice(layouts)),) if len(layouts) and traps[2] < 0.25 else (),
    )


def distorted(pool: Pool, model: ServiceModel, world: Distortions) -> ServiceModel:
    """One instance's times in a world."""
    layout = world.per_tp_doubling ** math.log2(pool.tp)
    layout *= world.data_parallel if pool.dp > 1 else 1.0
    layout *= world.expert_parallel if pool.ep > 1 else 1.0
    own = model.decode

    def decode_s(sequences: int) -> float:
        return own.decode_s(sequences) * world.decode * layout + world.host_s + world.sequence_s * sequences

    def prompt_s(busiest: float, mean: float, keys: float, decodes: int) -> float:
        large = world.large_step if busiest > world.large_step_tokens else 1.0
        return own.prompt_s(busiest, mean, keys, decodes) * world.prompt * layout * large + world.host_s

    changed: PoolModel = dataclasses.replace(own, decode_s=decode_s, prompt_s=prompt_s)
    return dataclasses.replace(model, decode=changed)


class Refusals:
    """What a world's engine refuses, with what it would log."""

    def __init__(self, world: Distortions) -> None:
        self.world = world

    def at_start(self, pool: Pool) -> None:
        if pool.layout.label() in self.world.never_healthy:
            raise TrialFailed("never_healthy", "the server did not answer")
        if pool.max_batched_tokens > self.world.crash_tokens:
            raise TrialFailed("out_of_memory", "torch.OutOfMemoryError: CUDA out of memory.")

    def under_load(self, running_per_rank: float) -> None:
        if running_per_rank > self.world.crash_above:
            raise TrialFailed("out_of_memory", "torch.OutOfMemoryError: CUDA out of memory.", under_load=True)


def run_of(deployment: Deployment, world: Distortions) -> MeasuredLoad:
    """One run without noise; raises TrialFailed as the world's engine would fail."""
    pool, load = deployment.pools["serve"], deployment.load
    assert load is not None
    refusals = Refusals(world)
    refusals.at_start(pool)
    flying = load.concurrency or 0
    refusals.under_load(min(flying, (pool.batch_per_dp_rank or flying) * pool.dp) / pool.dp)
    requests = requests_of(deployment.workload, load, 1)
    built = build_service(deployment, requests)
    computed = requests.without_cached(deployment.workload.prefix_cache_hit_rate)
    return _as_measured(deployment, replay(computed, distorted(pool, built.model, world)))


def _as_measured(deployment: Deployment, seen: Replay) -> MeasuredLoad:
    p50, p95, p99 = (float(value) for value in np.quantile(seen.ttft_s, (0.5, 0.95, 0.99)))
    return MeasuredLoad(
        requests=len(seen.osl_tokens),
        completed=len(seen.osl_tokens),
        duration_s=float(seen.finished_s.max() - seen.sent_s.min()),
        isl_tokens=deployment.workload.isl_tokens,
        osl_tokens=float(seen.osl_tokens.mean()),
        tokens_per_s=seen.output_tokens_per_s,
        ttft_s={"mean": float(seen.ttft_s.mean()), "p50": p50, "p95": p95, "p99": p99},
        tpot_s=float(seen.tpot_s.mean()),
        model=deployment.model,
        rate_per_s=deployment.load.rate_per_s if deployment.load else None,
    )


def noisy(run: MeasuredLoad, sigma: float, rng: np.random.Generator) -> MeasuredLoad:
    """A run as another day would show it: one factor for the whole run, and a larger one for first tokens."""
    pace, first = np.exp(rng.normal(0, sigma)), np.exp(rng.normal(0, 2 * sigma))
    return run.model_copy(
        update={
            "duration_s": run.duration_s * pace,
            "tokens_per_s": run.tokens_per_s / pace,
            "tpot_s": (run.tpot_s or 0) * pace,
            "ttft_s": {name: value * pace * first for name, value in run.ttft_s.items()},
        }
    )


class WorldBench:
    """Measures candidates in a world, without a server and without waiting."""

    def __init__(self, space: TuneSpace, world: Distortions, seed: int = 0) -> None:
        self.space, self.world, self.rng = space, world, np.random.default_rng([seed, 7])
        self.known: dict[TuneCandidate, MeasuredLoad | TrialFailed] = {}
        self.runs = 0

    def truth(self, candidate: TuneCandidate) -> MeasuredLoad | TrialFailed:
        if candidate not in self.known:
            try:
                self.known[candidate] = run_of(self.space.one_instance(candidate), self.world)
            except TrialFailed as failure:
                self.known[candidate] = failure
        return self.known[candidate]

    def measure(self, candidate: TuneCandidate, number: int, run: int) -> MeasuredLoad:  # noqa: ARG002
        found = self.truth(candidate)
        self.runs += 1
        if isinstance(found, TrialFailed):
            raise found
        seen = noisy(found, self.world.noise, self.rng)
        check_run(seen, self.space.load(candidate), self.space.deployment.workload)
        return seen

    def close(self) -> None:
        pass


def best_rate(space: TuneSpace, bench: WorldBench, limits: Mapping[str, float]) -> tuple[float, TuneCandidate]:
    """The true optimum: the largest rate per GPU of all candidates that run and meet the limits."""
    found = []
    for candidate in space.everything():
        truth = bench.truth(candidate)
        if isinstance(truth, TrialFailed):
            continue
        values = truth.quantities(space.layouts[candidate.layout].layout.gpus)
        if all(values[name] <= limit for name, limit in limits.items()):
            found.append((values["tokens_per_s_per_gpu"], candidate))
    return max(found, key=lambda pair: pair[0])
