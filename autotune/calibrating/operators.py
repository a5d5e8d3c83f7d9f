"""Operators that a timing table may hold: shape columns, calibration family, and the fit of their cost model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.calibrating.attention_modules import BLOCK_SPARSE, COMPRESSED, DSA, Module, fit_module
from cost_models import hyper_connections
from cost_models.attention.base import Phase
from cost_models.attention.decode import fit_gqa_decode, fit_mla_decode
from cost_models.attention.latent import absorb_bytes
from cost_models.attention.prompt import QUERY_TILES, fit_prefill_attention
from cost_models.attention.recurrent import convolution_bytes, fit_scan, fit_stream, update_bytes
from cost_models.calibration import Calibration
from cost_models.collectives import fit_all_reduce
from cost_models.dense_gemm import fit_dense_gemm
from cost_models.dispatch import BACKENDS, fit_transfer
from cost_models.fitting import Fit, FitError
from cost_models.grouped_gemm import fit_grouped_gemm
from cost_models.links import Links
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.precision import DTYPES

MLA_LATENT, MLA_ROPE = 512, 64
MLA_QK, MLA_V = 192, 128
MASKED = ".masked"
CONTIGUOUS = ".contiguous"
"""Suffixes of expert dtypes: the kernels that DeepEP low-latency and DeepEP normal feed."""
CUTLASS = ".cutlass"
DEEPGEMM = ".deepgemm"
"""Suffixes of expert dtypes: the kernels that an engine takes when it is told to (cost_models.expert_kernels)."""
FP8_DECODE_ATTENTION = ("blackwell",)
"""Architectures whose decode kernels compute in FP8 when the cache is FP8."""

Columns = dict[str, Any]
"""Shape columns, (rows,) float arrays."""
Known = Mapping[str, float]
"""Coefficients of the base calibration, kept where the timings do not determine them."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One kind of row."""

    columns: tuple[str, ...]
    family: str
    fit: Callable[[Columns, NDArray[np.float64], str, HardwareSpec, Known], Fit] | None = None
    """(shape columns, latency [s], dtype, hardware, known) -> fit; a column `held_out` chooses the rows it is judged on."""
    variant: str | None = None
    """Calibration variant; none: one per dtype."""
    described: tuple[str, ...] = ()
    """Columns that say which model was timed; the measured box leaves them out."""
    fit_module: Callable[[Columns, NDArray[np.float64], str, HardwareSpec, Calibration], Fit] | None = None
    """For rows that time more than the fitted kernels: the same with the base calibration, which prices the rest."""


def _gemm_shape(dtype: str, hardware: HardwareSpec) -> dict[str, Any]:
    stored = dtype.partition(".")[0]
    if stored not in DTYPES:
        raise FitError(f"dtype {dtype} is not modelled; known: {', '.join(sorted(DTYPES))}")
    info = DTYPES[stored]
    return {
        "weight_bytes": info.weight_bytes,
        "activation_bytes": info.activation_bytes,
        "peak_flops_per_s": hardware.gpu.peak_flops_per_s(info.compute),
        "hbm_bytes_per_s": hardware.gpu.hbm_bytes_per_s.value,
    }


def _dense_shape(dtype: str, hardware: HardwareSpec) -> dict[str, Any]:
    gpu = hardware.gpu
    shape = {"processors": gpu.processors.value, "architecture": gpu.architecture, "quantised": dtype != "bf16"}
    return {**_gemm_shape(dtype, hardware), **shape}


