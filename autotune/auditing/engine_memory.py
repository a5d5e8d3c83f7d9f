"""How much memory an engine takes by itself, and whether its longest sequence fits into what that leaves.

Defaults that are numbers stand in the engine's document; SGLang computes its own from what it will reserve.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.documents.deployment import Deployment, Pool, PoolRole
from autotune.predicting.step import memory_limit_bytes, predict, resolve
from cost_models.attention.latent import LatentKind
from cost_models.attention.mla import MlaSpec
from cost_models.catalog import load_hardware, load_model
from cost_models.memory import state_bytes
from cost_models.releases import version_key
from cost_models.specs.precision import DTYPES
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import EngineSpec

MIB = 2**20
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
TAKEN_BYTES, TAKEN_ALONE_BYTES = 2.7 * 2**30, 1.0 * 2**30
"""Gone before SGLang loads weights: its fraction is of what is free then (model_runner.py init_torch_distributed). In a group
2.5 GiB (DeepSeek-V4-Pro on H200, SemiAnalysisAI/InferenceX#2128), 2.7 (Qwen3-235B, TP4 on H100, vllm-project/vllm#21348) and 2.9
(DeepSeek-V3 with attention DP on H200, sgl-project/sglang#6017); of one GPU UNSEEN_BYTES and a context, assumed."""
WO_A_KERNEL_SINCE = (0, 5, 16)
MEASURED_CACHE_SINCE = (0, 5, 23)
"""SGLang sizes the KV cache of models without a latent after it captured its graphs (arg_groups/overrides.py:1791)."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command says of memory; none where it leaves that to the engine."""

    fraction: float | None = None
    free_fraction: float | None = None
    """kv_cache_config.free_gpu_memory_fraction (TensorRT-LLM): of what everything but caches leaves."""
    budget_tokens: int | None = None
    """--max-num-batched-tokens (vLLM), --chunked-prefill-size over all attention-DP ranks (SGLang)."""
    running: int | None = None
    """--max-running-requests over all attention-DP ranks (SGLang)."""
    longest_tokens: int | None = None
    """--max-model-len; the model's own longest context where absent."""
    as_long_as_fits: bool = False
    """--max-model-len auto: the engine takes the longest that fits."""
    aggregated: bool = True
    """The engine prefills as well as it decodes."""


def in_engine_memory(deployment: Deployment, said: Said) -> Deployment:
    """The deployment with the memory that its engine may fill, and with buffers as vLLM sizes them when it starts.

    vLLM runs a step of its whole token budget before it sizes the KV cache, so a decoding engine holds such buffers too.
    """
    engine = load_engine(deployment.engine.name)
    version = version_key(resolve_version(engine, deployment.engine.version))
    pool = deployment.pool
    if engine.command_line == "trtllm":
        return _of_what_is_left(deployment, said) if said.free_fraction else deployment
    if engine.memory_fraction_covers == "weights_and_kv":
        fraction = said.fraction or sglang_fraction(deployment, version, said)
        beside = ("activations", "dispatch buffers", "eplb buffers", "cuda graphs", "runtime")
        taken = TAKEN_BYTES if deployment.pool.layout.gpus > 1 else TAKEN_ALONE_BYTES
        return _covering(deployment, fraction, beside=beside, less_bytes=fraction * taken + _widened_bytes(deployment, version))
    knob = engine.knob("gpu_memory_fraction")
    default = knob.default(resolve_version(engine, deployment.engine.version)) if knob else None
    if said.fraction is None and default is None:
        return deployment
    if engine.command_line == "vllm" and deployment.phase == "decode" and pool.all2all_backend != "deepep_low_latency":
        budget = said.budget_tokens or _budget(engine, deployment, version)
        deployment = deployment.with_pool("decode", max_batched_tokens=max(pool.max_batched_tokens, budget))
    if engine.command_line != "vllm":
        return _covering(deployment, float(said.fraction or default or 1.0), beside=())
    outside = ("runtime", "cuda graphs") if version < GRAPHS_COUNTED_SINCE else ("runtime",)
    fraction = float(said.fraction or default or 1.0)
    taken = fraction * UNSEEN_BYTES + _not_torch_bytes(deployment) + _startup_bytes(deployment, version)
    return _covering(deployment, fraction, beside=outside, less_bytes=taken)


def _widened_bytes(deployment: Deployment, version: tuple[int, ...]) -> float:
    """What SGLang adds to the first output projection of DeepSeek-V4 that it widens to BF16 on Hopper [B].

    0.5.12 to 0.5.15 server_args.py: SGLANG_OPT_FP8_WO_A_GEMM off below SM100; 0.5.16 has a kernel for it. In public, 125.65 GiB
    of DeepSeek-V4-Pro's weights on each of eight H200 with attention DP (SemiAnalysisAI/InferenceX#2128).
    """
    machine = resolve(_alone(deployment)).machine
    if version >= WO_A_KERNEL_SINCE or machine.hardware.gpu.architecture != "hopper":
        return 0.0
    widened = [m for m in machine.model.layer_matrices() if m.name == "o_a"]
    more = DTYPES["bf16"].weight_bytes - DTYPES[machine.dtype("o_proj")].weight_bytes
    return sum(matrix.parameters for matrix in widened) * max(more, 0.0) / deployment.pool.tp


def _not_torch_bytes(deployment: Deployment) -> float:
    """What vLLM finds taken beside its tensors once it ran a step [B]."""
    return NOT_TORCH_BYTES if deployment.pool.layout.gpus == 1 else COMMUNICATING_BYTES


def _of_what_is_left(deployment: Deployment, said: Said) -> Deployment:
    """A memory fraction of everything, given that of what a step of the whole token budget leaves.

    _torch/pyexecutor/_util.py _cal_max_memory (1.3.0rc3): (total - peak of a step of max_num_tokens) x fraction.
    """
    pool, own = deployment.pool, _own(deployment)
    budget = max(pool.max_batched_tokens, said.budget_tokens or 0)
    deployment = deployment.with_pool(own, max_batched_tokens=budget)
    kept = predict(_of_one(deployment)).beside_cache_bytes
    visible = _visible_bytes(deployment)
    left = max(visible - kept, 0.0) * float(said.free_fraction or 0.0)
    return deployment.with_pool(own, memory_fraction=min((kept + left) / visible, 1.0))


def _startup_bytes(deployment: Deployment, version: tuple[int, ...]) -> float:
    """What vLLM's start takes beyond a step of the whole budget: the larger of two that it has not at once [B].

    It samples for --max-num-seqs sequences, after the step's tensors are freed; during it latent attention expands the longest
    cached prefix that it would, keys and values of its heads in BF16.
    """
    expanded = expanded_bytes(deployment)
    if deployment.phase == "prefill":
        return expanded
    pool = deployment.pool
    model = load_model(deployment.model)
    per_logit = SORTING_BYTES if version <= SORTED_UNTIL else SAMPLING_BYTES
    step = predict(_of_one(deployment))
    forward = sum(line.bytes for line in step.memory if line.name == "activations")
    return max(pool.batch_per_dp_rank * model.vocab * per_logit - forward, expanded)


def expanded_bytes(deployment: Deployment) -> float:
    """Keys and values of EXPANDED_TOKENS in the heads of one rank [B]; none for attention without latents."""
    kinds = [kind for kind in load_model(deployment.model).attentions if isinstance(kind, LatentKind)]
    return max(
        (EXPANDED_TOKENS * kind.heads / deployment.pool.tp * (kind.qk_nope_dim + kind.v_dim) * 2 for kind in kinds), default=0.0
    )


def _budget(engine: EngineSpec, deployment: Deployment, version: tuple[int, ...]) -> int:
    """vLLM's own token budget of a step."""
    knob = engine.knob("max_num_batched_tokens")
    usual = int(knob.default(resolve_version(engine, deployment.engine.version)) or 0) if knob else 0
    large = _visible_bytes(deployment) >= LARGE_GPU_BYTES
    return max(usual, LARGE_GPU_TOKENS) if large and version >= MORE_TOKENS_SINCE and engine.name == "vllm" else usual


def _covering(deployment: Deployment, fraction: float, beside: tuple[str, ...], less_bytes: float = 0.0) -> Deployment:
    """A memory fraction of everything, given one that leaves some lines out, which lie beside it as far as there is memory.

    less_bytes : of the given fraction's memory, what no line stands for.
    """
    visible = _visible_bytes(deployment)
    lines = predict(_of_one(deployment)).memory if beside else ()
    more = sum(line.bytes for line in lines if line.name in beside)
    covered = min(max(fraction + (more - less_bytes) / visible, 0.01), 1.0)
    return deployment.with_pool(_own(deployment), memory_fraction=covered)


def _visible_bytes(deployment: Deployment) -> float:
    return load_hardware(deployment.pool.hardware or deployment.hardware).gpu.hbm_visible_bytes.value


def _own(deployment: Deployment) -> PoolRole:
    return deployment.phase if deployment.phase in deployment.pools else "decode"


def _of_one(deployment: Deployment) -> Deployment:
    """The pool by itself with one sequence and buffers for all that it may run: no logits but its own lie beside the cache."""
    pool = deployment.pool
    tokens = pool.max_batched_tokens or pool.batch_per_dp_rank * (1 + pool.draft_tokens)
    return _alone(deployment.with_pool(_own(deployment), batch_per_dp_rank=1, max_batched_tokens=tokens))


def _alone(deployment: Deployment) -> Deployment:
    """The engine's pool by itself: a service's as it decodes."""
    pool = deployment.pool
    if deployment.phase != "serve":
        return deployment
    return deployment.alone("decode", pool.model_copy(update={"batch_per_dp_rank": max(pool.batch_per_dp_rank, 1)}))


def sglang_fraction(deployment: Deployment, version: tuple[int, ...], said: Said) -> float:
    """SGLang's --mem-fraction-static where it is not given: all but what it reserves (0.5.23 arg_groups/memory_hook.py:330).

    In MiB: 512, 1.5 per token of a prefill chunk (of a decode step in a decode pool), 1,024 per eight ranks, 2 per sequence of
    the largest graph and 3 more of each attention-DP rank (4.5 beyond 300), graphs of prefill; 10,240 at least on GPUs of more
    than 60 GiB; 2,048 for DeepEP. Since 0.5.23 models without a latent reserve 1,536 and the ranks alone.
    """
    pool = deployment.pool
    total_mib = _visible_bytes(deployment) / MIB
    ranks_mib = pool.tp * pool.dp * pool.pp / 8 * 1024
    latent = any(isinstance(kind, MlaSpec) for kind in load_model(deployment.model).attentions)
    if version >= MEASURED_CACHE_SINCE and not latent:
        return round((total_mib - 1536 - ranks_mib) / total_mib, 3)
    graph = min(_largest_graph(pool, total_mib), said.running or 2**30)
    chunk = said.budget_tokens or (8192 if total_mib < 160 * 1024 else 16384)
    if not said.aggregated and deployment.phase == "decode":
        chunk = (said.running or graph) * (1 + pool.draft_tokens)
    reserved = 512 + 1.5 * max(chunk, 2048) + ranks_mib
    if deployment.phase != "prefill" and pool.cuda_graph:
        reserved += 2 * graph
    if deployment.phase != "prefill" and pool.dp > 1:
        reserved += graph * pool.dp * (3 + 1.5 * (graph > 300))
    if version >= MEASURED_CACHE_SINCE and (said.aggregated or deployment.phase == "prefill"):
        reserved += 1.5 * 1024
    if total_mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    if deployment.phase != "prefill" and pool.all2all_backend.startswith("deepep"):
        reserved += 2 * 1024
    return round((total_mib - reserved) / total_mib, 3)


def _largest_graph(pool: Pool, total_mib: float) -> int:
    """Largest decode graph that SGLang captures by itself on GPUs of 60 GiB and more."""
    given = pool.flags.get("cudagraph_max_tokens")
    if given:
        return int(given)
    return 256 if pool.tp * pool.dp < 4 and total_mib < 160 * 1024 else 512


def longest_refused(deployment: Deployment, said: Said) -> str | None:
    """Why vLLM does not start: one sequence of its longest length does not fit into the KV cache; none where it does.

    vllm 0.33 v1/core/kv_cache_planning.py:78. SGLang starts with less and refuses long requests.
    """
    engine = load_engine(deployment.engine.name)
    if engine.command_line != "vllm" or said.as_long_as_fits:
        return None
    resolved = resolve(_alone(deployment))
    model = resolved.machine.model
    longest = said.longest_tokens or model.max_context_tokens
    step = predict(_alone(deployment))
    room = memory_limit_bytes(resolved.machine, resolved.pool) - step.beside_cache_bytes
    needed = float(state_bytes(resolved.machine, resolved.rows, longest)[0])
    if needed <= room or room <= 0:
        return None
    fitting = int(room / needed * longest)
    own = "" if said.longest_tokens else ", the model's own, where --max-model-len says nothing"
    return (
        f"one sequence of {longest:,} tokens{own} needs {needed / 1e9:.1f} GB of KV cache and {room / 1e9:.1f} GB are left: "
        f"vLLM does not start. About {fitting:,} tokens fit: --max-model-len {fitting:,} or more memory"
    )


def unsure_of_graphs(deployment: Deployment) -> str | None:
    """That the cache may be smaller, where what vLLM's own estimate of its graphs can take is a good part of it."""
    engine = load_engine(deployment.engine.name)
    version = version_key(resolve_version(engine, deployment.engine.version))
    if engine.command_line != "vllm" or version < GRAPHS_COUNTED_SINCE or not deployment.pool.cuda_graph:
        return None
    step = predict(_of_one(deployment))
    priced = sum(line.bytes for line in step.memory if line.name == "cuda graphs")
    room = step.memory_limit_bytes - step.beside_cache_bytes
    more = LARGEST_GRAPHS_BYTES - priced
    if not 0 < room < SMALL_ROOM * more:
        return None
    return (
        f"vLLM keeps what it estimates for its CUDA graphs out of the cache: {priced / 1e9:.1f} GB are priced, it took "
        f"0.6 to {LARGEST_GRAPHS_BYTES / 1e9:.1f} on four models, "
        f"which may leave {more / 1e9:.1f} GB less of the {room / 1e9:.1f}"
    )
