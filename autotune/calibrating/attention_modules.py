"""Fits of attention kinds that are timed as whole modules: what GEMMs and streaming take is priced, the rest is fitted.

A module's time is its projections, absorption, element-wise traffic and launch gaps, which the base calibration prices,
plus the kernels of the kind itself. Errors are those of the whole module, as that is what was timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Floats, Ints, as_floats, distinct_rows
from cost_models.attention.base import Phase
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.indexing import SPARSE_DECODE, SPARSE_PREFILL, SparseCoefficients
from cost_models.calibration import Calibration
from cost_models.catalog import load_recipe
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.fitting import Fit, fit_coefficients, held_out_mask
from cost_models.host import HostCoefficients
from cost_models.machine import Machine
from cost_models.operators import traffic
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec

DSA_DIMS = (
    "heads", "hidden", "q_lora_rank", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_dim", "index_heads", "index_dim",
    "top_k", "computes_index",
)  # fmt: skip
"""Columns that describe the module; heads are those of the rank."""
DSA_DECODE_COLUMNS = ("sequences", "context_tokens", *DSA_DIMS)
DSA_PREFILL_COLUMNS = ("sequences", "new_tokens", "prefix_tokens", *DSA_DIMS)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one module on one machine."""

    rows: Ints
    machine: Machine
    kind: DsaSpec
    columns: Mapping[str, Floats]
    known_s: Floats


def fit_dsa(
    phase: Phase,
    columns: Mapping[str, Floats],
    latency_s: NDArray[np.float64],
    dtype: str,
    hardware: HardwareSpec,
    base: Calibration,
) -> Fit:
    """Fit SparseCoefficients of a phase to modules with BF16 weights; dtype : of the KV cache.

    Whole (heads, sequences, tokens, context) shapes are held out. Raises MissingFactError where the base lacks what
    prices the rest of the module.
    """
    parts = list(_parts(phase, columns, dtype, hardware, base))

    def predict_s(values: Mapping[str, float], rows: NDArray[np.int64]) -> Floats:
        c = SparseCoefficients(**values)
        time_s = np.zeros(len(latency_s))
        for part in parts:
            time_s[part.rows] = part.known_s + _core_s(phase, part, c)
        return time_s[rows]

    names = DSA_DECODE_COLUMNS if phase == "decode" else DSA_PREFILL_COLUMNS
    shapes = np.stack([columns[name] for name in names[: names.index("hidden")]], axis=1).tolist()
    coefficients = SPARSE_DECODE if phase == "decode" else SPARSE_PREFILL
    return fit_coefficients(predict_s, latency_s, coefficients, held_out_mask(shapes))


def _parts(phase: Phase, columns: Mapping[str, Floats], dtype: str, hardware: HardwareSpec, base: Calibration) -> Iterator[_Part]:
    first, inverse = distinct_rows(*(columns[name] for name in DSA_DIMS))
    recipe = load_recipe("bf16").model_copy(update={"kv_cache": dtype})
    for number, row in enumerate(first):
        dims = {name: int(columns[name][row]) for name in DSA_DIMS}
        hidden = dims.pop("hidden")
        kind = DsaSpec.model_validate({**dims, "computes_index": bool(dims["computes_index"])})
        model = ModelSpec.uniform(
            name="module", title="", source="", hidden=hidden, vocab=1, max_context_tokens=1,
            layers=1, attention=kind, dense_intermediate=1,
        )  # fmt: skip
        machine = Machine(model, hardware, recipe, base)
        rows = np.flatnonzero(inverse == number)
        own = {name: np.asarray(column[rows], dtype=np.float64) for name, column in columns.items()}
        tokens = own["sequences"] * (own["new_tokens"] if phase == "prefill" else 1.0)
        yield _Part(rows, machine, kind, own, _known_s(machine, kind, phase, tokens))


def _known_s(machine: Machine, kind: DsaSpec, phase: Phase, tokens: Floats) -> Floats:
    """What the base prices of a module on one rank: GEMMs, absorption, its element-wise traffic and launch gaps."""
    one = np.ones(len(tokens))
    operators = kind.projections(machine, tokens, one, without=("kv_b",))
    operators["absorb"] = kind.absorb(machine, tokens, kind.heads * one)
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
