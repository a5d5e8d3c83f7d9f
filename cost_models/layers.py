"""One layer assembled from its operators: microbatches, launch floors, overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models import context_parallel
from cost_models.all_to_all.registry import rows_whose
from cost_models.arrays import FEW_ROWS, Floats, Ints, alike_rows, as_floats, ceil_div
from cost_models.attention.base import AttentionKind, Phase
from cost_models.dispatch import BACKENDS
from cost_models.host import HostCoefficients, small_kernels
from cost_models.hyper_connections import FAMILY, mixing
from cost_models.machine import Machine
from cost_models.memory import by_layer, offload_settings, offloadable_layer_bytes
from cost_models.moe_layer import moe_operators
from cost_models.offload import OffloadCoefficients, prefetch_pass_s, zero_copy_pass_s
from cost_models.operators import LaterTimings, Timing, dense_ffn_operators, joined
from cost_models.overlap import OVERLAPS, OverlapCoefficients, single_batch_hidden_s, two_batch_time_s
from cost_models.rows import Rows
from cost_models.specs.model import FeedForward, ModelSpec, MoeSpec

COMMUNICATION = ("dispatch", "combine")
SHARED_EXPERT = ("shared_gate_up", "shared_down")
ROUNDING_S = 1e-9
"""Below this a stall is rounding of the replayed sum."""
OUTSIDE = (
    "pp", "batch", "graph_tokens", "output_chunk", "api_servers", "batched_tokens",
    "offload_group_size", "offload_in_group", "offload_prefetch_step",
)  # fmt: skip
"""Columns that no layer depends on, but for the tokens that it is given and whether a CUDA graph holds them."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's operators and its time after overlap and launch floors."""

    operators: Mapping[str, Timing]
    """Of all micro-batches together."""
    time_s: Floats
    microbatches: Floats

    def take(self, index: Ints) -> Layer:
        """Of the rows at the given positions."""
        operators = LaterTimings(self.operators, lambda name: self.operators[name].take(index))
        return Layer(operators, self.time_s[index], self.microbatches[index])


def whole_model(model: ModelSpec, rows: Rows, layers: Sequence[Layer]) -> tuple[Mapping[str, Timing], dict[str, Floats]]:
    """Operators over all layers, and time by layer kind; the longest pipeline stage sets the pace of all.

    layers : one of each group of the model.
    """
    stretch = pipeline_stretch(model, rows)
    kinds = {"dense_layers": np.zeros(len(stretch)), "moe_layers": np.zeros(len(stretch))}
    for group, layer in zip(model.groups, layers, strict=True):
        kinds[group.kind] = kinds.get(group.kind, np.zeros(len(stretch))) + layer.time_s * group.count * stretch

    def operator(name: str) -> Timing:
        groups = zip(model.groups, layers, strict=True)
        found = [layer.operators[name].scaled(group.count * stretch) for group, layer in groups if name in layer.operators]
        return sum(found[1:], found[0])

    return LaterTimings([name for layer in layers for name in layer.operators], operator), kinds


def shared_layers(rows: Rows, columns: Sequence[NDArray[Any]], price: Callable[..., list[Layer]]) -> list[Layer]:
    """Layers of every row, of which those that differ only in what is OUTSIDE of a layer are priced once.

    columns : (rows,) each, what else they depend on; price : takes rows and those columns.
    """
    if len(rows) < FEW_ROWS:
        return price(rows, *columns)
    first, inverse = rows.distinct(*columns, outside=OUTSIDE)
    return [layer.take(inverse) for layer in price(rows.take(first), *(column.take(first) for column in columns))]


def pipeline_stretch(model: ModelSpec, rows: Rows) -> Floats:
    """Layers that a step takes as long as, over those of the model: every pipeline stage waits for the longest."""
    return as_floats(rows.pp * ceil_div(model.layers, rows.pp) / model.layers)


