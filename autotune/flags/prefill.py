"""Flags of a prefill pool, priced."""

from __future__ import annotations

from autotune.flags.evaluate import Costs, FlagEvaluator
from cost_models.arrays import Floats, Ints, as_floats
from cost_models.machine import Machine
from cost_models.memory import prefill_memory
from cost_models.prefill import prefill_step
from cost_models.rows import NO_GRAPH, Rows


class PrefillFlagEvaluator(FlagEvaluator):
    """A step computes max_num_batched_tokens; there is no smaller step to fall back on when memory is short."""

    def rows_of(self, columns: dict[str, Ints]) -> Rows:
        tokens = self.column(columns, "max_num_batched_tokens", int(self.row.batched_tokens[0]))
        found = self.columns_of(columns, tokens, self.column(columns, "dbo_prefill_token_threshold", 1))
        return Rows.of(**found).replace(graph_tokens=NO_GRAPH)

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
