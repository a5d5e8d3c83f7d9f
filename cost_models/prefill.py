"""A prefill step: operators of every layer over a batch of new prompt tokens, overlap, offload and host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Floats, Ints, as_floats, ceil_div, evaluate_distinct
from cost_models.attention.base import AttentionKind
from cost_models.context_parallel import prompt_exchange
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.host import HostCoefficients, host_step_s
from cost_models.layers import Layer, offload_stall, priced_layers, shared_layers, whole_model
from cost_models.machine import Machine
from cost_models.operators import Timing, attention_all_reduces, head_operators, joined, total_s, traffic
from cost_models.overlap import OVERLAPS
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import draft_layer, draft_projection, drafter_cache, drafter_input, drafter_layers, hops


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """What one attention-DP rank prefills in a step, (rows,) each."""

    sequences: Floats
    """Prompts, or pieces of prompts, in a step."""
    new_tokens: Floats
    """New tokens of each."""
    prefix_tokens: Floats
    """Tokens of each that are in the KV cache already: cache hits and earlier chunks."""
    steps: Floats
    """Steps that one prompt takes."""

    @property
    def tokens(self) -> Floats:
        """New tokens per rank and step."""
        return self.sequences * self.new_tokens

    @property
    def finishing(self) -> Floats:
        """Prompts per rank whose last piece a step holds."""
        return self.sequences / self.steps

    def scaled(self, share: Floats) -> PromptBatch:
        """A share of the prompts; a lone prompt is cut in two."""
        whole = self.sequences * share >= 1
        return PromptBatch(
            np.where(whole, self.sequences * share, self.sequences),
            np.where(whole, self.new_tokens, self.new_tokens * share),
            np.where(whole, self.prefix_tokens, self.prefix_tokens + self.new_tokens * (1 - share) / 2),
            self.steps,
        )


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """A prefill step of every row, (rows,) arrays."""

    operators: Mapping[str, Timing]
    layer_kinds: dict[str, Floats]
    layers: tuple[Layer, ...]
    """One of each group of the model."""
    step_s: Floats
    """One step, through all pipeline stages."""
    prompt_s: Floats
    """All steps of one prompt: time to first token without queueing [s]."""
    tokens_per_s_per_gpu: Floats
    """New prompt tokens."""


def prompt_batch(rows: Rows, workload: Workload) -> PromptBatch:
    """How a step's token budget (rows.batched_tokens, per attention-DP rank) is filled with prompts.

    Whole prompts are packed; one that exceeds the budget is cut into equal chunks, each of which attends to what
    came before: on average half of the prompt.
    """
    cached = workload.isl_tokens * workload.prefix_cache_hit_rate
    prompt = max(workload.isl_tokens - cached, 1.0)
    budget = np.maximum(as_floats(rows.batched_tokens), 1.0)
    chunks = ceil_div(prompt, budget)
    sequences = np.maximum(budget / prompt, 1.0)
    new = prompt / chunks
    return PromptBatch(sequences, new, cached + (prompt - new) / 2, chunks)


def prefill_step(machine: Machine, rows: Rows, workload: Workload) -> PrefillCost:
    """Cost of one prefill step with rows.batched_tokens new tokens on each attention-DP rank.

    Pipeline stages work on different microbatches: a step passes all of them, and one finishes per stage time.
    Raises MissingFactError where a coefficient or peak is unknown.
    """
    c = machine.coefficients("host", "default", HostCoefficients)
    batch = prompt_batch(rows, workload)
    layers = _layers(machine, rows, workload, batch.tokens)
    of_layers, kinds = whole_model(machine.model, rows, layers)
    head = head_operators(machine, batch.finishing, as_floats(rows.tp), c.sampling_bytes_per_logit)
    once = {**head, "mtp_drafts": _drafting(machine, rows, workload, batch, layers, head["lm_head"])}
    host = {
        "pipeline_hops": hops(machine, rows, batch.tokens),
        "host": Timing(host_step_s(batch.sequences, rows.dp, c) * rows.pp, np.zeros(len(rows))),
        "offload_stall": offload_stall(machine, rows, layers),
    }
    kinds |= {"head": total_s(once), "host": total_s(host)}
    step_s = sum(kinds.values(), np.zeros(len(rows)))
    rate = batch.tokens * rows.dp * rows.pp / step_s / rows.gpus
    return PrefillCost(joined(of_layers, once | host), kinds, tuple(layers), step_s, step_s * batch.steps, rate)


def _drafting(
    machine: Machine, rows: Rows, workload: Workload, batch: PromptBatch, layers: Sequence[Layer], head: Timing
) -> Timing:
    """What drafting adds to a prompt, to rows that draft."""
    drafts = as_floats(rows.drafts)
    if not drafts.any():
        return Timing(np.zeros(len(rows)), np.zeros(len(rows)))
    if machine.drafter:
        found = _drafter_prompt(machine, rows, workload, batch)
    else:
        found = _module_prompt(machine, layers, batch.tokens, head)
    return found.scaled(np.where(drafts > 0, 1.0, 0.0))


def _module_prompt(machine: Machine, layers: Sequence[Layer], tokens: Floats, head: Timing) -> Timing:
    """What the model's own module adds to a prompt: its cache is filled, and a first token is drafted."""
    return draft_layer(machine.model, layers) + draft_projection(machine, tokens) + head


