"""Flags of a prefill pool, priced."""

from __future__ import annotations

import numpy as np

from autotune.flags.evaluate import Costs, FlagEvaluator
from cost_models.arrays import Floats, Ints, as_floats
from cost_models.machine import Machine
from cost_models.memory import prefill_memory
from cost_models.prefill import prefill_step
from cost_models.rows import NO_GRAPH, Rows


class PrefillFlagEvaluator(FlagEvaluator):
    """A step computes max_num_batched_tokens; there is no smaller step to fall back on when memory is short."""

    row_keys = (
        "batched_tokens", "redundant_experts", "backend", "overlap", "eplb", "eplb_window_steps", "eplb_interval_steps",
        "eplb_async", "moe_chunk_tokens", "activation_chunk_rows", "offload_group_size", "offload_in_group",
        "offload_prefetch_step",
    )  # fmt: skip

    def rows_of(self, columns: dict[str, Ints]) -> Rows:
        row = self.row
        tokens = self.column(columns, "max_num_batched_tokens", int(row.batched_tokens[0]))
        group = self.column(columns, "offload_group_size", int(row.offload_group_size[0]))
        number = self.column(columns, "offload_num_in_group", int(row.offload_in_group[0]))
        ahead = self.column(columns, "offload_prefetch_step", int(row.offload_prefetch_step[0]))
        return Rows.of(
            **self.common_columns(columns, tokens, self.column(columns, "dbo_prefill_token_threshold", 1)),
            batch=row.batch[0],
            drafts=row.drafts[0],
            graph_tokens=NO_GRAPH,
            batched_tokens=tokens,
            offload_group_size=group,
            offload_in_group=np.where(group > 0, number, 1),
            offload_prefetch_step=np.where(group > 0, ahead, 1),
        )

    def cost(self, machine: Machine, rows: Rows, fraction: Floats) -> Costs:
        workload = self.resolved.problem.workload
        memory = prefill_memory(machine, rows, workload)
        room, margin = self.kv_room(memory, fraction)
        step = prefill_step(machine, rows, workload)
        short = memory.lines["kv_cache"] - room
        return Costs(step.tokens_per_s_per_gpu, step.prompt_s, as_floats(rows.batched_tokens), short, margin)

    def sized(self, rows: Rows, size: Ints) -> Rows:
        return rows.replace(batched_tokens=size)

    def step_tokens(self, rows: Rows) -> Floats:
        return as_floats(rows.batched_tokens)
