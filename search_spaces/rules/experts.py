"""Rebalancing, redundant experts and weight offload: what goes together."""

from __future__ import annotations

import numpy as np

from cost_models.specs.precision import DTYPES, FP4_ARCHITECTURES
from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject

BOTH = ("vllm", "sglang")


def _rebalanced(subject: Subject) -> Bools:
    return np.asarray(subject.rows.eplb > 0)


def _offloads(subject: Subject) -> Bools:
    return np.asarray(subject.rows.offload_group_size > 0)


def _without_groups(subject: Subject) -> Bools:
    return np.asarray(_rebalanced(subject) & (subject.rows.ep == 1))


def _not_asked_for(subject: Subject) -> Bools:
    return np.asarray((subject.rows.redundant_experts > 0) & (subject.rows.eplb == 0))


def _offload_and_eplb(subject: Subject) -> Bools:
    return _rebalanced(subject) & _offloads(subject)


def moves_with_offload(subject: Subject) -> Bools:
    """Rows that offload and rebalance while serving (a map loaded once moves nothing)."""
    return _offload_and_eplb(subject) & (subject.rows.eplb_interval_steps > 0)


def _clips(subject: Subject) -> bool:
    """Whether the model is of gpt-oss's kind: its attention has sinks."""
    return subject.model.moe is not None and any(getattr(kind, "sinks", False) for kind in subject.model.attentions)


def _holds_widened(subject: Subject, dtype: str) -> bool:
    """Whether weights are what engines widen a dtype to on a GPU that lacks it."""
    held = {subject.experts, subject.recipe.dense_ffn, subject.recipe.o_proj}
    return not held.isdisjoint(DTYPES[dtype].widened.values())


def _widened(subject: Subject) -> Bools:
    """NVFP4 weights on a GPU without FP4 tensor cores: they are widened to BF16 in the kernel."""
    return subject.all(_holds_widened(subject, "nvfp4") and subject.hardware.gpu.architecture not in FP4_ARCHITECTURES)


def _widened_mxfp8(subject: Subject) -> Bools:
    """MXFP8 weights on a GPU that does not scale blocks of 32 itself."""
    return subject.all(_holds_widened(subject, "mxfp8"))


