"""Memory of one GPU, as named lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, as_floats, ceil_div
from cost_models.dispatch import BACKENDS, payload_bytes
from cost_models.machine import Machine
from cost_models.offload import freed_bytes, offloaded_mask
from cost_models.rows import UNLIMITED, Rows
from cost_models.specs.model import Matrix, MlaSpec, ModelSpec
from cost_models.specs.precision import DTYPES
from cost_models.specs.workload import Workload

KV_CONFIDENCE_SIGMAS = 2.0
KV_STEPS_RESIDENT = 2


@dataclass(frozen=True, slots=True)
class MemoryCoefficients:
    """Per engine."""

    runtime_bytes: float
    """Driver context, libraries, communicators and allocator slack [B]."""
    graph_bytes_per_size: float
    """One captured CUDA graph [B]."""
    graph_sizes: float
    """Captured sizes by default [-]."""
    deepep_normal_buffer_bytes: float = 2.0 * 2**30
    activation_passes: float = 4.0
    """Live copies of the widest per-token tensors [-]."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Named lines of one GPU, (rows,) each [B]."""

    lines: dict[str, Floats]
    kv_bytes_per_token: Floats
    """KV cache of one token on one GPU, after sharding."""

    @property
    def total_bytes(self) -> Floats:
        return as_floats(sum(self.lines.values()))

    @property
    def without_kv_bytes(self) -> Floats:
        return self.total_bytes - self.lines["kv_cache"]


def decode_memory(machine: Machine, rows: Rows, workload: Workload) -> Memory:
    """Memory that a decode pool needs on each GPU.

    The KV line holds the batch at its mean context plus two standard deviations of the batch's sum,
    at most the finished length: requests are at independent points of their output.
    DeepEP low-latency buffer: 4 E T (2H + H/32) bytes (DeepEP csrc/legacy/config.hpp).
    """
    c = machine.coefficients("memory", "default", MemoryCoefficients)
    tokens = _buffer_tokens(rows)
    activations = _activation_bytes(machine, rows, tokens, _absorbed_width(machine), tokens, c)
    return _memory(machine, rows, c, kv_tokens_needed(rows.batch, workload), tokens, activations)


def prefill_memory(machine: Machine, rows: Rows, workload: Workload) -> Memory:
    """Memory that a prefill instance needs on each GPU.

    The KV line holds the prompts of KV_STEPS_RESIDENT steps (one being computed, one being sent to decode), each with
    its cached prefix.
    """
    c = machine.coefficients("memory", "default", MemoryCoefficients)
    tokens = as_floats(rows.batched_tokens)
    cached = 1 / (1 - workload.prefix_cache_hit_rate)
    resident = KV_STEPS_RESIDENT * np.maximum(tokens * cached, workload.isl_tokens)
    finishing = np.ceil(tokens / max(workload.isl_tokens * (1 - workload.prefix_cache_hit_rate), 1.0))
    activations = _activation_bytes(machine, rows, tokens, _expanded_width(machine), finishing, c)
    return _memory(machine, rows, c, resident, tokens, activations)


def _memory(
    machine: Machine, rows: Rows, c: MemoryCoefficients, kv_tokens: Floats, tokens: Floats, activations: Floats
) -> Memory:
    """All lines; kv_tokens : resident, tokens : that buffers are sized for, per rank."""
    model = machine.model
    stages = ceil_div(model.layers, rows.pp) / model.layers
    kv_token = kv_bytes_per_token(machine, rows)
    lines = {
        "expert weights": expert_bytes(machine, rows) * stages,
        "other weights": _replicated_bytes(machine, rows) * stages + _head_bytes(machine, rows),
        "offloaded weights": -offloaded_bytes(machine, rows) * stages,
        "mtp weights": np.where(rows.drafts > 0, _mtp_bytes(machine, rows), 0.0),
        "kv_cache": kv_token * kv_tokens,
        "activations": activations,
        "dispatch buffers": _dispatch_buffer_bytes(machine, rows, tokens, c),
        "eplb buffers": _eplb_bytes(machine, rows),
        "cuda graphs": np.where(rows.graph_tokens > 0, c.graph_sizes * c.graph_bytes_per_size, 0.0),
        "runtime": np.full(len(rows), c.runtime_bytes),
    }
    return Memory({name: as_floats(line) for name, line in lines.items()}, kv_token)


