"""The flag space of one layout on one engine version: which knobs, which values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.documents.knobs import COLUMNS
from autotune.exporters.lengths import LONGEST_OVER_MEAN
from autotune.flags.rebalancing import best_rebalancing
from autotune.layouts.enumerate import PAGE_TOKENS, backend_admissible, rule_subject
from autotune.layouts.table import kept_free_bytes, phase_of
from autotune.resolving import ResolvedProblem
from cost_models.arrays import Ints
from cost_models.dispatch import BACKENDS
from cost_models.memory import state_bytes
from cost_models.overlap import OVERLAPS
from cost_models.rows import Rows
from cost_models.specs.precision import FP4_ARCHITECTURES
from search_spaces.rules import RULES, legal
from search_spaces.schema import Knob, Value

BATCH_FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125)
GRAPH_STEP = 16
BLACKWELL_GRAPH_DEFAULT = 1024
LARGE_GPU_BYTES = 160 * 2**30
LARGE_GPU_BATCHED_TOKENS = 16384
LOW_LATENCY_BATCHED_TOKENS = 256
"""vLLM's default token budgets (engine/arg_utils.py)."""
TOKEN_FACTORS = (0.5,)
TOLERANCE = 1e-9
Params = dict[str, Value]
UNCONDITIONAL = ("moe_dp_chunk_tokens",)
"""DeepEP's buffers hold a chunk even where chunking is off."""
SWITCHES = {
    **{c.knobs[0]: c.knobs[1] for c in COLUMNS if len(c.knobs) == 2 and not c.codec.named and c.knobs[0] not in UNCONDITIONAL},
    "dbo_decode_token_threshold": "enable_dbo",
    "dbo_prefill_token_threshold": "enable_dbo",
}
"""Knobs that count only where another one is on."""


@dataclass(frozen=True, slots=True)
class FlagSpace:
    """Knob name -> values to try; a knob that the version lacks is absent."""

    values: dict[str, tuple[Value, ...]]
    defaults: Params
    """The engine's own defaults."""
    analytic: Params
    """What the chosen layout row implies."""

    @property
    def size(self) -> int:
        """Number of combinations."""
        return int(np.prod([len(v) for v in self.values.values()], dtype=object))

    @property
    def searched(self) -> dict[str, tuple[Value, ...]]:
        """Knobs with more than one value."""
        return {name: values for name, values in self.values.items() if len(values) > 1}

    def complete(self, params: Mapping[str, Value]) -> Params:
        """Add the knobs that have a single value."""
        return {name: params.get(name, values[0]) for name, values in self.values.items()}

    def columns(self, combinations: Sequence[Params]) -> dict[str, Ints]:
        """Combinations as index columns, (combinations,) each."""
        return {name: np.array([values.index(params[name]) for params in combinations]) for name, values in self.values.items()}

    @property
    def switched(self) -> dict[str, str]:
        """Knobs that count only where another one, listed before them, is on."""
        names = list(self.values)
        found = {name: SWITCHES[name] for name in names if SWITCHES.get(name) in names}
        return {name: switch for name, switch in found.items() if names.index(switch) < names.index(name)}

    def is_on(self, switch: str, columns: Mapping[str, Ints]) -> NDArray[np.bool_]:
        """Where a knob is on, (combinations,)."""
        return np.array([float(value) > 0 for value in self.values[switch]])[columns[switch]]

    @property
    def distinct(self) -> int:
        """Number of combinations that are not the same with a knob that does not count in them."""
        inside: dict[str, int] = {}
        for name, switch in self.switched.items():
            inside[switch] = inside.get(switch, 1) * len(self.values[name])
        factors = []
        for name, values in self.values.items():
            on = sum(float(value) > 0 for value in values) if name in inside else 0
            factors.append(1 if name in self.switched else len(values) - on + on * inside.get(name, 1))
        return math.prod(factors)

    def grid(self) -> FlagGrid:
        """Every distinct combination, in the order of the knobs; those that do not count have their first value."""
        columns: dict[str, Ints] = {}
        count = 1
        for name, values in self.values.items():
            choices = np.full(count, len(values))
            if name in self.switched:
                choices = np.where(self.is_on(self.switched[name], columns), choices, 1)
            index = np.repeat(np.arange(count), choices)
            columns = {known: column[index] for known, column in columns.items()}
            columns[name] = np.arange(len(index)) - np.repeat(np.cumsum(choices) - choices, choices)
            count = len(index)
        return FlagGrid(self, columns, self.codes(columns))

    def codes(self, columns: Mapping[str, Ints]) -> Ints:
        """One integer per combination, the same where they differ only in knobs that do not count; grids ascend in it."""
        code = np.zeros(1, dtype=np.int64)
        for name, values in self.values.items():
            column = columns[name]
            if name in self.switched:
                column = np.where(self.is_on(self.switched[name], columns), column, 0)
            code = code * len(values) + column
        return code