def priced_layers(
    machine: Machine,
    rows: Rows,
    attention: Callable[[AttentionKind], Mapping[str, Timing]],
    tokens: Floats,
    split: NDArray[np.bool_],
    captured: NDArray[np.bool_],
    phase: Phase,
) -> list[Layer]:
    """One layer of each group of the model; every distinct attention and feed-forward kind is priced once.

    attention : prices a kind on one microbatch; tokens : of one microbatch; split : rows that run two; captured : rows
    whose step is a CUDA graph.
    """
    host = machine.coefficients("host", "default", HostCoefficients)
    microbatches = np.where(split, 2.0, 1.0)
    mixers = {kind: attention(kind) for kind in machine.model.attentions}
    ffns = {ffn: _ffn_operators(machine, rows, ffn, tokens, phase) for ffn in machine.model.ffns}
    mixed = {FAMILY: mixing(machine, tokens)} if machine.model.residual_streams > 1 else {}
    shares = bool((rows.dcp > 1).any())
    layers = []
    for group in machine.model.groups:
        mixer = mixers[group.attention] if group.attention else {}
        operators = {**mixer, **mixed, **(ffns[group.ffn] if group.ffn else {})}
        exchanged = rows.backend != BACKENDS.index("none")
        small = small_kernels(group, machine.model.hidden, exchanged, rows.tp > 1, host.fused_norms)
        small = small + context_parallel.exchange_kernels(machine, group.attention, rows.dcp) if shares else small
        layer = finished(operators, rows, captured, microbatches, host, small)
        layers.append(overlapped(machine, layer, rows, split) if isinstance(group.ffn, MoeSpec) else layer)
    return layers


def _ffn_operators(machine: Machine, rows: Rows, ffn: FeedForward, tokens: Floats, phase: Phase) -> dict[str, Timing]:
    if isinstance(ffn, MoeSpec):
        return moe_operators(machine, rows, tokens, phase)
    return dense_ffn_operators(machine, ffn, tokens, as_floats(rows.tp))


ONCE = ("eplb_moves",)
"""Operators of a layer that do not depend on how many microbatches it runs."""


def finished(
    operators: Mapping[str, Timing],
    rows: Rows,
    captured: NDArray[np.bool_],
    halves: Floats,
    host: HostCoefficients,
    small: Floats,
) -> Layer:
    r"""Sum over the microbatches, with the small kernels between operators (captured in a CUDA graph) or the eager launch floor.

    .. math::
        g = h\,n\,t_s \;\text{(graph)}, \quad g = \max(h\,n\,t_s,\; h\,(k\,t_e + t_x + t_r) - t_{busy}) \;\text{(eager)}

    small : n, of one layer (`host.small_kernels`); h microbatches, k operators that run, t_s, t_e, t_x, t_r : HostCoefficients'
    small_kernel_s, eager_operator_s, eager_experts_s, eager_scan_s (docs/models/host.md).
    Kernels queue up while the GPU works, so eager launches cost only what exceeds it, unless dispatch makes the host
    wait for its counts (DeepEP normal): then one microbatch's launches are exposed.
    """
    once = sum((operators[name].time_s for name in ONCE if name in operators), np.zeros(len(halves)))
    repeated = sum((t.time_s for name, t in operators.items() if name not in ONCE), np.zeros(len(halves)))
    busy = halves * repeated + once
    graph_s = halves * small * host.small_kernel_s
    gaps = graph_s if captured.all() else np.where(captured, graph_s, _eager_gaps_s(operators, rows, halves, host, busy, graph_s))

    def of_both(name: str) -> Timing:
        return operators[name] if name in ONCE else operators[name].scaled(halves)

    launched = {"launch_gaps": Timing(gaps, np.zeros(len(gaps)))}
    return Layer(joined(LaterTimings(operators, of_both), launched), busy + gaps, halves)


