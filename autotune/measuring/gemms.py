"""Dense and grouped GEMMs, with random data and float64 references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from autotune.measuring.clock import Kernel, random_bf16

if TYPE_CHECKING:
    import torch

FP8_LARGEST = 448.0


def dense(dtype: str, m: int, n: int, k: int) -> Kernel:
    """x (m, k) times w (n, k) transposed, the kernel alone."""
    import torch

    if dtype == "bf16":
        return Kernel(
            "torch.matmul (cuBLAS)",
            lambda: (random_bf16(m, k), random_bf16(n, k)),
            lambda x, w: x @ w.t(),
            lambda x, w: x.double() @ w.double().t(),
        )
    return Kernel(
        "torch._scaled_mm (row-wise scales)",
        lambda: (*quantised(random_bf16(m, k)), *quantised(random_bf16(n, k))),
        lambda x, sx, w, sw: torch._scaled_mm(x, w.t(), sx, sw.t(), out_dtype=torch.bfloat16, use_fast_accum=True),
        lambda x, sx, w, sw: (x.double() * sx) @ (w.double() * sw).t(),
    )


def quantised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in FP8 (e4m3) and their scales (rows, 1)."""
    import torch

    scale = (values.abs().amax(dim=-1, keepdim=True).float() / FP8_LARGEST).clamp(min=1e-8)
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


def grouped_kernel(pairs: int, local_experts: int, hidden: int, intermediate: int, skew: float) -> Kernel:
    """FP8 gate-up and down GEMMs of a rank's experts, without what lies between or around them."""
    offsets = _offsets(pairs, local_experts, skew)

    def make() -> tuple[Any, ...]:
        gate_up, down = _weights(local_experts, intermediate, hidden)
        x, y = random_bf16(pairs, hidden), random_bf16(pairs, intermediate)
        return *quantised(x), *quantised(gate_up), *quantised(y), *quantised(down), offsets

    def run(*given: torch.Tensor) -> torch.Tensor:
        x, sx, w1, s1, y, sy, w2, s2, ends = given
        out = _scaled_grouped(x, sx, w1, s1, ends)
        _scaled_grouped(y, sy, w2, s2, ends)
        return out

    return Kernel(
        "torch._scaled_grouped_mm (row-wise scales)",
        make,
        run,
        lambda x, sx, w1, s1, _y, _sy, _w2, _s2, ends: _looped(x.double() * sx, w1.double() * s1, ends),
    )


def measured_experts(pairs: int, input_tokens: int, local_experts: int, hidden: int, intermediate: int, skew: float) -> Kernel:
    """A rank's routed experts as an engine runs them: gather, gate-up, activation, down, weighted sum per token."""
    import torch

    offsets = _offsets(pairs, local_experts, skew)
    token = torch.arange(pairs, device="cuda") % input_tokens

    def make() -> tuple[Any, ...]:
        gates = torch.rand(pairs, 1, device="cuda", dtype=torch.bfloat16)
        return random_bf16(input_tokens, hidden), _weights(local_experts, intermediate, hidden), gates

    def reference(x: torch.Tensor, w: tuple[torch.Tensor, torch.Tensor], gates: torch.Tensor) -> torch.Tensor:
        down = _looped(swiglu(_looped(x[token], w[0], offsets)), w[1], offsets) * gates.double()
        return torch.zeros(input_tokens, hidden, device="cuda", dtype=torch.float64).index_add_(0, token, down)

    return Kernel(
        "torch._grouped_mm with gather, silu and index_add",
        make,
        lambda x, w, gates: run_experts(x, w, gates, token, offsets),
        reference,
        tolerance=3e-2,
    )


def run_experts(
    x: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    gates: torch.Tensor,
    token: torch.Tensor,
    ends: torch.Tensor,
    used: torch.Tensor | None = None,
) -> torch.Tensor:
    """Routed experts of a rank: x (tokens, hidden); tokens and gates (pairs, 1) of the pairs sorted by expert; ends of the
    experts' groups. used : (pairs, 1), false for rows behind the last group, which no expert computes.
    """
    import torch

    active = swiglu(torch._grouped_mm(x[token], weights[0].transpose(1, 2), offs=ends))
    down = torch._grouped_mm(active, weights[1].transpose(1, 2), offs=ends) * gates
    if used is not None:
        down = torch.where(used, down, 0.0)
    return torch.zeros_like(x).index_add_(0, token, down)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of rows that hold both."""
    import torch

    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def tokens_of_experts(pairs: int, local_experts: int, skew: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of each expert: even, or drawn with log-normal popularity of that standard deviation."""
    if not skew:
        return np.full(local_experts, pairs // local_experts) + (np.arange(local_experts) < pairs % local_experts)
    rng = np.random.default_rng(local_experts + pairs)
    weight = np.exp(rng.normal(0, skew, local_experts))
    return np.asarray(rng.multinomial(pairs, weight / weight.sum()), dtype=np.int64)


def _offsets(pairs: int, local_experts: int, skew: float) -> torch.Tensor:
    import torch

    return torch.tensor(np.cumsum(tokens_of_experts(pairs, local_experts, skew)), dtype=torch.int32, device="cuda")


def _scaled_grouped(x: torch.Tensor, sx: torch.Tensor, w: torch.Tensor, sw: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    import torch

    return torch._scaled_grouped_mm(
        x, w.transpose(1, 2), sx.squeeze(-1), sw.squeeze(-1), offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _looped(x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Grouped product in float64, expert by expert."""
    import torch

    starts = [0, *ends.tolist()[:-1]]
    parts = [x[a:b].double() @ w[i].double().t() for i, (a, b) in enumerate(zip(starts, ends.tolist(), strict=True))]
    return torch.cat(parts)


def _weights(local_experts: int, intermediate: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate-up (experts, 2 intermediate, hidden) and down (experts, hidden, intermediate), scaled to keep variances."""
    gate_up = random_bf16(local_experts, 2 * intermediate, hidden) / hidden**0.5
    return gate_up, random_bf16(local_experts, hidden, intermediate) / intermediate**0.5
