"""Kernels that an engine runs routed experts with: which it may be told to take, which it is priced with, and under which name.

TensorRT-LLM has several on Blackwell and takes one by `moe_config.backend`; other engines' are chosen with the all-to-all
(`moe_layer.kernel_variants`). A calibration holds an architecture's usual kernel under the dtype alone (`grouped_gemm.nvfp4`)
and every other under the dtype and the kernel (`grouped_gemm.nvfp4.cutlass`).
"""

from __future__ import annotations

from typing import Literal, get_args

from cost_models.calibration import Calibration

ExpertKernelName = Literal[
    "auto", "trtllm_gen", "cutlass", "deepgemm", "cutedsl", "wideep", "triton", "marlin", "densegemm", "vanilla",
    "megamoe_deepgemm", "megamoe_cutedsl",
]  # fmt: skip
EXPERT_KERNELS: tuple[str, ...] = get_args(ExpertKernelName)
"""Order gives the integer code used in candidate rows. auto: what `taken_kernel` says."""
CHOOSES = ("trtllm",)
"""Engines that are told their expert kernel, whatever the all-to-all."""
GATHERS_FOR_CONTIGUOUS = ("vllm",)
"""Engines that may run the contiguous kernel without a dispatch that sorts tokens for it. SGLang's automatic choice is its Triton
kernel, on Blackwell TRTLLM-gen; DeepGEMM only behind DeepEP (0.5.5 to 0.5.9, layers/quantization/fp8.py, server_args.py)."""
PADDED = "padded"
"""Contiguous kernel of vLLM up to 0.14 for experts in FP8 blocks, decoding included: with E8M0 scales, the default on Hopper
since 0.11.1 (vllm-project/vllm#26197), no batch is too small for DeepGEMM (fused_moe/triton_deep_gemm_moe.py), and it works
through the most rows that padding each local expert to 128 can give (deep_gemm_utils.py compute_aligned_M)."""
UNPADDED_SHARDS = 8
"""Tensor-parallel ranks from which those releases run Triton's experts (vllm-project/vllm#29346; 0.11 from none)."""
WHOLE_EXPERTS = "cutlass"
"""Kernel of vLLM on Hopper for experts in FP8 blocks where ranks hold whole ones: FlashInfer's CUTLASS from 0.17 to 0.33
(fused_moe/oracle/fp8.py, _get_priority_backends: Triton without expert parallelism), in both phases; TensorRT-LLM's sources."""
KNOWS_WHOLE_EXPERTS = ("vllm",)
"""Engines that choose so; others inherit its Hopper timings."""
TAKEN: dict[tuple[str, str], tuple[str, str]] = {
    ("hopper", "fp8_block"): ("cutlass", "cutlass"),
    ("hopper", "fp8"): ("cutlass", "cutlass"),
    ("hopper", "bf16"): ("cutlass", "cutlass"),
    ("blackwell", "bf16"): ("cutlass", "cutlass"),
    ("blackwell", "fp8"): ("cutlass", "cutlass"),
    ("blackwell", "fp8_block"): ("trtllm_gen", "deepgemm"),
    ("blackwell", "nvfp4"): ("trtllm_gen", "cutlass"),
}
"""(architecture, dtype of the experts) -> TensorRT-LLM's kernels (of prompts or tensor-parallel attention, of attention-DP
decoding), as most of the 330 public recipes of NVIDIA/srt-slurm choose them (recipes/trtllm, August 2026)."""
USUAL: dict[str, str] = {"hopper": "cutlass", "blackwell": "trtllm_gen"}
"""Architecture -> the kernel whose timings stand under the dtype alone."""
USUAL_MXFP4: dict[str, str] = {"hopper": "triton", "blackwell": "trtllm_gen"}
"""The same of experts in MXFP4 (gpt-oss)."""
STANDS_IN: dict[str, str] = {"cutedsl": "trtllm_gen", "wideep": "cutlass"}
"""Kernels without timings -> the one that prices them: CuTe DSL's GEMMs are Blackwell's own with the same fused passes as
TRTLLM-gen's, WIDEEP calls CUTLASS's (tensorrt_llm/_torch/modules/fused_moe/fused_moe_wide_ep.py)."""


HANDED_BF16: dict[str, frozenset[str]] = {"fp8_block": frozenset({"cutlass", "deepgemm", "wideep"})}
"""dtype of the experts -> TensorRT-LLM's kernels for which ranks send each other whole BF16 tokens, because they quantise by
themselves: fused_moe_cutlass.py, fused_moe_wide_ep.py and fused_moe_deepgemm.py of _torch/modules/fused_moe leave tokens as they
are before the exchange where experts are FP8 in blocks; other dtypes are quantised first, and all of them for TRTLLM-gen."""


def taken_kernel(architecture: str, dtype: str, spread: bool) -> str | None:
    """The kernel that TensorRT-LLM is written and priced with where nothing is said; None where it is left to the engine.

    spread : whether attention-DP ranks decode.
    """
    kernels = TAKEN.get((architecture, dtype))
    return kernels[int(spread)] if kernels else None


def own_kernel(architecture: str, dtype: str, tells_blocks: bool) -> str:
    """The kernel that TensorRT-LLM takes where it is told none (_torch/model_config.py resolve_moe_backend).

    tells_blocks : whether the release tells FP8 in blocks on Blackwell apart.
    """
    if dtype.startswith("mxfp4"):  # gpt-oss: TRTLLM on Blackwell, Triton on Hopper, each priced under the dtype alone
        return "auto"
    return "trtllm_gen" if tells_blocks and (architecture, dtype) == ("blackwell", "fp8_block") else "cutlass"


def priced_instead(architecture: str, dtype: str, kernel: str, calibration: Calibration) -> str | None:
    """What stands in for a kernel of TensorRT-LLM that has no timings, in words; None where it has or none is named."""
    if kernel == "auto":
        return None
    variant = kernel_variant(architecture, dtype, kernel)
    if not calibration.has("grouped_gemm", variant):
        return f"the usual kernel for {dtype}"
    return STANDS_IN.get(kernel)


def kernel_variant(architecture: str, dtype: str, kernel: str | None) -> str:
    """Name of the calibration's entry for a kernel of TensorRT-LLM; the dtype alone where none is named."""
    priced = STANDS_IN.get(kernel or "", kernel)
    usual = USUAL_MXFP4 if dtype.startswith("mxfp4") else USUAL
    return dtype if priced in (None, usual.get(architecture)) else f"{dtype}.{priced}"
