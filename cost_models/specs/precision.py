"""Precision recipes: which dtype each matrix family is stored and computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cost_models.specs.base import Spec

Dtype = Literal[
    "fp32",
    "bf16",
    "fp8",
    "fp8_block",
    "int8",
    "int4_g32",
    "int4_g64",
    "int4_g128",
    "mxfp8",
    "mxfp8_a16",
    "mxfp8_bf16",
    "mxfp4",
    "mxfp4_mxfp8",
    "mxfp4_mxfp4",
    "nvfp4",
    "nvfp4_a16",
]
KvDtype = Literal["bf16", "fp8"]


@dataclass(frozen=True, slots=True)
class DtypeInfo:
    """Storage and compute of a dtype.

    weight_bytes and activation_bytes include scales: fp8_block keeps one fp32 scale per
    128x128 weights and per 128 activations; nvfp4 one fp8 scale per 16; mxfp8 and mxfp4 one byte per 32
    (OCP Microscaling Formats 1.0); int4 one 16-bit scale per group.
    """

    weight_bytes: float
    activation_bytes: float
    compute: str
    """Key into GpuSpec.flops_per_s."""
    kernels: tuple[str, ...] = ()
    """Dtypes whose calibrated kernels stand in, nearest first, where its own are not calibrated."""
    architectures: tuple[str, ...] = ()
    """GPU architectures whose tensor cores take it; empty: any with the compute dtype."""
    elsewhere: str | None = None
    """What engines run the same weights in on any other architecture; none where they do not."""
    widened: Mapping[str, str] = field(default_factory=dict)
    """Other architecture -> what engines widen the same weights to there."""
    hidden_multiple: int = 1
    """What expert kernels pad the hidden size of their weights to."""
    width_multiple: int = 1
    """What expert kernels pad an expert's width on one rank to."""

    def instead_on(self, architecture: str) -> str | None:
        """What engines run the same weights in on an architecture that lacks this dtype; none where it has it, or they do not."""
        return None if architecture in self.architectures else self.widened.get(architecture, self.elsewhere)


FP4_ARCHITECTURES = ("blackwell", "rubin")
"""Whose tensor cores take NVFP4."""
MX_ARCHITECTURES = ("blackwell", "rubin", "cdna4")
"""Whose tensor cores scale blocks of 32 themselves."""
MXFP4_PADDING: dict[str, Any] = {"hidden_multiple": 256, "width_multiple": 128}
"""Marlin, TensorRT-LLM kernels (vllm 0.33, fused_moe/oracle/mxfp4.py, mxfp4_round_up_hidden_size_and_intermediate_size)."""

DTYPES: dict[str, DtypeInfo] = {
    "fp32": DtypeInfo(4.0, 4.0, "fp32", kernels=("bf16",)),
    "bf16": DtypeInfo(2.0, 2.0, "bf16"),
    "fp8": DtypeInfo(1.0, 1.0, "fp8", kernels=("fp8_block",)),
    "fp8_block": DtypeInfo(1.0 + 4 / 128**2, 1.0 + 4 / 128, "fp8"),
    "int8": DtypeInfo(1.0, 1.0, "int8"),
    # Weight-only: weights are widened to BF16 in the kernel; groups of 32 were timed (Marlin), the nearest else is mxfp4.
    "int4_g32": DtypeInfo(0.5 + 2 / 32, 2.0, "bf16", kernels=("mxfp4", "bf16")),
    "int4_g64": DtypeInfo(0.5 + 2 / 64, 2.0, "bf16", kernels=("int4_g32", "mxfp4", "bf16")),
    "int4_g128": DtypeInfo(0.5 + 2 / 128, 2.0, "bf16", kernels=("int4_g32", "mxfp4", "bf16")),
    # vLLM widens MXFP8 in the kernel on Hopper (Marlin), and once for all when it loads on MI300X (quantization/modelopt.py,
    # VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD); neither was timed in public.
    "mxfp8": DtypeInfo(
        1.0 + 1 / 32,
        1.0 + 1 / 32,
        "fp8",
        kernels=("fp8_block", "fp8"),
        architectures=MX_ARCHITECTURES,
        widened={"hopper": "mxfp8_a16", "cdna3": "mxfp8_bf16"},
    ),
    "mxfp8_a16": DtypeInfo(1.0 + 1 / 32, 2.0, "bf16", kernels=("bf16",)),
    "mxfp8_bf16": DtypeInfo(2.0, 2.0, "bf16", kernels=("bf16",)),
    "mxfp4": DtypeInfo(0.5 + 1 / 32, 2.0, "bf16", kernels=("bf16",), **MXFP4_PADDING),
    "mxfp4_mxfp8": DtypeInfo(
        0.5 + 1 / 32, 1.0 + 1 / 32, "fp8", kernels=("mxfp4",), architectures=MX_ARCHITECTURES, elsewhere="mxfp4", **MXFP4_PADDING
    ),
    # AITER's kernels were not timed in public: efficiencies of FP8 blocks against the FP4 peak.
    "mxfp4_mxfp4": DtypeInfo(0.5 + 1 / 32, 0.5 + 1 / 32, "mxfp4", kernels=("fp8_block",), architectures=("cdna4",)),
    # On Hopper engines widen NVFP4 weights to BF16 in the kernel (Marlin), whatever the checkpoint says of its activations.
    "nvfp4": DtypeInfo(0.5 + 1 / 16, 0.5 + 1 / 16, "nvfp4", architectures=FP4_ARCHITECTURES, widened={"hopper": "nvfp4_a16"}),
    "nvfp4_a16": DtypeInfo(0.5 + 1 / 16, 2.0, "bf16", kernels=("int4_g32", "mxfp4", "bf16")),
}


