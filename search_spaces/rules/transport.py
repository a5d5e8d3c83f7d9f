"""All-to-all backends, their kernels and runners, and what overlaps them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
from cost_models.releases import version_key
from cost_models.specs.precision import FP4_ARCHITECTURES
from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject
from search_spaces.schema import Choice

EVERY = ("vllm", "vllm-ascend", "sglang", "trtllm")
DEEPEP = ("deepep_low_latency", "deepep_normal")
OVERLAPPING = {"two_batch": DEEPEP, "single_batch": ("deepep_low_latency",)}
"""All-to-all backends that an overlap works with."""
PAGES = {"flashmla": 64, "cutlass_mla": 128, "trtllm_mla": 64, "cutedsl_mla": 64, "trtllm_mha": 64, "hpc_ops": 64}
"""Tokens of a KV page that an attention backend of SGLang forces (srt/arg_groups/overrides.py:1143 of 0.5.23)."""
BLACKWELL_PAGE = 64
"""Of the attention backends that SGLang takes by itself on Blackwell (trtllm_mla, trtllm_mha)."""


def _by_choice(holds: Callable[[Subject, Choice], Bools | bool]) -> Callable[[Subject], Bools]:
    """Rows whose backend breaks something."""

    def broken(subject: Subject) -> Bools:
        found = subject.none()
        for choice, used in subject.by_choice():
            found |= used & holds(subject, choice)
        return found

    return broken


def _not_offered(subject: Subject) -> Bools:
    codes = [BACKENDS.index(subject.name_of(choice)) for choice in subject.offered()]
    return subject.spread & ~np.isin(subject.rows.backend, codes)


def _names(subject: Subject) -> str:
    return ", ".join(sorted({subject.name_of(choice) for choice in subject.offered()}))


def _backend(subject: Subject) -> str:
    return BACKENDS[int(subject.rows.backend[0])]


def _dispatched(s: Subject) -> int:
    """Width of a token on its way to the experts."""
    return s.model.moe.routed_hidden(s.model.hidden) if s.model.moe else s.model.hidden


def _value(subject: Subject) -> str:
    choice = subject.choice()
    return choice.value if choice else _backend(subject)


def _not_by_itself(subject: Subject) -> Bools:
    found = subject.none()
    for ep in np.unique(subject.rows.ep[subject.spread]):
        by_itself = subject.engine.taken_by_itself(subject.version, int(ep), subject.phase)
        if by_itself is not None:
            code = BACKENDS.index(subject.name_of(by_itself))
            found |= subject.spread & (subject.rows.ep == ep) & (subject.rows.backend != code)
    return found


def _by_itself_text(subject: Subject) -> str:
    ep = int(subject.rows.ep[0])
    by_itself = subject.engine.taken_by_itself(subject.version, ep, subject.phase)
    assert by_itself is not None
    return f"{subject.engine.title} takes {by_itself.value} by itself at EP{ep}, not {_value(subject)}"


def _per_call(subject: Subject) -> np.ndarray:
    """Tokens of a rank that one call of the all-to-all moves, (rows,)."""
    chunk = subject.rows.moe_chunk_tokens
    return np.asarray(np.where(chunk > 0, np.minimum(chunk, subject.tokens), subject.tokens) / subject.rows.tp)


def _above(limit_of: Callable[[Choice, str, str], int | None]) -> Callable[[Subject, Choice], Bools | bool]:
    def over(subject: Subject, choice: Choice) -> Bools | bool:
        limit = limit_of(choice, subject.phase, subject.version)
        return False if limit is None else np.asarray(_per_call(subject) > limit)

    return over


def _limit_text(subject: Subject) -> str:
    choice = subject.choice()
    assert choice is not None
    limit = choice.max_tokens_in(subject.phase)
    return f"{choice.value} takes {limit:,} tokens of a rank and step, the pool has {float(_per_call(subject)[0]):,.0f}"


def _seen_text(subject: Subject) -> str:
    choice = subject.choice()
    assert choice is not None
    seen = choice.tokens_seen_in(subject.phase, subject.version)
    return f"{_limit_text(subject)}; up to {seen:,} were seen to run, with a newer DeepEP than the one this limit was read in"


GATHERS_OVERLAP_SINCE = "0.5.15"
"""SGLang."""


def _overlap(name: str) -> Callable[[Subject], Bools]:
    """Rows with an overlap on a backend that it does not work with."""

    def broken(subject: Subject) -> Bools:
        fitting = [BACKENDS.index(backend) for backend in OVERLAPPING[name]]
        rows = subject.rows
        return np.asarray((rows.overlap == OVERLAPS.index(name)) & ~(np.isin(rows.backend, fitting) & (rows.dp > 1)))

    return broken


def _between_gathers(subject: Subject) -> Bools:
    """Rows of attention-DP ranks that gather tokens for experts that are not spread, of a release that overlaps those."""
    rows = subject.rows
    gathers = rows.backend == BACKENDS.index("allgather_reducescatter")
    new = version_key(subject.release) >= version_key(GATHERS_OVERLAP_SINCE)
    return np.asarray(gathers & (rows.dp > 1) & (rows.ep == 1) & new)


def _expert_dtypes(subject: Subject, choice: Choice) -> bool:
    taken = choice.experts_in(subject.role, subject.version)
    return bool(taken) and subject.experts not in taken


def _dtypes_text(subject: Subject) -> str:
    choice = subject.choice()
    assert choice is not None
    taken = ", ".join(choice.experts_in(subject.role, subject.version))
    title, mode = f"{subject.engine.title} {subject.version}", subject.name_of(choice).replace("_", " ")
    behind = f"{choice.value} ({mode}) in a {subject.role} pool"
    return f"{title} has no kernel for {subject.experts} experts behind {behind}: it takes {taken}"


def page_tokens(subject: Subject) -> int:
    """Tokens of a KV page that SGLang works with; what it takes by itself where nothing is said."""
    said = [subject.option(name) for name in ("--attention-backend", "--decode-attention-backend", "--prefill-attention-backend")]
    forced = [PAGES[name] for name in said if name in PAGES]
    given = subject.option("--page-size")
    if given and given.isdigit():
        return int(given)
    if forced:
        return max(forced)
    return BLACKWELL_PAGE if subject.hardware.gpu.architecture in FP4_ARCHITECTURES and not any(said) else 1


def _budget(subject: Subject) -> np.ndarray:
    """--chunked-prefill-size, a total over the attention-DP ranks, (rows,)."""
    given = subject.option("--chunked-prefill-size")
    if given is not None and given.lstrip("-").isdigit():
        return np.full(len(subject.rows), max(int(given), 0))
    return np.asarray(subject.rows.batched_tokens * subject.rows.dp)


def _page_cut(subject: Subject) -> Bools:
    if subject.role == "decode":
        return subject.none()
    return np.asarray(_budget(subject) % page_tokens(subject) != 0)


def _page_text(subject: Subject) -> str:
    page, total = page_tokens(subject), int(_budget(subject)[0])
    return f"--chunked-prefill-size {total:,} is not divisible by the KV page of {page} tokens; {total // page * page:,} would be"


RULES = (
    Rule(
        name="backend_offered",
        says="The version has the all-to-all.",
        source="the engine's option list (search_spaces/data/options)",
        engines=EVERY,
        broken=_not_offered,
        because=lambda s: (
            f"{s.engine.title} {s.version} has no all-to-all that works as {_backend(s)} in {s.phase}; it has {_names(s)}"
        ),
    ),
    Rule(
        name="backend_by_itself",
        says="vLLM-Ascend chooses the all-to-all by itself.",
        source="vllm_ascend/ascend_forward_context.py select_moe_comm_method (0.13.0)",
        engines=("vllm-ascend",),
        broken=_not_by_itself,
        because=_by_itself_text,
    ),
    Rule(
        name="kernel_token_limit",
        sized=True,
        says="An all-to-all kernel takes so many tokens of a rank and step.",
        source="DeepEP csrc/kernels/internode_ll.cu FINISHED_SUM_TAG; sglang srt/layers/moe/token_dispatcher/deepep.py:404 "
        "(0.5.23); vllm_ascend/ascend_forward_context.py (0.13.0)",
        engines=EVERY,
        broken=_by_choice(_above(lambda choice, phase, version: choice.tokens_seen_in(phase, version))),
        because=_limit_text,
    ),
    Rule(
        name="kernel_token_limit_unsure",
        sized=True,
        says="Above 1,024 tokens of a rank a DeepEP newer than the one the limit was read in is needed.",
        source="vllm#43219 ran 1,560 a rank on GB200; sglang#11168 waits for DeepEP#440",
        engines=("vllm",),
        since="0.24",
        effect="unsure",
        broken=_by_choice(
            lambda s, choice: (
                _above(lambda c, phase, _: c.max_tokens_in(phase))(s, choice)
                & ~np.asarray(_above(lambda c, phase, version: c.tokens_seen_in(phase, version))(s, choice))
            )
        ),
        because=_seen_text,
    ),
    Rule(
        name="inside_the_domain",
        says="NVLink all-to-alls work inside one scale-up domain.",
        source="vllm/distributed/device_communicators/all2all.py (0.33.0): multi-node NVLink memory",
        engines=EVERY,
        broken=_by_choice(lambda s, choice: np.asarray(s.rows.group > s.hardware.scale_up.domain_gpus) & choice.within_domain),
        because=lambda s: (
            f"{_value(s)} works inside one scale-up domain of {s.hardware.scale_up.domain_gpus} GPUs, the pool has "
            f"{int(s.rows.group[0])}"
        ),
    ),
    Rule(
        name="alltoall_of_whole_experts",
        says="TensorRT-LLM gathers tokens where experts are cut over ranks: its all-to-alls take whole ones only.",
        source="_torch/modules/fused_moe/communication/communication_factory.py create_strategy (1.3.0rc3)",
        engines=("trtllm",),
        effect="ignored",
        broken=_by_choice(lambda s, choice: np.asarray(s.rows.ep != s.rows.group) & choice.within_domain),
        because=lambda s: (
            f"{_value(s)} takes whole experts only: with {int(s.rows.ep[0])} expert-parallel ranks of {int(s.rows.group[0])} "
            "TensorRT-LLM gathers tokens instead"
        ),
    ),
    Rule(
        name="every_rank_its_own_attention",
        says="SGLang's FlashInfer all-to-all needs every rank to be an attention-DP rank.",
        source="sglang srt/arg_groups/moe_hook.py _flashinfer_a2a_topology_is_supported (0.5.23)",
        engines=EVERY,
        broken=_by_choice(lambda s, choice: np.asarray(s.rows.tp > 1) & choice.needs_full_dp),
        because=lambda s: f"{_value(s)} needs every rank to be an attention-DP rank, tp is {int(s.rows.tp[0])}",
    ),
    Rule(
        name="without_graphs",
        says="DeepEP's normal kernels run without CUDA graphs.",
        source="vllm/config/compilation.py (0.33.0), deepep_high_throughput",
        engines=EVERY,
        broken=_by_choice(lambda s, choice: np.asarray(s.rows.graph_tokens > 0) & choice.needs_graph_off & (s.phase == "decode")),
        because=lambda s: f"{_value(s)} runs without CUDA graphs only: cuda_graph must be off",
    ),
    Rule(
        name="vendor_of_the_kernel",
        says="DeepEP and FlashInfer's all-to-all kernels run on NVIDIA GPUs; MoRI, which AMD's have, is not modelled.",
        source="vllm/distributed/device_communicators/all2all.py (0.33.0)",
        engines=EVERY,
        broken=_by_choice(lambda s, choice: bool(choice.vendors) and s.hardware.gpu.vendor not in choice.vendors),
        because=lambda s: f"{_value(s)} has no kernels for {s.hardware.gpu.vendor} {s.hardware.gpu.name}",
    ),
    Rule(
        name="hidden_sizes",
        says="DeepEP's low-latency kernels are built for some hidden sizes.",
        source="vllm fused_moe/prepare_finalize/deepep_ll.py SUPPORTED_HIDDEN_SIZES (0.33.0)",
        engines=EVERY,
        broken=_by_choice(lambda s, choice: bool(choice.hidden_sizes) and _dispatched(s) not in choice.hidden_sizes),
        because=lambda s: f"{_value(s)} has no kernel for a hidden size of {_dispatched(s):,}",
    ),
    Rule(
        name="expert_ranks_of_the_kernel",
        says="Hierarchical MC2 of Atlas A2 takes 16, 32 or 64 expert-parallel ranks.",
        source="vllm-project/vllm-ascend pull 5300",
        engines=EVERY,
        broken=_by_choice(
            lambda s, choice: (
                np.isin(s.rows.ep, choice.ep_sizes, invert=True)
                & bool(choice.ep_sizes and s.hardware.gpu.name in choice.ep_sizes_on)
            )
        ),
        because=lambda s: (
            f"{_value(s)} takes {', '.join(str(n) for n in s.choice().ep_sizes)} expert-parallel ranks on "  # type: ignore[union-attr]
            f"{s.hardware.gpu.name}, not {int(s.rows.ep[0])}"
        ),
    ),
    Rule(
        name="expert_dtypes_of_the_kernel",
        says="What stands behind an all-to-all computes experts of some dtypes only.",
        source="sglang srt/layers/moe/ep_moe/layer.py:80-150, srt/arg_groups/moe_hook.py:355 and :531 (0.5.23); vllm "
        "device_communicators/all2all.py:720 (0.19.1), fused_moe/all2all_utils.py:304 (0.24.0), :101 (0.33.0)",
        engines=("vllm", "sglang"),
        broken=_by_choice(_expert_dtypes),
        because=_dtypes_text,
    ),
    Rule(
        name="dbo_needs_deepep",
        says="Two-batch overlap works with DeepEP only.",
        source="vllm/config/vllm.py:2180 (0.33.0)",
        engines=tuple(engine for engine in EVERY if engine != "sglang"),
        broken=_overlap("two_batch"),
        because=lambda s: f"two_batch overlap works with DeepEP only, not with {_backend(s)}",
    ),
    Rule(
        name="dbo_needs_deepep",
        says="Two-batch overlap works between the gathers of attention-DP ranks, too, where experts are not spread: not priced.",
        source="sglang srt/server_args.py:6537 (0.5.15), srt/arg_groups/validation_hook.py:756 (0.5.23)",
        engines=("sglang",),
        effect="untimed",
        broken=lambda s: _overlap("two_batch")(s) & _between_gathers(s),
        because=lambda _: "two_batch overlap between the gathers of attention-DP ranks is not priced",
    ),
    Rule(
        name="dbo_needs_deepep",
        says="Two-batch overlap works with DeepEP, and since 0.5.15 between the gathers of attention-DP ranks.",
        source="sglang srt/server_args.py:6778 (0.5.14), srt/arg_groups/validation_hook.py:756 (0.5.23)",
        engines=("sglang",),
        broken=lambda s: _overlap("two_batch")(s) & ~_between_gathers(s),
        because=lambda s: f"two_batch overlap works with DeepEP only, not with {_backend(s)}",
    ),
    Rule(
        name="sbo_needs_deepep",
        says="Single-batch overlap works with DeepEP's low-latency kernels only.",
        source="sglang srt/batch_overlap/single_batch_overlap.py (0.5.23)",
        engines=EVERY,
        broken=_overlap("single_batch"),
        because=lambda s: f"single_batch overlap works with DeepEP only, not with {_backend(s)}",
    ),
    Rule(
        name="whole_pages",
        sized=True,
        says="SGLang's chunked-prefill size is whole KV pages.",
        source="sglang srt/arg_groups/validation_hook.py:244 (0.5.23); pages: srt/arg_groups/overrides.py:1143",
        engines=("sglang",),
        broken=_page_cut,
        because=_page_text,
    ),
)
