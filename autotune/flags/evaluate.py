"""Price flag combinations with the cost models, all at once: what both phases share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autotune.documents.knobs import COLUMNS, flag_columns
from autotune.flags.space import FlagSpace, Params
from autotune.layouts.enumerate import rule_subject, token_limits
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Floats, Ints, as_floats, distinct_rows, distinct_values
from cost_models.dispatch import BACKENDS
from cost_models.machine import Machine
from cost_models.memory import Memory
from cost_models.overlap import OVERLAPS
from cost_models.rows import Rows
from search_spaces.rules import RULES, legal
from search_spaces.schema import Value

CONSTRAINTS = (
    "memory_fits",
    "memory_fraction_leaves_margin",
    "latency_limit",
    "kernel_token_limit",
    "chunk_buffers_hold_tokens",
    "dbo_needs_deepep",
    "one_overlap",
    "redundant_experts_need_eplb",
    "redundant_experts_divide",
    "engine_rules",
    "window_within_interval",
    "required_throughput",
)
"""Names shown to people, beside those of a phase alone; a value above 0 violates."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Objective and constraints of combinations, (n,) each."""

    score: Floats
    """Larger is better: tokens/s/GPU, tokens/s or minus the latency by the problem's objective."""
    tokens_per_s_per_gpu: Floats
    latency_s: Floats
    """Time per output token, or of one prompt."""
    size: Ints
    """Sequences (decode) or tokens (prefill) per DP rank that really run: what was asked for, or what the memory holds."""
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


@dataclass(frozen=True, slots=True)
class Costs:
    """What the cost models say of rows as they would run, (n,) each."""

    rate: Floats
    """tokens/s/GPU."""
    latency_s: Floats
    size: Floats
    short_bytes: Floats
    """Memory missing for the least that could run; negative when it runs."""
    margin_bytes: Floats
    """By how much the plan exceeds the safety margin."""


