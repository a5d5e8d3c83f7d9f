"""Memory of one GPU, as named lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.all_to_all.base import BufferShape
from cost_models.all_to_all.registry import ALL_TO_ALL, rows_whose
from cost_models.arrays import FEW_ROWS, Floats, alike_rows, as_floats, ceil_div, evaluate_distinct
from cost_models.attention.base import Phase
from cost_models.dispatch import payload_bytes
from cost_models.machine import Machine
from cost_models.offload import freed_bytes, offloaded_mask
from cost_models.rows import UNLIMITED, Rows
from cost_models.specs.matrix import Matrix
from cost_models.specs.model import ModelSpec, MoeSpec
from cost_models.specs.precision import DTYPES
from cost_models.specs.workload import Workload

KV_CONFIDENCE_SIGMAS = 2.0
KV_STEPS_RESIDENT = 2
VIEWS_ABSORBED = ("vllm", "vllm-ascend")
"""Engines whose absorbed kv_b of an unquantised checkpoint lies in the projection's own memory."""
WEIGHTLESS = (
    "batch", "backend", "expert_kernel", "overlap", "eplb", "eplb_window_steps", "eplb_interval_steps", "eplb_async",
    "moe_chunk_tokens", "activation_chunk_rows", "graph_tokens", "output_chunk", "api_servers", "batched_tokens",
    "imbalance", "skew", "popularity",
)  # fmt: skip
"""Columns that no weights depend on."""


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
    communicator_bytes: float = 0.0
    """Of the runtime what one GPU alone does not need [B]."""
    activation_passes: float = 4.0
    """Live copies of the widest per-token tensors [-]."""


@dataclass(frozen=True, slots=True)
class SequenceBytes:
    """State of one sequence on one GPU, at independent points of its output, (rows,) each [B]."""

    mean: Floats
    spread: Floats
    """Standard deviation over the points of the output."""
    peak: Floats
    """Of a finished sequence."""

    def of_batch(self, batch: ArrayLike) -> Floats:
        """What `batch` sequences hold: their mean and two standard deviations of the sum, at most all of them finished."""
        batch = as_floats(batch)
        with_margin = batch * self.mean + KV_CONFIDENCE_SIGMAS * self.spread * np.sqrt(batch)
        return as_floats(np.minimum(with_margin, batch * np.maximum(self.peak, self.mean)))

    def fitting(self, room_bytes: ArrayLike) -> Floats:
        """Largest whole batch whose state fits in `room_bytes`: the inverse of `of_batch`."""
        room = np.maximum(as_floats(room_bytes), 0.0)
        half = KV_CONFIDENCE_SIGMAS * self.spread / 2
        root = (np.sqrt(half**2 + self.mean * room) - half) / self.mean
        return as_floats(np.floor(np.maximum(root**2, room / np.maximum(self.peak, self.mean)) + 1e-9))


@dataclass(frozen=True, slots=True)
class Memory:
    """Named lines of one GPU, (rows,) each [B]."""

    lines: dict[str, Floats]
    sequence: SequenceBytes
    """What one sequence keeps on the GPU."""

    @property
    def total_bytes(self) -> Floats:
        return as_floats(sum(self.lines.values()))

    @property
    def without_kv_bytes(self) -> Floats:
        return self.total_bytes - self.lines["kv_cache"]


def decode_memory(machine: Machine, rows: Rows, workload: Workload) -> Memory:
    """Memory that a decode pool needs on each GPU.

    The KV line holds the batch's state at its mean context plus two standard deviations of the batch's sum,
    at most that of finished sequences: requests are at independent points of their output.
    DeepEP low-latency buffer: 4 E T (2H + H/32) bytes (DeepEP csrc/legacy/config.hpp).
    """
    c = machine.coefficients("memory", "default", MemoryCoefficients)
    tokens = _buffer_tokens(rows)
    sampled = as_floats(np.ceil(rows.batch / rows.pp) * (1 + rows.drafts))
    activations = _activation_bytes(machine, rows, "decode", tokens, sampled, c)
    sequence = sequence_bytes(machine, rows, workload)
    return _memory(machine, rows, c, sequence, sequence.of_batch(rows.batch), tokens, activations)


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
    activations = _activation_bytes(machine, rows, "prefill", tokens, finishing, c)
    held = state_bytes(machine, rows, workload.isl_tokens) * resident / workload.isl_tokens
    return _memory(machine, rows, c, sequence_bytes(machine, rows, workload), held, tokens, activations)


