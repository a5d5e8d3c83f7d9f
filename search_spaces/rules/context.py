"""What engines ask of ranks that share the tokens of every sequence (decode context parallelism)."""

from __future__ import annotations

import numpy as np

from cost_models.attention.base import AttentionKind
from cost_models.overlap import OVERLAPS
from cost_models.releases import version_key
from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject

VLLM, SGLANG = ("vllm",), ("sglang",)
HANDOVER = "--kv-transfer-config"
WITH_LSE = ("blackwell", "rubin")
"""Architectures on which SGLang's own choice of an attention kernel for latents returns its log-sum-exp."""

DRAFTS_SINCE = "0.29"
"""Of vLLM: from then on its kernel of latents on Blackwell takes several query tokens of a shared context."""


def _size(subject: Subject) -> str:
    """How the version spells the number of ranks."""
    knob = subject.engine.knob("context_ranks")
    spelling = knob.spelling(subject.version) if knob else None
    return spelling.name if spelling else "dcp"


def _ranks(subject: Subject) -> int:
    """Of the one row of a subject."""
    return int(subject.rows.dcp[0])


def _shared(subject: Subject) -> Bools:
    """Rows whose ranks share the tokens of sequences."""
    return np.asarray(subject.rows.dcp > 1)


def _where(subject: Subject, holds: bool) -> Bools:
    """Those rows, where something holds of the model, its precision or the hardware."""
    return _shared(subject) if holds else subject.none()


def _kinds(subject: Subject, *names: str) -> list[AttentionKind]:
    return [kind for kind in subject.model.attentions if kind.kind in names]


def _heads(subject: Subject) -> tuple[int, int] | None:
    """(query heads, KV heads) of the attention that has several KV heads; none where all is latent."""
    found = [(kind.shardable_heads, kind.kv_heads) for kind in subject.model.attentions if hasattr(kind, "kv_heads")]
    return found[0] if found else None


def _uneven(subject: Subject) -> Bools:
    return np.asarray(subject.rows.tp % subject.rows.dcp != 0)


