"""Fits of attention kinds that are timed as whole modules: what GEMMs and streaming take is priced, the rest is fitted.

A module's time is its projections, absorption, element-wise traffic and launch gaps, which the base calibration prices,
plus the kernels of the kind itself. Errors are those of the whole module, as that is what was timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.attention.base import Phase
from cost_models.attention.block_sparse import BlockSparseSpec
from cost_models.attention.blocks import BLOCK_DECODE, BLOCK_PREFILL
from cost_models.attention.compressed import CompressedSpec
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.indexing import (
    PREFILL_KERNELS,
    SPARSE_DECODE,
    SPARSE_PREFILL,
    STREAM_KERNELS,
    SparseCoefficients,
    SparseKernel,
)
from cost_models.calibration import Calibration
from cost_models.catalog import load_recipe
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.fitting import Coefficient, Fit, Mask, fit_coefficients, held_out_mask
from cost_models.host import HostCoefficients
from cost_models.machine import Machine
from cost_models.operators import traffic
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec

DSA_DIMS = (
    "heads", "hidden", "q_lora_rank", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_dim", "index_heads", "index_dim",
    "top_k", "computes_index",
)  # fmt: skip
COMPRESSED_DIMS = (
    "heads", "hidden", "head_dim", "rope_dim", "q_lora_rank", "o_lora_rank", "o_groups", "window_tokens", "ratio",
    "index_heads", "index_dim", "top_k",
)  # fmt: skip
BLOCK_DIMS = ("heads", "hidden", "kv_heads", "head_dim", "block_tokens", "top_blocks", "index_heads", "index_dim")
DECODE_COLUMNS = ("sequences", "context_tokens")
PREFILL_COLUMNS = ("sequences", "new_tokens", "prefix_tokens")


Kind = DsaSpec | CompressedSpec | BlockSparseSpec


@dataclass(frozen=True, slots=True)
class Module:
    """A kind that is timed as whole modules."""

    kind: type[Kind]
    dims: tuple[str, ...]
    """Columns that describe it; heads are those of the rank."""
    recipe: str
    """What the weights of the rows that are read are stored in."""
    kernels: Mapping[Phase, tuple[SparseKernel, ...]]
    """What its kernel may be, by phase; the one that fits the timings best is taken."""

    def columns(self, phase: Phase) -> tuple[str, ...]:
        """Shape columns of a timing table."""
        return (*(DECODE_COLUMNS if phase == "decode" else PREFILL_COLUMNS), *self.dims)


def _only(ranges: Mapping[str, Coefficient]) -> tuple[SparseKernel, ...]:
    return (SparseKernel({}, ranges),)


SELECTED: dict[Phase, tuple[SparseKernel, ...]] = {"decode": _only(SPARSE_DECODE), "prefill": PREFILL_KERNELS}
DSA = Module(DsaSpec, DSA_DIMS, "bf16", SELECTED)
COMPRESSED = Module(CompressedSpec, COMPRESSED_DIMS, "fp8-block", {**SELECTED, "prefill": STREAM_KERNELS})
BLOCK_SPARSE = Module(BlockSparseSpec, BLOCK_DIMS, "bf16", {"decode": _only(BLOCK_DECODE), "prefill": _only(BLOCK_PREFILL)})


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one module on one machine."""

    rows: Ints
    machine: Machine
    kind: Kind
    columns: Mapping[str, Floats]
    known_s: Floats


def fit_module(
    module: Module,
    phase: Phase,
    columns: Mapping[str, Floats],
    latency_s: NDArray[np.float64],
    dtype: str,
    hardware: HardwareSpec,
    base: Calibration,
) -> Fit:
    """Fit SparseCoefficients of a phase, of the kernel with the least loss; dtype : of the KV cache, before a dot.

    Whole (sequences, tokens, context, heads) shapes are held out. Raises MissingFactError where the base lacks what
    prices the rest of the module.
    """
    parts = list(_parts(module, phase, columns, dtype.partition(".")[0], hardware, base))
    names = module.columns(phase)
    shapes = np.stack([columns[name] for name in names[: names.index("hidden")]], axis=1).tolist()
    held_out = held_out_mask(shapes)
    return min((_fit_kernel(kernel, phase, parts, latency_s, held_out) for kernel in module.kernels[phase]), key=lambda f: f.cost)


def _fit_kernel(kernel: SparseKernel, phase: Phase, parts: list[_Part], latency_s: NDArray[np.float64], held_out: Mask) -> Fit:
    def predict_s(values: Mapping[str, float], rows: NDArray[np.int64]) -> Floats:
        c = SparseCoefficients(**neutral, **kernel.chosen, **values)
        time_s = np.zeros(len(latency_s))
        for part in parts:
            time_s[part.rows] = part.known_s + _core_s(phase, part, c)
        return time_s[rows]

    neutral = {name: 1.0 for name in SPARSE_PREFILL if name not in kernel.fitted}
    fit = fit_coefficients(predict_s, latency_s, kernel.fitted, held_out)
    return replace(fit, values={**neutral, **fit.values, **kernel.chosen})


def _parts(
    module: Module, phase: Phase, columns: Mapping[str, Floats], cache: str, hardware: HardwareSpec, base: Calibration
) -> Iterator[_Part]:
    first, inverse = distinct_rows(*(columns[name] for name in module.dims))
    recipe = load_recipe(module.recipe).model_copy(update={"kv_cache": cache})
    for number, row in enumerate(first):
        dims: dict[str, int | bool] = {name: int(columns[name][row]) for name in module.dims}
        hidden = dims.pop("hidden")
        if "computes_index" in dims:
            dims["computes_index"] = bool(dims["computes_index"])
        kind = module.kind.model_validate(dims)
        model = ModelSpec.uniform(
            name="module", title="", source="", hidden=hidden, vocab=1, max_context_tokens=1,
            layers=1, attention=kind, dense_intermediate=1,
        )  # fmt: skip
        machine = Machine(model, hardware, recipe, base)
        rows = np.flatnonzero(inverse == number)
        own = {name: np.asarray(column[rows], dtype=np.float64) for name, column in columns.items()}
        tokens = own["sequences"] * (own["new_tokens"] if phase == "prefill" else 1.0)
        yield _Part(rows, machine, kind, own, _known_s(machine, kind, phase, tokens))


def _known_s(machine: Machine, kind: Kind, phase: Phase, tokens: Floats) -> Floats:
    """What the base prices of a module on one rank: GEMMs, absorption, its element-wise traffic and launch gaps."""
    one = np.ones(len(tokens))
    operators = kind.around(machine, tokens, one)
    c = machine.coefficients("elementwise", "default" if phase == "decode" else "prefill", ElementwiseCoefficients)
    operators["elementwise"] = traffic(machine, tokens, kind.elementwise_elements(phase, one), 0.0, c.query_passes, c)
    gaps_s = machine.coefficients("host", "default", HostCoefficients).small_kernel_s * len(operators)
    return as_floats(np.sum([time_s for time_s, _ in operators.values()], axis=0) + gaps_s)


def _core_s(phase: Phase, part: _Part, c: SparseCoefficients) -> Floats:
    own, heads = part.columns, part.columns["heads"]
    if phase == "decode":
        one = np.ones(len(heads))
        found = part.kind.decode_core(part.machine, c, own["sequences"], one, heads, own["context_tokens"])
    else:
        tokens = (own["sequences"], own["new_tokens"], own["prefix_tokens"])
        found = part.kind.prefill_core(part.machine, c, *tokens, heads)
    return as_floats(np.sum([time_s for time_s, _ in found.values()], axis=0))
