"""Collectives of torch.distributed (NCCL) over some of the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autotune.measuring.clock import Kernel, random_bf16

if TYPE_CHECKING:
    import torch


MANY_CALLS, FEW_CALLS = 64, 16
"""Of one replay; the same on every rank."""
LARGE_ELEMENTS = 2**23
SMALL = 1024
"""Keeps sums over many replays finite."""


def collective(operator: str, columns: Mapping[str, float], group: Any) -> Kernel:
    """The kernel of one collective; every rank of the group must run it."""
    import torch.distributed as dist

    ranks = int(columns["ranks"])
    if operator == "all_reduce":
        count = int(columns["message_bytes"]) // 2
        return _kernel("NCCL all_reduce", lambda: (random_bf16(count) / SMALL,), lambda x: dist.all_reduce(x, group=group), count)
    size = int(columns["tokens"] * columns["token_bytes"]) // 2

    def small() -> torch.Tensor:
        return random_bf16(size) / SMALL

    def large() -> torch.Tensor:
        return random_bf16(size * ranks) / SMALL

    if operator == "allgather_reducescatter.dispatch":

        def gather(out: torch.Tensor, x: torch.Tensor) -> None:
            dist.all_gather_into_tensor(out, x, group=group)

        return _kernel("NCCL all_gather", lambda: (large(), small()), gather, size * ranks)
    if operator == "allgather_reducescatter.combine":

        def scatter(out: torch.Tensor, x: torch.Tensor) -> None:
            dist.reduce_scatter_tensor(out, x, group=group)

        return _kernel("NCCL reduce_scatter", lambda: (small(), large()), scatter, size * ranks)

    def exchange(out: torch.Tensor, x: torch.Tensor) -> None:
        dist.all_to_all_single(out, x, group=group)

    return _kernel("NCCL all_to_all", lambda: (large(), large()), exchange, size * ranks)


def _kernel(name: str, make: Callable[[], tuple[Any, ...]], run: Callable[..., None], elements: int) -> Kernel:
    """Nothing to compare (`check_links` did), and as many calls on every rank."""
    return Kernel(name, make, run, None, calls=MANY_CALLS if elements < LARGE_ELEMENTS else FEW_CALLS)


def check_links(group: Any, ranks: int, rank: int) -> None:
    """Every collective once on known numbers; raises AssertionError."""
    import torch
    import torch.distributed as dist

    mine = torch.full((4 * ranks,), float(rank), device="cuda")
    total = mine.clone()
    dist.all_reduce(total, group=group)
    assert bool((total == sum(range(ranks))).all()), "all_reduce"
    gathered = torch.empty(4 * ranks, device="cuda")
    dist.all_gather_into_tensor(gathered, mine[:4].contiguous(), group=group)
    assert gathered.tolist() == [float(r) for r in range(ranks) for _ in range(4)], "all_gather"
    scattered = torch.empty(4, device="cuda")
    dist.reduce_scatter_tensor(scattered, mine, group=group)
    assert bool((scattered == sum(range(ranks))).all()), "reduce_scatter"
    exchanged = torch.empty(4 * ranks, device="cuda")
    dist.all_to_all_single(exchanged, mine, group=group)
    assert exchanged.tolist() == gathered.tolist(), "all_to_all"