def _eager_gaps_s(
    operators: Mapping[str, Timing], rows: Rows, halves: Floats, host: HostCoefficients, busy: Floats, graph_s: Floats
) -> Floats:
    """The launch floor of eager steps beyond what the GPU works; at least the small kernels."""
    launched = sum((t.time_s > 0 for t in operators.values()), np.zeros(len(halves)))
    scans = any(name.endswith("_scan") for name in operators)
    beyond_s = (host.eager_experts_s if "experts" in operators else 0.0) + (host.eager_scan_s if scans else 0.0)
    floor_s = launched * host.eager_operator_s + beyond_s
    dispatching = operators["dispatch"].time_s > 0 if "dispatch" in operators else np.zeros(len(halves), dtype=np.bool_)
    waits = dispatching & rows_whose(rows.backend, lambda backend: backend.waits_for_counts)
    eager_s = np.where(waits, floor_s, halves * floor_s - busy)
    return np.maximum(eager_s, graph_s)


def overlapped(machine: Machine, layer: Layer, rows: Rows, split: NDArray[np.bool_]) -> Layer:
    """Take off what overlap hides; recorded as the negative operator `overlap`."""
    hidden = np.zeros(len(rows))
    names = [*COMMUNICATION, "experts", "shared_stream", *(name for name in SHARED_EXPERT if name in layer.operators)]
    columns = [layer.time_s, *(layer.operators[name].time_s for name in names)]
    single = rows.overlap == OVERLAPS.index("single_batch")
    for (kind,), those in alike_rows(np.where(rows.overlap != OVERLAPS.index("none"), rows.backend, BACKENDS.index("none"))):
        if BACKENDS[kind] != "none":
            c = machine.coefficients("overlap", BACKENDS[kind], OverlapCoefficients)
            together, inside = _overlapping_s(*(column[those] for column in columns), processors=machine.processors, c=c)
            hidden[those] = np.where(single[those], inside, np.where(split[those], together, 0.0))
    operators = joined(layer.operators, {"overlap": Timing(-hidden, np.zeros(len(rows)))})
    return Layer(operators, layer.time_s - hidden, layer.microbatches)


def _overlapping_s(
    layer: Floats, dispatch: Floats, combine: Floats, experts: Floats, *shared: Floats, processors: float, c: OverlapCoefficients
) -> tuple[Floats, Floats]:
    """What two batches hide of a layer, and what one batch would, from times of the layer and its operators [s]."""
    communication = dispatch + combine
    compute = layer - communication
    slowed = compute + communication * c.communication_processors / processors
    together = two_batch_time_s(slowed, communication * c.communication_slowdown, c.two_batch_sharpness)
    inside = single_batch_hidden_s(dispatch, combine, experts, sum(shared[1:], shared[0]), c.single_batch_hidden)
    return layer - together, inside


def offload_stall(machine: Machine, rows: Rows, layers: Sequence[Layer]) -> Timing:
    """What weight offload adds to a pass over all layers: the replayed timeline less the layers' own time."""
    zero = np.zeros(len(rows))
    stall = zero
    model = machine.model
    for setting in offload_settings(model, rows):
        c = machine.coefficients("offload", "default", OffloadCoefficients)
        bandwidth = machine.hardware.host_link_bytes_per_s * c.link_efficiency
        lone = setting.rows.sum() == 1  # numpy would add its layers up in another order than those of several
        those = np.arange(len(rows)) if lone else np.flatnonzero(setting.rows)
        compute = by_layer(model, [layer.time_s[those] for layer in layers])
        copies = by_layer(model, offloadable_layer_bytes(machine, rows.take(those))) / bandwidth
        if setting.prefetch_step:
            timeline = prefetch_pass_s(compute, copies, setting.layers, setting.prefetch_step)
        else:
            timeline = zero_copy_pass_s(compute, copies, setting.layers)
        found = np.zeros(len(rows))
        found[those] = timeline - compute.sum(axis=0)
        stall = np.where(setting.rows, found, stall)
    return Timing(np.where(stall > ROUNDING_S, stall, 0.0), zero)