def _dense(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    return fit_dense_gemm(**columns, latency_s=latency_s, **_dense_shape(dtype, hardware))


def _dense_kernel(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, known: Known) -> Fit:
    """The GEMM kernel alone: what quantising its input costs is taken over."""
    fit = fit_dense_gemm(**columns, latency_s=latency_s, kernel_alone=True, **_dense_shape(dtype, hardware))
    return dataclasses.replace(fit, values={**fit.values, "quantise_bytes": known.get("quantise_bytes", 0.0)})


def _grouped(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    return fit_grouped_gemm(**columns, latency_s=latency_s, **_gemm_shape(dtype, hardware))


def _grouped_kernel(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, known: Known) -> Fit:
    """The two grouped GEMMs alone: passes over tokens and pairs are taken over."""
    whole = {**columns, "active_experts": columns["local_experts"], "input_tokens": 0.0}
    fit = fit_grouped_gemm(**whole, latency_s=latency_s, kernel_alone=True, **_gemm_shape(dtype, hardware))
    kept = {name: known[name] for name in ("token_passes", "pair_passes") if name in known}
    return dataclasses.replace(fit, values={**fit.values, **kept})


def _attention_peak(dtype: str, hardware: HardwareSpec) -> float:
    fp8 = dtype == "fp8" and hardware.gpu.architecture in FP8_DECODE_ATTENTION
    return hardware.gpu.peak_flops_per_s("fp8" if fp8 else "bf16")


def _decode_shape(dtype: str, hardware: HardwareSpec) -> dict[str, Any]:
    if dtype not in ("bf16", "fp8"):
        raise FitError(f"a KV cache in {dtype} is not modelled; known: bf16, fp8")
    return {
        "kv_bytes": DTYPES[dtype].weight_bytes,
        "peak_flops_per_s": _attention_peak(dtype, hardware),
        "hbm_bytes_per_s": hardware.gpu.hbm_bytes_per_s.value,
        "processors": hardware.gpu.processors.value,
    }


def _mla_decode(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    shape = _decode_shape(dtype, hardware)
    return fit_mla_decode(**columns, latency_s=latency_s, latent_dim=MLA_LATENT, rope_dim=MLA_ROPE, **shape)


def _gqa_decode(columns: Columns, latency_s: NDArray[np.float64], dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    rest, head_dim = _without_single(columns, "head_dim")
    return fit_gqa_decode(**rest, latency_s=latency_s, head_dim=head_dim, **_decode_shape(dtype, hardware))


def _prefill_shape(hardware: HardwareSpec) -> dict[str, Any]:
    """Both attention dtypes are measured against the BF16 peak: the FP8 kernels' gain is in the efficiency."""
    gpu = hardware.gpu
    return {
        "peak_flops_per_s": gpu.peak_flops_per_s("bf16"),
        "hbm_bytes_per_s": gpu.hbm_bytes_per_s.value,
        "processors": gpu.processors.value,
        "query_tile": QUERY_TILES.get(gpu.architecture, QUERY_TILES["hopper"]),
    }


def _mla_prefill(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    return fit_prefill_attention(**columns, latency_s=latency_s, qk_dim=MLA_QK, v_dim=MLA_V, **_prefill_shape(hardware))


def _gqa_prefill(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    rest, head_dim = _without_single(columns, "head_dim")
    shape = _prefill_shape(hardware)
    return fit_prefill_attention(**rest, latency_s=latency_s, qk_dim=head_dim, v_dim=head_dim, **shape)


def _transfer(backend: str) -> Callable[[Columns, NDArray[np.float64], str, HardwareSpec, Known], Fit]:
    def fit(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, known: Known) -> Fit:
        return fit_transfer(backend, **columns, latency_s=latency_s, links=Links.of(hardware), known=known)

    return fit


def _all_reduce(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    return fit_all_reduce(**columns, latency_s=latency_s, links=Links.of(hardware))


def _without_single(columns: Columns, name: str) -> tuple[Columns, int]:
    """The columns without one that must be the same in every row, and its value."""
    values = sorted(set(columns[name]))
    if len(values) != 1:
        raise FitError(f"one {name} per table is needed, found {values}")
    return {key: column for key, column in columns.items() if key != name}, int(values[0])


TRANSFER_COLUMNS = ("tokens", "ranks", "experts", "top_k", "token_bytes")
EXPERT_COLUMNS = ("pairs", "local_experts", "active_experts", "input_tokens", "moe_tp", "hidden", "intermediate")


def _update(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    moved = update_bytes(columns["sequences"], columns["query_tokens"], columns["state_elements"])
    return fit_stream(moved, columns["state_elements"], latency_s, hbm_bytes_per_s=hardware.gpu.hbm_bytes_per_s.value)


def _convolution(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    moved = convolution_bytes(columns["sequences"], columns["new_tokens"], columns["channels"], columns["state_taps"])
    return fit_stream(moved, columns["channels"], latency_s, hbm_bytes_per_s=hardware.gpu.hbm_bytes_per_s.value)


def _absorb(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    moved = absorb_bytes(columns["tokens"], columns["heads"], MLA_V, MLA_LATENT)
    return fit_stream(moved, columns["heads"], latency_s, hbm_bytes_per_s=hardware.gpu.hbm_bytes_per_s.value)


def _scan(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
    return fit_scan(**columns, latency_s=latency_s, processors=hardware.gpu.processors.value)


def _recurrent(kind: str) -> dict[str, Operator]:
    """Kernels of a recurrent kind: the state update of decode, the scan of prefill and the convolution before both."""
    taps = ("sequences", "new_tokens", "channels", "state_taps")
    return {
        f"{kind}_update": Operator(("sequences", "query_tokens", "state_elements"), kind, _update, "update"),
        f"{kind}_scan": Operator(("sequences", "new_tokens", "heads"), kind, _scan, "scan"),
        f"{kind}_convolution.decode": Operator(taps, kind, _convolution, "convolution.decode"),
        f"{kind}_convolution.prefill": Operator(taps, kind, _convolution, "convolution.prefill"),
    }


def _mixing(part: str) -> Callable[[Columns, NDArray[np.float64], str, HardwareSpec, Known], Fit]:
    def fit(columns: Columns, latency_s: NDArray[np.float64], _dtype: str, hardware: HardwareSpec, _known: Known) -> Fit:
        bandwidth = hardware.gpu.hbm_bytes_per_s.value
        return hyper_connections.fitted(part)(columns["tokens"], columns["hidden"], columns["streams"], latency_s, bandwidth)

    return fit


def _modules(name: str, module: Module) -> dict[str, Operator]:
    """A kind's module in both phases."""
    phases: tuple[Phase, ...] = ("decode", "prefill")
    return {
        f"{name}_{phase}": Operator(
            module.columns(phase), f"{name}_{phase}", described=module.dims[1:], fit_module=partial(fit_module, module, phase)
        )
        for phase in phases
    }


OPERATORS: dict[str, Operator] = {
    "dense_gemm": Operator(("m", "n", "k"), "dense_gemm", _dense),
    "dense_gemm_kernel": Operator(("m", "n", "k"), "dense_gemm", _dense_kernel),
    "mla_decode": Operator(("sequences", "context_tokens", "heads"), "mla_decode", _mla_decode),
    "mla_absorb": Operator(("tokens", "heads"), "mla_absorb", _absorb),
    "gqa_decode": Operator(("sequences", "context_tokens", "heads", "kv_heads", "head_dim"), "gqa_decode", _gqa_decode),
    "mla_prefill": Operator(("sequences", "new_tokens", "prefix_tokens", "heads"), "mla_prefill", _mla_prefill),
    "gqa_prefill": Operator(("sequences", "new_tokens", "prefix_tokens", "heads", "head_dim"), "gqa_prefill", _gqa_prefill),
    "grouped_gemm": Operator(EXPERT_COLUMNS, "grouped_gemm", _grouped),
    "grouped_gemm_kernel": Operator(
        ("pairs", "local_experts", "moe_tp", "hidden", "intermediate"), "grouped_gemm", _grouped_kernel
    ),
    **_recurrent("gated_delta"),
    **_recurrent("kda"),
    **_recurrent("mamba2"),
    **{
        f"hyper_connections.{part}": Operator(("tokens", "hidden", "streams"), "hyper_connections", _mixing(part), part)
        for part in ("pre", "post")
    },
    **_modules("dsa", DSA),
    **_modules("compressed", COMPRESSED),
    **_modules("block_sparse", BLOCK_SPARSE),
    "all_reduce": Operator(("message_bytes", "ranks"), "all_reduce", _all_reduce, variant="default"),
    **{
        f"{backend}.{direction}": Operator(TRANSFER_COLUMNS, "dispatch", _transfer(backend), variant=f"{backend}.{direction}")
        for backend in BACKENDS[1:]
        for direction in ("dispatch", "combine")
    },
}
"""dtype is the weight dtype of a GEMM, the KV dtype of decode attention, the compute dtype of prefill attention;
transfers and collectives state bytes instead. `*_kernel` rows time the GEMM kernel without what feeds it."""
