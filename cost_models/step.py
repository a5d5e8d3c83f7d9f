"""A decode step: operators of every layer, overlap, head and host, summed with a breakdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Floats, as_floats, ceil_div, evaluate_distinct
from cost_models.attention.base import AttentionKind
from cost_models.collectives import pipeline_hop_time_s
from cost_models.drafters import Drafter
from cost_models.host import HostCoefficients, host_step_s, output_processing_s
from cost_models.layers import Layer, offload_stall, priced_layers, shared_layers, whole_model
from cost_models.machine import Machine
from cost_models.operators import Timing, attention_operators, gemm, head_operators, joined, matrix_gemm, total_s
from cost_models.overlap import OVERLAPS
from cost_models.rows import Rows
from cost_models.specs.matrix import Matrix
from cost_models.specs.model import ModelSpec
from cost_models.speculative import accepted_tokens_per_step

PIPELINE_START_S = 10e-6


@dataclass(frozen=True, slots=True)
class StepCost:
    """A decode step of every row, (rows,) arrays.

    operators : name -> time and roofline bound per step [s]; `overlap` is negative: what it hides.
    layer_kinds : dense_layers, moe_layers, mixer_layers (no feed-forward part), head, host -> time per step [s]; they sum
    to step_s.
    """

    operators: Mapping[str, Timing]
    layer_kinds: dict[str, Floats]
    layers: tuple[Layer, ...]
    """One of each group of the model."""
    step_s: Floats
    accepted_tokens: Floats
    """Tokens a sequence gains per step."""
    tpot_s: Floats
    tokens_per_s_per_gpu: Floats


def decode_step(machine: Machine, rows: Rows, context_tokens: float, mtp_acceptance: tuple[float, ...] = ()) -> StepCost:
    """Cost of one decode step.

    context_tokens : mean context of the sequences; mtp_acceptance : needed where rows have drafts.
    Pipeline stages work on batch/pp sequences each; a sequence's token passes all layers, and the
    longest stage sets the pace. Raises MissingFactError where a coefficient or peak is unknown.
    """
    c = machine.coefficients("host", "default", HostCoefficients)
    in_flight = ceil_div(rows.batch, rows.pp)
    layers = _layers(machine, rows, in_flight, context_tokens)
    of_layers, kinds = whole_model(machine.model, rows, layers)
    tokens = in_flight * (1 + rows.drafts)
    head = head_operators(machine, as_floats(tokens), as_floats(rows.tp), c.sampling_bytes_per_logit)
    drafting = _drafter_passes if machine.drafter else _draft_chain
    once = {**head, "mtp_drafts": drafting(machine, rows, layers, in_flight, context_tokens)}
    kinds["head"] = total_s(once)
    host = {
        "pipeline_hops": hops(machine, rows, tokens),
        "host": Timing(host_step_s(in_flight, rows.dp, c) * rows.pp, np.zeros(len(rows))),
        "offload_stall": offload_stall(machine, rows, layers),
    }
    kinds["host"] = total_s(host)
    step_s = sum(kinds.values(), np.zeros(len(rows)))
    waiting = np.maximum(output_processing_s(rows.api_outputs, rows.output_chunk, c) - step_s, 0.0)
    host["output_processing_wait"] = Timing(waiting, np.zeros(len(rows)))
    step_s, kinds["host"] = step_s + waiting, kinds["host"] + waiting
    operators = joined(of_layers, once | host)
    accepted = accepted_tokens_per_step(rows.drafts, mtp_acceptance)
    tpot_s = step_s / accepted
    rate = rows.batch * rows.dp / tpot_s / rows.gpus
    return StepCost(operators, kinds, tuple(layers), step_s, accepted, tpot_s, rate)


def _layers(machine: Machine, rows: Rows, sequences: Floats, context: float) -> list[Layer]:
    """A layer of each group, of every row; two-batch rows are priced on half batches."""
    split = (rows.overlap == OVERLAPS.index("two_batch")) & (sequences >= 2) & (rows.dp > 1)
    captured = np.asarray(rows.graph_tokens >= np.ceil(rows.batch / rows.pp) * (1 + rows.drafts))
    columns = (sequences / np.where(split, 2.0, 1.0), split, captured)
    return shared_layers(rows, columns, partial(_distinct_layers, machine, context))


def _distinct_layers(
    machine: Machine, context: float, rows: Rows, sequences: Floats, split: NDArray[np.bool_], captured: NDArray[np.bool_]
) -> list[Layer]:
    queries = as_floats(1 + rows.drafts)
    tokens = sequences * queries

    def attention(kind: AttentionKind) -> Mapping[str, Timing]:
        return attention_operators(machine, kind, sequences, queries, as_floats(rows.tp), context, as_floats(rows.dcp))

    return priced_layers(machine, rows, attention, tokens, split, captured, "decode")


def _draft_chain(machine: Machine, rows: Rows, layers: Sequence[Layer], in_flight: Floats, context: float) -> Timing:
    r"""Drafting the next tokens, one after the other.

    .. math:: t = L(b (1 + d)) + (d - 1) L(b) + d\,H(b), \quad L(m) = t_{layer}(m) + t_{[2H \to H]}(m)

    The first pass of the MTP module takes all b (1 + d) tokens that were just verified, whose hidden states are new; the
    others take the one token that each of the b sequences drafted before. Each ends in lm_head over b tokens (SGLang
    EAGLE, vLLM v1/spec_decode/eagle.py; module: arXiv 2412.19437, 2.2).
    """
    drafts = as_floats(rows.drafts)
    if not drafts.any():
        return Timing(np.zeros(len(rows)), np.zeros(len(rows)))
    alone = _layers(machine, rows.replace(drafts=0), in_flight, context)
    first = draft_layer(machine.model, layers) + draft_projection(machine, as_floats(in_flight * (1 + drafts)))
    later = draft_layer(machine.model, alone) + draft_projection(machine, as_floats(in_flight))
    head = head_operators(machine, as_floats(in_flight), as_floats(rows.tp), 0.0)["lm_head"]
    on = np.where(drafts > 0, 1.0, 0.0)
    return first.scaled(on) + later.scaled(np.maximum(drafts - 1, 0)) + head.scaled(drafts)


def _drafter_passes(machine: Machine, rows: Rows, layers: Sequence[Layer], in_flight: Floats, context: float) -> Timing:  # noqa: ARG001
    r"""Drafting by a model of its own weights (drafters.py), on the last pipeline stage. Its own cache is on every rank.

    .. math::
        t_{chain} = F(b(1+d)) + L(b, 1+d) + (d-1) L(b, 1) + d\,H(b), \quad
        t_{block} = F(b(1+d)) + K(b(1+d)) + L(b, 1+d) + H(b d) + d\,M(b)

    F fuses hidden states of the b (1 + d) tokens just verified, L(b, q) are the layers over q tokens of b sequences, K writes the
    keys and values of verified tokens into the block drafter's cache, H is the head, M corrects one draft by the one before.
    """
    drafts, drafter = as_floats(rows.drafts), machine.drafter
    if drafter is None or not drafts.any():
        return Timing(np.zeros(len(rows)), np.zeros(len(rows)))
    own, plain = machine.drafting, rows.replace(overlap=OVERLAPS.index("none"), dcp=1)
    verified, tp = in_flight * (1 + drafts), as_floats(rows.tp)
    on = np.where(drafts > 0, 1.0, 0.0)
    found = drafter_layers(own, _layers(own, plain, in_flight, context)) + drafter_input(own, drafter, verified, tp)
    if not drafter.works.whole_block:
        one = drafter_layers(own, _layers(own, plain.replace(drafts=0), in_flight, context))
        one = one + _embedding_input(own, drafter, in_flight, tp)
        head = head_operators(own, as_floats(in_flight), tp, 0.0)["lm_head"]
        return (found + _embedding_input(own, drafter, verified, tp)).scaled(on) + one.scaled(drafts - on) + head.scaled(drafts)
    head = head_operators(own, as_floats(np.maximum(in_flight * drafts, 1.0)), tp, 0.0)["lm_head"]
    found = found + drafter_cache(own, verified, tp) + head
    if drafter.correction is not None:
        correction = Timing(*matrix_gemm(own, drafter.correction, as_floats(in_flight), tp))
        return found.scaled(on) + correction.scaled(drafts)
    return found.scaled(on)


def drafter_layers(own: Machine, layers: Sequence[Layer]) -> Timing:
    """One pass through all layers of a drafter. layers : one of each of its groups."""
    zero = np.zeros(len(layers[0].time_s))
    total = Timing(zero, zero)
    for group, layer in zip(own.model.groups, layers, strict=True):
        bound_s = sum((t.bound_s for t in layer.operators.values()), zero)
        total = total + Timing(layer.time_s, bound_s).scaled(zero + group.count)
    return total


def drafter_input(own: Machine, drafter: Drafter, tokens: Floats, tp: Floats) -> Timing:
    """Hidden states of several layers of the target, fused to the drafter's width."""
    return Timing(*matrix_gemm(own, drafter.fuse, as_floats(tokens), tp))


