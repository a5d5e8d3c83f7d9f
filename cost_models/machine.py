"""What a row is priced on: model, hardware, precision recipe and calibration, with derived shorthands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from cost_models.balance import REAL_TRAFFIC_SIGMA
from cost_models.calibration import Calibration, Entry
from cost_models.drafters import Drafter
from cost_models.expert_kernels import CHOOSES, HANDED_BF16, kernel_variant, taken_kernel
from cost_models.links import Links
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import DTYPES, MX_ARCHITECTURES, DtypeInfo, PrecisionRecipe

C = TypeVar("C")
MATRIX_FIELDS = ("attention_in", "q_b", "kv_b", "kv_b_expand", "o_proj", "dense_ffn", "lm_head")
"""Fields of a recipe that a drafter's matrices are stored in."""
MXFP8_BY_DEFAULT = ("sglang", "trtllm")
"""Engines whose MXFP4 experts take MXFP8 activations unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A model in a precision on hardware, with the coefficients of an engine."""

    model: ModelSpec
    hardware: HardwareSpec
    recipe: PrecisionRecipe
    calibration: Calibration
    popularity_sigma: float = REAL_TRAFFIC_SIGMA
    """How unequal the traffic makes experts: standard deviation of the log of their popularity (Workload.popularity_sigma)."""
    drafter: Drafter | None = None
    """With weights of its own; none: drafts come from the model's own module, if any do."""
    symmetric_memory: bool = False
    """Whether all-reduces of tensor parallelism run in NCCL's symmetric memory, where the engine's calibration has them."""

    @property
    def drafting(self) -> Machine:
        """What the drafter's layers are priced on: BF16 weights, a cache of the target's dtype. ValueError without one."""
        if self.drafter is None:
            raise ValueError(f"{self.model.name} has no drafter of its own weights")
        plain = dict.fromkeys(MATRIX_FIELDS, "bf16")
        return Machine(self.drafter.layers, self.hardware, self.recipe.model_copy(update=plain), self.calibration)

    @property
    def all_reduce_variant(self) -> str:
        """Which all-reduce the calibration prices tensor parallelism with."""
        return "symmetric" if self.symmetric_memory and self.calibration.has("all_reduce", "symmetric") else "default"

    @property
    def links(self) -> Links:
        return Links.of(self.hardware)

    @property
    def hbm_bytes_per_s(self) -> float:
        return self.hardware.gpu.hbm_bytes_per_s.value

    @property
    def processors(self) -> float:
        return self.hardware.gpu.processors.value

    def dtype(self, family: str) -> str:
        """Dtype of a matrix family, as the GPU's kernels take it.

        On tensor cores that scale blocks of 32 themselves, SGLang and TensorRT-LLM give MXFP4 experts MXFP8 activations
        instead of widening them to BF16; vLLM does when asked (recipe mxfp4-mxfp8). A router in FP32 is priced as others are
        where FP32 was not timed or the GPU's FP32 throughput is not known.
        """
        if family == "router_fp32" and not self._knows_fp32:
            family = "router"
        stored = str(getattr(self.recipe, family))
        native = self.hardware.gpu.architecture in MX_ARCHITECTURES and self.calibration.applies_to.engine in MXFP8_BY_DEFAULT
        if stored == "mxfp4" and family == "experts" and native:
            return "mxfp4_mxfp8"
        return stored

    @property
    def _knows_fp32(self) -> bool:
        return self.calibration.has("dense_gemm", "fp32") and "fp32" in self.hardware.gpu.flops_per_s

    @property
    def chooses_expert_kernel(self) -> bool:
        """Whether the engine is told its expert kernel: the all-to-all and the phase choose none."""
        return self.calibration.applies_to.engine in CHOOSES

    def chosen_expert_kernel(self, kernel: str, spread: bool) -> str:
        """The calibration's name for a kernel of EXPERT_KERNELS, or for the one taken where it is `auto`.

        spread : whether attention-DP ranks decode.
        """
        return kernel_variant(self.hardware.gpu.architecture, self.dtype("experts"), self._taken(kernel, spread))

    def sends_bf16_to(self, kernel: str, spread: bool) -> bool:
        """Whether ranks send each other whole tokens for a kernel that they are told; arguments as of `chosen_expert_kernel`."""
        return self._taken(kernel, spread) in HANDED_BF16.get(self.dtype("experts"), ())

    def _taken(self, kernel: str, spread: bool) -> str | None:
        told = kernel != "auto"
        return kernel if told else taken_kernel(self.hardware.gpu.architecture, self.dtype("experts"), spread)

    def dtype_info(self, family: str) -> DtypeInfo:
        return DTYPES[self.dtype(family)]

    def peak_flops_per_s(self, family: str) -> float:
        """Tensor peak of the dtype that a matrix family computes in; raises MissingFactError if absent."""
        return self.hardware.gpu.peak_flops_per_s(self.dtype_info(family).compute)

    def entry(self, family: str, variant: str) -> Entry:
        """The calibration's entry; of a dtype that it lacks, that of the nearest dtype it has, marked `assumed`.

        Raises MissingFactError naming what is there where nothing stands in.
        """
        if self.calibration.has(family, variant):
            return self.calibration.entry(family, variant)
        dtype, _, kernel = variant.partition(".")
        nearest = DTYPES[dtype].kernels if dtype in DTYPES else ()
        for other in nearest:
            name = f"{other}.{kernel}" if kernel else other
            if self.calibration.has(family, name):
                stand_in = self.calibration.entry(family, name)
                source = f"no {dtype} kernels are calibrated; those of {other} stand in: {stand_in.source}"
                return stand_in.model_copy(update={"status": "assumed", "source": source, "fit": None})
        return self.calibration.entry(family, variant)

    def coefficients(self, family: str, variant: str, kind: type[C]) -> C:
        """Coefficients as the dataclass of their cost model, of `entry`."""
        if self.calibration.has(family, variant):
            return self.calibration.get(family, variant, kind)
        return self.calibration.of(self.entry(family, variant), kind, f"{family}.{variant}")