def _memory(
    machine: Machine,
    rows: Rows,
    c: MemoryCoefficients,
    sequence: SequenceBytes,
    held: Floats,
    tokens: Floats,
    activations: Floats,
) -> Memory:
    """All lines; held : bytes of resident sequences, tokens : that buffers are sized for, per rank."""
    lines = {
        **_weights(machine, rows),
        "kv_cache": held,
        "activations": activations,
        "dispatch buffers": _dispatch_buffer_bytes(machine, rows, tokens, c),
        "eplb buffers": _eplb_bytes(machine, rows),
        "cuda graphs": np.where(rows.graph_tokens > 0, c.graph_sizes * c.graph_bytes_per_size, 0.0),
        "runtime": np.where(rows.gpus > 1, c.runtime_bytes, c.runtime_bytes - c.communicator_bytes),
    }
    return Memory({name: as_floats(line) for name, line in lines.items()}, sequence)


def _weights(machine: Machine, rows: Rows) -> dict[str, Floats]:
    """Lines of weights; rows that differ only in WEIGHTLESS columns share them."""
    if len(rows) < FEW_ROWS:
        return _distinct_weights(machine, rows)
    first, inverse = rows.distinct(outside=WEIGHTLESS)
    return {name: as_floats(line)[inverse] for name, line in _distinct_weights(machine, rows.take(first)).items()}


def _distinct_weights(machine: Machine, rows: Rows) -> dict[str, Floats]:
    """The same of every row."""
    stages = ceil_div(machine.model.layers, rows.pp) / machine.model.layers
    return {
        "expert weights": expert_bytes(machine, rows) * stages,
        "other weights": _replicated_bytes(machine, rows) * stages + _head_bytes(machine, rows),
        "offloaded weights": -offloaded_bytes(machine, rows) * stages,
        "mtp weights": np.where((rows.drafts > 0) & (machine.drafter is None), _mtp_bytes(machine, rows), 0.0),
        **({"drafter weights": np.where(rows.drafts > 0, _drafter_bytes(machine, rows), 0.0)} if machine.drafter else {}),
    }


def _eplb_bytes(machine: Machine, rows: Rows) -> Floats:
    """A layer of local experts to receive into, and the recorded window: 4 B per step, layer and physical expert."""
    moe = machine.model.moe
    if moe is None:
        return np.zeros(len(rows))
    window = 4.0 * rows.eplb_window_steps * machine.model.moe_layers * (moe.experts + rows.redundant_experts)
    received = expert_bytes(machine, rows) / max(machine.model.moe_layers, 1)
    return np.where(rows.eplb_interval_steps > 0, received + window, 0.0)


def sequence_bytes(machine: Machine, rows: Rows, workload: Workload) -> SequenceBytes:
    """What one sequence keeps on a GPU while its output grows from nothing to its end at an even pace."""
    peak_tokens = workload.peak_context_tokens
    mean, peak, first = (
        state_bytes(machine, rows, tokens) for tokens in (workload.context_tokens, peak_tokens, peak_tokens - workload.osl_tokens)
    )
    return SequenceBytes(mean, (peak - first) / np.sqrt(12.0), peak)


def state_bytes(machine: Machine, rows: Rows, context_tokens: float) -> Floats:
    """Keys, latents and recurrent state of one sequence on one GPU, in its share of the pipeline's layers [B].

    A prefill rank hands as much over to a decode rank. Ranks that share the tokens of sequences hold a share each; a drafter
    of its own weights keeps its cache on every rank.
    """
    held = machine.model.state_bytes(context_tokens, machine.recipe, rows.tp, rows.dcp) / rows.pp
    if machine.drafter is None:
        return as_floats(held)
    own = machine.drafting
    drafter_held = own.model.state_bytes(context_tokens, own.recipe, rows.tp)
    return as_floats(held + np.where(rows.drafts > 0, drafter_held, 0.0))