def _eplb_bytes(machine: Machine, rows: Rows) -> Floats:
    """A layer of local experts to receive into, and the recorded window: 4 B per step, layer and physical expert."""
    moe = machine.model.moe
    if moe is None:
        return np.zeros(len(rows))
    window = 4.0 * rows.eplb_window_steps * machine.model.moe_layers * (moe.experts + rows.redundant_experts)
    received = expert_bytes(machine, rows) / max(machine.model.moe_layers, 1)
    return np.where(rows.eplb_interval_steps > 0, received + window, 0.0)


def kv_tokens_needed(batch: ArrayLike, workload: Workload) -> Floats:
    """Tokens resident for `batch` sequences at independent points of their output [token]."""
    batch = as_floats(batch)
    mean = workload.context_tokens
    spread = workload.osl_tokens / np.sqrt(12.0)
    with_margin = batch * mean + KV_CONFIDENCE_SIGMAS * spread * np.sqrt(batch)
    return as_floats(np.minimum(with_margin, batch * max(workload.peak_context_tokens, mean)))


def sequences_that_fit(kv_tokens: ArrayLike, workload: Workload) -> Floats:
    """Largest whole batch whose resident tokens fit in `kv_tokens`: the inverse of kv_tokens_needed."""
    tokens = np.maximum(as_floats(kv_tokens), 0.0)
    mean = workload.context_tokens
    half = KV_CONFIDENCE_SIGMAS * workload.osl_tokens / np.sqrt(12.0) / 2
    root = (np.sqrt(half**2 + mean * tokens) - half) / mean
    return as_floats(np.floor(np.maximum(root**2, tokens / max(workload.peak_context_tokens, mean)) + 1e-9))


def kv_bytes_per_token(machine: Machine, rows: Rows) -> Floats:
    """KV cache of one token on one GPU: sharded over TP up to the KV heads, over the pipeline's layers [B]."""
    shards = np.minimum(rows.tp, machine.model.attention.max_kv_shards) * rows.pp
    return as_floats(machine.model.kv_bytes_per_token(machine.recipe) / shards)


def _stored_bytes(machine: Machine, matrix: Matrix) -> float:
    return matrix.parameters * DTYPES[machine.dtype(matrix.family)].weight_bytes


def expert_bytes(machine: Machine, rows: Rows) -> Floats:
    """Routed experts on one GPU in all layers; redundant copies included."""
    moe = machine.model.moe
    if moe is None:
        return np.zeros(len(rows))
    one_copy = sum(_stored_bytes(machine, m) for m in machine.model.layer_matrices() if m.family == "experts") / moe.experts
    slots = (moe.experts + rows.redundant_experts) / rows.ep
    return as_floats(one_copy * slots / rows.moe_tp)


def offloadable_layer_bytes(machine: Machine, rows: Rows) -> tuple[Floats, Floats]:
    """What offload moves of a dense and of an MoE layer: the routed experts, or whole layers of a dense model [B].

    vLLM's --offload-params and SGLang's offloader take the expert matrices of MoE models; their dense layers stay.
    """
    model = machine.model
    if model.moe:
        return np.zeros(len(rows)), expert_bytes(machine, rows) / model.moe_layers
    return _replicated_bytes(machine, rows) / model.layers, np.zeros(len(rows))


def offloaded_bytes(machine: Machine, rows: Rows) -> Floats:
    """Device memory that weight offload frees, over all layers [B]."""
    freed = np.zeros(len(rows))
    for setting in offload_settings(machine.model, rows):
        layer = by_layer(machine.model, *offloadable_layer_bytes(machine, rows))
        freed = np.where(setting.rows, freed_bytes(layer, setting.layers, setting.prefetch_step), freed)
    return freed


@dataclass(frozen=True, slots=True)
class OffloadSetting:
    """One way of offloading that candidate rows use."""

    rows: NDArray[np.bool_]
    """Which rows, (rows,)."""
    layers: NDArray[np.bool_]
    """Layers with something to offload that it takes, (layers,)."""
    prefetch_step: int


def offload_settings(model: ModelSpec, rows: Rows) -> Iterator[OffloadSetting]:
    """Distinct settings of the rows that offload."""
    columns = np.stack([rows.offload_group_size, rows.offload_in_group, rows.offload_prefetch_step], axis=1)
    for group, number, step in np.unique(columns[rows.offload_group_size > 0], axis=0):
        layers = offloaded_mask(model.layers, int(group), int(number))
        if model.moe:
            layers[: model.layers - model.moe_layers] = False
        yield OffloadSetting((columns == (group, number, step)).all(axis=1), layers, int(step))