def _embedding_input(own: Machine, drafter: Drafter, tokens: Floats, tp: Floats) -> Timing:
    matrix = drafter.embedding_input
    return Timing(*matrix_gemm(own, matrix, as_floats(tokens), tp)) if matrix else Timing(np.zeros(len(tp)), np.zeros(len(tp)))


def drafter_cache(own: Machine, tokens: Floats, tp: Floats) -> Timing:
    """Keys and values (or latents) of tokens in all layers of a block drafter, from their fused hidden states."""
    plain = own.recipe.model_copy(update={"kv_cache": "bf16"})
    columns = own.model.state_bytes(1.0, plain, tp) / 2.0
    return Timing(*gemm(own, own.dtype("attention_in"), as_floats(tokens), as_floats(columns), own.model.hidden))


def draft_projection(machine: Machine, tokens: Floats) -> Timing:
    """An MTP module's projection of [hidden; embedding] to the hidden size."""
    matrix = Matrix("mtp_proj", "attention_in", machine.model.hidden, 2 * machine.model.hidden, 1, "replicated")
    return Timing(*evaluate_distinct(lambda m: matrix_gemm(machine, matrix, m, np.ones(len(m))), tokens))


def draft_layer(model: ModelSpec, layers: Sequence[Layer]) -> Timing:
    """One pass through the layer, or blocks, that an MTP module repeats. layers : one of each group of the model."""
    chosen = [layer for group, layer in zip(model.groups, layers, strict=True) if group in model.draft_layers]
    zero = np.zeros(len(chosen[0].time_s))
    bound_s = sum((t.bound_s for layer in chosen for t in layer.operators.values()), zero)
    return Timing(sum((layer.time_s for layer in chosen), zero), bound_s)


def hops(machine: Machine, rows: Rows, tokens: Floats) -> Timing:
    """Sending a microbatch's hidden states through the pipeline stages."""
    message = tokens * machine.model.hidden * 2
    time_s = pipeline_hop_time_s(message, rows.gpus, rows.pp, links=machine.links, start_s=PIPELINE_START_S)
    return Timing(time_s, np.zeros(len(rows)))
