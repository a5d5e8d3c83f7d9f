"""One MoE layer of a costed step as a document: its operators in order, and what overlap hides of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.documents.prediction import HiddenTime, Lane, LayerOperator, LayerPrediction
from cost_models.context_parallel import COMBINE, GATHER
from cost_models.hyper_connections import FAMILY
from cost_models.layers import COMMUNICATION, SHARED_EXPERT, Layer, pipeline_stretch
from cost_models.operator_groups import TENSOR_PARALLEL
from cost_models.overlap import OVERLAPS, single_batch_hideable_s
from cost_models.rows import Rows
from cost_models.specs.model import LayerGroup, ModelSpec, MoeSpec

SAVINGS = ("shared_stream", "overlap")
"""Negative operators: what runs beside something else."""
BEFORE_THE_CORE = ("norm_all_reduce", "indexer", "absorb", GATHER)
AFTER_ATTENTION = (
    "tp_all_reduce", "router", "latent_in", *SHARED_EXPERT, "dispatch", "experts", "combine", "latent_out", "moe_all_reduce",
)  # fmt: skip
"""Order in which engines launch what follows attention; a shared expert comes before the dispatch that it may hide."""
BETWEEN = ("elementwise", FAMILY, "moe_elementwise", "launch_gaps", "eplb_moves")
"""Small kernels and gaps between the others, and a rebalance spread over the steps: they have no place of their own."""


def layer_predictions(model: ModelSpec, rows: Rows, layers: Sequence[Layer]) -> tuple[LayerPrediction, ...]:
    """The first row's MoE layers, one of each kind, commonest first. layers : one of each group of the model."""
    stretch = float(pipeline_stretch(model, rows)[0])
    overlap = OVERLAPS[int(rows.overlap[0])]
    found = [
        _prediction(model, group, layer, stretch, overlap)
        for group, layer in zip(model.groups, layers, strict=True)
        if isinstance(group.ffn, MoeSpec)
    ]
    return tuple(sorted(found, key=lambda layer: -layer.count))


def _prediction(model: ModelSpec, group: LayerGroup, layer: Layer, stretch: float, overlap: str) -> LayerPrediction:
    times = {name: float(timing.time_s[0]) for name, timing in layer.operators.items()}
    names = [name for name in _in_order(model, group, times) if times[name] and name not in SAVINGS]
    return LayerPrediction(
        attention=group.attention.kind if group.attention else "",
        count=group.count,
        passes=group.count * stretch,
        microbatches=int(layer.microbatches[0]),
        operators=tuple(LayerOperator(name=name, lane=_lane(name), time_s=times[name]) for name in names),
        hidden=tuple(hidden for hidden in _hidden(times, overlap) if hidden.time_s),
        time_s=float(layer.time_s[0]),
    )


def _lane(name: str) -> Lane:
    if name in BETWEEN:
        return "between"
    return "communication" if name in (*COMMUNICATION, *TENSOR_PARALLEL) else "compute"


def _in_order(model: ModelSpec, group: LayerGroup, names: Mapping[str, float]) -> list[str]:
    """Projections into attention, its core, projections out of it, the feed-forward part; what runs in between comes last."""
    matrices = group.attention.matrices(model.hidden, 1) if group.attention else []
    leaving = {matrix.name for matrix in matrices if matrix.family == "o_proj"}
    entering = {matrix.name for matrix in matrices} - leaving

    def place(name: str) -> tuple[int, int]:
        if name in AFTER_ATTENTION:
            return 4, AFTER_ATTENTION.index(name)
        if name in BETWEEN:
            return 5, BETWEEN.index(name)
        if name in BEFORE_THE_CORE:
            return 1, int(name == GATHER)
        return (0 if name in entering else 3 if name in leaving else 2), int(name == COMBINE)

    return sorted(names, key=place)


def _hidden(times: Mapping[str, float], overlap: str) -> list[HiddenTime]:
    """What the negative operators take off; single-batch overlap hides the same share of both of its parts."""
    stream_s, hidden_s = -times.get("shared_stream", 0.0), -times.get("overlap", 0.0)
    stream = HiddenTime(operators=SHARED_EXPERT, behind="experts", time_s=stream_s)
    if overlap != "single_batch" or not hidden_s:
        return [stream, HiddenTime(operators=COMMUNICATION, behind="other micro-batch", time_s=hidden_s)]
    shared_s = sum(times.get(name, 0.0) for name in SHARED_EXPERT) - stream_s
    parts = [float(s) for s in single_batch_hideable_s(times["dispatch"], times["combine"], times["experts"], shared_s)]
    dispatch_s, combine_s = (hidden_s * part / sum(parts) for part in parts)
    return [
        stream,
        HiddenTime(operators=("dispatch",), behind="shared expert", time_s=dispatch_s),
        HiddenTime(operators=("combine",), behind="down-projection", time_s=combine_s),
    ]
