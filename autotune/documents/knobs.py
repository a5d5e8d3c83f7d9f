"""One table of settings: candidate columns, where a pool says the same, and the engine knobs that set them.

Pools become candidate rows (`pool_rows`), rows become pools (`pool_values`), combinations of knobs become rows (`flags`), and
commands become pools (`auditing.commands`): all of them walk over COLUMNS, so a setting is stated once. How an engine spells a
knob, its default and its limits stand in the engine's document (`search_spaces/data`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from autotune.documents.deployment import Pool, PoolRole
from cost_models.dispatch import BACKENDS
from cost_models.expert_kernels import EXPERT_KERNELS
from cost_models.overlap import OVERLAPS
from cost_models.rows import DEFAULTS, NO_GRAPH, UNLIMITED, Rows

Step = Literal["decode", "prefill"]
BOTH: tuple[Step, ...] = ("decode", "prefill")


@dataclass(frozen=True, slots=True)
class Codec:
    """A pool's value <-> a column's number."""

    number: Callable[[Any], float] = int
    value: Callable[[float], Any] = int
    named: bool = False
    """Whether the number stands for a name of the cost models, which engines call otherwise."""


def coded(names: tuple[str, ...]) -> Codec:
    """A name <-> its position."""
    return Codec(names.index, lambda code: names[int(code)], named=True)


PLAIN = Codec()
SWITCH = Codec(int, bool)
AT_LEAST_ONE = Codec(lambda size: max(size, 1), int)
OR_UNKNOWN = Codec(lambda ratio: math.nan if ratio is None else ratio, lambda ratio: None if math.isnan(ratio) else float(ratio))
OR_UNLIMITED = Codec(lambda size: size or UNLIMITED, lambda size: None if size >= UNLIMITED else int(size))
BALANCED = Codec(lambda kind: int(kind in ("eplb", "static")), lambda balanced: "eplb" if balanced else "none")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the candidate rows."""

    name: str
    path: str
    """Where a pool says it."""
    codec: Codec = PLAIN
    knobs: tuple[str, ...] = ()
    """Engine knobs that set it: the first gives the value, the others decide whether it counts."""
    steps: tuple[Step, ...] = BOTH
    """Steps that it can differ in."""
    enumerated: bool = False
    """Whether layouts are enumerated by it."""
    applies: Callable[[Pool], bool] = lambda _: True
    """Whether a pool's value counts; where it does not, the column holds its default."""

    @property
    def default(self) -> float:
        return float(np.asarray(DEFAULTS[self.name]))


def _rebalanced(pool: Pool) -> bool:
    return pool.expert_balance.kind == "eplb"


def _balanced(pool: Pool) -> bool:
    return pool.expert_balance.kind in ("eplb", "static")


def _offloads(pool: Pool) -> bool:
    return pool.offload is not None


def _outputs_counted(pool: Pool) -> bool:
    return pool.chunks.output is not None


COLUMNS = (
    Column("tp", "tp", enumerated=True),
    Column("dp", "dp", enumerated=True),
    Column("ep", "ep", enumerated=True),
    Column("pp", "pp", enumerated=True),
    Column("dcp", "dcp", knobs=("context_ranks",), enumerated=True),
    Column("redundant_experts", "redundant_experts", knobs=("redundant_experts",), enumerated=True),
    Column("eplb", "expert_balance.kind", BALANCED, knobs=("enable_eplb",), enumerated=True),
    Column("backend", "all2all_backend", coded(BACKENDS), knobs=("all2all_backend",), enumerated=True),
    Column("expert_kernel", "expert_kernel", coded(EXPERT_KERNELS), knobs=("moe_backend",)),
    Column("all2all_processors", "all2all_processors"),
    Column("overlap", "overlap", coded(OVERLAPS), knobs=("enable_dbo", "enable_sbo"), enumerated=True),
    Column("graph_tokens", "cuda_graph_tokens", OR_UNLIMITED, knobs=("cudagraph_max_tokens",), steps=("decode",),
           enumerated=True),
    Column("drafts", "draft_tokens", knobs=("draft_tokens",), steps=("decode",), enumerated=True),
    Column("offload_group_size", "offload.group_size", knobs=("offload_group_size",), steps=("prefill",), enumerated=True,
           applies=_offloads),
    Column("offload_in_group", "offload.num_in_group", knobs=("offload_num_in_group", "offload_group_size"), steps=("prefill",),
           enumerated=True, applies=_offloads),
    Column("offload_prefetch_step", "offload.prefetch_step", knobs=("offload_prefetch_step", "offload_group_size"),
           steps=("prefill",), enumerated=True, applies=_offloads),
    Column("batch", "batch_per_dp_rank", AT_LEAST_ONE, knobs=("max_num_seqs",), steps=("decode",)),
    Column("batched_tokens", "max_batched_tokens", knobs=("max_num_batched_tokens",)),
    Column("eplb_window_steps", "expert_balance.window_steps", knobs=("eplb_window_steps", "enable_eplb"), applies=_balanced),
    Column("eplb_interval_steps", "expert_balance.interval_steps", knobs=("eplb_interval_steps", "enable_eplb"),
           applies=_rebalanced),
    Column("eplb_async", "expert_balance.asynchronous", SWITCH, knobs=("eplb_async", "enable_eplb"), applies=_balanced),
    Column("moe_chunk_tokens", "chunks.moe_dp_tokens", knobs=("moe_dp_chunk_tokens", "enable_moe_dp_chunk")),
    Column("activation_chunk_rows", "chunks.activation_rows", knobs=("activation_chunk_rows", "enable_activation_chunk")),
    Column("output_chunk", "chunks.output", OR_UNLIMITED, knobs=("output_proc_chunk",), steps=("decode",)),
    Column("api_servers", "api_servers", steps=("decode",), applies=_outputs_counted),
    Column("imbalance", "expert_balance.max_over_mean", OR_UNKNOWN),
    Column("skew", "expert_balance.skew", OR_UNKNOWN),
    Column("popularity", "expert_balance.popularity_sigma", OR_UNKNOWN),
)  # fmt: skip
UNPRICED = {name: name for name in ("admission_interval_steps", "absorbs_cut_prompts", "symmetric_memory")}
"""Engine knobs and the pool's fields that they set, which no column holds: a replay costs more or less by them, or every step of
a machine."""
LAYOUT_COLUMNS = tuple(column.name for column in COLUMNS if column.enumerated)
"""Columns that an enumeration of layouts fills, in this order."""
VARIANT_COLUMNS = tuple(name for name in LAYOUT_COLUMNS if name != "graph_tokens")
"""Columns in which rows of an enumeration differ, besides the size of a step; the backend decides the graphs."""


