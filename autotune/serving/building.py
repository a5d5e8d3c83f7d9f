"""A service deployment -> its pools priced for a replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.documents.deployment import Deployment, Pool
from autotune.documents.knobs import pool_rows
from autotune.errors import ProblemError
from autotune.predicting.step import memory_limit_bytes, resolve_pool
from autotune.serving.model import PromptTimes, decode_times, prompt_times, tokens_per_step
from autotune.serving.policies import Policy, policy_of
from autotune.serving.requests import Requests
from autotune.serving.service import UNLIMITED_SLOTS, Frontend, Handover, PoolModel, ServiceModel
from autotune.serving.traffic import as_decoded, as_prefilled
from cost_models.all_to_all.registry import BY_NAME
from cost_models.dispatch import BACKENDS
from cost_models.host import HostCoefficients
from cost_models.kv_transfer import HandoverCoefficients, handover_bytes_s, link_bytes_per_s
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, prefill_memory, state_bytes
from cost_models.rows import Rows
from cost_models.serving import ServiceCoefficients, joined_kernels, prefill_kernels
from cost_models.specs.workload import Workload
from search_spaces.loader import load_engine, resolve_version

UNEVEN = 4
"""Decode steps are tabulated up to so many times a rank's even share of a closed loop."""


@dataclass(frozen=True, slots=True)
class PricedPool:
    """One pool with its documents loaded."""

    machine: Machine
    pool: Pool
    policy: Policy
    server_per_rank: bool
    """Whether the engine's version starts an API process for every DP rank; else one takes an instance's requests in."""

    @property
    def api_servers(self) -> int:
        """API processes of one instance."""
        return max(self.pool.api_servers, self.pool.dp if self.server_per_rank else 1)

    @property
    def budget_tokens(self) -> int:
        """Token budget per rank and step."""
        return self.pool.max_batched_tokens or self.policy.default_tokens

    @property
    def limit_bytes(self) -> float:
        return memory_limit_bytes(self.machine, self.pool)

    @property
    def rows(self) -> Rows:
        return pool_rows(self.pool)

    @property
    def prefill_rows(self) -> Rows:
        """The pool's prefill steps."""
        return prefill_kernels(self.rows).replace(batch=1, drafts=0, batched_tokens=self.budget_tokens)


@dataclass(frozen=True, slots=True)
class Built:
    """The pools of a deployment, priced for the lengths of its requests."""

    model: ServiceModel
    prompts: Workload
    """What a prompt token being computed looks like."""
    gpus: int
    instances: int
    """Identical aggregated engines, each with its share of the load; the model is of one."""
    engine: str
    calibration: str
    notes: tuple[str, ...]
    slots: int
    """Sequences that all pools, or one aggregated engine, decode at once: batch limits, and caches of mean length."""


def build_service(deployment: Deployment, requests: Requests) -> Built:
    """Price the pools; raises AutotuneError for unknown names and contradictions, ProblemError for too little memory."""
    engine = load_engine(deployment.engine.name)
    version = resolve_version(engine, deployment.engine.version)
    policy, per_rank = policy_of(engine.name, version), engine.api_servers_per(version) == "dp_rank"
    if not all(pool.prefix_caching for pool in deployment.pools.values()):
        policy = policy.without_prefix_cache()
    sides = {name: PricedPool(resolve_pool(deployment, pool), pool, policy, per_rank) for name, pool in deployment.pools.items()}
    apart = "serve" not in sides
    decode, prefill = (sides["decode"], sides["prefill"]) if apart else (sides["serve"], sides["serve"])
    workload, prompts = as_decoded(deployment.workload, requests), as_prefilled(deployment.workload, requests)
    if apart:
        _check_prefill_fits(prefill, prompts)
    fitting_tokens = _kv_tokens(decode, None if apart else _prefill_memory(decode, prompts), workload)
    workers = decode.pool.instances if apart else 1
    most = _most_per_rank(decode, fitting_tokens, workload, requests.in_flight, workers)
    kv_tokens = _binding(decode, fitting_tokens, requests)
    gpus = sum(side.pool.layout.gpus * side.pool.instances for side in sides.values())
    longest, cold = float(requests.isl_tokens.max()), deployment.load is not None and not deployment.load.warmed_up
    model = ServiceModel(
        policy=policy,
        decode=_decode_pool(decode, workload, prompts, kv_tokens, most, workers, longest, cold),
        prefill=_prefill_pool(prefill, prompts, longest, cold) if apart else None,
        frontend=_frontend(decode, prefill.pool.instances * prefill.api_servers if apart else decode.api_servers),
        handover=_handover(decode, prefill, prompts, gpus) if apart else Handover(),
        routers=deployment.routers,
    )
    fitting = max(int(fitting_tokens / max(workload.context_tokens, 1.0)), 1)
    return Built(
        model=model,
        prompts=prompts,
        gpus=gpus,
        instances=1 if apart else decode.pool.instances,
        engine=engine.name,
        calibration=decode.machine.calibration.id,
        notes=decode.machine.model.flags,
        slots=min(fitting, decode.pool.batch_per_dp_rank or fitting) * decode.pool.dp * workers,
    )