RULES = (
    Rule(
        name="mxfp8_without_tensor_cores",
        says="Kernels that widen MXFP8 weights were not timed: BF16's over the bytes of the weights are priced.",
        source="vllm kernels/linear/mxfp8/emulation.py, fused_moe/experts/marlin_moe.py; served on H200: InferenceX#1731",
        engines=("vllm",),
        effect="untimed",
        broken=_widened_mxfp8,
        because=lambda s: f"vLLM widens MXFP8 weights to BF16 on {s.hardware.gpu.name}, by kernels that were not timed",
    ),
    Rule(
        name="mxfp8_without_tensor_cores",
        says="MXFP8 weights need GPUs that scale blocks of 32 themselves; SGLang makes FP8 blocks of them on MI300X.",
        source="sglang srt/layers/quantization/fp8.py:334 (0.5.23): compute capability 10.0 at least; sglang#28852",
        engines=("sglang",),
        broken=lambda s: _widened_mxfp8(s) & (s.hardware.gpu.vendor == "nvidia"),
        because=lambda s: (
            f"SGLang has no kernels for MXFP8 weights on {s.hardware.gpu.name}: vLLM widens them, or another --precision"
        ),
    ),
    Rule(
        name="mxfp8_without_tensor_cores",
        says="SGLang makes FP8 blocks of MXFP8 weights on MI300X: BF16 is priced.",
        source="sglang srt/layers/quantization/fp8.py:139 (0.5.23)",
        engines=("sglang",),
        effect="untimed",
        broken=lambda s: _widened_mxfp8(s) & (s.hardware.gpu.vendor == "amd"),
        because=lambda s: f"SGLang makes FP8 blocks of MXFP8 weights on {s.hardware.gpu.name}, BF16 is priced: half the memory",
    ),
    Rule(
        name="mxfp8_without_tensor_cores",
        says="MXFP8 weights need GPUs that scale blocks of 32 themselves.",
        source="TensorRT-LLM's support matrix of precisions: MXFP8 on Blackwell only",
        engines=("trtllm",),
        broken=_widened_mxfp8,
        because=lambda s: f"TensorRT-LLM runs MXFP8 weights on Blackwell only, not on {s.hardware.gpu.name}: another --precision",
    ),
    Rule(
        name="nvfp4_without_tensor_cores",
        says="NVFP4 weights need FP4 tensor cores.",
        source="TensorRT-LLM's support matrix of precisions: NVFP4 on Blackwell only",
        engines=("trtllm",),
        broken=_widened,
        because=lambda s: f"TensorRT-LLM runs NVFP4 weights on Blackwell only, not on {s.hardware.gpu.name}: another --precision",
    ),
    Rule(
        name="nvfp4_without_tensor_cores",
        says="NVFP4 weights need FP4 tensor cores.",
        source="sglang#19491 (0.5.8 says that it is not supported and stops)",
        engines=("sglang",),
        until="0.5.8",
        broken=_widened,
        because=lambda s: (
            f"SGLang {s.version} has no kernels for NVFP4 weights on {s.hardware.gpu.name}: 0.5.12 or another --precision"
        ),
    ),
    Rule(
        name="nvfp4_without_tensor_cores",
        says="NVFP4 experts without FP4 tensor cores are widened by Marlin, with reports of wrong text.",
        source="sglang#19652 adds the Marlin fallback; sglang#29931: wrong text with experts on Hopper (closed unmerged)",
        engines=("sglang",),
        since="0.5.9",
        effect="unsure",
        broken=lambda s: _widened(s) & (s.model.moe is not None),
        because=lambda s: (
            f"SGLang widens NVFP4 experts to BF16 on {s.hardware.gpu.name} (Marlin); sglang#29931 reports wrong text from it: "
            "try it before you rely on it, or take vLLM"
        ),
    ),
    Rule(
        name="eplb_needs_expert_parallelism",
        says="Experts are rebalanced over expert-parallel ranks; without expert parallelism there is nothing to move.",
        source="vllm/config/parallel.py _validate_parallel_config (0.33.0); sglang srt/arg_groups/parallel_hook.py:790 (0.5.23)",
        engines=BOTH,
        broken=_without_groups,
        because=lambda s: (
            f"EPLB needs expert parallelism over more than one rank, ep is {int(s.rows.ep[0])}: "
            f"{'--enable-expert-parallel' if s.engine.name == 'vllm' else '--ep-size'}, or no EPLB"
        ),
    ),
    Rule(
        name="redundant_experts_need_eplb",
        says="Redundant experts exist with EPLB only.",
        source="vllm/config/parallel.py _validate_parallel_config (0.33.0); vllm#24523",
        engines=("vllm",),
        broken=_not_asked_for,
        because=lambda s: f"vLLM takes redundant experts ({int(s.rows.redundant_experts[0])}) with EPLB only: enable_eplb is off",
    ),
    Rule(
        name="offload_without_eplb",
        says="Weight offload and EPLB exclude each other.",
        source="vllm v1/worker/gpu/model_runner.py:536 before :553, distributed/eplb/eplb_communicator.py (0.33.0); 0.19 to 0.24 "
        "register in the same order",
        engines=("vllm",),
        broken=_offload_and_eplb,
        because=lambda _: (
            "weight offload and EPLB exclude each other: EPLB registers experts while offloaded ones lie in host memory, and the "
            "model never loads; leave out one of them"
        ),
    ),
    Rule(
        name="offload_without_eplb",
        says="Weight offload and rebalancing exclude each other; a static map of experts may stay.",
        source="sglang srt/eplb/expert_location_updater.py, srt/utils/offloader.py _CpuParamOffloader (0.5.23)",
        engines=("sglang",),
        effect="breaks",
        broken=moves_with_offload,
        because=lambda s: (
            f"weight offload and EPLB exclude each other: the rebalance after {int(s.rows.eplb_interval_steps[0]):,} steps "
            f"sends weights that lie in host memory; leave out one of them"
        ),
    ),
    Rule(
        name="offload_is_written",
        says="SGLang offloads the layers of the DeepSeek family only.",
        source="sglang srt/models/deepseek_v2.py:2973 is the only model that passes offloader_kwargs (0.5.23)",
        engines=("sglang",),
        broken=lambda s: _offloads(s) & (not (s.latent and s.model.moe is not None)),
        because=lambda s: f"SGLang offloads weights of the DeepSeek family only: {s.model.name} stops while it is built",
    ),
    Rule(
        name="eplb_of_the_model",
        says="vLLM's gpt-oss takes no EPLB: the flag is ignored, redundant experts do not exist.",
        source="vllm/model_executor/models/gpt_oss.py: no MixtureOfExperts (0.13.0 to 0.33.0)",
        engines=("vllm",),
        effect="ignored",
        broken=lambda s: _rebalanced(s) & _clips(s),
        because=lambda s: (
            f"{s.model.name} in vLLM is not rebalanced: EPLB is ignored, and its "
            f"{int(s.rows.redundant_experts[0])} redundant experts do not exist"
        ),
    ),
)
