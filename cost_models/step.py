"""A decode step: operators of every layer, overlap, head and host, summed with a breakdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cost_models.arrays import Floats, as_floats, ceil_div
from cost_models.collectives import pipeline_hop_time_s
from cost_models.dispatch import BACKENDS
from cost_models.host import HostCoefficients, host_step_s, output_processing_s
from cost_models.machine import Machine
from cost_models.moe_layer import moe_operators
from cost_models.operators import Timing, attention_operators, dense_ffn_operators, head_operators
from cost_models.overlap import OVERLAPS, OverlapCoefficients, single_batch_hidden_s, two_batch_time_s
from cost_models.rows import Rows
from cost_models.speculative import accepted_tokens_per_step

COMMUNICATION = ("dispatch", "combine")
PIPELINE_START_S = 10e-6


@dataclass(frozen=True, slots=True)
class StepCost:
    """A decode step of every row, (rows,) arrays.

    operators : name -> time and roofline bound per step [s]; `overlap` is negative: what it hides.
    layer_kinds : dense_layers, moe_layers, head, host -> time per step [s]; they sum to step_s.
    """

    operators: dict[str, Timing]
    layer_kinds: dict[str, Floats]
    step_s: Floats
    accepted_tokens: Floats
    """Tokens a sequence gains per step."""
    tpot_s: Floats
    tokens_per_s_per_gpu: Floats


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's operators and its time after overlap and launch floors."""

    operators: dict[str, Timing]
    time_s: Floats


def decode_step(machine: Machine, rows: Rows, context_tokens: float, mtp_acceptance: tuple[float, ...] = ()) -> StepCost:
    """Cost of one decode step.

    context_tokens : mean context of the sequences; mtp_acceptance : needed where rows have drafts.
    Pipeline stages work on batch/pp sequences each; a sequence's token passes all layers, and the
    longest stage sets the pace. Raises MissingFactError where a coefficient or peak is unknown.
    """
    c = machine.coefficients("host", "default", HostCoefficients)
    model = machine.model
    in_flight = ceil_div(rows.batch, rows.pp)
    stage_stretch = rows.pp * ceil_div(model.layers, rows.pp) / model.layers
    dense, moe = _layers(machine, rows, in_flight, context_tokens, c)
    counts = {"dense": model.layers - model.moe_layers, "moe": model.moe_layers}
    operators: dict[str, Timing] = {}
    for layer, count in ((dense, counts["dense"]), (moe, counts["moe"])):
        if layer is not None:
            for name, timing in layer.operators.items():
                scaled = timing.scaled(count * stage_stretch)
                operators[name] = operators[name] + scaled if name in operators else scaled
    tokens = in_flight * (1 + rows.drafts)
    head = head_operators(machine, as_floats(tokens), as_floats(rows.tp), c.sampling_bytes_per_logit)
    operators |= head
    operators["mtp_drafts"] = _draft_passes(moe or dense, head, rows)
    operators["pipeline_hops"] = _hops(machine, rows, tokens)
    operators["host"] = Timing(host_step_s(in_flight, rows.dp, c) * rows.pp, np.zeros(len(rows)))
    step_s = as_floats(sum(t.time_s for t in operators.values()))
    waiting = np.maximum(output_processing_s(rows.api_outputs, rows.output_chunk, c) - step_s, 0.0)
    operators["output_processing_wait"] = Timing(waiting, np.zeros(len(rows)))
    step_s = step_s + waiting
    kinds = {
        "dense_layers": dense.time_s * counts["dense"] * stage_stretch if dense else np.zeros(len(rows)),
        "moe_layers": moe.time_s * counts["moe"] * stage_stretch if moe else np.zeros(len(rows)),
    }
    kinds["head"] = sum((t.time_s for t in head.values()), operators["mtp_drafts"].time_s)
    kinds["host"] = operators["host"].time_s + operators["pipeline_hops"].time_s + waiting
    accepted = accepted_tokens_per_step(rows.drafts, mtp_acceptance)
    tpot_s = step_s / accepted
    rate = rows.batch * rows.dp / tpot_s / rows.gpus
    return StepCost(operators, kinds, step_s, accepted, tpot_s, rate)