def flag_columns(step: Step) -> tuple[Column, ...]:
    """Columns in which combinations of engine knobs differ within a layout."""
    return tuple(column for column in COLUMNS if column.knobs and step in column.steps)


def pool_rows(pool: Pool) -> Rows:
    """A pool as one candidate row."""
    values = {c.name: c.codec.number(_at(pool, c.path)) if c.applies(pool) else c.default for c in COLUMNS}
    if not pool.cuda_graph:
        values["graph_tokens"] = NO_GRAPH
    if pool.expert_balance.kind == "perfect":
        values["imbalance"] = 1.0
    return Rows.of(**values)


def pool_values(row: Rows, role: PoolRole) -> dict[str, Any]:
    """A row of length 1 as fields of a pool: `pool_rows` of them is the row's `canonical` form.

    role : whose pool it is; a prefill pool holds no decoding sequences.
    """
    numbers = {column.name: getattr(canonical(row), column.name)[0] for column in COLUMNS}
    fields: dict[str, Any] = {}
    for column in COLUMNS:
        put(fields, column.path, column.codec.value(numbers[column.name]))
    if role == "prefill":
        fields["batch_per_dp_rank"] = 0
    fields["cuda_graph"] = bool(numbers["graph_tokens"] != NO_GRAPH)
    if not fields["cuda_graph"]:
        fields["cuda_graph_tokens"] = None
    if not numbers["offload_group_size"]:
        fields["offload"] = None
    if numbers["eplb"] and not numbers["eplb_interval_steps"]:
        fields["expert_balance"]["kind"] = "static"
    if fields["expert_balance"]["kind"] != "eplb":
        del fields["expert_balance"]["interval_steps"]
    fields["api_servers"] = max(fields["api_servers"], 1)
    return fields


def canonical(rows: Rows) -> Rows:
    """Rows that cost the same, with what has no effect at its default: what a pool can say."""
    captured = rows.graph_tokens >= np.ceil(rows.batch / rows.pp) * (1 + rows.drafts)
    balanced, offloads, counted = rows.eplb > 0, rows.offload_group_size > 0, rows.output_chunk < UNLIMITED
    kept = {
        "eplb_window_steps": balanced,
        "eplb_interval_steps": balanced,
        "eplb_async": balanced,
        "offload_in_group": offloads,
        "offload_prefetch_step": offloads,
        "api_servers": counted,
    }
    changed = {name: np.where(where, getattr(rows, name), np.asarray(DEFAULTS[name])) for name, where in kept.items()}
    return rows.replace(**changed, graph_tokens=np.where(captured, UNLIMITED, rows.graph_tokens))


def pool_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a pool that engine knobs set; those that engines name otherwise than the cost models are left out.

    flags : engine knobs by name; a knob counts where those that switch it are on, or not given.
    """
    fields: dict[str, Any] = {}
    for column in COLUMNS:
        knob, *switches = column.knobs or ("",)
        if knob in flags and not column.codec.named and all(flags.get(switch, True) for switch in switches):
            put(fields, column.path, column.codec.value(flags[knob]))
    fields |= {path: flags[knob] for knob, path in UNPRICED.items() if knob in flags}
    if not flags.get("offload_group_size"):
        fields.pop("offload", None)
    return fields


def put(fields: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested fields."""
    *parents, last = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
    fields[last] = value


def _at(pool: Pool, path: str) -> Any:
    found: Any = pool
    for name in path.split("."):
        found = getattr(found, name)
    return found