def _drafter_prompt(machine: Machine, rows: Rows, workload: Workload, batch: PromptBatch) -> Timing:
    """What a drafter of its own weights adds to a prompt: a pass over it, or of a block drafter only the keys and values."""
    drafter, own, tp = machine.drafter, machine.drafting, as_floats(rows.tp)
    assert drafter is not None
    tokens = batch.tokens
    found = drafter_input(own, drafter, tokens, tp)
    if drafter.works.whole_block:
        return found + drafter_cache(own, tokens, tp)
    passed = drafter_layers(own, _layers(own, rows.replace(overlap=OVERLAPS.index("none"), dcp=1), workload, tokens))
    return found + passed + head_operators(own, batch.finishing, tp, 0.0)["lm_head"]


def _layers(machine: Machine, rows: Rows, workload: Workload, tokens: Floats) -> list[Layer]:
    """A layer of each group, of every row, whose steps hold so many tokens; two-batch rows are priced on half batches."""
    split = (rows.overlap == OVERLAPS.index("two_batch")) & (tokens >= 2) & (rows.dp > 1)
    captured = np.asarray(rows.graph_tokens >= np.ceil(tokens))
    columns = (rows.batched_tokens, split, captured)
    return shared_layers(rows, columns, partial(_distinct_layers, machine, workload))


def _distinct_layers(
    machine: Machine, workload: Workload, rows: Rows, _: Ints, split: NDArray[np.bool_], captured: NDArray[np.bool_]
) -> list[Layer]:
    part = prompt_batch(rows, workload).scaled(np.where(split, 0.5, 1.0))

    def attention(kind: AttentionKind) -> Mapping[str, Timing]:
        return prompt_attention_operators(machine, kind, part, as_floats(rows.tp), as_floats(rows.dcp))

    return priced_layers(machine, rows, attention, part.tokens, split, captured, "prefill")


def prompt_attention_operators(
    machine: Machine, kind: AttentionKind, batch: PromptBatch, tp: Floats, dcp: Floats | float = 1.0
) -> dict[str, Timing]:
    """Projections, attention core, exchanges of a shared context, output all-reduce and element-wise traffic of one layer.

    The core computes as much where ranks share the context: more heads over as many fewer keys, or gathered latents.
    """

    def distinct(b: Floats, s: Floats, x: Floats, t: Floats, n: Floats) -> dict[str, tuple[Floats, Floats]]:
        result = kind.prefill(machine, b, s, x, t)
        shared = kind.shared_context
        if shared is not None and (n > 1).any():
            result |= prompt_exchange(machine, shared, b, s, x, kind.shardable_heads / t, n)
        result |= attention_all_reduces(machine, kind, b * s, t)
        c = machine.coefficients("elementwise", "prefill", ElementwiseCoefficients)
        elements = kind.elementwise_elements("prefill", t)
        result["elementwise"] = traffic(machine, b * s, elements, c.hidden_passes, c.query_passes, c)
        return result

    keys = (batch.sequences, batch.new_tokens, batch.prefix_tokens, tp, dcp)
    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, *keys).items()}