def _decode_pool(
    side: PricedPool, workload: Workload, prompts: Workload, kv_tokens: float, most: int, workers: int, longest: float, cold: bool
) -> PoolModel:
    """The pool that decodes; an aggregated engine's steps hold prompts as well. cold : it has served nothing yet."""
    pool, policy = side.pool, side.policy
    c = side.machine.coefficients("serving", "default", ServiceCoefficients)
    steps, cores = decode_times(side.machine, side.rows, workload, policy, most)
    streamed_s = np.arange(most + 1) * c.frontend_output_s  # an API process per rank streams what its steps return
    table = np.maximum(steps, streamed_s).tolist()
    top = max(side.budget_tokens, longest) + (most if policy.mixes else 0)
    prefill_rows = joined_kernels(side.machine, side.prefill_rows)
    prompt_s = prompt_times(side.machine, prefill_rows, prompts, policy, top, c.prefill_switch_s, cores)
    return PoolModel(
        decode_s=lambda n: table[n] if n <= most else table[most] * n / most,
        prompt_s=prompt_s,
        launch_s=_launch_s(policy, prefill_rows, prompt_s, c.prefill_switch_s),
        cut_keys=_cut_keys(side, c),
        first_cut_s=c.first_cut_s if cold else 0.0,
        workers=workers,
        ranks=pool.dp,
        slots=pool.batch_per_dp_rank or UNLIMITED_SLOTS,
        budget_tokens=float(side.budget_tokens),
        kv_tokens=kv_tokens,
        tokens_per_step=tokens_per_step(side.machine, side.rows, workload) if pool.draft_tokens else 1.0,
        look_steps=pool.admission_interval_steps if policy.polls else 1,
        keeps_freed=policy.keeps_freed and pool.prefix_caching,
        gather_steps=pool.gather_prefill_steps if policy.gathers else 0,
    )


def _prefill_pool(side: PricedPool, prompts: Workload, longest: float, cold: bool) -> PoolModel:
    """A pool that only prefills. cold : it has served nothing yet."""
    c = side.machine.coefficients("serving", "default", ServiceCoefficients)
    top = max(side.budget_tokens, longest)
    prompt_s = prompt_times(side.machine, side.prefill_rows, prompts, side.policy, top, c.prefill_switch_s, np.zeros(1))
    return PoolModel(
        decode_s=lambda _: 0.0,
        prompt_s=prompt_s,
        launch_s=_launch_s(side.policy, side.prefill_rows, prompt_s, c.prefill_switch_s),
        cut_keys=_cut_keys(side, c),
        first_cut_s=c.first_cut_s if cold else 0.0,
        workers=side.pool.instances,
        ranks=side.pool.dp,
        slots=side.pool.batch_per_dp_rank or UNLIMITED_SLOTS,
        budget_tokens=float(side.budget_tokens),
    )


def _launch_s(policy: Policy, rows: Rows, prompt_s: PromptTimes, switch_s: float) -> float:
    """How long a step of prompts keeps the engine's process: what the smallest of them takes, which its launches bound."""
    if not policy.results_wait:
        return 0.0
    if BY_NAME[BACKENDS[int(rows.backend[0])]].waits_for_counts:
        return float("inf")
    return prompt_s(1, 1, 0, 0) - switch_s


def _cut_keys(side: PricedPool, c: ServiceCoefficients) -> float:
    """What attending to latents costs over attending to expanded keys and values, of a model whose layers do either."""
    either = [ratio for kind in side.machine.model.attentions if (ratio := kind.absorbed_over_expanded) is not None]
    return either[0] * c.absorbed_slowdown if side.pool.absorbs_cut_prompts and either else 1.0