def _stored_bytes(machine: Machine, matrix: Matrix) -> float:
    return matrix.parameters * (DTYPES[machine.dtype(matrix.family)].weight_bytes + _kept_beside_bytes(machine, matrix))


def _kept_beside_bytes(machine: Machine, matrix: Matrix) -> float:
    """What an engine keeps of a latent up-projection beside its absorbed form, which the recipe's kv_b states [B per weight].

    SGLang copies both halves (0.5.15 models/deepseek_common/deepseek_weight_loader.py: contiguous w_kc, w_vc) and keeps the
    projection for prompts that are not absorbed; vLLM views it, unless it is quantised and widened
    (0.24 model_executor/layers/attention/mla_attention.py: get_and_maybe_dequant_weights).
    """
    if matrix.family != "kv_b":
        return 0.0
    projection = machine.recipe.kv_b_expand or machine.recipe.kv_b
    viewed = machine.calibration.applies_to.engine in VIEWS_ABSORBED and projection == machine.recipe.kv_b
    return 0.0 if viewed else DTYPES[projection].weight_bytes


def expert_bytes(machine: Machine, rows: Rows) -> Floats:
    """Routed experts on one GPU in all layers; redundant copies included."""
    moe = machine.model.moe
    if moe is None:
        return np.zeros(len(rows))
    matrices = [matrix for matrix in machine.model.layer_matrices() if matrix.family == "experts"]
    one_copy = sum(_expert_slice_bytes(machine, matrix, as_floats(rows.moe_tp)) for matrix in matrices)
    return as_floats(one_copy * (moe.experts + rows.redundant_experts) / rows.ep)


