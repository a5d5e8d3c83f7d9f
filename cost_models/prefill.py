"""A prefill step: operators of every layer over a batch of new prompt tokens, overlap, offload and host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cost_models.arrays import Floats, as_floats, ceil_div, evaluate_distinct
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.host import HostCoefficients, host_step_s
from cost_models.layers import Layer, both_layers, offload_stall, whole_model
from cost_models.machine import Machine
from cost_models.operators import Timing, gemm, head_operators, matrix_gemm, tp_all_reduce, traffic
from cost_models.overlap import OVERLAPS
from cost_models.prefill_attention import PrefillAttentionCoefficients, prefill_attention_bound_s, prefill_attention_time_s
from cost_models.rows import Rows
from cost_models.specs.model import GqaSpec, MlaSpec
from cost_models.specs.workload import Workload
from cost_models.step import hops


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

    operators: dict[str, Timing]
    layer_kinds: dict[str, Floats]
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
    dense, moe = _layers(machine, rows, batch)
    operators, kinds = whole_model(machine.model, rows, dense, moe)
    finishing = as_floats(batch.sequences / batch.steps)
    head = head_operators(machine, finishing, as_floats(rows.tp), c.sampling_bytes_per_logit)
    operators |= head
    last = moe or dense
    assert last is not None
    operators["mtp_drafts"] = Timing(np.where(rows.drafts > 0, last.time_s, 0.0), np.zeros(len(rows)))
    operators["pipeline_hops"] = hops(machine, rows, batch.tokens)
    operators["host"] = Timing(host_step_s(batch.sequences, rows.dp, c) * rows.pp, np.zeros(len(rows)))
    operators["offload_stall"] = offload_stall(machine, rows, dense, moe)
    step_s = as_floats(sum(t.time_s for t in operators.values()))
    kinds["head"] = sum((t.time_s for t in head.values()), operators["mtp_drafts"].time_s)
    kinds["host"] = operators["host"].time_s + operators["pipeline_hops"].time_s + operators["offload_stall"].time_s
    rate = batch.tokens * rows.dp * rows.pp / step_s / rows.gpus
    return PrefillCost(operators, kinds, step_s, step_s * batch.steps, rate)


def _layers(machine: Machine, rows: Rows, batch: PromptBatch) -> tuple[Layer | None, Layer | None]:
    """The dense and the MoE layer of every row; two-batch rows are priced on half batches."""
    split = (rows.overlap == OVERLAPS.index("two_batch")) & (batch.tokens >= 2) & (rows.dp > 1)
    part = batch.scaled(np.where(split, 0.5, 1.0))
    captured = np.asarray(rows.graph_tokens >= np.ceil(batch.tokens))
    attention = attention_operators(machine, part, as_floats(rows.tp))
    return both_layers(machine, rows, attention, part.tokens, split, captured, "prefill")


def attention_operators(machine: Machine, batch: PromptBatch, tp: Floats) -> dict[str, Timing]:
    """Projections, attention core, output all-reduce and element-wise traffic of one layer."""

    def distinct(b: Floats, s: Floats, x: Floats, t: Floats) -> dict[str, tuple[Floats, Floats]]:
        result = _projections(machine, b, s, x, t)
        result["attention"] = _core(machine, b, s, x, t)
        result["tp_all_reduce"] = tp_all_reduce(machine, b * s, t)
        c = machine.coefficients("elementwise", "prefill", ElementwiseCoefficients)
        result["elementwise"] = traffic(machine, b * s, _query_elements(machine, t), c.hidden_passes, c.query_passes, c)
        return result

    keys = (batch.sequences, batch.new_tokens, batch.prefix_tokens, tp)
    return {name: Timing(*pair) for name, pair in evaluate_distinct(distinct, *keys).items()}


def _projections(machine: Machine, b: Floats, s: Floats, x: Floats, tp: Floats) -> dict[str, tuple[Floats, Floats]]:
    """GEMMs around the core. MLA expands keys and values of the cached prefix again, because the cache holds latents."""
    result = {}
    for matrix in machine.model.attention.matrices(machine.model.hidden, 1):
        if matrix.name == "kv_b":
            dtype = machine.recipe.kv_b_expand or machine.recipe.kv_b
            result[matrix.name] = gemm(machine, dtype, b * (s + x), matrix.n / tp, matrix.k)
        else:
            result[matrix.name] = matrix_gemm(machine, matrix, b * s, tp)
    return result


def _core(machine: Machine, b: Floats, s: Floats, x: Floats, tp: Floats) -> tuple[Floats, Floats]:
    attention = machine.model.attention
    mla = isinstance(attention, MlaSpec)
    qk_dim = attention.qk_nope_dim + attention.qk_rope_dim if isinstance(attention, MlaSpec) else attention.head_dim
    v_dim = attention.v_dim if isinstance(attention, MlaSpec) else attention.head_dim
    shape: dict[str, Any] = {
        "qk_dim": qk_dim,
        "v_dim": v_dim,
        "peak_flops_per_s": machine.hardware.gpu.peak_flops_per_s("bf16"),
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
    }
    family = "mla_prefill" if mla else "gqa_prefill"
    c = machine.coefficients(family, machine.recipe.prefill_attention, PrefillAttentionCoefficients)
    heads = attention.heads / tp

    def core(new: Floats, prefix: Floats) -> tuple[Floats, Floats]:
        time_s = prefill_attention_time_s(b, new, prefix, heads, processors=machine.processors, coefficients=c, **shape)
        return time_s, prefill_attention_bound_s(b, new, prefix, heads, **shape)

    full_time, full_bound = core(s, x)
    if not isinstance(attention, GqaSpec) or not attention.window_tokens or not attention.windowed_layers:
        return full_time, full_bound
    share = attention.windowed_layers / machine.model.layers
    near_time, near_bound = _windowed(core, s, x, float(attention.window_tokens))
    return full_time * (1 - share) + near_time * share, full_bound * (1 - share) + near_bound * share


def _windowed(core: Any, s: Floats, x: Floats, window: float) -> tuple[Floats, Floats]:
    """A sliding window: the work of many pieces of window length, each after one window of prefix."""
    pieces = np.maximum(s / window, 1.0)
    time_s, bound_s = core(np.minimum(s, window), np.minimum(x + np.maximum(s - window, 0), window))
    return time_s * pieces, bound_s * pieces


def _query_elements(machine: Machine, tp: Floats) -> Floats:
    attention = machine.model.attention
    if isinstance(attention, MlaSpec):
        return attention.heads / tp * (attention.qk_nope_dim + attention.qk_rope_dim)
    return (attention.heads + 2 * attention.kv_heads) / tp * attention.head_dim
