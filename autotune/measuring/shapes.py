"""Which operators to time, at which shapes: what a model needs on a grid of tensor parallelism, tokens and contexts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from autotune.errors import ProblemError
from cost_models.catalog import load_recipe
from cost_models.specs.model import ModelSpec

TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of a rank and step."""
SEQUENCES = (1, 8, 32, 64, 128, 256)
CONTEXTS = (1024, 2048, 4096, 8192, 16384)
PROMPTS = ((1, 512), (1, 1024), (1, 2048), (1, 4096), (1, 8192), (1, 16384), (2, 4096), (4, 2048), (8, 1024))
"""(sequences, new tokens of each)."""
MOST_KV_TOKENS = 2**20
"""Of one decode attention measurement."""
MESSAGE_BYTES = tuple(round(2 ** (power / 2)) // 16 * 16 for power in range(22, 59))
LINK_TOKENS = tuple(sorted({round(2 ** (power / 2)) for power in range(27)}))
COPY_BYTES = tuple(2**power for power in range(20, 31, 2))
HOST_COPIES = (1, 2, 4)
"""Copies under way at once."""
SKEWS = (0.0, 1.0)
"""Standard deviation of log popularity that tokens are drawn with."""
PAIRS_PER_EXPERT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXPERT_PARALLEL = (8, 16, 32, 64)
GEMM_DTYPES = ("bf16", "fp8")
LINKS = ("all_reduce", "allgather_reducescatter.dispatch", "allgather_reducescatter.combine", "all_to_all")
"""Operators that need several GPUs."""
MACHINE = ("hbm_copy", "launch", "host_copy")
"""Operators that belong to no model."""
FIRST = (*MACHINE, *LINKS)
"""Few and quick, so never left out by a budget."""


@dataclass(frozen=True, slots=True)
class KernelShape:
    """One thing to time."""

    operator: str
    dtype: str
    columns: Mapping[str, float] = field(hash=False)

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies the measurement in a table."""
        return (self.operator, self.dtype, *sorted((name, float(value)) for name, value in self.columns.items()))

    def label(self) -> str:
        """For messages: dense_gemm_kernel bf16 m=64 n=7168 k=2048."""
        return " ".join([self.operator, self.dtype, *(f"{name}={value:g}" for name, value in self.columns.items())])


@dataclass(frozen=True, slots=True)
class ShapeGrid:
    """What to cover."""

    tensor_parallel: tuple[int, ...] = (1, 4, 8)
    tokens: tuple[int, ...] = TOKENS
    expert_parallel: tuple[int, ...] = EXPERT_PARALLEL
    dtypes: tuple[str, ...] = GEMM_DTYPES


def kernel_shapes(model: ModelSpec, ranks: int, grid: ShapeGrid) -> list[KernelShape]:
    """Everything to time for a model on `ranks` GPUs of a node; quick and widely needed ones first."""
    found = [*_machine(), *_links(model, ranks), *_dense(model, grid), *_experts(model, grid), *_attention(model, grid)]
    unique = list({shape.key: shape for shape in found}.values())
    return sorted(unique, key=lambda shape: FIRST.index(shape.operator) if shape.operator in FIRST else len(FIRST))


def only_shapes(found: list[KernelShape], operators: Iterable[str]) -> list[KernelShape]:
    """The named operators; raises ProblemError for names that nothing is timed under."""
    known = {shape.operator for shape in found}
    wanted = list(operators)
    if unknown := [name for name in wanted if name not in known]:
        raise ProblemError(f"nothing to time under {', '.join(unknown)} here; known: {', '.join(sorted(known))}")
    return [shape for shape in found if shape.operator in wanted]


def _machine() -> list[KernelShape]:
    """What belongs to no model."""
    copies = [KernelShape("hbm_copy", "bf16", {"message_bytes": size}) for size in COPY_BYTES]
    hosts = [
        KernelShape("host_copy", direction, {"message_bytes": 2**28, "at_once": count})
        for direction, count in itertools.product(("to_device", "to_host"), HOST_COPIES)
    ]
    launches = [KernelShape("launch", how, {"kernels": 200}) for how in ("graph", "eager")]
    return [*copies, *hosts, *launches]


def _links(model: ModelSpec, ranks: int) -> list[KernelShape]:
    """Collectives over 2, 4, 8, ... of the GPUs."""
    groups = [count for count in (2, 4, 8, 16) if count <= ranks]
    found = [
        KernelShape("all_reduce", "bf16", {"message_bytes": size, "ranks": count})
        for count, size in itertools.product(groups, MESSAGE_BYTES)
    ]
    if model.moe is None:
        return found
    for count, tokens in itertools.product(groups, LINK_TOKENS):
        moved = {"tokens": tokens, "ranks": count, "experts": model.moe.experts, "top_k": model.moe.top_k}
        moved["token_bytes"] = 2 * model.hidden
        found += [KernelShape(operator, "bf16", dict(moved)) for operator in LINKS[1:]]
    return found


def _dense(model: ModelSpec, grid: ShapeGrid) -> list[KernelShape]:
    """Every matrix outside the routed experts, cut as tensor parallelism cuts it."""
    matrices = [m for m in model.matrices() if m.family not in ("experts", "embedding")]
    sizes = set()
    for matrix, shards in itertools.product(matrices, grid.tensor_parallel):
        n = matrix.n // shards if matrix.sharding == "column" else matrix.n
        k = matrix.k // shards if matrix.sharding == "row" else matrix.k
        sizes.add((n, k))
    return [
        KernelShape("dense_gemm_kernel", dtype, {"m": m, "n": n, "k": k})
        for dtype, (n, k), m in itertools.product(grid.dtypes, sorted(sizes), grid.tokens)
        if dtype == "bf16" or (n % 16 == 0 and k % 16 == 0)
    ]


def _experts(model: ModelSpec, grid: ShapeGrid) -> list[KernelShape]:
    """The experts of one rank at several EP sizes, evenly and unevenly loaded."""
    moe = model.moe
    if moe is None:
        return []
    found = []
    for ep, per_expert, skew in itertools.product(grid.expert_parallel, PAIRS_PER_EXPERT, SKEWS):
        local = moe.experts // ep
        if moe.experts % ep or (skew and per_expert < 8):
            continue
        shape = {"pairs": local * per_expert, "local_experts": local, "moe_tp": 1}
        shape |= {"hidden": model.hidden, "intermediate": moe.intermediate}
        # a token of a DP group of `ep` ranks with as many picks: how many of them enter this rank
        tokens = max(round(local * per_expert * ep / moe.top_k * (1 - (1 - 1 / ep) ** moe.top_k)), 1)
        found.append(KernelShape("grouped_gemm", "bf16", {**shape, "input_tokens": tokens, "skew": skew}))
        found += [KernelShape("grouped_gemm_kernel", dtype, {**shape, "skew": skew}) for dtype in grid.dtypes if dtype != "bf16"]
    return found


def _attention(model: ModelSpec, grid: ShapeGrid) -> list[KernelShape]:
    found = []
    recipe = load_recipe("bf16")
    for kind, tp in itertools.product(model.attentions, grid.tensor_parallel):
        if not kind.timing_columns("decode", tp):
            continue
        (decode, _), (prefill, _) = (kind.requirements(recipe, phase)[0] for phase in ("decode", "prefill"))
        for sequences, context in itertools.product(SEQUENCES, CONTEXTS):
            if sequences * context <= MOST_KV_TOKENS:
                columns = {"sequences": sequences, "context_tokens": context, **kind.timing_columns("decode", tp)}
                found.append(KernelShape(decode, "bf16", columns))
        for sequences, new in PROMPTS:
            columns = {"sequences": sequences, "new_tokens": new, "prefix_tokens": 0, **kind.timing_columns("prefill", tp)}
            found.append(KernelShape(prefill, "bf16", columns))
    return list({shape.key: shape for shape in found}.values())