@dataclass(frozen=True, slots=True)
class FlagGrid:
    """The distinct combinations of a space as index columns, (distinct,) each."""

    space: FlagSpace
    columns: dict[str, Ints]
    codes: Ints

    def positions(self, columns: Mapping[str, Ints]) -> Ints:
        """Where combinations, given as index columns, stand in the grid."""
        return np.searchsorted(self.codes, self.space.codes(columns)).astype(np.int64)

    def params_at(self, position: int) -> Params:
        """The combination at a position."""
        return {name: values[int(self.columns[name][position])] for name, values in self.space.values.items()}


def flag_space(resolved: ResolvedProblem, row: Rows, fitting_size: int) -> FlagSpace:
    """Space of one layout row.

    row : the chosen layout with its step; fitting_size : largest step that fits memory.
    """
    analytic = analytic_params(resolved, row)
    backends = _admissible_backends(resolved, row) if "all2all_backend" in analytic else []
    knobs = [knob for knob in resolved.engine.knobs if knob.name in analytic]
    defaults = {knob.name: _default(resolved, knob, row, backends) for knob in knobs}
    values = {}
    for knob in knobs:
        options = _options(resolved, knob, row, fitting_size, backends)
        values[knob.name] = tuple(dict.fromkeys([defaults[knob.name], analytic[knob.name], *options]))
    return FlagSpace(values, defaults, analytic)


def analytic_params(resolved: ResolvedProblem, row: Rows) -> Params:
    """Knobs of the version with the values that realise one layout row; those without effect here are left out."""
    found = _analytic(resolved, row)
    known = (knob.name for knob in resolved.engine.knobs if knob.spelling(resolved.version) is not None)
    return {name: found[name] for name in known if name in found}


def _analytic(resolved: ResolvedProblem, row: Rows) -> Params:
    """Knob values that realise the layout row, of any version."""
    params = _prefill_analytic(row) if resolved.phase == "prefill" else _decode_analytic(resolved, row)
    params["gpu_memory_fraction"] = _needed_fraction(resolved, row)
    params["kv_cache_dtype"] = kv_value(resolved, resolved.machine.recipe.kv_cache)
    if row.dp[0] > 1:
        params |= _dispatch_analytic(resolved, row)
    if row.ep[0] > 1 and row.dp[0] > 1:
        params["enable_eplb"] = bool(row.eplb[0])
        params |= best_rebalancing(resolved, row) or {"eplb_window_steps": 1000, "eplb_interval_steps": 3000}
        params["eplb_async"] = False
        params["redundant_experts"] = int(row.redundant_experts[0])
    return params