class PrecisionRecipe(Spec):
    """The dtype of each matrix family. Norms and softmax stay in higher precision and are not listed."""

    name: str
    title: str
    attention_in: Dtype
    """q_a, kv_a (MLA) or the fused qkv projection (GQA)."""
    q_b: Dtype
    """MLA query up-projection."""
    kv_b: Dtype
    """MLA key/value up-projection, absorbed in decode."""
    o_proj: Dtype
    dense_ffn: Dtype
    shared_expert: Dtype
    experts: Dtype
    router: Dtype = "bf16"
    router_fp32: Dtype = "fp32"
    """Of models that route in FP32 (`MoeSpec.router_fp32`), without tensor cores; tf32 settings come nearest to bf16."""
    gates: Dtype = "bf16"
    """Rates and decays of a recurrent layer, a number a head: narrower than a scale block on a rank, and left out of checkpoints
    in FP8 blocks (Qwen3-Next and Qwen3.5, modules_to_not_convert)."""
    lm_head: Dtype = "bf16"
    embedding: Dtype = "bf16"
    kv_b_expand: Dtype | None = None
    """kv_b where it runs as a GEMM, un-absorbed, in prefill; none: as kv_b."""
    attention_compute: Literal["bf16", "fp8"] = "bf16"
    prefill_attention: Literal["bf16", "fp8"] = "bf16"
    """Compute dtype of prefill attention, which engines choose apart from decode's."""
    kv_cache: KvDtype = "bf16"
    dispatch: Dtype = "bf16"
    combine: Dtype = "bf16"
    source: str

    def compute_dtypes(self) -> set[str]:
        """Tensor-core dtypes that the hardware must have for this recipe."""
        families = (self.attention_in, self.q_b, self.o_proj, self.dense_ffn, self.shared_expert, self.experts)
        return {DTYPES[d].compute for d in families} | {self.attention_compute}

    def foreign_dtype(self, architecture: str) -> str | None:
        """A dtype that the tensor cores of a GPU architecture do not take; none where they take all."""
        fields = ("attention_in", "q_b", "o_proj", "dense_ffn", "shared_expert", "experts")
        used = sorted({getattr(self, name) for name in fields})
        return next((d for d in used if DTYPES[d].architectures and architecture not in DTYPES[d].architectures), None)

    def on(self, architecture: str) -> PrecisionRecipe:
        """The recipe as engines run it on a GPU architecture: 4-bit weights take BF16 activations where tensor cores lack them.

        MXFP4 experts do everywhere, NVFP4 on Hopper, whose attention kernels compute in BF16 over an FP8 cache.
        """
        fields = ("attention_in", "q_b", "o_proj", "dense_ffn", "shared_expert", "experts")
        changed = {name: other for name in fields if (other := DTYPES[getattr(self, name)].instead_on(architecture))}
        if changed and DTYPES[self.dispatch].architectures:
            changed["dispatch"] = "bf16"
        if "nvfp4_a16" in changed.values():
            changed["attention_compute"] = "bf16"
        return self.model_copy(update=changed) if changed else self

    def widened_on(self, architecture: str) -> bool:
        """Whether the experts (of a dense model its networks) are of a dtype that the architecture has to widen."""
        return any(architecture in DTYPES[d].widened for d in (self.experts, self.dense_ffn))

    def with_kv_cache(self, kv_cache: KvDtype) -> PrecisionRecipe:
        """The same recipe with another KV-cache dtype; FP8 attention compute needs an FP8 cache."""
        compute = "bf16" if kv_cache == "bf16" else self.attention_compute
        return self.model_copy(update={"kv_cache": kv_cache, "attention_compute": compute})
