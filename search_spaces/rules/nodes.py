"""How ranks lie on nodes, and how pipelines and pairs of pools hand over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from search_spaces.rules.rule import Finding, Rule
from search_spaces.rules.subject import Bools, Subject

LOCAL_RANKS = "--data-parallel-size-local"
ELSEWHERE = (
    "--data-parallel-rank", "--data-parallel-address", "--data-parallel-start-rank", "--data-parallel-backend",
    "--data-parallel-external-lb", "--data-parallel-hybrid-lb", "--nnodes",
)  # fmt: skip
"""Options of vLLM that say that other nodes hold ranks too."""


def _local(subject: Subject) -> Bools:
    """Rows whose local DP ranks do not fit the node, of a command line that says how many there are (all, when it is silent)."""
    options = subject.options
    if options is None or (LOCAL_RANKS not in options and any(name in options for name in ELSEWHERE)):
        return subject.none()
    said = options.get(LOCAL_RANKS)
    local = int(said) if said and said.isdigit() else subject.rows.dp
    return np.asarray((subject.rows.dp > 1) & (local * subject.rows.tp > subject.hardware.gpus_per_node))


def _local_text(subject: Subject) -> str:
    rows, node = subject.rows, subject.hardware.gpus_per_node
    said = (subject.options or {}).get(LOCAL_RANKS)
    local = int(said) if said and said.isdigit() else int(rows.dp[0])
    told = f"{LOCAL_RANKS} {local}" if said else f"without {LOCAL_RANKS} all {local} DP ranks start on one node:"
    most = max(node // int(rows.tp[0]), 1)
    return f"{told} x tp {int(rows.tp[0])} = {local * int(rows.tp[0])} GPUs, a node has {node}; {LOCAL_RANKS} {most} would fit"


def _pairs(subject: Subject) -> Bools:
    return np.asarray(subject.rows.pp > 1) & (subject.role not in subject.engine.pipeline_pools)


RULES = (
    Rule(
        name="dp_rank_on_one_node",
        says="vLLM places each data-parallel rank on one node.",
        source="vllm/v1/engine/utils.py, vllm/v1/worker/gpu_worker.py init_device (0.33.0)",
        engines=("vllm", "vllm-ascend"),
        broken=lambda s: np.asarray((s.rows.dp > 1) & (s.rows.tp > s.hardware.gpus_per_node)),
        because=lambda s: (
            f"{s.engine.title} places each DP rank on one node: tp {int(s.rows.tp[0])} exceeds its "
            f"{s.hardware.gpus_per_node} GPUs"
        ),
    ),
    Rule(
        name="local_ranks_fit_the_node",
        says="The data-parallel ranks that one node starts fit its GPUs.",
        source="vllm/v1/worker/gpu_worker.py: DP adjusted local rank out of bounds (0.13.0 to 0.33.0); verl#5152",
        engines=("vllm", "vllm-ascend"),
        broken=_local,
        because=_local_text,
    ),
    Rule(
        name="expert_ranks_are_all_ranks",
        says="vLLM spreads experts over all tensor and data-parallel ranks, or over none.",
        source="vllm/model_executor/layers/fused_moe/config.py FusedMoEParallelConfig.make (0.33.0)",
        engines=("vllm", "vllm-ascend"),
        broken=lambda s: np.asarray((s.rows.dp > 1) & (s.rows.ep > 1) & (s.rows.ep != s.rows.group)),
        because=lambda s: f"vLLM's EP size is tp x dp = {int(s.rows.group[0])}, not {int(s.rows.ep[0])}",
    ),
    Rule(
        name="attention_dp_of_whole_ranks",
        says="TensorRT-LLM's attention DP gives every rank of a stage requests of its own: no rank shares their attention.",
        source="tensorrt_llm/mapping.py dp_size (1.3.0rc3)",
        engines=("trtllm",),
        broken=lambda s: np.asarray((s.rows.dp > 1) & (s.rows.tp > 1)),
        because=lambda s: (
            f"TensorRT-LLM's attention DP takes every GPU by itself: {int(s.rows.dp[0])} ranks of {int(s.rows.tp[0])} GPUs are "
            f"no layout of it; {int(s.rows.group[0])} of one GPU are, and one of all"
        ),
    ),
    Rule(
        name="pipeline_hands_over",
        says="Pipelines hand KV caches over only where the connector supports it.",
        source="vllm-project/vllm issues 40674 and 52913 (NixlConnector); lmsys.org 2026-01-15 (SGLang, prefill)",
        engines=("vllm", "vllm-ascend", "sglang", "trtllm"),
        broken=_pairs,
        because=lambda s: (
            f"{s.engine.title}'s connector takes no pipeline stages in a {s.role} pool: pp {int(s.rows.pp[0])} cannot hand KV "
            f"caches over"
        ),
    ),
    Rule(
        name="pipeline_drafts",
        says="SGLang drafts in pipelines of prefill pools only.",
        source="sglang srt/arg_groups/validation_hook.py:155 check_pipeline_parallel_compat (0.5.23)",
        engines=("sglang",),
        broken=lambda s: np.asarray((s.rows.pp > 1) & (s.rows.drafts > 0)) & (s.role != "prefill"),
        because=lambda _: "SGLang takes pipeline stages together with MTP on prefill nodes only",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRule:
    """What keeps two pools from exchanging KV caches."""

    name: str
    says: str
    source: str
    engines: tuple[str, ...]
    because: Callable[[Subject, Subject], str | None]
    """Why a prefill and a decode pool do not, where they do not."""

    def finding(self, prefill: Subject, decode: Subject) -> Finding | None:
        """Of a pair of pools."""
        if prefill.engine.name not in self.engines:
            return None
        text = self.because(prefill, decode)
        return Finding(self.name, "breaks", text, self.source) if text else None


def _same_cache(prefill: Subject, decode: Subject) -> str | None:
    names = [subject.model.checkpoints.get(subject.recipe.name, subject.recipe.name) for subject in (prefill, decode)]
    way_out = "NIXL refuses the first request of such a pair; use one checkpoint on one generation of GPUs"
    if prefill.hardware.gpu.architecture != decode.hardware.gpu.architecture:
        gpus = f"{prefill.hardware.gpu.name} and {decode.hardware.gpu.name}"
        return f"{gpus} run different attention backends, whose KV caches vLLM does not exchange: {way_out}"
    if names[0] != names[1]:
        return f"prefill serves {names[0]}, decode {names[1]}: {way_out}"
    return None


def _same_dtype(prefill: Subject, decode: Subject) -> str | None:
    kept = [subject.recipe.kv_cache for subject in (prefill, decode)]
    if kept[0] == kept[1]:
        return None
    return f"prefill keeps its KV cache in {kept[0]}, decode in {kept[1]}: give both the same"


PAIR_RULES = (
    PairRule(
        name="pair_of_one_checkpoint",
        says="The pools of a vLLM pair run one checkpoint on one generation of GPUs (until another pair is measured).",
        source="vllm nixl/metadata.py compute_nixl_compatibility_hash, enforce_handshake_compat (0.33.0)",
        engines=("vllm",),
        because=_same_cache,
    ),
    PairRule(
        name="pair_of_one_cache_dtype",
        says="The pools of a pair keep their KV caches in one dtype.",
        source="vllm nixl/metadata.py (0.33.0); sglang srt/disaggregation: pages are copied as they are (0.5.23); "
        "TensorRT-LLM batch_manager cacheFormatter inquireSupport",
        engines=("vllm", "sglang", "vllm-ascend", "trtllm"),
        because=_same_dtype,
    ),
)
