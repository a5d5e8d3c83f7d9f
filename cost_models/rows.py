"""Candidate rows: every decision that a step's cost depends on, as columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, Ints, distinct_rows, is_one_value
from cost_models.dispatch import BACKENDS
from cost_models.expert_kernels import EXPERT_KERNELS
from cost_models.overlap import OVERLAPS

NO_GRAPH = 0
UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of equal length; integers unless said otherwise. `Rows.of` broadcasts and fills defaults."""

    tp: Ints
    dp: Ints
    ep: Ints
    pp: Ints
    dcp: Ints
    """Ranks of a tensor-parallel group that share the tokens of every sequence (decode context parallelism)."""
    batch: Ints
    """Sequences per attention-DP rank."""
    drafts: Ints
    """Draft tokens per sequence and step (MTP)."""
    redundant_experts: Ints
    backend: Ints
    """Code into dispatch.BACKENDS."""
    expert_kernel: Ints
    """Code into expert_kernels.EXPERT_KERNELS."""
    all2all_processors: Ints
    """SMs that dispatch and combine are told to use; 0 as many as they take by themselves."""
    overlap: Ints
    """Code into overlap.OVERLAPS."""
    eplb: Ints
    """1 when expert load is rebalanced."""
    eplb_window_steps: Ints
    eplb_interval_steps: Ints
    """0: a static placement, never moved."""
    eplb_async: Ints
    """1 when layers move one per step beside the forward pass, 0 when it waits for all."""
    moe_chunk_tokens: Ints
    """MoE DP chunk; 0 off."""
    activation_chunk_rows: Ints
    """Expert-GEMM chunk; 0 off."""
    graph_tokens: Ints
    """Largest batch captured in a CUDA graph; 0 runs eagerly."""
    output_chunk: Ints
    api_servers: Ints
    """API processes that share the outputs of a step; 0 leaves them out."""
    batched_tokens: Ints
    """Token budget per step that buffers are sized for; 0 sizes them for the batch."""
    offload_group_size: Ints
    """Weight offload with prefetch: period in layers; 0 keeps all weights on the GPU."""
    offload_in_group: Ints
    """Layers of each group that live in host memory."""
    offload_prefetch_step: Ints
    """Layers copied ahead; 0 reads over the host link without copying (UVA)."""
    imbalance: Floats
    """Busiest rank / mean where it is known; NaN derives it from popularity."""
    skew: Floats
    """Busiest rank / mean of recorded loads, to which sampling noise is added; NaN derives it from popularity."""
    popularity: Floats
    """Standard deviation of log popularity of single experts (0: uniform routing); NaN uses the traffic's."""

    @classmethod
    def of(cls, **columns: ArrayLike) -> Rows:
        """Rows from columns or scalars; unknown names raise TypeError."""
        values: dict[str, Any] = {**DEFAULTS, **columns}
        names = [f.name for f in dataclasses.fields(cls)]
        if unknown := set(values) - set(names):
            raise TypeError(f"unknown columns {sorted(unknown)}")
        return cls(**_typed({name: values[name] for name in names}))

    def __len__(self) -> int:
        return len(self.tp)

    def take(self, index: NDArray[Any] | slice) -> Rows:
        """Rows at the given positions (or mask)."""
        chosen = index if isinstance(index, np.ndarray) and index.dtype != np.bool_ else np.arange(len(self))[index]
        return Rows(**{f.name: _taken(getattr(self, f.name), chosen) for f in dataclasses.fields(self)})

    def distinct(self, *columns: NDArray[Any], outside: Collection[str] = ()) -> tuple[Ints, Ints]:
        """(first, inverse) of what differs in more than the columns named `outside`, as of `arrays.distinct_rows`.

        columns : what else tells rows apart, (rows,) each.
        """
        inside = [getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in outside]
        return distinct_rows(*inside, *columns)

    def replace(self, **columns: ArrayLike) -> Rows:
        """The same rows with some columns changed (broadcast); the others are shared, so nobody writes to a column."""
        changed = _typed({"tp": self.tp, **columns})
        if len(changed["tp"]) == len(self) and not set(changed) - set(DEFAULTS):
            return dataclasses.replace(self, **changed)
        current = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Rows.of(**{**current, **columns})

    @staticmethod
    def concatenate(parts: list[Rows]) -> Rows:
        names = [f.name for f in dataclasses.fields(Rows)]
        return Rows(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    @property
    def group(self) -> Ints:
        """Ranks that share the experts."""
        return self.tp * self.dp

    @property
    def gpus(self) -> Ints:
        """GPUs of one instance."""
        return self.tp * self.dp * self.pp

    @property
    def moe_tp(self) -> Ints:
        return self.group // self.ep

    @property
    def api_outputs(self) -> Ints:
        """Outputs per API process and step; 0 where those are left out."""
        shared = -(-self.batch * self.dp // np.maximum(self.api_servers, 1))
        return np.where(self.api_servers > 0, shared, 0)


def _typed(columns: dict[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    """Columns of equal length, each in its type; those given as one value hold it once (`arrays.is_one_value`)."""
    kinds = [np.float64 if name in FLOAT_COLUMNS else np.int64 for name in columns]
    arrays = [np.atleast_1d(np.array(values, dtype=kind)) for values, kind in zip(columns.values(), kinds, strict=True)]
    return dict(zip(columns, np.broadcast_arrays(*arrays), strict=True))


def _taken(column: NDArray[Any], index: Ints) -> NDArray[Any]:
    return np.broadcast_to(column[:1], len(index)) if is_one_value(column) and len(column) else column.take(index)


FLOAT_COLUMNS = ("imbalance", "skew", "popularity")
DEFAULTS: dict[str, ArrayLike] = {
    "tp": 1,
    "dp": 1,
    "ep": 1,
    "pp": 1,
    "dcp": 1,
    "batch": 1,
    "drafts": 0,
    "redundant_experts": 0,
    "backend": BACKENDS.index("none"),
    "expert_kernel": EXPERT_KERNELS.index("auto"),
    "all2all_processors": 0,
    "overlap": OVERLAPS.index("none"),
    "eplb": 0,
    "eplb_window_steps": 1000,
    "eplb_interval_steps": 0,
    "eplb_async": 0,
    "moe_chunk_tokens": 0,
    "activation_chunk_rows": 0,
    "graph_tokens": UNLIMITED,
    "output_chunk": UNLIMITED,
    "api_servers": 0,
    "batched_tokens": 0,
    "offload_group_size": 0,
    "offload_in_group": 1,
    "offload_prefetch_step": 1,
    "imbalance": np.nan,
    "skew": np.nan,
    "popularity": np.nan,
}