def _expert_slice_bytes(machine: Machine, matrix: Matrix, shards: Floats) -> Floats:
    """One expert's slice of a matrix on one of `shards` ranks, in all layers, as its kernels hold it: padded [B].

    Gate and up are fused but padded apart.
    """
    info, moe = DTYPES[machine.dtype("experts")], machine.model.moe
    assert moe is not None
    cut, kept = (matrix.n, matrix.k) if matrix.sharding == "column" else (matrix.k, matrix.n)
    fused = max(cut // moe.intermediate, 1)
    width = cut / fused / shards
    if info.width_multiple > 1:
        width = np.ceil(width / info.width_multiple) * info.width_multiple
    kept = -(-kept // info.hidden_multiple) * info.hidden_multiple
    return as_floats(fused * width * kept * matrix.layers * info.weight_bytes)


def offloadable_layer_bytes(machine: Machine, rows: Rows) -> list[Floats]:
    """What offload moves of a layer of each group: the routed experts, or whole layers of a dense model [B].

    vLLM's --offload-params and SGLang's offloader take the expert matrices of MoE models; their other layers stay.
    """
    model = machine.model
    if model.moe:
        layer = expert_bytes(machine, rows) / model.moe_layers
        return [layer if isinstance(group.ffn, MoeSpec) else np.zeros(len(rows)) for group in model.groups]
    return [_replicated_bytes(machine, rows) / model.layers for _ in model.groups]


def offloaded_bytes(machine: Machine, rows: Rows) -> Floats:
    """Device memory that weight offload frees, over all layers [B]."""
    freed = np.zeros(len(rows))
    for setting in offload_settings(machine.model, rows):
        layer = by_layer(machine.model, offloadable_layer_bytes(machine, rows))
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
    if not rows.offload_group_size.any():
        return
    columns = np.stack([rows.offload_group_size, rows.offload_in_group, rows.offload_prefetch_step], axis=1)
    offers = np.ones(model.layers, dtype=np.bool_)
    if model.moe:
        offers = np.isin(np.arange(model.layers), model.moe_positions)
    for group, number, step in np.unique(columns[rows.offload_group_size > 0], axis=0):
        layers = offloaded_mask(model.layers, int(group), int(number)) & offers
        yield OffloadSetting((columns == (group, number, step)).all(axis=1), layers, int(step))


def by_layer(model: ModelSpec, values: Sequence[Floats]) -> Floats:
    """Values of a layer of each group, (rows,) each, as (layers, rows)."""
    groups = {position: number for number, group in enumerate(model.groups) for position in group.positions}
    return np.stack([values[groups[position]] for position in range(model.layers)])


def _replicated_bytes(machine: Machine, rows: Rows) -> Floats:
    """Attention, dense FFN, shared expert and router: sharded by TP, replicated over DP.

    Under DP attention the shared expert runs on each rank's own tokens and is not sharded.
    """
    total = np.zeros(len(rows))
    for matrix in machine.model.layer_matrices():
        if matrix.family == "experts":
            continue
        shards = np.where((matrix.family == "shared_expert") & (rows.dp > 1), 1, rows.tp)
        share = matrix.rank_n(shards) / matrix.n * (matrix.rank_k(shards) / matrix.k)
        total = total + _stored_bytes(machine, matrix) * share
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


def _drafter_bytes(machine: Machine, rows: Rows) -> Floats:
    """A drafter of its own weights, sharded by TP as its matrices are."""
    assert machine.drafter is not None
    total = np.zeros(len(rows))
    for matrix in machine.drafter.matrices():
        share = matrix.rank_n(rows.tp) / matrix.n * (matrix.rank_k(rows.tp) / matrix.k)
        total = total + matrix.parameters * DTYPES["bf16"].weight_bytes * share
    return total


def _buffer_tokens(rows: Rows) -> Floats:
    """Tokens per rank that buffers are sized for."""
    return as_floats(np.maximum(rows.batched_tokens, np.ceil(rows.batch / rows.pp) * (1 + rows.drafts)))


def _activation_bytes(
    machine: Machine, rows: Rows, phase: Phase, tokens: Floats, sampled: Floats, c: MemoryCoefficients
) -> Floats:
    """Widest live tensors of a layer, gathered tokens where the backend gathers them, and the logits of `sampled` tokens.

    Every rank gathers the whole vocabulary and samples from a copy in FP32 (vllm 0.33 layers/logits_processor.py,
    v1/sample/sampler.py; sglang 0.5.23 layers/logits_processor.py).
    """
    model = machine.model
    own = tokens * model.hidden * 2 * c.activation_passes

    def widest(tp: Floats, dcp: Floats) -> Floats:
        return as_floats(np.max([k.activation_elements(phase, k.heads_alike(tp, dcp, phase)) for k in model.attentions], axis=0))

    query = tokens * evaluate_distinct(widest, rows.tp, rows.dcp) * 2
    gathered = np.where(rows_whose(rows.backend, lambda backend: backend.gathers), tokens * rows.dp, tokens)
    experts = 0.0
    if model.moe:
        pairs = gathered * model.moe.top_k / rows.ep
        inner = model.moe.routed_hidden(model.hidden)
        experts = pairs * (2 * model.moe.intermediate / rows.moe_tp + inner) * 2 + gathered * inner * 2
    logits = sampled * model.vocab * 6
    return as_floats(own + query + experts + logits)


def _dispatch_buffer_bytes(machine: Machine, rows: Rows, tokens: Floats, c: MemoryCoefficients) -> Floats:
    model = machine.model
    if model.moe is None:
        return np.zeros(len(rows))
    chunk = np.where(rows.moe_chunk_tokens > 0, np.minimum(rows.moe_chunk_tokens, UNLIMITED), tokens)
    buffered = np.minimum(tokens, chunk)
    hidden = model.moe.routed_hidden(model.hidden)
    payload = payload_bytes(hidden, DTYPES[machine.recipe.dispatch].activation_bytes, model.moe.top_k)
    slots = as_floats(model.moe.experts + rows.redundant_experts)
    ranks, pinned = as_floats(rows.dp), c.deepep_normal_buffer_bytes
    found = np.zeros(len(rows))
    for (code,), those in alike_rows(rows.backend):
        shape = BufferShape(as_floats(buffered[those]), ranks[those], slots[those], hidden, payload, pinned)
        found[those] = ALL_TO_ALL[code].buffer_bytes(shape)
    return found