class FlagEvaluator(ABC):
    """Evaluates index columns of a FlagSpace for one layout; stateless apart from its inputs."""

    def __init__(self, resolved: ResolvedProblem, row: Rows, space: FlagSpace, instances: int) -> None:
        self.resolved = resolved
        self.row = row
        self.space = space
        self.instances = instances

    @abstractmethod
    def rows_of(self, columns: dict[str, Ints]) -> Rows:
        """Combinations as candidate rows, with the step size as asked for."""

    @abstractmethod
    def cost(self, machine: Machine, rows: Rows, fraction: Floats) -> Costs:
        """Rows of one KV dtype, as they would run in the memory that the fraction leaves."""

    @abstractmethod
    def sized(self, rows: Rows, size: Ints) -> Rows:
        """Rows with the step size that really runs."""

    def own_constraints(self, rows: Rows, size: Ints) -> dict[str, Floats]:  # noqa: ARG002
        """Constraints of the phase alone."""
        return {}

    def evaluate(self, columns: dict[str, Ints]) -> Evaluation:
        """Combinations given as index columns; equal effective rows are costed once."""
        rows = self._rows(columns)
        fp8_kv = self._kv_is_fp8(columns)
        fraction = self.column(columns, "gpu_memory_fraction", self.resolved.memory_fraction)
        first, inverse = distinct_rows(*(getattr(rows, c.name) for c in flag_columns(self.resolved.phase)), fp8_kv, fraction)
        cost = self._costs(rows.take(first), fp8_kv[first], fraction[first])
        gathered = Costs(*(getattr(cost, name)[inverse] for name in Costs.__slots__))
        taken = legal(RULES, rule_subject(self.resolved, rows.take(first)))[inverse]
        return self._evaluation(rows, columns, gathered, taken)

    def _rows(self, columns: dict[str, Ints]) -> Rows:
        rows = self.rows_of(columns)
        skew = self.resolved.skew
        return rows if skew is None else rows.replace(skew=skew.of_rows(rows))

    def one(self, params: Params) -> Evaluation:
        """A single combination."""
        return self.evaluate(self._indices(params))

    def effective_row(self, params: Params, size: int | None = None) -> Rows:
        """The candidate row that a combination amounts to, with its effective step size.

        size : that of an evaluation of it, where there is one already.
        """
        columns = self._indices(params)
        return self.sized(self._rows(columns), self.evaluate(columns).size if size is None else np.array([size]))

    def _indices(self, params: Params) -> dict[str, Ints]:
        return {name: np.array([values.index(params[name])]) for name, values in self.space.values.items()}

    def column(self, columns: dict[str, Ints], name: str, fallback: float | int | bool) -> Floats:
        """Numeric values of a knob; the fallback where the space lacks it."""
        if name not in self.space.values:
            return np.full(combinations(columns), float(fallback))
        return as_floats([float(v) for v in self.space.values[name]])[columns[name]]

    def columns_of(self, columns: dict[str, Ints], tokens: Floats, threshold: Floats) -> dict[str, ArrayLike]:
        """Every candidate column as the knobs set it, and as the layout has it where none does.

        tokens : per DP rank and step; threshold : from which two-batch overlap splits. A knob counts where those that switch it
        are on.
        """
        own = {column.name: float(getattr(self.row, column.name)[0]) for column in COLUMNS}
        found: dict[str, ArrayLike] = dict(own)
        for column in flag_columns(self.resolved.phase):
            knob, *switches = column.knobs
            if column.codec.named:
                continue
            value = self.column(columns, knob, own[column.name])
            on = [self.column(columns, switch, own.get(switch, 0.0)) > 0 for switch in switches]
            found[column.name] = np.where(np.all(on, axis=0), value, column.default) if on else value
        backend = self._backend_codes(columns)
        chunked = self._chunking(columns) & np.isin(backend, self._chunked_backends())
        return found | {
            "backend": backend,
            "overlap": self._overlap_codes(columns, backend, tokens >= threshold),
            "eplb_interval_steps": 0 if self.resolved.loads_map else found["eplb_interval_steps"],
            "moe_chunk_tokens": np.where(chunked, self.column(columns, "moe_dp_chunk_tokens", 0), 0),
        }

    def _overlap_codes(self, columns: dict[str, Ints], backend: Ints, splits: NDArray[np.bool_]) -> Ints:
        """Overlap that really runs: on DeepEP only, and two batches only where the step is large enough to split."""
        two = (self.column(columns, "enable_dbo", False) > 0) & splits
        single = self.column(columns, "enable_sbo", False) > 0
        overlap = np.where(two, OVERLAPS.index("two_batch"), np.where(single, OVERLAPS.index("single_batch"), 0))
        return np.where(np.isin(backend, DEEPEP_CODES), overlap, 0)

    def _chunking(self, columns: dict[str, Ints]) -> NDArray[np.bool_]:
        """Whether MoE DP chunking is on; a version without the switch always chunks."""
        return self.column(columns, "enable_moe_dp_chunk", "moe_dp_chunk_tokens" in self.space.values) > 0

    def _chunked_backends(self) -> list[int]:
        """Codes of the backends that MoE DP chunking applies to."""
        version = self.resolved.version
        choices = self.resolved.engine.backend_choices(version)
        return [BACKENDS.index(c.model_in(self.resolved.phase)) for c in choices if c.chunked_in(version)]

    def _backend_codes(self, columns: dict[str, Ints]) -> Ints:
        if "all2all_backend" not in self.space.values:
            return np.full(combinations(columns), int(self.row.backend[0]), dtype=np.int64)
        choices = self.resolved.engine.backend_choices(self.resolved.version)
        model = {c.value: BACKENDS.index(c.model_in(self.resolved.phase)) for c in choices}
        codes = np.array([model[str(v)] for v in self.space.values["all2all_backend"]], dtype=np.int64)
        return codes[columns["all2all_backend"]]

    def _kv_is_fp8(self, columns: dict[str, Ints]) -> NDArray[np.bool_]:
        if "kv_cache_dtype" not in self.space.values:
            return np.full(combinations(columns), self.resolved.machine.recipe.kv_cache == "fp8")
        return np.array([kv_dtype(v) == "fp8" for v in self.space.values["kv_cache_dtype"]])[columns["kv_cache_dtype"]]

    def machine(self, fp8_kv: bool) -> Machine:
        """The machine with the KV dtype that the flag gives."""
        base = self.resolved.machine
        return dataclasses.replace(base, recipe=base.recipe.with_kv_cache("fp8" if fp8_kv else "bf16"))

    def _costs(self, rows: Rows, fp8_kv: NDArray[np.bool_], fraction: Floats) -> Costs:
        """Distinct rows, per KV dtype."""
        result = {name: np.zeros(len(rows)) for name in Costs.__slots__}
        for kind in distinct_values(fp8_kv):
            mask = fp8_kv == kind
            part = self.cost(self.machine(bool(kind)), rows.take(mask), fraction[mask])
            for name, values in result.items():
                values[mask] = getattr(part, name)
        return Costs(**result)

    def kv_room(self, memory: Memory, fraction: Floats) -> tuple[Floats, Floats]:
        """KV bytes that the fraction leaves, and by how much the plan exceeds the safety margin."""
        visible = self.resolved.hardware.gpu.hbm_visible_bytes.value
        weights = sum(line for name, line in memory.lines.items() if name.endswith("weights"))
        rest = memory.without_kv_bytes - weights
        if self.resolved.engine.memory_fraction_covers == "everything":
            return fraction * visible - memory.without_kv_bytes, fraction * visible - self.resolved.memory_limit_bytes
        return fraction * visible - weights, fraction * visible + rest - self.resolved.memory_limit_bytes

    def _evaluation(self, rows: Rows, columns: dict[str, Ints], cost: Costs, taken: NDArray[np.bool_]) -> Evaluation:
        """taken : combinations that the engine's rules admit."""
        problem = self.resolved.problem
        size = cost.size.astype(np.int64)
        dbo = self.column(columns, "enable_dbo", False) > 0
        sbo = self.column(columns, "enable_sbo", False) > 0
        off_deepep = ~np.isin(rows.backend, DEEPEP_CODES)
        tokens = self.step_tokens(rows)
        per_call = np.where(rows.moe_chunk_tokens > 0, np.minimum(rows.moe_chunk_tokens, tokens), tokens)
        experts = self.resolved.model.moe.experts if self.resolved.model.moe else 0
        rate = cost.rate * self.row.gpus[0] * self.instances
        constraints = {
            "memory_fits": cost.short_bytes / 1e9,
            "memory_fraction_leaves_margin": cost.margin_bytes / 1e9,
            "latency_limit": cost.latency_s / self.resolved.latency_limit_s - 1,
            "kernel_token_limit": per_call / token_limits(self.resolved)[rows.backend] - 1,
            "chunk_buffers_hold_tokens": self._buffer_shortage(rows, columns, tokens),
            "dbo_needs_deepep": ((dbo | sbo) & off_deepep).astype(float),
            "one_overlap": (dbo & sbo).astype(float),
            "redundant_experts_need_eplb": ((rows.redundant_experts > 0) & (rows.eplb == 0)).astype(float),
            "redundant_experts_divide": ((experts + rows.redundant_experts) % rows.ep).astype(float),
            "engine_rules": (~taken).astype(float),
            "window_within_interval": np.where(
                rows.eplb_interval_steps > 0, rows.eplb_window_steps - rows.eplb_interval_steps, 0
            ).astype(float),
            "required_throughput": problem.min_tokens_per_s - rate,
            **self.own_constraints(rows, size),
        }
        scores = {"tokens_per_s_per_gpu": cost.rate, "tokens_per_s": cost.rate, "tpot": -cost.latency_s, "ttft": -cost.latency_s}
        return Evaluation(scores[problem.objective], cost.rate, cost.latency_s, size, constraints)

    @abstractmethod
    def step_tokens(self, rows: Rows) -> Floats:
        """Tokens per DP rank and step of rows as asked for."""

    def _buffer_shortage(self, rows: Rows, columns: dict[str, Ints], tokens: Floats) -> Floats:
        """DeepEP low-latency buffers hold one chunk even when chunking is off (vLLM before 0.20), relative."""
        if "moe_dp_chunk_tokens" not in self.space.values:
            return np.full(len(rows), -1.0)
        whole = (rows.backend == BACKENDS.index("deepep_low_latency")) & ~self._chunking(columns)
        return np.where(whole, tokens / self.column(columns, "moe_dp_chunk_tokens", 1) - 1, -1.0)


def combinations(columns: dict[str, Ints]) -> int:
    """How many combinations index columns hold; an engine without knobs has one."""
    return len(next(iter(columns.values()))) if columns else 1


DEEPEP_CODES = (BACKENDS.index("deepep_low_latency"), BACKENDS.index("deepep_normal"))


def kv_dtype(flag: Value) -> Literal["fp8", "bf16"]:
    """dtype that a KV-cache flag gives: `auto` keeps the model's (BF16), whatever the recipe would like."""
    return "fp8" if str(flag).startswith("fp8") else "bf16"