def _layers(
    machine: Machine, rows: Rows, sequences: Floats, context: float, host: HostCoefficients
) -> tuple[_Layer | None, _Layer | None]:
    """The dense and the MoE layer of every row; two-batch rows are priced on half batches."""
    split = (rows.overlap == OVERLAPS.index("two_batch")) & (sequences >= 2) & (rows.dp > 1)
    halves = np.where(split, 2.0, 1.0)
    sequences = sequences / halves
    queries = as_floats(1 + rows.drafts)
    tokens = sequences * queries
    attention = attention_operators(machine, sequences, queries, as_floats(rows.tp), context)
    dense = moe = None
    if machine.model.layers > machine.model.moe_layers:
        ffn = dense_ffn_operators(machine, tokens, as_floats(rows.tp))
        dense = _finished(attention | ffn, rows, halves, host)
    if machine.model.moe_layers:
        operators = attention | moe_operators(machine, rows, tokens)
        moe = _overlapped(machine, _finished(operators, rows, halves, host), rows, split)
    return dense, moe


def _finished(operators: Mapping[str, Timing], rows: Rows, halves: Floats, host: HostCoefficients) -> _Layer:
    """Sum over the microbatches, with the gaps between kernels or the eager launch floor.

    Both grow with the operators that the layer runs: a dense GQA layer has 6 where a DeepSeek MoE layer has 13.
    """
    scaled = {name: timing.scaled(halves) for name, timing in operators.items()}
    busy = sum((t.time_s for t in scaled.values()), np.zeros(len(rows)))
    captured = rows.graph_tokens >= np.ceil(rows.batch / rows.pp) * (1 + rows.drafts)
    launched = halves * sum((t.time_s > 0 for t in operators.values()), np.zeros(len(rows)))
    graph_s = launched * host.graph_operator_s
    gaps = np.where(captured, graph_s, np.maximum(launched * host.eager_operator_s - busy, graph_s))
    scaled["launch_gaps"] = Timing(gaps, np.zeros(len(rows)))
    return _Layer(scaled, busy + gaps)


def _overlapped(machine: Machine, layer: _Layer, rows: Rows, split: Floats) -> _Layer:
    """Take off what overlap hides; recorded as the negative operator `overlap`."""
    hidden = np.zeros(len(rows))
    communication = sum((layer.operators[name].time_s for name in COMMUNICATION), np.zeros(len(rows)))
    compute = layer.time_s - communication
    for kind in np.unique(rows.backend):
        mask = (rows.backend == kind) & (rows.overlap != OVERLAPS.index("none"))
        if not mask.any() or BACKENDS[kind] == "none":
            continue
        c = machine.coefficients("overlap", BACKENDS[kind], OverlapCoefficients)
        slowed = compute + communication * c.communication_processors / machine.processors
        together = two_batch_time_s(slowed, communication, c.two_batch_sharpness)
        shared = layer.operators["shared_stream"].time_s + sum(
            (t.time_s for n, t in layer.operators.items() if n in ("shared_gate_up", "shared_down")), np.zeros(len(rows))
        )
        inside = single_batch_hidden_s(
            layer.operators["dispatch"].time_s,
            layer.operators["combine"].time_s,
            layer.operators["experts"].time_s,
            shared,
            c.single_batch_hidden,
        )
        saved = np.where(split, layer.time_s - together, 0.0)
        single = rows.overlap == OVERLAPS.index("single_batch")
        hidden = np.where(mask, np.where(single, inside, saved), hidden)
    operators = {**layer.operators, "overlap": Timing(-hidden, np.zeros(len(rows)))}
    return _Layer(operators, layer.time_s - hidden)


def _draft_passes(layer: _Layer | None, head: Mapping[str, Timing], rows: Rows) -> Timing:
    """Each draft runs one MTP module (a layer) and lm_head."""
    if layer is None:
        return Timing(np.zeros(len(rows)), np.zeros(len(rows)))
    lm_head = head["lm_head"]
    bound = sum((t.bound_s for t in layer.operators.values()), lm_head.bound_s)
    return Timing((layer.time_s + lm_head.time_s) * rows.drafts, bound * rows.drafts)


def _hops(machine: Machine, rows: Rows, tokens: Floats) -> Timing:
    message = tokens * machine.model.hidden * 2
    time_s = pipeline_hop_time_s(message, rows.gpus, rows.pp, links=machine.links, start_s=PIPELINE_START_S)
    return Timing(time_s, np.zeros(len(rows)))