def by_layer(model: ModelSpec, dense: Floats, moe: Floats) -> Floats:
    """Values of a dense and of an MoE layer, (rows,) each, as (layers, rows)."""
    return np.where(np.arange(model.layers)[:, None] < model.layers - model.moe_layers, dense, moe)


def _replicated_bytes(machine: Machine, rows: Rows) -> Floats:
    """Attention, dense FFN, shared expert and router: sharded by TP, replicated over DP.

    Under DP attention the shared expert runs on each rank's own tokens and is not sharded.
    """
    total = np.zeros(len(rows))
    for matrix in machine.model.layer_matrices():
        if matrix.family == "experts":
            continue
        whole = (matrix.sharding == "replicated") | ((matrix.family == "shared_expert") & (rows.dp > 1))
        total = total + _stored_bytes(machine, matrix) / np.where(whole, 1, rows.tp)
    return total


def _head_bytes(machine: Machine, rows: Rows) -> Floats:
    return as_floats(sum(_stored_bytes(machine, m) for m in machine.model.head_matrices()) / rows.tp)


def _mtp_bytes(machine: Machine, rows: Rows) -> Floats:
    experts = machine.model.moe.experts if machine.model.moe else 1
    total = np.zeros(len(rows))
    for matrix in machine.model.mtp_matrices():
        slots = (experts + rows.redundant_experts) / experts / rows.ep / rows.moe_tp if matrix.family == "experts" else 1.0
        total = total + _stored_bytes(machine, matrix) * slots
    return total


def _buffer_tokens(rows: Rows) -> Floats:
    """Tokens per rank that buffers are sized for."""
    return as_floats(np.maximum(rows.batched_tokens, np.ceil(rows.batch / rows.pp) * (1 + rows.drafts)))


def _activation_bytes(
    machine: Machine, rows: Rows, tokens: Floats, head_elements: int, sampled: Floats, c: MemoryCoefficients
) -> Floats:
    """Widest live tensors of a layer, gathered tokens where the backend gathers them, and the logits of `sampled` tokens."""
    model = machine.model
    own = tokens * model.hidden * 2 * c.activation_passes
    query = tokens * model.attention.heads / rows.tp * head_elements * 2
    gathered = np.where(rows.backend == BACKENDS.index("allgather_reducescatter"), tokens * rows.dp, tokens)
    experts = 0.0
    if model.moe:
        pairs = gathered * model.moe.top_k / rows.ep
        experts = pairs * (2 * model.moe.intermediate / rows.moe_tp + model.hidden) * 2 + gathered * model.hidden * 2
    logits = sampled * model.vocab / rows.tp * 6
    return as_floats(own + query + experts + logits)


def _absorbed_width(machine: Machine) -> int:
    """Query and output elements of one head in decode."""
    attention = machine.model.attention
    width = attention.kv_lora_rank + attention.qk_rope_dim if isinstance(attention, MlaSpec) else attention.head_dim
    return 2 * width


def _expanded_width(machine: Machine) -> int:
    """Query, key, value and output elements of one query head in prefill."""
    attention = machine.model.attention
    if isinstance(attention, MlaSpec):
        return 2 * (attention.qk_nope_dim + attention.qk_rope_dim) + 2 * attention.v_dim
    return 2 * attention.head_dim * (1 + attention.kv_heads // attention.heads)


def _dispatch_buffer_bytes(machine: Machine, rows: Rows, tokens: Floats, c: MemoryCoefficients) -> Floats:
    model = machine.model
    if model.moe is None:
        return np.zeros(len(rows))
    chunk = np.where(rows.moe_chunk_tokens > 0, np.minimum(rows.moe_chunk_tokens, UNLIMITED), tokens)
    buffered = np.minimum(tokens, chunk)
    slots = model.moe.experts + rows.redundant_experts
    low_latency = 4 * slots * buffered * (2 * model.hidden + model.hidden / 32)
    element = DTYPES[machine.recipe.dispatch].activation_bytes
    one_sided = rows.dp * buffered * (payload_bytes(model.hidden, element, model.moe.top_k) + 2 * model.hidden)
    gathered = rows.dp * buffered * 4 * model.hidden
    by_backend = {
        "none": np.zeros(len(rows)),
        "allgather_reducescatter": gathered,
        "deepep_low_latency": low_latency,
        "deepep_normal": np.full(len(rows), c.deepep_normal_buffer_bytes),
        "nvlink_one_sided": one_sided,
    }
    return as_floats(np.select([rows.backend == BACKENDS.index(b) for b in by_backend], list(by_backend.values())))
