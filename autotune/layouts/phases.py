"""The phases that a pool can run: what a step grows with, what it costs and what memory it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cost_models.arrays import Floats, Ints, as_floats, distinct_values
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, prefill_memory
from cost_models.prefill import prefill_step
from cost_models.rows import NO_GRAPH, Rows
from cost_models.serving import (
    ServiceCoefficients,
    core_s,
    interrupted_step_s,
    joined_kernels,
    joined_s,
    prefill_kernels,
    prompt_step,
)
from cost_models.specs.workload import Workload
from cost_models.step import StepCost, decode_step

STEPS_PER_OCTAVE = 4
FIXED_POINT_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What selection sees of a step, (rows,) each."""

    latency_s: Floats
    """Decode: time per output token. Prefill: all steps of one prompt when nothing waits."""
    tokens_per_s_per_gpu: Floats


@dataclass(frozen=True, slots=True)
class PhaseModel:
    """One phase of inference as layout selection sees it."""

    name: Literal["decode", "prefill", "serve"]
    size: str
    """Column of the candidate rows that a step grows with."""
    unit: str
    latency: str
    """What its latency is called; a prefill pool's TTFT is that of one prompt when nothing waits."""
    grid: Ints
    """Sizes tried for every layout."""
    largest: int
    multiple: int
    """Sizes are whole multiples of it: a token budget is whole KV pages."""
    cost: Callable[[Machine, Rows, Workload], PhaseCost]
    memory: Callable[[Machine, Rows, Workload], Memory]

    def sized(self, rows: Rows, size: Ints) -> Rows:
        """The same rows with another step size."""
        return rows.replace(**{self.size: size})

    def whole(self, size: Ints) -> Ints:
        """The largest multiple below a size, at least one."""
        return np.asarray(np.maximum(size // self.multiple, 1) * self.multiple, dtype=np.int64)

    def size_of(self, rows: Rows) -> Ints:
        sizes: Ints = getattr(rows, self.size)
        return sizes

    def kernel_size(self, rows: Rows, token_limit: Ints) -> Ints:
        """Largest step of each row whose tokens an all-to-all kernel with that limit accepts, at least 1."""
        limit = token_limit if self.name == "prefill" else token_limit // (1 + rows.drafts) * rows.pp
        return np.asarray(np.maximum(limit, 1), dtype=np.int64)


def geometric_grid(smallest: int, largest: int, multiple: int) -> Ints:
    """Four sizes per octave, rounded to multiples from twice the multiple on."""
    raw = smallest * 2 ** np.arange(0, np.log2(largest / smallest) + 1e-9, 1 / STEPS_PER_OCTAVE)
    stepped = np.where(raw >= 2 * multiple, np.round(raw / multiple) * multiple, np.round(raw))
    return distinct_values(stepped.astype(np.int64))


def _decode_cost(machine: Machine, rows: Rows, workload: Workload) -> PhaseCost:
    step = decode_step(machine, rows, workload.context_tokens, workload.mtp_acceptance)
    return PhaseCost(step.tpot_s, step.tokens_per_s_per_gpu)


def _prefill_cost(machine: Machine, rows: Rows, workload: Workload) -> PhaseCost:
    step = prefill_step(machine, rows, workload)
    return PhaseCost(step.prompt_s, step.tokens_per_s_per_gpu)


def _aggregated_cost(machine: Machine, rows: Rows, workload: Workload) -> PhaseCost:
    """A full aggregated engine: N sequences finish N / (osl x TPOT) answers a second, and as many prompts take their places.

    TPOT is the fixed point of that rate and of what prefill steps at that rate add to decode steps.
    """
    decode = decode_step(machine, rows, workload.context_tokens, workload.mtp_acceptance)
    sequences = rows.batch * rows.dp
    per_step = sequences / workload.osl_tokens
    extra_s = prompts_add_s(machine, rows, workload, per_step, decode)
    tpot_s = decode.tpot_s + extra_s
    for _ in range(FIXED_POINT_ROUNDS):
        found = interrupted_step_s(decode.tpot_s, extra_s, per_step / tpot_s, decode.tpot_s)
        tpot_s = (tpot_s + found) / 2
    return PhaseCost(tpot_s, as_floats(sequences / tpot_s / rows.gpus))


def prompts_add_s(machine: Machine, rows: Rows, workload: Workload, prompts: Floats, decode: StepCost) -> Floats:
    """What the prompts of one engine step add to the decode step that they join or delay, (rows,) each [s].

    prompts : that come per decode step; a step takes at least one. The busiest attention-DP rank holds whole prompts;
    MoE layers follow the mean of the ranks. Where prompts join decode steps, its tokens share their budget.
    """
    c = machine.coefficients("serving", "default", ServiceCoefficients)
    prompt = max(workload.isl_tokens * (1 - workload.prefix_cache_hit_rate), 1.0)
    beside = np.where(c.mixed > 0, rows.batch, 0)
    budget = np.maximum(rows.batched_tokens - beside, prompt)
    batch = prompts / -np.expm1(-prompts)
    busiest = np.ceil(batch / rows.dp) * prompt
    steps = np.maximum(busiest / budget, 1.0)
    as_prefill = joined_kernels(machine, prefill_rows(rows))
    own, shared = (
        prompt_step(prefill_step(machine, as_prefill.replace(batched_tokens=_tokens(t / steps + beside)), workload))
        for t in (busiest, batch * prompt / rows.dp)
    )
    core = own.core_s * (busiest / steps) / (busiest / steps + beside)
    whole_s = own.own_s + core + shared.shared_s + c.prefill_switch_s
    together_s = joined_s(whole_s, own.gaps_s, core_s(decode.operators, len(rows))) - decode.step_s
    gaining = 1 - np.minimum(batch / rows.dp, 1.0)  # ranks without prompts decode on beside a step of prompts
    apart_s = whole_s - gaining * decode.step_s
    return as_floats(np.maximum(np.where(c.mixed > 0, together_s, apart_s), 0.0) * steps / decode.accepted_tokens)


def _tokens(tokens: Floats) -> Ints:
    return np.asarray(np.maximum(tokens, 1.0), dtype=np.int64)


def prefill_rows(rows: Rows) -> Rows:
    """Rows as they prefill: eagerly and without drafts."""
    prefilling = prefill_kernels(rows)
    return prefilling.replace(batch=1, drafts=0, graph_tokens=NO_GRAPH, moe_chunk_tokens=0)


def _aggregated_memory(machine: Machine, rows: Rows, workload: Workload) -> Memory:
    """The larger of what decode and prefill steps need, and the KV cache of the decode batch."""
    decode = decode_memory(machine, rows.replace(batched_tokens=0), workload)
    prefill = prefill_memory(machine, prefill_rows(rows), workload)
    names = [name for name in decode.lines if name != "kv_cache"]
    needs_more = prefill.without_kv_bytes > decode.without_kv_bytes
    lines = {name: np.where(needs_more, prefill.lines[name], decode.lines[name]) for name in names}
    return Memory({**lines, "kv_cache": decode.lines["kv_cache"]}, decode.sequence)


DECODE = PhaseModel(
    name="decode",
    size="batch",
    unit="sequences per DP rank",
    latency="TPOT",
    grid=geometric_grid(1, 8192, 8),
    largest=2**14,
    multiple=1,
    cost=_decode_cost,
    memory=decode_memory,
)
PREFILL = PhaseModel(
    name="prefill",
    size="batched_tokens",
    unit="tokens per DP rank and step",
    latency="TTFT",
    grid=geometric_grid(512, 131_072, 64),
    largest=2**18,
    multiple=64,
    cost=_prefill_cost,
    memory=prefill_memory,
)
AGGREGATED = PhaseModel(
    name="serve",
    size="batch",
    unit="sequences per DP rank",
    latency="TPOT",
    grid=geometric_grid(1, 8192, 8),
    largest=2**14,
    multiple=1,
    cost=_aggregated_cost,
    memory=_aggregated_memory,
)
PHASES = {phase.name: phase for phase in (DECODE, PREFILL, AGGREGATED)}
