"""vLLM (and its plugins): a share of the GPU for everything that it finds taken once it has run a step of its whole budget."""

from __future__ import annotations

from autotune.auditing.engine_memory.base import EngineMemory, Launched, Said
from autotune.documents.deployment import Deployment
from autotune.predicting.step import held_memory, resolve
from cost_models.catalog import load_model
from cost_models.memory import state_bytes

GRAPHS_COUNTED_SINCE = (0, 24)
"""vLLM counts CUDA graphs into its fraction (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS): off in 0.19.1, on in 0.24.0."""
LARGEST_GRAPHS_BYTES = 4.3 * 2**30
"""vLLM's largest estimate of its graphs seen (gpt-oss-120b, 0.24 on H100; 0.6, 1.2 and 2.2 GiB on three other models)."""
SMALL_ROOM = 3.0
"""A cache of so many times what is unsure is said to be unsure."""
MORE_TOKENS_SINCE = (0, 33)
LARGE_GPU_BYTES = 160 * 2**30
LARGE_GPU_TOKENS = 16384
"""Token budget that vLLM 0.33 takes by itself from LARGE_GPU_BYTES on (engine/arg_utils.py:2973); else 8,192."""
SORTED_UNTIL = (0, 18)
"""vLLM sorts the vocabulary to sample (v1/sample/ops/topk_topp_sampler.py, 0.13.0; Triton in 0.19.1, FlashInfer in 0.24.0)."""
SORTING_BYTES, SAMPLING_BYTES = 38.5, 10.0
"""Per logit that vLLM's start-up sampling has alive. Sorting: BF16 and FP32 logits, sorted values with 64-bit places,
probabilities, a mask, the scattered result (2 + 4 + 4 + 8 + 4 + 1 + 4) and the sort's own buffer of values and places, 38.4 to
38.9 in all in the torch peaks that 0.11 logged of five models (SIZED); else BF16 and FP32 logits, probabilities."""
SIZED = "empirical memory results of github.com/llm-d-incubation/llm-d-planner (vLLM 0.11.0, H100)"
NOT_TORCH_BYTES, COMMUNICATING_BYTES = 0.13 * 2**30, 0.55 * 2**30
"""Of vLLM's own share, beside tensors, on one GPU and in a group (SIZED: eight models on one and two H100). Driver and
communicators are there before vLLM looks how much memory is taken (0.11.0 v1/worker/gpu_worker.py:169-183): they lie beside."""
UNSEEN_BYTES = 0.47 * 2**30
"""Of what the driver reports, CUDA sees less (79.18 of 79.65 GiB on H100, SIZED), and vLLM's fraction is of that."""
EXPANDED_TOKENS = 64 * 1024
"""Cached latents that vLLM's start expands at once (determine_chunked_prefill_workspace_size, mla_attention.py of 0.24.0)."""


class VllmMemory(EngineMemory):
    """A given --gpu-memory-utilization, else the release's.

    vLLM runs a step of its whole token budget before it sizes the KV cache, so a decoding engine holds such buffers too.
    """

    def filled(self, launched: Launched, said: Said) -> Launched:
        fraction = said.fraction or launched.default("gpu_memory_fraction") or 1.0
        pool = launched.pool
        if launched.deployment.phase == "decode" and pool.all2all_backend != "deepep_low_latency":
            budget = said.budget_tokens or _budget_tokens(launched)
            launched = launched.with_pool(max_batched_tokens=max(pool.max_batched_tokens, budget))
        outside = ("runtime", "cuda graphs") if launched.release < GRAPHS_COUNTED_SINCE else ("runtime",)
        not_torch = NOT_TORCH_BYTES if pool.layout.gpus == 1 else COMMUNICATING_BYTES
        return launched.covering(fraction, outside, less_bytes=fraction * UNSEEN_BYTES + not_torch + _startup_bytes(launched))

    def too_long(self, launched: Launched, said: Said) -> str | None:
        """vllm 0.33 v1/core/kv_cache_planning.py:78. SGLang starts with less and refuses long requests."""
        if said.as_long_as_fits:
            return None
        resolved = resolve(launched.alone())
        longest = said.longest_tokens or resolved.machine.model.max_context_tokens
        room = held_memory(launched.alone()).room_bytes
        needed = float(state_bytes(resolved.machine, resolved.rows, longest)[0])
        if needed <= room or room <= 0:
            return None
        fitting = int(room / needed * longest)
        own = "" if said.longest_tokens else ", the model's own, where --max-model-len says nothing"
        return (
            f"one sequence of {longest:,} tokens{own} needs {needed / 1e9:.1f} GB of KV cache and {room / 1e9:.1f} GB are left: "
            f"vLLM does not start. About {fitting:,} tokens fit: --max-model-len {fitting:,} or more memory"
        )

    def unsure(self, launched: Launched, said: Said) -> str | None:
        """Where what vLLM's own estimate of its graphs can take is a good part of the cache."""
        del said
        if launched.release < GRAPHS_COUNTED_SINCE or not launched.pool.cuda_graph:
            return None
        memory = held_memory(launched.of_one())
        priced = memory.bytes_by_line["cuda graphs"]
        more = LARGEST_GRAPHS_BYTES - priced
        if not 0 < memory.room_bytes < SMALL_ROOM * more:
            return None
        return (
            f"vLLM keeps what it estimates for its CUDA graphs out of the cache: {priced / 1e9:.1f} GB are priced, it took "
            f"0.6 to {LARGEST_GRAPHS_BYTES / 1e9:.1f} on four models, "
            f"which may leave {more / 1e9:.1f} GB less of the {memory.room_bytes / 1e9:.1f}"
        )


def _startup_bytes(launched: Launched) -> float:
    """What vLLM's start takes beyond a step of the whole budget: the larger of two that it has not at once [B].

    It samples for --max-num-seqs sequences, after the step's tensors are freed; during it latent attention expands the longest
    cached prefix that it would, keys and values of its heads in BF16.
    """
    expanded = expanded_bytes(launched.deployment)
    if launched.deployment.phase == "prefill":
        return expanded
    vocab = load_model(launched.deployment.model).vocab
    per_logit = SORTING_BYTES if launched.release <= SORTED_UNTIL else SAMPLING_BYTES
    forward = held_memory(launched.of_one()).bytes_by_line["activations"]
    return max(launched.pool.batch_per_dp_rank * vocab * per_logit - forward, expanded)


def expanded_bytes(deployment: Deployment) -> float:
    """Keys and values of EXPANDED_TOKENS in the heads of one rank, in BF16 [B]; none for attention without latents."""
    widest = max(kind.expanded_elements_per_token for kind in load_model(deployment.model).attentions)
    return EXPANDED_TOKENS * widest / deployment.pool.tp * 2


def _budget_tokens(launched: Launched) -> int:
    """The release's own token budget of a step."""
    usual = int(launched.default("max_num_batched_tokens") or 0)
    large = launched.visible_bytes >= LARGE_GPU_BYTES and launched.release >= MORE_TOKENS_SINCE and launched.engine.name == "vllm"
    return max(usual, LARGE_GPU_TOKENS) if large else usual