def _no_copies(subject: Subject) -> Bools:
    """Rows whose KV heads have fewer copies than there are ranks to share one."""
    heads = _heads(subject)
    if heads is None:
        return subject.none()
    queries, shared = heads
    tp, dcp = subject.rows.tp, subject.rows.dcp
    few = (tp <= shared) | (dcp > tp // shared) | ((queries // shared) % dcp != 0)
    return np.asarray(_shared(subject) & few)


def _no_copies_text(subject: Subject) -> str:
    heads = _heads(subject)
    assert heads is not None
    queries, shared = heads
    tp = int(subject.rows.tp[0])
    fits = [n for n in range(max(tp // shared, 1), 0, -1) if tp % n == 0 and (queries // shared) % n == 0]
    return (
        f"{_size(subject)} {_ranks(subject)} shares out copies of KV heads, and must divide the {queries // shared} query heads "
        f"of each: tp {tp} makes {tp / shared:g} copies of {shared} KV heads; the most that would do is {fits[0]}"
    )


def _half_handed_over(subject: Subject) -> Bools:
    """Rows of a pool that hands caches over by NIXL and whose ranks do not hold them as its connector expects."""
    by_plan = subject.options is None and subject.role != "serve"
    if not (by_plan or "NixlConnector" in (subject.option(HANDOVER) or "")):
        return subject.none()
    latent = _heads(subject) is None
    return np.asarray(_shared(subject) & ((subject.rows.tp != subject.rows.dcp) | (not latent)))


def _windows(subject: Subject) -> bool:
    return any(getattr(kind, "window_tokens", None) for kind in subject.model.attentions)


def _unknown_kinds(subject: Subject) -> list[str]:
    """Kinds that keep tokens in a way that no model here shares out; windows are said apart."""
    return [
        k.kind for k in subject.model.attentions if not (k.fixed_state or k.shared_context or getattr(k, "window_tokens", None))
    ]


def _sparse_cache(subject: Subject) -> str | None:
    """Why a release does not share the caches of sparse layers on a GPU; none where it does, or where there are none."""
    architecture = subject.hardware.gpu.architecture
    if not _kinds(subject, "dsa") or architecture in WITH_LSE:
        return None
    return (
        None
        if subject.recipe.kv_cache == "fp8" and architecture == "hopper"
        else f"a {subject.recipe.kv_cache} cache on {architecture}"
    )


def _drafted(subject: Subject) -> Bools:
    """Rows whose drafts vLLM verifies by the kernels of prompts, as those of decode take one query token of a shared context."""
    architecture, early = subject.hardware.gpu.architecture, version_key(subject.version) < version_key(DRAFTS_SINCE)
    latent_alone = (architecture == "hopper" and subject.recipe.kv_cache == "fp8") or (architecture in WITH_LSE and early)
    grouped_alone = architecture in WITH_LSE
    one = (bool(_kinds(subject, "mla")) and latent_alone) or (bool(_kinds(subject, "gqa")) and grouped_alone)
    return np.asarray(_where(subject, one) & (subject.rows.drafts > 0))


def _sglang_kernels(subject: Subject) -> Bools:
    """Rows that SGLang would not run by the kernels that are priced."""
    amd, current = subject.hardware.gpu.vendor == "amd", subject.version == subject.engine.newest
    latent = all(kind.kind == "mla" or kind.fixed_state for kind in subject.model.attentions)
    by_default = latent and (amd or (current and subject.hardware.gpu.architecture in WITH_LSE))
    return np.asarray(_shared(subject) & ~(by_default & ((subject.rows.drafts == 0) | amd)))


RULES = (
    Rule(
        name="context_ranks_divide",
        says="Ranks that share the tokens of sequences divide the tensor-parallel ones, of which they are.",
        source="vllm/config/parallel.py:596 (0.33.0); sglang srt/distributed/parallel_state.py (0.5.23)",
        engines=(*VLLM, *SGLANG),
        broken=_uneven,
        because=lambda s: f"{_size(s)} {_ranks(s)} does not divide tp {int(s.rows.tp[0])}",
    ),
    Rule(
        name="context_ranks_of_kv_heads",
        says="The tokens of a sequence are shared by no more ranks than hold copies of the same KV head.",
        source="vllm/config/model.py:1578 verify_with_parallel_config (0.33.0); its page on context parallel deployment",
        engines=VLLM,
        broken=_no_copies,
        because=_no_copies_text,
    ),
    Rule(
        name="context_ranks_of_windows",
        says="vLLM does not share out the tokens of layers with a sliding window.",
        source="vllm/v1/kv_cache_interface.py:948, v1/core/kv_cache_coordinator.py:684 (0.33.0)",
        engines=VLLM,
        broken=lambda s: _where(s, _windows(s)),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: {s.model.name} has layers with a sliding window, whose caches lie whole on every rank"
        ),
    ),
    Rule(
        name="context_ranks_of_other_layers",
        says="Which tokens ranks share of other kinds of attention is not modelled.",
        source="docs/models/context_parallelism.md",
        engines=VLLM,
        effect="unpriced",
        broken=lambda s: _where(s, bool(_unknown_kinds(s))),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: how ranks share the tokens of {_unknown_kinds(s)[0]} attention is not modelled"
        ),
    ),
    Rule(
        name="context_ranks_beside_recurrent_layers",
        says="Until 0.25 vLLM shares out no tokens where layers keep caches of several kinds.",
        source="vllm/v1/core/kv_cache_coordinator.py:406 (0.19.1); there to 0.25.1, gone in 0.26.0",
        engines=VLLM,
        until="0.25",
        broken=lambda s: _where(s, any(kind.fixed_state for kind in s.model.attentions)),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: vLLM {s.version} does not share out tokens beside recurrent layers; 0.26 does"
        ),
    ),
    Rule(
        name="context_ranks_of_an_fp8_latent_cache",
        says="Until 0.24 vLLM shares out latents in BF16 alone.",
        source="vllm/model_executor/layers/attention/mla_attention.py:678 (0.19.1); there to 0.24.0, gone in 0.25.1",
        engines=VLLM,
        until="0.24",
        broken=lambda s: _where(s, bool(_kinds(s, "mla")) and s.recipe.kv_cache == "fp8"),
        because=lambda s: f"{_size(s)} {_ranks(s)}: vLLM {s.version} does not share out an FP8 cache of latents; 0.25 does",
    ),
    Rule(
        name="context_ranks_of_sparse_layers",
        says="Sparse latent attention shares out tokens from 0.25 on.",
        source="vllm/v1/attention/backends/mla/flashinfer_mla_sparse.py (0.25.1): kernels before return no log-sum-exp",
        engines=VLLM,
        until="0.24",
        broken=lambda s: _where(s, bool(_kinds(s, "dsa"))),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: vLLM {s.version} does not share out the tokens of sparse attention; 0.25 does"
        ),
    ),
    Rule(
        name="context_ranks_of_sparse_layers_on_hopper",
        says="On Hopper sparse latent attention shares out tokens from 0.29 on.",
        source="vllm/v1/attention/backends/mla/flashmla_sparse.py (0.28.0 without, 0.29.0 with a log-sum-exp)",
        engines=VLLM,
        since="0.25",
        until="0.28",
        broken=lambda s: _where(s, bool(_kinds(s, "dsa")) and s.hardware.gpu.architecture == "hopper"),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: vLLM {s.version} does not share out the tokens of sparse attention on Hopper; 0.29 does"
        ),
    ),
    Rule(
        name="context_ranks_of_the_sparse_cache",
        says="Sparse latent attention shares out tokens of an FP8 cache on Hopper, of any on Blackwell, and nowhere else.",
        source="vllm/v1/attention/backends/mla/flashmla_sparse.py:456, rocm_aiter_mla_sparse.py:780 (0.33.0)",
        engines=VLLM,
        since="0.29",
        broken=lambda s: _where(s, _sparse_cache(s) is not None),
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: vLLM does not share out the tokens of sparse attention with {_sparse_cache(s)}"
        ),
    ),
    Rule(
        name="context_ranks_of_the_connector",
        says="NixlConnector hands over caches of latent attention that all tensor-parallel ranks share, or that none share.",
        source="vllm/config/vllm.py:1572 (0.33.0)",
        engines=VLLM,
        broken=_half_handed_over,
        because=lambda s: (
            f"NixlConnector takes {_size(s)} 1, or tp (here {int(s.rows.tp[0])}) for latent attention, not {_ranks(s)} "
            f"of {s.model.name}"
        ),
    ),
    Rule(
        name="context_ranks_without_two_batches",
        says="Dual-batch overlap does not work where ranks share the tokens of sequences.",
        source="vllm/config/vllm.py:3245 (0.33.0)",
        engines=VLLM,
        since="0.33",
        broken=lambda s: np.asarray(_shared(s) & (s.rows.overlap == OVERLAPS.index("two_batch"))),
        because=lambda s: f"{_size(s)} {_ranks(s)} does not go with --enable-dbo",
    ),
    Rule(
        name="context_ranks_with_drafts",
        says="Some of vLLM's decode kernels take one query token of a shared context, and drafts go through those of prompts.",
        source="vllm/v1/attention/backend.py:679; backends/flashinfer.py:1067 without, mla/flashinfer_mla.py:168 with (0.33.0)",
        engines=VLLM,
        effect="unsure",
        broken=_drafted,
        because=lambda s: (
            f"{_size(s)} {_ranks(s)} with drafts: vLLM verifies them by kernels of prompts on {s.hardware.gpu.name} with a "
            f"{s.recipe.kv_cache} cache, which are not what is priced"
        ),
    ),
    Rule(
        name="context_ranks_outside_of_graphs",
        says="vLLM 0.11 runs attention outside of CUDA graphs where ranks share the tokens of sequences.",
        source="vllm/config/vllm.py:477 (0.11.2)",
        engines=VLLM,
        effect="unsure",
        until="0.11",
        broken=_shared,
        because=lambda s: f"{_size(s)} {_ranks(s)}: vLLM {s.version} runs attention outside of CUDA graphs then",
    ),
    Rule(
        name="context_ranks_on_amd",
        says="On AMD GPUs vLLM's kernels for shared tokens are others than those that are priced.",
        source="vllm/v1/attention/backends/mla/rocm_aiter_mla.py (0.29.0); platforms/rocm.py:1182 (0.33.0)",
        engines=VLLM,
        effect="unsure",
        broken=lambda s: _where(s, s.hardware.gpu.vendor == "amd"),
        because=lambda s: f"{_size(s)} {_ranks(s)}: vLLM's kernels for shared tokens on {s.hardware.gpu.name} are not priced",
    ),
    Rule(
        name="context_ranks_of_sglang",
        says="SGLang shares out the latents of MLA by its own kernels on Blackwell (0.5.23, without drafts) and on AMD GPUs.",
        source="sglang srt/server_args.py:3149 (0.5.16); srt/layers/attention/attention_registry.py:99, "
        "srt/model_executor/pool_configurator.py (0.5.23: index keys are on every rank)",
        engines=SGLANG,
        effect="unsure",
        broken=_sglang_kernels,
        because=lambda s: (
            f"{_size(s)} {_ranks(s)}: SGLang {s.version} shares out latents of MLA alone, on Blackwell from 0.5.23 on without "
            "drafts or on AMD GPUs; other kernels are not priced"
        ),
    ),
)
