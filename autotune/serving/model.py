"""Pools of a service deployment -> the step times that a replay asks for, from the step cost models."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from autotune.serving.policies import Policy
from cost_models.arrays import Floats, as_floats, distinct_values
from cost_models.machine import Machine
from cost_models.prefill import prefill_step, prompt_batch
from cost_models.rows import Rows
from cost_models.serving import core_s, prefill_kernels, prompt_step
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

GRID = 28
"""Sizes priced of each curve, geometric; steps are smooth in batch and tokens."""
TOKENS = 16
"""Prompt steps are tabulated by so many tokens."""


def decode_times(machine: Machine, row: Rows, workload: Workload, policy: Policy, most: int) -> tuple[Floats, Floats]:
    """(step, attention core) of a step that only decodes, by sequences per rank: (most + 1,) each [s].

    All but the attention runs on the next captured batch. Entry 0, a rank without a sequence, is as entry 1.
    """
    batch = distinct_values(np.rint(np.geomspace(1, max(policy.padded(most), 2), GRID))).astype(np.int64)
    cost = decode_step(machine, row.replace(batch=batch), workload.context_tokens, workload.mtp_acceptance)
    core = core_s(cost.operators, len(batch))
    counts = np.maximum(np.arange(most + 1), 1)
    padded = np.array([policy.padded(int(n)) for n in counts])
    own = np.interp(padded, batch, cost.step_s - core)
    cores = np.interp(counts, batch, core)
    return as_floats(own + cores), as_floats(cores)


def tokens_per_step(machine: Machine, row: Rows, workload: Workload) -> float:
    """What a running sequence gains in a step: one, and the drafts that are accepted."""
    cost = decode_step(machine, row.replace(batch=1), workload.context_tokens, workload.mtp_acceptance)
    return float(cost.accepted_tokens[0])


PromptTimes = Callable[[float, float, float, int], float]


def prompt_times(
    machine: Machine, row: Rows, workload: Workload, policy: Policy, most_tokens: float, switch_s: float, cores: Floats
) -> PromptTimes:
    """Time of a step that holds prompts, see `PoolModel.prompt_s`.

    most_tokens : of a rank in a step; longer steps follow the last segment. switch_s : what every such step costs on top.
    cores : attention of decoding sequences by their number, (n,) [s].
    """
    top = max(most_tokens, workload.isl_tokens, 2 * TOKENS)
    prompt = max(math.ceil(workload.isl_tokens * (1 - workload.prefix_cache_hit_rate)), 1)
    budgets = distinct_values(np.rint([*np.geomspace(TOKENS, top, GRID), prompt])).astype(np.int64)
    captured = policy.captured(machine.model.architecture)
    rows = prefill_kernels(row).replace(batch=1, batched_tokens=budgets, graph_tokens=captured, moe_chunk_tokens=0)
    sizes, first = np.unique(prompt_batch(rows, workload).tokens, return_index=True)  # budgets below a prompt are cut evenly
    parts = prompt_step(prefill_step(machine, rows.take(first), workload))
    at = np.arange(0, math.ceil(top / TOKENS) + 1) * TOKENS
    own, shared, gaps = (np.interp(at, sizes, y).tolist() for y in (parts.own_s, parts.shared_s, parts.gaps_s))
    cached = workload.isl_tokens * workload.prefix_cache_hit_rate
    keys_each = cached + max(workload.isl_tokens - cached, 1.0) / 2
    per_key = np.interp(at, sizes, parts.core_s / (sizes * keys_each)).tolist()
    decoding, last = cores.tolist(), len(at) - 1

    def time_s(busiest: float, mean: float, keys: float, decodes: int) -> float:
        """Beyond the tables in proportion."""
        i, j = math.ceil(busiest / TOKENS), math.ceil(mean / TOKENS)
        beyond = max(i / last, 1.0)
        i, j = min(i, last), min(j, last)
        whole = (own[i] + shared[j]) * beyond + per_key[i] * keys + switch_s
        core = decoding[min(decodes, len(decoding) - 1)] if decodes else 0.0
        return whole + (core - gaps[i] if core > gaps[i] else 0.0)

    return time_s
