"""SGLang: weights and caches take a share of what is free before it loads them; it computes that share from what it reserves."""

from __future__ import annotations

from autotune.auditing.engine_memory.base import EngineMemory, Launched, Said
from autotune.auditing.sizing import sglang_chunk_tokens
from autotune.documents.deployment import Pool
from autotune.predicting.step import resolve
from cost_models.catalog import load_model
from cost_models.huggingface.fields import VISION
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import DTYPES

MIB = 2**20
BESIDE = ("activations", "dispatch buffers", "eplb buffers", "cuda graphs", "runtime")
"""Lines that its fraction does not cover."""
TAKEN_BYTES, TAKEN_ALONE_BYTES = 2.7 * 2**30, 1.0 * 2**30
"""Gone before SGLang loads weights: its fraction is of what is free then (model_runner.py init_torch_distributed). In a group
2.5 GiB (DeepSeek-V4-Pro on H200, SemiAnalysisAI/InferenceX#2128), 2.7 (Qwen3-235B, TP4 on H100, vllm-project/vllm#21348) and 2.9
(DeepSeek-V3 with attention DP on H200, sgl-project/sglang#6017); of one GPU what CUDA does not see and a context, assumed."""
WO_A_KERNEL_SINCE = (0, 5, 16)
MEASURED_CACHE_SINCE = (0, 5, 23)
"""SGLang sizes the KV cache of models without a latent after it captured its graphs (arg_groups/overrides.py:1791)."""

IMAGES_OFF = ("Gemma3ForConditionalGeneration", "Llama4ForConditionalGeneration", "Step3VLForConditionalGeneration")
"""Started without images, unless --enable-multimodal says otherwise."""
CAPTURES_PROMPTS = (
    "Glm5NextForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "MiniMaxM3SparseForConditionalGeneration",
    "MuseGlimmerForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
)
"""Steps of prompts are captured although the model reads images or has KDA (0.5.23 configs/model_config.py:2501)."""
IMAGES_MIB, IMAGES_SHARE, LEAST_IMAGES_SHARE = 8192, 0.95, 0.76
"""What SGLang leaves beside for images: so much where the cache is measured after graphs, else a share of the rest stays, that
of a tower as large as ViT-L's 24 layers of 1,024 priced, of a larger one down to the least (0.5.23 memory_hook.py:399)."""


class SglangMemory(EngineMemory):
    """A given --mem-fraction-static, else the one that SGLang computes."""

    def filled(self, launched: Launched, said: Said) -> Launched:
        fraction = said.fraction or sglang_fraction(launched, said)
        taken = TAKEN_BYTES if launched.pool.layout.gpus > 1 else TAKEN_ALONE_BYTES
        return launched.covering(fraction, BESIDE, less_bytes=fraction * taken + widened_bytes(launched))

    def unsure(self, launched: Launched, said: Said) -> str | None:
        """Where the vision tower's size, which is not known, decides over the share."""
        model = load_model(launched.deployment.model)
        if said.fraction or not _prefills(launched, said) or not reads_images(model):
            return None
        if launched.release >= MEASURED_CACHE_SINCE and measured_after_graphs(launched, said):
            return None
        room = launched.visible_bytes * sglang_fraction(launched, said)
        least = room * (1 - LEAST_IMAGES_SHARE / IMAGES_SHARE)
        return (
            f"SGLang takes less of the memory for a model that reads images, by the size of its vision tower, which is not known "
            f"here: 5 % less is priced, up to {least / 1e9:.1f} GB more may be left out (--mem-fraction-static)"
        )


def widened_bytes(launched: Launched) -> float:
    """What SGLang adds to the first output projection of DeepSeek-V4 that it widens to BF16 on Hopper [B].

    0.5.12 to 0.5.15 server_args.py: SGLANG_OPT_FP8_WO_A_GEMM off below SM100; 0.5.16 has a kernel for it. In public, 125.65 GiB
    of DeepSeek-V4-Pro's weights on each of eight H200 with attention DP (SemiAnalysisAI/InferenceX#2128).
    """
    machine = resolve(launched.alone()).machine
    if launched.release >= WO_A_KERNEL_SINCE or machine.hardware.gpu.architecture != "hopper":
        return 0.0
    widened = [m for m in machine.model.layer_matrices() if m.name == "o_a"]
    more = DTYPES["bf16"].weight_bytes - DTYPES[machine.dtype("o_proj")].weight_bytes
    return sum(matrix.parameters for matrix in widened) * max(more, 0.0) / launched.pool.tp


