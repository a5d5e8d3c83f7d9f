"""Flags of a decode pool, priced."""

from __future__ import annotations

import numpy as np

from autotune.flags.evaluate import Costs, FlagEvaluator
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Floats, Ints, as_floats
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.memory import decode_memory
from cost_models.rows import UNLIMITED, Rows
from cost_models.step import decode_step


class DecodeFlagEvaluator(FlagEvaluator):
    """The batch is what max_num_seqs asks for, or what the KV cache holds."""

    def rows_of(self, columns: dict[str, Ints]) -> Rows:
        row = self.row
        drafts = self.column(columns, "draft_tokens", int(row.drafts[0]))
        tokens = np.ceil(self.column(columns, "max_num_seqs", int(row.batch[0])) / row.pp[0]) * (1 + drafts)
        found = self.columns_of(columns, tokens, self.column(columns, "dbo_decode_token_threshold", 1))
        graph = self.column(columns, "cudagraph_max_tokens", UNLIMITED)
        return Rows.of(**found).replace(
            graph_tokens=np.where(found["backend"] == BACKENDS.index("deepep_normal"), 0, graph),
            batched_tokens=self.column(columns, "max_num_batched_tokens", 0),
            api_servers=api_servers(self.resolved, row) if "output_proc_chunk" in self.space.values else 0,
        )

    def cost(self, machine: Machine, rows: Rows, fraction: Floats) -> Costs:
        workload = self.resolved.problem.workload
        memory = decode_memory(machine, rows, workload)
        room, margin = self.kv_room(memory, fraction)
        batch = np.minimum(rows.batch, memory.sequence.fitting(room))
        running = np.maximum(batch, 1)
        step = decode_step(machine, rows.replace(batch=running), workload.context_tokens, workload.mtp_acceptance)
        return Costs(step.tokens_per_s_per_gpu, step.tpot_s, as_floats(running), np.where(batch < 1, 1 - room, -1.0), margin)

    def sized(self, rows: Rows, size: Ints) -> Rows:
        return rows.replace(batch=size)

    def step_tokens(self, rows: Rows) -> Floats:
        return as_floats(np.ceil(rows.batch / rows.pp) * (1 + rows.drafts))

    def own_constraints(self, rows: Rows, size: Ints) -> dict[str, Floats]:
        tokens = self.step_tokens(rows)
        budget = np.where(rows.batched_tokens > 0, rows.batched_tokens, tokens)
        return {
            "batched_tokens_cover_batch": (tokens - budget) / tokens,
            "required_concurrency": as_floats(self.resolved.problem.min_concurrency - size * rows.dp * float(self.instances)),
        }


def api_servers(resolved: ResolvedProblem, row: Rows) -> int:
    """API processes of one instance as its engine version starts them."""
    nodes = -(-int(row.gpus[0]) // resolved.hardware.gpus_per_node)
    return resolved.engine.api_servers(resolved.version, int(row.dp[0]), nodes)
