"""Price flag combinations with the cost models, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autotune.flags.space import FlagSpace, Params
from autotune.layouts.enumerate import token_limits
from autotune.problem import ResolvedProblem
from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, sequences_that_fit
from cost_models.overlap import OVERLAPS
from cost_models.rows import UNLIMITED, Rows
from cost_models.step import decode_step
from search_spaces.schema import Value

CONSTRAINTS = (
    "memory_fits",
    "memory_fraction_leaves_margin",
    "tpot_limit",
    "batched_tokens_cover_batch",
    "kernel_token_limit",
    "dbo_needs_deepep",
    "one_overlap",
    "redundant_experts_need_eplb",
    "redundant_experts_divide",
    "window_within_interval",
    "required_concurrency",
    "required_throughput",
)
"""Names shown to people; a value above 0 violates."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Objective and constraints of combinations, (n,) each."""

    score: Floats
    """Larger is better: tokens/s/GPU, tokens/s or -TPOT by the problem's objective."""
    tokens_per_s_per_gpu: Floats
    tpot_s: Floats
    batch: Ints
    """Sequences per DP rank that really run: at most max_num_seqs and what the KV cache holds."""
    constraints: dict[str, Floats]

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Combinations that violate nothing."""
        return np.asarray(np.all([values <= 1e-9 for values in self.constraints.values()], axis=0), dtype=np.bool_)

    def best(self) -> int | None:
        """Position of the best feasible combination."""
        if not self.feasible.any():
            return None
        return int(np.argmax(np.where(self.feasible, self.score, -np.inf)))


class FlagEvaluator:
    """Evaluates index columns of a FlagSpace for one layout; stateless apart from its inputs."""

    def __init__(self, resolved: ResolvedProblem, row: Rows, space: FlagSpace, instances: int) -> None:
        self.resolved = resolved
        self.row = row
        self.space = space
        self.instances = instances

    def evaluate(self, columns: dict[str, Ints]) -> Evaluation:
        """Combinations given as index columns; equal effective rows are costed once."""
        rows, fp8_kv = self._rows(columns)
        fraction = self._column(columns, "gpu_memory_fraction", self.resolved.problem.memory_fraction)
        first, inverse = distinct_rows(*(getattr(rows, name) for name in ROW_KEYS), fp8_kv, fraction)
        cost = self._cost(rows.take(first), fp8_kv[first], fraction[first])
        gathered = {name: values[inverse] for name, values in cost.items()}
        return self._evaluation(rows, columns, gathered)

    def one(self, params: Params) -> Evaluation:
        """A single combination."""
        return self.evaluate(self._indices(params))

    def effective_row(self, params: Params) -> Rows:
        """The candidate row that a combination amounts to, with its effective batch."""
        columns = self._indices(params)
        rows, _ = self._rows(columns)
        return rows.replace(batch=self.evaluate(columns).batch)

    def _indices(self, params: Params) -> dict[str, Ints]:
        return {name: np.array([values.index(params[name])]) for name, values in self.space.values.items()}

    def _column(self, columns: dict[str, Ints], name: str, fallback: float | int | bool) -> Floats:
        """Numeric values of a knob; the fallback where the space lacks it."""
        size = len(next(iter(columns.values())))
        if name not in self.space.values:
            return np.full(size, float(fallback))
        return as_floats([float(v) for v in self.space.values[name]])[columns[name]]

    def _rows(self, columns: dict[str, Ints]) -> tuple[Rows, NDArray[np.bool_]]:
        """Combinations as candidate rows (batch as asked for), and whether the KV cache is FP8."""
        row, size = self.row, len(next(iter(columns.values())))
        drafts = self._column(columns, "draft_tokens", int(row.drafts[0]))
        batch = self._column(columns, "max_num_seqs", int(row.batch[0]))
        tokens = np.ceil(batch / row.pp[0]) * (1 + drafts)
        backend = self._backend_codes(columns, size)
        low_latency = backend == BACKENDS.index("deepep_low_latency")
        threshold = self._column(columns, "dbo_decode_token_threshold", 1)
        two = (self._column(columns, "enable_dbo", False) > 0) & (tokens >= threshold)
        single = self._column(columns, "enable_sbo", False) > 0
        overlap = np.where(two, OVERLAPS.index("two_batch"), np.where(single, OVERLAPS.index("single_batch"), 0))
        overlap = np.where(np.isin(backend, DEEPEP_CODES), overlap, 0)
        eplb = self._column(columns, "enable_eplb", False) > 0
        interval = np.where(eplb, self._column(columns, "eplb_interval_steps", 3000), 0)
        window = np.where(eplb, self._column(columns, "eplb_window_steps", 1000), 1000)
        chunked = (self._column(columns, "enable_moe_dp_chunk", "moe_dp_chunk_tokens" in self.space.values) > 0) & low_latency
        looped = self._column(columns, "enable_activation_chunk", False) > 0
        servers = api_servers(self.resolved, self.row)
        has_api = "output_proc_chunk" in self.space.values
        rows = Rows.of(
            tp=row.tp[0],
            dp=row.dp[0],
            ep=row.ep[0],
            pp=row.pp[0],
            batch=batch,
            drafts=drafts,
            redundant_experts=self._column(columns, "redundant_experts", int(row.redundant_experts[0])),
            backend=backend,
            overlap=overlap,
            eplb=eplb,
            eplb_window_steps=window,
            eplb_interval_steps=interval,
            moe_chunk_tokens=np.where(chunked, self._column(columns, "moe_dp_chunk_tokens", 0), 0),
            activation_chunk_rows=np.where(looped, self._column(columns, "activation_chunk_rows", 0), 0),
            graph_tokens=np.where(
                backend == BACKENDS.index("deepep_normal"), 0, self._column(columns, "cudagraph_max_tokens", UNLIMITED)
            ),
            batched_tokens=self._column(columns, "max_num_batched_tokens", 0),
            output_chunk=self._column(columns, "output_proc_chunk", UNLIMITED),
            api_outputs=np.ceil(batch * row.dp[0] / servers) if has_api else np.zeros(size),
        )
        return rows, self._kv_is_fp8(columns, size)

    def _backend_codes(self, columns: dict[str, Ints], size: int) -> Ints:
        if "all2all_backend" not in self.space.values:
            return np.full(size, int(self.row.backend[0]), dtype=np.int64)
        model = {c.value: BACKENDS.index(c.model) for c in self.resolved.engine.backend_choices(self.resolved.version)}
        codes = np.array([model[str(v)] for v in self.space.values["all2all_backend"]], dtype=np.int64)
        return codes[columns["all2all_backend"]]

    def _kv_is_fp8(self, columns: dict[str, Ints], size: int) -> NDArray[np.bool_]:
        if "kv_cache_dtype" not in self.space.values:
            return np.full(size, self.resolved.machine.recipe.kv_cache == "fp8")
        return np.array([kv_dtype(v) == "fp8" for v in self.space.values["kv_cache_dtype"]])[columns["kv_cache_dtype"]]

    def machine(self, fp8_kv: bool) -> Machine:
        """The machine with the KV dtype that the flag gives."""
        base = self.resolved.machine
        return Machine(base.model, base.hardware, base.recipe.with_kv_cache("fp8" if fp8_kv else "bf16"), base.calibration)

    def _cost(self, rows: Rows, fp8_kv: NDArray[np.bool_], fraction: Floats) -> dict[str, Floats]:
        """Effective batch, step and memory of distinct rows, per KV dtype."""
        names = ("rate", "tpot", "batch", "short_bytes", "margin_bytes")
        result = {name: np.zeros(len(rows)) for name in names}
        workload = self.resolved.problem.workload
        for kind in np.unique(fp8_kv):
            mask = fp8_kv == kind
            machine, part = self.machine(bool(kind)), rows.take(mask)
            memory = decode_memory(machine, part, workload)
            room, margin = self._kv_room(memory, fraction[mask])
            batch = np.minimum(part.batch, sequences_that_fit(room / memory.kv_bytes_per_token, workload))
            running = part.replace(batch=np.maximum(batch, 1), api_outputs=part.api_outputs * np.maximum(batch, 1) // part.batch)
            step = decode_step(machine, running, workload.context_tokens, workload.mtp_acceptance)
            values = (step.tokens_per_s_per_gpu, step.tpot_s, np.maximum(batch, 1), np.where(batch < 1, 1 - room, -1.0), margin)
            for name, value in zip(names, values, strict=True):
                result[name][mask] = value
        return result

    def _kv_room(self, memory: Memory, fraction: Floats) -> tuple[Floats, Floats]:
        """KV bytes that the fraction leaves, and by how much the plan exceeds the safety margin."""
        visible = self.resolved.hardware.gpu.hbm_visible_bytes.value
        weights = sum(line for name, line in memory.lines.items() if name.endswith("weights"))
        rest = memory.without_kv_bytes - weights
        if self.resolved.engine.memory_fraction_covers == "everything":
            return fraction * visible - memory.without_kv_bytes, fraction * visible - self.resolved.memory_limit_bytes
        return fraction * visible - weights, fraction * visible + rest - self.resolved.memory_limit_bytes

    def _evaluation(self, rows: Rows, columns: dict[str, Ints], cost: dict[str, Floats]) -> Evaluation:
        problem = self.resolved.problem
        batch = cost["batch"].astype(np.int64)
        tokens = np.ceil(rows.batch / rows.pp) * (1 + rows.drafts)
        dbo = self._column(columns, "enable_dbo", False) > 0
        sbo = self._column(columns, "enable_sbo", False) > 0
        off_deepep = ~np.isin(rows.backend, DEEPEP_CODES)
        budget = np.where(rows.batched_tokens > 0, rows.batched_tokens, tokens)
        per_call = np.where(rows.moe_chunk_tokens > 0, np.minimum(rows.moe_chunk_tokens, tokens), tokens)
        experts = self.resolved.model.moe.experts if self.resolved.model.moe else 0
        rate = cost["rate"] * self.row.gpus[0] * self.instances
        constraints = {
            "memory_fits": cost["short_bytes"] / 1e9,
            "memory_fraction_leaves_margin": cost["margin_bytes"] / 1e9,
            "tpot_limit": cost["tpot"] / problem.tpot_limit_s - 1,
            "batched_tokens_cover_batch": (tokens - budget) / tokens,
            "kernel_token_limit": per_call / token_limits(self.resolved)[rows.backend] - 1,
            "dbo_needs_deepep": ((dbo | sbo) & off_deepep).astype(float),
            "one_overlap": (dbo & sbo).astype(float),
            "redundant_experts_need_eplb": ((rows.redundant_experts > 0) & (rows.eplb == 0)).astype(float),
            "redundant_experts_divide": ((experts + rows.redundant_experts) % rows.ep).astype(float),
            "window_within_interval": np.where(rows.eplb > 0, rows.eplb_window_steps - rows.eplb_interval_steps, 0).astype(float),
            "required_concurrency": problem.min_concurrency - batch * rows.dp * float(self.instances),
            "required_throughput": problem.min_tokens_per_s - rate,
        }
        scores = {"tokens_per_s_per_gpu": cost["rate"], "tokens_per_s": cost["rate"], "tpot": -cost["tpot"]}
        return Evaluation(scores[problem.objective], cost["rate"], cost["tpot"], batch, constraints)


DEEPEP_CODES = (BACKENDS.index("deepep_low_latency"), BACKENDS.index("deepep_normal"))

ROW_KEYS = (
    "batch", "drafts", "redundant_experts", "backend", "overlap", "eplb", "eplb_window_steps", "eplb_interval_steps",
    "moe_chunk_tokens", "activation_chunk_rows", "graph_tokens", "batched_tokens", "output_chunk",
)  # fmt: skip
"""Columns in which combinations of one layout can differ."""


def kv_dtype(flag: Value) -> Literal["fp8", "bf16"]:
    """dtype that a KV-cache flag gives: `auto` keeps the model's (BF16), whatever the recipe would like."""
    return "fp8" if str(flag).startswith("fp8") else "bf16"


def api_servers(resolved: ResolvedProblem, row: Rows) -> int:
    """API processes of one instance as its engine version starts them: one per DP rank, or one per node."""
    ranks = int(row.dp[0])
    if resolved.engine.api_servers_per(resolved.version) == "dp_rank":
        return ranks
    nodes = -(-int(row.gpus[0]) // resolved.hardware.gpus_per_node)
    return min(ranks, nodes)