def _most_per_rank(side: PricedPool, kv_tokens: float, workload: Workload, in_flight: int, workers: int) -> int:
    """Sequences of a rank up to which decode steps are tabulated."""
    limit = side.pool.batch_per_dp_rank or UNLIMITED_SLOTS
    most = min(limit, max(int(2 * kv_tokens / max(workload.context_tokens, 1.0)), 1))
    if in_flight:
        even = -(-in_flight // (side.pool.dp * workers))
        most = min(most, in_flight, UNEVEN * even)
    return max(int(most), 1)


def _kv_tokens(side: PricedPool, prefill: Memory | None, workload: Workload) -> float:
    """Tokens that the KV cache of one rank holds, at the bytes per token of a sequence of mean context.

    An aggregated engine needs the larger of what its decode and its prefill steps need beside the KV cache.
    """
    rows = side.rows
    memory = decode_memory(side.machine, rows if prefill is None else rows.replace(batched_tokens=0), workload)
    beside = float(memory.without_kv_bytes[0])
    if prefill is not None:
        beside = max(beside, float(prefill.without_kv_bytes[0]))
    room, needed = side.limit_bytes - beside, float(memory.sequence.peak[0])
    if room < needed:
        raise ProblemError(
            f"no sequence of {workload.peak_context_tokens:,.0f} tokens fits beside the weights: its KV cache needs "
            f"{needed / 1e9:.1f} GB per GPU, {max(room, 0) / 1e9:.1f} GB of {side.limit_bytes / 1e9:.1f} GB are left; "
            "use more GPUs, a smaller precision or a higher memory_fraction"
        )
    return room / float(memory.sequence.mean[0]) * workload.context_tokens


def _binding(side: PricedPool, kv_tokens: float, requests: Requests) -> float:
    """The same, or no limit where all requests that one rank can be sent at once fit."""
    most = min(side.pool.batch_per_dp_rank or UNLIMITED_SLOTS, requests.in_flight or UNLIMITED_SLOTS)
    longest = float((requests.isl_tokens + requests.osl_tokens).max())
    return float("inf") if most * longest <= kv_tokens else kv_tokens


def _prefill_memory(side: PricedPool, prompts: Workload) -> Memory:
    return prefill_memory(side.machine, side.prefill_rows, prompts)


def _check_prefill_fits(side: PricedPool, prompts: Workload) -> None:
    needed = float(_prefill_memory(side, prompts).total_bytes[0])
    if needed > side.limit_bytes:
        raise ProblemError(
            f"the prefill pool needs {needed / 1e9:.1f} GB per GPU, {(needed - side.limit_bytes) / 1e9:.1f} GB more than "
            f"allowed; lower max_batched_tokens ({side.budget_tokens:,}) or use more GPUs per instance"
        )


def _frontend(side: PricedPool, servers: int) -> Frontend:
    """Requests enter where they are prefilled, through `servers` processes; their answers leave where they are decoded."""
    c = side.machine.coefficients("serving", "default", ServiceCoefficients)
    host = side.machine.coefficients("host", "default", HostCoefficients)
    return Frontend(
        servers=servers,
        fixed_s=c.frontend_s,
        prompt_s=c.frontend_prompt_s,
        token_s=c.frontend_token_s,
        output_s=(c.frontend_output_s or host.output_s) / max(side.pool.api_servers, side.pool.dp),
    )


def _handover(decode: PricedPool, prefill: PricedPool, prompts: Workload, gpus: int) -> Handover:
    """Both ends' links. Every GPU of a decode rank takes its shard, or a copy where the cache is not sharded; the GPUs of a
    prefill rank share the sending."""
    c = decode.machine.coefficients("kv_transfer", "default", HandoverCoefficients)
    ends = (decode.machine.hardware, prefill.machine.hardware)
    one_domain = ends[0] == ends[1] and gpus <= ends[0].scale_up.domain_gpus
    taken, sent = (link_bytes_per_s(hardware, one_domain) for hardware in ends)
    token_bytes = state_bytes(decode.machine, decode.rows, prompts.isl_tokens) / prompts.isl_tokens
    share = decode.pool.tp * decode.pool.pp / (prefill.pool.tp * prefill.pool.pp)
    return Handover(
        start_s=c.start_s,
        token_s=float(handover_bytes_s(token_bytes, taken, c)[0]),
        sent_token_s=float(handover_bytes_s(token_bytes * share, sent, c)[0]),
    )
