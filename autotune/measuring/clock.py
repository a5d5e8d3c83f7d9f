"""Timing on a GPU: correctness first, then graph replays over rotating inputs, median and spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

KernelInputs = tuple[Any, ...]
REPLAYS = 15
TARGET_S = 0.02
"""GPU time of one replay, about."""
MOST_CALLS = 200
MOST_SETS = 16
CACHE_FACTOR = 3.0
"""Bytes of all input sets over the L2 cache, so that no replay finds its inputs there."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Something to time; `run` works on the tensors that `make` made."""

    name: str
    """Library and function, for the table."""
    make: Callable[[], KernelInputs]
    run: Callable[..., Any]
    reference: Callable[..., torch.Tensor] | None
    """What `run` should return, in float64; none where there is nothing to compare (copies, collectives)."""
    tolerance: float = 2e-2
    """Largest relative error ||out - ref|| / ||ref||; NaN never passes."""
    graph: bool = True
    calls: int | None = None
    """Of one replay; none: as many as a first timing suggests. Ranks that run together must agree."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A measurement."""

    latency_s: float
    """Median."""
    spread: float
    """(P90 - P10) / median of the replays."""
    error: float
    """Relative error against float64; 0 where nothing is compared."""


class WrongResult(Exception):
    """A kernel that does not compute what it should is not timed."""


def timed(kernel: Kernel) -> Timed:
    """Check, warm up, and time a kernel; raises WrongResult."""
    import torch

    first = kernel.make()
    error = checked_against(kernel, first)
    sets = [first, *(kernel.make() for _ in range(_sets(first) - 1))]
    seconds = _replayed(kernel, sets) if kernel.graph else _events(kernel, sets)
    torch.cuda.synchronize()
    low, median, high = np.percentile(seconds, [10, 50, 90])
    return Timed(float(median), float((high - low) / median), error)


def checked_against(kernel: Kernel, inputs: KernelInputs) -> float:
    """Relative error of one run against the reference."""
    import torch

    out = kernel.run(*inputs)
    torch.cuda.synchronize()
    if kernel.reference is None:
        return 0.0
    expected = kernel.reference(*inputs).double()
    error = float((out.double() - expected).norm() / expected.norm())
    if not error <= kernel.tolerance:
        raise WrongResult(f"{kernel.name}: relative error {error:.2e}, {kernel.tolerance:.0e} allowed")
    return error


def _sets(inputs: KernelInputs) -> int:
    """Input sets that together are larger than the cache."""
    import torch

    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(inputs))
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return int(np.clip(np.ceil(CACHE_FACTOR * cache / max(size, 1)), 1, MOST_SETS))


def tensors_of(inputs: Any) -> list[torch.Tensor]:
    """All tensors of nested tuples."""
    import torch

    if isinstance(inputs, torch.Tensor):
        return [inputs]
    return [tensor for item in inputs for tensor in tensors_of(item)] if isinstance(inputs, tuple) else []


def random_bf16(*size: int) -> torch.Tensor:
    """Standard normal values on the GPU."""
    import torch

    return torch.randn(*size, device="cuda", dtype=torch.bfloat16)


def _calls(kernel: Kernel, sets: list[KernelInputs]) -> int:
    """Calls of one replay, from a rough first timing."""
    import torch

    if kernel.calls is not None:
        return kernel.calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    kernel.run(*sets[0])
    start.record()
    for inputs in sets[:3]:
        kernel.run(*inputs)
    end.record()
    torch.cuda.synchronize()
    rough_s = start.elapsed_time(end) / 1e3 / len(sets[:3])
    return int(np.clip(TARGET_S / max(rough_s, 1e-7), len(sets), MOST_CALLS))


def _replayed(kernel: Kernel, sets: list[KernelInputs]) -> list[float]:
    """Seconds per call of each replay of a graph of many calls."""
    import torch

    calls = _calls(kernel, sets)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for inputs in sets:
            kernel.run(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            kernel.run(*sets[call % len(sets)])
    graph.replay()
    return _measured(graph.replay, calls)


def _events(kernel: Kernel, sets: list[KernelInputs]) -> list[float]:
    """Seconds per call where a graph cannot be captured."""
    calls = _calls(kernel, sets)

    def once() -> None:
        for call in range(calls):
            kernel.run(*sets[call % len(sets)])

    once()
    return _measured(once, calls)


def _measured(work: Callable[[], None], calls: int) -> list[float]:
    import torch

    found = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / calls)
    return found