def _decode_analytic(resolved: ResolvedProblem, row: Rows) -> Params:
    batch, tokens = int(row.batch[0]), step_tokens(resolved, row)
    params: Params = {"max_num_seqs": batch, "cudagraph_max_tokens": -(-tokens // GRAPH_STEP) * GRAPH_STEP}
    params["max_num_batched_tokens"] = max(tokens, batch)
    params["output_proc_chunk"] = 2048
    if resolved.problem.workload.mtp_acceptance:
        params["draft_tokens"] = int(row.drafts[0])
    return params


def _prefill_analytic(row: Rows) -> Params:
    return {
        "max_num_batched_tokens": int(row.batched_tokens[0]),
        "offload_group_size": int(row.offload_group_size[0]),
        "offload_num_in_group": int(row.offload_in_group[0]),
        "offload_prefetch_step": int(row.offload_prefetch_step[0]),
    }


def _dispatch_analytic(resolved: ResolvedProblem, row: Rows) -> Params:
    """Communication, overlap and chunks: nothing chunked, and chunk buffers that hold the whole step where they are used."""
    overlap, backend = OVERLAPS[int(row.overlap[0])], BACKENDS[int(row.backend[0])]
    chunk = resolved.engine.knob("moe_dp_chunk_tokens")
    default = chunk.default(resolved.version) if chunk else None
    whole = backend == "deepep_low_latency" or default is None
    return {
        "all2all_backend": backend_value(resolved, backend),
        "enable_dbo": overlap == "two_batch",
        "enable_sbo": overlap == "single_batch",
        "dbo_prefill_token_threshold" if resolved.phase == "prefill" else "dbo_decode_token_threshold": (
            512 if resolved.phase == "prefill" else 32
        ),
        "moe_dp_chunk_tokens": step_tokens(resolved, row) if whole or default is None else default,
        "enable_moe_dp_chunk": False,
        "enable_activation_chunk": False,
        "activation_chunk_rows": 32768,
    }


def step_tokens(resolved: ResolvedProblem, row: Rows) -> int:
    """Tokens per DP rank and step."""
    if resolved.phase == "prefill":
        return int(row.batched_tokens[0])
    return int(-(-row.batch[0] // row.pp[0]) * (1 + row.drafts[0]))


def backend_value(resolved: ResolvedProblem, model_name: str) -> str:
    """The engine's name of a cost-model backend."""
    choices = resolved.engine.backend_choices(resolved.version)
    return next(choice.value for choice in choices if choice.model_in(resolved.phase) == model_name)


def kv_value(resolved: ResolvedProblem, dtype: str) -> str:
    """The engine's name of a KV-cache dtype."""
    knob = resolved.engine.knob("kv_cache_dtype")
    if knob is None or dtype != "fp8":
        return "auto"
    return next(choice.value for choice in knob.choices_in(resolved.version) if choice.model == "fp8")


def _needed_fraction(resolved: ResolvedProblem, row: Rows) -> float:
    """Memory fraction of a row: of a decode pool the smallest in whole per cent, with one to spare, that holds its batch and one
    longest request; of a prefill pool all that may be filled, since caches stay until decode has pulled them.

    Never more than the safety margin leaves: an engine that bounds weights and KV alone also needs
    room for everything else beside them.
    """
    memory = phase_of(resolved).memory(resolved.machine, row, resolved.problem.workload)
    total = float(memory.total_bytes[0])
    covered = total
    if resolved.engine.memory_fraction_covers == "weights_and_kv":
        covered = sum(float(line[0]) for name, line in memory.lines.items() if name.endswith(("weights", "kv_cache")))
    visible = resolved.hardware.gpu.hbm_visible_bytes.value
    limit = _highest_fraction(resolved, row) * visible
    most = math.floor((limit - (total - covered)) / visible * 1000) / 1000
    if resolved.phase == "prefill":
        return round(most, 3)
    longest = LONGEST_OVER_MEAN * resolved.problem.workload.peak_context_tokens
    short = max(float(state_bytes(resolved.machine, row, longest)[0]) - float(memory.lines["kv_cache"][0]), 0.0)
    needed = math.ceil((covered + short) / visible * 100 + 1) / 100
    return round(min(needed, most), 3)


def _highest_fraction(resolved: ResolvedProblem, row: Rows) -> float:
    """Share of device memory that everything together may fill."""
    visible = resolved.hardware.gpu.hbm_visible_bytes.value
    return (resolved.memory_limit_bytes - float(kept_free_bytes(resolved, row)[0])) / visible


def _default(resolved: ResolvedProblem, knob: Knob, row: Rows, backends: Sequence[str]) -> Value:
    """The version's default, with what the engine derives at run time filled in."""
    default = knob.default(resolved.version)
    tokens = step_tokens(resolved, row)
    if knob.name == "cudagraph_max_tokens" and resolved.hardware.gpu.architecture in FP4_ARCHITECTURES:
        default = BLACKWELL_GRAPH_DEFAULT
    if knob.name == "max_num_batched_tokens":
        large = resolved.hardware.gpu.hbm_visible_bytes.value >= LARGE_GPU_BYTES
        default = LARGE_GPU_BATCHED_TOKENS if large else default
        default = LOW_LATENCY_BATCHED_TOKENS if BACKENDS[int(row.backend[0])] == "deepep_low_latency" else default
        default = default if resolved.phase == "prefill" else max(int(default or 0), tokens)
    if knob.name == "all2all_backend" and default not in backends:
        default = backend_value(resolved, BACKENDS[int(row.backend[0])])
    if knob.name in ("redundant_experts", "enable_eplb") and resolved.model.moe:
        fewest = -resolved.model.moe.experts % int(row.ep[0])  # without them the layout does not start
        default = fewest if knob.name == "redundant_experts" else bool(default) or fewest > 0
    if default is None:
        raise ValueError(f"{knob.name} has no default in {resolved.engine.name} {resolved.version}")
    return default


def _options(resolved: ResolvedProblem, knob: Knob, row: Rows, fitting_size: int, backends: Sequence[str]) -> list[Value]:
    if knob.name == "max_num_seqs":
        batches = [int(round(int(row.batch[0]) * factor / 8) * 8) or 1 for factor in BATCH_FACTORS]
        return [batch for batch in [*batches, fitting_size] if 1 <= batch <= fitting_size]
    if knob.name == "max_num_batched_tokens":
        # decode: the default and the batch itself are already in
        tokens: list[Value] = [
            max(int(row.batched_tokens[0] * factor) // PAGE_TOKENS, 1) * PAGE_TOKENS for factor in TOKEN_FACTORS
        ]
        return tokens if resolved.phase == "prefill" else []
    if knob.name == "redundant_experts" and resolved.model.moe:
        experts, ep = resolved.model.moe.experts, int(row.ep[0])
        return [int(c) + (-(experts + int(c))) % ep for c in knob.candidates]
    if knob.name == "all2all_backend":
        return list(backends)
    if knob.name == "kv_cache_dtype":
        fp8 = resolved.machine.recipe.with_kv_cache("fp8")
        needed = [need for kind in resolved.model.attentions for need in kind.requirements(fp8, "decode")]
        subject = dataclasses.replace(rule_subject(resolved, row), recipe=fp8)
        taken = row.dcp[0] == 1 or bool(legal([rule for rule in RULES if not rule.sized], subject)[0])
        known = taken and all(resolved.machine.calibration.has(*need) for need in needed)
        return [kv_value(resolved, "fp8")] if known else []
    if knob.kind == "bool":
        return [False, True]
    if knob.name == "gpu_memory_fraction":
        return [share for share in knob.candidates if share <= _highest_fraction(resolved, row) + TOLERANCE]
    return list(knob.candidates)


def _admissible_backends(resolved: ResolvedProblem, row: Rows) -> list[str]:
    """Backends of the version that run on the row's layout and that the calibration knows."""
    return [c.value for c in resolved.engine.backend_choices(resolved.version) if backend_admissible(c, row, resolved)]
