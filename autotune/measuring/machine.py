"""What belongs to no model: device copies, host copies, launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autotune.measuring.clock import Kernel

if TYPE_CHECKING:
    import torch


def hbm_copy(message_bytes: int) -> Kernel:
    """A device-to-device copy: twice its size moves through HBM."""
    import torch

    def make() -> tuple[torch.Tensor, ...]:
        return torch.randint(255, (message_bytes,), device="cuda", dtype=torch.uint8), _empty(message_bytes)

    return Kernel("torch.Tensor.copy_", make, lambda source, target: target.copy_(source), lambda source, _: source)


def host_copy(direction: str, message_bytes: int, at_once: int) -> Kernel:
    """Pinned host copies of `message_bytes` each, `at_once` on streams of their own; the time of all."""
    import torch

    streams = [torch.cuda.Stream() for _ in range(at_once)]

    def make() -> tuple[Any, ...]:
        host = tuple(torch.empty(message_bytes, dtype=torch.uint8, pin_memory=True) for _ in streams)
        return host, tuple(_empty(message_bytes) for _ in streams)

    def run(host: tuple[torch.Tensor, ...], device: tuple[torch.Tensor, ...]) -> None:
        here = torch.cuda.current_stream()
        for stream, a, b in zip(streams, host, device, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                _ = b.copy_(a, non_blocking=True) if direction == "to_device" else a.copy_(b, non_blocking=True)
            here.wait_stream(stream)

    return Kernel("torch.Tensor.copy_ (pinned)", make, run, None, graph=False)


def launch(kernels: int, *, graph: bool) -> Kernel:
    """Dependent kernels that do next to nothing; the time of all."""
    import torch

    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(kernels):
            x.add_(1.0)
        return x

    return Kernel("torch.Tensor.add_ of 32 values", lambda: (torch.zeros(32, device="cuda"),), run, None, graph=graph)


def _empty(size: int) -> torch.Tensor:
    import torch

    return torch.empty(size, device="cuda", dtype=torch.uint8)