def sglang_fraction(launched: Launched, said: Said) -> float:
    """SGLang's --mem-fraction-static where it is not given: all but what it reserves (0.5.23 arg_groups/memory_hook.py:288).

    In MiB: 512, 1.5 per token of a prefill chunk (of a decode step in a decode pool), 1,024 per eight ranks, 2 per sequence of
    the largest graph and 3 more of each attention-DP rank (4.5 beyond 300), since 0.5.23 graphs of prompts; 10,240 at least on
    GPUs of more than 60 GiB; 2,048 for DeepEP. What is measured after graphs are captured reserves 1,536 and the ranks alone.
    """
    pool, total_mib = launched.pool, launched.visible_bytes / MIB
    ranks_mib = pool.tp * pool.dp * pool.pp / 8 * 1024
    sees = _prefills(launched, said) and reads_images(load_model(launched.deployment.model))
    if launched.release >= MEASURED_CACHE_SINCE and measured_after_graphs(launched, said):
        return round((total_mib - 1536 - ranks_mib) / total_mib, 3) - sees * IMAGES_MIB / total_mib
    phase = launched.deployment.phase
    graph = min(_largest_graph(pool, total_mib), said.running or 2**30)
    chunk = prompts = said.budget_tokens or sglang_chunk_tokens(launched.visible_bytes)
    if not said.aggregated and phase == "decode":
        chunk = (said.running or graph) * (1 + pool.draft_tokens)
    reserved = 512 + 1.5 * max(chunk, 2048) + ranks_mib
    if phase != "prefill" and pool.cuda_graph:
        reserved += 2 * graph
    if phase != "prefill" and pool.dp > 1:
        reserved += graph * pool.dp * (3 + 1.5 * (graph > 300))
    if launched.release >= MEASURED_CACHE_SINCE and captures_prompts(launched, said):
        reserved += 1536 if _latent(launched) else 8 * _prompt_graphs(prompts)
    if total_mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    if phase != "prefill" and pool.all2all_backend.startswith("deepep"):
        reserved += 2 * 1024
    return round((total_mib - reserved) / total_mib, 3) * (IMAGES_SHARE if sees else 1.0)


def measured_after_graphs(launched: Launched, said: Said) -> bool:
    """Whether the KV cache is sized after graphs were captured (0.5.23 arg_groups/overrides.py:1791).

    Not of latents, block-sparse attention and DeepSeek-V4, not of ranks that share contexts, not where steps run eagerly.
    """
    kinds = {kind.kind for kind in load_model(launched.deployment.model).attentions}
    if _latent(launched) or kinds & {"compressed", "block_sparse"} or launched.pool.dcp > 1:
        return False
    decodes = launched.deployment.phase != "prefill"
    if decodes and not launched.pool.cuda_graph:
        return False
    return captures_prompts(launched, said) or not _prefills(launched, said)


def captures_prompts(launched: Launched, said: Said) -> bool:
    """Whether steps of prompts are captured by themselves (0.5.23 arg_groups/cuda_graph_hook.py:136, 158)."""
    pool, model = launched.pool, load_model(launched.deployment.model)
    kinds = {kind.kind for kind in model.attentions}
    if (kinds & {"kda", "compressed"} or reads_images(model)) and model.architecture not in CAPTURES_PROMPTS:
        return False
    return _prefills(launched, said) and pool.pp == 1 and pool.dcp == 1 and pool.overlap != "two_batch"


def reads_images(model: ModelSpec) -> bool:
    """Whether SGLang starts a model with its vision tower (0.5.23 configs/model_config.py:691)."""
    return VISION in model.flags and model.architecture not in IMAGES_OFF


def _prefills(launched: Launched, said: Said) -> bool:
    return said.aggregated or launched.deployment.phase == "prefill"


def _latent(launched: Launched) -> bool:
    return any(kind.expanded_elements_per_token for kind in load_model(launched.deployment.model).attentions)


def _prompt_graphs(largest_tokens: int) -> int:
    """How many sizes of steps with prompts are captured up to a largest (0.5.23 generate_prefill_cuda_graph_batch_sizes)."""
    spans = ((4, 33, 4), (48, 257, 16), (288, 513, 32), (576, 1025, 64), (1280, 4097, 256), (4608, largest_tokens + 1, 512))
    return sum(size <= largest_tokens for span in spans for size in range(*span))


def _largest_graph(pool: Pool, total_mib: float) -> int:
    """Largest decode graph that SGLang captures by itself on GPUs of 60 GiB and more."""
    given = pool.flags.get("cudagraph_max_tokens")
    if given:
        return int(given)
    return 256 if pool.tp * pool.dp < 4 and total_mib < 160 * 1024 else 512
