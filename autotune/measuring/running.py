"""Time shapes one after the other, on one GPU or with other ranks, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from autotune.measuring import attention, gemms, machine
from autotune.measuring.clock import Kernel, Timed, WrongResult, timed
from autotune.measuring.links import check_links, collective
from autotune.measuring.shapes import LINKS, KernelShape
from autotune.measuring.table import MeasuredTable


def kernels_of(shape: KernelShape) -> list[Kernel]:
    """Kernels to time for a shape of one GPU; the fastest counts."""
    c: dict[str, Any] = {name: int(value) if float(value).is_integer() else value for name, value in shape.columns.items()}
    builders: dict[str, Callable[[], list[Kernel]]] = {
        "dense_gemm_kernel": lambda: [gemms.dense(shape.dtype, c["m"], c["n"], c["k"])],
        "grouped_gemm_kernel": lambda: [
            gemms.grouped_kernel(c["pairs"], c["local_experts"], c["hidden"], c["intermediate"], c["skew"])
        ],
        "grouped_gemm": lambda: [
            gemms.measured_experts(c["pairs"], c["input_tokens"], c["local_experts"], c["hidden"], c["intermediate"], c["skew"])
        ],
        "mla_decode": lambda: attention.measured_mla_decode(c["sequences"], c["context_tokens"], c["heads"]),
        "gqa_decode": lambda: attention.measured_gqa_decode(**c),
        "mla_prefill": lambda: attention.prefill(c["sequences"], c["new_tokens"], c["heads"], attention.MLA_QK, attention.MLA_V),
        "gqa_prefill": lambda: attention.prefill(c["sequences"], c["new_tokens"], c["heads"], c["head_dim"], c["head_dim"]),
        "hbm_copy": lambda: [machine.hbm_copy(c["message_bytes"])],
        "host_copy": lambda: [machine.host_copy(shape.dtype, c["message_bytes"], c["at_once"])],
        "launch": lambda: [machine.launch(c["kernels"], graph=shape.dtype == "graph")],
    }
    return builders[shape.operator]()


def measure_here(found: list[KernelShape], table: MeasuredTable, budget_s: float, on_shape: Callable[[KernelShape], None]) -> int:
    """Time the shapes of one GPU that the table lacks; returns how many the budget left out.

    A shape that fails (memory, a dtype the GPU lacks, a wrong result) is recorded with its reason, and the rest goes on.
    """
    import torch

    torch.manual_seed(0)
    end = time.monotonic() + budget_s
    wanted = [shape for shape in found if shape.operator not in LINKS and not table.has(shape)]
    for position, shape in enumerate(wanted):
        if time.monotonic() > end:
            return len(wanted) - position
        on_shape(shape)
        _record(shape, table, kernels_of)
    return 0


def measure_links(
    found: list[KernelShape], table: MeasuredTable | None, budget_s: float, on_shape: Callable[[KernelShape], None]
) -> int:
    """Time collectives; every rank of the default group runs it, rank 0 has the table. Returns how many were left out."""
    import torch
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    end = time.monotonic() + budget_s
    left = 0
    for ranks, shapes in _by_ranks([shape for shape in found if shape.operator in LINKS], world):
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            check_links(group, ranks, rank)
        for shape in shapes:
            wanted = torch.tensor(
                [int(rank == 0 and table is not None and not table.has(shape) and time.monotonic() < end)], device="cuda"
            )
            dist.broadcast(wanted, 0)
            if not wanted.item():
                left += int(table is not None and not table.has(shape))
                continue
            if rank >= ranks:
                continue
            if table is None:
                _silently(shape, group)
            else:
                on_shape(shape)
                _record(shape, table, lambda s, g=group: [collective(s.operator, s.columns, g)])  # type: ignore[misc]
        dist.barrier()
    return left


def _by_ranks(found: list[KernelShape], world: int) -> Iterator[tuple[int, list[KernelShape]]]:
    """Shapes by group size, those that fit in the world."""
    for ranks in sorted({int(shape.columns["ranks"]) for shape in found}):
        if ranks <= world:
            yield ranks, [shape for shape in found if shape.columns["ranks"] == ranks]


def _silently(shape: KernelShape, group: Any) -> None:
    """The part of a rank that keeps no table; rank 0 reports what fails."""
    try:
        timed(collective(shape.operator, shape.columns, group))
    except RuntimeError:
        return


def _record(shape: KernelShape, table: MeasuredTable, build: Callable[[KernelShape], list[Kernel]]) -> None:
    """The fastest kernel of a shape into the table, or why there is none."""
    import torch

    best: tuple[Timed, Kernel] | None = None
    reasons = []
    try:
        kernels = build(shape)
    except (RuntimeError, AttributeError, ImportError) as error:
        kernels, reasons = [], [_reason(error)]
    for kernel in kernels:
        try:
            found = timed(kernel)
        except WrongResult as error:
            reasons.append(str(error))
        except (
            RuntimeError,
            AttributeError,
            ImportError,
            NotImplementedError,
        ) as error:  # torch raises these for what a GPU lacks
            reasons.append(f"{kernel.name}: {_reason(error)}")
        except Exception as error:  # a compiler's own errors have no common class
            if type(error).__module__.split(".")[0] != "triton":
                raise
            reasons.append(f"{kernel.name}: {_reason(error)}")
        else:
            if best is None or found.latency_s < best[0].latency_s:
                best = (found, kernel)
        torch.cuda.empty_cache()
    if best is None:
        table.fail(shape, "; ".join(reasons))
        return
    extra = {}
    if "local_experts" in shape.columns:
        pairs, local = int(shape.columns["pairs"]), int(shape.columns["local_experts"])
        counts = gemms.tokens_of_experts(pairs, local, shape.columns["skew"])
        extra["active_experts"] = int((counts > 0).sum())
    table.add(shape, best[0].latency_s, kernel=best[1].name, spread=best[0].spread, error=best[0].error, **extra)


def _reason(error: Exception) -> str:
    """First line of what a library said."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
